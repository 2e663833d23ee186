"""The recipe: attention on a torchvision network, trained on a folder of images."""

import torch
from PIL import Image
from recipe import run


def write_folder(folder):
    """Noise with one coloured square somewhere; its colour is the class."""
    draw = torch.Generator().manual_seed(0)
    for label, channel in (("blue", 2), ("red", 0)):
        (folder / label).mkdir()
        for k in range(20):
            pixels = (60 * torch.rand(70, 90, 3, generator=draw)).to(torch.uint8)
            row, column = torch.randint(40, (2,), generator=draw).tolist()
            pixels[row : row + 25, column : column + 25, channel] = 250
            Image.fromarray(pixels.numpy()).save(folder / label / f"{k}.png")


def test_the_recipe_trains_attention_on_a_folder(tmp_path):
    write_folder(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names, _ = run("learn_to_pay_attention", folder=tmp_path)
    model, x, y, maps = (names[key] for key in ("model", "x", "y", "maps"))
    assert {layer: tuple(m.shape) for layer, m in maps.items()} == {
        "stage2": (40, 8, 8),
        "stage3": (40, 4, 4),
    }
    assert all(torch.allclose(m.sum((1, 2)), torch.ones(40), atol=1e-5) for m in maps.values())
    assert (model(x).argmax(1) == y).float().mean() > 0.9
