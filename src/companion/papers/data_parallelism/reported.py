"""Curves of the paper's figures, to draw under ours: Simple-CNN on MNIST, SGD, goal error 0.02.

Read off the drawings of the second arXiv version (June 2020), within 0.1 % for steps.
"""

# steps to the goal by batch size, Fig. 1
PAPER_STEPS: dict[str, dict[int, int]] = {
    "dense": {
        2: 5919, 4: 3056, 8: 1376, 16: 848, 32: 512, 64: 336, 128: 272, 256: 208, 512: 224,
        1024: 192, 2048: 224, 4096: 160, 8192: 192, 16384: 176,
    },
    "50 % sparse": {
        2: 7775, 4: 3599, 8: 1696, 16: 1312, 32: 752, 64: 400, 128: 368, 256: 256, 512: 288,
        1024: 272, 2048: 224, 4096: 208, 8192: 208, 16384: 176,
    },
    "70 % sparse": {
        2: 9231, 4: 4943, 8: 2608, 16: 1536, 32: 752, 64: 432, 128: 368, 256: 272, 512: 288,
        1024: 304, 2048: 272, 4096: 288, 8192: 272, 16384: 272,
    },
    "90 % sparse": {
        2: 17164, 4: 9742, 8: 5951, 16: 2960, 32: 1616, 64: 1040, 128: 640, 256: 480, 512: 560,
        1024: 512, 2048: 592, 4096: 464, 8192: 432, 16384: 496,
    },
}  # fmt: skip

# learning rate of the best trial by batch size, Fig. 4; the middle where several tie
PAPER_RATES: dict[str, dict[int, float]] = {
    "dense": {4: 0.038, 32: 0.133, 256: 0.205, 2048: 0.165, 16384: 0.166},
    "90 % sparse": {4: 0.022, 32: 0.195, 256: 0.365, 2048: 0.405, 16384: 0.365},
}
