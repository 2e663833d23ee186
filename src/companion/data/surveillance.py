"""Fixed cameras that watch people: PETS 2009 S2-L1 frame by frame, and Oxford Town Centre's view."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data.root import CorruptDataError, MissingDataError, data_root

PETS = Path("pedestrian-frames", "PETS09-S2L1")
TOWN_CENTRE = Path("trajectories", "datasets", "Town-Center")
TOWN_CENTRE_BOXES = Path("trajectories", "extra", "towncentre-boxes-5percent.csv")
PETS_FRAMES = 795


@dataclass(frozen=True)
class VideoSource:
    """Where a set comes from and what may be done with it.

    where: its folder below the data root. get: one sentence that says how to come by it.
    """

    title: str
    where: str
    licence: str
    get: str


VIDEO_SETS: dict[str, VideoSource] = {
    "pets": VideoSource(
        "PETS 2009 S2-L1, view 001 (795 frames of one camera, boxes and ground points)",
        PETS.as_posix(),
        "University of Reading: for academic and industrial research, source to be acknowledged "
        "(Ferryman and Shahrokni, 2009)",
        "Put img1/000001.jpg to 000795.jpg, gt/gt.txt and calibration/View_001.xml there.",
    ),
    "town_centre": VideoSource(
        "Oxford Town Centre (one frame with people blurred, calibration, boxes)",
        TOWN_CENTRE.as_posix(),
        "none stated",
        "Put the folder `datasets` of the OpenTraj collection (github.com/crowdbotp/OpenTraj) "
        "into `trajectories` below the data root, and a table of boxes into `trajectories/extra`.",
    ),
}


@dataclass(frozen=True, eq=False)
class PetsClip:
    """PETS 2009 S2-L1, view 001: 795 frames of 768 x 576 pixels.

    folder: where it lies. truth: frame number -> boxes (n, 4), x0, y0, x1, y1 in pixels, and
    ground points (n, 2) in metres under the middle of the lower edge. Frames count from 1.
    checksum: sha256 of the ground truth.
    """

    folder: Path
    truth: dict[int, tuple[Tensor, Tensor]]
    checksum: str

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration" / "View_001.xml"

    def frames(self, numbers: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
        """(n, 3, H, W) uint8. size: width, height to shrink to, by averaging."""
        return torch.stack([self._frame(number, size) for number in numbers])

    def background(self, every: int = 10, size: tuple[int, int] | None = None) -> Tensor:
        """(3, H, W) in [0, 1]: the median of every tenth frame, in which people do not show."""
        frames = self.frames(range(1, PETS_FRAMES + 1, every), size)
        return frames.median(0).values.float() / 255

    def _frame(self, number: int, size: tuple[int, int] | None) -> Tensor:
        from PIL import Image

        path = self.folder / "img1" / f"{number:06d}.jpg"
        if not path.is_file():
            raise MissingDataError(f"{path} is missing: the clip has {PETS_FRAMES} frames")
        with Image.open(path) as picture:
            if size is not None:
                picture = picture.resize(size, Image.Resampling.BOX)
            return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(2, 0)


def load_pets(root: str | os.PathLike = "") -> PetsClip:
    """Find the clip below a data root and read its ground truth.

    Raises MissingDataError, saying what to put where, or CorruptDataError.
    """
    folder = data_root(root) / PETS
    file = folder / "gt" / "gt.txt"
    if not file.is_file():
        raise MissingDataError(
            f"PETS 2009 S2-L1 is not in {folder}. Put view 001 there as img1/000001.jpg to "
            "000795.jpg, gt/gt.txt (frame, id, left, top, width, height, 1, X, Y, 0) and "
            "calibration/View_001.xml (Tsai); the clip is published by the University of Reading."
        )
    raw = file.read_bytes()
    try:
        rows = np.array([line.split(",") for line in raw.decode().split()], dtype=np.float64)
        boxes = torch.from_numpy(rows[:, 2:6]).float()
        ground = torch.from_numpy(rows[:, 7:9]).float()
    except (ValueError, IndexError) as error:
        raise CorruptDataError(f"{file}: cannot be read ({error})") from error
    boxes[:, 2:] += boxes[:, :2]
    truth = {}
    for number in range(1, PETS_FRAMES + 1):
        here = torch.from_numpy(rows[:, 0] == number)
        truth[number] = boxes[here], ground[here]
    return PetsClip(folder, truth, hashlib.sha256(raw).hexdigest())


@dataclass(frozen=True, eq=False)
class TownCentre:
    """The view of Oxford Town Centre: one frame and a calibration for 1920 x 1080 pixels.

    frame: (3, 720, 1280) in [0, 1], with people blurred and boxes drawn in, so no background to
    test detectors on. calibration: path. boxes: (n, 4), x0, y0, x1, y1 at 1920 x 1080.
    """

    frame: Tensor
    calibration: Path
    boxes: Tensor


def load_town_centre(root: str | os.PathLike = "") -> TownCentre:
    """Find the view below a data root. Raises MissingDataError, saying what to put where."""
    from PIL import Image

    folder = data_root(root) / TOWN_CENTRE
    picture, calibration = folder / "reference.jpg", folder / "TownCentre-calibration-ci.txt"
    table = data_root(root) / TOWN_CENTRE_BOXES
    for path in (picture, calibration, table):
        if not path.is_file():
            raise MissingDataError(
                f"{path} is missing. Put the folder datasets/Town-Center of the OpenTraj "
                "collection (github.com/crowdbotp/OpenTraj) below `trajectories` in the data root, "
                "and a table of boxes (filename, ..., x0, y0, x1, y1 at 960 x 540) beside it."
            )
    with Image.open(picture) as image:
        frame = torch.from_numpy(np.array(image.convert("RGB"))).movedim(2, 0).float() / 255
    return TownCentre(frame, calibration, _town_centre_boxes(table))


def _town_centre_boxes(path: Path) -> Tensor:
    """Boxes at full resolution: twice the table's pixels, plus 2."""
    import csv

    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        names = ("xmin", "ymin", "xmax", "ymax")
        values = [[float(row[name]) for name in names] for row in rows]
    except (KeyError, ValueError) as error:
        raise CorruptDataError(f"{path}: cannot be read ({error!r})") from error
    return 2 * torch.tensor(values, dtype=torch.float64) + 2
