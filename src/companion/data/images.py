"""Labelled images: `load_images("mnist")` gives tensors or says what is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data.root import CorruptDataError, MissingDataError, data_root, verify
from companion.runtime import Progress


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled data set in memory.

    train_x, test_x: (n, channels, height, width), float32 in [0, 1] as loaded.
    train_y, test_y: (n,), class indices.
    classes: their names. checksum: sha256 over pixels and labels, for provenance.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    checksum: str

    def replace(self, **fields: object) -> ImageSet:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def to(self, device: torch.device | str) -> ImageSet:
        """A copy with all tensors on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return self.replace(**moved)

    def limited(self, count: int, *, seed: int = 0) -> ImageSet:
        """A copy with `count` random training images; 0 keeps all.

        Raises ValueError for more than there are.
        """
        if not 0 <= count <= len(self.train_x):
            raise ValueError(
                f"count = {count!r}: {self.name!r} has {len(self.train_x)} training images"
            )
        if not count:
            return self
        chosen = torch.randperm(len(self.train_x), generator=torch.Generator().manual_seed(seed))[
            :count
        ]
        return self.replace(train_x=self.train_x[chosen], train_y=self.train_y[chosen])


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and what may be done with it.

    where: its folder below the data root ("" for one that a dependency bundles).
    get: one sentence that says how to come by it.
    """

    load: Callable[[Path], tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]]
    title: str
    where: str
    licence: str
    get: str
    download: Callable[[Path], None] | None = None


# what torchvision's and Pillow's readers raise for a file that is not what they expect
UNREADABLE = (
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def load_images(name: str, root: str | os.PathLike = "") -> ImageSet:
    """Load a data set of `IMAGE_SETS` by name.

    root: as `companion.data.data_root`.
    Raises ValueError for an unknown name, MissingDataError with what to put where, and
    CorruptDataError for files that are damaged.
    """
    if name not in IMAGE_SETS:
        raise ValueError(f"dataset = {name!r}: expected one of {', '.join(map(repr, IMAGE_SETS))}")
    source, folder = IMAGE_SETS[name], data_root(root)
    if source.where and not (folder / source.where).is_dir():
        raise MissingDataError(
            f"dataset {name!r} is not in {folder}: expected the folder {source.where}/ there. {source.get} "
            "Another place: -p data_root PATH, or the variable COMPANION_DATA."
        )
    try:
        train_x, train_y, test_x, test_y, classes = source.load(folder)
    except (CorruptDataError, MissingDataError):
        raise
    except UNREADABLE as error:
        raise CorruptDataError(
            f"dataset {name!r} in {folder / source.where} cannot be read: {error!r}"
        ) from error
    digest = hashlib.sha256()
    for tensor in (train_x, train_y, test_x, test_y):
        digest.update(tensor.contiguous().numpy().tobytes())
    return ImageSet(name, train_x, train_y, test_x, test_y, classes, digest.hexdigest())


def standardise(data: ImageSet, *, per_channel: bool = False) -> ImageSet:
    """Shift and scale all pixels by the mean and deviation of the training images.

    per_channel: a mean and a deviation for each channel, as is usual for CIFAR.
    """
    dims = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    mean = data.train_x.mean(dims, keepdim=True)
    std = data.train_x.std(dims, keepdim=True)
    scaled = {"train_x": (data.train_x - mean) / std, "test_x": (data.test_x - mean) / std}
    return data.replace(**scaled)


def hold_out(
    data: ImageSet, fraction: float, *, seed: int
) -> tuple[ImageSet, tuple[Tensor, Tensor]]:
    """Split a random fraction off the training images; return the rest and (inputs, targets)."""
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed))
    out, rest = order.to(data.train_y.device).tensor_split([round(fraction * len(order))])
    kept = data.replace(train_x=data.train_x[rest], train_y=data.train_y[rest])
    return kept, (data.train_x[out], data.train_y[out])


def crop_pad_flip(batch: Tensor, generator: torch.Generator, *, pad: int = 4) -> Tensor:
    """Augment as SNIP's code does: a random subset of {flip, shift} for every image.

    Each of the two is chosen with probability 1/2; a chosen flip flips with probability 1/2
    (so a quarter of the images is flipped), a chosen shift moves by up to `pad` pixels with
    zeros moved in.
    """
    n, _, height, width = batch.shape
    coin = torch.rand((3, n), generator=generator)
    flip = ((coin[0] < 0.5) & (coin[1] < 0.5)).to(batch.device)
    batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
    shift = torch.randint(-pad, pad + 1, (2, n), generator=generator) * (coin[2] < 0.5)
    padded = torch.nn.functional.pad(batch, (pad, pad, pad, pad))
    rows = torch.arange(height)[None] + pad + shift[0][:, None]
    columns = torch.arange(width)[None] + pad + shift[1][:, None]
    rows, columns = rows.to(batch.device), columns.to(batch.device)
    each = torch.arange(n, device=batch.device)[:, None, None]
    picked = padded.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]]
    return picked.movedim(-1, 1)


def load_image_folder(
    folder: str | os.PathLike, *, size: int | None = None, channels: int = 3, progress: bool = True
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Decode a folder with one subfolder a class (torchvision's ImageFolder).

    size: resize the shorter side and crop the middle; None takes images of one size as they
      are. channels: 1 for grey, 3 for colour.
    Returns images (n, channels, height, width) in [0, 1], class indices, class names.
    Raises MissingDataError for a folder without images, CorruptDataError for a file that
    cannot be decoded, ValueError for images of different sizes where no size is given.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import functional as transform

    try:
        listing = ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise MissingDataError(
            f"{folder}: expected one subfolder a class with images in it"
        ) from error
    images = np.empty(0, dtype=np.uint8)
    with Progress(len(listing), "images decoded", show=progress) as bar:
        for i, (path, _) in enumerate(listing.samples):
            try:
                picture = listing.loader(path)
            except UNREADABLE as error:
                raise CorruptDataError(f"{path} cannot be decoded: {error}") from error
            if size is not None:
                picture = transform.center_crop(transform.resize(picture, size), size)
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(
                *picture.size[::-1], channels
            )
            if i == 0:
                images = np.empty((len(listing), *pixels.shape), dtype=np.uint8)
            if pixels.shape != images.shape[1:]:
                raise ValueError(
                    f"{path} has {pixels.shape[:2]} pixels, the first has {images.shape[1:3]}: give size"
                )
            images[i] = pixels
            bar.update()
    return (
        _scaled(torch.from_numpy(images).movedim(-1, 1)),
        torch.tensor(listing.targets),
        tuple(listing.classes),
    )


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.contiguous().float() / 255.0


def _digits(_: Path):
    """scikit-learn's 8x8 digits, 1347 for training and 450 for test, in a fixed shuffle."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8)[order] / 16.0
    y = torch.from_numpy(labels).long()[order]
    return x[:1347], y[:1347], x[1347:], y[1347:], tuple("0123456789")


MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def _mnist(root: Path):
    from torchvision.datasets import MNIST

    for file, sha256 in MNIST_SHA256.items():
        path = root / "MNIST" / "raw" / file
        if not path.exists():
            raise CorruptDataError(f"dataset 'mnist': {path} is missing beside its siblings")
        verify(path, sha256)
    return _torchvision(MNIST, root)


def _torchvision(kind, root: Path):
    train, test = kind(str(root), train=True), kind(str(root), train=False)
    tensors = []
    for part in (train, test):
        pixels = torch.as_tensor(part.data)
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels.movedim(-1, 1)
        tensors += [_scaled(pixels), torch.as_tensor(part.targets).long()]
    return *tensors, tuple(train.classes)


def _fashion(root: Path):
    from torchvision.datasets import FashionMNIST

    return _torchvision(FashionMNIST, root)


def _cifar10(root: Path):
    from torchvision.datasets import CIFAR10

    return _torchvision(CIFAR10, root)


def _cifar10_jpeg(root: Path):
    parts = []
    for split, count in (("train", 50_000), ("test", 10_000)):
        x, y, classes = load_image_folder(root / "cifar10" / split)
        if len(x) != count:
            raise CorruptDataError(
                f"{root / 'cifar10' / split}: {len(x)} images, expected {count}"
            )
        parts += [x, y]
    return *parts, classes


def _fetch(name: str) -> Callable[[Path], None]:
    def fetch(root: Path) -> None:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, name)
        for train in (True, False):
            kind(str(root), train=train, download=True)

    return fetch


_COMMAND = "Fetch it with `companion data --fetch {}`."
IMAGE_SETS: dict[str, Source] = {
    "digits": Source(
        _digits,
        "8x8 digits of scikit-learn (1,797 grey images)",
        "",
        "CC BY 4.0 (UCI, Alpaydin and Kaynak)",
        "Comes with scikit-learn.",
    ),
    "mnist": Source(
        _mnist,
        "MNIST (70,000 grey images, 28x28)",
        "MNIST/raw",
        "none stated (LeCun, Cortes and Burges)",
        _COMMAND.format("mnist"),
        _fetch("MNIST"),
    ),
    "fashion_mnist": Source(
        _fashion,
        "Fashion-MNIST (70,000 grey images, 28x28)",
        "FashionMNIST/raw",
        "MIT (Zalando)",
        _COMMAND.format("fashion_mnist"),
        _fetch("FashionMNIST"),
    ),
    "cifar10": Source(
        _cifar10,
        "CIFAR-10 (60,000 colour images, 32x32)",
        "cifar-10-batches-py",
        "none stated (Krizhevsky, Nair and Hinton)",
        _COMMAND.format("cifar10"),
        _fetch("CIFAR10"),
    ),
    "cifar10_jpeg": Source(
        _cifar10_jpeg,
        "CIFAR-10 as a folder of JPEGs (lossy: not comparable to the last percent)",
        "cifar10/train",
        "none stated (Krizhevsky, Nair and Hinton)",
        "Put one subfolder a class with 5,000 images each into cifar10/train and 1,000 each into cifar10/test.",
    ),
}
