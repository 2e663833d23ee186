"""Cluttered digits: a digit on a canvas among fragments of others, with the place known.

The place of the object is known in every image, so a map of attention, or a choice of patches, can
be compared with it: with the digit's box, and with its ink.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import one_of, whole
from companion.data.images import load_images

DIGIT = 8  # side of one digit, in pixels
INK = 0.25  # a pixel of a digit counts as ink from this grey value on
PARTS = {"train": slice(0, 1297), "test": slice(1297, None)}  # of the 1797 digits


@dataclass(frozen=True, eq=False)
class ClutteredDigits:
    """Canvases with one digit each.

    Args:
        images: (n, 1, size, size), float32 in [0, 1].
        labels: (n,), the digit, 0 to 9.
        corners: (n, 2), row and column of the top left pixel of the digit's box.
        ink: (n, size, size), bool: the digit's own strokes.
    """

    images: Tensor
    labels: Tensor
    corners: Tensor
    ink: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Side of a canvas, in pixels."""
        return self.images.shape[-1]

    @property
    def box(self) -> Tensor:
        """(n, size, size), bool: the 8 by 8 pixels in which the digit lies."""
        line = torch.arange(self.size, device=self.corners.device)
        row, column = (
            (line >= start[:, None]) & (line < start[:, None] + DIGIT)
            for start in self.corners.unbind(1)
        )
        return row[:, :, None] & column[:, None, :]

    @property
    def checksum(self) -> str:
        """sha256 over pixels and labels, for provenance."""
        digest = hashlib.sha256(self.images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> ClutteredDigits:
        """A copy with all tensors on a device."""
        return ClutteredDigits(**{name: value.to(device) for name, value in vars(self).items()})

    def __getitem__(self, index: slice | Tensor) -> ClutteredDigits:
        """The canvases that a slice, a mask or a tensor of indices names."""
        return dataclasses.replace(
            self, **{name: value[index] for name, value in vars(self).items()}
        )


def cluttered_digits(
    count: int,
    *,
    part: str = "train",
    size: int = 24,
    align: int = 1,
    n_clutter: int = 8,
    fragment: int = 4,
    seed: int = 0,
) -> ClutteredDigits:
    """Draw `count` canvases from scikit-learn's 8 by 8 digits, offline and the same for a seed.

    A canvas gets `n_clutter` square pieces of other digits at arbitrary places (the larger
    value wins where two meet), is cleared under the digit's box, and gets the digit there.

    Args:
        count: canvases, at least 1.
        n_clutter: pieces of other digits on a canvas, at least 0.
        seed: of all that is drawn.
        part: "train" (1297 digits to draw from) or "test" (the other 500).
        size: side of a canvas in pixels, at least 8.
        align: the box begins at a multiple of it; 1 is any pixel, 4 the grid of 4 by 4 patches.
        fragment: side of a piece in pixels, at most 8.

    Raises:
        ValueError: naming the argument, for what is out of these ranges.

    >>> data = cluttered_digits(3, size=24, n_clutter=8, seed=0)
    >>> data.images.shape, data.box.sum((1, 2)).tolist()
    (torch.Size([3, 1, 24, 24]), [64, 64, 64])
    """
    one_of(PARTS, part=part)
    whole(1, count=count, align=align, fragment=fragment)
    whole(DIGIT, size=size)
    whole(0, n_clutter=n_clutter)
    if fragment > DIGIT:
        raise ValueError(f"fragment = {fragment!r}: expected 1 to {DIGIT}")

    data = load_images("digits")
    digits = torch.cat([data.train_x, data.test_x])[PARTS[part], 0]  # (digits, 8, 8)
    labels = torch.cat([data.train_y, data.test_y])[PARTS[part]]
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(high, (count, *shape), generator=generator)

    chosen = draw(len(digits))
    corners = align * draw((size - DIGIT) // align + 1, 2)

    # the source of a piece is any digit but the canvas's own
    source = draw(len(digits) - 1, n_clutter)
    source += source >= chosen[:, None]
    cut = draw(DIGIT - fragment + 1, n_clutter, 2)
    place = draw(size - fragment + 1, n_clutter, 2)
    pixels = _pixels(cut, fragment, DIGIT)  # (count, pieces, fragment²)
    pieces = digits.flatten(1)[source[:, :, None], pixels]
    canvas = torch.zeros(count, size * size)
    target = _pixels(place, fragment, size)
    canvas.scatter_reduce_(1, target.flatten(1), pieces.flatten(1), "amax")

    digit = digits[chosen].flatten(1)
    inside = _pixels(corners, DIGIT, size)
    canvas.scatter_(1, inside, digit)  # paper and ink alike: this clears the box
    ink = torch.zeros(count, size * size, dtype=torch.bool).scatter_(1, inside, digit >= INK)
    square = (count, size, size)
    return ClutteredDigits(canvas.view(square)[:, None], labels[chosen], corners, ink.view(square))


def _pixels(corners: Tensor, side: int, width: int) -> Tensor:
    """Flat indices, in rows of `width`, of the squares that begin at (..., 2) corners."""
    step = torch.arange(side)
    rows = corners[..., 0, None] + step
    columns = corners[..., 1, None] + step
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(-2)
