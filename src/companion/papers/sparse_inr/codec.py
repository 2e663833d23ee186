"""An image stored as the network that draws it, and drawn again."""

from __future__ import annotations

import json
import math
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from companion.checks import tensors
from companion.papers.sparse_inr.fitting import fit, render
from companion.papers.sparse_inr.masks import full_masks
from companion.papers.sparse_inr.meta import Checkpoint
from companion.papers.sparse_inr.network import (
    Params,
    as_images,
    as_targets,
    check_values,
    pixel_grid,
)
from companion.sparsity import is_bias

NUMBERS = {16: "<f2", 32: "<f4"}  # bits of a stored number -> NumPy's name of it
FORMAT = "companion-inr-1"


def encode(
    net: Checkpoint, image: Tensor, *, steps: int = 100, lr: float = 1e-3, bits: int = 32
) -> bytes:
    """Fit a meta-learned sparse network to one image of any size and store what survived.

    The bytes are a line of JSON (sizes, omega_0), the masks of the weights with one bit an entry,
    and the surviving weights and all biases. Their number is what the image costs.

    Args:
        net: of `meta_prune`, or of `meta_learn` for a dense network; what has no mask is kept.
        image: (channels, height, width), values in [0, 1] and not beyond, as `decode` gives no
            others.
        steps: of Adam, at least 0.
        lr: learning rate, above 0.
        bits: 32 or 16 of a stored number.

    Raises:
        ValueError: for what is no `Checkpoint`, another shape or range of the image, another
            number of channels than the network's outputs, or other bits.

    References:
        Lee et al. (2021), section 3; the bytes are ours.
    """
    if bits not in NUMBERS:
        raise ValueError(f"bits = {bits!r}: expected one of {', '.join(map(str, NUMBERS))}")
    if not isinstance(net, Checkpoint):
        raise ValueError(
            f"net: {type(net).__name__}, expected a Checkpoint as meta_learn and meta_prune give"
        )
    tensors(image=image)
    if image.dim() != 3 or 0 in image.shape:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (channels, height, width)")
    check_values(0, image=image)
    channels, height, width = image.shape
    masks = full_masks(net.params) | net.masks  # all layers, in the network's order
    last = [name for name in masks if not is_bias(name)][-1]
    if channels != (outputs := len(net.params[last])):
        raise ValueError(f"image: {channels} channels, but the network has {outputs} outputs")
    grid = pixel_grid(height, width)
    fitted = fit(net.params, masks, as_targets(image[None]), steps, lr, coords=grid)
    head = {
        "format": FORMAT,
        "image": [height, width],
        "bits": bits,
        "omega_0": float(net.params["omega_0"]),
        "shapes": {name: list(mask.shape) for name, mask in masks.items()},
    }
    # biases are stored whole
    kept = {n: (m | is_bias(n)).cpu().flatten() for n, m in masks.items()}
    weights = torch.cat([mask for name, mask in kept.items() if not is_bias(name)])
    values = torch.cat([fitted.params[n][0].cpu().flatten()[mask] for n, mask in kept.items()])
    if bits == 16 and values.abs().max() > np.finfo(np.float16).max:
        raise ValueError(f"bits = 16: a weight of {float(values.abs().max()):.3g} does not fit")
    return b"".join(
        [
            json.dumps(head, separators=(",", ":")).encode() + b"\n",
            np.packbits(weights.numpy()).tobytes(),
            values.numpy().astype(NUMBERS[bits]).tobytes(),
        ]
    )


def decode(data: bytes) -> Tensor:
    """The image that `encode` stored, (channels, height, width), float32 in [0, 1].

    Raises:
        ValueError: for bytes that `encode` did not write, or not all of them.

    Examples:
        >>> from companion.papers.sparse_inr import full_masks, siren_params
        >>> start = siren_params(2, 8, 2, 1, 20.0)
        >>> data = encode(Checkpoint(start, full_masks(start), 0, {}, ()), torch.rand(1, 5, 9))
        >>> decode(data).shape
        torch.Size([1, 5, 9])
    """
    params, (height, width) = _network(data)
    values = render({n: p if n == "omega_0" else p[None] for n, p in params.items()},
                    pixel_grid(height, width))  # fmt: skip
    return as_images(values, height, width)[0].clamp(0, 1)


def _network(data: bytes) -> tuple[Params, tuple[int, int]]:
    line, _, rest = data.partition(b"\n")
    try:
        head = json.loads(line)
        height, width = head["image"]
        shapes = dict(head["shapes"])
        omega_0 = torch.tensor(float(head["omega_0"]), dtype=torch.float32)
        number = np.dtype(NUMBERS[head["bits"]])
        sides = [height, width, *chain(*shapes.values())]
        whole_sides = all(type(side) is int and side > 0 for side in sides)
        paired = all(name.replace("weight", "bias") in shapes for name in shapes)
        if head["format"] != FORMAT or not shapes or not whole_sides or not paired:
            raise ValueError
    except (ValueError, TypeError, KeyError, OverflowError):
        raise ValueError(f"data: {len(data)} bytes that `encode` did not write") from None
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(size for name, size in sizes.items() if not is_bias(name))
    packed = (total + 7) // 8
    if len(rest) < packed:
        raise ValueError(f"data: {len(data)} bytes, some are missing")
    weights = np.unpackbits(np.frombuffer(rest[:packed], np.uint8), count=total).astype(bool)
    stored = rest[packed:]
    biases = sum(size for name, size in sizes.items() if is_bias(name))
    if len(stored) != (expected := number.itemsize * (int(weights.sum()) + biases)):
        raise ValueError(f"data: {len(stored)} bytes of numbers, expected {expected}")
    values, params = np.frombuffer(stored, number).astype(np.float32), {}
    for name, size in sizes.items():
        mask = np.ones(size, bool)
        if not is_bias(name):
            mask, weights = weights[:size], weights[size:]
        flat = np.zeros(size, np.float32)
        flat[mask], values = values[: mask.sum()], values[mask.sum() :]
        params[name] = torch.from_numpy(flat).view(shapes[name])
    return params | {"omega_0": omega_0}, (height, width)
