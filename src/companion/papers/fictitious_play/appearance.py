"""How fast somebody walks, read from how they look: made-up figures and a small network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion.checks import at_least, random_source
from companion.training import train

SPEEDS_MPS = (0.8, 1.2, 1.6)  # of the three classes of people
HEIGHT, WIDTH = 32, 16


def sprites(kind: Tensor, generator: torch.Generator, *, noise: float = 0.1) -> Tensor:
    """Draw made-up people.

    Slow people are small and put their feet close together, fast ones are tall with a wide stride;
    size, stride and colours vary so much that neighbouring classes overlap.

    Args:
        kind: shape (N,), 0 (slow) to 2 (fast).
        generator: a CPU generator.
        noise: standard deviation of every pixel, at least 0.

    Returns:
        Images of shape (N, 3, 32, 16) in [0, 1].

    Raises:
        ValueError: for another kind, a negative noise or a seed in place of a generator.
    """
    at_least(0, noise=noise)
    random_source(generator=generator)
    if not ((kind >= 0) & (kind <= 2)).all():
        raise ValueError(f"kind: {kind.unique().tolist()}, expected 0, 1 or 2")
    n = len(kind)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    tall = (17 + 4 * kind + 2.2 * draw(n)).clamp(10, 30)[:, None, None]
    stride = (1 + 1.3 * kind + 0.8 * draw(n)).clamp(0, 6)[:, None, None]
    lean = 0.8 * draw(n)[:, None, None]
    y = torch.arange(HEIGHT)[None, :, None] - (HEIGHT - 1.0)  # 0 at the feet, negative above
    x = torch.arange(WIDTH)[None, None, :] - (WIDTH - 1) / 2 - lean
    up = -y / tall  # 0 at the feet, 1 at the crown
    head = ((up - 0.9) * tall).square() + x.square() < (0.1 * tall + 0.6).square()
    torso = (up > 0.45) & (up < 0.82) & (x.abs() < 0.11 * tall)
    spread = stride * (1 - up / 0.45)
    legs = (up >= 0) & (up <= 0.45) & ((x.abs() - spread).abs() < 1.1)
    colours = torch.rand(4, n, 3, 1, 1, generator=generator)
    picture = colours[0].expand(n, 3, HEIGHT, WIDTH)
    for part, colour in zip((legs, torso, head), colours[1:], strict=True):
        picture = torch.where(part[:, None], colour, picture)
    return (picture + noise * draw(n, 3, HEIGHT, WIDTH)).clamp(0, 1)


class SpeedClassifier(nn.Module):
    """Three convolutions that tell classes of walking speed from images of people.

    Args:
        speeds_mps: the speed of each class, m/s, at least one.

    Raises:
        ValueError: for no class.
    """

    def __init__(self, speeds_mps: Sequence[float] = SPEEDS_MPS) -> None:
        super().__init__()
        if not len(speeds_mps):
            raise ValueError("speeds_mps = []: expected the speed of at least one class")
        layers: list[nn.Module] = []
        for before, after in ((3, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.ReLU()]
        layers += [nn.Flatten(), nn.Linear(16 * (HEIGHT // 8) * (WIDTH // 8), len(speeds_mps))]
        self.layers = nn.Sequential(*layers)
        self.speeds_mps = torch.tensor(speeds_mps, dtype=torch.float64)  # stays on the CPU

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of shape (N, classes) of images of shape (N, 3, 32, 16).

        Raises:
            ValueError: for other shapes.
        """
        if tuple(pictures.shape[1:]) != (3, HEIGHT, WIDTH):
            raise ValueError(
                f"pictures {tuple(pictures.shape)}: expected (N, 3, {HEIGHT}, {WIDTH})"
            )
        return self.layers(pictures - 0.5)

    def fit(
        self, pictures: Tensor, kind: Tensor, generator: torch.Generator, *, steps: int = 600, lr: float = 0.05
    ) -> SpeedClassifier:  # fmt: skip
        """Train on images of known class.

        Args:
            pictures: shape (N, 3, 32, 16), at least 64 of them.
            kind: shape (N,), their classes.
            generator: a CPU generator, of the batches.
            steps: optimiser steps.
            lr: learning rate.

        Returns:
            The classifier itself.

        Raises:
            ValueError: for a class that is not there.
        """
        if not ((kind >= 0) & (kind < len(self.speeds_mps))).all():
            raise ValueError(
                f"kind: {kind.unique().tolist()}, expected 0 to {len(self.speeds_mps) - 1}"
            )
        train(self, pictures, kind, steps=steps, generator=generator, batch_size=64, lr=lr)
        return self

    @torch.no_grad()
    def speed(self, pictures: Tensor) -> Tensor:
        """Expected speed Σ_c p_c v_c of each person, (N,) in m/s, float64, on the CPU."""
        return self(pictures).cpu().double().softmax(1) @ self.speeds_mps
