"""The scaling law c1 / B + c2, its tuned form, its uncertainty, and the Lipschitz estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor

from companion.checks import above, whole

FLAT = 1e-24  # variation of log K below which all K are the same
GAMMAS = tuple(i / 10 for i in range(1, 10))


def fit_scaling(
    batch_sizes: Sequence[float], steps: Sequence[float]
) -> tuple[float, float, float]:
    """Fit K = c1 / B + c2 by least squares in log K; return (c1, c2, R^2 of log K).

    Both constants are positive, which the logarithm takes care of.

    Raises:
        ValueError: for fewer than three points, one batch size only, or one without a result, and
            for a batch size that is not above 0.

    References:
        Lee et al. (2021), Proposition 3.1.

    Examples:
        >>> tuple(round(value, 3) for value in fit_scaling([1, 10, 100], [1010, 110, 20]))
        (1000.0, 10.0, 1.0)
    """
    b, k = np.asarray(batch_sizes, dtype=float), np.asarray(steps, dtype=float)
    if b.shape != k.shape or len(b) < 3:
        raise ValueError(
            f"fit_scaling: expected at least three pairs, got {b.size} batch sizes and {k.size} steps"
        )
    if not (b > 0).all():
        raise ValueError(f"batch_sizes = {b.tolist()!r}: expected positive numbers")
    if not (np.isfinite(k).all() and (k > 0).all()):
        raise ValueError(
            f"steps = {k.tolist()!r}: expected positive numbers; leave out batch sizes without a "
            "result (goal not reached? raise max_steps or goal_error, or widen the learning rates)"
        )
    if len(set(b.tolist())) < 2:
        raise ValueError(f"batch_sizes = {b.tolist()!r}: expected at least two different ones")
    log_k = np.log(k)

    def residuals(logs: np.ndarray) -> np.ndarray:
        return np.logaddexp(logs[0] - np.log(b), logs[1]) - log_k

    # the ends of the curve say where to begin: all c1 at the smallest batch, all c2 at the largest
    start = [log_k[b.argmin()] + math.log(b.min()), log_k[b.argmax()]]
    found = least_squares(residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    spread = ((log_k - log_k.mean()) ** 2).sum()
    left = (found.fun**2).sum()
    # equal steps differ by rounding, and their fit by what the solver leaves of c1
    r2 = 1.0 - left / spread if spread > FLAT else float(left < 1e-12)
    c1, c2 = np.exp(found.x)
    return float(c1), float(c2), float(r2)


class ScalingConstants(NamedTuple):
    """K = c1 / B + c2 to first order in 1 / B, and the batch size at which both terms matter:
    `critical_batch`, 2 c1 / c2, below which a tuned step size makes K fall as 1 / B."""

    c1: float
    c2: float
    critical_batch: float


def scaling_constants(
    gap: float,
    lipschitz: float,
    variance: float,
    goal: float,
    *,
    alignment: float = 1.0,
    lr: float | None = None,
) -> ScalingConstants:
    """The constants of the convergence bound from what they are made of.

    c1 = Delta L beta / (mu epsilon)^2 and c2 = Delta / (eta mu epsilon).

    Args:
        gap: Delta = 2 (f(w_1) - f_inf), twice what the loss can fall; above 0.
        lipschitz: L, of the gradient; `lipschitz_along` estimates it. Above 0.
        variance: beta, of the gradient of one example; above 0.
        goal: epsilon, mean squared norm of the gradient that is to be reached; above 0.
        alignment: mu, by which a stochastic gradient follows the true one; above 0.
        lr: the step size's cap; None: mu / L, the largest that the bound allows.

    Raises:
        ValueError: for a number that is not finite and above 0.

    References:
        Lee et al. (2021), Proposition 3.1.

    Examples:
        >>> scaling_constants(2.0, 4.0, 8.0, 0.5)
        ScalingConstants(c1=256.0, c2=16.0, critical_batch=32.0)
    """
    above(0, gap=gap, lipschitz=lipschitz, variance=variance, goal=goal, alignment=alignment)
    lr = alignment / lipschitz if lr is None else lr
    above(0, lr=lr)
    # eq. (3.3), to first order in 1 / B
    c1 = gap * lipschitz * variance / (alignment * goal) ** 2
    c2 = gap / (lr * alignment * goal)
    return ScalingConstants(c1, c2, 2 * c1 / c2)


def tuned_steps(batch_sizes: Sequence[float], c1: float, c2: float) -> np.ndarray:
    """Least K that the bound allows if the step size is tuned at every batch size.

    4 c1 / B below B_crit = 2 c1 / c2; c2 / (1 - B_crit / (2 B)) above, where the step size is at
    its cap.

    Args:
        c1, c2: constants of the fixed-step expansion c1 / B + c2 at that cap.

    Examples:
        >>> tuned_steps([10, 1000], 100.0, 1.0).round(2)
        array([40.  ,  1.11])
    """
    above(0, c1=c1, c2=c2)
    b = np.asarray(batch_sizes, dtype=float)
    critical = 2 * c1 / c2
    with np.errstate(divide="ignore", invalid="ignore"):
        beyond = c2 / (1 - critical / (2 * b))
        return np.where(b <= critical, 4 * c1 / b, beyond)  # eq. (3.4)


def slope(batch_sizes: Sequence[float], steps: Sequence[float]) -> float:
    """d log K / d log B between the first and the last of the points.

    Raises:
        ValueError: for fewer than two points, one batch size or numbers that are not positive.
    """
    ends = [*batch_sizes[:1], *batch_sizes[-1:], *steps[:1], *steps[-1:]]
    if len(ends) < 4 or not min(ends) > 0 or batch_sizes[0] == batch_sizes[-1]:
        raise ValueError(
            f"batch_sizes, steps = {list(batch_sizes)!r}, {list(steps)!r}: expected positive "
            "numbers of at least two batch sizes"
        )
    return math.log(steps[-1] / steps[0]) / math.log(batch_sizes[-1] / batch_sizes[0])


def bootstrap_k_star(
    steps: Tensor, trials: int, *, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """K* of searches resampled from the trials of one search, (draws,); inf where none hits.

    A resampled minimum is never below the observed one, so the lower end of an interval is the
    observed K* itself: the interval says how much a search would lose with worse luck.

    Args:
        steps: (T,) as in `StepsToResult`, of a search without racing: every trial has its own
            number, and one below 1 never reached the goal.
        trials: size of a resampled search.
        draws: resampled searches, at least 1.
        seed: of all draws.

    Raises:
        ValueError: for a raced search, whose trials are censored, and for no trials.
    """
    steps = torch.as_tensor(steps)
    if steps.dim() != 1:
        raise ValueError(
            f"steps: shape {tuple(steps.shape)}, expected (T,), those of one sparsity"
        )
    whole(1, trials=trials, draws=draws)
    if not len(steps):
        raise ValueError("steps = []: expected those of at least one trial")
    if (steps == -3).any():
        raise ValueError("steps: of a raced search; its stopped trials have no number to resample")
    k = np.where(steps.numpy() > 0, steps.numpy(), np.inf)
    chosen = np.random.default_rng(seed).integers(len(k), size=(draws, trials))
    return k[chosen].min(axis=1)


def k_star_interval(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Quantile interval of resampled K*; inf where so many searches find nothing.

    Raises:
        ValueError: for no draws or a level outside (0, 1).
    """
    if not len(draws) or not 0 < level < 1:
        raise ValueError(
            f"draws, level = {len(draws)} numbers, {level!r}: expected some, and a fraction"
        )
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def lipschitz_along(
    params0: Mapping[str, Tensor],
    params1: Mapping[str, Tensor],
    grad_fn: Callable[[dict[str, Tensor]], Mapping[str, Tensor]],
    gammas: Sequence[float] = GAMMAS,
) -> Tensor:
    """Largest change of the gradient per distance along one update, (R,).

    max over gamma of |grad f(w + gamma d) - grad f(w)| / (gamma |d|) with d = w1 - w0.

    In float32, points closer than 1e-5 |w| are left out, because there the difference is
    rounding. NaN where no point is left and where the update is zero.

    Args:
        params0, params1: (R, ...) a parameter, before and after the update.
        grad_fn: from such a dictionary to the gradients on the full training set, masked like the
            weights.
        gammas: points along the update, all above 0.

    Raises:
        ValueError: for no gammas or some that are not positive.

    References:
        Lee et al. (2021), section 3 and Fig. 5.

    Examples:
        >>> here, there = {"w": torch.zeros(1, 2)}, {"w": torch.ones(1, 2)}
        >>> lipschitz_along(here, there, lambda p: {"w": 3 * p["w"]}).round(decimals=3)
        tensor([3.])
    """
    if not len(gammas) or not min(gammas) > 0:
        raise ValueError(f"gammas = {list(gammas)!r}: expected at least one, all above 0")
    names = list(params0)

    def flat(group: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([group[name].reshape(len(group[name]), -1) for name in names], dim=1)

    start = flat(params0)
    d = flat(params1) - start
    length, size = d.norm(dim=1), start.norm(dim=1)
    exact = start.dtype == torch.float64
    base = flat(grad_fn(dict(params0)))
    largest = torch.full_like(length, -math.inf)
    for gamma in gammas:
        moved = {name: params0[name] + gamma * (params1[name] - params0[name]) for name in names}
        change = flat(grad_fn(moved)) - base
        ratio = change.norm(dim=1) / (gamma * length)  # eq. (3.5)
        usable = (length > 0) & (exact | (gamma * length > 1e-5 * size))
        largest = torch.where(usable, torch.maximum(largest, ratio), largest)
    return largest.masked_fill(largest == -math.inf, math.nan)


def quadratic_second_moment(
    steps: int, lr: float, curvature: float, variance: float, batch_size: float, start: float
) -> np.ndarray:
    """E w_k^2 for k = 0 .. steps of SGD on f = L w^2 / 2 with gradient noise of variance beta / B.

    E w_{k+1}^2 = (1 - eta L)^2 E w_k^2 + eta^2 beta / B, solved in closed form.

    Args:
        steps: updates, at least 0.
        lr: eta, step size.
        curvature: L.
        variance: beta, of the gradient of one example.
        batch_size: B.
        start: w_0.
    """
    factor = (1 - lr * curvature) ** 2
    added = lr**2 * variance / batch_size
    powers = factor ** np.arange(steps + 1)
    limit = added / (1 - factor) if factor != 1 else math.inf
    if factor == 1:
        return start**2 + added * np.arange(steps + 1)
    return limit + (start**2 - limit) * powers


def quadratic_steps(
    batch_size: float, goal: float, curvature: float, variance: float, start: float, lr_cap: float
) -> tuple[float, float]:
    """Least number of steps, over fixed step sizes, to E f <= goal on the noisy quadratic.

    Args:
        batch_size: B.
        goal: E f to reach.
        curvature: L.
        variance: beta, of the gradient of one example.
        start: w_0.
        lr_cap: largest step size.

    Returns:
        (steps, best step size), steps as a real number, at least 1; where the start meets the
        goal, none and `lr_cap`. The exact twin of the tuned bound.

    Raises:
        ValueError: for a batch size, goal, curvature or cap that is not finite and above 0.
    """
    above(0, batch_size=batch_size, goal=goal, curvature=curvature, lr_cap=lr_cap)
    target = 2 * goal / curvature  # of E w^2
    if start**2 <= target:
        return 0.0, float(lr_cap)
    rates = np.geomspace(lr_cap * 1e-6, lr_cap, 4001)
    factor = (1 - rates * curvature) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        limit = rates**2 * variance / batch_size / (1 - factor)
        steps = np.log((target - limit) / (start**2 - limit)) / np.log(factor)
    steps = np.where((limit < target) & (factor < 1), steps, np.inf)
    least = int(np.argmin(steps))
    return max(1.0, float(steps[least])), float(rates[least])
