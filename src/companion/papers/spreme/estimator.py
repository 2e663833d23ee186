"""SharedSINDy: one set of terms for all environments, coefficients for each."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError
from sklearn.utils import Tags
from torch import Tensor

from companion.checks import above, at_least, whole
from companion.device import has_float64
from companion.papers.spreme import equations
from companion.papers.spreme.derivative import METHODS, build_gram
from companion.papers.spreme.l0 import best_subsets, select
from companion.papers.spreme.library import Library
from companion.papers.spreme.mask import LoopResult, LoopSettings, learn_mask
from companion.papers.spreme.stlsq import group_stlsq, solve

SEARCHES = ("l0", "group_stlsq", "mask")


class SharedSINDy(BaseEstimator):
    """Find which terms of a library drive a system seen in several environments.

    A scikit-learn estimator: parameters are attributes, `get_params`, `set_params` and `clone`
    work, and what is learned ends in an underscore. `fit` takes times where scikit-learn takes
    targets, so that its pipelines do not apply.

    Args:
        library: the candidate terms; a whole number takes all monomials up to that degree.
        method: "l0", the best subset by exhaustive search (S3); "group_stlsq", thresholding of
            the coefficients of all environments together (S2); "mask", the published loop (S1).
        max_terms: terms of one state, at least 0, for l0.
        threshold: on raw coefficients, at least 0, for group_stlsq.
        ridge: on scaled columns, at least 0, while terms are being dropped.
        derivative: "weak", "savgol" or "fd", as `operators` has them.
        window: samples of a window, odd, at least 5, for "weak" and "savgol".
        shared: False gives every environment a support of its own (for comparison).
        epsilon: fraction of a target's energy that l0 attributes to quadrature, above 0.
        epochs: length of the published loop.
        loop: settings of the published loop; None takes the official code's last.

    Attributes:
        coef_: (..., E, n, p), states per time unit and term.
        support_: boolean (..., n, p), or (..., E, n, p) if not shared.
        path_: the result of every step of the search.
        criterion_: (..., n), of the chosen subset; None where there is none.
        feature_names_: names of the p terms.
        environments_: labels of the E environments.
        library_: the library that was used.
        n_features_in_: the number of states n.
        limit_: beyond which a state of a simulation counts as diverged: 1e4, or a hundred times
            the largest state of the data where that is more.
        steps_: for each environment the time between two samples of its data, their median; None
            where it is not known.

    References:
        Park et al. (2023), arXiv 2302.05942; S2 and S3 are simpler ways to the same support.

    >>> x = torch.exp(-torch.arange(0, 2, 0.05).double())[:, None]
    >>> model = SharedSINDy(Library(1, 2), max_terms=1).fit(x, 0.05)
    >>> model.equations(0, precision=2)
    ["x0' = -1 x0"]
    >>> model.simulate([1.0], [0.0, 1.0])[-1].item()  # about 1 / e
    0.367...
    """

    coef_: Tensor
    support_: Tensor
    path_: list[Any] | LoopResult
    criterion_: Tensor | None
    steps_: Sequence[float | None]

    def __init__(
        self,
        library: Library | int = 5,
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

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = False
        return tags

    def fit(
        self,
        x: Tensor | ArrayLike | Sequence[Tensor | ArrayLike],
        t: Tensor | ArrayLike,
        env: Sequence[Hashable] | None = None,
        *,
        progress: bool = False,
    ) -> SharedSINDy:
        """Find the terms and each environment's coefficients.

        Args:
            x: shape (..., E, R, T, n): environments, trajectories, samples, states, with any
                number of leading batch dimensions, which are fitted separately in one call; or
                one trajectory (T, n); or a list of trajectories (T_i, n). NumPy or torch.
            t: the step, or times of shape (T,); for a list also one array a trajectory.
            env: for a list, the label of each trajectory's environment.
            progress: show a bar, for method "mask".

        Returns:
            The estimator itself.

        Raises:
            ValueError: naming the argument, for what cannot be fitted.
        """
        if self.method not in SEARCHES:
            raise ValueError(f"method = {self.method!r}: expected one of {SEARCHES}")
        if self.derivative not in METHODS:
            raise ValueError(f"derivative = {self.derivative!r}: expected one of {METHODS}")
        n = self.library.n if isinstance(self.library, Library) else None
        if n is None:
            whole(0, library=self.library)
        whole(0, max_terms=self.max_terms, epochs=self.epochs)
        at_least(0, threshold=self.threshold, ridge=self.ridge)
        above(0, epsilon=self.epsilon)
        x, times, labels = arrange(x, t, env, n)
        given = self.library
        self.library_ = given if isinstance(given, Library) else Library(x.shape[-1], given)
        self.n_features_in_ = self.library_.n
        self.environments_ = labels
        self.limit_ = max(LIMIT, 100 * x.abs().max().item())
        self.feature_names_ = self.library_.get_feature_names()
        if self.method == "mask":
            return self._fit_mask(x, times, progress)
        gram = build_gram(self.library_, x, times, self.derivative, self.window)
        self.steps_ = _steps(times, len(labels))
        if self.method == "l0":
            path = best_subsets(gram, self.max_terms, self.epsilon, shared=self.shared)
            self.path_ = path
            self.support_, self.criterion_ = select(path, self.library_.p)
            wide = self.support_[..., None, :, :] if self.shared else self.support_
            self.coef_ = solve(gram, wide)
        else:
            self.coef_, self.support_, self.path_ = group_stlsq(
                gram, self.threshold, self.ridge, shared=self.shared
            )
            self.criterion_ = None
        return self

    def _fit_mask(self, x: Tensor, times: np.ndarray | list, progress: bool) -> SharedSINDy:
        if x.ndim != 4 or isinstance(times, list) or not self.shared:
            raise ValueError(
                "method = 'mask' takes one data set (E, R, T, n) of equal trajectories and "
                "shares its mask"
            )
        steps = np.diff(times)
        if not len(steps):
            raise ValueError("x: one sample a trajectory, expected at least 7")
        if np.ptp(steps) > 1e-6 * steps.mean():
            raise ValueError("t: method = 'mask' needs equal steps")
        self.steps_ = _steps(times, len(self.environments_))
        step = float(steps.mean())
        result = learn_mask(self.library_, x, step, self.epochs, self.loop, progress=progress)
        self.path_ = result
        self.coef_, self.support_ = result.coefficients, result.support
        self.criterion_ = None
        return self

    def adapt(self, x: Tensor | ArrayLike, t: Tensor | ArrayLike) -> SharedSINDy:
        """Learn a new environment's coefficients on the terms that were found, in closed form.

        Args:
            x: one trajectory (T, n) or several (R, T, n), after the batch dimensions of `fit`; or,
                where there are none, a list of trajectories (T_i, n).
            t: the step, or times of shape (T,); for a list also one array a trajectory.

        Returns:
            A model of that one environment, labelled 0; this one stays as it is.

        Raises:
            ValueError: before `fit`, as scikit-learn's NotFittedError.
            ValueError: for a model whose terms are not shared, and for what cannot be fitted.
        """
        self._check_fitted()
        if not self.shared:
            raise ValueError("adapt needs terms that environments share: fit with shared=True")
        lead = self.coef_.shape[:-3]
        if isinstance(x, (list, tuple)) and _is_ragged(x, t):
            if lead:
                raise ValueError(f"x: a list of trajectories, but the model has {lead[0]} copies")
            return self._adapt(*arrange(x, t, [0] * len(x), self.library_.n)[:2])
        x = as_float("x", x)
        fits = x.ndim - len(lead) in (2, 3)
        if not fits or any(m not in (1, k) for m, k in zip(x.shape, lead, strict=False)):
            first = "".join(f"{k}, " for k in lead)
            n = self.library_.n
            raise ValueError(
                f"x: shape {tuple(x.shape)}, expected one trajectory ({first}T, {n}) or several "
                f"({first}R, T, {n}) of one environment"
            )
        if x.ndim == len(lead) + 2:
            x = x.unsqueeze(-3)
        return self._adapt(*arrange(x.unsqueeze(-4), t, None, self.library_.n)[:2])

    def _adapt(self, x: Tensor, times: np.ndarray | list) -> SharedSINDy:
        gram = build_gram(self.library_, x, times, self.derivative, self.window)
        model = self._copy()
        model.coef_ = solve(gram, self.support_[..., None, :, :].to(x.device))
        model.environments_ = [0]
        model.limit_ = max(self.limit_, 100 * x.abs().max().item())
        model.steps_ = _steps(times, 1)
        return model

    @classmethod
    def from_coefficients(
        cls, library: Library, coefficients: Tensor | ArrayLike, *, step: float | None = None
    ) -> SharedSINDy:
        """Make a fitted model of given coefficients.

        Args:
            library: the terms.
            coefficients: shape (n, p) or (E, n, p), as pysindy has them.
            step: time between two samples of the data that they describe, above 0, which
                `simulate` divides by 4. Without one it divides any time by 4, however long: ask
                for times that are close together.

        Raises:
            ValueError: for another shape, numbers that are not finite, or a step out of range.
        """
        if step is not None:
            above(0, step=step)
        coefficients = as_float("coefficients", coefficients)
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
        model.library_, model.n_features_in_ = library, library.n
        model.limit_, model.steps_ = LIMIT, [step] * len(coefficients)
        model.feature_names_ = library.get_feature_names()
        return model

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "step_" in state:  # pickled when all environments had one
            self.steps_ = [self.__dict__.pop("step_")] * len(self.environments_)

    def _copy(self) -> SharedSINDy:
        model = type(self)(**self.get_params(deep=False))
        for name in (
            "support_", "path_", "criterion_", "feature_names_", "library_", "n_features_in_",
        ):  # fmt: skip
            setattr(model, name, getattr(self, name))
        return model

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def _check_fitted(self) -> None:
        if not hasattr(self, "coef_"):
            raise NotFittedError("this SharedSINDy is not fitted yet: call fit first")

    def _coefficients(self, env: Hashable) -> Tensor:
        """Those of one environment, (..., n, p)."""
        self._check_fitted()
        if env not in self.environments_:
            raise ValueError(f"env = {env!r}: expected one of {self.environments_}")
        return self.coef_[..., self.environments_.index(env), :, :]

    def _states(self, name: str, x: Tensor | ArrayLike) -> Tensor:
        x, n = as_float(name, x), self.n_features_in_
        if not x.ndim or x.shape[-1] != n:
            raise ValueError(
                f"{name}: shape {tuple(x.shape)}, expected (..., {n}). {other_width(x, n)}"
            )
        if not x.isfinite().all():
            raise ValueError(f"{name}: NaN or infinity, expected finite states")
        return x.to(self.coef_.device)

    def predict(self, x: Tensor | ArrayLike, env: Hashable = 0) -> Tensor:
        """Derivatives at given states.

        Args:
            x: states of shape (..., n).
            env: label of an environment.

        Returns:
            float64 tensor of shape (..., n), states per time unit.

        Raises:
            ValueError: before `fit`, as scikit-learn's NotFittedError.
            ValueError: for an unknown environment or another shape.
        """
        coefficients = self._coefficients(env)
        phi = self.library_(self._states("x", x))
        return phi @ coefficients.mT  # eq. (7.1)

    def simulate(
        self,
        x0: Tensor | ArrayLike,
        t: Tensor | ArrayLike,
        env: Hashable = 0,
        *,
        flag: bool = False,
        limit: float | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Follow the model of one environment.

        With four steps of Runge and Kutta's rule between two times, and with proportionally more
        where those are further apart than the samples of that environment's data.

        Args:
            x0: initial states of shape (R, n), or one of shape (n,). NumPy or torch.
            t: times of shape (T,), the first that of x0. NumPy or torch.
            env: label of an environment.
            flag: also return which trajectories diverged; without it a warning is given.
            limit: size of a state, above 0, beyond which it has diverged; None takes `limit_`.

        Returns:
            States of shape (R, T, n), or (T, n) for one initial state. One that diverges stays at
            its last state within the limit; with `flag`, the boolean (R,), or (), that says so.

        Raises:
            ValueError: before `fit`, as scikit-learn's NotFittedError.
            ValueError: for an unknown environment, other shapes, times that are not finite, and a
                limit out of range.
        """
        coefficients = self._coefficients(env)
        limit = self.limit_ if limit is None else limit
        x0 = self._states("x0", x0)
        alone = x0.ndim == 1
        start = x0[None] if alone else x0
        step = self.steps_[self.environments_.index(env)]
        states, diverged = simulate(self.library_, coefficients, start, t, limit=limit, step=step)
        if alone:
            states, diverged = states.squeeze(-3), diverged.squeeze(-1)
        if flag:
            return states, diverged
        if diverged.any():
            warnings.warn(
                f"{int(diverged.sum())} simulated trajectories diverged beyond limit = {limit:g}",
                stacklevel=2,
            )
        return states

    def score(
        self,
        x: Tensor | ArrayLike | Sequence[Tensor | ArrayLike],
        t: Tensor | ArrayLike,
        env: Sequence[Hashable] | None = None,
    ) -> float:
        """How much of the regression's targets the model explains, 1 - residual / energy.

        Args:
            x: as in `fit`; a tensor has all environments, in the order of `environments_`.
            t: as in `fit`.
            env: as in `fit`, labels of environments that the model knows, in any order.

        Returns:
            At most 1. A mean over environments, over states that move, and over the fits of a
            model of several copies, each compared with its own copy or all with the same data.

        Raises:
            ValueError: before `fit`, as scikit-learn's NotFittedError.
            ValueError: for another number of environments, unknown labels, or data as `fit`
                refuses them.
        """
        self._check_fitted()
        x, times, labels = arrange(x, t, env, self.library_.n)
        coef = self.coef_
        if env is not None:
            coef = torch.stack([self._coefficients(label) for label in labels], -3)
        elif len(labels) != coef.shape[-3]:
            raise ValueError(f"x: {len(labels)} environments, expected {coef.shape[-3]}")
        gram = build_gram(self.library_, x, times, self.derivative, self.window)
        inner = (coef @ gram.G * coef).sum(-1) - 2 * (coef * gram.c).sum(-1)
        moving = (gram.q > 0).expand(inner.shape)
        share = torch.where(moving, -inner / torch.where(moving, gram.q, 1), 0)
        return (share.sum() / moving.sum().clamp_min(1)).item()

    def equations(self, env: Hashable = 0, precision: int = 3) -> list[str]:
        """One environment's equations as text, one line a state.

        Args:
            env: label of an environment.
            precision: significant digits.

        Raises:
            ValueError: before `fit`, as scikit-learn's NotFittedError.
            ValueError: for an unknown environment, and for a model of several copies.
        """
        return equations.as_text(self.library_, self._one(env), precision)

    def sympy(self, env: Hashable = 0) -> list[sympy.Expr]:
        """One environment's right-hand sides as sympy expressions of `library_.symbols()`.

        Raises:
            ValueError: before `fit`, as scikit-learn's NotFittedError.
            ValueError: for an unknown environment, and for a model of several copies.
        """
        return equations.as_sympy(self.library_, self._one(env))

    def _one(self, env: Hashable) -> Tensor:
        coefficients = self._coefficients(env)
        if coefficients.ndim != 2:
            raise ValueError("this model is a batch: equations are those of one fit")
        return coefficients


def other_width(x: Tensor, n: int | None) -> str:
    """Scikit-learn's sentence about data of another number of states, where that is the fault."""
    if n is None or not x.ndim or x.shape[-1] == n:
        return ""
    return f"X has {x.shape[-1]} features, but SharedSINDy is expecting {n} features as input."


def as_float(name: str, value: Tensor | ArrayLike) -> Tensor:
    """A float64 tensor of what NumPy or torch take for numbers.

    Raises:
        ValueError: for what are no real numbers; TypeError where NumPy cannot tell.
    """
    if not isinstance(value, Tensor):
        if hasattr(value, "tocsr"):
            raise ValueError(f"{name}: a sparse matrix, expected a dense array")
        value = np.asarray(value)
        refuse_dates(name, value.dtype)
        if value.dtype.kind not in "biufc":
            try:
                value = value.astype(np.float64)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: expected real numbers ({error})") from None
        value = np.ascontiguousarray(value)
        # PyTorch warns of arrays that are read-only, as pandas hands them out
        value = torch.as_tensor(value if value.flags.writeable else value.copy())
    if value.is_complex():
        raise ValueError(
            f"{name}: dtype {value.dtype}, expected real numbers. Complex data not supported"
        )
    if value.dtype != torch.float64 and not has_float64(value.device):
        raise ValueError(f"{name}: MPS has no float64; move the data to the CPU")
    return value.detach().double()


def refuse_dates(name: str, dtype: object) -> None:
    """Raise ValueError for dates and time spans: as floats they count units that nobody chose."""
    if getattr(dtype, "kind", "") in ("M", "m"):
        raise ValueError(f"{name}: dates or time spans; expected numbers, such as hours")


def arrange(
    x: Tensor | ArrayLike | Sequence, t: Tensor | ArrayLike, env: Sequence | None, n: int | None
) -> tuple[Tensor, np.ndarray | list, list]:
    """Trajectories as one float64 tensor (..., E, R, T, n), their times, their labels.

    Ragged trajectories are filled up with their last sample; `build_gram` never looks there.

    Args:
        x: as in `SharedSINDy.fit`.
        t: likewise.
        env: likewise.
        n: number of states; None takes that of the data.

    Returns:
        Also the times as `build_gram` takes them: one array, or E lists of R arrays or None.

    Raises:
        ValueError: naming the argument, for what cannot be.
    """
    if isinstance(x, (list, tuple)) and env is not None:
        return _arrange_list(x, t, env, n)
    if isinstance(x, (list, tuple)) and any(np.ndim(part) > 1 for part in x):
        raise ValueError(f"env: none labels for {len(x)} trajectories, expected one for each")
    x = as_float("x", x)
    if x.ndim == 2:  # one trajectory
        if not x.shape[1]:
            shape = tuple(x.shape)
            raise ValueError(f"x: 0 feature(s) (shape={shape}) while a minimum of 1 is required.")
        x = x[None, None]
    width = n or "n"
    if x.ndim < 4 or (n and x.shape[-1] != n):
        raise ValueError(
            f"x: shape {tuple(x.shape)}, expected (..., E, R, T, {width}), one trajectory "
            f"(T, {width}), or a list of trajectories. {other_width(x, n)}".rstrip()
        )
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


def _arrange_list(x, t, env, n: int | None) -> tuple[Tensor, list, list]:
    env = env.tolist() if hasattr(env, "tolist") else list(env)
    if not len(x):
        raise ValueError("x: an empty list, expected at least one trajectory")
    if len(env) != len(x):
        raise ValueError(
            f"env: {len(env)} labels for {len(x)} trajectories, expected one for each"
        )
    several = isinstance(t, (list, tuple))
    if several and len(t) != len(x):
        raise ValueError(f"t: {len(t)} arrays of times for {len(x)} trajectories")
    labels = list(dict.fromkeys(env))
    lines: list[list[tuple[Tensor, np.ndarray]]] = [[] for _ in labels]
    for number, (part, label) in enumerate(zip(x, env, strict=True)):
        part = as_float(f"x[{number}]", part)
        n = part.shape[-1] if n is None and part.ndim == 2 else n
        if part.ndim != 2 or part.shape[1] != n or not part.numel():
            raise ValueError(
                f"x: trajectory {number} has shape {tuple(part.shape)}, expected (T, {n or 'n'})"
            )
        if not torch.isfinite(part).all():
            raise ValueError(f"x: trajectory {number} has NaN or infinity; cut it there")
        times = _times(t[number] if several else t, len(part), longer=not several)
        lines[labels.index(label)].append((part, times))
    R = max(map(len, lines))
    T = max(len(part) for line in lines for part, _ in line)
    first = lines[0][0][0]
    out = first.new_zeros(len(lines), R, T, first.shape[1])
    for e, line in enumerate(lines):
        for r, (part, _) in enumerate(line):
            out[e, r, : len(part)], out[e, r, len(part) :] = part, part[-1]
    ragged = [[times for _, times in line] + [None] * (R - len(line)) for line in lines]
    return out, ragged, labels


def _times(given, T: int, *, longer: bool = False) -> np.ndarray:
    """Times of T samples from a step or from the times themselves."""
    t = times_of(given)
    if t.ndim == 0:
        if not 0 < t < np.inf:
            raise ValueError(f"t = {float(t)}: expected a step above 0")
        return t * np.arange(T)
    if t.ndim != 1 or len(t) < T or (len(t) > T and not longer):
        raise ValueError(f"t: shape {t.shape}, expected a step or {T} times")
    return _unrounded(t[:T], str(getattr(given, "dtype", "")).removeprefix("torch."))


def _steps(times: np.ndarray | list, environments: int) -> list[float]:
    """Median time between two samples of each environment, of times as `arrange` gives them."""
    each = times if isinstance(times, list) else [[times]] * environments
    return [
        float(np.median(np.concatenate([np.diff(t) for t in line if t is not None])))
        for line in each
    ]


def _is_ragged(x: Sequence, t: object) -> bool:
    """Whether a list has trajectories that one tensor cannot hold, or that have their own times."""
    if any(np.ndim(part) != 2 for part in x):
        return False
    own = isinstance(t, (list, tuple)) and any(np.ndim(line) for line in t)
    return own or len({len(part) for part in x}) > 1


def _unrounded(t: np.ndarray, dtype: str) -> np.ndarray:
    """Times in lower precision, such as of torch.linspace: what that made of equal steps is equal."""
    if dtype not in ("float16", "float32") or not (
        np.isfinite(t).all() and (np.diff(t) > 0).all()
    ):
        return t
    even = np.linspace(t[0], t[-1], len(t))
    rounding = 2 * np.finfo(dtype).eps * np.abs(t).max()
    return even if (np.abs(t - even) <= rounding).all() else t


def times_of(t: Tensor | ArrayLike) -> np.ndarray:
    """Times as a float64 array.

    Raises:
        ValueError: for what are no numbers.
    """
    try:
        if isinstance(t, Tensor):
            t = t.detach().cpu()
        dtype = t.dtype if hasattr(t, "dtype") else np.asarray(t).dtype
        times = np.asarray(t, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"t: expected a step or times ({error})") from None
    refuse_dates("t", dtype)
    return times


LIMIT = 1e4  # states beyond this count as diverged, unless told otherwise


@torch.no_grad()
def simulate(
    library: Library,
    coefficients: Tensor | ArrayLike,
    x0: Tensor | ArrayLike,
    t: Tensor | ArrayLike,
    *,
    substeps: int = 4,
    limit: float = LIMIT,
    step: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Follow many models at once with Runge and Kutta's classical rule.

    A trajectory with a state beyond the limit stays where it last was within it.

    Args:
        library: the terms.
        coefficients: shape (..., n, p).
        x0: initial states of shape (..., R, n), of broadcastable batch dimensions.
        t: times of shape (T,).
        substeps: steps of the rule between two times, at least 1.
        limit: size of a state, above 0.
        step: time, above 0, for which that many are enough: times further apart have as many for
            each step or part of one. None: any time.

    Returns:
        States of shape (..., R, T, n), float64, and a boolean (..., R), whether one went beyond.

    Raises:
        ValueError: for other shapes, no times or some that are not finite, no substeps, and a
            limit or step out of range.
    """
    above(0, limit=limit)
    if step is not None:
        above(0, step=step)
    coefficients = as_float("coefficients", coefficients)
    if coefficients.shape[-2:] != (library.n, library.p):
        raise ValueError(
            f"coefficients: shape {tuple(coefficients.shape)}, "
            f"expected (..., {library.n}, {library.p})"
        )
    t = times_of(t)
    x0 = as_float("x0", x0).to(coefficients.device)
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
    for dt in np.diff(t):
        # a tenth more than a step is one still: times may be rounded
        count = substeps * (max(1, math.ceil(abs(dt) / step - 0.1)) if step else 1)
        h, new = dt / count, x
        for _ in range(count):
            k1 = values(new) @ weights
            k2 = values(new + h / 2 * k1) @ weights
            k3 = values(new + h / 2 * k2) @ weights
            k4 = values(new + h * k3) @ weights
            new = new + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        gone = gone | ~(new.abs() < limit).all(-1)  # NaN is not below the limit
        x = torch.where(gone[..., None], x, new)
        path.append(x)
    return torch.stack(path, -2), gone
