"""Pictures to be fitted as signals: `load_signals("faces")` gives tensors or says what is missing.

Unlike `companion.data.images` there are no labels: a set is a family of signals of one size,
some to learn from and some to be met for the first time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.data.files import open_picture, turned_upright
from companion.data.images import IMAGE_SETS, load_images
from companion.data.root import (
    CorruptDataError,
    DataSource,
    MissingDataError,
    data_root,
)

PICTURE_FILES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow turns colour into grey


@dataclass(frozen=True, eq=False)
class Signals:
    """A family of pictures in memory.

    Attributes:
        train, test: (n, channels, height, width), float32 in [0, 1].
        checksum: sha256 over the pixels, for provenance.
    """

    name: str
    train: Tensor
    test: Tensor
    checksum: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> Signals:
        """A copy with all tensors on a device."""
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class SignalSource(DataSource):
    """Where a family of pictures comes from.

    Attributes:
        load: maps (folder, n_train, n_test, size, channels) to two stacks of pictures.
    """

    load: Callable[[Path, int, int, int, int], tuple[Tensor, Tensor]] = field(kw_only=True)


def load_signals(
    name: str,
    root: str | os.PathLike = "",
    *,
    n_train: int,
    n_test: int,
    size: int = 0,
    channels: int = 0,
) -> Signals:
    """Load a family of pictures of `SIGNAL_SETS` by name, always the same ones.

    Args:
        name: of `SIGNAL_SETS`.
        root: as `companion.data.root.data_root`.
        n_train, n_test: pictures to learn from and unseen ones.
        size: shorter side resized to it, middle cropped square; 0 takes the set's own size.
        channels: 1 for grey, 3 for colour; 0 takes the set's own.

    Raises:
        ValueError: for an unknown name or more pictures than there are.
        MissingDataError: with what to put where.
        CorruptDataError: for files that are damaged. Half a set will do for as many pictures as it
            has; for more it raises IncompleteDataError.
    """
    if name not in SIGNAL_SETS:
        raise ValueError(
            f"dataset = {name!r}: expected one of {', '.join(map(repr, SIGNAL_SETS))}"
        )
    if n_train < 1 or n_test < 1:
        raise ValueError(f"n_train, n_test = {n_train}, {n_test}: expected at least 1 of each")
    if size and size < 4:
        raise ValueError(f"size = {size!r}: expected at least 4 pixels, or 0 for the set's own")
    if channels not in (0, 1, 3):
        raise ValueError(
            f"channels = {channels!r}: expected 1 (grey), 3 (colour) or 0 (as they are)"
        )
    source, folder = SIGNAL_SETS[name], data_root(root)
    source.require(name, folder, whole=False)
    try:
        train, test = source.load(folder, n_train, n_test, size, channels)
    except MissingDataError:
        source.require(name, folder)  # says what half a set lacks
        raise
    for part, wanted, option in ((train, n_train, "n_train"), (test, n_test, "n_test")):
        if len(part) < wanted:
            source.require(name, folder)
            raise ValueError(f"{option} = {wanted}: {name!r} has {len(part)} such pictures")
    train, test = train[:n_train].contiguous(), test[:n_test].contiguous()
    digest = hashlib.sha256(train.numpy().tobytes() + test.numpy().tobytes())
    return Signals(name, train, test, digest.hexdigest())


def to_signal(picture: Any, *, size: int = 0, channels: int = 0) -> Tensor:
    """A picture of whatever kind as a signal, (channels, height, width), float32 in [0, 1].

    Args:
        picture: a Pillow image of any mode, or an array or tensor (height, width) or (height,
            width, 1 to 4 channels) of bool, uint8, uint16, or floats in [0, 1]. Two and four
            channels are grey and colour with alpha, laid on white.
        size: resize the shorter side (antialiased) and crop the middle; 0 leaves the size alone.
        channels: 1 turns colour to grey, 3 repeats grey; 0 leaves it.

    Raises:
        ValueError: saying what is expected, for any other shape, type or range of values, and for
            a picture that would have to be enlarged.
    """
    if hasattr(picture, "getbands"):  # a Pillow image
        picture = _from_pillow(picture)
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        if picture.dtype == torch.bfloat16:  # which NumPy has not
            picture = picture.float()
    pixels = np.asarray(picture)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
        raise ValueError(
            f"picture: shape {tuple(np.shape(picture))}, expected (height, width) or (height, width, 1 to 4)"
        )
    if pixels.dtype == bool or pixels.dtype in (np.uint8, np.uint16):
        top = 1 if pixels.dtype == bool else np.iinfo(pixels.dtype).max
        values = torch.from_numpy(pixels.astype(np.float32) / top)
    elif np.issubdtype(pixels.dtype, np.floating):
        if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(
                f"picture: floats from {pixels.min():g} to {pixels.max():g}, expected [0, 1]; "
                "divide by the largest possible value first"
            )
        values = torch.from_numpy(pixels.astype(np.float32))
    else:
        raise ValueError(
            f"picture: values of type {pixels.dtype}, expected bool, uint8, uint16 or floats in [0, 1]"
        )
    if values.shape[2] in (2, 4):
        alpha = values[:, :, -1:]
        values = values[:, :, :-1] * alpha + (1 - alpha)
    signal = values.movedim(2, 0)
    if channels == 1 and len(signal) == 3:
        signal = torch.einsum("c,chw->hw", torch.tensor(LUMA), signal)[None]
    elif channels == 3 and len(signal) == 1:
        signal = signal.expand(3, -1, -1)
    return _square(signal, size) if size else signal.contiguous()


def _from_pillow(image) -> np.ndarray:
    """Pixels of a Pillow image; what has no grey or RGB values of its own is converted first."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow may hand out as 32
        pixels = np.asarray(image)
        if pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
            raise ValueError("picture: 32-bit integers beyond 16 bits, expected uint8 or uint16")
        return pixels.astype(np.uint16)
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode not in ("1", "L", "LA", "RGB", "RGBA", "F"):
        image = image.convert("RGB")
    return np.asarray(image)


def _square(signal: Tensor, size: int) -> Tensor:
    height, width = signal.shape[1:]
    short = min(height, width)
    if short < size:
        raise ValueError(
            f"size = {size}: a picture has {height}x{width} pixels, and pictures are not enlarged"
        )
    if short > size:
        shape = [round(side * size / short) for side in (height, width)]
        signal = torch.nn.functional.interpolate(
            signal[None], shape, mode="bilinear", antialias=True
        )[0].clamp(0, 1)
    top, left = ((side - size) // 2 for side in signal.shape[1:])
    return signal[:, top : top + size, left : left + size].contiguous()


def load_pictures(
    files: Iterable[Path], *, size: int = 0, channels: int = 0, upright: bool = True
) -> Tensor:
    """Decode picture files into one stack, (n, channels, height, width).

    Args:
        size, channels: as `to_signal`.
        upright: turn a photograph as its camera was held, where its EXIF data tell.

    Raises:
        CorruptDataError: for a file that cannot be decoded.
        ValueError: naming the file for pictures that do not fit each other or cannot be used.
    """
    stack: list[Tensor] = []
    for file in files:
        image = open_picture(file)
        if upright:
            image = turned_upright(image)
        try:
            signal = to_signal(image, size=size, channels=channels)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if stack and signal.shape != stack[0].shape:
            raise ValueError(
                f"{file}: {_told(signal)}, the first picture has {_told(stack[0])}; give size and channels"
            )
        stack.append(signal)
    return torch.stack(stack) if stack else torch.empty(0)


def _told(signal: Tensor) -> str:
    channels, height, width = signal.shape
    return f"{height}x{width} pixels in {channels} channel{'s' * (channels > 1)}"


def picture_files(folder: Path | str) -> list[Path]:
    """Picture files below a folder, in a fixed order: 2.png before 10.png.

    Hidden ones are left out, such as the ._1.jpg that macOS adds.

    Raises:
        MissingDataError: if there is none.
    """
    folder = Path(folder)
    found = [
        f
        for f in folder.rglob("*")
        if f.suffix.lower() in PICTURE_FILES and not f.name.startswith(".") and f.is_file()
    ]
    if not found:
        raise MissingDataError(
            f"{folder}: expected pictures in it ({', '.join(sorted(PICTURE_FILES))})"
        )
    return sorted(found, key=lambda f: _natural(f.relative_to(folder)))


def _natural(path: Path) -> list[object]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())]


def _in_turn(files: Sequence[Path]) -> list[Path]:
    """One file of every folder, then the next of every folder, and so on."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    place = {
        file: (i, j) for j, group in enumerate(folders.values()) for i, file in enumerate(group)
    }
    return sorted(files, key=place.__getitem__)


def _faces(_: Path, n_train: int, n_test: int, size: int, channels: int):
    """The 100 faces of scikit-image's subset (the rest of it is no faces), in its order."""
    from skimage.data import lfw_subset

    faces = torch.stack([to_signal(f, size=size, channels=channels) for f in lfw_subset()[:100]])
    return faces[:n_train], faces[n_train:]


PHOTO_SIZE = 32


def _photos(_: Path, n_train: int, n_test: int, size: int, channels: int):
    """Tiles of the photographs that scikit-image and scikit-learn bundle.

    Each is cut square and shrunk to five tiles a side. Two photographs are kept for the unseen
    tiles.
    """
    from skimage import data
    from sklearn.datasets import load_sample_image

    size = size or PHOTO_SIZE
    if size > 60:
        raise ValueError(f"size = {size}: tiles of 'photos' have at most 60 pixels a side")
    known = [
        data.coffee(),
        load_sample_image("china.jpg"),
        data.chelsea(),
        load_sample_image("flower.jpg"),
    ]
    unseen = [data.astronaut(), data.rocket()]
    # one tile of every photograph, then the next of each
    return tuple(
        torch.stack([_tiles(photo, size, channels) for photo in group], 1).flatten(0, 1)
        for group in (known, unseen)
    )


def _tiles(photo: np.ndarray, size: int, channels: int) -> Tensor:
    square = to_signal(photo, size=5 * size, channels=channels)
    rows = square.unflatten(2, (5, size)).unflatten(1, (5, size))  # (channels, 5, size, 5, size)
    return rows.permute(1, 3, 0, 2, 4).flatten(0, 1)


def _labelled(name: str):
    """A set of `companion.data.images`, its training and test images in their order."""

    def load(root: Path, n_train: int, n_test: int, size: int, channels: int):
        images = load_images(name, root)
        return tuple(
            torch.stack(
                [to_signal(x.movedim(0, 2), size=size, channels=channels) for x in part[:n]]
            )
            for part, n in ((images.train_x, n_train), (images.test_x, n_test))
        )

    return load


def _folders(train: str, test: str, default_size: int = 0):
    """Two folders of files, read class by class in turn."""

    def load(root: Path, n_train: int, n_test: int, size: int, channels: int):
        return tuple(
            load_pictures(
                _in_turn(picture_files(root / folder))[:n],
                size=size or default_size,
                channels=channels,
                upright=False,  # as the official code reads them
            )
            for folder, n in ((train, n_train), (test, n_test))
        )

    return load


def _orl_faces(root: Path, n_train: int, n_test: int, size: int, channels: int):
    """Persons 1 to 32 to learn from, persons 33 to 40 unseen."""
    files = _in_turn(picture_files(root / "image-regression" / "orl_faces"))
    for file in files:
        if not re.fullmatch(r"s\d+", file.parent.name):
            raise CorruptDataError(f"{file}: expected it in a folder s1 to s40, one a person")
    known = [f for f in files if int(f.parent.name[1:]) <= 32]
    unseen = [f for f in files if f not in set(known)]
    return tuple(
        load_pictures(part[:n], size=size, channels=channels)
        for part, n in ((known, n_train), (unseen, n_test))
    )


def _kodak(root: Path, n_train: int, n_test: int, size: int, channels: int):
    files = picture_files(root / "image-regression" / "kodak-grey256")
    stack = load_pictures(files[: n_train + n_test], size=size, channels=channels)
    return stack[:n_train], stack[n_train:]


def _imagenette(root: Path, n_train: int, n_test: int, size: int, channels: int):
    """Resized to 200 and cropped to 178 in the middle, as the official code does."""

    def crop(stack: Tensor) -> Tensor:
        return stack if size else stack[:, :, 11:-11, 11:-11]

    train, test = _folders("imagenette2/train", "imagenette2/val", 200)(
        root, n_train, n_test, size, channels or 3
    )
    return crop(train), crop(test)


_PACK = "Put the pictures there, in folders of these names."


def _of_images(name: str, **other: object) -> SignalSource:
    """The entry of `IMAGE_SETS`, read as a family of pictures."""
    source = IMAGE_SETS[name]
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(DataSource)}
    return SignalSource(**({"load": _labelled(name)} | fields | other))


SIGNAL_SETS: dict[str, SignalSource] = {
    "faces": SignalSource(
        "faces of scikit-image's LFW subset (100 grey pictures, 25x25)",
        "",
        "none stated (Labeled Faces in the Wild, Huang et al.)",
        "Comes with scikit-image.",
        load=_faces,
    ),
    "photos": SignalSource(
        "tiles of six photographs that scikit-image and scikit-learn bundle (150 in colour, 32x32)",
        "",
        "CC0, public domain and CC BY (see the two packages)",
        "Comes with scikit-image and scikit-learn.",
        load=_photos,
    ),
    "mnist": _of_images("mnist"),
    "cifar10": _of_images("cifar10"),
    "cifar10_jpeg": _of_images("cifar10_jpeg", load=_folders("cifar10/train", "cifar10/test")),
    "orl_faces": SignalSource(
        "ORL faces (400 grey pictures of 40 persons, 92x112)",
        "image-regression/orl_faces",
        "credit to Olivetti Research Laboratory (Samaria and Harter)",
        _PACK,
        load=_orl_faces,
        needs={"image-regression/orl_faces/s*/*.pgm": 400},
    ),
    "kodak_grey": SignalSource(
        "20 Kodak photographs, turned to grey and squeezed to 256x256",
        "image-regression/kodak-grey256",
        "none stated",
        _PACK,
        load=_kodak,
        needs={"image-regression/kodak-grey256/*.png": 20},
    ),
    "imagenette": SignalSource(
        "Imagenette (13,394 photographs in colour), resized to 200 and cropped to 178",
        "imagenette2",
        "Apache 2.0 for the selection; the pictures are ImageNet's",
        "Fetch it with torchvision.datasets.Imagenette(root, size='full', download=True).",
        load=_imagenette,
        needs={"imagenette2/train/*/*": 9_469, "imagenette2/val/*/*": 3_925},
    ),
}
