"""Pictures as signals: every size, colour mode and range of values loads or is refused."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from companion.data.root import CorruptDataError, IncompleteDataError, MissingDataError
from companion.data.signals import (
    SIGNAL_SETS,
    load_pictures,
    load_signals,
    picture_files,
    to_signal,
)

# ---------------------------------------------------------------- one picture


@pytest.fixture
def ramp():
    """A 6x5 grey ramp in 8 bits."""
    return np.linspace(0, 255, 30).round().astype(np.uint8).reshape(6, 5)


def test_a_grey_array_becomes_one_channel_in_the_unit_interval(ramp):
    signal = to_signal(ramp)
    assert signal.shape == (1, 6, 5)
    assert signal.dtype == torch.float32
    assert torch.equal(signal[0], torch.from_numpy(ramp / np.float32(255)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "P"])
def test_every_mode_of_pillow_gives_the_same_grey(ramp, mode):
    image = Image.fromarray(ramp).convert(mode)
    signal = to_signal(image, channels=1)
    # YCbCr rounds every channel to 8 bits on the way
    assert torch.allclose(signal, to_signal(ramp), atol=2 / 255)
    assert to_signal(image, channels=3).shape == (3, 6, 5)


def test_a_black_and_white_image_has_zeros_and_ones():
    image = Image.fromarray(np.eye(4, dtype=bool))
    assert torch.equal(to_signal(image)[0], torch.eye(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_floats_of_any_width_are_the_same_picture(ramp, dtype):
    picture = torch.from_numpy(np.asarray(ramp) // 32 / 8).to(dtype)
    assert torch.equal(to_signal(picture), picture.float()[None])


def test_sixteen_bits_are_scaled_by_their_own_range():
    pixels = np.array([[0, 65535], [32768, 1]], dtype=np.uint16)
    expected = torch.tensor([[0, 1], [32768 / 65535, 1 / 65535]])
    assert torch.allclose(to_signal(pixels)[0], expected)
    assert torch.allclose(to_signal(Image.fromarray(pixels))[0], expected)


def test_alpha_is_laid_on_white():
    pixels = np.zeros((1, 2, 4), dtype=np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)  # opaque red; beside it transparent black
    signal = to_signal(pixels)
    assert torch.equal(signal[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(signal[:, 0, 1], torch.ones(3))


def test_colour_turns_grey_as_pillow_does_it():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    ours = to_signal(pixels, channels=1)[0]
    theirs = torch.from_numpy(np.asarray(Image.fromarray(pixels).convert("L")) / np.float32(255))
    assert torch.allclose(ours, theirs, atol=0.6 / 255)  # Pillow rounds to 8 bits


def test_a_resized_picture_is_square_and_keeps_its_middle():
    pixels = np.zeros((40, 80, 3), dtype=np.float32)
    pixels[:, 20:60] = 1.0  # the middle square is white
    signal = to_signal(pixels, size=10)
    assert signal.shape == (3, 10, 10)
    assert signal[:, :, 1:-1].min() == 1.0


def test_resizing_averages_what_it_shrinks():
    pixels = np.indices((32, 32)).sum(0) % 2 * 1.0  # a checkerboard
    signal = to_signal(pixels, size=8)
    assert (signal - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (np.zeros((4, 4), dtype=np.int64), "int64"),
        (np.full((4, 4), 255.0), "divide"),
        (np.full((4, 4), -0.5), r"\[0, 1\]"),
        (np.full((4, 4), np.nan), r"\[0, 1\]"),
        (np.zeros((2, 4, 4, 3)), "height, width"),
        (np.zeros((4, 4, 5)), "1 to 4"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros(4), "shape"),
    ],
)
def test_a_picture_that_cannot_be_used_is_refused_with_what_is_expected(picture, told):
    with pytest.raises(ValueError, match=told):
        to_signal(picture)


def test_pictures_are_not_enlarged(ramp):
    with pytest.raises(ValueError, match="6x5"):
        to_signal(ramp, size=8)


# ---------------------------------------------------------------- folders


def test_files_are_ordered_by_number(tmp_path, ramp):
    for name in ("10.png", "2.png", "1.png"):
        Image.fromarray(ramp).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._1.png").write_bytes(b"Mac OS X")
    assert [f.name for f in picture_files(tmp_path)] == ["1.png", "2.png", "10.png"]


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_pictures_of_the_web_are_read(tmp_path, ramp, ending):
    Image.fromarray(ramp).save(tmp_path / f"1.{ending}", lossless=True)
    read = load_pictures(picture_files(tmp_path), channels=1)[0]
    assert torch.allclose(read, to_signal(ramp), atol=1e-6)


def test_a_photograph_is_turned_as_its_camera_was_held(tmp_path, ramp):
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: the stored picture is to be turned clockwise
    Image.fromarray(ramp).save(tmp_path / "1.png", exif=turned)
    assert torch.equal(load_pictures([tmp_path / "1.png"])[0], to_signal(np.rot90(ramp, -1)))
    assert torch.equal(load_pictures([tmp_path / "1.png"], upright=False)[0], to_signal(ramp))
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0"
    Image.fromarray(ramp).save(tmp_path / "2.png", exif=damaged)
    with warnings.catch_warnings(action="error"):
        assert torch.equal(load_pictures([tmp_path / "2.png"])[0], to_signal(ramp))


def test_pictures_of_different_sizes_need_a_size(tmp_path, ramp):
    Image.fromarray(ramp).save(tmp_path / "1.png")
    Image.fromarray(ramp.T.copy()).convert("RGB").save(tmp_path / "2.png")
    with pytest.raises(ValueError, match=r"5x6 pixels in 3 channels.*6x5 pixels in 1 channel;"):
        load_pictures(picture_files(tmp_path))
    assert load_pictures(picture_files(tmp_path), size=5, channels=1).shape == (2, 1, 5, 5)


def test_a_damaged_file_is_named(tmp_path, ramp):
    Image.fromarray(ramp).save(tmp_path / "1.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptDataError, match=r"1\.png"):
        load_pictures(picture_files(tmp_path))


def test_a_picture_that_claims_too_many_pixels_is_named(tmp_path):
    (tmp_path / "1.pgm").write_bytes(b"P5 60000 60000 255\nx")
    with pytest.raises(CorruptDataError, match=r"1\.pgm cannot be decoded"):
        load_pictures(picture_files(tmp_path))


def faces_of(root, persons, number=2):
    for person in persons:
        folder = root / "image-regression" / "orl_faces" / f"s{person}"
        folder.mkdir(parents=True)
        for k in range(number):
            Image.fromarray(np.full((6, 5), k, dtype=np.uint8)).save(folder / f"{k}.pgm")


def test_half_a_set_will_do_for_what_it_has_and_says_what_it_lacks(tmp_path):
    faces_of(tmp_path, [1, 2, 33])
    assert len(load_signals("orl_faces", tmp_path, n_train=4, n_test=2).train) == 4
    for options in ({"n_train": 5, "n_test": 1}, {"n_train": 1, "n_test": 3}):
        with pytest.raises(IncompleteDataError, match=r"orl_faces/s\*/\*\.pgm \(6 of 400\)"):
            load_signals("orl_faces", tmp_path, **options)
    faces_of(tmp_path, ["omebody"])
    with pytest.raises(CorruptDataError, match=r"somebody/0\.pgm: expected it in a folder s1"):
        load_signals("orl_faces", tmp_path, n_train=1, n_test=1)


def test_a_set_without_its_second_folder_is_incomplete(tmp_path, ramp):
    (tmp_path / "cifar10" / "train" / "cat").mkdir(parents=True)
    Image.fromarray(ramp).save(tmp_path / "cifar10" / "train" / "cat" / "1.png")
    with pytest.raises(IncompleteDataError, match=r"cifar10/test/\*/\* \(0 of 10000\)"):
        load_signals("cifar10_jpeg", tmp_path, n_train=1, n_test=1)


def test_an_empty_folder_is_told_what_it_lacks(tmp_path):
    with pytest.raises(MissingDataError, match="expected pictures"):
        picture_files(tmp_path)


def test_a_folder_set_takes_classes_in_turn_and_keeps_persons_apart(tmp_path):
    for person in range(1, 41):
        folder = tmp_path / "image-regression" / "orl_faces" / f"s{person}"
        folder.mkdir(parents=True)
        for number in range(1, 4):
            shade = np.full((6, 5), 10 * number + person, dtype=np.uint8)
            Image.fromarray(shade).save(folder / f"{number}.pgm")
    data = load_signals("orl_faces", tmp_path, n_train=40, n_test=9)
    first = (data.train[:, 0, 0, 0] * 255).round().int().tolist()
    assert first[:34] == [*range(11, 43), 21, 22]
    assert (data.test[:, 0, 0, 0] * 255).round().int().tolist() == [*range(43, 51), 53]


def test_imagenette_is_cropped_as_the_official_code_does(tmp_path):
    side = np.zeros((200, 300, 3), dtype=np.uint8)
    side[:11] = 255  # the rows that the crop removes
    for part in ("train", "val"):
        (tmp_path / "imagenette2" / part / "n01").mkdir(parents=True)
        Image.fromarray(side).save(tmp_path / "imagenette2" / part / "n01" / "a.png")
    data = load_signals("imagenette", tmp_path, n_train=1, n_test=1)
    assert data.shape == (3, 178, 178)
    assert data.train.max() == 0


# ---------------------------------------------------------------- bundled sets


def test_faces_are_the_hundred_faces_in_their_order():
    from skimage.data import lfw_subset

    data = load_signals("faces", n_train=70, n_test=30)
    faces = torch.from_numpy(lfw_subset()[:100]).float()
    assert torch.equal(torch.cat([data.train, data.test])[:, 0], faces)
    assert data.checksum == load_signals("faces", n_train=70, n_test=30).checksum
    assert data.checksum != load_signals("faces", n_train=69, n_test=30).checksum


def test_tiles_put_together_are_the_photograph():
    from skimage import data as pictures

    tiles = load_signals("photos", n_train=1, n_test=50, size=20).test[0::2]  # the astronaut's
    rows = [torch.cat(list(row), 2) for row in tiles.split(5)]
    assert torch.equal(torch.cat(rows, 1), to_signal(pictures.astronaut(), size=100))


def test_more_pictures_than_there_are_is_refused():
    with pytest.raises(ValueError, match="n_test = 31: 'faces' has 30"):
        load_signals("faces", n_train=70, n_test=31)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "face"}, "'faces'"),
        ({"size": 2}, "at least 4"),
        ({"channels": 2}, "1 .grey."),
        ({"n_train": 0}, "at least 1"),
        ({"size": 26}, "25x25"),
    ],
)
def test_bad_options_are_named(options, told):
    with pytest.raises(ValueError, match=told):
        load_signals(**({"name": "faces", "n_train": 2, "n_test": 2} | options))


@pytest.mark.parametrize("name", [n for n, source in SIGNAL_SETS.items() if source.where])
def test_a_missing_set_says_what_goes_where(name, tmp_path):
    with pytest.raises(MissingDataError) as error:
        load_signals(name, tmp_path, n_train=1, n_test=1)
    assert SIGNAL_SETS[name].where.split("/")[0] in str(error.value)
    assert SIGNAL_SETS[name].get in str(error.value)
