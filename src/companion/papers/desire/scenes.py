"""Real scenes: windows of the Stanford Drone Dataset, TrajNet and ETH/UCY, with their pictures.

Stanford's scenes stay in the unit of the paper's tables, a pixel of the video reduced 5 times
("px/5"); nobody knows their scale in metres well. Wherever a length in metres is meant, the
caller says how many such units a metre is.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.checks import above, whole
from companion.data.files import open_picture
from companion.data.root import IncompleteDataError, data_root
from companion.data.trajectories import (
    ETH_UCY,
    TRACK_SETS,
    Tracks,
    TrajectoryWindows,
    cut_windows,
    join_windows,
    load_tracks,
    track_names,
)
from companion.papers.desire.junction import Junction, simulate_tjunction

REDUCE = 5  # pixels to a unit of the tables
SDD_TEST = ("gates/8", "nexus/4", "hyang/12", "quad/1", "deathCircle/2")
TRAJNET_SDD = {  # the files of TrajNet's training part that are scenes of Stanford's
    "bookstore": (0, 1, 2, 3),
    "coupa": (3,),
    "deathCircle": (0, 1, 2, 3, 4),
    "gates": (0, 1, 3, 4, 5, 6, 7, 8),
    "hyang": (4, 5, 6, 7, 9),
    "nexus": (0, 1, 2, 3, 4, 7, 8, 9),
}
UNITS_PER_METRE = {"tjunction": 1.0, "sdd": 5.0, "trajnet": 1.0, "ethucy": 1.0}  # about
NEEDS = {"tjunction": (), "sdd": ("sdd",), "trajnet": ("trajnet",), "ethucy": ("eth", "ucy")}
PATCH_CELLS = 2  # points a side by which a cell of the ground is averaged


def ground_picture(tracks: Tracks, extent: float, cells: int) -> tuple[Tensor, Tensor]:
    """The reference picture on a square grid in the tracks' own unit.

    Args:
        tracks: of one scene.
        extent: side of the square around the middle of the tracks, above 0.
        cells: along a side, at least 1.

    Returns:
        Shape (1 + 3, cells, cells), a channel that is 1 where there is a picture and then red, green
        and blue in [0, 1], rows along y; and the middle (2,).

    Raises:
        ValueError: for tracks without a picture or without a map to it, and numbers out of range.
        CorruptDataError: for a picture that cannot be decoded.
    """
    if tracks.picture is None or tracks.to_pixels is None:
        raise ValueError(
            f"{tracks.name}: there is no picture of the ground, or no map to it; "
            "leave the scene out (use_scene false)"
        )
    if cells < 1 or not 0 < extent < math.inf:
        raise ValueError(f"cells, extent = {cells}, {extent}: expected at least 1 and above 0")
    low, high = tracks.position.amin(0), tracks.position.amax(0)
    middle = (low + high) / 2
    fine = cells * PATCH_CELLS
    opened = open_picture(tracks.picture, "RGB")
    # one averaged pixel is about one point of the fine grid
    width, height = opened.size
    across = tracks.pixels(middle + torch.tensor([[extent / 2, 0], [-extent / 2, 0]]))
    shrink = max(1, int((across[0] - across[1]).norm() / fine))
    small = opened.resize((max(1, width // shrink), max(1, height // shrink)))
    image = torch.from_numpy(np.array(small)).movedim(2, 0).float() / 255
    at = ((torch.arange(fine) + 0.5) / fine - 0.5) * extent
    y, x = torch.meshgrid(at.double(), at.double(), indexing="ij")
    pixel = tracks.pixels(torch.stack([x, y], -1) + middle)
    grid = 2 * pixel / torch.tensor([width, height]) - 1
    inside = (grid.abs() <= 1).all(-1)
    seen = torch.nn.functional.grid_sample(
        image[None], grid[None].float(), align_corners=False, padding_mode="border"
    )[0]
    layers = torch.cat([inside[None].float(), seen * inside])
    return torch.nn.functional.avg_pool2d(layers[None], PATCH_CELLS)[0], middle


def with_picture(
    windows: TrajectoryWindows, picture: Tensor, middle: Tensor, cell: float
) -> TrajectoryWindows:
    """Windows of one scene with its picture; the world's origin moves to the picture's middle.

    Args:
        windows: of one scene.
        picture: as `ground_picture` gives it.
        middle: likewise.
        cell: side of a cell of the picture, in the windows' unit.
    """
    return dataclasses.replace(
        windows,
        origin_m=windows.origin_m - middle,
        raster=picture[None],
        meters_per_cell=cell,
        raster_index=torch.zeros(len(windows), dtype=torch.long),
    )


def join_with_pictures(parts: Sequence[TrajectoryWindows]) -> TrajectoryWindows:
    """As `join_windows`, and keeps the pictures if all parts have some of one size and scale."""
    joined = join_windows(parts)
    rasters, index, count = [], [], 0
    for part in parts:
        if part.raster is None:
            return joined
        assert part.raster_index is not None  # a raster has scenes
        rasters.append(part.raster)
        index.append(part.raster_index + count)
        count += len(part.raster)
    return dataclasses.replace(
        joined,
        raster=torch.cat(rasters),
        raster_index=torch.cat(index),
        meters_per_cell=parts[0].meters_per_cell,
    )


def load_sdd(
    videos: Sequence[str],
    root: str | os.PathLike = "",
    *,
    obs_len: int = 5,
    pred_len: int = 10,
    dt_s: float = 0.4,
    start_every_s: float = 2.0,
    phase: int = 0,
    min_agents: int = 1,
    cells: int = 64,
    extent: float = 440.0,
    pictures: bool = True,
) -> TrajectoryWindows:
    """Load windows of videos of the Stanford Drone Dataset.

    Boxes that the annotators call lost are left out, an agent is the middle of a box. Lengths
    are in the unit of the paper's tables, pixels of the video reduced five times (`unit` is
    "px/5").

    Args:
        videos: such as "gates/8".
        root: as in `load_tracks`.
        obs_len: steps seen, at least 1.
        pred_len: steps to predict, at least 0.
        dt_s: seconds to a step, a multiple of 1/30 s.
        start_every_s: seconds between the starts of two windows, above 0; rounded to whole
            steps, at least one.
        phase: the video's frame at which the clock starts, below the frames of a step.
        min_agents: least agents of a window.
        cells: of the image of the ground, along a side.
        extent: side of that image in px/5, above 0.
        pictures: add the image of the ground.

    Raises:
        ValueError: for arguments out of range and a video without a whole window.
        MissingDataError: as `load_tracks`.
        CorruptDataError: as `load_tracks`.
    """
    if not videos:
        raise ValueError("videos = []: expected at least one, such as 'gates/8'")
    above(0, start_every_s=start_every_s)
    parts = []
    for video in videos:
        tracks = load_tracks(f"sdd/{video}", root, dt_s=dt_s, phase=phase)
        shrink = torch.diag(torch.tensor([REDUCE, REDUCE, 1.0], dtype=torch.float64))
        assert tracks.to_pixels is not None  # every video has a map to its picture
        tracks = dataclasses.replace(
            tracks,
            position=tracks.position / REDUCE,
            to_pixels=tracks.to_pixels @ shrink,
            unit=f"px/{REDUCE}",
        )
        stride = max(1, round(start_every_s / dt_s))
        sizes = {"obs_len": obs_len, "pred_len": pred_len, "min_agents": min_agents}
        windows = cut_windows(tracks, stride=stride, **sizes)
        if pictures:
            picture, middle = ground_picture(tracks, extent, cells)
            windows = with_picture(windows, picture, middle, extent / cells)
        parts.append(windows)
    return join_with_pictures(parts)


def sdd_videos(root: str | os.PathLike = "") -> list[str]:
    """Videos of the Stanford Drone Dataset that are there."""
    names = track_names(root)
    return [name.removeprefix("sdd/") for name in names if name.startswith("sdd/")]


def load_trajnet(
    names: Sequence[str], root: str | os.PathLike = "", *, obs_len: int = 8, pred_len: int = 12
) -> TrajectoryWindows:
    """Load windows of files of TrajNet, in metres, without pictures.

    The files hold pieces of 20 steps; those whose end is withheld are left out.

    Args:
        names: such as "bookstore_0".
        root: as in `load_tracks`.
        obs_len: steps seen, at least 1.
        pred_len: steps to predict; 0 reads what is seen of test files, whose ends are withheld.

    Raises:
        ValueError: for no names, and a file without a whole window.
        MissingDataError: as `load_tracks`.
        CorruptDataError: as `load_tracks`.
    """
    if not names:
        raise ValueError("names = []: expected at least one, such as 'bookstore_0'")
    return join_windows(
        [
            cut_windows(load_tracks(f"trajnet/{name}", root), obs_len=obs_len, pred_len=pred_len)
            for name in names
        ]
    )


def load_eth_ucy(
    scenes: Sequence[str],
    root: str | os.PathLike = "",
    *,
    obs_len: int = 8,
    pred_len: int = 12,
    min_agents: int = 2,
) -> TrajectoryWindows:
    """Load windows of scenes of ETH and UCY, in metres, at steps of 0.4 s, without pictures.

    Args:
        scenes: of `ETH_UCY`, such as "univ", which is the benchmark's annotation of the university
            square: with 8 and 12 steps it gives 24,334 paths, 14,295 of "students001" and 10,039 of
            "students003".
        root: as in `load_tracks`.
        obs_len: steps seen, at least 1.
        pred_len: steps to predict, at least 0.
        min_agents: of a window; the benchmark takes those with 2 at least.

    Raises:
        ValueError: for an unknown scene, or none.
        MissingDataError: as `load_tracks`.
        CorruptDataError: as `load_tracks`.
    """
    if not scenes:
        raise ValueError("scenes = []: expected at least one, such as 'univ'")
    for scene in scenes:
        if scene not in ETH_UCY:
            known = ", ".join(map(repr, ETH_UCY))
            raise ValueError(f"scene = {scene!r}: expected one of {known}")
    sizes = {"obs_len": obs_len, "pred_len": pred_len, "min_agents": min_agents}
    names = [name for scene in scenes for name in ETH_UCY[scene]]
    return join_windows([cut_windows(load_tracks(name, root), **sizes) for name in names])


@dataclass(frozen=True, eq=False)
class Fold:
    """Scenes to learn from and scenes to test on.

    Args:
        name: of the fold.
        train: scenes to learn from.
        test: scenes to test on.
        truth: of the test scenes, where it is known.
    """

    name: str
    train: TrajectoryWindows
    test: TrajectoryWindows
    truth: Junction | None = None


def load_folds(
    dataset: str,
    root: str | os.PathLike = "",
    *,
    obs_len: int,
    pred_len: int,
    dt_s: float = 0.4,
    n_scenes: int = 800,
    pictures: bool = True,
    seed: int = 0,
) -> Iterator[Fold]:
    """Load one fold after the other, each when its turn comes.

    Only the junction and "sdd" come with pictures of the ground.

    Args:
        dataset: "tjunction" (every fold other seeds), "sdd" (five folds by video, the first tests on
            `SDD_TEST`), "trajnet" (five by file) or "ethucy" (five, each leaves a scene out, as the
            usual benchmark does: its "univ", and windows with two people at least).
        root: as in `load_tracks`.
        obs_len: steps seen.
        pred_len: steps to predict.
        dt_s: seconds to a step, 0.4 for "trajnet" and "ethucy".
        n_scenes: of the junction to learn from, and a quarter more to test on.
        pictures: with images of the ground.
        seed: of the junction.

    Raises:
        ValueError: for another dataset or dt_s and for counts below 1.
        MissingDataError: for a set that is not there, before anything is loaded.
    """
    if dataset not in UNITS_PER_METRE:
        raise ValueError(
            f"dataset = {dataset!r}: expected one of {', '.join(map(repr, UNITS_PER_METRE))}"
        )
    if dataset in ("trajnet", "ethucy") and dt_s != 0.4:
        raise ValueError(f"dt_s = {dt_s!r}: {dataset} has steps of 0.4 s")
    if dataset in ("trajnet", "ethucy") and pictures:
        raise ValueError(f"use_scene = True: {dataset} comes without pictures; set it to false")
    above(0, dt_s=dt_s)
    whole(1, n_scenes=n_scenes, pred_len=pred_len)
    whole(2, obs_len=obs_len)
    whole(0, seed=seed)
    sizes = {"obs_len": obs_len, "pred_len": pred_len}
    for name in NEEDS[dataset]:
        TRACK_SETS[name].require(name, data_root(root), whole=False)
    if dataset == "sdd":
        _sdd_folds(root)
    return _folds(dataset, root, sizes, dt_s, n_scenes, pictures, seed)


def _sdd_folds(root: str | os.PathLike) -> list[list[str]]:
    """The videos that each of five folds tests on."""
    rest = sdd_videos(root)
    lacking = sorted(set(SDD_TEST) - set(rest))
    rest = [video for video in rest if video not in SDD_TEST]
    if lacking or len(rest) < 4:
        raise IncompleteDataError(
            f"dataset 'sdd' in {data_root(root)} is incomplete: expected annotations.txt of the "
            f"videos {', '.join(SDD_TEST)} and of four others at least; "
            f"it lacks {', '.join(lacking) or 'others'}. {TRACK_SETS['sdd'].get}"
        )
    return [list(SDD_TEST), *(rest[k::4] for k in range(4))]


def _folds(
    dataset: str,
    root: str | os.PathLike,
    sizes: dict[str, Any],
    dt_s: float,
    n_scenes: int,
    pictures: bool,
    seed: int,
) -> Iterator[Fold]:
    if dataset == "tjunction":
        for fold in range(5):
            known, truth = (
                simulate_tjunction(count, dt_s=dt_s, seed=100 * seed + 20 * fold + part, **sizes)
                for part, count in enumerate((n_scenes, max(1, n_scenes // 4)))
            )
            yield Fold(f"junction {fold + 1}", known.windows, truth.windows, truth)
    elif dataset == "sdd":
        tests = _sdd_folds(root)
        for fold, test in enumerate(tests):
            train = [video for other in tests for video in other if video not in test]
            load: dict[str, Any] = {"dt_s": dt_s, "pictures": pictures, **sizes}
            seen, unseen = (load_sdd(videos, root, **load) for videos in (train, test))
            yield Fold(f"fold {fold + 1}", seen, unseen)
    elif dataset == "trajnet":
        names = [f"{scene}_{n}" for scene, numbers in TRAJNET_SDD.items() for n in numbers]
        for fold in range(5):
            train = [name for k, name in enumerate(names) if k % 5 != fold]
            seen, unseen = (
                load_trajnet(files, root, **sizes) for files in (train, names[fold::5])
            )
            yield Fold(f"fold {fold + 1}", seen, unseen)
    else:
        for left_out in ETH_UCY:
            train = [scene for scene in ETH_UCY if scene != left_out]
            seen, unseen = (load_eth_ucy(scenes, root, **sizes) for scenes in (train, [left_out]))
            yield Fold(f"without {left_out}", seen, unseen)
