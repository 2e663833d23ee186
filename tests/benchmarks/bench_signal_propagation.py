"""What spectra and isometry cost beside the ways in which they are usually computed."""

import math

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


def total(history):
    return math.sqrt(sum(residuals[-1] ** 2 for residuals in history.values()))


def test_isometry_to_the_residual_of_the_official_objective(compare):
    """Masked Newton-Schulz steps until they are within 1 % of where 10,000 steps of SGD end."""
    model = network(784, "linear")
    data = standardise(load_images("digits"))
    wide = torch.nn.functional.interpolate(data.train_x, (28, 28), mode="bilinear")
    data = data.replace(train_x=wide)
    masks = sp.global_topk_mask(sp.connection_scores(model, sp.full_set(data)), 0.9, warn=False)
    start = {name: value.clone() for name, value in model.state_dict().items()}

    def repaired(**options):
        model.load_state_dict(start)
        return sp.enforce_isometry(model, masks, **options)

    reached = total(repaired(steps=10_000, objective="paper"))
    trail = repaired(steps=1000)
    by_step = [math.sqrt(sum(r[k] ** 2 for r in trail.values())) for k in range(1001)]
    steps = next((k for k, r in enumerate(by_step) if r <= 1.01 * reached), 1000)
    compare(
        "isometry of 784-100x6-10 at 90 %, masked Newton-Schulz steps",
        lambda: repaired(steps=steps),
        "10,000 SGD steps on the norm (the official objective)",
        lambda: repaired(steps=10_000, objective="paper"),
        rounds=3,
        aim="at most 0.05",
        note=f"{steps} steps; residual {by_step[steps]:.3f} against {reached:.3f}",
    )
