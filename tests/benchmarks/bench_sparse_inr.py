"""What batching buys: meta-learning over tasks, and fitting over pictures."""

import pytest
import torch

from companion.papers import sparse_inr as inr
from companion.papers.sparse_inr.meta import signal_loss


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(width, points, count):
    params = inr.siren_params(2, width, 4, 1, 30.0, generator=generator())
    coords = 2 * torch.rand((points, 2), generator=generator(1)) - 1
    targets = torch.rand((count, points, 1), generator=generator(2))
    return params, inr.full_masks(params), coords, targets


def slopes_batched(params, masks, coords, targets):
    """The outer gradient as the library computes it."""
    theta = {n: w.detach().requires_grad_() for n, w in params.items() if n != "omega_0"}
    loss = inr.maml_loss(theta | {"omega_0": params["omega_0"]}, masks, coords, targets, 1e-2, 2)
    return torch.autograd.grad(loss, list(theta.values()))


def slopes_by_loop(params, masks, coords, targets):
    """The same by a loop over tasks with create_graph, as most code for MAML does it."""
    theta = {n: w.detach().requires_grad_() for n, w in params.items() if n != "omega_0"}
    total = 0.0
    for target in targets:
        fast = theta
        for _ in range(2):
            loss = signal_loss(fast, masks, params["omega_0"], coords, target)
            slope = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
            fast = {n: w - 1e-2 * g for (n, w), g in zip(fast.items(), slope, strict=True)}
        total = total + signal_loss(fast, masks, params["omega_0"], coords, target)
    return torch.autograd.grad(total / len(targets), list(theta.values()))


@pytest.mark.parametrize(
    ("width", "points", "tasks", "rounds"),
    [
        (32, 256, 4, 30),
        (32, 256, 16, 15),
        (48, 625, 3, 20),
        (64, 625, 8, 8),
        (64, 1024, 8, 6),
        (128, 625, 3, 8),
    ],
)
def test_meta_gradient_batched_over_tasks(width, points, tasks, rounds, compare):
    case = setting(width, points, tasks)
    ours, theirs = slopes_batched(*case), slopes_by_loop(*case)
    scale = max(g.abs().max() for g in theirs)
    gap = max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) / scale
    assert gap < 1e-4  # float32, second derivatives
    compare(
        f"second-order MAML, width {width}, {points} points, {tasks} tasks at once (vmap)",
        lambda: slopes_batched(*case),
        "a loop over tasks with create_graph",
        lambda: slopes_by_loop(*case),
        rounds=rounds,
        aim=1.0,
        reason="wide products fill a core by themselves, so that batching saves little",
        agreement=f"gradients agree to {gap:.0e}",
    )


@pytest.mark.parametrize(
    ("width", "points", "pictures", "rounds"),
    [(16, 256, 32, 5), (48, 625, 16, 5), (64, 1024, 16, 3)],
)
def test_fitting_batched_over_pictures(width, points, pictures, rounds, compare):
    params, masks, coords, targets = setting(width, points, pictures)

    def together():
        return inr.fit(params, masks, targets, 10, 1e-4, coords=coords).psnr

    def one_by_one():
        return torch.cat(
            [inr.fit(params, masks, t[None], 10, 1e-4, coords=coords).psnr for t in targets]
        )

    assert torch.allclose(together(), one_by_one(), atol=1e-2)
    compare(
        f"{pictures} pictures fitted at once, width {width}, {points} points, 10 steps of Adam",
        together,
        "fitted one by one",
        one_by_one,
        rounds=rounds,
        aim=1.0,
        agreement="PSNR to 0.01 dB",
    )


def unfolded(params, masks, coords, target):
    """The loss with omega_0 multiplied into the activations, as the formula is written."""
    h = coords
    for number in range(5):
        name = f"layers.{number}"
        h = torch.nn.functional.linear(
            h, params[f"{name}.weight"] * masks[f"{name}.weight"], params[f"{name}.bias"]
        )
        if number < 4:
            h = torch.sin(params["omega_0"] * h)
    return (h - target).square().mean()


@pytest.mark.parametrize("width", [48, 128])
def test_frequency_in_the_weights_instead_of_the_activations(width, compare):
    params, masks, coords, targets = setting(width, 625, 1)
    theta = {n: w.detach().requires_grad_() for n, w in params.items() if n != "omega_0"}

    def ours():
        loss = signal_loss(theta, masks, params["omega_0"], coords, targets[0])
        return torch.autograd.grad(loss, list(theta.values()))

    def theirs():
        loss = unfolded(theta | {"omega_0": params["omega_0"]}, masks, coords, targets[0])
        return torch.autograd.grad(loss, list(theta.values()))

    compare(
        f"gradient of one picture, width {width}: omega_0 times the weights",
        ours,
        "omega_0 times the activations",
        theirs,
        rounds=50,
        aim=1.0,
    )


def test_growth_with_the_tasks(grow):
    def make(tasks):
        given = setting(64, 625, tasks)
        return lambda: slopes_batched(*given)

    grow("second-order MAML, width 64, 625 points", "tasks", [2, 4, 8, 16, 32], make)
