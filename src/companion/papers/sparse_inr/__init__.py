"""Meta-learning sparse implicit neural representations (Meta-SparseINR, arXiv 2110.14678).

A network is a dictionary of tensors: weights and biases by name, and ``omega_0``, the frequency
that is fixed when the network is drawn and that nothing trains. Masks are boolean tensors under
the same names (all true for biases, which are never pruned). Signals are (pictures, points,
channels), values in [0, 1]; mean squared errors are over points and channels.

On your own work::

    from companion.data.signals import load_pictures, picture_files
    from companion.papers import sparse_inr as inr
    tasks = inr.as_targets(load_pictures(picture_files(folder), size=16, channels=3))
    start = inr.meta_learn(inr.siren_params(2, 24, 3, 3, 60.0), tasks, 60)
    net = inr.meta_prune(start, tasks, rounds=1, amount=0.5, round_steps=20)
    for file in picture_files(folder):
        image = load_pictures([file], channels=3)[0]  # in its own size
        stored = file.with_name(f"{file.name}.inr")
        stored.write_bytes(data := inr.encode(net[-1], image, steps=200))
        print(file, len(data), inr.psnr((inr.decode(data) - image).square().mean().item()))
"""

from companion.papers.sparse_inr.codec import decode, encode
from companion.papers.sparse_inr.fitting import FitResult, fit, psnr, render
from companion.papers.sparse_inr.masks import (
    bits_per_pixel,
    compact,
    count_params,
    full_masks,
    magnitude_prune,
    matched_width,
    random_prune,
)
from companion.papers.sparse_inr.meta import (
    Checkpoint,
    maml_loss,
    meta_learn,
    meta_prune,
    meta_train,
)
from companion.papers.sparse_inr.network import (
    Siren,
    as_images,
    as_targets,
    pixel_grid,
    siren,
    siren_params,
)

__all__ = [
    "Checkpoint",
    "FitResult",
    "Siren",
    "as_images",
    "as_targets",
    "bits_per_pixel",
    "compact",
    "count_params",
    "decode",
    "encode",
    "fit",
    "full_masks",
    "magnitude_prune",
    "maml_loss",
    "matched_width",
    "meta_learn",
    "meta_prune",
    "meta_train",
    "pixel_grid",
    "psnr",
    "random_prune",
    "render",
    "siren",
    "siren_params",
]
