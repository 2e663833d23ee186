"""The four systems of the paper: equations, environments, exact trajectories, noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import sympy
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from companion.checks import at_least, one_dtype, random_source, whole
from companion.papers.spreme.library import Library, sine

TOLERANCE = 1e-12  # of the integrators, relative and absolute


@dataclass(frozen=True)
class System:
    """One system as the official code sets it up.

    Args:
        rhs: maps the states, the parameters (two sequences) and a sine to the derivatives.
        states: their names.
        parameters: their names.
        base: mean of the parameters.
        variance: of the parameters.
        n_envs: environments.
        n_traj: trajectories each.
        t_max: duration of the data, time units.
        step: between two samples, time units.
        window: samples of the weak form's window.
        smoothing: samples of Savitzky and Golay's window.
        held_out: parameters of the environment that no fit has seen.
    """

    rhs: Callable[[Sequence, Sequence, Callable], tuple]
    states: tuple[str, ...]
    parameters: tuple[str, ...]
    base: tuple[float, ...]
    variance: float
    n_envs: int
    n_traj: int
    t_max: float
    step: float
    window: int
    smoothing: int
    held_out: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of states."""
        return len(self.states)

    @property
    def times(self) -> np.ndarray:
        """The sampling times of a trajectory, in time units."""
        return np.arange(0, self.t_max, self.step)


def _linear(s, p, sin):
    return p[0] * s[0] + p[1] * s[1], p[2] * s[0] + p[3] * s[1], p[4] * s[2]


def _lorenz(s, p, sin):
    return p[0] * (s[1] - s[0]), s[0] * (p[1] - s[2]) - s[1], s[0] * s[1] - p[2] * s[2]


def _lotka(s, p, sin):
    return p[0] * s[0] - p[1] * s[0] * s[1], p[2] * s[0] * s[1] - p[3] * s[1]


def _pendulum(s, p, sin):
    return s[1], -p[0] * s[1] - p[1] * sin(s[0])


SYSTEMS = {
    "linear": System(
        _linear, ("x", "y", "z"), ("p0", "p1", "p2", "p3", "p4"), (-0.1, 2.0, -2.0, -0.1, -0.3),
        0.01, 3, 16, 4.0, 0.02, 21, 15, (-0.1, 2.0, -2.0, -0.1, -0.3),
    ),
    "lorenz": System(
        _lorenz, ("x", "y", "z"), ("sigma", "rho", "beta"), (10.0, 28.0, 8 / 3), 0.02, 3, 16, 4.0,
        0.02, 15, 11, (10.0, 28.0, 8 / 3),
    ),
    "lotka": System(
        _lotka, ("x", "y"), ("alpha", "beta", "delta", "gamma"), (), 0.0, 9, 4, 10.0, 0.3, 11, 7,
        (0.5, 0.625, 1.125, 0.5),
    ),
    "pendulum": System(
        _pendulum, ("theta", "omega"), ("b", "g"), (0.5, 0.98), 0.01, 9, 8, 4.0, 0.2, 9, 7,
        (0.5, 0.98),
    ),
}  # fmt: skip
# (beta, delta) of the nine environments of Lotka and Volterra; alpha = gamma = 0.5
LOTKA_ENVIRONMENTS = (
    (0.5, 0.5), (0.75, 0.5), (1.0, 0.5), (0.5, 0.75), (0.5, 1.0), (0.75, 0.75), (0.75, 1.0),
    (1.0, 0.75), (1.0, 1.0),
)  # fmt: skip


def system(name: str) -> System:
    """One of `SYSTEMS` by name.

    Raises:
        ValueError: for an unknown name, with the known ones.
    """
    if name not in SYSTEMS:
        raise ValueError(f"system = {name!r}: expected one of {', '.join(map(repr, SYSTEMS))}")
    return SYSTEMS[name]


def make_library(name: str, degree: int = 5) -> Library:
    """The candidate terms of a system: all monomials; the pendulum has three sines as well.

    Args:
        name: of the system.
        degree: highest of the monomials.

    Raises:
        ValueError: for an unknown name.

    >>> [make_library(name).p for name in SYSTEMS]
    [56, 56, 21, 24]
    """
    found = system(name)
    extra = (sine(0), sine(1), sine(0, 1)) if name == "pendulum" else ()
    return Library(found.n, degree, extra, found.states)


def draw_environments(
    name: str, seed: int = 1000, *, n_traj: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw environments and initial states as the official code does.

    NumPy's legacy generator; both are rounded to float16. The same initial states serve every
    environment. The published numbers come first whatever n_traj is: more trajectories than the
    official code has are drawn after all else, fewer are its first ones.

    Args:
        name: of the system.
        seed: the official code's is 1000.
        n_traj: trajectories; None takes the system's own.

    Returns:
        Parameters (n_envs, parameters) and initial states (n_traj, n).

    Raises:
        ValueError: for an unknown name.
    """
    found = system(name)
    # the published draws come from the legacy generator, so these do
    random = np.random.RandomState(seed)

    def parameters() -> np.ndarray:
        if name == "lotka":
            return np.array([(0.5, beta, delta, 0.5) for beta, delta in LOTKA_ENVIRONMENTS])
        noise = random.randn(found.n_envs, len(found.base))
        return np.array(found.base) + np.sqrt(found.variance) * noise

    def initial(count: int) -> np.ndarray:
        if name == "lotka":
            return 1 + random.rand(count, found.n)
        states = random.randn(count, found.n)
        if name == "pendulum":
            states = 2 * states - 1
            states *= (1.3 + random.rand(count, 1)) / np.linalg.norm(states, axis=1)[:, None]
        return states

    if name == "pendulum":  # here the official code draws the parameters first
        drawn = parameters()
        states = initial(found.n_traj)
    else:
        states = initial(found.n_traj)
        drawn = parameters()
    wanted = found.n_traj if n_traj is None else n_traj
    if wanted > found.n_traj:
        states = np.concatenate([states, initial(wanted - found.n_traj)])
    drawn, states = (a.astype(np.float16).astype(np.float64) for a in (drawn, states[:wanted]))
    return drawn, states


def integrate(
    name: str, parameters: np.ndarray, initial: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Solve a system for every environment and initial state at once, to 1e-12.

    All trajectories are one state of one solver (Dormand and Prince's order 8), whose steps suit the
    hardest of them.

    Args:
        name: of the system.
        parameters: shape (E, parameters).
        initial: shape (R, n) for all environments, or (E, R, n).
        times: shape (T,), ascending, in time units; the first is that of the initial states.

    Returns:
        An array of shape (E, R, T, n).

    Raises:
        ValueError: for times that do not ascend, and for numbers or shapes that cannot be.
    """
    found = system(name)
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2 or not (np.diff(times) > 0).all():
        raise ValueError(f"times: shape {times.shape}, expected at least two that ascend")
    for what, value, width in (
        ("parameters", parameters, len(found.parameters)),
        ("initial", initial, found.n),
    ):
        if value.shape[-1] != width or not np.isfinite(value).all():
            raise ValueError(
                f"{what}: shape {value.shape}, expected finite numbers (..., {width})"
            )
    E, R = len(parameters), initial.shape[-2]
    start = np.broadcast_to(initial, (E, R, found.n))
    columns = [parameters[:, None, i] for i in range(parameters.shape[1])]

    def rhs(_, flat):
        states = np.moveaxis(flat.reshape(E, R, found.n), -1, 0)
        return np.stack(found.rhs(states, columns, np.sin), -1).ravel()

    solved = solve_ivp(
        rhs, (times[0], times[-1]), start.ravel(), "DOP853", times, rtol=TOLERANCE, atol=TOLERANCE
    )
    return np.moveaxis(solved.y.reshape(E, R, found.n, len(times)), -1, 2)


def trajectories(
    name: str, seed: int = 1000, *, n_envs: int | None = None, n_traj: int | None = None
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noise-free data of a system.

    Args:
        name: of the system.
        seed: as in `draw_environments`.
        n_envs: environments, at most the system's own; None takes all.
        n_traj: trajectories of each, at least 1; None takes the system's own.

    Returns:
        x of shape (E, R, T, n), the times (T,), and the parameters (E, parameters).

    Raises:
        ValueError: for an unknown name, and for counts out of range.
    """
    found = system(name)
    if n_envs is not None and not 1 <= n_envs <= found.n_envs:
        raise ValueError(f"n_envs = {n_envs}: {name} has 1 to {found.n_envs} environments")
    if n_traj is not None and n_traj < 1:
        raise ValueError(f"n_traj = {n_traj}: expected at least 1")
    parameters, initial = draw_environments(name, seed, n_traj=n_traj)
    parameters = parameters[:n_envs]
    x = integrate(name, parameters, initial, found.times)
    return torch.from_numpy(x.copy()), torch.from_numpy(found.times), parameters


def add_noise(x: Tensor, level: float, generator: torch.Generator, copies: int) -> Tensor:
    """Copies of the data with normal noise on the states.

    The same generator state gives the same noise at every level, scaled.

    Args:
        x: shape (E, R, T, n).
        level: standard deviation of the noise, as a fraction of each state's own over all data.
        generator: a CPU generator.
        copies: at least 1.

    Returns:
        Shape (copies, E, R, T, n).

    Raises:
        ValueError: for a negative level, no copy, or a seed in place of a generator.
    """
    at_least(0, level=level)
    whole(1, copies=copies)
    random_source(generator=generator)
    one_dtype(x=x)
    scale = x.flatten(0, -2).std(0, correction=0)
    noise = torch.randn((copies, *x.shape), generator=generator, dtype=x.dtype)
    return x + level * scale * noise.to(x.device)


def true_expressions(name: str, parameters: Sequence | None = None) -> list[sympy.Expr]:
    """The right-hand sides in sympy.

    Args:
        name: of the system.
        parameters: numbers; None leaves symbols.

    Raises:
        ValueError: for an unknown name.

    >>> true_expressions("pendulum", [0.5, 1.0])
    [omega, -0.5*omega - 1.0*sin(theta)]
    """
    found = system(name)
    states = [sympy.Symbol(s, real=True) for s in found.states]
    if parameters is None:
        parameters = [sympy.Symbol(p, real=True) for p in found.parameters]
    return [sympy.sympify(e) for e in found.rhs(states, parameters, sympy.sin)]


def true_coefficients(name: str, parameters: np.ndarray, library: Library) -> Tensor:
    """The right-hand sides in terms of a library, derived from the equations by sympy.

    Args:
        name: of the system.
        parameters: shape (E, parameters).
        library: the terms.

    Returns:
        Shape (E, n, p).

    Raises:
        ValueError: if the library lacks one of the terms or has other states.
    """
    found = system(name)
    symbols = [sympy.Symbol(p, real=True) for p in found.parameters]
    states, terms = library.symbols(), library.expressions()
    if library.names != list(found.states):
        raise ValueError(f"library: its states are {library.names}, expected {found.states}")
    out = torch.zeros(len(parameters), found.n, library.p, dtype=torch.float64)
    for k, rhs in enumerate(true_expressions(name)):
        for factor in sympy.Add.make_args(sympy.expand(rhs)):
            coefficient, term = factor.as_independent(*states)
            if term not in terms:
                raise ValueError(f"library: lacks the term {term} of {name}")
            values = sympy.lambdify(symbols, coefficient)(*np.asarray(parameters).T)
            out[:, k, terms.index(term)] = torch.as_tensor(values)
    return out
