"""What training many networks side by side costs beside training one after another."""

import copy
import itertools
import subprocess
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from companion.models import mlp, truncated_variance_scaling_
from companion.papers import data_parallelism as dp
from companion.papers.data_parallelism.stacked import pick_way, stacked_gradients
from companion.stacked import stack

# network, make, input, trials, batch size, steps, rounds
SETTINGS = [
    ("MLP", lambda: mlp(64, (64, 64)), (64,), 64, 1, 20, 7),
    ("MLP", lambda: mlp(64, (64, 64)), (64,), 64, 16, 20, 7),
    ("MLP", lambda: mlp(64, (64, 64)), (64,), 256, 16, 6, 5),
    ("MLP", lambda: mlp(64, (64, 64)), (64,), 64, 128, 6, 7),
    ("MLP", lambda: mlp(64, (64, 64)), (64,), 64, 1024, 3, 7),
    ("Simple-CNN", dp.simple_cnn, (1, 28, 28), 16, 1, 4, 5),
    ("Simple-CNN", dp.simple_cnn, (1, 28, 28), 16, 4, 4, 5),
    ("Simple-CNN", dp.simple_cnn, (1, 28, 28), 8, 32, 4, 7),
]
LR, MOMENTUM = 0.01, 0.9


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(make, shape, trials, batch):
    model = make()
    truncated_variance_scaling_(model, generator=generator())
    x = torch.randn(batch, *shape, generator=generator(1))
    return (
        model,
        stack([model] * trials),
        (x, torch.randint(10, (batch,), generator=generator(2))),
    )


def one_after_another(model, trials, batch, steps):
    """The plain way: a module and a torch.optim.SGD for every trial."""
    x, y = batch
    found = []
    for _ in range(trials):
        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), LR, momentum=MOMENTUM)
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        found.append(net)
    return found


@pytest.mark.parametrize(("name", "make", "shape", "trials", "batch", "steps", "rounds"), SETTINGS)
def test_batched_search_against_a_loop(name, make, shape, trials, batch, steps, rounds, compare):
    model, params, data = setting(make, shape, trials, batch)

    def ours():
        return dp.train_batched(
            model, params, None, LR, MOMENTUM, itertools.repeat(data), steps=steps
        )

    alone, together = one_after_another(model, 2, data, steps), ours().params
    for key, value in alone[1].state_dict().items():
        torch.testing.assert_close(together[key][1], value, rtol=1e-3, atol=1e-4)
    way = pick_way(model, batch, torch.device("cpu"))
    compare(
        f"{steps} steps of {trials} x {name}, batch {batch}",
        ours,
        "a loop of modules with torch.optim.SGD",
        lambda: one_after_another(model, trials, data, steps),
        rounds=rounds,
        aim=1.0 if way == "batched" else None,
        limit=None if way == "batched" else 1.0,
        agreement="the same weights to rounding",
        note=f"the library picks {way!r}" + ("" if way == "batched" else ", the same loop"),
    )


@pytest.mark.parametrize("batch", [1, 16, 1024])
def test_stacked_products_against_vmap(batch, compare):
    model, params, (x, y) = setting(SETTINGS[0][1], (64,), 64, batch)
    by_vmap = vmap(grad(lambda p: cross_entropy(functional_call(model, p, (x,)), y)))
    for ours, theirs in zip(
        stacked_gradients(model, params, x, y).values(), by_vmap(params).values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    compare(
        f"gradients of 64 x MLP, batch {batch}",
        lambda: stacked_gradients(model, params, x, y),
        "vmap(grad) of the functional module",
        lambda: by_vmap(params),
        rounds=20,
        peers=["torch"],
        agreement="the same gradients to rounding",
    )


@contextmanager
def tensorflow_graph(model, x, y, folder):
    """A function that takes steps with a TensorFlow graph and returns their CPU seconds; then its
    weights lie in folder.
    """
    given, out = folder / "given.npz", folder / "out.npz"
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    np.savez(given, images=x.numpy(), labels=y.numpy(), **weights)
    script = Path(__file__).with_name("tensorflow_graph.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(given), str(out), str(LR), str(MOMENTUM)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip

    def take(steps):
        print(steps, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    try:
        yield take
        process.stdin.close()
        process.wait(60)
    finally:
        process.kill()
        process.stdout.close()


@pytest.mark.skipif(not find_spec("tensorflow"), reason="needs TensorFlow")
@pytest.mark.parametrize(
    ("batch", "trials", "steps", "rounds"),
    [(1, 16, 8, 9), (4, 16, 8, 9), (16, 8, 4, 9), (64, 4, 4, 9), (256, 2, 2, 9)],
)
def test_a_step_against_a_tensorflow_graph(batch, trials, steps, rounds, compare, tmp_path):
    model, params, (x, y) = setting(dp.simple_cnn, (1, 28, 28), trials, batch)

    def ours():
        batches = itertools.repeat((x, y))
        return dp.train_batched(model, params, None, LR, MOMENTUM, batches, steps=steps)

    with tensorflow_graph(model, x, y, tmp_path) as take:
        take(steps)
    theirs, mine = np.load(tmp_path / "out.npz"), ours().params
    for name, value in model.state_dict().items():
        assert np.abs(theirs[name] - value.numpy()).max() > 0  # it did train
        np.testing.assert_allclose(theirs[name], mine[name][-1], rtol=1e-3, atol=1e-5)
    with tensorflow_graph(model, x, y, tmp_path) as take:
        take(trials * steps)
        compare(
            f"{steps} steps of {trials} x Simple-CNN, batch {batch}",
            ours,
            "a TensorFlow graph, as the authors' code has",
            lambda: take(trials * steps),
            rounds=rounds,
            aim=1.2,
            peers=["tensorflow-cpu"],
            agreement="the same weights to rounding",
            reason="PyTorch's convolutions alone take about as long as TensorFlow's whole step",
        )


def test_racing_against_running_every_trial_out(compare):
    load = dp.load_workload("digits", max_steps=1000)
    trials, networks = (
        dp.trials_for(load, 24, (1e-3, 10.0)), dp.initial_networks(load, [0.0, 0.5, 0.9], 24)
    )  # fmt: skip

    def search(race):
        return dp.steps_to_result(load, 16, networks.sparsities, trials, race, networks=networks)

    raced, free = search(True), search(False)
    assert [raced.k_star(i) for i in range(3)] == [free.k_star(i) for i in range(3)]
    saved = (free.work.sum() / raced.work.sum()).item()
    compare(
        "a raced search on digits, 24 trials at 3 sparsities, B = 16",
        lambda: search(True),
        "the same without racing, budget 1000",
        lambda: search(False),
        rounds=3,
        aim=1 / 3,
        agreement="the same results",
        note=f"{saved:.1f} times fewer trial-steps",
    )


def test_growth_with_the_trials(grow):
    def make(trials):
        model, params, data = setting(SETTINGS[0][1], (64,), trials, 16)
        batches = itertools.repeat(data)
        return lambda: dp.train_batched(model, params, None, LR, MOMENTUM, batches, steps=4)

    grow("4 steps of MLPs side by side, batch 16", "trials", [16, 64, 256, 1024, 4096], make)
