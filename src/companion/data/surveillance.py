"""Fixed cameras that watch people: PETS 2009 S2-L1 frame by frame, and Oxford Town Centre's view."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data.files import open_picture, read_table, read_text
from companion.data.root import CorruptDataError, DataSource, data_root

PETS = Path("pedestrian-frames", "PETS09-S2L1")
TOWN_CENTRE = Path("trajectories", "datasets", "Town-Center")
TOWN_CENTRE_BOXES = Path("trajectories", "extra", "towncentre-boxes-5percent.csv")
PETS_FRAMES = 795


_PETS_GET = (
    "Put view 001 there as img1/000001.jpg to 000795.jpg, gt/gt.txt (frame, id, left, top, width, "
    "height, 1, X, Y, 0) and calibration/View_001.xml (Tsai); the clip is published by the "
    "University of Reading."
)
_TOWN_GET = (
    "Put the folder `datasets` of the OpenTraj collection (github.com/crowdbotp/OpenTraj) "
    "into `trajectories` below the data root, and a table of boxes (filename, ..., xmin, ymin, "
    "xmax, ymax at 960 x 540) into `trajectories/extra`."
)
VIDEO_SETS: dict[str, DataSource] = {
    "pets": DataSource(
        "PETS 2009 S2-L1, view 001 (795 frames of one camera, boxes and ground points)",
        PETS.as_posix(),
        "University of Reading: for academic and industrial research, source to be acknowledged "
        "(Ferryman and Shahrokni, 2009)",
        _PETS_GET,
        needs={
            f"{PETS.as_posix()}/{path}": count
            for path, count in {
                "img1/??????.jpg": PETS_FRAMES,
                "gt/gt.txt": 1,
                "calibration/View_001.xml": 1,
            }.items()
        },
    ),
    "town_centre": DataSource(
        "Oxford Town Centre (one frame with people blurred, calibration, boxes)",
        TOWN_CENTRE.as_posix(),
        "none stated",
        _TOWN_GET,
        needs={
            f"{TOWN_CENTRE.as_posix()}/reference.jpg": 1,
            f"{TOWN_CENTRE.as_posix()}/TownCentre-calibration-ci.txt": 1,
            TOWN_CENTRE_BOXES.as_posix(): 1,
        },
    ),
}


@dataclass(frozen=True, eq=False)
class PetsClip:
    """PETS 2009 S2-L1, view 001: 795 frames of 768 x 576 pixels.

    Args:
        folder: where it lies.
        truth: frame number -> boxes (n, 4), x0, y0, x1, y1 in pixels, and ground points (n, 2)
            in metres under the middle of the lower edge. Frames count from 1.
        checksum: sha256 of the ground truth.
    """

    folder: Path
    truth: dict[int, tuple[Tensor, Tensor]]
    checksum: str

    @property
    def calibration(self) -> Path:
        """Path of the camera's calibration."""
        return self.folder / "calibration" / "View_001.xml"

    def frames(self, numbers: Sequence[int], size: tuple[int, int] | None = None) -> Tensor:
        """Some frames, (n, 3, H, W) uint8.

        Args:
            size: width, height to shrink to, by averaging.

        Raises:
            MissingDataError: with the frame's file.
            CorruptDataError: with the frame's file.
            ValueError: for a size below one pixel or no frames.
        """
        if not len(numbers):
            raise ValueError("numbers = []: expected at least one frame")
        if size is not None and min(size) < 1:
            raise ValueError(f"size = {size!r}: expected a width and a height of at least 1 pixel")
        return torch.stack([self._frame(number, size) for number in numbers])

    def background(self, every: int = 10, size: tuple[int, int] | None = None) -> Tensor:
        """(3, H, W) in [0, 1]: the median of every tenth frame, in which people do not show.

        Args:
            every: frames from one to the next that is used.
            size: as `frames`.

        Raises:
            ValueError: for a number below 1.
        """
        if every < 1:
            raise ValueError(f"every = {every!r}: expected at least 1 frame")
        frames = self.frames(range(1, PETS_FRAMES + 1, every), size)
        return frames.median(0).values.float() / 255

    def _frame(self, number: int, size: tuple[int, int] | None) -> Tensor:
        from PIL import Image

        path = self.folder / "img1" / f"{number:06d}.jpg"
        picture = open_picture(path, get=f"The clip has frames 1 to {PETS_FRAMES}. {_PETS_GET}")
        if size is not None:
            picture = picture.resize(size, Image.Resampling.BOX)
        return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(2, 0)


def load_pets(root: str | os.PathLike = "") -> PetsClip:
    """Find the clip below a data root and read its ground truth.

    Raises:
        MissingDataError: saying what to put where.
        CorruptDataError: for a file that cannot be read.
    """
    base = data_root(root)
    VIDEO_SETS["pets"].require("pets", base, whole=False)  # frames are asked for when used
    file = base / PETS / "gt" / "gt.txt"
    if not (base / PETS / "calibration" / "View_001.xml").is_file():
        VIDEO_SETS["pets"].require("pets", base)
    columns = "frame id left top width height 1 X Y 0"
    rows = read_table(file, columns, get=_PETS_GET, separator=",")
    if not set(rows[:, 0]) <= set(range(1, PETS_FRAMES + 1)) or (rows[:, 4:6] <= 0).any():
        raise CorruptDataError(
            f"{file}: expected frames 1 to {PETS_FRAMES} and boxes wider and higher than 0"
        )
    boxes = torch.from_numpy(rows[:, 2:6]).float()
    ground = torch.from_numpy(rows[:, 7:9]).float()
    boxes[:, 2:] += boxes[:, :2]
    truth = {}
    for number in range(1, PETS_FRAMES + 1):
        here = torch.from_numpy(rows[:, 0] == number)
        truth[number] = boxes[here], ground[here]
    return PetsClip(base / PETS, truth, hashlib.sha256(file.read_bytes()).hexdigest())


@dataclass(frozen=True, eq=False)
class TownCentre:
    """The view of Oxford Town Centre: one frame and a calibration for 1920 x 1080 pixels.

    Args:
        frame: (3, 720, 1280) in [0, 1], with people blurred and boxes drawn in, so no
            background to test detectors on.
        calibration: path.
        boxes: (n, 4), x0, y0, x1, y1 at 1920 x 1080.
    """

    frame: Tensor
    calibration: Path
    boxes: Tensor


def load_town_centre(root: str | os.PathLike = "") -> TownCentre:
    """Find the view below a data root.

    Raises:
        MissingDataError: saying what to put where.
        CorruptDataError: for a file that cannot be read.
    """
    base = data_root(root)
    VIDEO_SETS["town_centre"].require("town_centre", base)
    picture = open_picture(base / TOWN_CENTRE / "reference.jpg", "RGB")
    frame = torch.from_numpy(np.array(picture)).movedim(2, 0).float() / 255
    calibration = base / TOWN_CENTRE / "TownCentre-calibration-ci.txt"
    return TownCentre(frame, calibration, _town_centre_boxes(base / TOWN_CENTRE_BOXES))


def _town_centre_boxes(path: Path) -> Tensor:
    """Boxes at full resolution: twice the table's pixels, plus 2."""
    names = ("xmin", "ymin", "xmax", "ymax")
    try:
        rows = csv.DictReader(read_text(path).splitlines())
        values = torch.tensor(
            [[float(row[name]) for name in names] for row in rows], dtype=torch.float64
        )
    except (csv.Error, KeyError, TypeError, ValueError) as error:
        raise CorruptDataError(f"{path}: cannot be read ({error!r})") from error
    if not values.numel() or not values.isfinite().all():
        raise CorruptDataError(f"{path}: expected boxes of finite numbers ({', '.join(names)})")
    return 2 * values + 2
