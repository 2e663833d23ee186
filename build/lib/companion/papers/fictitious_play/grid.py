"""The ground as cells, and what a step on it is worth to a pedestrian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.device import has_float64

MOST_CELLS = 10_000_000


@dataclass(frozen=True)
class Grid:
    """A rectangle of the ground plane cut into square cells.

    xmin, xmax, ymin, ymax: sides in metres; the last row and column may reach beyond.
    cell_m: side of a cell in metres. Row 0 lies at ymin, column 0 at xmin.

    Raises ValueError for an empty rectangle, a cell that is not positive, or more cells than
    anything here can hold.

    >>> Grid(-4, 4, -4, 4, 0.4).shape
    (20, 20)
    """

    xmin: float
    xmax: float
    ymin: float
    ymax: float
    cell_m: float

    def __post_init__(self) -> None:
        if not self.cell_m > 0:
            raise ValueError(f"cell_m = {self.cell_m!r}: expected a length above 0")
        sides = self.xmax - self.xmin, self.ymax - self.ymin
        if not min(sides) > 0:
            raise ValueError(
                f"x in [{self.xmin}, {self.xmax}], y in [{self.ymin}, {self.ymax}]: expected xmin < xmax and ymin < ymax"
            )
        if not sides[0] / self.cell_m * (sides[1] / self.cell_m) <= MOST_CELLS:
            raise ValueError(
                f"cell_m = {self.cell_m!r}: {sides[0]:g} x {sides[1]:g} m in such cells, expected at most {MOST_CELLS:,}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (along y) and columns (along x)."""
        # 8 / 0.4 is 20.000000000000004: do not let rounding add a row
        return tuple(
            math.ceil(round(length / self.cell_m, 6))
            for length in (self.ymax - self.ymin, self.xmax - self.xmin)
        )

    def to_cell(self, points: Tensor) -> Tensor:
        """Cells (..., 2) as (row, column) of points (..., 2) as (x, y) in metres.

        Points off the grid get cells off the grid; see `holds`.
        """
        exact = points.double() if has_float64(points.device) else points.cpu().double()
        low = torch.tensor([self.xmin, self.ymin], dtype=torch.float64, device=exact.device)
        # a point on a border belongs to the upper cell, whatever the rounding
        scaled = (exact - low) / self.cell_m + 1e-9
        return scaled.floor().long().flip(-1).to(points.device)

    def to_metres(self, cells: Tensor) -> Tensor:
        """Centres (..., 2) as (x, y) in metres of cells (..., 2), in float64 where there is one."""
        dtype = torch.float64 if has_float64(cells.device) else torch.float32
        low = torch.tensor([self.xmin, self.ymin], dtype=dtype, device=cells.device)
        return low + (cells.flip(-1).to(dtype) + 0.5) * self.cell_m

    def holds(self, cells: Tensor) -> Tensor:
        """Whether each cell (..., 2) lies on the grid, (...)."""
        size = torch.tensor(self.shape, device=cells.device)
        return ((cells >= 0) & (cells < size)).all(-1)

    def centres(self) -> Tensor:
        """Centres of all cells, (rows, columns, 2) as (x, y) in metres."""
        rows, columns = (torch.arange(size) for size in self.shape)
        return self.to_metres(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1))


def speed_errors(grid: Grid, dt_s: float, speed_mps: Tensor, radius_cells: int = 2) -> Tensor:
    """Squared deviation of every step's speed from the preferred one, (N, 2R+1, 2R+1) in (m/s)²."""
    if radius_cells < 1:
        raise ValueError(f"radius_cells = {radius_cells!r}: expected at least 1")
    if not dt_s > 0:
        raise ValueError(f"dt_s = {dt_s!r}: expected a time above 0")
    reach = torch.arange(-radius_cells, radius_cells + 1, dtype=speed_mps.dtype)
    length = torch.hypot(reach[:, None], reach[None, :]).to(speed_mps.device) * grid.cell_m
    return (length / dt_s - speed_mps[:, None, None]).square()


def speed_kernel(
    grid: Grid, dt_s: float, speed_mps: Tensor, weight: Tensor | float, *, radius_cells: int = 2
) -> Tensor:
    """Reward of every step for its speed, κ(a) = -λ (|a| ℓ / Δt - v)².

    dt_s: seconds a step. speed_mps: (N,) preferred speeds. weight: λ, in nats/(m/s)².
    radius_cells: R; a step goes up to R rows and R columns away.
    Returns log kernels (N, 2R+1, 2R+1); entry [R + i, R + j] is i rows up and j columns right.
    """
    return -weight * speed_errors(grid, dt_s, speed_mps, radius_cells)


def goal_distance(grid: Grid, goal: Tensor) -> Tensor:
    """Distance of every cell's centre from goals (N, 2) in metres, (N, rows, columns)."""
    centres = grid.centres().to(goal)
    return (centres - goal[:, None, None]).norm(dim=-1)
