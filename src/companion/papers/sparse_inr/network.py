"""The network with sines, and what keeps its phases exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Params = dict[str, Tensor]


class Siren(nn.Module):
    """A multilayer perceptron with sines: h <- sin(omega_0 (W h + b)), linear at the end.

    in_features: coordinates a point. hidden_features: units a sine layer. hidden_layers: number
    of sine layers, the first included. out_features: channels. generator: draws the weights.

    First layer: weights and biases uniform in +-1/in_features. Later layers, the last included,
    weights and biases uniform in +-sqrt(6 / fan-in) / omega_0.
    Raises ValueError for sizes below 1 (hidden_layers: below 0) and an omega_0 that is not
    positive.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        hidden_layers: int,
        out_features: int,
        omega_0: float,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "in_features": in_features,
            "hidden_features": hidden_features,
            "out_features": out_features,
        }
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} = {value!r}: expected at least 1")
        if hidden_layers < 0:
            raise ValueError(f"hidden_layers = {hidden_layers!r}: expected at least 0")
        if not 0 < omega_0 < math.inf:
            raise ValueError(f"omega_0 = {omega_0!r}: expected a positive number")
        widths = [in_features, *[hidden_features] * hidden_layers, out_features]
        self.layers = nn.ModuleList()
        for number, (fan_in, fan_out) in enumerate(pairwise(widths)):
            bound = 1 / fan_in if number == 0 else math.sqrt(6 / fan_in) / omega_0
            layer = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
            self.layers.append(layer)
        self.register_buffer("omega_0", torch.tensor(float(omega_0)))

    def forward(self, coords: Tensor) -> Tensor:
        return siren(dict(self.named_parameters()) | {"omega_0": self.omega_0}, coords)


def siren_params(
    in_features: int,
    hidden_features: int,
    hidden_layers: int,
    out_features: int,
    omega_0: float,
    *,
    generator: torch.Generator | None = None,
) -> Params:
    """A freshly drawn `Siren` as a dictionary (arguments as there), float32 on the CPU."""
    sizes = in_features, hidden_features, hidden_layers, out_features
    drawn = Siren(*sizes, omega_0, generator=generator)
    return {name: value.detach() for name, value in drawn.state_dict().items()}


def siren(params: Mapping[str, Tensor], coords: Tensor, masks: Mapping[str, Tensor] | None = None):
    """Evaluate a network at points: (points, in) -> (points, out), no offset, no clamp.

    Computes sin((omega_0 W) h + omega_0 b): scaling the small matrix saves a pass over the large
    activations, and over their derivatives.
    """
    masks = masks or {}
    omega_0 = params["omega_0"]
    weights = [name for name in params if name.endswith(".weight")]
    h = coords
    for number, name in enumerate(weights):
        bias = name.removesuffix("weight") + "bias"
        W = params[name] * masks[name] if name in masks else params[name]
        if number < len(weights) - 1:
            h = torch.sin(linear(h, omega_0 * W, omega_0 * params[bias]))  # eq-sparse-inr-siren
        else:
            h = linear(h, W, params[bias])
    return h


def pixel_grid(height: int, width: int) -> Tensor:
    """Coordinates of a picture's pixels, (height * width, 2), rows first, end points at -1 and 1."""
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(-1, 2)


def as_targets(images: Tensor) -> Tensor:
    """Pictures (n, channels, height, width) as signals (n, height * width, channels)."""
    return images.flatten(2).transpose(1, 2)


def as_images(values: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `as_targets`."""
    return values.transpose(1, 2).unflatten(2, (height, width))


@contextmanager
def strict_float32() -> Iterator[None]:
    """Full float32 inside the block: no TF32, no bf16, no autocast.

    Phases reach omega_0 radians, a hundred and more. TF32 and bf16 round operands by up to one
    part in 2^11 and 2^8: of such a phase 0.05 and 0.4 radians.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def checked(
    params: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None
) -> tuple[Params, Tensor]:
    """The trainable tensors, and omega_0; refuses low precision and masks of nothing."""
    theta = {name: value for name, value in params.items() if name != "omega_0"}
    for name, value in theta.items():
        if value.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"params: {name!r} is {value.dtype}, expected float32 or float64 (sines of large phases)"
            )
    if unknown := (masks or {}).keys() - theta.keys():
        raise ValueError(f"masks: the network has no {min(unknown)!r}")
    return theta, params["omega_0"]


def grid_for(coords: Tensor | None, targets: Tensor) -> Tensor:
    """The given points, or the pixel grid of square pictures with as many."""
    if targets.dim() != 3 or targets.shape[0] < 1:
        raise ValueError(
            f"targets: shape {tuple(targets.shape)}, expected (pictures, points, channels)"
        )
    if coords is None:
        side = math.isqrt(targets.shape[1])
        if side * side != targets.shape[1]:
            raise ValueError(
                f"coords: {targets.shape[1]} points are no square picture; give coords"
            )
        coords = pixel_grid(side, side)
    if len(coords) != targets.shape[1]:
        raise ValueError(f"coords: {len(coords)} points, but targets has {targets.shape[1]}")
    return coords.to(targets)
