"""Pieces of tracks, cut into what is seen and what is to be forecast."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from companion.checks import boolean, whole
from companion.data.trajectories.tracks import Tracks
from companion.device import has_float64


@dataclass(frozen=True, eq=False)
class TrajectoryWindows:
    """Pieces of tracks, cut into what is seen and what is to be forecast.

    Positions are zero where the mask is False: whatever is given there is dropped.

    Args:
        past: float32 tensor of shape (scenes, agents, obs_len, 2), in `unit` from the scene's
            origin.
        future: float32 tensor of shape (scenes, agents, pred_len, 2), likewise.
        mask: bool tensor of shape (scenes, agents), whether there is such an agent.
        frame_dt_s: seconds to a step.
        origin_m: shape (scenes, 2), what was subtracted, in `unit`.
        raster: shape (rasters, channels, height, width), images of the ground. The middle of one
            is the world's (0, 0), its columns run along x and its rows along y.
        meters_per_cell: side of a cell of a raster, in `unit`.
        raster_index: shape (scenes,), the raster of a scene.
        agent: shape (scenes, agents), the agents' numbers, -1 where the mask is False.
        start: shape (scenes,), first step of the window.
        unit: "m", "px", or "px/5" (pixels of a video reduced five times).
        left_out: agents of windows that were there for a part of the time only (`partial`).
        frames_per_step: as of the `Tracks` that they were cut from.
        first_frame: likewise.

    Raises:
        ValueError: for shapes that disagree, and a mask that is not boolean.
    """

    past: Tensor
    future: Tensor
    mask: Tensor
    frame_dt_s: float
    origin_m: Tensor
    raster: Tensor | None = None
    meters_per_cell: float | None = None
    raster_index: Tensor | None = None
    agent: Tensor | None = None
    start: Tensor | None = None
    unit: str = "m"
    left_out: dict[str, int] = field(default_factory=dict)
    frames_per_step: int | None = None
    first_frame: int | None = None

    def __post_init__(self) -> None:
        boolean(self.past.shape[:2], mask=self.mask)
        for name in ("past", "future"):
            value = getattr(self, name)
            if value.ndim != 4 or value.shape[:2] != self.mask.shape or value.shape[-1] != 2:
                raise ValueError(
                    f"{name} {tuple(value.shape)}: expected (scenes, agents, steps, 2) for "
                    f"a mask {tuple(self.mask.shape)}"
                )
            absent = ~self.mask
            # filling never waits for a GPU, a look would
            if value.device.type != "cpu" or value[absent].any():
                value = value.masked_fill(absent[..., None, None], 0)
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.past)

    def __getitem__(self, index: slice | Tensor) -> TrajectoryWindows:
        """The scenes that a slice, a mask or a tensor of indices names.

        Raises:
            ValueError: for a single number, which would drop the axis of scenes.
        """
        if (not isinstance(index, slice) and getattr(index, "ndim", 1) == 0) or isinstance(
            index, int
        ):
            raise ValueError(f"index = {index!r}: expected a slice, a mask or several indices")
        per_scene = ("past", "future", "mask", "origin_m", "raster_index", "agent", "start")
        parts = {name: getattr(self, name) for name in per_scene}
        return dataclasses.replace(
            self, **{name: part[index] for name, part in parts.items() if part is not None}
        )

    def to(self, device: torch.device | str) -> TrajectoryWindows:
        """A copy with all tensors on a device; the origin in float32 where it has no float64.

        Args:
            device: such as "cuda".
        """
        single = {} if has_float64(device) else {"origin_m": self.origin_m.float()}
        values = vars(self) | single
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)
        }
        return dataclasses.replace(self, **moved)

    def to_world(self, paths: Tensor) -> Tensor:
        """Paths of the windows in the frame of the tracks that they were cut from.

        Args:
            paths: shape (scenes, ..., 2), such as `past` or the samples of a forecast.

        Returns:
            float64 tensor of the same shape, on the CPU.
        """
        origin = self.origin_m.cpu().double()
        return paths.cpu().double() + origin.view(-1, *(1,) * (paths.ndim - 2), 2)


def cut_windows(
    tracks: Tracks,
    *,
    obs_len: int = 8,
    pred_len: int = 12,
    stride: int = 1,
    min_agents: int = 1,
) -> TrajectoryWindows:
    """Cut windows of obs_len + pred_len steps, with everybody who is there all the time.

    The origin of a window is the mean of the last seen positions. Positions that are not finite
    are taken as absence.

    Args:
        tracks: of one scene.
        obs_len: steps that are seen, at least 1.
        pred_len: steps to forecast, at least 0; 0 cuts what is seen, where the rest is withheld.
        stride: steps between the starts of two windows, at least 1.
        min_agents: windows with fewer agents are dropped (the usual benchmark on ETH and UCY
            asks for 2).

    Returns:
        The windows; agents who are there for a part of one only are counted in
        `left_out["partial"]`.

    Raises:
        ValueError: for sizes out of range, tracks with an agent twice at a step, and tracks
            without a single whole window.

    >>> row = torch.arange(30)
    >>> walk = Tracks("one", row, 0 * row, torch.stack([0.5 * row, 0 * row], 1).double(), 0.4)
    >>> windows = cut_windows(walk, obs_len=8, pred_len=12)
    >>> windows.past.shape, windows.future.shape
    (torch.Size([11, 1, 8, 2]), torch.Size([11, 1, 12, 2]))
    """
    whole(1, obs_len=obs_len, stride=stride, min_agents=min_agents)
    whole(0, pred_len=pred_len)
    length = obs_len + pred_len
    here = tracks.position.isfinite().all(1)
    step, agent, position = tracks.step[here], tracks.agent[here], tracks.position[here].double()
    if not len(step):
        raise ValueError(f"{tracks.name}: there are no tracks to cut")
    if torch.stack([agent, step]).unique(dim=1).shape[1] < len(step):
        raise ValueError(f"{tracks.name}: an agent is at two places at one step")
    occupied = step.unique()
    # nobody is there all the time in a window that spans an empty step: cut between those
    breaks = (occupied.diff() > 1).nonzero()[:, 0] + 1
    pieces, numbers, starts, partial = [], [], [], 0
    for block in occupied.tensor_split(breaks.tolist()):
        first, steps = int(block[0]), len(block)
        if steps < length:
            continue
        inside = (step >= first) & (step < first + steps)
        ids, column = agent[inside].unique(return_inverse=True)
        at = torch.full((steps, len(ids), 2), torch.nan, dtype=torch.float64)
        at[step[inside] - first, column] = position[inside]
        present = ~at[..., 0].isnan()
        for start in range((int(occupied[0]) - first) % stride, steps - length + 1, stride):
            there = present[start : start + length]
            complete = there.all(0)
            if int(complete.sum()) < min_agents:
                continue
            pieces.append(at[start : start + length, complete].transpose(0, 1))
            numbers.append(ids[complete])
            starts.append(start + first)
            partial += int(there.any(0).sum() - complete.sum())
    if not pieces:
        withheld = tracks.left_out.get("unknown", 0)
        why = (
            f"; the file withholds {withheld} positions: pred_len = 0 cuts what is seen"
            if withheld and pred_len
            else ""
        )
        raise ValueError(
            f"{tracks.name}: no window of obs_len + pred_len = {length} steps holds "
            f"{min_agents} whole track(s){why}"
        )
    most = max(map(len, pieces))
    scenes = torch.zeros(len(pieces), most, length, 2, dtype=torch.float64)
    agent = torch.full((len(pieces), most), -1)
    for scene, (piece, number) in enumerate(zip(pieces, numbers, strict=True)):
        scenes[scene, : len(piece)] = piece
        agent[scene, : len(number)] = number
    mask = torch.arange(most) < torch.tensor([len(number) for number in numbers])[:, None]
    weight = mask[..., None].double()
    origin = (scenes[:, :, obs_len - 1] * weight).sum(1) / weight.sum(1)
    local = ((scenes - origin[:, None, None]) * weight[..., None]).float()
    return TrajectoryWindows(
        past=local[:, :, :obs_len],
        future=local[:, :, obs_len:],
        mask=mask,
        frame_dt_s=tracks.dt_s,
        origin_m=origin,
        agent=agent,
        start=torch.tensor(starts),
        unit=tracks.unit,
        left_out={"partial": partial},
        frames_per_step=tracks.frames_per_step,
        first_frame=tracks.first_frame,
    )


def join_windows(parts: Sequence[TrajectoryWindows]) -> TrajectoryWindows:
    """Join several sets of scenes into one, padded to the largest number of agents.

    Rasters are not joined, and parts of files whose frames differ keep none of them.

    Raises:
        ValueError: for no parts, or for parts that differ in their numbers of steps, seconds to
            a step or unit.
    """
    if not parts:
        raise ValueError("parts = []: expected at least one")
    kinds = {(p.past.shape[2], p.future.shape[2], round(p.frame_dt_s, 9), p.unit) for p in parts}
    if len(kinds) > 1:
        raise ValueError(f"parts differ in (obs_len, pred_len, frame_dt_s, unit): {sorted(kinds)}")
    most = max(part.mask.shape[1] for part in parts)

    def joined(name: str, value: float) -> Tensor:
        padded = []
        for part in parts:
            tensor = getattr(part, name)
            short = most - tensor.shape[1]
            padding = torch.full((len(tensor), short, *tensor.shape[2:]), value)
            padded.append(torch.cat([tensor, padding.to(tensor)], 1))
        return torch.cat(padded)

    left_out: dict[str, int] = {}
    for part in parts:
        for reason, count in part.left_out.items():
            left_out[reason] = left_out.get(reason, 0) + count
    numbered = all(part.agent is not None for part in parts)
    clocks = {(part.frames_per_step, part.first_frame) for part in parts}
    frames_per_step, first_frame = clocks.pop() if len(clocks) == 1 else (None, None)
    starts = [part.start for part in parts if part.start is not None]
    return dataclasses.replace(
        parts[0],
        past=joined("past", 0.0),
        future=joined("future", 0.0),
        mask=joined("mask", False),
        origin_m=torch.cat([part.origin_m for part in parts]),
        agent=joined("agent", -1) if numbered else None,
        start=torch.cat(starts) if len(starts) == len(parts) else None,
        raster=None,
        raster_index=None,
        meters_per_cell=None,
        left_out=left_out,
        frames_per_step=frames_per_step,
        first_frame=first_frame,
    )
