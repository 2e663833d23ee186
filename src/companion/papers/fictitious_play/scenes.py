"""Scenes in which paths were seen: played by the model, simulated, or filmed."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from companion.checks import boolean, tensors, whole
from companion.data.crowds import simulate_crossing
from companion.data.trajectories import Tracks, TrajectoryWindows, cut_windows, load_tracks
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

    Args:
        crowd: N pedestrians.
        cells: their paths, shape (T + 1, N, 2).
        positions: the same in metres, shape (T + 1, N, 2).
        counts: agents, and by reason those that were left out (`off_grid`, `no_goal`) or that no
            policy can follow (`infeasible`); scenes, and those left without anybody.
        kind: shape (N,), class of speed, where it is known.
        index: shape (N,), which of the observed agents stayed.
        windows: what the crowd was cut from, where it was.
        place: shape (N, 2), scene and agent of the windows.
    """

    crowd: Crowd
    cells: Tensor
    positions: Tensor
    counts: dict[str, int]
    kind: Tensor | None = None
    index: Tensor | None = None
    windows: TrajectoryWindows | None = None
    place: Tensor | None = None

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Observed:
        """A copy on a device, with the crowd in a precision; positions keep theirs if they can.

        Args:
            device: None leaves it.
            dtype: of the crowd; None leaves it.
        """
        kind = None if self.kind is None else self.kind.to(device)
        keeps = device is None or has_float64(device)
        positions = self.positions.to(device, None if keeps else torch.float32)
        return dataclasses.replace(
            self,
            crowd=self.crowd.to(device, dtype),
            cells=self.cells.to(device),
            positions=positions,
            kind=kind,
        )

    def with_speed(self, speed: Tensor) -> Observed:
        """The same paths, with other preferred speeds of shape (N,), m/s."""
        return dataclasses.replace(self, crowd=dataclasses.replace(self.crowd, speed=speed))

    def mean_speed(self) -> Tensor:
        """Mean speed of each path, shape (N,), m/s."""
        return self.positions.diff(dim=0).norm(dim=-1).mean(0) / self.crowd.dt_s

    def by_window(self, paths: Tensor) -> Tensor:
        """Sampled paths in the order and frame of the windows that the crowd was cut from.

        Args:
            paths: cells of shape (samples, T + 1, N, 2), such as `Forecast.sample` draws.

        Returns:
            Shape (scenes, agents, samples, T, 2), metres from each window's origin, without the
            start; NaN for agents who were left out.

        Raises:
            ValueError: for a crowd that was not cut from windows, and for other shapes.
        """
        if self.windows is None or self.place is None:
            raise ValueError("windows = None: this crowd was not cut from windows of tracks")
        horizon = self.windows.future.shape[2]
        if paths.ndim != 4 or tuple(paths.shape[1:]) != (horizon + 1, len(self.crowd), 2):
            raise ValueError(
                f"paths {tuple(paths.shape)}: expected (samples, {horizon + 1}, "
                f"{len(self.crowd)}, 2)"
            )
        metres = self.crowd.grid.to_metres(paths[:, 1:].cpu()).permute(2, 0, 1, 3)
        scene, agent = self.place.unbind(1)
        shape = *self.windows.mask.shape, len(paths), horizon, 2
        found = torch.full(shape, torch.nan, dtype=torch.float64)
        found[scene, agent] = metres - self.windows.origin_m[scene][:, None, None].double()
        return found


def observe(
    grid: Grid, dt_s: float, positions: Tensor, goal: Tensor, speed: Tensor, scene: Tensor, *,
    group: Tensor | None = None, kind: Tensor | None = None, log_map: Tensor | None = None, radius_cells: int = 2,
    blocked: Tensor | None = None,
) -> Observed:  # fmt: skip
    """Put tracks on a grid, and count what does not fit.

    Agents that leave the grid or lack a finite goal or speed are left out; those with a step of
    more than R cells stay.

    Args:
        grid: of the scene.
        dt_s: seconds to a step, above 0.
        positions: shape (T + 1, N, 2), metres.
        goal: shape (N, 2), metres.
        speed: shape (N,), preferred speeds, m/s; its dtype is that of every computation.
        scene: shape (N,), who shares a scene.
        group: shape (N,), as in `Crowd`.
        kind: shape (N,), class of speed.
        log_map: shape (H, W), as in `Crowd`.
        radius_cells: R, cells that a step reaches in each direction.
        blocked: boolean, shape (H, W), as in `Crowd`; paths across it count as `infeasible`.

    Raises:
        ValueError: for shapes that disagree, and if nobody is left.
    """
    tensors(positions=positions, goal=goal, speed=speed, scene=scene)
    n = len(speed)
    if positions.ndim != 3 or tuple(positions.shape[1:]) != (n, 2):
        raise ValueError(f"positions {tuple(positions.shape)}: expected (T + 1, {n}, 2)")
    if tuple(goal.shape) != (n, 2):
        raise ValueError(f"goal {tuple(goal.shape)}: expected {(n, 2)}")

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
        blocked=blocked,
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
    kind = None if kind is None else kind[keep]
    return Observed(crowd, cells, positions[:, keep], counts, kind, keep.nonzero()[:, 0])


def self_play(
    n_scenes: int, weights: Weights, *, n_samples: int = 40, horizon: int = 10, iterations: int = 10,
    seed: int = 0, **where: Any,
) -> tuple[Crowd, Tensor, Forecast]:  # fmt: skip
    """Scenes whose paths are drawn from the play of the model itself, so that the truth is known.

    Args:
        n_scenes: at least 1.
        weights: what everybody cares about.
        n_samples: paths a person, at least 1.
        horizon: T, steps.
        iterations: rounds of play.
        seed: of scenes and paths.
        where: as `self_play_crowd`.

    Returns:
        The crowd, paths (samples, T + 1, N, 2), and the forecast that they were drawn from.

    Raises:
        ValueError: for counts below 1.
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

    Args:
        n_scenes: at least 1.
        horizon: T, steps.
        n_agents: of a scene.
        speeds: what the simulated people prefer, m/s; meeting in the middle makes them slower.
        cell_m: side of a cell, metres.
        dt_s: seconds to a step.
        radius_cells: R.
        seed: of the scenes.

    Raises:
        ValueError: for numbers out of range.
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
    scene: str | Tracks,
    root: str | os.PathLike = "",
    *,
    horizon: int = 16,
    cell_m: float = 0.5,
    dt_s: float | None = None,
    radius_cells: int = 2,
    blocked: Tensor | None = None,
) -> tuple[Observed, Observed, Tracks]:
    """Cut a filmed scene into windows, to learn from and to forecast.

    Windows follow each other. A person's goal is the last position of the whole track, the speed
    that of the 1.2 s before the window; members of a group share a number. The map is the log
    occupancy of the tracks to learn from. Who is there for a part of a window only is counted as
    `partial`.

    Args:
        scene: tracks in metres, such as `read_tracks` gives them, or a name for `load_tracks`.
        root: for a name, as in `load_tracks`.
        horizon: T, steps to forecast, at least 1.
        cell_m: side of a cell, metres.
        dt_s: for a name, seconds to a step, 0.4 by default; tracks have their own.
        radius_cells: R, cells that a step reaches in each direction, at least 1.
        blocked: boolean, shape (H, W), cells that nobody enters, as in `observe`. The grid, which
            goes 1 m around all tracks, is `crowd.grid` of what a call without it returns.

    Returns:
        The windows of the first half of the time, those of the second half, and the tracks
        without rows that are not finite, which count as absence.

    Raises:
        ValueError: for a scene that is not in metres, that is empty or too short, for a horizon or
            radius below 1, for cells so small that there would be over ten million and for a map
            of another shape than the grid's.
    """
    whole(1, horizon=horizon, radius_cells=radius_cells)
    if not 0 < cell_m < math.inf:
        raise ValueError(f"cell_m = {cell_m!r}: expected metres above 0")
    if isinstance(scene, Tracks):
        tracks = scene
        if dt_s not in (None, tracks.dt_s):
            raise ValueError(f"dt_s = {dt_s!r}: {tracks.name} has steps of {tracks.dt_s:g} s")
    else:
        tracks = load_tracks(scene, root, dt_s=0.4 if dt_s is None else dt_s)
    if tracks.unit != "m":
        raise ValueError(
            f"scene = {tracks.name!r}: its tracks are in pixels, expected metres (in_metres)"
        )
    tracks = tracks.rows(tracks.position.isfinite().all(1))  # the others are taken as absence
    if not len(tracks.step):
        raise ValueError(f"scene = {tracks.name!r}: expected tracks with finite positions")
    low, high = (tracks.position.aminmax(dim=0)[i] for i in (0, 1))
    (xmin, ymin), (xmax, ymax) = (low - MARGIN_M).tolist(), (high + MARGIN_M).tolist()
    grid = Grid(xmin, xmax, ymin, ymax, cell_m)
    if blocked is not None:
        boolean(grid.shape, blocked=blocked)
    middle = int(tracks.step.min() + tracks.step.max()) // 2
    halves = tracks.between(int(tracks.step.min()), middle), tracks.between(middle, 10**9)
    log_map = log_occupancy(grid, halves[0].position)
    before = max(round(SEEN_S / tracks.dt_s), 1) + 1
    rules = {"log_map": log_map, "radius_cells": radius_cells, "blocked": blocked}
    train, test = (_windows(half, tracks, grid, before, horizon, rules) for half in halves)
    return train, test, tracks


def _windows(
    half: Tracks, tracks: Tracks, grid: Grid, before: int, horizon: int, rules: dict[str, Any]
) -> Observed:
    cut = cut_windows(half, obs_len=before, pred_len=horizon, stride=horizon)
    place = cut.mask.nonzero()
    scene = place[:, 0]
    path = torch.cat([cut.past, cut.future], 2)[cut.mask].double()
    path = (path + cut.origin_m[scene][:, None]).transpose(0, 1)  # (steps, N, 2)
    assert cut.agent is not None  # `cut_windows` sets it
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
    assert found.index is not None  # `observe` sets it
    return dataclasses.replace(
        found, counts=found.counts | cut.left_out, windows=cut, place=place[found.index]
    )


def log_occupancy(grid: Grid, positions: Tensor, sigma_m: float = 0.5) -> Tensor:
    """Log of how often each cell was walked on, blurred, 0 at the busiest.

    One visit of every cell is added, so that a cell that nobody used stays possible.

    Args:
        grid: of the scene.
        positions: shape (..., 2), metres; those off the grid do not count.
        sigma_m: standard deviation of the blur, metres, above 0.

    Returns:
        Shape (H, W), nats.

    Raises:
        ValueError: for a width that is not above 0.
    """
    cells = grid.to_cell(positions).reshape(-1, 2)
    cells = cells[grid.holds(cells)]
    counts = torch.zeros(grid.shape, dtype=torch.float64)
    counts.index_put_((cells[:, 0], cells[:, 1]), torch.ones(len(cells)).double(), accumulate=True)
    busy = smooth(counts, sigma_m, grid.cell_m) + 1
    return (busy / busy.max()).log()
