"""SharedSINDy: one set of terms for all environments, coefficients for each."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
import sympy as sp
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from companion.checks import above, at_least, whole
from companion.device import has_float64
from companion.papers.spreme import equations as told
from companion.papers.spreme.derivative import METHODS, build_gram
from companion.papers.spreme.group_stlsq import group_stlsq, solve
from companion.papers.spreme.l0 import best_subsets, select
from companion.papers.spreme.library import Library
from companion.papers.spreme.mask import LoopSettings, learn_mask

SEARCHES = ("l0", "group_stlsq", "mask")


class SharedSINDy(BaseEstimator):
    """Find which terms of a library drive a system seen in several environments.

    library: the candidate terms.
    method: "l0", the best subset by exhaustive search (S3); "group_stlsq", thresholding of what
      all environments say together (S2); "mask", the published loop (S1).
    max_terms: terms of one state, for l0. epsilon: fraction of a target's energy that l0 puts
      down to quadrature.
    threshold: on raw coefficients, for group_stlsq. ridge: on scaled columns, while terms are
      being dropped.
    derivative: "weak", "savgol" or "fd", as `operators` has them. window: samples of a window.
    shared: False gives every environment a support of its own (the comparison without sharing).
    epochs, loop: length and settings of the published loop.

    After `fit`: coef_ (..., E, n, p), states per time unit and term; support_ (..., n, p), or
    (..., E, n, p) if not shared; path_, what the search met; criterion_ (..., n), what it
    chose by, None where there is none; feature_names_; environments_, their labels.

    >>> x = torch.exp(-torch.arange(0, 2, 0.05).double()).reshape(1, 1, -1, 1)
    >>> model = SharedSINDy(Library(1, 2), max_terms=1).fit(x, 0.05)
    >>> model.equations(0, precision=2)
    ["x0' = -1 x0"]
    """

    def __init__(
        self,
        library: Library,
        method: str = "l0",
        max_terms: int = 3,
        threshold: float = 0.1,
        ridge: float = 1e-6,
        derivative: str = "weak",
        window: int = 9,
        shared: bool = True,
        *,
        epsilon: float = 1e-4,
        epochs: int = 120,
        loop: LoopSettings | None = None,
    ) -> None:
        self.library = library
        self.method = method
        self.max_terms = max_terms
        self.threshold = threshold
        self.ridge = ridge
        self.derivative = derivative
        self.window = window
        self.shared = shared
        self.epsilon = epsilon
        self.epochs = epochs
        self.loop = loop

    def fit(self, x, t, env: Sequence[Hashable] | None = None) -> SharedSINDy:
        """Find the terms and each environment's coefficients.

        x: (..., E, R, T, n) with any number of leading batch dimensions, which are fitted
          separately in one call; or a list of trajectories (T_i, n).
        t: the step, or times (T,); for a list also one array a trajectory.
        env: for a list, the label of each trajectory's environment.

        Raises ValueError, naming the argument, for what cannot be fitted.
        """
        if self.method not in SEARCHES:
            raise ValueError(f"method = {self.method!r}: expected one of {SEARCHES}")
        if self.derivative not in METHODS:
            raise ValueError(f"derivative = {self.derivative!r}: expected one of {METHODS}")
        whole(0, max_terms=self.max_terms, epochs=self.epochs)
        at_least(0, threshold=self.threshold, ridge=self.ridge)
        above(0, epsilon=self.epsilon)
        x, times, labels = arrange(x, t, env, self.library.n)
        self.environments_ = labels
        self.feature_names_ = self.library.get_feature_names()
        if self.method == "mask":
            return self._fit_mask(x, times)
        gram = build_gram(self.library, x, times, self.derivative, self.window)
        if self.method == "l0":
            self.path_ = best_subsets(gram, self.max_terms, self.epsilon, shared=self.shared)
            self.support_, self.criterion_ = select(self.path_, self.library.p)
            wide = self.support_[..., None, :, :] if self.shared else self.support_
            self.coef_ = solve(gram, wide)
        else:
            self.coef_, self.support_, self.path_ = group_stlsq(
                gram, self.threshold, self.ridge, shared=self.shared
            )
            self.criterion_ = None
        return self

    def _fit_mask(self, x: Tensor, times: np.ndarray | list) -> SharedSINDy:
        if x.ndim != 4 or isinstance(times, list) or not self.shared:
            raise ValueError(
                "method = 'mask' takes one data set (E, R, T, n) of equal trajectories and "
                "shares its mask"
            )
        steps = np.diff(times)
        if np.ptp(steps) > 1e-6 * steps.mean():
            raise ValueError("t: method = 'mask' needs equal steps")
        self.path_ = learn_mask(self.library, x, float(steps.mean()), self.epochs, self.loop)
        self.coef_, self.support_ = self.path_.coefficients, self.path_.support
        self.criterion_ = None
        return self

    def adapt(self, x, t) -> SharedSINDy:
        """Learn a new environment's coefficients on the terms that were found, in closed form.

        x: one trajectory (T, n) or several (R, T, n), after the batch dimensions of `fit`.
        Returns a model of that one environment; this one stays as it is.
        """
        self._fitted()
        if not self.shared:
            raise ValueError("adapt needs terms that environments share: fit with shared=True")
        lead = self.coef_.shape[:-3]
        x = torch.as_tensor(x)
        if x.ndim == len(lead) + 2:
            x = x.unsqueeze(-3)
        x, times, _ = arrange(x.unsqueeze(-4), t, None, self.library.n)
        gram = build_gram(self.library, x, times, self.derivative, self.window)
        model = self._copy()
        model.coef_ = solve(gram, self.support_[..., None, :, :].to(x.device))
        model.environments_ = [0]
        return model

    @classmethod
    def from_coefficients(cls, library: Library, coefficients) -> SharedSINDy:
        """A fitted model with these coefficients, (n, p) or (E, n, p), as pysindy's have them."""
        coefficients = torch.as_tensor(coefficients, dtype=torch.float64)
        if coefficients.ndim == 2:
            coefficients = coefficients[None]
        if coefficients.shape[-2:] != (library.n, library.p):
            raise ValueError(
                f"coefficients: shape {tuple(coefficients.shape)}, "
                f"expected (E, {library.n}, {library.p})"
            )
        if not coefficients.isfinite().all():
            raise ValueError("coefficients: expected finite numbers")
        model = cls(library)
        model.coef_, model.support_ = coefficients, (coefficients != 0).any(-3)
        model.path_, model.criterion_ = [], None
        model.environments_ = list(range(len(coefficients)))
        model.feature_names_ = library.get_feature_names()
        return model

    def _copy(self) -> SharedSINDy:
        model = type(self)(**self.get_params(deep=False))
        for name in ("support_", "path_", "criterion_", "feature_names_"):
            setattr(model, name, getattr(self, name))
        return model

    def _fitted(self) -> None:
        if not hasattr(self, "coef_"):
            raise ValueError("this SharedSINDy is not fitted yet: call fit first")

    def _coefficients(self, env: Hashable) -> Tensor:
        """Those of one environment, (..., n, p)."""
        self._fitted()
        if env not in self.environments_:
            raise ValueError(f"env = {env!r}: expected one of {self.environments_}")
        return self.coef_[..., self.environments_.index(env), :, :]

    def predict(self, x, env: Hashable = 0) -> Tensor:
        """Derivatives at states x (..., n), in states per time unit."""
        coefficients = self._coefficients(env)
        x = torch.as_tensor(x).to(coefficients)
        if x.shape[-1] != self.library.n:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (..., {self.library.n})")
        return self.library(x) @ coefficients.mT

    def simulate(self, x0, t, env: Hashable = 0, *, flag: bool = False):
        """Follow the model of one environment from x0 (R, n) over the times t (T,).

        Returns states (R, T, n). One that diverges stays at its last state within bounds: with
        flag=True the boolean (R,) that says so is returned as well, without it a warning is
        given.
        """
        coefficients = self._coefficients(env)
        x0 = torch.as_tensor(x0).to(coefficients)
        states, diverged = simulate(self.library, coefficients, x0, t)
        if flag:
            return states, diverged
        if diverged.any():
            warnings.warn(f"{int(diverged.sum())} simulated trajectories diverged", stacklevel=2)
        return states

    def score(self, x, t, env: Sequence[Hashable] | None = None) -> float:
        """How much of the rows' targets the model explains: 1 - residual / energy, at most 1.

        x, t, env: as `fit`, of environments that the model knows, in the order of
        environments_. A mean over environments, over states that move, and over the fits of a
        model of several copies, each held against its own copy or all against the same data.
        """
        self._fitted()
        x, times, labels = arrange(x, t, env, self.library.n)
        if x.shape[-4] != self.coef_.shape[-3]:
            raise ValueError(f"x: {len(labels)} environments, expected {self.coef_.shape[-3]}")
        gram = build_gram(self.library, x, times, self.derivative, self.window)
        inner = (self.coef_ @ gram.G * self.coef_).sum(-1) - 2 * (self.coef_ * gram.c).sum(-1)
        moving = (gram.q > 0).expand(inner.shape)
        share = torch.where(moving, -inner / torch.where(moving, gram.q, 1), 0)
        return (share.sum() / moving.sum().clamp_min(1)).item()

    def equations(self, env: Hashable = 0, precision: int = 3) -> list[str]:
        """One environment's equations as text, one line a state."""
        return told.as_text(self.library, self._one(env), precision)

    def sympy(self, env: Hashable = 0) -> list[sp.Expr]:
        """One environment's right-hand sides as sympy expressions of `library.symbols()`."""
        return told.as_sympy(self.library, self._one(env))

    def _one(self, env: Hashable) -> Tensor:
        coefficients = self._coefficients(env)
        if coefficients.ndim != 2:
            raise ValueError("this model is a batch: equations are those of one fit")
        return coefficients


def arrange(x, t, env, n: int) -> tuple[Tensor, np.ndarray | list, list]:
    """Trajectories as one float64 tensor (..., E, R, T, n), their times, their labels.

    Ragged trajectories are filled up with their last sample; `build_gram` never looks there.
    Returns times as `build_gram` takes them: one array, or E lists of R arrays or None.
    """
    if isinstance(x, (list, tuple)):
        return _arrange_list(x, t, env, n)
    x = torch.as_tensor(x)
    if x.is_complex():
        raise ValueError(f"x: dtype {x.dtype}, expected real numbers")
    if x.dtype != torch.float64:
        if not has_float64(x.device):
            raise ValueError("x: MPS has no float64; move the data to the CPU")
        x = x.double()
    if x.ndim < 4 or x.shape[-1] != n:
        raise ValueError(f"x: shape {tuple(x.shape)}, expected (..., E, R, T, {n})")
    if 0 in x.shape:
        raise ValueError(f"x: shape {tuple(x.shape)} holds nothing")
    if env is not None:
        raise ValueError("env: labels belong to a list of trajectories; a tensor has E for them")
    bad = ~torch.isfinite(x).all(-1)
    if bad.any():
        *_, e, r, i = bad.nonzero()[0].tolist()
        raise ValueError(
            f"x: NaN or infinity at environment {e}, trajectory {r}, sample {i}; "
            "cut the trajectory there and pass a list"
        )
    return x, _times(t, x.shape[-2]), list(range(x.shape[-4]))


def _arrange_list(x, t, env, n: int) -> tuple[Tensor, list, list]:
    if env is None or len(env) != len(x):
        given = "none" if env is None else len(env)
        raise ValueError(f"env: {given} labels for {len(x)} trajectories, expected one for each")
    if not len(x):
        raise ValueError("x: an empty list, expected at least one trajectory")
    several = isinstance(t, (list, tuple))
    if several and len(t) != len(x):
        raise ValueError(f"t: {len(t)} arrays of times for {len(x)} trajectories")
    labels = list(dict.fromkeys(env))
    lines: list[list[tuple[Tensor, np.ndarray]]] = [[] for _ in labels]
    for number, (part, label) in enumerate(zip(x, env, strict=True)):
        part = torch.as_tensor(part).double()
        if part.ndim != 2 or part.shape[1] != n or not len(part):
            raise ValueError(
                f"x: trajectory {number} has shape {tuple(part.shape)}, expected (T, {n})"
            )
        if not torch.isfinite(part).all():
            raise ValueError(f"x: trajectory {number} has NaN or infinity; cut it there")
        times = _times(t[number] if several else t, len(part), longer=not several)
        lines[labels.index(label)].append((part, times))
    R = max(map(len, lines))
    T = max(len(part) for line in lines for part, _ in line)
    out = lines[0][0][0].new_zeros(len(lines), R, T, n)
    for e, line in enumerate(lines):
        for r, (part, _) in enumerate(line):
            out[e, r, : len(part)], out[e, r, len(part) :] = part, part[-1]
    ragged = [[times for _, times in line] + [None] * (R - len(line)) for line in lines]
    return out, ragged, labels


def _times(t, T: int, *, longer: bool = False) -> np.ndarray:
    """Times of T samples from a step or from the times themselves."""
    t = np.asarray(t.cpu() if isinstance(t, Tensor) else t, dtype=np.float64)
    if t.ndim == 0:
        if not 0 < t < np.inf:
            raise ValueError(f"t = {float(t)}: expected a step above 0")
        return t * np.arange(T)
    if t.ndim != 1 or len(t) < T or (len(t) > T and not longer):
        raise ValueError(f"t: shape {t.shape}, expected a step or {T} times")
    return t[:T]


LIMIT = 1e4  # states beyond this count as diverged


@torch.no_grad()
def simulate(
    library: Library, coefficients: Tensor, x0: Tensor, t, *, substeps: int = 4
) -> tuple[Tensor, Tensor]:
    """Follow many models at once with Runge and Kutta's classical rule.

    coefficients: (..., n, p). x0: (..., R, n), of broadcastable batch dimensions. t: (T,).
    substeps: steps of the rule between two times.

    A trajectory that leaves the bounds stays where it last was within them. Returns states
    (..., R, T, n) and a boolean (..., R), whether that happened.
    Raises ValueError for other shapes, no times or some that are not finite, and no substeps.
    """
    t = np.asarray(t, dtype=np.float64)
    if t.ndim != 1 or not len(t) or not np.isfinite(t).all():
        raise ValueError(f"t: shape {t.shape}, expected at least one finite time")
    whole(1, substeps=substeps)
    if x0.ndim < 2 or x0.shape[-1] != library.n:
        raise ValueError(f"x0: shape {tuple(x0.shape)}, expected (..., R, {library.n})")
    used = (coefficients != 0).flatten(0, -2).any(0).nonzero()[:, 0].tolist() or [0]
    values = library.some(used)
    weights = coefficients[..., used].mT
    lead = torch.broadcast_shapes(weights.shape[:-2], x0.shape[:-2])
    x = x0.expand(*lead, *x0.shape[-2:]).clone()
    gone = torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    path = [x]
    for step in np.diff(t) / substeps:
        new = x
        for _ in range(substeps):
            k1 = values(new) @ weights
            k2 = values(new + step / 2 * k1) @ weights
            k3 = values(new + step / 2 * k2) @ weights
            k4 = values(new + step * k3) @ weights
            new = new + step / 6 * (k1 + 2 * (k2 + k3) + k4)
        gone = gone | ~(new.abs() < LIMIT).all(-1)  # NaN is not below the limit
        x = torch.where(gone[..., None], x, new)
        path.append(x)
    return torch.stack(path, -2), gone
