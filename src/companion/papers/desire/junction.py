"""A T-junction with known truth: where people walk in, where they may leave, and where they do.

Four arms, 4 m wide, leave the origin to the east, north, west and south; each scene lacks one of
them. Nobody's past tells his exit, and only the raster tells which arm is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import above, at_least
from companion.data.crowds import Repulsion, social_force
from companion.data.trajectories import TrajectoryWindows

ARMS = ("east", "north", "west", "south")
HALF_WIDTH_M = 2.0
CELLS, METERS_PER_CELL = 64, 0.5
REPULSION = Repulsion(strength=3.0, reach_m=0.5, decay_m=0.35, behind=0.3)
TYPICAL_SPEED = 1.3


@dataclass(frozen=True, eq=False)
class Junction:
    """Simulated scenes and their truth.

    Args:
        windows: what a forecaster gets; origin (0, 0), raster 1 where people may walk.
        entry: shape (scenes, agents), index into ARMS.
        exit: likewise.
        missing: shape (scenes,), the arm that is not there.
    """

    windows: TrajectoryWindows
    entry: Tensor
    exit: Tensor
    missing: Tensor

    def valid(self, paths: Tensor) -> Tensor:
        """Whether paths end in one of the two possible exits.

        Args:
            paths: shape (scenes, agents, ..., steps, 2).

        Returns:
            Boolean, shape (scenes, agents, ...).
        """
        arm = arm_of(paths[..., -1, :])
        more = (...,) + (None,) * (arm.ndim - 2)
        entry = self.entry.to(arm.device)[more]
        missing = self.missing[:, None].to(arm.device)[more]
        return (arm != entry) & (arm != missing)


def arm_directions(dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit vectors of ARMS, (4, 2)."""
    return torch.tensor([[1, 0], [0, 1], [-1, 0], [0, -1]], dtype=dtype)


def arm_of(points: Tensor) -> Tensor:
    """The arm towards which points lie.

    Args:
        points: shape (..., 2), metres.

    Returns:
        Indices into ARMS of shape (...).

    >>> ARMS[arm_of(torch.tensor([-3.0, 1.0]))]
    'west'
    """
    return (points @ arm_directions(points.dtype).to(points.device).T).argmax(-1)


def walkway() -> Tensor:
    """Where people may walk, (4, 1, 64, 64): picture k is of a junction without arm k, rows along y."""
    middle = (torch.arange(CELLS, dtype=torch.float64) + 0.5 - CELLS / 2) * METERS_PER_CELL
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    along = torch.stack([x, y, -x, -y])
    across = torch.stack([y, x, y, x]).abs()
    arms = (along > -HALF_WIDTH_M) & (across < HALF_WIDTH_M)
    pictures = [arms[[k for k in range(4) if k != missing]].any(0) for missing in range(4)]
    return torch.stack(pictures)[:, None].float()


def simulate_tjunction(
    n_scenes: int,
    *,
    n_agents: int = 4,
    obs_len: int = 8,
    pred_len: int = 12,
    dt_s: float = 0.4,
    noise_m: float = 0.02,
    repulsion: Repulsion = REPULSION,
    seed: int = 0,
) -> Junction:
    """Let people walk through junctions that lack one arm each.

    A walker starts 4.6 to 6.6 m out in an arm that is there, prefers a speed of N(1.3, 0.15) in
    [0.9, 1.7] m/s, heads for the crossing, then for a point 3 m into one of the other two arms, drawn
    evenly, then for one 14 m out, 0.2 to 1.5 m to the right of the middle. Whoever is faster or is
    seen for longer than 8 steps starts further out, so that the last seen position is 1 to 3 m before
    the origin and no turn has begun.

    Args:
        n_scenes: at least 1.
        n_agents: of a scene, at least 1.
        obs_len: steps seen, at least 2.
        pred_len: steps to predict, at least 1.
        dt_s: seconds to a step, above 0.
        noise_m: standard deviation of the measurement, added to all steps.
        repulsion: how walkers push each other.
        seed: of everything.

    Raises:
        ValueError: for counts or numbers out of range, or a time that takes too many substeps.

    >>> junction = simulate_tjunction(2)
    >>> junction.windows.past.shape, junction.windows.raster.shape
    (torch.Size([2, 4, 8, 2]), torch.Size([4, 1, 64, 64]))
    """
    lowest = {"n_scenes": (n_scenes, 1), "n_agents": (n_agents, 1), "pred_len": (pred_len, 1)}
    for name, (value, least) in {**lowest, "obs_len": (obs_len, 2)}.items():
        if value < least:
            raise ValueError(f"{name} = {value!r}: expected at least {least}")
    above(0, dt_s=dt_s)
    at_least(0, noise_m=noise_m)
    generator = torch.Generator().manual_seed(seed)
    shape = (n_scenes, n_agents)

    def between(low: float, high: float, *more: int) -> Tensor:
        drawn = torch.rand((*shape, *more), generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    missing = torch.randint(4, (n_scenes,), generator=generator)
    # arms that are there, counted on from the missing one: 1, 2 or 3 further
    place = torch.randint(3, shape, generator=generator)
    other = torch.randint(2, shape, generator=generator)
    entry = (missing[:, None] + 1 + place) % 4
    exit_ = (missing[:, None] + 1 + (place + 1 + other) % 3) % 4
    speed = (TYPICAL_SPEED + 0.15 * normal(*shape)).clamp(0.9, 1.7)
    seen_s = (obs_len - 1) * dt_s
    out = between(4.6, 6.6) - 7 * 0.4 * TYPICAL_SPEED + seen_s * speed

    arms = arm_directions()
    into, away = arms[entry], arms[exit_]
    side_in, side_out = (torch.stack([-a[..., 1], a[..., 0]], -1) for a in (into, away))
    lane_in, lane_out = between(0.2, 1.5, 1), between(-1.5, -0.2, 1)  # to the right
    start = out[..., None] * into + lane_in * side_in
    crossing = lane_in * side_in
    targets = [3.0 * away + lane_out * side_out, 14.0 * away + lane_out * side_out]
    waypoints = torch.stack([crossing, *targets], -2)
    path = social_force(
        start,
        waypoints,
        speed,
        repulsion,
        steps=obs_len + pred_len - 1,
        dt_s=dt_s,
        arrival_m=0.8,
    ).transpose(-3, -2)
    path = (path + noise_m * normal(*path.shape)).float()
    windows = TrajectoryWindows(
        past=path[..., :obs_len, :].contiguous(),
        future=path[..., obs_len:, :].contiguous(),
        mask=torch.ones(shape, dtype=torch.bool),
        frame_dt_s=dt_s,
        origin_m=torch.zeros(n_scenes, 2, dtype=torch.float64),
        raster=walkway(),
        meters_per_cell=METERS_PER_CELL,
        raster_index=missing,
    )
    return Junction(windows, entry, exit_, missing)


def off_walkway_rate(paths: Tensor, windows: TrajectoryWindows) -> Tensor:
    """Fraction of the points of paths that are off the walkway.

    Reads the first channel of the raster, above one half where people may walk; beyond its edge
    nobody may.

    Args:
        paths: shape (scenes, agents, ..., steps, 2).
        windows: the scenes.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: without a raster or the side of its cells.
    """
    if windows.raster is None or windows.raster_index is None:
        raise ValueError("windows.raster = None: expected a picture of where people may walk")
    if windows.meters_per_cell is None:
        raise ValueError("windows.meters_per_cell = None: expected the side of a raster's cell")
    height, width = windows.raster.shape[-2:]
    world = paths + windows.origin_m.to(paths).view(-1, *(1,) * (paths.ndim - 2), 2)
    cell = (world / windows.meters_per_cell).floor().long()
    column, row = cell[..., 0] + width // 2, cell[..., 1] + height // 2
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    picture = windows.raster_index.view(-1, *(1,) * (column.ndim - 1)).expand_as(column)
    free = windows.raster[picture, 0, row.clamp(0, height - 1), column.clamp(0, width - 1)]
    off = ~(inside & (free > 0.5))
    present = windows.mask.view(*windows.mask.shape, *(1,) * (off.ndim - 2)).expand_as(off)
    return off[present].cpu().double().mean()
