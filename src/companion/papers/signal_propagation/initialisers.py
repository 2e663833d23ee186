"""Weights whose layers keep signals at their size, and some that do not."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from companion.checks import above, generators
from companion.models.initialisers import reset, truncated_variance_scaling_

# kind -> variance of a weight from its fan-in and fan-out
VARIANCES = {
    "lecun": lambda fan_in, fan_out: 1 / fan_in,
    "glorot": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
    "he": lambda fan_in, fan_out: 2 / fan_in,
    "normal": lambda fan_in, fan_out: 1.0,
}
INITS = ("orthogonal", *VARIANCES, "truncated")


@torch.no_grad()
def init_weights(
    model: nn.Module,
    kind: str,
    *,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> None:
    """Draw every weight anew; biases become 0, normalisation layers the identity.

    Slopes (PReLU), layer scales, and a transformer's tokens and position tables stay as they are.

    Args:
        model: changed in place.
        kind: "orthogonal" (dense layers by QR with fixed signs, convolutions by
            `orthogonal_kernel`, each group of channels for itself); untruncated normals with
            variance 1 / fan-in ("lecun"), 2 / (fan-in + fan-out) ("glorot"), 2 / fan-in ("he") or
            1 ("normal"); or "truncated", SNIP's variance scaling.
        gain: multiplies every weight. Fans are those of `torch.nn.init`: a convolution's count its
            kernel, a transposed one's are exchanged, and groups do not lower the fan-out.
        generator: on the CPU; None: PyTorch's own.

    Raises:
        ValueError: for an unknown kind, a gain that is not positive, or an orthogonal convolution
            with more inputs than outputs.

    Examples:
        >>> layer = nn.Linear(3, 3)
        >>> init_weights(layer, "orthogonal", gain=2.0)
        >>> torch.linalg.svdvals(layer.weight.detach()).round(decimals=3)
        tensor([2., 2., 2.])
    """
    if kind not in INITS:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(INITS)}")
    above(0, gain=gain)
    generators(generator=generator)
    if kind == "truncated":
        truncated_variance_scaling_(model, scale=gain**2, generator=generator)
        return
    for path, module, parameter in reset(model):
        try:
            draw = _draw(kind, parameter, generator, getattr(module, "groups", 1))
        except ValueError as error:
            raise ValueError(f"layer {path!r}: {error}") from None
        parameter.copy_(gain * draw)


def _draw(
    kind: str, parameter: Tensor, generator: torch.Generator | None, groups: int = 1
) -> Tensor:
    if parameter.dim() < 2:
        raise ValueError(f"a weight of shape {tuple(parameter.shape)} has no fans")
    # on the CPU: every device starts from the same weights
    if kind != "orthogonal":
        receptive = parameter[0, 0].numel()
        fan_out, fan_in = (receptive * n for n in parameter.shape[:2])
        draw = torch.empty(parameter.shape, dtype=parameter.dtype)
        return draw.normal_(0.0, math.sqrt(VARIANCES[kind](fan_in, fan_out)), generator=generator)
    if groups > 1:  # each is a map of its own, from its inputs to its outputs
        parts = [_draw(kind, part, generator) for part in parameter.chunk(groups)]
        return torch.cat(parts)
    out_channels, in_channels, *size = parameter.shape
    if math.prod(size) == 1:
        # QR needs 32 bits
        dtype = parameter.dtype if parameter.element_size() >= 4 else torch.float32
        matrix = torch.empty(out_channels, in_channels, dtype=dtype)
        return nn.init.orthogonal_(matrix, generator=generator).view(parameter.shape)
    if len(size) != 2 or size[0] != size[1]:
        raise ValueError(f"kernel of size {tuple(size)}: orthogonal kernels are square, (k, k)")
    return orthogonal_kernel(out_channels, in_channels, size[0], generator=generator)


def orthogonal_kernel(
    out_channels: int, in_channels: int, size: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """A convolution kernel that keeps the norm of every image (stride 1, circular padding).

    An orthogonal matrix from inputs to outputs, followed by size - 1 orthogonal convolutions of
    2x2, each made of two random projections P, Q: the blocks PQ, P(1-Q), (1-P)Q, (1-P)(1-Q).

    Args:
        out_channels: at least `in_channels`.
        in_channels: at least 1.
        size: pixels a side.
        generator: on the CPU; None: PyTorch's own.

    Returns:
        (out_channels, in_channels, size, size), float64.

    Raises:
        ValueError: for more inputs than outputs, where no such kernel exists.
    """
    if in_channels > out_channels:
        raise ValueError(
            f"{in_channels} input and {out_channels} output channels: an orthogonal convolution "
            "needs at least as many outputs as inputs"
        )

    def orthogonal(rows: int) -> Tensor:
        return nn.init.orthogonal_(
            torch.empty(rows, out_channels, dtype=torch.float64), generator=generator
        )

    def projection() -> Tensor:
        columns = torch.rand(out_channels, generator=generator, dtype=torch.float64) < 0.5
        basis = orthogonal(out_channels) * columns
        return basis @ basis.T

    kernel = orthogonal(in_channels)[None, None]  # (height, width, in, out)
    identity = torch.eye(out_channels, dtype=torch.float64)
    for _ in range(size - 1):
        p, q = projection(), projection()
        grown = kernel.new_zeros(
            kernel.shape[0] + 1, kernel.shape[1] + 1, in_channels, out_channels
        )
        for i, left in enumerate((p, identity - p)):
            for j, right in enumerate((q, identity - q)):
                grown[i : i + kernel.shape[0], j : j + kernel.shape[1]] += kernel @ left @ right
        kernel = grown
    return kernel.permute(3, 2, 0, 1).contiguous()
