"""What the chapter measures: how often terms are found, and how well they predict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from companion.papers.spreme.derivative import CHUNK, Gram, build_gram
from companion.papers.spreme.estimator import simulate
from companion.papers.spreme.l0 import all_subsets, best_subsets, scores, select
from companion.papers.spreme.library import Library
from companion.papers.spreme.stlsq import solve, thresholded


def exact(support: Tensor, truth: Tensor) -> Tensor:
    """Whether all terms of all states are right: (..., n, p) to (...), boolean.

    Either may be coefficients: a term is one that is not zero.
    """
    return (support.bool() == truth.bool()).flatten(-2).all(-1)


def pool(x: Tensor) -> Tensor:
    """All trajectories as those of one environment: (..., E, R, T, n) to (..., 1, E R, T, n)."""
    return x.flatten(-4, -3).unsqueeze(-4)


def method_rates(
    library: Library,
    x: Tensor,
    t: np.ndarray,
    truth: Tensor,
    *,
    window: int,
    smoothing: int,
    thresholds: Sequence[float],
    ridge: float = 1e-6,
    max_terms: int = 3,
    epsilon: float = 1e-4,
) -> tuple[dict[str, Tensor], Gram, float]:
    """How often each method finds exactly the true terms, for every noisy copy.

    Thresholding gets what no user has: the best threshold, and the better of weak form and
    Savitzky-Golay derivatives, chosen by the truth over all copies. The exhaustive searches have one
    setting for everything.

    Args:
        library: the terms.
        x: shape (S, E, R, T, n), S noisy copies.
        t: times of shape (T,).
        truth: boolean, shape (n, p).
        window: samples of the weak form's window.
        smoothing: samples of Savitzky and Golay's window.
        thresholds: to choose from, at least one.
        ridge: as in `group_stlsq`.
        max_terms: as in `best_subsets`.
        epsilon: as in `best_subsets`.

    Returns:
        Rates (S,) of "STLSQ" (each environment alone), "vote" (majority of those), "S2", "l0"
        (search in each environment alone), "l0 vote" and "S3"; the weak form's products; and the
        threshold of the best STLSQ on the weak form.

    Raises:
        ValueError: for no thresholds, and as `build_gram`.
    """
    if not len(thresholds):
        raise ValueError("thresholds = []: expected at least one to choose from")
    best: dict[str, Tensor] = {}
    weak_best, weak_threshold = -1.0, float(thresholds[0])
    gram = build_gram(library, x, t, "weak", window)
    for kind, rows in (("weak", gram), ("savgol", build_gram(library, x, t, "savgol", smoothing))):
        full = solve(rows, torch.ones_like(rows.c), ridge)
        for threshold in thresholds:
            alone, together = (
                thresholded(rows, threshold, ridge, shared=shared, full=full)[-1]
                for shared in (False, True)
            )
            found = {"STLSQ": alone, "vote": majority(alone), "S2": together}
            for name, support in found.items():
                right = exact(support, truth).double()
                rate = right.mean(-1) if name == "STLSQ" else right
                if name not in best or rate.mean() > best[name].mean():
                    best[name] = rate
                if name == "STLSQ" and kind == "weak" and rate.mean() > weak_best:
                    weak_best, weak_threshold = rate.mean().item(), float(threshold)
    alone, _ = select(best_subsets(gram, max_terms, epsilon, shared=False), library.p)
    together, _ = select(best_subsets(gram, max_terms, epsilon), library.p)
    best["l0"] = exact(alone, truth).double().mean(-1)
    best["l0 vote"] = exact(majority(alone), truth).double()
    best["S3"] = exact(together, truth).double()
    return best, gram, weak_threshold


def majority(support: Tensor) -> Tensor:
    """Terms that more than half of the environments have: (..., E, n, p) to (..., n, p).

    Coefficients count as the terms that are not zero.
    """
    return 2 * support.bool().sum(-3) > support.shape[-3]


def rates_by_environments(
    gram: Gram, truth: Tensor, max_terms: int = 3, epsilon: float = 1e-4
) -> Tensor:
    """How often the shared search is exact with 1, 2, ..., E environments.

    Environments are taken in a row, round and round, from every start. The criterion is a sum over
    environments, so that the search itself runs once.

    Args:
        gram: the problems of S noisy copies.
        truth: boolean, shape (n, p).
        max_terms: as in `best_subsets`.
        epsilon: as in `best_subsets`.

    Returns:
        Shape (E, S).
    """
    E, n, p = gram.c.shape[-3:]
    every = [all_subsets(p, k) for k in range(min(max_terms, p) + 1)]
    some = max(1, CHUNK // (E * n * len(every[-1])))
    if len(gram.q) > some:
        parts = zip(*(part.split(some) for part in (gram.G, gram.c, gram.q)), strict=True)
        found = [
            rates_by_environments(
                Gram(G, c, q, gram.samples, gram.window), truth, max_terms, epsilon
            )
            for G, c, q in parts
        ]
        return torch.cat(found, 1)
    shares = [scores(gram, chosen, epsilon) for chosen in every]
    out = []
    for count in range(1, E + 1):
        right = []
        for first in range(E):
            which = [(first + i) % E for i in range(count)]
            path = []
            for chosen, share in zip(every, shares, strict=True):
                value, place = share[..., which, :, :].sum(-3).min(-1)
                path.append((chosen.to(place.device)[place], value))
            right.append(exact(select(path, p)[0], truth).double())
        out.append(torch.stack(right).mean(0))
    return torch.stack(out)


def coefficient_error(coefficients: Tensor, truth: Tensor) -> Tensor:
    """Distance to the true coefficients over their norm, by environment.

    Args:
        coefficients: shape (..., E, n, p).
        truth: shape (E, n, p).

    Returns:
        Shape (..., E).
    """
    return (coefficients - truth).flatten(-2).norm(dim=-1) / truth.flatten(-2).norm(dim=-1)


def roll_out_error(
    library: Library, coefficients: Tensor, truth: Tensor, t: np.ndarray
) -> tuple[Tensor, Tensor]:
    """Root mean square error of roll-outs over each state's standard deviation.

    Standard deviations are over an environment's trajectories. A roll-out that leaves the bounds has
    an infinite error.

    Args:
        library: the terms.
        coefficients: shape (..., E, n, p).
        truth: shape (E, R, T, n), from whose first samples the models start.
        t: times of shape (T,).

    Returns:
        The errors (..., E, R) and the roll-outs (..., E, R, T, n).

    Raises:
        ValueError: as `simulate`.
    """
    states, gone = simulate(library, coefficients, truth[:, :, 0], t)
    spread = truth.flatten(1, 2).std(1, correction=0)[:, None]
    error = ((states - truth).square().mean(-2) / spread.square()).mean(-1).sqrt()
    return torch.where(gone, torch.inf, error), states


def wilson(rate: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate.

    SciPy has it for whole counts only; our rates are means over environments that share noise, so
    that rate times n is no whole number.

    Args:
        rate: 0 to 1.
        n: independent cases, at least 1.
        z: standard normal quantile; by default of an interval at 95 %.

    Raises:
        ValueError: for numbers out of range.
    """
    if not (n > 0 and 0 <= rate <= 1):
        raise ValueError(f"rate, n = {rate!r}, {n!r}: expected 0 to 1, of at least one case")
    middle = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)
