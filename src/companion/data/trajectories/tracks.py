"""The tracks of one scene as a table on a common clock."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.checks import above
from companion.data.files import Row
from companion.data.root import CorruptDataError

FARTHEST = 1e7  # no scene is so large, in metres or pixels


@dataclass(frozen=True, eq=False)
class Tracks:
    """The tracks of one scene on a common clock, sorted by agent and time.

    Somebody who was sampled between the others' frames has the step that has begun by then.

    Args:
        name: what errors call the scene.
        step: int64 tensor of shape (rows,), time in units of `dt_s` seconds.
        agent: int64 tensor of shape (rows,).
        position: float64 tensor of shape (rows, 2), x and y in `unit`.
        dt_s: seconds to a step.
        unit: "m" (metres) or "px" (pixels: x is the column, y the row).
        groups: people who walk together.
        labels: kind of an agent, where the set tells it.
        picture: file of the reference picture.
        to_pixels: 3 by 3, takes (x, y, 1) to (column, row, 1) there, up to the third component.
        metres_per_pixel: the set's estimate for a scene in pixels.
        left_out: how many rows were dropped, by reason: positions that are `not_finite`, copies
            that are `repeated`, rows `between_steps` of the clock, and what the set itself calls
            `lost` or withholds (`unknown`).
        checksum: sha256 of the file.
        frames_per_step: frames of the file to a step; None for tracks of no file.
        first_frame: the file's frame of step 0, likewise.
        filled: bool tensor of shape (rows,), positions that `fill_gaps` interpolated; None before.

    >>> step, agent = torch.tensor([0, 1, 1]), torch.tensor([7, 7, 9])
    >>> tracks = Tracks("mine", step, agent, torch.rand(3, 2).double(), dt_s=0.4)
    >>> tracks.agents.tolist()
    [7, 9]
    """

    name: str
    step: Tensor
    agent: Tensor
    position: Tensor
    dt_s: float
    unit: str = "m"
    groups: tuple[frozenset[int], ...] = ()
    labels: dict[int, str] = field(default_factory=dict)
    picture: Path | None = None
    to_pixels: Tensor | None = None
    metres_per_pixel: float | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    checksum: str = ""
    frames_per_step: int | None = None
    first_frame: int | None = None
    filled: Tensor | None = None

    @property
    def agents(self) -> Tensor:
        """Their numbers, ascending."""
        return self.agent.unique()

    def of(self, agent: int) -> tuple[Tensor, Tensor]:
        """Steps and positions of one agent, in time.

        Returns:
            Steps of shape (T,) and positions of shape (T, 2).

        Raises:
            KeyError: if there is no such agent.
        """
        rows = self.agent == agent
        if not rows.any():
            raise KeyError(f"{self.name} has no agent {agent}")
        step, order = self.step[rows].sort(stable=True)  # own tables may be in another order
        return step, self.position[rows][order]

    def rows(self, chosen: Tensor) -> Tracks:
        """A copy with the rows of a boolean mask of shape (rows,)."""
        return dataclasses.replace(
            self,
            step=self.step[chosen],
            agent=self.agent[chosen],
            position=self.position[chosen],
            filled=None if self.filled is None else self.filled[chosen],
        )

    def between(self, start: int, stop: int) -> Tracks:
        """A copy with the steps start <= step < stop."""
        return self.rows((self.step >= start) & (self.step < stop))

    def pixels(self, position: Tensor) -> Tensor:
        """Where positions lie in the reference picture.

        Args:
            position: shape (..., 2), in `unit`.

        Returns:
            Shape (..., 2), as (column, row).

        Raises:
            ValueError: if no map to a picture is known.
        """
        if self.to_pixels is None:
            raise ValueError(f"{self.name}: no map from {self.unit} to a picture is known")
        return transform(self.to_pixels, position)

    def in_metres(self, metres_per_pixel: float | None = None) -> Tracks:
        """A copy in metres.

        Args:
            metres_per_pixel: metres that one pixel covers; None takes the set's own estimate.

        Raises:
            ValueError: if the scene is in pixels and there is no scale; for a scale of one that is
                in metres; and for a scale that is not finite and above 0.
        """
        if self.unit == "m":
            if metres_per_pixel is not None:
                raise ValueError(
                    f"metres_per_pixel = {metres_per_pixel!r}: {self.name} is in metres already"
                )
            return self
        scale = self.metres_per_pixel if metres_per_pixel is None else metres_per_pixel
        if scale is None:
            raise ValueError(
                f"metres_per_pixel = {scale!r}: {self.name} is in pixels and has no scale of "
                "its own; give the metres that one pixel covers"
            )
        above(0, metres_per_pixel=scale)
        back = torch.diag(torch.tensor([1 / scale, 1 / scale, 1.0], dtype=torch.float64))
        return dataclasses.replace(
            self,
            position=self.position * scale,
            unit="m",
            to_pixels=None if self.to_pixels is None else self.to_pixels @ back,
        )


def transform(homography: Tensor, points: Tensor) -> Tensor:
    """Apply a 3 by 3 homography to points of shape (..., 2); computed in its own precision."""
    exact = points.to(homography.dtype)
    mapped = torch.cat([exact, torch.ones_like(exact[..., :1])], -1) @ homography.T
    mapped = mapped[..., :2] / mapped[..., 2:]
    return mapped.to(points.dtype) if points.is_floating_point() else mapped


def make_tracks(
    name: str,
    path: Path,
    table: np.ndarray,
    *,
    dt_s: float,
    frames: int = 1,
    phase: int | None = 0,
    left_out: dict[str, int] | None = None,
) -> Tracks:
    """Make tracks of a file's rows, once they have been checked.

    Args:
        name: of the scene.
        path: the file, which errors name.
        table: (rows, 4), frame, agent, x, y.
        dt_s: seconds to a step.
        frames: frames to a step.
        phase: the frame of step 0; None is the file's first.
        left_out: what has been dropped already, by reason.

    Raises:
        CorruptDataError: for rows that cannot be, none at all, an agent at two positions in one
            frame, and an agent whose rows are not whole steps apart.
    """
    left_out = dict(left_out or {})
    check_whole(path, None, table[:, :2], "frame and id")
    finite = np.isfinite(table).all(1)
    if not finite.all():
        left_out["not_finite"] = int((~finite).sum())
        table = table[finite]
    far = np.abs(table[:, 2:]) > FARTHEST
    if far.any():
        raise CorruptDataError(
            f"{path}: expected places below {FARTHEST:g}, got {table[:, 2:][far][0]}"
        )
    table = table[np.lexsort((table[:, 0], table[:, 1]))]
    copies = np.zeros(len(table), dtype=bool)
    copies[1:] = (table[1:] == table[:-1]).all(1)
    if copies.any():
        left_out["repeated"] = int(copies.sum())
        table = table[~copies]
    if not len(table):
        raise CorruptDataError(
            f"{path}: no row at a step of {dt_s:g} s is left; dropped: {left_out}"
        )
    frame, agent = table[:, :2].astype(np.int64).T
    same = agent[1:] == agent[:-1]
    twice = same & (frame[1:] == frame[:-1])
    if twice.any():
        at = int(twice.argmax())
        raise CorruptDataError(f"{path}: agent {agent[at]} is at two places in frame {frame[at]}")
    off = same & (np.diff(frame) % frames != 0)
    if off.any():
        at = int(off.argmax())
        raise CorruptDataError(
            f"{path}: agent {agent[at]} is in frames {frame[at]} and {frame[at + 1]}, expected "
            f"multiples of {frames} frames between (a step of {dt_s:g} s here)"
        )
    first = int(frame.min()) if phase is None else phase
    step = (frame - first) // frames
    return Tracks(
        name=name,
        step=torch.from_numpy(step),
        agent=torch.from_numpy(agent),
        position=torch.from_numpy(np.ascontiguousarray(table[:, 2:])),
        dt_s=dt_s,
        left_out=left_out,
        checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
        frames_per_step=frames,
        first_frame=first,
    )


def check_whole(path: Path, rows: list[Row] | None, table: np.ndarray, what: str) -> None:
    """Check that all entries are whole numbers that 53 bits hold.

    Args:
        path: the file, which errors name.
        rows: with the lines' numbers, where they are known.
        table: (rows, columns), to check.
        what: the columns' names.

    Raises:
        CorruptDataError: naming the file, and the line where `rows` tells it.
    """
    wrong = ~((table == np.floor(table)) & (np.abs(table) < 2**53)).all(1)
    if wrong.any():
        at = int(wrong.argmax())
        line = "" if rows is None else f", line {rows[at][0]}"
        raise CorruptDataError(
            f"{path}{line}: expected whole numbers as {what}, got {table[at].tolist()}"
        )


def whole_multiple(quotient: float, name: str, value: float, allowed: str) -> int:
    """Round a quotient that has to be a whole number from 1 on.

    Args:
        quotient: to round.
        name: of the argument behind it.
        value: of that argument.
        allowed: what it may be.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    count = round(quotient)
    if count < 1 or abs(quotient - count) > 1e-6:
        raise ValueError(f"{name} = {value!r}: expected {allowed}")
    return count


def thinned(tracks: Tracks, dt_s: float) -> Tracks:
    """Every k-th step, for a dt_s of k times the set's own.

    Raises:
        ValueError: for another dt_s.
    """
    own = tracks.dt_s
    every = whole_multiple(
        dt_s / own, "dt_s", dt_s, f"a multiple of {own:g} s, the steps of {tracks.name}"
    )
    if every == 1:
        return tracks
    kept = tracks.rows(tracks.step % every == 0)
    frames = None if kept.frames_per_step is None else kept.frames_per_step * every
    return dataclasses.replace(kept, step=kept.step // every, dt_s=dt_s, frames_per_step=frames)
