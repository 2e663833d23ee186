"""A table of tracks of one's own, and forecasts in the format of trajnet++."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from companion.checks import above, whole
from companion.data.files import Row, read_text, to_numbers
from companion.data.root import CorruptDataError
from companion.data.trajectories.tracks import Tracks, check_whole, make_tracks, whole_multiple
from companion.data.trajectories.windows import TrajectoryWindows
from companion.files import write_whole

COLUMNS = ("frame", "id", "x", "y")


def read_tracks(
    path: str | os.PathLike,
    *,
    fps: float,
    dt_s: float = 0.4,
    unit: str = "m",
    metres_per_pixel: float | None = None,
    columns: Mapping[str, str] | None = None,
    phase: int | None = None,
) -> Tracks:
    """Read tracks from a CSV file with the columns frame, id, x and y.

    The first line may name the columns, in any order and among others; without names the file has
    these four. They are separated by commas, semicolons, tabs or blanks.

    Args:
        path: the file, text in UTF-8.
        fps: how many of its frame numbers make a second, above 0.
        dt_s: seconds between two steps; a whole number of frames. Rows between the steps are
            counted in `left_out["between_steps"]`.
        unit: "m" or "px", of x and y.
        metres_per_pixel: for "px", the scale of `Tracks.in_metres`.
        columns: names in the first line for those of `COLUMNS` that differ, such as
            {"id": "track_id"}.
        phase: frame at which a step begins; None takes the first frame of the file.

    Returns:
        The tracks, sorted by agent and time. Step s is frame phase + s · fps · dt_s, with the
        phase taken modulo the frames of a step.

    Raises:
        ValueError: for an argument out of range.
        MissingDataError: if there is no such file.
        CorruptDataError: naming the line, for a row that cannot be; for an agent at two positions
            in a frame; and for an agent none of whose frames begins a step though the agent is
            there for one.

    >>> text = "id,frame,x,y" + "".join(f"\\n1,{10 * k},{0.5 * k},0" for k in range(5))
    >>> _ = Path("mine.csv").write_text(text)
    >>> tracks = read_tracks("mine.csv", fps=25)
    >>> tracks.step.tolist(), tracks.position[-1].tolist()
    ([0, 1, 2, 3, 4], [2.0, 0.0])
    """
    above(0, fps=fps, dt_s=dt_s)
    if unit not in ("m", "px"):
        raise ValueError(f"unit = {unit!r}: expected 'm' or 'px'")
    if metres_per_pixel is not None:
        above(0, metres_per_pixel=metres_per_pixel)
        if unit == "m":
            raise ValueError(f"metres_per_pixel = {metres_per_pixel!r}: belongs to unit = 'px'")
    count = max(1, round(fps * dt_s))
    frames = whole_multiple(
        fps * dt_s,
        "dt_s",
        dt_s,
        f"a whole number of frames, of which fps = {fps!r} make a second: {count} are "
        f"dt_s = {count}/{fps!r}",
    )
    path = Path(path)
    rows, names = _rows(path, columns or {})
    table = to_numbers(path, rows, names)
    check_whole(path, rows, table[:, :2], "frame and id")
    first = int(table[:, 0].min()) if phase is None else phase
    whole(-(2**53), phase=first)
    first %= frames
    begins = (table[:, 0] - first) % frames == 0
    for agent in np.unique(table[~begins, 1]):
        mine = table[:, 1] == agent
        seen = table[mine, 0]
        if not begins[mine].any() and np.ptp(seen) >= frames:
            raise CorruptDataError(
                f"{path}: agent {agent:g} is in frames {seen.min():g} to {seen.max():g}, none of "
                f"which begins a step ({first}, {first + frames}, ...): give another phase or dt_s"
            )
    left_out = {"between_steps": int((~begins).sum())} if not begins.all() else {}
    rules: dict[str, Any] = {"dt_s": dt_s, "frames": frames, "phase": first, "left_out": left_out}
    tracks = make_tracks(path.stem, path, table[begins], **rules)
    return dataclasses.replace(tracks, unit=unit, metres_per_pixel=metres_per_pixel)


def _rows(path: Path, columns: Mapping[str, str]) -> tuple[list[Row], str]:
    """The numbered rows of a table, cut down to frame, id, x, y, and the columns' names."""
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"columns = {dict(columns)!r}: expected names for {', '.join(COLUMNS)}")
    lines = read_text(path).splitlines()
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise CorruptDataError(f"{path} is empty: expected lines of {' '.join(COLUMNS)}")
    separator = next((s for s in ",;\t" if s in kept[0][1]), None)
    rows = []
    for number, line in kept:
        entries = next(csv.reader([line], delimiter=separator)) if separator else line.split()
        rows.append((number, [entry.strip() for entry in entries]))
    names = [columns.get(name, name) for name in COLUMNS]
    header = [entry.lower() for entry in rows[0][1]]
    if _is_number(header[0]):
        where, width = list(range(4)), 4
        if columns or len(header) != 4:
            raise CorruptDataError(
                f"{path}: expected a first line that names the columns {', '.join(names)}"
            )
    else:
        lacking = [name for name in names if header.count(name.lower()) != 1]
        if lacking:
            raise CorruptDataError(
                f"{path}, line {rows[0][0]}: columns {', '.join(header)}, expected one "
                f"{' and one '.join(lacking)}; `columns` takes other names"
            )
        where, width = [header.index(name.lower()) for name in names], len(header)
        rows = rows[1:]
    for number, entries in rows:
        if len(entries) != width:
            raise CorruptDataError(
                f"{path}, line {number}: {len(entries)} entries, expected {width}"
            )
    if not rows:
        raise CorruptDataError(f"{path}: there is no line below the names of the columns")
    return [(number, [entries[i] for i in where]) for number, entries in rows], " ".join(names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def write_trajnetpp(
    path: str | os.PathLike,
    windows: TrajectoryWindows,
    samples: Tensor,
    *,
    frames_per_step: int | None = None,
    first_frame: int | None = None,
) -> None:
    """Write forecasts as trajnet++ has them: a line of JSON a scene, and one a position.

    A scene's primary pedestrian is its first agent. Step s is written as frame
    first_frame + s · frames_per_step.

    Args:
        path: the file to write, usually "*.ndjson".
        windows: the scenes, in metres, as `cut_windows` makes them.
        samples: shape (scenes, agents, samples, steps, 2), in the windows' frame, such as
            `Forecast.samples[-1]`; NaN for an agent who is not forecast.
        frames_per_step: frames to a step, at least 1; None takes those of the tracks' file, and 1
            for windows of no file.
        first_frame: the frame of step 0; None takes that of the tracks' file, and 0 for windows
            of no file.

    Raises:
        ValueError: for windows that are not in metres or do not say who was where when, for
            samples of another shape, and for positions that are not finite.

    References:
        The format is that of github.com/vita-epfl/trajnetplusplustools.
    """
    if frames_per_step is None:
        frames_per_step = 1 if windows.frames_per_step is None else windows.frames_per_step
    if first_frame is None:
        first_frame = 0 if windows.first_frame is None else windows.first_frame
    whole(1, frames_per_step=frames_per_step)
    whole(-(2**53), first_frame=first_frame)
    if windows.unit != "m":
        raise ValueError(f"windows.unit = {windows.unit!r}: trajnet++ is in metres (in_metres)")
    if windows.agent is None or windows.start is None:
        raise ValueError("windows: expected the agents' numbers and starts, as of cut_windows")
    if samples.ndim != 5 or samples.shape[:2] != windows.mask.shape or samples.shape[-1] != 2:
        raise ValueError(
            f"samples {tuple(samples.shape)}: expected {tuple(windows.mask.shape)} scenes and "
            "agents, then (samples, steps, 2)"
        )
    places = windows.to_world(samples.detach())
    finite = places.isfinite().flatten(2)
    shown = windows.mask.to(places.device) & finite.any(-1)
    if not finite[shown].all():
        raise ValueError("samples: expected finite positions of everybody who is forecast")
    obs_len, steps = windows.past.shape[2], samples.shape[3]
    lines = []
    for scene in range(len(windows)):
        who = shown[scene].nonzero().flatten().tolist()
        if not who:
            continue
        start = int(windows.start[scene])
        frame = [first_frame + frames_per_step * (start + s) for s in range(obs_len + steps)]
        numbers = windows.agent[scene].tolist()
        about = {"id": scene, "p": numbers[who[0]], "s": frame[0], "e": frame[-1]}
        fps = round(1 / windows.frame_dt_s, 6)
        lines.append({"scene": about | {"fps": fps, "tag": 0}})
        for agent in who:
            for k, path_ in enumerate(places[scene, agent].tolist()):
                lines += [
                    {
                        "track": {
                            "f": f, "p": numbers[agent], "x": round(x, 4), "y": round(y, 4),
                            "prediction_number": k, "scene_id": scene,
                        }
                    }
                    for f, (x, y) in zip(frame[obs_len:], path_, strict=True)
                ]  # fmt: skip
    write_whole(Path(path), "".join(json.dumps(line) + "\n" for line in lines))
