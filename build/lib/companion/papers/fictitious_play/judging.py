"""How well a forecast explains what was seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import whole
from companion.papers.fictitious_play.crowd import Crowd
from companion.papers.fictitious_play.planning import Policy


def nll_per_step(policy: Policy, cells: Tensor) -> Tensor:
    """Negative log-likelihood of paths in nats a step, infinite for infeasible ones.

    It depends on the size of the cells and on R: compare it on one grid only.
    cells: (T + 1, N, 2) or (K, T + 1, N, 2). Returns (N,) or (K, N).
    """
    if cells.ndim == 4:
        return torch.stack([nll_per_step(policy, path) for path in cells])
    return -policy.log_prob(cells) / (len(cells) - 1)


@dataclass(frozen=True)
class Score:
    """Mean likelihood of those paths that can be walked on the grid, and how many cannot."""

    nats_per_step: float
    paths: int
    infeasible: int


def score(policy: Policy, cells: Tensor) -> Score:
    """Mean `nll_per_step` over feasible paths, with a count of the others."""
    each = nll_per_step(policy, cells)
    fine = each.isfinite()
    mean = each[fine].mean().item() if fine.any() else float("nan")
    return Score(mean, each.numel(), int((~fine).sum()))


def straight_lines(crowd: Crowd, horizon: int, *, at_speed: bool = True) -> Tensor:
    """Places on the straight line to the goal, (T + 1, N, 2) in metres.

    at_speed: walk at the preferred speed and stop at the goal; otherwise be there at the end.
    """
    whole(1, horizon=horizon)
    start = crowd.grid.to_metres(crowd.start).to(crowd.speed)
    way = crowd.goal - start
    times = torch.arange(horizon + 1, dtype=way.dtype, device=way.device)[:, None]
    if at_speed:
        length = way.norm(dim=-1).clamp_min(1e-9)
        share = (times * crowd.dt_s * crowd.speed / length).clamp_max(1)
    else:
        share = (times / horizon).expand(-1, len(crowd))
    return start + share[..., None] * way


def clearance(positions: Tensor, pairs: Tensor) -> Tensor:
    """Least distance in metres of each agent to any that matters to it, (..., N); inf if none.

    positions: (..., T + 1, N, 2) metres. pairs: (N, N), true where j matters to i.
    """
    if tuple(pairs.shape) != (positions.shape[-2],) * 2:
        raise ValueError(f"pairs {tuple(pairs.shape)}: expected {(positions.shape[-2],) * 2}")
    gaps = torch.cdist(positions, positions).masked_fill(~pairs, torch.inf)
    return gaps.amin(-1).amin(-2)
