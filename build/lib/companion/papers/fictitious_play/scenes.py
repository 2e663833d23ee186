"""Scenes in which paths were seen: played by the model, simulated, or filmed."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import whole
from companion.data.crowds import simulate_crossing
from companion.data.trajectories import Tracks, cut_windows, load_tracks
from companion.device import has_float64
from companion.papers.fictitious_play.crowd import Crowd, Weights, self_play_crowd
from companion.papers.fictitious_play.grid import Grid
from companion.papers.fictitious_play.learning import feasible
from companion.papers.fictitious_play.play import FictitiousPlay, Forecast
from companion.papers.fictitious_play.social import smooth

SEEN_S = 1.2  # seconds before the start from which a filmed person's speed is taken
MARGIN_M = 1.0  # of the grid around everything that was filmed


@dataclass(frozen=True, eq=False)
class Observed:
    """A crowd and the paths that it took.

    cells: (T + 1, N, 2). positions: (T + 1, N, 2) in metres. kind: (N,), class of speed, where
    it is known. counts: agents, and by reason those that were left out (`off_grid`, `no_goal`)
    or that no policy can follow (`infeasible`); scenes, and those left without anybody.
    """

    crowd: Crowd
    cells: Tensor
    positions: Tensor
    counts: dict[str, int]
    kind: Tensor | None = None

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Observed:
        """A copy on a device, with the crowd in a precision; positions keep theirs if they can."""
        kind = None if self.kind is None else self.kind.to(device)
        keeps = device is None or has_float64(device)
        positions = self.positions.to(device, None if keeps else torch.float32)
        return Observed(
            self.crowd.to(device, dtype), self.cells.to(device), positions, self.counts, kind
        )

    def walking(self, speed: Tensor) -> Observed:
        """The same paths, with other preferred speeds (N,) in m/s."""
        return dataclasses.replace(self, crowd=dataclasses.replace(self.crowd, speed=speed))

    def walked(self) -> Tensor:
        """Mean speed of each path, (N,) in m/s."""
        return self.positions.diff(dim=0).norm(dim=-1).mean(0) / self.crowd.dt_s


def observe(
    grid: Grid, dt_s: float, positions: Tensor, goal: Tensor, speed: Tensor, scene: Tensor, *,
    group: Tensor | None = None, kind: Tensor | None = None, log_map: Tensor | None = None, radius_cells: int = 2,
) -> Observed:  # fmt: skip
    """Put tracks on a grid, and count what does not fit.

    positions: (T + 1, N, 2) in metres; the rest as in `Crowd`. Agents that leave the grid or
    lack a finite goal or speed are left out; those with a step of more than R cells stay.
    Raises ValueError if nobody is left.
    """
    cells = grid.to_cell(positions.nan_to_num(nan=-1e6))
    inside = grid.holds(cells).all(0)
    aimed = goal.isfinite().all(-1) & speed.isfinite()
    keep = inside & aimed
    if not keep.any():
        raise ValueError(
            f"positions: none of {len(keep)} agents stays on the grid and has a goal and a speed"
        )
    crowd = Crowd(
        grid, dt_s, cells[0, keep], goal[keep], speed[keep], scene[keep],
        group=None if group is None else group[keep], log_map=log_map, radius_cells=radius_cells,
    )  # fmt: skip
    cells = cells[:, keep]
    scenes = len(scene.unique())
    counts = {
        "agents": len(keep),
        "off_grid": int((~inside).sum()),
        "no_goal": int((inside & ~aimed).sum()),
        "infeasible": int((~feasible(crowd, cells)).sum()),
        "scenes": scenes,
        "empty_scenes": scenes - len(crowd.scene.unique()),
    }
    return Observed(crowd, cells, positions[:, keep], counts, None if kind is None else kind[keep])


def self_play(
    n_scenes: int, weights: Weights, *, n_samples: int = 40, horizon: int = 10, iterations: int = 10,
    seed: int = 0, **where: object,
) -> tuple[Crowd, Tensor, Forecast]:  # fmt: skip
    """Scenes whose paths are drawn from the play of the model itself, so that the truth is known.

    where: as `self_play_crowd`. Returns the crowd, paths (samples, T + 1, N, 2), and the
    forecast that they were drawn from.
    """
    whole(1, n_samples=n_samples)
    generator = torch.Generator().manual_seed(seed)
    crowd = self_play_crowd(n_scenes, generator, **where)
    forecast = FictitiousPlay(crowd, weights, horizon, iterations=iterations).run()
    return crowd, forecast.sample(n_samples, generator), forecast


def circle_crossing(
    n_scenes: int, *, horizon: int = 15, n_agents: int = 4, speeds: tuple[float, ...] = (0.8, 1.2, 1.6),
    cell_m: float = 0.4, dt_s: float = 0.4, radius_cells: int = 2, seed: int = 0,
) -> Observed:  # fmt: skip
    """Scenes of the social-force simulator: all want to the other side of a circle.

    speeds: what the simulated people prefer, m/s; meeting in the middle makes them slower.
    """
    paths, goals, kind = simulate_crossing(
        n_scenes, n_agents=n_agents, speeds_mps=speeds, steps=horizon, dt_s=dt_s, seed=seed
    )
    grid = Grid(-5, 5, -5, 5, cell_m)
    positions = paths.transpose(0, 1).flatten(1, 2)
    scene = torch.arange(n_scenes).repeat_interleave(n_agents)
    speed = torch.tensor(speeds, dtype=torch.float64)[kind.flatten()]
    return observe(
        grid, dt_s, positions, goals.flatten(0, 1), speed, scene,
        kind=kind.flatten(), radius_cells=radius_cells,
    )  # fmt: skip


def filmed(
    name: str, root: str | os.PathLike = "", *, horizon: int = 16, cell_m: float = 0.5, dt_s: float = 0.4,
    radius_cells: int = 2,
) -> tuple[Observed, Observed, Tracks]:  # fmt: skip
    """Windows of a filmed scene, one after the other: those of the first half of the time to
    learn from, those of the second half to forecast.

    name, root: as `load_tracks`, in metres. A person's goal is the last position of the whole
    track, the speed that of the 1.2 s before the window; members of a group share a number. The
    map is the log occupancy of the tracks to learn from. Who is there for a part of a window
    only is counted as `partial`.

    Raises ValueError for a scene that is not in metres or that is too short, for a horizon or
    radius below 1 and for cells so small that there would be over a million.
    """
    for key, value in {"horizon": horizon, "radius_cells": radius_cells}.items():
        if value < 1:
            raise ValueError(f"{key} = {value!r}: expected at least 1")
    if not 0 < cell_m < math.inf:
        raise ValueError(f"cell_m = {cell_m!r}: expected metres above 0")
    tracks = load_tracks(name, root, dt_s=dt_s)
    if tracks.unit != "m":
        raise ValueError(f"name = {name!r}: its tracks are in pixels, expected metres")
    low, high = (tracks.position.aminmax(dim=0)[i] for i in (0, 1))
    (xmin, ymin), (xmax, ymax) = (low - MARGIN_M).tolist(), (high + MARGIN_M).tolist()
    grid = Grid(xmin, xmax, ymin, ymax, cell_m)
    middle = int(tracks.step.min() + tracks.step.max()) // 2
    halves = tracks.between(int(tracks.step.min()), middle), tracks.between(middle, 10**9)
    log_map = log_occupancy(grid, halves[0].position)
    before = max(round(SEEN_S / dt_s), 1) + 1
    rules = {"log_map": log_map, "radius_cells": radius_cells}
    train, test = (_windows(half, tracks, grid, before, horizon, rules) for half in halves)
    return train, test, tracks


def _windows(
    half: Tracks, tracks: Tracks, grid: Grid, before: int, horizon: int, rules: dict
) -> Observed:
    cut = cut_windows(half, obs_len=before, pred_len=horizon, stride=horizon)
    scene, _ = cut.mask.nonzero(as_tuple=True)
    path = torch.cat([cut.past, cut.future], 2)[cut.mask].double()
    path = (path + cut.origin_m[scene][:, None]).transpose(0, 1)  # (steps, N, 2)
    agents = cut.agent[cut.mask]
    ends = {agent: tracks.of(agent)[1][-1] for agent in agents.unique().tolist()}
    goal = torch.stack([ends[agent] for agent in agents.tolist()])
    group = torch.full((len(agents),), -1)
    for number, members in enumerate(tracks.groups):
        group[torch.isin(agents, torch.tensor(sorted(members)))] = number
    speed = path[:before].diff(dim=0).norm(dim=-1).mean(0) / tracks.dt_s
    found = observe(
        grid, tracks.dt_s, path[before - 1 :], goal, speed, scene, group=group, **rules
    )
    return dataclasses.replace(found, counts=found.counts | cut.left_out)


def log_occupancy(grid: Grid, positions: Tensor, sigma_m: float = 0.5) -> Tensor:
    """Log of how often each cell was walked on, blurred, 0 at the busiest, (H, W).

    positions: (..., 2) in metres; those off the grid do not count. One visit of every cell is
    added, so that a cell that nobody used stays possible.
    """
    cells = grid.to_cell(positions).reshape(-1, 2)
    cells = cells[grid.holds(cells)]
    counts = torch.zeros(grid.shape, dtype=torch.float64)
    counts.index_put_((cells[:, 0], cells[:, 1]), torch.ones(len(cells)).double(), accumulate=True)
    busy = smooth(counts, sigma_m, grid.cell_m) + 1
    return (busy / busy.max()).log()
