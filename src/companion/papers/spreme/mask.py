"""S1: the published loop, in which coefficients and a shared mask are learned in turn.

The library's values are treated as constants of the derivative (the official code detaches the
states), so that every step is linear in the coefficients: no gradient passes through a state,
and both gradients are written down here instead of being traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from companion.checks import above, whole
from companion.papers.spreme.derivative import ORDER, operators
from companion.papers.spreme.library import Library
from companion.papers.spreme.stlsq import ROUNDS
from companion.progress import Progress

LARGE = 5000.0  # a state beyond this anywhere, and every derivative becomes x / 100
FIRST_GATE = 0.7  # of a term that is in every environment's first fit
FIRST_THRESHOLD, FIRST_RIDGE, SMOOTH = 0.01, 0.05, 5


@dataclass(frozen=True)
class LoopSettings:
    """Rates and thresholds of the published loop; the defaults are the official code's last.

    Args:
        rate: Adam's, for the coefficients.
        mask_rate: Adam's, for the mask.
        penalty: lambda, of the mask's size.
        growth: s, by which the penalty grows every epoch.
        least: tau_c, the size of a raw coefficient below which it is set to zero.
        gate: tau_m, above which a term is on.
    """

    rate: float = 0.01
    mask_rate: float = 0.01
    penalty: float = 1e-3
    growth: float = 1e-3
    least: float = 1e-3
    gate: float = 1e-5


# as the first commit of the official code sets them
PUBLISHED = {
    "linear": LoopSettings(0.1, 0.1, 10.0),
    "lorenz": LoopSettings(0.001, 0.01, 3000.0),
    "lotka": LoopSettings(1e-4, 1e-4, 1000.0),
    "pendulum": LoopSettings(0.001, 1e-4, 10.0),
}


Values = Callable[[Tensor], Tensor]  # states (..., n) to the library's columns (..., k)


def stage(values: Values, x: Tensor, coefficients: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """One step of Runge and Kutta's 3/8 rule.

    Args:
        values: maps states to the library's columns.
        x: states of shape (E, B, n).
        coefficients: shape (E, n, k).
        step: in time units.

    Returns:
        The change (E, B, n) and the library's mean F (E, B, k), with
        change = step * F @ coefficients' unless a state of the environment is beyond `LARGE`: then
        the derivative is x / 100 at that stage, and its part of F is zero.
    """

    def slope(at: Tensor) -> tuple[Tensor, Tensor]:
        features = values(at)
        found = features @ coefficients.mT
        far = (at.abs() > LARGE).flatten(1).any(1)
        if far.any():
            far = far[:, None, None]
            return torch.where(far, at / 100, found), torch.where(far, 0, features)
        return found, features

    k1, one = slope(x)
    k2, two = slope(x + step / 3 * k1)
    k3, three = slope(x + step * (k2 - k1 / 3))
    k4, four = slope(x + step * (k1 - k2 + k3))
    return step / 8 * (k1 + 3 * (k2 + k3) + k4), (one + 3 * (two + three) + four) / 8


def roll_out(
    values: Values, x0: Tensor, coefficients: Tensor, step: float, count: int
) -> tuple[Tensor, Tensor]:
    """Follow a model for a number of samples.

    Args:
        values: maps states to the library's columns.
        x0: initial states of shape (E, R, n).
        coefficients: shape (E, n, k).
        step: in time units.
        count: samples, the first of them x0.

    Returns:
        States (E, R, count, n), and the summed means of `stage`, (E, R, count, k).
    """
    x, total = x0, torch.zeros_like(values(x0))
    states, sums = [x], [total]
    for _ in range(count - 1):
        change, mean = stage(values, x, coefficients, step)
        x, total = x + change, total + mean
        states.append(x)
        sums.append(total)
    return torch.stack(states, 2), torch.stack(sums, 2)


def one_step_gradient(
    values: Values, x: Tensor, coefficients: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Huber loss of one step from every sample, and its gradient by the coefficients.

    The loss of the R (T - 1) steps is summed over environments and states and divided by R T n, as
    in the official code. The library's values are constants in the gradient.

    Args:
        values: maps states to the library's columns.
        x: shape (E, R, T, n).
        coefficients: shape (E, n, k).
        step: in time units.

    Returns:
        The loss and its gradient, (E, n, k).
    """
    E, R, T, n = x.shape
    start, end = x[:, :, :-1].reshape(E, -1, n), x[:, :, 1:].reshape(E, -1, n)
    change, mean = stage(values, start, coefficients, step)
    error = start + change - end
    count = R * T * n  # not R (T - 1) n, the number of errors: as the official code
    loss = torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5).sum() / count
    return loss, step / count * (error.clamp(-1, 1).mT @ mean)


def roll_out_gradient(
    values: Values, x: Tensor, coefficients: Tensor, step: float
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the roll-out from the first sample, and its gradient.

    The error is a mean over trajectories, samples and states and a sum over environments. The
    library's values are constants in the gradient.

    Args:
        values: maps states to the library's columns.
        x: shape (E, R, T, n).
        coefficients: shape (E, n, k).
        step: in time units.

    Returns:
        The error and its gradient, (E, n, k).
    """
    _, R, T, n = x.shape
    path, sums = roll_out(values, x[:, :, 0], coefficients, step, T)
    error = (path - x).flatten(1, 2)
    count = R * T * n
    gradient = 2 * step / count * (error.mT @ sums.flatten(1, 2))
    return error.square().sum() / count, gradient


def first_fits(library: Library, x: Tensor, step: float, train: int) -> Tensor:
    """STLSQ on each environment, from which the loop starts.

    Derivatives: Savitzky and Golay (window 5, order 3), then finite differences, over the *whole*
    trajectory, so that the last ones look three samples ahead; features of the samples as they are.
    Of the official code's twelve candidates the last one with a finite validation error wins, as it
    never stores the best score; on its four systems all are finite, so that is the last (threshold
    0.01, ridge 0.05). The ridge is on raw columns, as in pysindy.

    Args:
        library: the terms.
        x: shape (E, R, T, n).
        step: in time units.
        train: samples of a trajectory that are fitted, the first ones.

    Returns:
        Raw coefficients of shape (E, n, p).
    """
    _, D = operators(step * np.arange(x.shape[2]), "fd", 0)
    smooth = savgol_filter(x.cpu().numpy(), SMOOTH, ORDER, axis=2)
    y = torch.from_numpy(D @ smooth).to(x.device)[:, :, :train].flatten(1, 2)
    A = library(x[:, :, :train]).flatten(1, 2)
    support = torch.ones(len(x), x.shape[-1], library.p, dtype=torch.bool, device=x.device)
    found = support.to(x.dtype)
    # few rows and ill-conditioned: by QR on the rows, not on their products
    for _ in range(ROUNDS):
        for e, k in support.any(-1).nonzero().tolist():
            found[e, k] = _ridge(A[e], y[e, :, k], support[e, k], FIRST_RIDGE)
        kept = support & (found.abs() >= FIRST_THRESHOLD)
        if torch.equal(kept, support):
            break
        support = kept
    for e, k in support.any(-1).nonzero().tolist():
        found[e, k] = _ridge(A[e], y[e, :, k], support[e, k], 0.0)
    return found * support


def _ridge(A: Tensor, y: Tensor, keep: Tensor, ridge: float) -> Tensor:
    out = A.new_zeros(A.shape[1])
    part = A[:, keep]
    if ridge:
        rows = ridge**0.5 * torch.eye(part.shape[1], dtype=A.dtype, device=A.device)
        part, y = torch.cat([part, rows]), torch.cat([y, y.new_zeros(len(rows))])
    size = part.square().sum(0).sqrt().clamp_min(1e-300)
    # on the CPU: CUDA's one driver assumes columns that do not depend on each other
    rows, target = (part / size).cpu(), y[:, None].cpu()
    found = torch.linalg.lstsq(rows, target, driver="gelsd").solution[:, 0]
    out[keep] = found.to(A.device) / size
    return out


class Adam:
    """Adam on one tensor in place; an optimiser of torch costs seconds to import."""

    def __init__(self, value: Tensor, rate: float) -> None:
        self.value, self.rate, self.steps = value, rate, 0
        self.mean, self.square = torch.zeros_like(value), torch.zeros_like(value)

    def step(self, gradient: Tensor) -> None:
        self.steps += 1
        self.mean.lerp_(gradient, 0.1)
        self.square.lerp_(gradient.square(), 0.001)
        unbiased = self.mean / (1 - 0.9**self.steps)
        size = (self.square / (1 - 0.999**self.steps)).sqrt() + 1e-8
        self.value -= self.rate * unbiased / size


@dataclass(eq=False)
class LoopResult:
    """The state of lowest validation error, and how the loop came to it.

    Args:
        coefficients: shape (E, n, p), raw, zero outside the support.
        support: boolean, shape (n, p).
        first_support: boolean, shape (n, p), before the first epoch.
        gate: shape (n, p), sigma(mu) of that state.
        validation: mean squared roll-out error after each epoch, a mean over environments.
        terms: terms in the mask after each epoch.
        epoch: the one that was kept, from 1.
    """

    coefficients: Tensor
    support: Tensor
    first_support: Tensor
    gate: Tensor
    validation: list[float]
    terms: list[int]
    epoch: int


@torch.no_grad()
def learn_mask(
    library: Library,
    x: Tensor,
    step: float,
    epochs: int,
    settings: LoopSettings | None = None,
    *,
    progress: bool = False,
) -> LoopResult:
    """Run the published loop for a number of epochs; 0 leaves the first fits as they are.

    The last fifth of every trajectory is for validation. Terms that the mask has dropped never come
    back, so the library is only evaluated where a term is left. The state of lowest validation error
    is kept, the later one of equals; if no error is finite, the first fits.

    Args:
        library: the terms.
        x: float64 tensor of shape (E, R, T, n), at least 7 samples.
        step: in time units, above 0.
        epochs: at least 0.
        settings: rates and thresholds; None takes the official code's last.
        progress: show a bar.

    Raises:
        ValueError: for epochs or a step out of range, too few samples, or other data.

    References:
        Park et al. (2023), the algorithm; details as in the official code, ml-postech/SpReME.
    """
    whole(0, epochs=epochs)
    above(0, step=step)
    if x.dtype != torch.float64 or x.ndim != 4 or x.shape[-1] != library.n:
        raise ValueError(
            f"x: {x.dtype} of shape {tuple(x.shape)}, expected float64 of (E, R, T, {library.n})"
        )
    settings = settings or LoopSettings()
    T = x.shape[2]
    held = T // 5
    if held < 1 or T - held < 5:
        raise ValueError(f"x: {T} samples a trajectory, expected at least 7")
    train, valid = x[:, :, : T - held], x[:, :, T - held - 1 :]
    raw = first_fits(library, x, step, T - held)
    share = (raw != 0).to(x.dtype).mean(0)
    first = share > 0
    columns = first.any(0).nonzero()[:, 0].tolist()
    if not columns:
        return LoopResult(raw, first, first, share, [], [], 0)
    values = library.some(columns)
    scale = values(train).abs().flatten(1, 2).amax(1)[:, None, :]  # (E, 1, k)
    scale = torch.where(scale > 0, scale, 1)
    scaled = raw[..., columns] * scale
    alive = first[:, columns]
    logit = torch.logit((FIRST_GATE * share[:, columns]).clamp_min(1e-9))
    weights, mask = Adam(scaled, settings.rate), Adam(logit, settings.mask_rate)
    best, validation, terms = None, [], []
    with Progress(epochs, "epochs", show=progress) as bar:
        for epoch in range(epochs):
            gate = logit.sigmoid() * alive
            on = (gate > settings.gate).to(x.dtype)
            # eq. (7.5), first line
            _, slope = one_step_gradient(values, train, on * scaled / scale, step)
            weights.step(slope * on / scale)

            scaled *= (scaled / scale).abs() >= settings.least
            alive &= (scaled != 0).any(0) & (gate > settings.gate)

            gate = logit.sigmoid() * alive
            # eq. (7.5), second line
            _, slope = roll_out_gradient(values, train, gate * scaled / scale, step)
            penalty = len(x) * settings.penalty * (1 + settings.growth) ** epoch
            mask.step(((slope * scaled / scale).sum(0) + penalty) * gate * (1 - gate) * alive)

            hard = (logit.sigmoid() * alive > settings.gate).to(x.dtype) * scaled / scale
            path, _ = roll_out(values, valid[:, :, 0], hard, step, held + 1)
            error = (path - valid).square().mean().item()
            validation.append(error)
            terms.append(int((hard != 0).any(0).sum()))
            if math.isfinite(error) and (best is None or error <= best[0]):
                best = error, epoch + 1, hard, logit.sigmoid() * alive
            bar.update()
    if best is None:
        best = 0.0, 0, raw[..., columns], logit.sigmoid() * alive
    _, kept, hard, gate = best
    coefficients, gates = torch.zeros_like(raw), torch.zeros_like(share)
    coefficients[..., columns], gates[:, columns] = hard, gate
    return LoopResult(
        coefficients, (coefficients != 0).any(0), first, gates, validation, terms, kept
    )
