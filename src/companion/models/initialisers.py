"""Weight initialisers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import nn

from companion.checks import above, generators
from companion.sparsity import (
    NORMALISATIONS,
    check_in_one_piece,
    is_bias,
    is_scale,
    is_scaling,
    is_token,
    tracks_statistics,
)

# Standard deviation of a standard normal truncated at 2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
TRUNCATED_STD = 0.8796256610342398


@torch.no_grad()
def truncated_variance_scaling_(
    model: nn.Module, *, scale: float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Draw every weight from a normal truncated at two deviations, with variance scale / fan-in.

    The deviation before truncation is enlarged so that the variance after it is exact. The rest is
    as `reset` leaves it.

    Args:
        generator: on the CPU; None: PyTorch's own.

    Raises:
        ValueError: for a scale that is not positive.

    References:
        Lee et al. (2019), appendix.
    """
    above(0, scale=scale)
    generators(generator=generator)
    for _, _, parameter in reset(model):
        fan_in = parameter[0].numel()
        sigma = math.sqrt(scale / fan_in) / TRUNCATED_STD
        # drawn on the CPU: every device starts from the same weights
        draw = torch.empty(parameter.shape, dtype=parameter.dtype)
        nn.init.trunc_normal_(draw, 0.0, sigma, -2 * sigma, 2 * sigma, generator=generator)
        parameter.copy_(draw)


@torch.no_grad()
def reset(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Reset what is not drawn; yield (path, module, weight) of what is, in order.

    Biases become 0; normalisations the identity, with fresh statistics. Other scales (slopes of
    PReLU, layer scales, temperatures), tokens and tables of positions stay as they are. Raises as
    `check_in_one_piece`, before anything changes.
    """
    check_in_one_piece(model)
    for path, module in model.named_modules():
        normalises = isinstance(module, NORMALISATIONS) or tracks_statistics(module)
        if tracks_statistics(module):
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
            if getattr(module, "num_batches_tracked", None) is not None:
                module.num_batches_tracked.zero_()
        # a frozen normalisation keeps its scale and offset in buffers
        tensors = [*module.named_parameters(recurse=False)]
        if normalises:
            tensors += [(n, b) for n, b in module.named_buffers(recurse=False) if n in AFFINE]
        for name, tensor in tensors:
            if is_token(module, name):
                continue
            if is_bias(name):
                tensor.zero_()
            elif normalises or (is_scaling(module) and RMS in type(module).__name__.lower()):
                tensor.fill_(1.0)
            elif not is_scaling(module) and not is_scale(module, name):
                yield path, module, tensor


AFFINE = ("weight", "bias")
RMS = "rmsnorm"  # of other libraries
