"""What training SNIP's and signal propagation's networks together costs beside one after another."""

import copy

import pytest
import torch

from companion.models import lenet_5_caffe, lenet_300_100, mlp
from companion.stacked import group_size, train_together
from companion.training import train

# name -> (make, image, networks, steps, rounds): the networks of SNIP's quick and paper profiles
# and of signal propagation's quick one
SETTINGS = {
    "LeNet-300-100 on 8x8": (lambda: lenet_300_100(64), (1, 8, 8), 13, 40, 5),
    "LeNet-300-100 on 28x28": (lenet_300_100, (1, 28, 28), 4, 20, 5),
    "LeNet-5-Caffe": (lenet_5_caffe, (1, 28, 28), 2, 5, 5),
    "MLP 64-100x6-10": (lambda: mlp(64, [100] * 6, activation="tanh"), (1, 8, 8), 12, 40, 5),
}
BATCH = 100


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", SETTINGS)
def test_networks_together_against_one_after_another(name, compare):
    make, shape, number, steps, rounds = SETTINGS[name]
    x = torch.randn((1000, *shape), generator=generator(1))
    y = torch.randint(10, (1000,), generator=generator(2))
    models, masks = [], []
    for seed in range(number):
        torch.manual_seed(seed)
        models.append(make())
        drawn = {n: torch.rand(p.shape) < 0.1 for n, p in models[-1].named_parameters()}
        masks.append(drawn if seed else {})
    options = {"steps": steps, "batch_size": BATCH, "lr": 0.01, "weight_decay": 5e-4}
    seeds = [3] * number
    size = group_size(models[0], x, BATCH)

    def together():
        found = copy.deepcopy(models)
        for i in range(0, number, size):
            part = slice(i, i + size)
            train_together(found[part], x, y, seeds=seeds[part], masks=masks[part], **options)
        return found

    def one_by_one():
        found = copy.deepcopy(models)
        for model, mask, seed in zip(found, masks, seeds, strict=True):
            train(model, x, y, generator=generator(seed), masks=mask, **options)
        return found

    same = True
    for ours, theirs in zip(together(), one_by_one(), strict=True):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
            same &= torch.equal(p, q)
    compare(
        f"{steps} steps of {number} x {name}, batch {BATCH}, masked",
        together,
        "one after another by companion.training",
        one_by_one,
        rounds=rounds,
        aim="below 1",
        note=f"{min(size, number)} at a time, {'the same weights' if same else 'equal to rounding'}",
    )
