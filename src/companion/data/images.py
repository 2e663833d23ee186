"""Labelled images: `load_images("mnist")` gives tensors or says what is missing."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.checks import generators, number, whole
from companion.data.fetch import fetch
from companion.data.files import open_picture
from companion.data.root import (
    CorruptDataError,
    DataSource,
    MissingDataError,
    data_root,
    verify,
)
from companion.progress import Progress


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A labelled data set in memory.

    Attributes:
        train_x, test_x: (n, channels, height, width), float32 in [0, 1] as loaded.
        train_y, test_y: (n,), class indices.
        classes: their names.
        checksum: sha256 over pixels and labels, for provenance.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    checksum: str

    def replace(self, **fields: Any) -> ImageSet:
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def to(self, device: torch.device | str) -> ImageSet:
        """A copy with all tensors on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return self.replace(**moved)

    def limited(self, count: int, *, seed: int = 0) -> ImageSet:
        """A copy with `count` random training images; 0 keeps all.

        Raises:
            ValueError: for more than there are.
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
class Source(DataSource):
    """Where labelled images come from.

    Attributes:
        load: maps the data root to images and labels to learn from, those to test on, and classes.
        archives: sha256 by address, for `fetch`; files: sha256 by path below the data root.
    """

    load: Callable[[Path], tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]] = field(
        kw_only=True
    )
    archives: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    files: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    @property
    def download(self) -> Callable[[str, Path], None] | None:
        """Fetches the set called so into a data root, where it has a public address."""
        if not self.archives:
            return None
        return lambda name, root: fetch(name, self.archives, self.files, root)


# what torchvision's readers raise for a file that is not what they expect
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

    Args:
        root: as `companion.data.root.data_root`.

    Raises:
        ValueError: for an unknown name.
        MissingDataError: with what to put where (which is an IncompleteDataError for half a set).
        CorruptDataError: for files that are damaged: those whose sha256 is known are held to it
            before they are read.
    """
    if name not in IMAGE_SETS:
        raise ValueError(f"dataset = {name!r}: expected one of {', '.join(map(repr, IMAGE_SETS))}")
    source, folder = IMAGE_SETS[name], data_root(root)
    source.require(name, folder)
    for path, sha256 in source.files.items():
        verify(folder / path, sha256)
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

    What is the same in all training images, such as an unused channel, is shifted only.

    Args:
        per_channel: a mean and a deviation for each channel, as is usual for CIFAR.
    """
    dims = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    mean = data.train_x.mean(dims, keepdim=True)
    std = data.train_x.std(dims, keepdim=True)
    # not by the deviation, which may be mere round-off
    still = data.train_x.amax(dims, keepdim=True) == data.train_x.amin(dims, keepdim=True)
    std = torch.where(still, 1, std)
    scaled = {"train_x": (data.train_x - mean) / std, "test_x": (data.test_x - mean) / std}
    return data.replace(**scaled)


def hold_out(
    data: ImageSet, fraction: float, *, seed: int
) -> tuple[ImageSet, tuple[Tensor, Tensor]]:
    """Split a random fraction off the training images; return the rest and (inputs, targets).

    Raises:
        ValueError: for a fraction that is not in [0, 1].
    """
    number(lambda part: 0 <= part <= 1, "a number from 0 to 1", fraction=fraction)
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed))
    out, rest = order.to(data.train_y.device).tensor_split([round(fraction * len(order))])
    kept = data.replace(train_x=data.train_x[rest], train_y=data.train_y[rest])
    return kept, (data.train_x[out], data.train_y[out])


def crop_pad_flip(batch: Tensor, generator: torch.Generator, *, pad: int = 4) -> Tensor:
    """Augment as SNIP's code does: a random subset of {flip, shift} for every image.

    Each of the two is chosen with probability 1/2; a chosen flip flips with probability 1/2 (so a
    quarter of the images is flipped), a chosen shift moves by up to `pad` pixels with zeros moved
    in.

    Raises:
        ValueError: for a pad below 0.
    """
    whole(0, pad=pad)
    generators(generator=generator)
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
    folder: str | os.PathLike,
    *,
    size: int | None = None,
    channels: int = 3,
    progress: bool = False,
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Decode a folder with one subfolder a class (torchvision's ImageFolder).

    As `companion.data.signals.load_pictures`, and unlike ImageFolder, it turns photographs as
    their EXIF data tell and lays what is transparent on white.

    Args:
        folder: one subfolder a class.
        size: resize the shorter side and crop the middle; None takes images of one size as they
            are.
        channels: 1 for grey, 3 for colour.
        progress: show a progress bar.

    Returns:
        Images (n, channels, height, width) in [0, 1], class indices, class names.

    Raises:
        MissingDataError: for a folder or a class without images.
        CorruptDataError: for a file that cannot be decoded.
        ValueError: for images of different sizes where no size is given.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import functional as transform

    if channels not in (1, 3):
        raise ValueError(f"channels = {channels!r}: expected 1 (grey) or 3 (colour)")
    if size is not None and size < 1:
        raise ValueError(f"size = {size!r}: expected at least 1 pixel, or None")
    expected = f"{folder}: expected one subfolder a class with images in it"
    try:
        listing = ImageFolder(str(folder), allow_empty=True)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingDataError(expected) from error
    filled = set(listing.targets)
    if empty := [name for name, i in listing.class_to_idx.items() if i not in filled]:
        raise MissingDataError(f"{expected}, but there is none in {', '.join(map(repr, empty))}")
    images = np.empty(0, dtype=np.uint8)
    with Progress(len(listing), "images decoded", show=progress) as bar:
        for i, (path, _) in enumerate(listing.samples):
            picture = open_picture(path, "RGB", as_seen=True)
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


DIGITS_FILE = "datasets/data/digits.csv.gz"


def _digits(_: Path):
    """scikit-learn's 8x8 digits, 1347 for training and 450 for test, in a fixed shuffle."""
    images, labels = _scikit_learns_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8)[order] / 16.0
    y = torch.from_numpy(labels).long()[order]
    return x[:1347], y[:1347], x[1347:], y[1347:], tuple("0123456789")


def _scikit_learns_digits() -> tuple[np.ndarray, np.ndarray]:
    # its file: scikit-learn itself, with SciPy and pandas, takes a second to import
    package = importlib.util.find_spec("sklearn")
    file = Path(package.origin if package and package.origin else "").parent / DIGITS_FILE
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)


# MNIST: the files' as computed, the archives' as in tensorflow_datasets' url_checksums
# of the two sets of this form: a header, then a byte a pixel or label
IDX_BYTES = (16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000)
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_ARCHIVES = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
# Fashion-MNIST: the archives' as in tensorflow_datasets' url_checksums; the files' as in four
# public projects that agree (one of which checks them after unpacking those archives)
FASHION_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_ARCHIVES = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
# CIFAR-10: the archive's as in Keras; the files' as in six public projects that agree, one of
# which lists them beside the md5 sums that torchvision has
CIFAR10_SHA256 = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
}
CIFAR10_BYTES = (31035704, 31035320, 31035999, 31035696, 31035623, 31035526, 158)
CIFAR10_ARCHIVE = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"


def _torchvision(kind, root: Path):
    train, test = kind(str(root), train=True), kind(str(root), train=False)
    tensors = []
    for part in (train, test):
        pixels = torch.as_tensor(part.data)
        pixels = pixels[:, None] if pixels.dim() == 3 else pixels.movedim(-1, 1)
        tensors += [_scaled(pixels), torch.as_tensor(part.targets).long()]
    return *tensors, tuple(train.classes)


def _mnist(root: Path):
    from torchvision.datasets import MNIST

    return _torchvision(MNIST, root)


def _fashion(root: Path):
    from torchvision.datasets import FashionMNIST

    return _torchvision(FashionMNIST, root)


def _cifar10(root: Path):
    from torchvision.datasets import CIFAR10

    return _torchvision(CIFAR10, root)


def _cifar10_jpeg(root: Path):
    *train, classes = load_image_folder(root / "cifar10" / "train")
    *test, _ = load_image_folder(root / "cifar10" / "test")
    return *train, *test, classes


def _checked(
    folder: str, sha256: dict[str, str], sizes: tuple[int, ...], archives: dict[str, str]
) -> dict[str, Any]:
    """The fields of a `Source` whose files are known by their checksums, in bytes `sizes`."""
    files = {f"{folder}/{name}": value for name, value in sha256.items()}
    return {
        "files": files,
        "archives": archives,
        "needs": dict.fromkeys(files, 1),
        "sizes": dict(zip(files, sizes, strict=True)),
    }


def _gz(base: str, archives: dict[str, str]) -> dict[str, str]:
    return {f"{base}/{name}.gz": sha256 for name, sha256 in archives.items()}


_COMMAND = "Fetch it with `companion data --fetch {}`."
IMAGE_SETS: dict[str, Source] = {
    "digits": Source(
        "8x8 digits of scikit-learn (1,797 grey images)",
        "",
        "CC BY 4.0 (UCI, Alpaydin and Kaynak)",
        "Comes with scikit-learn.",
        load=_digits,
    ),
    "mnist": Source(
        "MNIST (70,000 grey images, 28x28)",
        "MNIST/raw",
        "none stated (LeCun, Cortes and Burges)",
        _COMMAND.format("mnist"),
        load=_mnist,
        **_checked(
            "MNIST/raw",
            MNIST_SHA256,
            IDX_BYTES,
            _gz("https://ossci-datasets.s3.amazonaws.com/mnist", MNIST_ARCHIVES),
        ),
    ),
    "fashion_mnist": Source(
        "Fashion-MNIST (70,000 grey images, 28x28)",
        "FashionMNIST/raw",
        "MIT (Zalando)",
        _COMMAND.format("fashion_mnist"),
        load=_fashion,
        **_checked(
            "FashionMNIST/raw",
            FASHION_SHA256,
            IDX_BYTES,
            _gz(
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
                FASHION_ARCHIVES,
            ),
        ),
    ),
    "cifar10": Source(
        "CIFAR-10 (60,000 colour images, 32x32)",
        "cifar-10-batches-py",
        "none stated (Krizhevsky, Nair and Hinton)",
        _COMMAND.format("cifar10"),
        load=_cifar10,
        **_checked(
            "cifar-10-batches-py",
            CIFAR10_SHA256,
            CIFAR10_BYTES,
            {"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz": CIFAR10_ARCHIVE},
        ),
    ),
    "cifar10_jpeg": Source(
        "CIFAR-10 as a folder of JPEGs (lossy: not comparable to the last percent)",
        "cifar10/train",
        "none stated (Krizhevsky, Nair and Hinton)",
        "Put one subfolder a class with 5,000 images each into cifar10/train and 1,000 each into cifar10/test.",
        load=_cifar10_jpeg,
        needs={"cifar10/train/*/*": 50_000, "cifar10/test/*/*": 10_000},
    ),
}
