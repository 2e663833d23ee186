"""Attacks that a gradient finds: one step, and many small ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from companion.checks import above, at_least, images, whole
from companion.papers.learn_to_pay_attention.maps import check_several
from companion.training import check_classes, check_labels, evaluation_mode


def _check(x: Tensor, y: Tensor) -> None:
    """Raise ValueError for what is no batch of images in [0, 1] with a class index each."""
    images(x=x)
    check_labels(x, y=y)
    if not x.is_floating_point():
        raise ValueError(f"x: {x.dtype}, expected floating-point values in [0, 1]")
    low, high = (float(end) for end in x.detach().aminmax())
    if not (low >= 0 and high <= 1):  # NaN, too
        raise ValueError(
            f"x: values from {low:.8g} to {high:.8g}, expected [0, 1]: put a normalisation into "
            "the model"
        )


def _slope(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A positive multiple, for each image, of the cross-entropy's gradient.

    The cross-entropy is softplus(m), m = log sum of exp z_j over the other classes - z_y. Its
    own gradient, that of m times 1 - p_y, is lost to rounding where the softmax saturates.
    """
    # what was made in inference mode cannot be saved for a backward pass: work on copies
    with torch.inference_mode(False), torch.enable_grad():
        x, y = x.detach().clone().requires_grad_(), y.long().clone()
        logits = model(x)
        check_classes(logits, y, name="y")
        check_several(logits)
        true = logits.gather(1, y[:, None])[:, 0]
        others = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        return torch.autograd.grad((others - true).sum(), x)[0]


def fgsm(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Move every pixel by `eps` in the direction that raises the loss; stay in [0, 1].

    The direction is that of the cross-entropy's gradient, kept where the softmax saturates. The
    model is in inference mode for it, and its parameters' gradients are left alone. Works inside
    `torch.no_grad` too. What comes back has no gradient.

    Args:
        model: a classifier.
        x: images in [0, 1], (batch, channels, height, width).
        y: true classes, (batch,).
        eps: largest move of a pixel, at least 0.

    Raises:
        ValueError: for eps below 0, what is no batch of images in [0, 1], labels that are no
            class, and a model of a single class.

    References:
        Goodfellow, Shlens and Szegedy (2015), Explaining and harnessing adversarial examples.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> moved = fgsm(model, x, torch.tensor([0]), 0.1) - x
    >>> torch.allclose(moved.abs(), torch.full_like(x, 0.1))
    True
    """
    return fgsm_each(model, x, y, [eps])[0]


def fgsm_each(model: nn.Module, x: Tensor, y: Tensor, eps: Sequence[float]) -> list[Tensor]:
    """`fgsm` by each of some `eps`, from one gradient.

    Raises:
        ValueError: as `fgsm`.
    """
    _check(x, y)
    for one in eps:
        at_least(0, eps=one)
    if not len(eps):
        return []
    x = x.detach()
    with evaluation_mode(model):
        sign = _slope(model, x, y).sign()
    return [_kept_near(x + one * sign, x, one) for one in eps]


def _kept_near(moved: Tensor, x: Tensor, eps: float) -> Tensor:
    return torch.clamp(moved, x - eps, x + eps).clamp(0, 1)


def pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int = 10,
    step_size: float | None = None,
) -> Tensor:  # fmt: skip
    """Take `steps` steps of FGSM's kind, kept within `eps` of the images and in [0, 1].

    There is no random start.

    Args:
        model, x, y: as `fgsm`.
        eps: largest move of a pixel in all, at least 0.
        steps: at least 1.
        step_size: of a pixel, above 0; None takes 2.5 eps / steps.

    Raises:
        ValueError: for no steps or a step size that is not above 0, and as `fgsm`.

    References:
        Madry et al. (2018), Towards deep learning models resistant to adversarial attacks.
    """
    _check(x, y)
    at_least(0, eps=eps)
    whole(1, steps=steps)
    if step_size is not None:
        above(0, step_size=step_size)
    size = 2.5 * eps / steps if step_size is None else step_size
    x = moved = x.detach()
    with evaluation_mode(model):
        for _ in range(steps):
            moved = _kept_near(moved + size * _slope(model, moved, y).sign(), x, eps)
    return moved
