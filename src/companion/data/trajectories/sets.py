"""The public sets of tracks, each read from the files that its authors publish.

A set that is not there raises an error that says what to put where.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
from functools import cache
from importlib.resources import files
from numbers import Real
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.checks import whole
from companion.data.files import read_rows, read_table, read_text, to_numbers
from companion.data.root import ELSEWHERE, CorruptDataError, DataSource, data_root
from companion.data.trajectories.tracks import (
    Tracks,
    check_whole,
    make_tracks,
    thinned,
    transform,
    whole_multiple,
)

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
LONGEST_SPLINE = 25 * 3600  # frames between its ends: nobody is in a picture for an hour


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


def load_tracks(
    name: str, root: str | os.PathLike = "", *, dt_s: float = 0.4, phase: int = 0
) -> Tracks:
    """Load the tracks of one scene of a public set by name.

    The metres of "students001" and "students003" are a plain scaling of pixels, as in all of
    TrajNet's crowds, so they are others than those of "students03".

    Args:
        name: "eth", "hotel", "zara01", "zara02", "students03" (metres, sampled), "students001",
            "students003" (the same university square, annotated anew: "univ" of the usual
            benchmark), "zara03", "students01", "uni_examples" (splines; metres for zara03, pixels
            for the others), "sdd/<scene>/<number>" (pixels), or "trajnet/<file>", such as
            "trajnet/bookstore_0".
        root: as `companion.data.root.data_root`.
        dt_s: seconds between two steps, at most 60; a sampled set takes whole multiples of its
            own 0.4 s, splines multiples of 1/25 s, SDD of 1/30 s.
        phase: the video's frame at which the clock starts, for "sdd" only: 0 up to the frames of
            one step. Each phase reads other frames of the same video.

    Raises:
        ValueError: for an unknown name, or a dt_s or phase that the set cannot give.
        MissingDataError: if the files are not there.
        CorruptDataError: if one cannot be read, is shorter than the published one that it begins
            as, has an agent at two positions at once or is not on its set's clock.
    """
    if not (isinstance(dt_s, Real) and 0 < dt_s <= LONGEST_DT_S):
        raise ValueError(f"dt_s = {dt_s!r}: expected seconds above 0, at most {LONGEST_DT_S:g}")
    whole(0, phase=phase)
    base = data_root(root) / FOLDER
    if re.fullmatch(r"sdd/[A-Za-z]+/\d+", str(name)):
        return _load_sdd(base, name, dt_s, phase)
    if name in OBSMAT:
        load = _load_obsmat
    elif name in SPLINES:
        load = _load_splines
    elif name in BENCHMARK:
        load = _load_benchmark
    elif re.fullmatch(r"trajnet/[A-Za-z0-9_-]+", str(name)):
        load = _load_trajnet
    else:
        sampled = [*OBSMAT, *BENCHMARK, *SPLINES]
        known = ", ".join(map(repr, [*sampled, "sdd/gates/8", "trajnet/bookstore_0"]))
        raise ValueError(f"name = {name!r}: expected one of {known} or their like")
    if phase:
        raise ValueError(f"phase = {phase}: expected 0, {name!r} is not annotated frame by frame")
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
    tracks = make_tracks(name, path, table, dt_s=0.4, frames=frames, phase=None)
    tracks = dataclasses.replace(
        tracks,
        groups=_groups(base / folder / "groups.txt"),
        picture=_existing(base / folder / "reference.png"),
        to_pixels=_homography(base / folder / homography, image=shift),
    )
    return thinned(tracks, dt_s)


def _load_benchmark(base: Path, name: str, dt_s: float) -> Tracks:
    """`frame id x y` in TrajNet's metres of UCY, one step 0.4 s."""
    path = base / BENCHMARK[name]
    table = to_numbers(path, read_rows(path, TABLE_COLUMNS, get=_HOW), TABLE_COLUMNS)
    _as_long_as_published(path, base, table)
    tracks = make_tracks(name, path, table, dt_s=0.4, frames=10)
    picture = _existing(path.with_name("reference.png"))
    return thinned(dataclasses.replace(tracks, to_pixels=_crowds_map(), picture=picture), dt_s)


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
    frames = whole_multiple(dt_s * FRAMES_PER_SECOND["vsp"], "dt_s", dt_s, "a multiple of 1/25 s")
    tables = []
    for agent, spline in enumerate(read_splines(path), start=1):
        first, last = spline[0, 2], spline[-1, 2]
        step = np.arange(np.ceil(first / frames), np.floor(last / frames) + 1)
        u, v = (np.interp(step * frames, spline[:, 2], spline[:, axis]) for axis in (0, 1))
        number = np.full(len(step), agent)
        tables.append(np.stack([step, number, u + UCY_MIDDLE[0], UCY_MIDDLE[1] - v], 1))
    tracks = make_tracks(name, path, np.concatenate(tables), dt_s=dt_s)
    tracks = dataclasses.replace(tracks, frames_per_step=frames)
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
    """Read the splines of a UCY `annotation.vsp`.

    Returns:
        An array (points, 3) of u, v, frame for each spline: pixels from the middle of the 720 by
        576 frame, v up; frames of 1/25 s.

    Raises:
        CorruptDataError: if fewer are there than the file's first line says.
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


def _load_sdd(base: Path, name: str, dt_s: float, phase: int) -> Tracks:
    """`id xmin ymin xmax ymax frame lost occluded generated "label"`; box middles in pixels."""
    _, scene, number = name.split("/")
    folder = base / "SDD" / scene / f"video{number}"
    path = folder / "annotations.txt"
    every = whole_multiple(dt_s * FRAMES_PER_SECOND["sdd"], "dt_s", dt_s, "a multiple of 1/30 s")
    if phase >= every:
        raise ValueError(f"phase = {phase}: expected a frame of the first step, below {every}")
    rows = read_rows(path, SDD_COLUMNS, get=_HOW, more=True)
    table = to_numbers(path, rows, SDD_COLUMNS)
    _as_long_as_published(path, base, table)
    check_whole(path, rows, table[:, [0, 5, 6]], "id, frame and lost")
    seen, on_step = table[:, 6] == 0, table[:, 5] % every == phase
    kept = table[seen & on_step]
    middle = (kept[:, [1, 2]] + kept[:, [3, 4]]) / 2
    tracks = make_tracks(
        name,
        path,
        np.column_stack([kept[:, 5] // every, kept[:, 0], middle]),
        dt_s=dt_s,
        left_out={"lost": int((~seen & on_step).sum())},
    )
    return dataclasses.replace(
        tracks,
        unit="px",
        frames_per_step=every,
        first_frame=phase,
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
    tracks = make_tracks(name, path, table, dt_s=own_dt_s, frames=frames, left_out=left_out)
    if path.parts[-2] == "stanford":
        tracks = _on_sdd(tracks, base, stem)
    elif path.parts[-2] == "crowds" and stem != "arxiepiskopi1":
        tracks = dataclasses.replace(tracks, to_pixels=_crowds_map())
    return tracks if dt_s == 0.4 else thinned(tracks, dt_s)


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
