"""Tracks of people and vehicles seen from above: `load_tracks("zara01")` gives them in metres.

Public sets write the same thing in many ways: metres or pixels, rows or columns first, splines or
samples, 6, 10, 12 or 2 frames to a step. Here all of them become one table on one clock, with the
map to the reference picture where one is known. A set that is not there raises an error that says
what to put where.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data.files import Row, read_rows, read_table, read_text, to_numbers
from companion.data.root import ELSEWHERE, CorruptDataError, DataSource, data_root
from companion.device import has_float64

FOLDER = Path("trajectories", "datasets")
FRAMES_PER_SECOND = {"vsp": 25, "sdd": 30}
# frames to a step and seconds to a step, by folder of TrajNet
TRAJNET_STEPS = {"biwi": (10, 0.4), "crowds": (10, 0.4), "stanford": (12, 0.4), "mot": (2, 2 / 7)}
TRAJNET_ETH_DT_S = 10 / 15  # its 10 frames count as 0.4 s there, but 6 frames are 0.4 s in obsmat
TRAJNET_OFFSET_PX = (712.0, 544.0)  # half of 1424 x 1088, the same for every video
TRAJNET_OTHER_SCALE = {"hyang_1": 0.054992233}  # made with hyang_2's scale, not the listed one
# TrajNet's "metres" of UCY: a scaling of the frame's pixels (origin in the middle, v up)
CROWDS_SCALE, CROWDS_OFFSET = (0.02104651, 0.02386598), (7.57676, 6.87340)
UCY_MIDDLE = (360, 288)  # column and row of the origin of a spline's pixels
LONGEST_DT_S = 60.0
FARTHEST = 1e7  # no scene is so large, in metres or pixels
LONGEST_SPLINE = 25 * 3600  # frames between its ends: nobody is in a picture for an hour


@dataclass(frozen=True, eq=False)
class Tracks:
    """The tracks of one scene on a common clock, sorted by agent and time.

    step: (rows,), int64, time in units of `dt_s` seconds. agent: (rows,), int64.
    position: (rows, 2), float64, x and y in `unit`, "m" or "px" (x is the column, y the row).
    groups: people who walk together. labels: kind of an agent, where the set tells it.
    picture: file of the reference picture; to_pixels: 3 by 3, takes (x, y, 1) to (column, row, 1)
    there, up to the third component.
    metres_per_pixel: the set's estimate for a scene in pixels.
    left_out: how many rows were dropped, by reason: `not_finite` places, copies that are
    `repeated`, and what the set itself calls `lost` or does not tell (`unknown`).
    checksum: sha256 of the file.

    Somebody who was sampled between the others' frames has the step that has begun by then.
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

    @property
    def agents(self) -> Tensor:
        """Their numbers, ascending."""
        return self.agent.unique()

    def of(self, agent: int) -> tuple[Tensor, Tensor]:
        """Steps (T,) and positions (T, 2) of one agent, in time. Raises KeyError for no such."""
        rows = self.agent == agent
        if not rows.any():
            raise KeyError(f"{self.name} has no agent {agent}")
        return self.step[rows], self.position[rows]

    def rows(self, chosen: Tensor) -> Tracks:
        """A copy with the rows of a boolean mask."""
        return dataclasses.replace(
            self,
            step=self.step[chosen],
            agent=self.agent[chosen],
            position=self.position[chosen],
        )

    def between(self, start: int, stop: int) -> Tracks:
        """A copy with the steps start <= step < stop."""
        return self.rows((self.step >= start) & (self.step < stop))

    def pixels(self, position: Tensor) -> Tensor:
        """Where (..., 2) positions lie in the reference picture, as (column, row).

        Raises ValueError if no map is known.
        """
        if self.to_pixels is None:
            raise ValueError(f"{self.name}: no map from {self.unit} to a picture is known")
        return transform(self.to_pixels, position)

    def in_metres(self, metres_per_pixel: float | None = None) -> Tracks:
        """A copy in metres; a scene in pixels needs a scale, the set's own by default.

        Raises ValueError if there is none.
        """
        if self.unit == "m":
            return self
        scale = self.metres_per_pixel if metres_per_pixel is None else metres_per_pixel
        if scale is None or not scale > 0:
            raise ValueError(
                f"metres_per_pixel = {scale!r}: {self.name} is in pixels and has no scale of "
                "its own; give the metres that one pixel covers"
            )
        back = torch.diag(torch.tensor([1 / scale, 1 / scale, 1.0], dtype=torch.float64))
        return dataclasses.replace(
            self,
            position=self.position * scale,
            unit="m",
            to_pixels=None if self.to_pixels is None else self.to_pixels @ back,
        )


def transform(homography: Tensor, points: Tensor) -> Tensor:
    """Apply a 3 by 3 homography to (..., 2) points."""
    ones = torch.ones_like(points[..., :1])
    mapped = torch.cat([points, ones], -1) @ homography.to(points.dtype).T
    return mapped[..., :2] / mapped[..., 2:]


_GET = (
    "Put the folder `datasets` of the OpenTraj collection (github.com/crowdbotp/OpenTraj) into "
    "`trajectories` below the data root."
)


def _source(title: str, folder: str, licence: str, needs: dict[str, int]) -> DataSource:
    where = f"{FOLDER.as_posix()}/{folder}"
    return DataSource(
        title, where, licence, _GET, needs={f"{where}/{path}": n for path, n in needs.items()}
    )


TRACK_SETS: dict[str, DataSource] = {
    "eth": _source(
        "ETH walking pedestrians (eth and hotel, metres, 0.4 s)",
        "ETH",
        "none stated (Pellegrini et al., 2009)",
        {"seq_*/obsmat.txt": 2, "seq_*/H.txt": 2},
    ),
    "ucy": _source(
        "UCY crowds by example (zara01 to zara03, students, metres or pixels)",
        "UCY",
        "free with credit to the uploaders (Lerner et al., 2007)",
        {
            "zara0[12]/obsmat.txt": 2,
            "zara0[123]/H.txt": 3,
            "zara03/annotation.vsp": 1,
            "students01/annotation.vsp": 1,
            "students01/students001.txt": 1,
            "students03/obsmat.txt": 1,
            "students03/H-old.txt": 1,
            "students03/students003.txt": 1,
            "uni_examples/annotation.vsp": 1,
        },
    ),
    "sdd": _source(
        "Stanford Drone Dataset (pixels of 60 videos, 30 frames/s)",
        "SDD",
        "CC BY-NC-SA 3.0 (Robicquet et al., 2016)",
        {
            "*/video*/annotations.txt": 60,
            "*/video*/reference.jpg": 60,
            "estimated_scales.yaml": 1,
        },
    ),
    "trajnet": _source(
        "TrajNet (pieces of 20 steps of ETH, UCY, PETS and SDD, metres)",
        "TrajNet",
        "none stated; re-uses the sets above",
        {"Train/*/*.txt": 38, "Test/*/*.txt": 21},
    ),
}


def load_tracks(name: str, root: str | os.PathLike = "", *, dt_s: float = 0.4) -> Tracks:
    """Load the tracks of one scene by name.

    name: "eth", "hotel", "zara01", "zara02", "students03" (metres, sampled), "students001",
    "students003" (the same university square, annotated anew: "univ" of the usual benchmark),
    "zara03", "students01", "uni_examples" (splines; metres for zara03, pixels for the others),
    "sdd/<scene>/<number>" (pixels), or "trajnet/<file>", such as "trajnet/bookstore_0".
    root: as `companion.data.data_root`. dt_s: seconds between two steps, at most 60; a sampled
    set takes whole multiples of its own 0.4 s, splines multiples of 1/25 s, SDD of 1/30 s.

    The metres of "students001" and "students003" are a plain scaling of pixels, as in all of
    TrajNet's crowds, so they are others than those of "students03".

    Raises ValueError for an unknown name or a dt_s that the set cannot give,
    `MissingDataError` if the files are not there, `CorruptDataError` if one cannot be read, is
    shorter than the published one that it begins as, has an agent at two places at once or is
    not on its set's clock.
    """
    if not (isinstance(dt_s, Real) and 0 < dt_s <= LONGEST_DT_S):
        raise ValueError(f"dt_s = {dt_s!r}: expected seconds above 0, at most {LONGEST_DT_S:g}")
    base = data_root(root) / FOLDER
    if name in OBSMAT:
        load: Callable[[Path, str, float], Tracks] = _load_obsmat
    elif name in SPLINES:
        load = _load_splines
    elif name in BENCHMARK:
        load = _load_benchmark
    elif re.fullmatch(r"sdd/[A-Za-z]+/\d+", str(name)):
        load = _load_sdd
    elif re.fullmatch(r"trajnet/[A-Za-z0-9_-]+", str(name)):
        load = _load_trajnet
    else:
        sampled = [*OBSMAT, *BENCHMARK, *SPLINES]
        known = ", ".join(map(repr, [*sampled, "sdd/gates/8", "trajnet/bookstore_0"]))
        raise ValueError(f"name = {name!r}: expected one of {known} or their like")
    return load(base, name, dt_s)


def track_names(root: str | os.PathLike = "") -> list[str]:
    """The names that `load_tracks` finds below a data root."""
    base = data_root(root) / FOLDER
    names = [name for name, (folder, *_) in OBSMAT.items() if (base / folder).is_dir()]
    names += [name for name, file in BENCHMARK.items() if (base / file).is_file()]
    names += [name for name, folder in SPLINES.items() if (base / folder).is_dir()]
    for file in sorted((base / "SDD").glob("*/video*/annotations.txt")):
        names.append(f"sdd/{file.parts[-3]}/{file.parts[-2].removeprefix('video')}")
    names += sorted({f"trajnet/{file.stem}" for file in (base / "TrajNet").glob("*/*/*.txt")})
    return names


# ---------------------------------------------------------------- readers


def _homography(path: Path, *, image: np.ndarray | None = None) -> Tensor:
    """The inverse of a file's map from (row, column, 1) to metres, giving (column, row, 1).

    image: takes a picture's (row, column, 1) to the pixels that the file maps.
    """
    matrix = read_table(path, "three numbers each", get=_HOW)
    # a matrix that is nearly singular takes a whole line of the picture to a point
    if matrix.shape != (3, 3) or np.linalg.cond(matrix) > 1e12:
        raise CorruptDataError(f"{path}: expected a homography, three lines that are independent")
    if image is not None:
        matrix = matrix @ image
    swap = np.eye(3)[[1, 0, 2]]
    return torch.from_numpy(swap @ np.linalg.inv(matrix))


ZARA02_SHIFT = np.array([[1.0, 0, 50], [0, 1, -720], [0, 0, 1]])  # it was laid next to zara01

# name: folder, frames to a step of 0.4 s, file of the homography, its shift
OBSMAT: dict[str, tuple[str, int, str, np.ndarray | None]] = {
    "eth": ("ETH/seq_eth", 6, "H.txt", None),
    "hotel": ("ETH/seq_hotel", 10, "H.txt", None),
    "zara01": ("UCY/zara01", 10, "H.txt", None),
    "zara02": ("UCY/zara02", 10, "H.txt", ZARA02_SHIFT),
    "students03": ("UCY/students03", 10, "H-old.txt", None),
}
# arxiepiskopi's splines are in units that nobody states, so they are not offered
SPLINES = {name: f"UCY/{name}" for name in ("zara03", "students01", "uni_examples")}
# `frame id x y`, another annotation of students01 and students03: the benchmark's
BENCHMARK = {
    "students001": "UCY/students01/students001.txt",
    "students003": "UCY/students03/students003.txt",
}
# scenes of the leave-one-out protocol on ETH and UCY; its "univ" is not "students03"
ETH_UCY: dict[str, tuple[str, ...]] = {
    "eth": ("eth",),
    "hotel": ("hotel",),
    "univ": tuple(BENCHMARK),
    "zara01": ("zara01",),
    "zara02": ("zara02",),
}


OBSMAT_COLUMNS = "frame id x z y vx vz vy"
TABLE_COLUMNS = "frame id x y"
SDD_COLUMNS = "id xmin ymin xmax ymax frame lost occluded generated"
_HOW = f"{_GET} {ELSEWHERE}"


def _load_obsmat(base: Path, name: str, dt_s: float) -> Tracks:
    """`frame id x 0 y vx 0 vy` in metres, one step 0.4 s."""
    folder, frames, homography, shift = OBSMAT[name]
    path = base / folder / "obsmat.txt"
    rows = read_rows(path, OBSMAT_COLUMNS, get=_HOW)
    table = to_numbers(path, rows, OBSMAT_COLUMNS)[:, [0, 1, 2, 4]]
    _as_long_as_published(path, base, table)
    # some of seq_eth's people are sampled between the others' frames: they keep their own grid
    tracks = _tracks(name, path, table, dt_s=0.4, frames=frames, from_first=True)
    tracks = dataclasses.replace(
        tracks,
        groups=_groups(base / folder / "groups.txt"),
        picture=_existing(base / folder / "reference.png"),
        to_pixels=_homography(base / folder / homography, image=shift),
    )
    return _thinned(tracks, dt_s)


def _load_benchmark(base: Path, name: str, dt_s: float) -> Tracks:
    """`frame id x y` in TrajNet's metres of UCY, one step 0.4 s."""
    path = base / BENCHMARK[name]
    table = to_numbers(path, read_rows(path, TABLE_COLUMNS, get=_HOW), TABLE_COLUMNS)
    _as_long_as_published(path, base, table)
    tracks = _tracks(name, path, table, dt_s=0.4, frames=10)
    picture = _existing(path.with_name("reference.png"))
    return _thinned(dataclasses.replace(tracks, to_pixels=_crowds_map(), picture=picture), dt_s)


def _crowds_map() -> Tensor:
    """From TrajNet's metres of UCY to the picture."""
    (a, b), (x, y) = CROWDS_SCALE, CROWDS_OFFSET
    # u = (X - x) / a and v = (Y - y) / b, then column = u + 360 and row = 288 - v
    column = [1 / a, 0, UCY_MIDDLE[0] - x / a]
    row = [0, -1 / b, UCY_MIDDLE[1] + y / b]
    return torch.tensor([column, row, [0, 0, 1]], dtype=torch.float64)


def _load_splines(base: Path, name: str, dt_s: float) -> Tracks:
    """Control points `u v frame gaze`; between them people walk straight, as obsmat has it."""
    path = base / SPLINES[name] / "annotation.vsp"
    frames = _whole(dt_s * FRAMES_PER_SECOND["vsp"], "dt_s", dt_s, "a multiple of 1/25 s")
    tables = []
    for agent, spline in enumerate(read_splines(path), start=1):
        first, last = spline[0, 2], spline[-1, 2]
        step = np.arange(np.ceil(first / frames), np.floor(last / frames) + 1)
        u, v = (np.interp(step * frames, spline[:, 2], spline[:, axis]) for axis in (0, 1))
        number = np.full(len(step), agent)
        tables.append(np.stack([step, number, u + UCY_MIDDLE[0], UCY_MIDDLE[1] - v], 1))
    tracks = _tracks(name, path, np.concatenate(tables), dt_s=dt_s)
    picture = _existing(path.with_name("reference.png"))
    if (path.with_name("H.txt")).is_file():
        inverse = _homography(path.with_name("H.txt"))
        return dataclasses.replace(
            tracks,
            position=transform(torch.linalg.inv(inverse), tracks.position),
            to_pixels=inverse,
            picture=picture,
        )
    return dataclasses.replace(
        tracks, unit="px", to_pixels=torch.eye(3, dtype=torch.float64), picture=picture
    )


def read_splines(path: Path) -> list[np.ndarray]:
    """The splines of a UCY `annotation.vsp`: (points, 3) of u, v, frame each.

    u, v are pixels from the middle of the 720 by 576 frame, v up; frames are 1/25 s.
    Raises `CorruptDataError` if fewer are there than the file's first line says.
    """
    lines = read_text(path, _HOW).splitlines()
    try:
        count, at, splines = int(lines[0].split()[0]), 1, []
        for _ in range(count):
            points = int(lines[at].split()[0])
            rows = [line.split()[:3] for line in lines[at + 1 : at + 1 + points]]
            spline = np.array(rows, dtype=float).reshape(points, 3)
            if not np.isfinite(spline).all():
                raise ValueError(f"line {at + 1}: a spline with numbers that are not finite")
            _, first = np.unique(spline[:, 2], return_index=True)
            splines.append(spline[first])
            if np.ptp(spline[:, 2]) > LONGEST_SPLINE:
                raise ValueError(f"line {at + 1}: a spline of {np.ptp(spline[:, 2]):g} frames")
            at += points + 1
    except (ValueError, IndexError) as error:
        raise CorruptDataError(f"{path}: not the splines of UCY ({error})") from error
    if not splines:
        raise CorruptDataError(f"{path}: not the splines of UCY (there are none)")
    return splines


def _load_sdd(base: Path, name: str, dt_s: float) -> Tracks:
    """`id xmin ymin xmax ymax frame lost occluded generated "label"`; box middles in pixels."""
    _, scene, number = name.split("/")
    folder = base / "SDD" / scene / f"video{number}"
    path = folder / "annotations.txt"
    every = _whole(dt_s * FRAMES_PER_SECOND["sdd"], "dt_s", dt_s, "a multiple of 1/30 s")
    rows = read_rows(path, SDD_COLUMNS, get=_HOW, more=True)
    table = to_numbers(path, rows, SDD_COLUMNS)
    _as_long_as_published(path, base, table)
    _check_whole(path, rows, table[:, [0, 5, 6]], "id, frame and lost")
    seen, on_step = table[:, 6] == 0, table[:, 5] % every == 0
    kept = table[seen & on_step]
    middle = (kept[:, [1, 2]] + kept[:, [3, 4]]) / 2
    tracks = _tracks(
        name,
        path,
        np.column_stack([kept[:, 5] // every, kept[:, 0], middle]),
        dt_s=dt_s,
        left_out={"lost": int((~seen & on_step).sum())},
    )
    return dataclasses.replace(
        tracks,
        unit="px",
        # a label may be of several words
        labels={
            int(float(entries[0])): " ".join(entries[9:]).strip('"')
            for _, entries in rows
            if len(entries) > 9
        },
        picture=_existing(folder / "reference.jpg"),
        to_pixels=torch.eye(3, dtype=torch.float64),
        metres_per_pixel=_sdd_scales(base).get(f"{scene}_{number}"),
    )


def _sdd_scales(base: Path) -> dict[str, float]:
    path = base / "SDD" / "estimated_scales.yaml"
    if not path.is_file():
        return {}
    import yaml

    text = read_text(path)
    try:
        scales = {
            f"{scene}_{video.removeprefix('video')}": float(entry["scale"])
            for scene, videos in yaml.safe_load(text).items()
            for video, entry in videos.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CorruptDataError(
            f"{path}: not the scales of SDD ({' '.join(repr(error).split())})"
        ) from error
    for name, scale in scales.items():
        if not 0 < scale < math.inf:
            raise CorruptDataError(f"{path}: the scale of {name} is {scale}, expected above 0")
    return scales


def _load_trajnet(base: Path, name: str, dt_s: float) -> Tracks:
    """`frame id x y` in metres, pieces of 20 steps; the unknown ends of its tests are dropped."""
    stem = name.removeprefix("trajnet/")
    found = sorted((base / "TrajNet").glob(f"*/*/{stem}.txt"))
    if len(found) > 1:
        raise CorruptDataError(
            f"{name}: there are {' and '.join(map(str, found))}; expected one file of this name"
        )
    path = found[0] if found else base / "TrajNet" / "Train" / "..." / f"{stem}.txt"
    rows = read_rows(path, TABLE_COLUMNS, get=_HOW)
    known = [row for row in rows if "?" not in row[1]]
    table = to_numbers(path, known, TABLE_COLUMNS)
    _as_long_as_published(path, base, table)
    frames, own_dt_s = TRAJNET_STEPS.get(path.parts[-2], (10, 0.4))
    if stem == "biwi_eth":
        own_dt_s = TRAJNET_ETH_DT_S
    left_out = {"unknown": len(rows) - len(known)}
    tracks = _tracks(name, path, table, dt_s=own_dt_s, frames=frames, left_out=left_out)
    if path.parts[-2] == "stanford":
        tracks = _on_sdd(tracks, base, stem)
    elif path.parts[-2] == "crowds" and stem != "arxiepiskopi1":
        tracks = dataclasses.replace(tracks, to_pixels=_crowds_map())
    return tracks if dt_s == 0.4 else _thinned(tracks, dt_s)


def _on_sdd(tracks: Tracks, base: Path, stem: str) -> Tracks:
    """Add the picture of SDD and the map to it."""
    scale = TRAJNET_OTHER_SCALE.get(stem) or _sdd_scales(base).get(stem)
    scene, _, number = stem.rpartition("_")
    picture = _existing(base / "SDD" / scene / f"video{number}" / "reference.jpg")
    if scale is None:
        return dataclasses.replace(tracks, picture=picture)
    across, down = TRAJNET_OFFSET_PX
    rows = [[1 / scale, 0, across], [0, 1 / scale, down], [0, 0, 1]]
    return dataclasses.replace(
        tracks,
        picture=picture,
        to_pixels=torch.tensor(rows, dtype=torch.float64),
        metres_per_pixel=scale,
    )


def _tracks(
    name: str,
    path: Path,
    table: np.ndarray,
    *,
    dt_s: float,
    frames: int = 1,
    from_first: bool = False,
    left_out: dict[str, int] | None = None,
) -> Tracks:
    """The rows (frame, agent, x, y) of any file as tracks, once they have been checked.

    frames: to a step. from_first: steps count from the file's first frame, else from frame 0.
    """
    left_out = dict(left_out or {})
    _check_whole(path, None, table[:, :2], "frame and id")
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
    step = (frame - (frame.min() if from_first else 0)) // frames
    return Tracks(
        name=name,
        step=torch.from_numpy(step),
        agent=torch.from_numpy(agent),
        position=torch.from_numpy(np.ascontiguousarray(table[:, 2:])),
        dt_s=dt_s,
        left_out=left_out,
        checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _check_whole(path: Path, rows: list[Row] | None, table: np.ndarray, what: str) -> None:
    """Raise CorruptDataError unless all are whole numbers that 53 bits hold."""
    wrong = ~((table == np.floor(table)) & (np.abs(table) < 2**53)).all(1)
    if wrong.any():
        at = int(wrong.argmax())
        line = "" if rows is None else f", line {rows[at][0]}"
        raise CorruptDataError(
            f"{path}{line}: expected whole numbers as {what}, got {table[at].tolist()}"
        )


PUBLISHED = "tracks.csv"


@cache
def _published() -> dict[str, tuple[int, tuple[float, ...]]]:
    """Rows, and the beginning of the first one, of the files as they were published."""
    text = files("companion.data").joinpath(PUBLISHED).read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {
        row["path"]: (int(row["rows"]), tuple(map(float, row["first"].split())))
        for row in csv.DictReader(lines)
    }


def _as_long_as_published(path: Path, base: Path, table: np.ndarray) -> None:
    """Raise CorruptDataError for the beginning of a published file only.

    A file that begins otherwise is somebody's own, about which nothing is known.
    """
    rows, first = _published().get(path.relative_to(base).as_posix(), (0, ()))
    if 0 < len(table) < rows and tuple(table[0, : len(first)].tolist()) == first:
        raise CorruptDataError(
            f"{path} is cut short: {len(table)} rows, {rows} in the published file"
        )


def _thinned(tracks: Tracks, dt_s: float) -> Tracks:
    """Every k-th step, for a dt_s of k times the set's own."""
    own = tracks.dt_s
    every = _whole(
        dt_s / own, "dt_s", dt_s, f"a multiple of {own:g} s, the steps of {tracks.name}"
    )
    if every == 1:
        return tracks
    kept = tracks.rows(tracks.step % every == 0)
    return dataclasses.replace(kept, step=kept.step // every, dt_s=dt_s)


def _whole(quotient: float, name: str, value: float, allowed: str) -> int:
    count = round(quotient)
    if count < 1 or abs(quotient - count) > 1e-6:
        raise ValueError(f"{name} = {value!r}: expected {allowed}")
    return count


def _groups(path: Path) -> tuple[frozenset[int], ...]:
    if not path.is_file():
        return ()
    lines = [line.split() for line in read_text(path).splitlines()]
    try:
        groups = [frozenset(map(int, line)) for line in lines if line]
    except ValueError as error:
        raise CorruptDataError(
            f"{path}: expected whole numbers, a group a line ({error})"
        ) from error
    if groups and groups[0] == {len(groups) - 1}:  # students03's begins with their number
        del groups[0]
    return tuple(groups)


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


# ---------------------------------------------------------------- windows


@dataclass(frozen=True, eq=False)
class TrajectoryWindows:
    """Pieces of tracks, cut into what is seen and what is to be forecast.

    past: (scenes, agents, obs_len, 2), future: (scenes, agents, pred_len, 2), float32, in
    metres from the scene's origin (in pixels for tracks in pixels); zero where mask is False.
    mask: (scenes, agents), bool, whether there is such an agent. frame_dt_s: seconds to a step.
    origin_m: (scenes, 2), what was subtracted. agent: (scenes, agents), their numbers, -1 for
    none. start: (scenes,), first step of the window. unit: "m" or "px".
    raster: (rasters, channels, height, width) pictures of the ground, or None; raster_index:
    (scenes,), which of them. The middle of a raster is the world's (0, 0), its columns run
    along x and its rows along y, `meters_per_cell` a cell.
    left_out: agents of windows that were there for a part of the time only, by reason.
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

    def __len__(self) -> int:
        return len(self.past)

    def __getitem__(self, index: slice | Tensor) -> TrajectoryWindows:
        """The scenes that a slice, a mask or a tensor of indices names."""
        per_scene = ("past", "future", "mask", "origin_m", "raster_index", "agent", "start")
        parts = {name: getattr(self, name) for name in per_scene}
        return dataclasses.replace(
            self, **{name: part[index] for name, part in parts.items() if part is not None}
        )

    def to(self, device: torch.device | str) -> TrajectoryWindows:
        """A copy with all tensors on a device; the origin in float32 where it has no float64."""
        single = {} if has_float64(device) else {"origin_m": self.origin_m.float()}
        moved = {k: v for k, v in (vars(self) | single).items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **{k: v.to(device) for k, v in moved.items()})


def cut_windows(
    tracks: Tracks,
    *,
    obs_len: int = 8,
    pred_len: int = 12,
    stride: int = 1,
    min_agents: int = 1,
) -> TrajectoryWindows:
    """Cut windows of obs_len + pred_len steps, with everybody who is there all the time.

    stride: steps between the starts of windows. Windows with fewer than min_agents such agents
    are dropped (1 by default; the usual benchmark on ETH and UCY asks for 2); who is there for a
    part of a kept window is counted in `left_out["partial"]`. Places that are not finite are
    taken as absence. The origin is the mean of the last seen positions.
    Raises ValueError for sizes that are no whole numbers from 1 on, for tracks with an agent
    twice at a step and for tracks without a single whole window.
    """
    sizes = {"obs_len": obs_len, "pred_len": pred_len, "stride": stride, "min_agents": min_agents}
    for name, value in sizes.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} = {value!r}: expected a whole number, at least 1")
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
            whole = there.all(0)
            if int(whole.sum()) < min_agents:
                continue
            pieces.append(at[start : start + length, whole].transpose(0, 1))
            numbers.append(ids[whole])
            starts.append(start + first)
            partial += int(there.any(0).sum() - whole.sum())
    if not pieces:
        raise ValueError(
            f"{tracks.name}: no window of obs_len + pred_len = {length} steps holds "
            f"{min_agents} whole track(s)"
        )
    most = max(map(len, pieces))
    scenes = torch.zeros(len(pieces), most, length, 2, dtype=torch.float64)
    agent = torch.full((len(pieces), most), -1)
    for scene, (piece, number) in enumerate(zip(pieces, numbers, strict=True)):
        scenes[scene, : len(piece)] = piece
        agent[scene, : len(number)] = number
    mask = agent >= 0
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
    )


def join_windows(parts: Sequence[TrajectoryWindows]) -> TrajectoryWindows:
    """One set of the scenes of several, padded to the largest number of agents.

    Rasters are not joined. Raises ValueError for no parts, or for parts that differ in their
    numbers of steps, seconds to a step or unit.
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
    timed = all(part.start is not None for part in parts)
    return dataclasses.replace(
        parts[0],
        past=joined("past", 0.0),
        future=joined("future", 0.0),
        mask=joined("mask", False),
        origin_m=torch.cat([part.origin_m for part in parts]),
        agent=joined("agent", -1) if numbered else None,
        start=torch.cat([part.start for part in parts]) if timed else None,
        raster=None,
        raster_index=None,
        meters_per_cell=None,
        left_out=left_out,
    )
