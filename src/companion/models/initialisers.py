"""Weight initialisers."""

from __future__ import annotations

import math

import torch
from torch import nn

from companion.sparsity import NORMALISATIONS, is_bias

# Standard deviation of a standard normal truncated at 2: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)).
TRUNCATED_STD = 0.8796256610342398


@torch.no_grad()
def truncated_variance_scaling_(
    model: nn.Module, *, scale: float = 1.0, generator: torch.Generator | None = None
) -> None:
    """Draw every weight from a normal truncated at two deviations, with variance scale / fan-in.

    The deviation before truncation is enlarged so that the variance after it is exact. Biases
    become 0; normalisation layers become the identity.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if is_bias(name):
                parameter.zero_()
            elif isinstance(module, NORMALISATIONS):
                parameter.fill_(1.0)
            else:
                fan_in = parameter[0].numel()
                sigma = math.sqrt(scale / fan_in) / TRUNCATED_STD
                # drawn on the CPU: every device starts from the same weights
                draw = torch.empty(parameter.shape, dtype=parameter.dtype)
                nn.init.trunc_normal_(draw, 0.0, sigma, -2 * sigma, 2 * sigma, generator=generator)
                parameter.copy_(draw)
