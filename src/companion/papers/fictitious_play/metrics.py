"""How well a forecast explains what was seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import whole
from companion.papers.fictitious_play.crowd import Crowd
from companion.papers.fictitious_play.planning import Policy


def nll_per_step(policy: Policy, cells: Tensor) -> Tensor:
    """Negative log-likelihood of paths in nats per step, infinite for infeasible ones.

    It depends on the size of the cells and on R: compare it on one grid only.

    Args:
        policy: of N agents over T steps.
        cells: paths of shape (T + 1, N, 2), or K of each agent, (K, T + 1, N, 2).

    Returns:
        Shape (N,) or (K, N).

    Raises:
        ValueError: for no policy, and for cells that are not whole numbers of this shape.

    References:
        Ma et al. (2017) measure the likelihood of the observed path under the forecast.
    """
    if not isinstance(policy, Policy):
        raise ValueError(f"policy: a {type(policy).__name__}, expected a Policy and then cells")
    if cells.ndim == 4:
        return torch.stack([nll_per_step(policy, path) for path in cells])
    return -policy.log_prob(cells) / (len(cells) - 1)


@dataclass(frozen=True)
class Likelihood:
    """Mean likelihood of those paths that can be walked on the grid.

    Args:
        nats_per_step: mean negative log-likelihood of the feasible paths; NaN if there is none.
        paths: how many there were.
        infeasible: how many of them no policy can follow.
    """

    nats_per_step: float
    paths: int
    infeasible: int


def likelihood(policy: Policy, cells: Tensor) -> Likelihood:
    """Average `nll_per_step` over feasible paths, and count the others.

    Args:
        policy: as in `nll_per_step`.
        cells: likewise.

    Raises:
        ValueError: as `nll_per_step`.
    """
    each = nll_per_step(policy, cells)
    fine = each.isfinite()
    mean = each[fine].mean().item() if fine.any() else float("nan")
    return Likelihood(mean, each.numel(), int((~fine).sum()))


def straight_lines(crowd: Crowd, horizon: int, *, at_speed: bool = True) -> Tensor:
    """Walk straight to the goal.

    Args:
        crowd: N pedestrians.
        horizon: T, steps, at least 1.
        at_speed: walk at the preferred speed and stop at the goal; otherwise be there at the end.

    Returns:
        Positions of shape (T + 1, N, 2) in metres.

    Raises:
        ValueError: for a horizon out of range.
    """
    whole(1, horizon=horizon)
    start = crowd.grid.to_metres(crowd.start).to(crowd.speed)
    line = crowd.goal - start
    times = torch.arange(horizon + 1, dtype=line.dtype, device=line.device)[:, None]
    if at_speed:
        length = line.norm(dim=-1).clamp_min(1e-9)
        share = (times * crowd.dt_s * crowd.speed / length).clamp_max(1)
    else:
        share = (times / horizon).expand(-1, len(crowd))
    return start + share[..., None] * line


def clearance(positions: Tensor, pairs: Tensor) -> Tensor:
    """Least distance of each agent to any that matters to it.

    Args:
        positions: shape (..., T + 1, N, 2), metres.
        pairs: bool tensor of shape (N, N), true where j matters to i, as `Crowd.pair_mask`.

    Returns:
        Shape (..., N), metres; infinite where nobody matters.

    Raises:
        ValueError: for pairs of another number of agents.
    """
    if tuple(pairs.shape) != (positions.shape[-2],) * 2:
        raise ValueError(f"pairs {tuple(pairs.shape)}: expected {(positions.shape[-2],) * 2}")
    # as in `companion.forecasting.modified_hausdorff`
    exact = "donot_use_mm_for_euclid_dist"
    gaps = torch.cdist(positions, positions, compute_mode=exact).masked_fill(~pairs, torch.inf)
    return gaps.amin(-1).amin(-2)
