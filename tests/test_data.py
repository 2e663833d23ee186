"""Image sets: bundled, real, missing and damaged."""

import struct

import numpy as np
import pytest
import torch
from PIL import Image

from companion.data import (
    IMAGE_SETS,
    CorruptDataError,
    MissingDataError,
    crop_pad_flip,
    data_root,
    hold_out,
    load_image_folder,
    load_images,
    standardise,
)
from companion.data.images import MNIST_SHA256


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- the bundled set

# sha256 over pixels and labels, which every record of a run on digits carries
DIGITS = "a8cba2d73cbb8f42c0da65fc416b00a26a7b5a127ddc76983b25f93b7309bedd"


def test_digits_are_split_in_a_fixed_way():
    data = load_images("digits")
    assert data.train_x.shape == (1347, 1, 8, 8)
    assert data.test_x.shape == (450, 1, 8, 8)
    assert data.train_y.shape == (1347,)
    assert data.train_x.min() == 0
    assert data.train_x.max() == 1
    assert data.classes == tuple("0123456789")
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.float32, torch.int64)
    assert data.checksum == DIGITS
    assert load_images("digits").checksum == DIGITS


def test_the_split_of_digits_is_a_partition_of_the_original():
    from sklearn.datasets import load_digits

    data = load_images("digits")
    ours = torch.cat([data.train_x, data.test_x]).flatten(1) * 16
    labels = torch.cat([data.train_y, data.test_y])
    rows = sorted((*x, y) for x, y in zip(ours.int().tolist(), labels.tolist(), strict=False))
    images, targets = load_digits(return_X_y=True)
    assert rows == sorted((*map(int, x), int(y)) for x, y in zip(images, targets, strict=True))


def test_a_subset_and_a_copy_keep_everything_else():
    data = load_images("digits")
    few = data.limited(100, seed=1)
    assert few.train_x.shape == (100, 1, 8, 8)
    assert torch.equal(few.test_x, data.test_x)
    assert torch.equal(few.train_x, data.limited(100, seed=1).train_x)
    assert not torch.equal(few.train_x, data.limited(100, seed=2).train_x)
    assert data.limited(0) is data
    with pytest.raises(ValueError, match="count = 1348"):
        data.limited(1348)
    moved = data.to("cpu")
    assert (moved.name, moved.classes) == (data.name, data.classes)


def test_a_held_out_part_and_the_rest_are_a_partition():
    data = load_images("digits")
    rest, (x, y) = hold_out(data, 0.1, seed=0)
    assert len(x) == len(y) == 135
    assert len(rest.train_x) == 1347 - 135
    both = torch.cat([rest.train_x, x]).flatten(1)
    assert sorted(both.tolist()) == sorted(data.train_x.flatten(1).tolist())
    labels = torch.cat([rest.train_y, y])
    assert torch.equal(labels.bincount(), data.train_y.bincount())
    assert torch.equal(hold_out(data, 0.1, seed=0)[1][0], x)


@pytest.mark.parametrize("per_channel", [False, True])
def test_standardised_training_images_have_mean_zero_and_deviation_one(per_channel):
    g = generator()
    data = load_images("digits").replace(
        train_x=torch.rand((50, 3, 4, 4), generator=g)
        * torch.tensor([1.0, 5.0, 9.0])[:, None, None],
        test_x=torch.rand((20, 3, 4, 4), generator=g),
    )
    done = standardise(data, per_channel=per_channel)
    parts = done.train_x.unbind(1) if per_channel else [done.train_x]
    for part in parts:
        assert part.mean().item() == pytest.approx(0, abs=1e-5)
        assert part.std().item() == pytest.approx(1, abs=1e-5)
    # the test images go through the training images' transform, not their own
    dims = (0, 2, 3) if per_channel else (0, 1, 2, 3)
    mean, std = data.train_x.mean(dims, keepdim=True), data.train_x.std(dims, keepdim=True)
    torch.testing.assert_close(done.test_x * std + mean, data.test_x)


# ---------------------------------------------------------------- missing and damaged sets


def test_an_unknown_set_names_those_there_are():
    with pytest.raises(ValueError, match="dataset = 'minst': expected one of 'digits', 'mnist'"):
        load_images("minst")


@pytest.mark.parametrize("name", [n for n, s in IMAGE_SETS.items() if s.where])
def test_a_missing_set_names_the_folder_and_the_way_to_get_it(name, tmp_path):
    with pytest.raises(MissingDataError) as caught:
        load_images(name, tmp_path)
    message, source = str(caught.value), IMAGE_SETS[name]
    assert f"dataset {name!r} is not in {tmp_path}" in message
    assert f"expected the folder {source.where}/ there" in message
    assert (f"companion data --fetch {name}" if source.download else source.get) in message
    assert "-p data_root PATH, or the variable COMPANION_DATA" in message


def test_every_set_states_its_licence():
    assert all(source.licence and source.title and source.get for source in IMAGE_SETS.values())


def write_idx(path, values):
    """A file of unsigned bytes in MNIST's format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">i{values.ndim}i", 0x0800 + values.ndim, *values.shape)
    path.write_bytes(head + values.astype(np.uint8).tobytes())


def fake_idx_set(folder, train=6, test=4):
    rng = np.random.default_rng(0)
    for part, n in (("train", train), ("t10k", test)):
        write_idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (n, 28, 28)))
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.arange(n))
    return folder


def test_idx_files_become_images_and_labels(tmp_path):
    raw = fake_idx_set(tmp_path / "FashionMNIST" / "raw")
    data = load_images("fashion_mnist", tmp_path)
    assert data.train_x.shape == (6, 1, 28, 28)
    assert data.test_y.tolist() == [0, 1, 2, 3]
    pixels = np.frombuffer((raw / "train-images-idx3-ubyte").read_bytes()[16:], np.uint8)
    np.testing.assert_array_equal((data.train_x * 255).round().numpy().ravel(), pixels)


@pytest.mark.parametrize("damage", ["magic", "truncated", "empty", "absent", "labels"])
def test_a_damaged_idx_file_is_named_as_such(damage, tmp_path):
    raw = fake_idx_set(tmp_path / "FashionMNIST" / "raw")
    images, labels = raw / "train-images-idx3-ubyte", raw / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    if damage == "magic":
        images.write_bytes(b"\xff\xff\xff\xff" + content[4:])
    elif damage == "truncated":
        images.write_bytes(content[:-9])
    elif damage == "empty":
        images.write_bytes(b"")
    elif damage == "absent":
        images.unlink()
    else:
        labels.write_bytes(content)
    with pytest.raises(CorruptDataError, match=r"'fashion_mnist' in .*FashionMNIST/raw cannot be"):
        load_images("fashion_mnist", tmp_path)


def test_mnist_is_held_to_its_checksums(tmp_path):
    raw = fake_idx_set(tmp_path / "MNIST" / "raw")
    with pytest.raises(CorruptDataError, match=r"train-images-idx3-ubyte is damaged: sha256 "):
        load_images("mnist", tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    with pytest.raises(CorruptDataError, match="train-images-idx3-ubyte is missing beside"):
        load_images("mnist", tmp_path)
    assert set(MNIST_SHA256) == {f.name for f in raw.iterdir()} | {"train-images-idx3-ubyte"}


def test_cifar_pickles_are_refused_before_they_are_read(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(
            b"cos\nsystem\n(S'exit 1'\ntR."
        )  # a pickle that runs a command
    with pytest.raises(CorruptDataError, match="not found or corrupted"):
        load_images("cifar10", tmp_path)


# ---------------------------------------------------------------- where data lies


def test_the_data_root_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "variable"))
    assert data_root(tmp_path) == tmp_path
    assert data_root() == tmp_path / "variable"
    monkeypatch.delenv("COMPANION_DATA")
    assert data_root().name == "paper-companion"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_root("~/sets") == tmp_path / "sets"


def test_a_data_root_that_is_a_file_raises(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ValueError, match="expected a folder"):
        data_root(path)


# ---------------------------------------------------------------- folders of images


def picture(height=10, width=12, seed=0, mode="RGB"):
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def folder_of(root, pictures, ending="png"):
    for i, (kind, image) in enumerate(pictures):
        (root / kind).mkdir(parents=True, exist_ok=True)
        image.save(root / kind / f"{i}.{ending}")
    return root


def test_a_folder_of_images_is_decoded_class_by_class(tmp_path):
    pictures = [("b", picture(seed=0)), ("a", picture(seed=1)), ("b", picture(seed=2))]
    x, y, classes = load_image_folder(folder_of(tmp_path, pictures), progress=False)
    assert (x.shape, x.dtype) == ((3, 3, 10, 12), torch.float32)
    assert (y.tolist(), classes) == ([0, 1, 1], ("a", "b"))
    for found, (_, image) in zip(x, [pictures[1], pictures[0], pictures[2]], strict=True):
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255.0
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_grey_images_come_as_one_channel_or_three(tmp_path):
    image = picture(mode="L")
    folder_of(tmp_path, [("a", image)])
    grey, *_ = load_image_folder(tmp_path, channels=1, progress=False)
    colour, *_ = load_image_folder(tmp_path, progress=False)
    np.testing.assert_array_equal((grey[0, 0] * 255).round().numpy(), np.array(image))
    assert colour.shape == (1, 3, 10, 12)
    assert torch.equal(colour[0, 0], colour[0, 2])


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder_of(tmp_path, [("a", picture(10, 12)), ("a", picture(20, 9))])
    with pytest.raises(
        ValueError, match=r"1\.png has \(20, 9\) pixels, the first has \(10, 12\): give size"
    ):
        load_image_folder(tmp_path, progress=False)
    x, *_ = load_image_folder(tmp_path, size=8, progress=False)
    assert x.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_damaged_picture_is_named(damage, ending, tmp_path):
    folder_of(tmp_path, [("a", picture(64, 64)), ("a", picture(64, 64, seed=1))], ending)
    path = tmp_path / "a" / f"1.{ending}"
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "text": b"hello", "empty": b""}[damage]
    )
    with pytest.raises(CorruptDataError, match=rf"1\.{ending} cannot be decoded"):
        load_image_folder(tmp_path, progress=False)


def test_a_folder_without_images_is_missing_data(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingDataError, match="one subfolder a class"):
            load_image_folder(folder, progress=False)


def test_a_jpeg_set_of_the_wrong_size_raises(tmp_path):
    folder_of(tmp_path / "cifar10" / "train", [("cat", picture(32, 32))], "jpg")
    with pytest.raises(CorruptDataError, match="1 images, expected 50000"):
        load_images("cifar10_jpeg", tmp_path)


# ---------------------------------------------------------------- augmentation


def augmented_twin(image, flipped, dy, dx, pad):
    """One image, pixel by pixel."""
    channels, height, width = image.shape
    out = torch.zeros_like(image)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                row, column = i + dy, j + dx
                if 0 <= row < height and 0 <= column < width:
                    out[c, i, j] = image[c, row, width - 1 - column if flipped else column]
    return out


def recover(image, result, pad):
    """The (flip, dy, dx) that turn an image of distinct nonzero pixels into the result."""
    hits = [
        (flipped, dy, dx)
        for flipped in (False, True)
        for dy in range(-pad, pad + 1)
        for dx in range(-pad, pad + 1)
        if torch.equal(augmented_twin(image, flipped, dy, dx, pad), result)
    ]
    assert len(hits) == 1, "not a flip and a shift with zero fill"
    return hits[0]


def test_every_augmented_image_is_a_flip_and_a_bounded_shift_with_zero_fill():
    pad = 2
    batch = torch.arange(1.0, 1 + 40 * 2 * 4 * 5).view(40, 2, 4, 5)
    result = crop_pad_flip(batch, generator(1), pad=pad)
    assert result.shape == batch.shape
    moves = [recover(a, b, pad) for a, b in zip(batch, result, strict=True)]
    assert {True, False} == {flipped for flipped, *_ in moves}
    for axis in (1, 2):  # all five shifts occur in 40 images, and rows move apart from columns
        assert {move[axis] for move in moves} == {-2, -1, 0, 1, 2}
    assert any(dy != dx for _, dy, dx in moves)


def test_a_quarter_is_flipped_and_half_is_shifted():
    n, pad = 20_000, 4
    batch = torch.zeros(n, 1, 9, 9)
    batch[:, :, 4, 4], batch[:, :, 4, 5] = (
        1.0,
        0.5,
    )  # the bright pixel tells the shift, its dim neighbour's side the flip
    result = crop_pad_flip(batch, generator(2), pad=pad)[:, 0]
    place = (result == 1).flatten(1).float()
    seen = place.sum(1) == 1
    assert seen.all()  # shifts of up to 4 never lose the centre
    where = place.argmax(1)
    rows, columns = where // 9 - 4, where % 9 - 4
    partner = torch.nn.functional.pad(result, (1, 1))
    left = partner[torch.arange(n), rows + 4, columns + 4] == 0.5
    right = partner[torch.arange(n), rows + 4, columns + 6] == 0.5
    inner = left | right  # the partner may have left the image
    # binomial deviations: 0.0031 and 0.0035, four of them
    assert left[inner].double().mean().item() == pytest.approx(0.25, abs=0.013)
    still = ((rows == 0) & (columns == 0)).double().mean().item()
    assert still == pytest.approx(0.5 + 0.5 / 81, abs=0.014)
    assert rows.abs().max() == columns.abs().max() == pad
    counts = torch.bincount(rows[rows != 0] + 4, minlength=9).double()
    expected = n * 0.5 / 9
    assert ((counts[counts > 0] - expected).abs() < 5 * expected**0.5).all()


def test_augmentation_is_determined_by_its_generator_and_leaves_its_input():
    batch = torch.rand((10, 3, 8, 8), generator=generator())
    before = batch.clone()
    a, b, c = (crop_pad_flip(batch, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(batch, before)


def test_without_padding_nothing_is_shifted():
    batch = torch.rand((30, 1, 4, 4), generator=generator())
    result = crop_pad_flip(batch, generator(), pad=0)
    assert all(
        torch.equal(b, a) or torch.equal(b, a.flip(-1)) for a, b in zip(batch, result, strict=True)
    )


# ---------------------------------------------------------------- real sets


def test_mnist_has_its_known_moments(real_data):
    data = load_images("mnist", real_data("MNIST/raw"))
    assert (data.train_x.shape, data.test_x.shape) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
    assert data.train_x.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert data.train_x.std().item() == pytest.approx(0.3081, abs=5e-5)
    assert data.train_y.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # fmt: skip
    assert len(data.classes) == 10


def test_cifar10_as_jpeg_has_its_counts_and_names(real_data, tmp_path):
    root = real_data("cifar10") / "cifar10"
    names = sorted(
        ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    )
    for split, count in (("train", 5000), ("test", 1000)):
        assert sorted(f.name for f in (root / split).iterdir()) == names
        for name in names:
            files = sorted((root / split / name).iterdir())
            assert len(files) == count
            if split == "test":  # decoding all takes a minute: a few of each class
                (tmp_path / name).mkdir()
                for file in files[:20]:
                    (tmp_path / name / file.name).symlink_to(file)
    x, y, classes = load_image_folder(tmp_path, progress=False)
    assert (x.shape, classes) == ((200, 3, 32, 32), tuple(names))
    assert y.bincount().tolist() == [20] * 10
    assert 0.4 < x.mean().item() < 0.55
