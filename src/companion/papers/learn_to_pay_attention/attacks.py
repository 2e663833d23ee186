"""Attacks that a gradient finds: one step, and many small ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.checks import at_least, whole
from companion.training import evaluation_mode


def _slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(model(x), y, reduction="sum"), x)[0]


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Move every pixel by `eps` in the direction that raises the loss; stay in [0, 1].

    Args:
        x: images in [0, 1].
        y: true classes.
        eps: at least 0. The model is in inference mode for it, and its parameters' gradients
            are left alone.
    """
    return pgd(model, x, y, eps, steps=1, step_size=eps)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int = 10,
    step_size: float | None = None,
) -> Tensor:  # fmt: skip
    """`steps` steps of FGSM's kind, kept within `eps` of the images and in [0, 1].

    Args:
        step_size: None takes 2.5 eps / steps. No random start.

    Raises:
        ValueError: for eps below 0 or no steps.
    """
    at_least(0, eps=eps)
    whole(1, steps=steps)
    size = 2.5 * eps / steps if step_size is None else step_size
    moved = x.detach()
    with evaluation_mode(model):
        for _ in range(steps):
            moved = moved + size * _slope(model, moved, y).sign()
            moved = torch.clamp(moved, x - eps, x + eps).clamp(0, 1)
    return moved
