"""Pedestrians with starts, goals and speeds, and the weights of what they care about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from companion.checks import above, boolean, one_dtype, random_source, tensors, whole
from companion.papers.fictitious_play.grid import Grid, goal_distance, speed_errors

SIGMAS_M = (0.35, 0.9)  # intimate and personal distance


@dataclass(frozen=True)
class Weights:
    """What a pedestrian cares about; all in nats per step but for the goal.

    Tensors lose their gradient: plans and play have none in them, `log_partition` has.

    Args:
        speed: lambda, per (m/s)² off the preferred speed.
        goal: alpha, per metre from the goal at the end.
        social: w_m, per expected neighbour at a Gaussian's centre.
        map: per nat of log occupancy of the tracks that were learned from.

    >>> Weights(2.0, 3.0, (4.0, 1.0)).with_social(2).social
    (8.0, 2.0)
    """

    speed: float
    goal: float
    social: tuple[float, ...]
    map: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            object.__setattr__(self, name, _detached(value))

    def alone(self) -> Weights:
        """The same pedestrian taking no notice of others."""
        return replace(self, social=tuple(0.0 for _ in self.social))

    def with_social(self, factor: float) -> Weights:
        """The same with the social weights multiplied by a factor."""
        return replace(self, social=tuple(factor * w for w in self.social))


def _detached(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_detached, value))
    return value.detach() if isinstance(value, Tensor) else value


def check_weights(weights: Weights) -> None:
    """Raise ValueError for a weight that is not finite."""
    # not where they are made: a search of learning may try such ones before it is given up
    for name, value in vars(weights).items():
        if not all(map(math.isfinite, value if name == "social" else [value])):
            raise ValueError(f"weights: {name} = {value!r}, expected finite numbers")


@dataclass(frozen=True, eq=False)
class Crowd:
    """N pedestrians of one or several scenes on one grid.

    Args:
        grid: of all scenes.
        dt_s: seconds to a step, above 0.
        start: cells of shape (N, 2).
        goal: shape (N, 2), metres.
        speed: shape (N,), preferred, m/s; its dtype is that of every computation.
        scene: shape (N,), who shares one; nobody minds people of other scenes.
        group: shape (N,), members of one walking group have one number, -1 is nobody's.
        log_map: shape (H, W), log occupancy of training tracks.
        blocked: boolean, shape (H, W), cells that nobody enters.
        radius_cells: R, cells that a step reaches in each direction, at least 1.

    Raises:
        ValueError: for what is no tensor or of another dtype, shapes that disagree, a time or
            reach that is not positive, or an agent without a finite goal, a speed of at least 0 or
            a start on the grid.
    """

    grid: Grid
    dt_s: float
    start: Tensor
    goal: Tensor
    speed: Tensor
    scene: Tensor
    group: Tensor | None = None
    log_map: Tensor | None = None
    blocked: Tensor | None = None
    radius_cells: int = 2

    def __post_init__(self) -> None:
        above(0, dt_s=self.dt_s)
        whole(1, radius_cells=self.radius_cells)
        tensors(start=self.start, goal=self.goal, speed=self.speed, scene=self.scene)
        optional = {name: getattr(self, name) for name in ("group", "log_map", "blocked")}
        tensors(**{name: value for name, value in optional.items() if value is not None})
        n = len(self.speed)
        for name in ("start", "goal", "scene", "group"):
            value, shape = getattr(self, name), (n, 2) if name in ("start", "goal") else (n,)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} {tuple(value.shape)}: expected {shape}")
        if self.log_map is not None and tuple(self.log_map.shape) != self.grid.shape:
            raise ValueError(f"log_map {tuple(self.log_map.shape)}: expected {self.grid.shape}")
        if self.blocked is not None:
            boolean(self.grid.shape, blocked=self.blocked)
        one_dtype(speed=self.speed)
        if self.start.is_floating_point():
            raise ValueError(f"start: {self.start.dtype}, expected whole cells (Grid.to_cell)")
        if not (self.speed >= 0).all():
            raise ValueError(f"speed: the least is {self.speed.min():g}, expected at least 0")
        for name, bad in (
            ("goal", ~self.goal.isfinite().all(-1)),
            ("start", ~self.grid.holds(self.start)),
        ):
            if bad.any():
                raise ValueError(
                    f"{name}: agents {bad.nonzero().flatten().tolist()[:5]} have none on the ground plane"
                )

    def __len__(self) -> int:
        return len(self.speed)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Crowd:
        """A copy on a device and in a precision.

        Args:
            device: None leaves it.
            dtype: of positions and speeds; None leaves it.
        """
        tensors = {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}
        # both at once: the device may lack the precision that is left
        moved: dict[str, Any] = {
            k: v.to(device, dtype if v.is_floating_point() else None) for k, v in tensors.items()
        }
        return replace(self, **moved)

    def pair_mask(self, mask_groups: bool = True) -> Tensor:
        """Who matters to whom.

        Args:
            mask_groups: members of one walking group do not mind each other.

        Returns:
            Boolean (N, N), true where j matters to i: same scene, another agent, another group.
        """
        same = self.scene[:, None] == self.scene
        same.fill_diagonal_(False)
        if mask_groups and self.group is not None:
            same &= ~((self.group[:, None] == self.group) & (self.group >= 0))
        return same

    def take(self, keep: Tensor) -> Crowd:
        """The agents of a mask or an index."""
        group = None if self.group is None else self.group[keep]
        return replace(
            self, start=self.start[keep], goal=self.goal[keep], speed=self.speed[keep],
            scene=self.scene[keep], group=group,
        )  # fmt: skip

    def repeat(self, times: int) -> Crowd:
        """The crowd so many times, each in scenes of its own, which are numbered anew from 0.

        Raises:
            ValueError: for a negative number.
        """
        whole(0, times=times)
        scenes, number = self.scene.unique(return_inverse=True)  # whatever the scenes' own numbers
        copy = torch.arange(times, device=self.scene.device).repeat_interleave(len(self))
        index = torch.arange(len(self), device=self.scene.device).repeat(times)
        return replace(self.take(index), scene=number[index] + copy * len(scenes))

    def errors(self) -> Tensor:
        """Squared speed errors of all steps, (N, 2R+1, 2R+1)."""
        return speed_errors(self.grid, self.dt_s, self.speed, self.radius_cells)

    def distances(self) -> Tensor:
        """Metres from every cell to each agent's goal, (N, H, W)."""
        return goal_distance(self.grid, self.goal.to(self.speed))

    def ground(self, weights: Weights, horizon: int) -> Tensor:
        """What cells are worth in themselves at every step, (T, N, H, W), a view of (H, W)."""
        worth = torch.zeros(self.grid.shape, dtype=self.speed.dtype, device=self.speed.device)
        if self.log_map is not None:
            worth = weights.map * self.log_map.to(worth)
        if self.blocked is not None:
            worth = worth.masked_fill(self.blocked, -torch.inf)
        return worth.expand(horizon, len(self), *self.grid.shape)


def head_on(
    weight: float, *, cell_m: float = 0.4, dt_s: float = 0.4, radius_cells: int = 2,
    speed_mps: float = 1.2, dtype: torch.dtype = torch.float64,
) -> tuple[Crowd, Weights]:  # fmt: skip
    """Two people walking straight at each other, images of each other under half a turn.

    Args:
        weight: w; the social weights are (w, w / 8).
        cell_m: side of a cell, metres.
        dt_s: seconds to a step.
        radius_cells: R.
        speed_mps: preferred speed of both.
        dtype: of every computation.

    Returns:
        The crowd and the weights.
    """
    grid = Grid(-4, 4, -4, 4, cell_m)
    places = torch.tensor([[-1.8, 0.2], [1.8, -0.2]], dtype=dtype)
    crowd = Crowd(
        grid, dt_s, grid.to_cell(places), -1.2 * places,
        torch.full((2,), speed_mps, dtype=dtype), torch.zeros(2, dtype=torch.long),
        radius_cells=radius_cells,
    )  # fmt: skip
    return crowd, Weights(2.0, 3.0, (weight, weight / 8))


def self_play_crowd(
    n_scenes: int, generator: torch.Generator, *, n_agents: int = 3, speeds: Sequence[float] = (0.8, 1.2, 1.6),
    cell_m: float = 0.4, dt_s: float = 0.4, radius_cells: int = 2, dtype: torch.dtype = torch.float64,
) -> Crowd:  # fmt: skip
    """Scenes of people on a circle of 2.2 m who want to the other side, 1.3 times as far.

    They stand evenly around the circle, turned and shaken by a random angle.

    Args:
        n_scenes: at least 1.
        generator: a CPU generator.
        n_agents: of a scene, at least 1.
        speeds: m/s, from which everybody's is drawn.
        cell_m: side of a cell, metres.
        dt_s: seconds to a step.
        radius_cells: R.
        dtype: of every computation.

    Raises:
        ValueError: for counts below 1, no speeds and a seed in place of a generator.
    """
    whole(1, n_scenes=n_scenes, n_agents=n_agents)
    random_source(generator=generator)
    if not len(speeds):
        raise ValueError("speeds = []: expected at least one, in m/s")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    share = 2 * torch.pi / n_agents
    even = share * torch.arange(n_agents, dtype=torch.float64)
    turn = 2 * torch.pi * uniform(n_scenes, 1)
    angle = (turn + even + 0.6 * share * (uniform(n_scenes, n_agents) - 0.5)).flatten()
    place = 2.2 * torch.stack([angle.cos(), angle.sin()], -1)
    kind = torch.randint(len(speeds), (len(angle),), generator=generator)
    scene = torch.arange(n_scenes).repeat_interleave(n_agents)
    grid = Grid(-4, 4, -4, 4, cell_m)
    return Crowd(
        grid, dt_s, grid.to_cell(place), (-1.3 * place).to(dtype),
        torch.tensor(speeds, dtype=dtype)[kind], scene, radius_cells=radius_cells,
    )  # fmt: skip
