"""Maximum-entropy inverse optimal control: the weights that make observed paths likely.

Moves are deterministic, so log P(τ) = θ·f(τ) - V_0(s_0). The negative is convex in θ, and its
gradient is E[f] - f(τ); automatic differentiation through the backward pass gives just that.

The features f are ordered as (speed, goal, social_1 .. social_M, map); each enters the reward
with its weight, so speed, goal and social features are negative costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from companion.checks import above, whole
from companion.papers.fictitious_play.crowd import SIGMAS_M, Crowd, Weights
from companion.papers.fictitious_play.planning import Policy, _correlate, start_value
from companion.papers.fictitious_play.play import UPDATES, FictitiousPlay
from companion.papers.fictitious_play.social import at_cells, social_features
from companion.progress import Progress

SOCIAL = ("forecast", "observed", "none")
AT_ONCE = 64  # agents whose backward passes are kept in memory together
HIGHEST = 100.0  # of any weight, so that a line search cannot run away


@dataclass(frozen=True)
class Fit:
    """Weights learned from paths.

    Args:
        weights: of the last round.
        history: the weights after each round, the single-agent fit first.
        nats_per_step: the training loss after each round.
        paths: how many there were.
        infeasible: how many of them were left out because a step cannot be taken on the grid.
    """

    weights: Weights
    history: list[Weights]
    nats_per_step: list[float]
    paths: int
    infeasible: int


def feasible(crowd: Crowd, cells: Tensor) -> Tensor:
    """Whether paths (..., T + 1, N, 2) stay on the grid with steps of at most R cells, (..., N)."""
    short = ((cells.diff(dim=-3)).abs() <= crowd.radius_cells).all(-1).all(-2)
    inside = crowd.grid.holds(cells).all(-2)
    if crowd.blocked is not None:
        size = torch.tensor(crowd.grid.shape, device=cells.device)
        row, column = cells.clamp_min(0).minimum(size - 1).unbind(-1)
        inside &= ~crowd.blocked[row, column].any(-2)
    return short & inside & (cells[..., 0, :, :] == crowd.start).all(-1)


def _why_not(crowd: Crowd, paths: Tensor) -> str:
    """Why none of some paths (K, T + 1, N, 2) is feasible, and what to change."""
    cell_m, reach = crowd.grid.cell_m, crowd.radius_cells
    least = int(paths.diff(dim=1).abs().amax((1, 3)).min())  # of each path's longest step
    if least <= reach:
        return ": they leave it, cross what is blocked or do not begin at crowd.start"
    cell_mps = cell_m / crowd.dt_s
    return (
        f": a step reaches radius_cells = {reach} cells of cell_m = {cell_m:g} m in "
        f"{crowd.dt_s:g} s ({reach * cell_mps:.3g} m/s), and each path has a step of {least} cells "
        f"({least * cell_mps:.3g} m/s) or more: take a larger radius_cells or cell_m, or check the "
        "unit and the frames per second"
    )


def path_features(crowd: Crowd, cells: Tensor, social: Tensor) -> Tensor:
    """Features f(τ) summed over a path.

    Args:
        crowd: N pedestrians.
        cells: paths of shape (T + 1, N, 2).
        social: shape (T, N, M, H, W), as `social_features` returns it.

    Returns:
        Shape (N, 3 + M), in the order of this module; infeasible paths get zeros.
    """
    fine = feasible(crowd, cells)
    cells = torch.where(fine[:, None], cells, crowd.start)
    agents = torch.arange(len(crowd), device=cells.device)
    move = cells.diff(dim=0) + crowd.radius_cells
    speed = crowd.errors()[agents, move[..., 0], move[..., 1]].sum(0)
    goal = crowd.distances()[agents, cells[-1, :, 0], cells[-1, :, 1]]
    when = torch.arange(len(cells) - 1, device=cells.device)[:, None]
    row, column = cells[1:].unbind(-1)
    near = social[when, agents, :, row, column].sum(0)
    ground = torch.zeros_like(goal) if crowd.log_map is None else crowd.log_map[row, column].sum(0)
    f = torch.cat([-speed[:, None], -goal[:, None], -near, ground.to(near)[:, None]], 1)
    return torch.where(fine[:, None], f, 0)


def expected_features(crowd: Crowd, policy: Policy, D: Tensor, social: Tensor) -> Tensor:
    """E[f] under a policy.

    Args:
        crowd: N pedestrians.
        policy: theirs.
        D: its occupancy, shape (T + 1, N, H, W).
        social: shape (T, N, M, H, W), as `social_features` returns it.

    Returns:
        Shape (N, 3 + M).
    """
    errors = crowd.errors()
    weighed = (policy.log_kernel.exp() * errors).flip(1, 2)
    speed = torch.zeros(len(crowd)).to(errors)
    for t, r in enumerate(policy.reward):
        q = r + policy.values[t + 1]
        shift = q.amax((1, 2), keepdim=True)
        leave = D[t] * (shift - policy.values[t]).exp()
        speed += ((q - shift).exp() * _correlate(leave, weighed)).sum((1, 2))
    goal = (D[-1] * crowd.distances()).sum((1, 2))
    near = torch.einsum("tnhw,tnmhw->nm", D[1:], social)
    ground = torch.zeros_like(goal)
    if crowd.log_map is not None:
        ground = torch.einsum("tnhw,hw->n", D[1:], crowd.log_map.to(D))
    return torch.cat([-speed[:, None], -goal[:, None], -near, ground[:, None]], 1)


def log_partition(crowd: Crowd, theta: Tensor, social: Tensor) -> Tensor:
    """V_0 at the start, differentiable in the weights.

    Args:
        crowd: N pedestrians.
        theta: shape (3 + M,), in the order of this module.
        social: shape (T, N, M, H, W), as `social_features` returns it.

    Returns:
        Shape (N,), nats.

    Raises:
        ValueError: for another number of weights.
    """
    if len(theta) != 3 + social.shape[2]:
        raise ValueError(f"theta {tuple(theta.shape)}: expected {3 + social.shape[2]} weights")
    ground = crowd.ground(_as_weights(theta.detach().tolist()), len(social))
    if crowd.log_map is not None:
        worth = theta[-1] * crowd.log_map.to(theta)
        ground = worth.masked_fill(ground[0, 0].isinf(), -torch.inf).expand_as(ground)
    reward = ground - torch.einsum("m,tnmhw->tnhw", theta[2:-1], social)
    terminal = -theta[1] * crowd.distances()
    return start_value(-theta[0] * crowd.errors(), reward, terminal, crowd.start)


def _as_weights(theta: Iterable[float]) -> Weights:
    speed, goal, *social, ground = (float(x) for x in theta)
    return Weights(speed, goal, tuple(social), ground)


class MaxEntIOC:
    """Learn the weights of a crowd from its paths, by maximum-entropy inverse optimal control.

    Args:
        sigmas_m: widths of the Gaussians, metres, at least one.
        social: where the others are while weights are learned. "forecast": where fictitious play
            under the present weights expects them, in alternation over `rounds`; "observed": where
            they were seen, in one round; "none": nowhere, the single-agent model.
        rounds: of learning and play, at least 1.
        iterations: of L-BFGS-B in a round, at least 1. The weights are bounded by zero from below.
        fp_iterations: as `FictitiousPlay`'s iterations.
        average: as in `FictitiousPlay`.
        update: as in `FictitiousPlay`.
        mask_groups: as in `FictitiousPlay`.

    Raises:
        ValueError: for an unknown choice, no Gaussian and counts out of range.

    References:
        Ziebart et al. (2008); Ma et al. (2017) for the play in between.
    """

    def __init__(
        self, sigmas_m: Sequence[float] = SIGMAS_M, *, social: str = "forecast", rounds: int = 4, iterations: int = 30,
        fp_iterations: int = 10, average: bool = True, update: str = "simultaneous", mask_groups: bool = True,
    ) -> None:  # fmt: skip
        if social not in SOCIAL:
            raise ValueError(f"social = {social!r}: expected one of {SOCIAL}")
        if update not in UPDATES:
            raise ValueError(f"update = {update!r}: expected one of {UPDATES}")
        if not len(sigmas_m):
            raise ValueError("sigmas_m = []: expected the width of at least one Gaussian")
        above(0, **{f"sigmas_m[{i}]": sigma for i, sigma in enumerate(sigmas_m)})
        whole(1, rounds=rounds, iterations=iterations)
        whole(0, fp_iterations=fp_iterations)
        self.sigmas_m, self.social = tuple(sigmas_m), social
        self.rounds = {"forecast": rounds, "observed": 1, "none": 0}[social]
        self.iterations, self.mask_groups = iterations, mask_groups
        self.play: dict[str, Any] = {
            "iterations": fp_iterations,
            "average": average,
            "update": update,
        }

    def fit(self, crowd: Crowd, cells: Tensor, *, progress: bool = False) -> Fit:
        """Fit the weights to paths.

        Args:
            crowd: N pedestrians.
            cells: their paths, shape (T + 1, N, 2), or several of each, (K, T + 1, N, 2).
            progress: show a bar that counts rounds, one more than `rounds`: the first is of
                agents alone.

        Returns:
            The weights, and how they came about.

        Raises:
            ValueError: for other shapes, if no path is feasible, and where the loss or its slope
                is not finite.
        """
        paths = cells if cells.ndim == 4 else cells[None]
        if paths.ndim != 4 or paths.shape[1] < 2 or tuple(paths.shape[2:]) != (len(crowd), 2):
            raise ValueError(
                f"cells {tuple(cells.shape)}: expected (T + 1, {len(crowd)}, 2) of at least one step"
            )
        fine = feasible(crowd, paths)
        if not fine.any():
            raise ValueError(
                f"cells: none of {fine.numel()} paths can be walked on the grid"
                + _why_not(crowd, paths)
            )
        if self.social == "observed":  # others' places differ from sample to sample
            crowd = crowd.repeat(len(paths))
            paths, fine = paths.transpose(0, 1).flatten(1, 2)[None], fine.flatten()[None]
        horizon = paths.shape[1] - 1
        theta = np.array([1.0, 1.0, *(0.0 for _ in self.sigmas_m), 0.0])
        history, losses = [], []
        with Progress(self.rounds + 1, "rounds of learning", show=progress) as bar:
            for k in range(self.rounds + 1):
                weights = _as_weights(theta)
                others = None if k == 0 else self._others(crowd, weights, paths, horizon)
                theta, loss = self._fit_round(crowd, paths, fine, others, theta)
                history.append(_as_weights(theta))
                losses.append(loss)
                bar.update()
        return Fit(history[-1], history, losses, fine.numel(), int((~fine).sum()))

    @torch.no_grad()
    def _others(self, crowd: Crowd, weights: Weights, paths: Tensor, horizon: int) -> Tensor:
        """Where the others are, as social features (T, N, M, H, W)."""
        if self.social == "observed":
            maps = at_cells(crowd.grid.shape, paths[0], crowd.speed.dtype)
        else:
            play = FictitiousPlay(
                crowd, weights, horizon, sigmas_m=self.sigmas_m, mask_groups=self.mask_groups, **self.play
            )  # fmt: skip
            maps = play.run().occupancy
        mask = crowd.pair_mask(self.mask_groups)
        return social_features(maps, mask, self.sigmas_m, cell_m=crowd.grid.cell_m)

    def _fit_round(
        self, crowd: Crowd, paths: Tensor, fine: Tensor, social: Tensor | None, theta: np.ndarray
    ) -> tuple[np.ndarray, float]:
        """One convex problem: the others' places are given."""
        horizon, count = paths.shape[1] - 1, fine.sum(0)
        with_others = social is not None
        if social is None:
            shape = horizon, len(crowd), len(self.sigmas_m), *crowd.grid.shape
            social = torch.zeros((), dtype=crowd.speed.dtype, device=crowd.speed.device)
            social = social.expand(shape)
        total: Any = sum(path_features(crowd, path, social) for path in paths)
        seen: Tensor = total.sum(0)
        walkers = count > 0
        crowd_seen, social_seen = crowd.take(walkers), social[:, walkers]
        times = count[walkers].to(seen)

        parts = [
            (crowd_seen.take(part), social_seen[:, part], times[part])
            for part in torch.arange(len(times), device=times.device).split(AT_ONCE)
        ]

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            x = torch.tensor(point, dtype=seen.dtype, device=seen.device, requires_grad=True)
            value, slope = -x.detach() @ seen, -seen.clone()
            for walkers, near, often in parts:
                total = (often * log_partition(walkers, x, near)).sum()
                slope += torch.autograd.grad(total, x)[0]  # eq. (8.6)
                value += total.detach()
            scale = times.sum().item() * horizon
            return value.item() / scale, slope.cpu().double().numpy() / scale

        used = [(0, HIGHEST)] * 2 + [(0, HIGHEST if with_others else 0)] * len(self.sigmas_m)
        used.append((0, HIGHEST if crowd.log_map is not None else 0))
        if with_others:  # off the bound, so that the first step can tell the Gaussians apart
            theta = np.maximum(theta, [0.0, 0.0, *(0.1 for _ in self.sigmas_m), 0.0])
        found = minimize(
            loss, theta, jac=True, method="L-BFGS-B", bounds=used, options={"maxiter": self.iterations}
        )  # fmt: skip
        if not np.isfinite([found.fun, *found.jac]).all():
            raise ValueError(
                f"crowd: its paths have a loss of {found.fun:g} nats per step, with the slope "
                f"{found.jac.tolist()}; expected finite numbers (in {seen.dtype})"
            )
        return found.x, float(found.fun)
