"""What spectra and isometry cost beside the ways in which they are usually computed."""

import math
import time

import pytest
import torch

from companion.data.images import load_images, standardise
from companion.models import mlp
from companion.papers import signal_propagation as sp
from companion.papers.signal_propagation.spectra import jacobian


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(inputs, activation):
    model = mlp(inputs, [100] * 6, 10, activation=activation)
    sp.init_weights(model, "orthogonal", generator=generator())
    return model


def loop_over_outputs(model, x):
    """A backward call for each output, all examples at once; (B, K, d)."""
    x = x.clone().requires_grad_()
    outputs = model(x).sum(0)
    rows = [torch.autograd.grad(output, x, retain_graph=True)[0] for output in outputs]
    return torch.stack(rows, 1)


def loop_over_both(model, x):
    """A backward call for each output of each example; (B, K, d)."""
    return torch.cat([loop_over_outputs(model, example) for example in x.split(1)])


def functional_jacobian(model, x):
    """torch.autograd.functional.jacobian, an example at a time; (B, K, d)."""
    one = torch.autograd.functional.jacobian
    return torch.stack([one(lambda v: model(v[None])[0], example) for example in x])


@pytest.mark.parametrize(
    ("against", "peer", "aim"),
    [
        ("a backward call for each output, all examples at once", loop_over_outputs, 1.0),
        ("a backward call for each output of each example", loop_over_both, 0.1),
        (
            "torch.autograd.functional.jacobian for each example",
            functional_jacobian,
            0.1,
        ),
    ],
)
def test_jacobians_of_a_batch(against, peer, aim, compare):
    model, x = network(784, "tanh"), torch.randn(64, 784, generator=generator(1))
    torch.testing.assert_close(jacobian(model, x), peer(model, x), rtol=1e-4, atol=1e-5)
    compare(
        "Jacobians of 64 examples, 784-100x6-10 tanh",
        lambda: jacobian(model, x), against, lambda: peer(model, x), rounds=20, aim=aim,
        agreement="equal to 1e-4",
    )  # fmt: skip


def pruned():
    """784-100x6-10 without 90 % of its weights, and its masks."""
    model = network(784, "linear")
    data = standardise(load_images("digits"))
    wide = torch.nn.functional.interpolate(data.train_x, (28, 28), mode="bilinear")
    scores = sp.connection_scores(model, sp.full_set(data.replace(train_x=wide)))
    return model, sp.global_topk_mask(scores, 0.9, warn=False)


PEERS = {
    "Adam": {
        f"lr {rate}": lambda weights, rate=rate: torch.optim.Adam(weights, rate)
        for rate in (0.003, 0.01, 0.03)
    },
    "LBFGS": {
        "lr 0.05": lambda weights: torch.optim.LBFGS(weights, 0.05, max_iter=1),
    }
    | {
        f"{most} iterations a call, strong Wolfe": lambda weights, most=most: torch.optim.LBFGS(
            weights, max_iter=most, line_search_fn="strong_wolfe"
        )
        for most in (5, 10, 20)
    },
}


def descend(start, masks, optimiser, steps, until=0.0):
    """An optimiser of torch on the squared norms of all layers: steps taken, and the residual."""
    weights = [(start[n] * m).requires_grad_() for n, m in masks.items()]
    method = optimiser(weights)
    ones = [torch.eye(len(w)) for w in weights]
    kept = list(masks.values())

    def closure():
        method.zero_grad()
        masked = [w * m for w, m in zip(weights, kept, strict=True)]
        loss = sum((v @ v.T - one).square().sum() for v, one in zip(masked, ones, strict=True))
        loss.backward()
        return loss

    for step in range(steps):
        residual = math.sqrt(method.step(closure).item())  # before the step
        if residual <= until:
            return step, residual
    return steps, residual


@pytest.mark.parametrize("name", PEERS)
def test_isometry_to_the_same_residual(name, compare):
    """Our steps until within 1 % of what 1,000 of them reach, and a peer until it is as near."""
    model, masks = pruned()
    masks = {n: m for n, m in masks.items() if m.dim() > 1}
    start = {n: value.clone() for n, value in model.state_dict().items()}

    def ours(steps):
        model.load_state_dict(start)
        return sp.enforce_isometry(model, masks, steps=steps)

    trail = ours(1000).values()
    length = max(map(len, trail))
    by_step = [math.sqrt(sum(r[min(k, len(r) - 1)] ** 2 for r in trail)) for k in range(length)]
    until = 1.01 * by_step[-1]
    steps = next(k for k, r in enumerate(by_step) if r <= until)
    reached = []
    for setting, kind in PEERS[name].items():
        began = time.process_time()
        taken, residual = descend(start, masks, kind, 500, until)
        if residual <= until:
            reached.append((time.process_time() - began, setting, taken, residual))
    _, setting, taken, residual = min(reached)
    compare(
        "isometry of 784-100x6-10 at 90 %, masked Newton-Schulz steps",
        lambda: ours(steps),
        f"torch.optim.{name} on the squared norm, at the fastest of {len(PEERS[name])} settings",
        lambda: descend(start, masks, PEERS[name][setting], taken),
        rounds=5,
        aim=0.2,
        peers=["torch"],
        agreement=f"residual {by_step[steps]:.3f} against {residual:.3f}",
        reason="a step is cheaper, but more of them are needed near the end",
        note=f"{steps} steps against {taken} calls, {setting}",
    )


def test_growth_with_the_width(grow):
    x = torch.randn((64, 784), generator=generator())

    def make(width):
        model = mlp(784, [width] * 6, 10, activation="tanh")
        return lambda: jacobian(model, x)

    grow(
        "Jacobians of 64 examples, six tanh layers",
        "units a layer",
        [64, 128, 256, 512, 1024],
        make,
    )
