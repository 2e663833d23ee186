"""Meta-SparseINR's recipe on a folder of pictures of any size, and the bytes that it stores."""

import numpy as np
import pytest
import torch
from PIL import Image
from recipe import run
from skimage import data

from companion.papers import sparse_inr as inr
from companion.papers.sparse_inr.codec import _network

SIZES = {"a.png": (30, 22), "b.jpg": (20, 26), "sub/c.png": (24, 24)}


def test_pictures_of_any_size_are_stored_and_drawn_again(tmp_path):
    torch.manual_seed(0)
    (tmp_path / "sub").mkdir()
    for (name, size), picture in zip(
        SIZES.items(), (data.astronaut(), data.coffee(), data.chelsea()), strict=True
    ):
        Image.fromarray(picture).resize(size).save(tmp_path / name)
    names, printed = run("sparse_inr", folder=tmp_path)
    net = names["net"][-1]
    assert len(printed.splitlines()) == 3
    for name, (width, height) in SIZES.items():
        stored = (tmp_path / f"{name}.inr").read_bytes()
        image = inr.decode(stored)
        assert image.shape == (3, height, width)
        masks = net.masks
        numbers = 4 * inr.count_params(masks, biases=True)
        entries = sum(m.numel() for n, m in masks.items() if "weight" in n)
        head = stored.index(b"\n") + 1
        assert len(stored) == head + -(-entries // 8) + numbers
        original = np.asarray(Image.open(tmp_path / name)) / 255
        flat = ((original - original.mean((0, 1))) ** 2).mean()  # a picture of one colour
        assert ((image.movedim(0, 2).numpy() - original) ** 2).mean() < 0.5 * flat


def net(channels=1):
    generator = torch.Generator().manual_seed(0)
    start = inr.siren_params(2, 8, 2, channels, 20.0, generator=generator)
    masks = inr.magnitude_prune(start, inr.full_masks(start), 0.4)
    return inr.Checkpoint(start, masks, 0, {}, ())


def test_what_is_stored_is_the_fitted_network_to_the_last_bit():
    image = torch.rand(1, 5, 9, generator=torch.Generator().manual_seed(1))
    stored = inr.encode(net(), image, steps=3)
    params, size = _network(stored)
    grid = inr.pixel_grid(5, 9)
    fitted = inr.fit(net().params, net().masks, inr.as_targets(image[None]), 3, 1e-3, coords=grid)
    assert size == (5, 9)
    assert all(torch.equal(params[n], p[0]) for n, p in fitted.params.items() if n != "omega_0")
    drawn = inr.as_images(inr.render(fitted.params, grid), 5, 9)[0].clamp(0, 1)
    assert torch.equal(inr.decode(stored), drawn)
    half = inr.encode(net(), image, steps=3, bits=16)
    assert 2 * inr.count_params(net().masks, biases=True) == len(stored) - len(half)
    assert (inr.decode(half) - drawn).abs().max() < 0.02


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: inr.decode(b"GIF89a"), "6 bytes that `encode` did not write"),
        (lambda s: inr.decode(b""), "0 bytes that"),
        (lambda s: inr.decode(s[:-1]), "bytes of numbers, expected"),
        (lambda s: inr.decode(s[: s.index(b"\n") + 2]), "some are missing"),
        (lambda s: inr.encode(net(), torch.rand(3, 4, 4)), "3 channels, but the network has 1"),
        (lambda s: inr.encode(net(), torch.rand(4, 4)), r"image: shape \(4, 4\), expected"),
        (lambda s: inr.encode(net(), torch.rand(1, 4, 4), bits=8), "bits = 8: expected one of"),
        (lambda s: inr.encode(net(), 255 * torch.rand(1, 4, 4)), "expected \\[0, 1\\]"),
    ],
)
def test_what_cannot_be_stored_or_drawn_is_refused(call, message):
    stored = inr.encode(net(), torch.rand(1, 4, 4), steps=0)
    with pytest.raises(ValueError, match=message):
        call(stored)
