"""Gaps of tracks, which a detector leaves, filled along straight lines."""

from __future__ import annotations

import dataclasses

import torch

from companion.checks import whole
from companion.data.trajectories.tracks import Tracks


def fill_gaps(tracks: Tracks, *, longest: int) -> Tracks:
    """Fill short gaps within each track by linear interpolation; nothing is extrapolated.

    Positions that are not finite count as missing.

    Args:
        tracks: of one scene.
        longest: steps in a row that may be missing, at least 0; a longer gap stays as it is.

    Returns:
        A copy with further rows, in which `filled` marks them: `int(filled.sum())` positions. All
        other rows are as they were, but those that are not finite are gone.

    Raises:
        ValueError: for a `longest` out of range, and tracks with an agent twice at a step.

    >>> step = torch.tensor([0, 1, 4])
    >>> walk = Tracks("one", step, 0 * step, torch.stack([step, -step], 1).double(), dt_s=0.4)
    >>> whole_walk = fill_gaps(walk, longest=2)
    >>> whole_walk.position[:, 0].tolist(), int(whole_walk.filled.sum())
    ([0.0, 1.0, 2.0, 3.0, 4.0], 2)
    """
    whole(0, longest=longest)
    tracks = tracks.rows(tracks.position.isfinite().all(1))
    # by agent, then by step
    order = tracks.step.argsort(stable=True)
    order = order[tracks.agent[order].argsort(stable=True)]
    step, agent, position = tracks.step[order], tracks.agent[order], tracks.position[order]
    before = tracks.filled
    filled = torch.zeros_like(step, dtype=torch.bool) if before is None else before[order]
    same = agent.diff() == 0
    if (same & (step.diff() == 0)).any():
        raise ValueError(f"{tracks.name}: an agent is at two places at one step")
    missing = torch.where(same, step.diff() - 1, 0)
    missing = missing.masked_fill(missing > longest, 0)
    left = torch.arange(len(missing)).repeat_interleave(missing)  # the row before each new one
    first = missing.cumsum(0) - missing
    k = torch.arange(len(left)) - first[left] + 1  # how far into its gap a new row is
    share = (k.double() / (missing[left] + 1))[:, None]
    start, end = position[left], position[left + 1]
    new = start + share * (end - start)
    step = torch.cat([step, step[left] + k])
    agent = torch.cat([agent, agent[left]])
    order = step.argsort(stable=True)
    order = order[agent[order].argsort(stable=True)]
    return dataclasses.replace(
        tracks,
        step=step[order],
        agent=agent[order],
        position=torch.cat([position, new.to(position)])[order],
        filled=torch.cat([filled, torch.ones_like(left, dtype=torch.bool)])[order],
    )
