"""The ground as cells, and what a step on it is worth to a pedestrian."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import above
from companion.device import has_float64

MOST_CELLS = 10_000_000


@dataclass(frozen=True)
class Grid:
    """A rectangle of the ground plane cut into square cells.

    Row 0 lies at ymin, column 0 at xmin; the last row and column may reach beyond the rectangle.

    Args:
        xmin: side in metres.
        xmax: likewise.
        ymin: likewise.
        ymax: likewise.
        cell_m: side of a cell, metres.

    Raises:
        ValueError: for an empty rectangle, a cell that is not finite and above 0, or over ten
            million cells.

    >>> grid = Grid(-4, 4, -4, 4, 0.4)
    >>> grid.shape
    (20, 20)
    >>> grid.to_cell(torch.tensor([0.1, -3.9])).tolist()
    [0, 10]
    """

    xmin: float
    xmax: float
    ymin: float
    ymax: float
    cell_m: float

    def __post_init__(self) -> None:
        above(0, cell_m=self.cell_m)
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
        rows, columns = (
            math.ceil(round(length / self.cell_m, 6))
            for length in (self.ymax - self.ymin, self.xmax - self.xmin)
        )
        return rows, columns

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
    """Squared deviation of every step's speed from the preferred one.

    Args:
        grid: of the scene.
        dt_s: seconds to a step, above 0.
        speed_mps: shape (N,), m/s.
        radius_cells: R, at least 1.

    Returns:
        Shape (N, 2R+1, 2R+1), (m/s)².

    Raises:
        ValueError: for numbers out of range.
    """
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

    Args:
        grid: of the scene.
        dt_s: seconds to a step, above 0.
        speed_mps: shape (N,), preferred speeds, m/s.
        weight: λ, in nats/(m/s)².
        radius_cells: R, at least 1; a step goes up to R rows and R columns away.

    Returns:
        Log kernels of shape (N, 2R+1, 2R+1); entry [R + i, R + j] is i rows up and j columns right.

    Raises:
        ValueError: for numbers out of range.

    >>> speed_kernel(Grid(-4, 4, -4, 4, 0.4), 0.4, torch.tensor([1.0]), 2.0, radius_cells=1)
    tensor([[[-0.3431, -0.0000, -0.3431],
             [-0.0000, -2.0000, -0.0000],
             [-0.3431, -0.0000, -0.3431]]])
    """
    return -weight * speed_errors(grid, dt_s, speed_mps, radius_cells)


def goal_distance(grid: Grid, goal: Tensor) -> Tensor:
    """Distance of every cell's centre from goals (N, 2) in metres, (N, rows, columns)."""
    centres = grid.centres().to(goal)
    return (centres - goal[:, None, None]).norm(dim=-1)
