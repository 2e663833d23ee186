"""Fitting new signals from a starting point, and judging the fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.func import vmap

from companion.checks import above, whole
from companion.papers.sparse_inr.masks import (
    Masks,
    active_masks,
    apply_mask,
    count_params,
    full_masks,
    zero_masked,
)
from companion.papers.sparse_inr.meta import signal_loss
from companion.papers.sparse_inr.network import (
    Params,
    as_targets,
    check_points,
    checked,
    ordinary,
    pixel_grid,
    signals_at,
    siren,
    strict_float32,
)
from companion.progress import Progress
from companion.sparsity import global_topk_mask, is_bias
from companion.training import DivergenceError


@dataclass(frozen=True, eq=False)
class FitResult:
    """Networks fitted to signals, all starting from one.

    Attributes:
        psnr: (signals, steps + 1), dB before the first step and after each.
        params: as the network's, every trained tensor with a leading dimension of signals.
        masks: as given, or with that dimension too where every signal was pruned for itself.
    """

    psnr: Tensor
    params: Params
    masks: Masks


@overload
def psnr(mse: Tensor) -> Tensor: ...
@overload
def psnr(mse: float) -> float: ...
def psnr(mse: Tensor | float) -> Tensor | float:
    """-10 log10 of a mean squared error of values in [0, 1], in dB.

    Examples:
        >>> psnr(0.01)
        20.0
    """
    if isinstance(mse, Tensor):
        return -10 * torch.log10(mse)
    return math.inf if mse <= 0 else -10 * math.log10(mse)  # of NaN: NaN, as of a tensor


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    params: Params,
    masks: Masks,
    targets: Tensor,
    steps: int,
    lr: float,
    opt: str = "adam",
    *,
    coords: Tensor | None = None,
    prune_at: Mapping[int, int] | None = None,
    progress: bool = False,
) -> FitResult:
    """Fit one network to each signal on its own, all of them at once.

    Works inside `torch.no_grad` and `torch.inference_mode` too.

    Args:
        params: of the network to start from.
        masks: boolean tensors by parameter name.
        targets: (signals, points, channels), in [0, 1]; up to 0.5 beyond it is fitted as it is, as
            resampled pictures overshoot.
        steps: of the optimiser, at least 0.
        lr: learning rate, above 0.
        opt: "adam" or "sgd" (plain gradient descent).
        coords: as `meta_train`.
        prune_at: number of steps, 0 to `steps` -> weights to keep from then on, at most as many as
            are left; each signal's network is pruned by the magnitude of its own weights (the
            baselines that prune after fitting).
        progress: show a progress bar.

    Raises:
        ValueError: for another optimiser, numbers out of range, and masks, targets, coords or
            prune_at that do not fit.
        DivergenceError: for a loss that is not finite.
    """
    whole(0, steps=steps)
    above(0, lr=lr)
    if opt not in ("adam", "sgd"):
        raise ValueError(f"opt = {opt!r}: expected 'adam' or 'sgd'")
    theta, omega_0 = checked(params, masks)
    coords, targets = map(ordinary, signals_at(coords, targets, params))
    omega_0, masks = ordinary(omega_0), {name: ordinary(m) for name, m in masks.items()}
    count = len(targets)
    theta = {
        name: w.detach().expand(count, *w.shape).clone().requires_grad_()
        for name, w in apply_mask(theta, masks).items()
    }
    if prune_at:
        masks = full_masks(params) | masks
        _check_schedule(prune_at, steps, count_params(masks))
        masks = {name: m.expand(count, *m.shape) for name, m in masks.items()}
    active = masks if prune_at else active_masks(masks)
    # one signal's loss does not depend on another's weights, and both optimisers work entry by
    # entry: a sum of losses is as many separate fits
    kind = torch.optim.Adam if opt == "adam" else torch.optim.SGD
    optimizer = kind(theta.values(), lr=lr)
    losses = vmap(signal_loss, in_dims=(0, 0 if prune_at else None, None, None, 0))
    errors = []
    with strict_float32(), Progress(steps, "steps", show=progress) as bar:
        for step in range(steps + 1):
            if prune_at and step in prune_at:
                active = masks = _prune_each(theta, masks, prune_at[step])
                zero_masked(theta, active)
            with torch.set_grad_enabled(step < steps):
                error = losses(theta, active, omega_0, coords, targets)
            errors.append(error.detach())
            if step < steps:
                optimizer.zero_grad(set_to_none=True)
                error.sum().backward()
                optimizer.step()
                zero_masked(theta, active)
                bar.update()
    mse = torch.stack(errors, 1)
    if not mse.isfinite().all():
        raise DivergenceError(f"the loss of a fit is not finite: lower lr = {lr}")
    fitted = {name: w.detach() for name, w in theta.items()} | {"omega_0": omega_0}
    return FitResult(psnr(mse), fitted, masks)


def _check_schedule(prune_at: Mapping[int, int], steps: int, left: int) -> None:
    for step, keep in sorted(prune_at.items()):
        if step not in range(steps + 1):
            raise ValueError(f"prune_at: step {step!r}, expected 0 to steps = {steps}")
        if keep not in range(left + 1):
            raise ValueError(
                f"prune_at: {keep!r} weights at step {step}, expected 0 to the {left} left by then"
            )
        left = keep


def _prune_each(theta: Params, masks: Masks, keep: int) -> Masks:
    """Keep the largest `keep` weights of every signal's network."""
    names = [name for name in masks if not is_bias(name)]
    each = []
    for i in range(len(masks[names[0]])):
        ranked = {n: theta[n][i].detach().abs().masked_fill(~masks[n][i], -1.0) for n in names}
        each.append(global_topk_mask(ranked, keep=keep, warn=False))
    return masks | {name: torch.stack([m[name] for m in each]) for name in names}


@torch.no_grad()
def render(params: Params, coords: Tensor) -> Tensor:
    """Values of fitted networks (`FitResult.params`) at points, (signals, points, channels).

    Raises:
        ValueError: for points that have not as many coordinates as the networks' inputs.
    """
    check_points(params, coords=coords)
    fixed = {"omega_0": params["omega_0"]}
    theta = {name: w for name, w in params.items() if name != "omega_0"}
    with strict_float32():
        return vmap(lambda t: siren(t | fixed, coords.to(params["omega_0"])))(theta)


def held_out_psnr(
    params: Params, masks: Masks, images: Tensor, steps: int, lr: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit every second pixel in both directions, look at the pixels in between.

    Args:
        params: of the network to start from.
        masks: boolean tensors by parameter name.
        images: (n, channels, height, width), cut to odd sides.
        steps: optimiser steps, at least 0.
        lr: learning rate, above 0.

    Returns:
        Mean PSNRs, (n,) each: on the fitted pixels, on those in between, and on those in between
        for linear interpolation.
    """
    height, width = (side - 1 + side % 2 for side in images.shape[2:])
    images = images[:, :, :height, :width]
    coords = pixel_grid(height, width).to(params["omega_0"])
    seen = torch.zeros(height, width, dtype=torch.bool)
    seen[::2, ::2] = True
    seen = seen.flatten().to(images.device)
    targets = as_targets(images).as_subclass(Tensor)
    result = fit(params, masks, targets[:, seen], steps, lr, coords=coords[seen])
    between = torch.nn.functional.interpolate(
        images[:, :, ::2, ::2], (height, width), mode="bilinear", align_corners=True
    )
    outputs = render(result.params, coords)

    def at(values: Tensor, where: Tensor) -> Tensor:
        return psnr((values - targets)[:, where].square().mean((1, 2)))

    return (
        at(outputs, seen),
        at(outputs, ~seen),
        at(as_targets(between).as_subclass(Tensor), ~seen),
    )


def mean_psnr(results: FitResult | Sequence[FitResult], step: int = -1) -> float:
    """PSNR of each picture, averaged, after some steps of the fit."""
    several = [results] if isinstance(results, FitResult) else results
    return torch.cat([r.psnr[:, step] for r in several]).mean().item()
