"""From samples to linear regressions: the weak form, Savitzky and Golay, finite differences.

Each is two matrices that act on the time axis of a trajectory, so that a whole batch of data
goes through them in two products.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from scipy.signal import savgol_filter
from torch import Tensor

from companion.papers.spreme.library import Library

METHODS = ("weak", "savgol", "fd")
ORDER = 3  # of the Savitzky-Golay polynomials
PAUSE = 10  # usual steps: a row across a longer one is off by a tenth and more
CHUNK = 2**21  # numbers in the largest intermediate, 16 MB: larger ones leave the cache


def operators(t: np.ndarray, method: str, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices that turn a trajectory into rows of a regression.

    "weak": rows V theta(x), targets D x. A row integrates over a window of samples against
    psi = (1 - u^2)^4, u in [-1, 1]; its target has the derivative moved to psi, and is scaled so
    that constants and lines have their slope, on equal and unequal steps (trapezoidal weights)
    alike. A window across a pause is inexact, and warns. "savgol": rows theta(V x), targets D x, value and derivative
    of a cubic fitted to the window. "fd": V is the identity, D the second-order finite differences.

    Args:
        t: times of shape (T,), ascending.
        method: "weak", "savgol" or "fd".
        window: samples of a window, odd, at least 5; without meaning for "fd".

    Returns:
        V and D, each of shape (K, T).

    Raises:
        ValueError: for an unknown method, too few samples, times that do not ascend, and unequal
            steps with "savgol".
    """
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: expected one of {METHODS}")
    T = len(t)
    odd = isinstance(window, Integral) and window % 2 == 1
    if method != "fd" and not (odd and window >= 5):
        raise ValueError(f"window = {window}: expected an odd number of samples, at least 5")
    least = 3 if method == "fd" else window
    if least > T:
        raise ValueError(f"x: a trajectory of {T} samples, expected at least {least} for {method}")
    steps = np.diff(t)
    if not (np.isfinite(t).all() and (steps > 0).all()):
        raise ValueError("t: expected finite times in ascending order")
    if method == "fd":
        slopes = np.gradient(np.eye(T), t, axis=0, edge_order=2)
        return np.eye(T), slopes  # type: ignore[return-value]  # an array for a single axis
    if method == "savgol":
        if np.ptp(steps) > 1e-6 * steps.mean():
            raise ValueError("t: savgol needs equal steps; derivative = 'weak' or 'fd' does not")
        each = {"polyorder": ORDER, "axis": 0, "mode": "interp"}
        value = savgol_filter(np.eye(T), window, **each)
        return value, savgol_filter(np.eye(T), window, deriv=1, delta=steps.mean(), **each)
    within = np.lib.stride_tricks.sliding_window_view(steps, window - 1)
    longest, usual = within.max(1), np.median(within, 1)
    if (apart := longest > PAUSE * usual).any():
        k = int(apart.argmax())
        warnings.warn(
            f"t: a step of {longest[k]:g} among steps of {usual[k]:g}; windows across it are "
            "inexact: give the parts before and after as trajectories of their own",
            stacklevel=2,
        )
    V, D = np.zeros((2, T - window + 1, T))
    for k in range(T - window + 1):
        part = slice(k, k + window)
        inside = t[part]
        half = (inside[-1] - inside[0]) / 2
        u = (inside - inside[0]) / half - 1
        weights = np.gradient(inside)  # psi vanishes at both ends, where trapezoids differ
        psi = weights * (1 - u**2) ** 4
        slope = weights * -8 * u * (1 - u**2) ** 3 / half
        norm = np.linalg.norm(psi)
        # a sum is not the integral: without these a constant has a slope on unequal steps, and a
        # line another than its own on all
        slope -= psi * (slope.sum() / psi.sum())
        slope *= -psi.sum() / (slope * (inside - inside.mean())).sum()
        V[k, part] = psi / norm  # eq. (7.2)
        D[k, part] = -slope / norm
    return V, D


@dataclass(frozen=True, eq=False)
class Gram:
    """A least-squares problem per environment, as its products.

    With A the rows of an environment, y its targets and M their number.

    Args:
        G: shape (..., E, p, p), A'A / M.
        c: shape (..., E, n, p), y'A / M.
        q: shape (..., E, n), y'y / M; exactly zero for a state that does not move.
        samples: shape (E,), readings behind the rows.
        window: samples that a row shares with others.
    """

    G: Tensor
    c: Tensor
    q: Tensor
    samples: Tensor
    window: int

    def environments(self, which: list[int]) -> Gram:
        """The problem of some environments alone.

        Raises:
            ValueError: for an index that is out of range.
        """
        E = self.G.shape[-3]
        if not all(-E <= e < E for e in which):
            raise ValueError(f"which = {list(which)}: expected environments from 0 to {E - 1}")
        return Gram(
            self.G[..., which, :, :], self.c[..., which, :, :], self.q[..., which, :],
            self.samples[which], self.window,
        )  # fmt: skip


def build_gram(
    library: Library, x: Tensor, times: Tensor | np.ndarray | list, method: str, window: int
) -> Gram:
    """Make the least-squares problems in one pass over the data.

    Args:
        library: the terms.
        x: float64 tensor of shape (..., E, R, T, n).
        times: shape (T,) for all trajectories, NumPy or torch, or for ragged data E lists of R
            arrays, None where an environment has fewer trajectories; what follows a trajectory's
            last sample may be any finite number.
        method: as in `operators`.
        window: as in `operators`.

    Raises:
        ValueError: as `operators`, and for values of which a term's square overflows.
    """
    E, R, T, n = x.shape[-4:]
    if isinstance(times, Tensor):
        times = times.detach().cpu().numpy()
    ragged = not isinstance(times, np.ndarray)
    if isinstance(times, np.ndarray):
        V, D = operators(times, method, window)
        rows = torch.full((E,), float(R * len(V)))
        samples = torch.full((E,), float(R * T))
        V, D = V[None, None], D[None, None]
    else:
        V, D = np.zeros((2, E, R, T, T))
        rows, samples = torch.zeros(2, E)
        for e, line in enumerate(times):
            for r, t in enumerate(line):
                if t is not None:
                    value, slope = operators(t, method, window)
                    V[e, r, : len(value), : len(t)] = value
                    D[e, r, : len(slope), : len(t)] = slope
                    rows[e] += len(value)
                    samples[e] += len(t)
    both = [torch.from_numpy(np.ascontiguousarray(m)).to(x.device) for m in (V, D)]
    rows, samples = (a.to(x.device, torch.float64) for a in (rows, samples))
    lead = x.shape[:-3]
    G = x.new_zeros(*lead, library.p, library.p)
    c = x.new_zeros(*lead, n, library.p)
    q, rounding = x.new_zeros(2, *lead, n)
    numbers = x[..., 0, :, 0].numel() * library.p
    some = max(1, CHUNK // numbers)
    for first in range(0, R, some):
        part = slice(first, first + some)
        v, d = (m if m.shape[1] == 1 else m[:, part] for m in both)
        block = x[..., part, :, :]
        A = library(v @ block) if method == "savgol" else library(block)
        if method == "savgol":  # padded rows hold library(0), whose first entry is 1
            A = A * (v != 0).any(-1, keepdim=True)
        elif method == "weak" or ragged:
            A = v @ A
        A, y = A.flatten(-3, -2), (d @ block).flatten(-3, -2)
        G += A.mT @ A
        c += y.mT @ A
        q += y.square().sum(-2)
        rounding += (d.abs() @ block.abs()).square().flatten(-3, -2).sum(-2)
    if not all(sums.isfinite().all() for sums in (G, c, q, rounding)):
        raise ValueError(
            f"x: values up to {x.abs().max().item():.3g}, of which some term's square is beyond "
            "double precision; scale the data"
        )
    # what round-off alone would leave of a derivative is none
    q = torch.where(q > (1e-13) ** 2 * rounding, q, 0)
    c = torch.where(q[..., None] > 0, c, 0)
    M = rows[:, None]
    return Gram(
        G / M[..., None], c / M[..., None], q / M, samples, 1 if method == "fd" else window
    )
