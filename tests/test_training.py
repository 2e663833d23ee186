"""The supervised loop against hand computation, closed forms and its own promises."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from companion.sparsity import apply_masks
from companion.stacked import train_together
from companion.training import (
    LOOK_EVERY,
    DivergenceError,
    error_rate,
    functional_call,
    predict,
    shuffled_batches,
    train,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def task(n=40, features=4, classes=3, seed=1):
    g = generator(seed)
    x = torch.randn((n, features), generator=g, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=g)


def net(hidden=5, seed=2):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3)).double()


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize(("count", "size"), [(10, 3), (10, 10), (7, 1), (9, 4)])
def test_batches_cover_every_example_once_an_epoch(count, size):
    epochs = 4
    drawn = list(
        itertools.islice(shuffled_batches(count, size, generator()), -(-epochs * count // size))
    )
    assert {len(b) for b in drawn} == {size}
    stream = torch.cat(drawn)[: epochs * count].view(epochs, count)
    assert all(sorted(epoch.tolist()) == list(range(count)) for epoch in stream)


def test_every_epoch_has_its_own_order():
    batches = shuffled_batches(50, 50, generator())
    assert not torch.equal(next(batches), next(batches))


@pytest.mark.parametrize("size", [0, 11])
def test_a_batch_larger_than_the_set_or_empty_raises(size):
    with pytest.raises(ValueError, match=f"batch_size = {size}"):
        next(shuffled_batches(10, size, generator()))


# ---------------------------------------------------------------- steps


def test_two_steps_equal_sgd_by_hand():
    x, y = task()
    model, rate, momentum, decay = net(), 0.1, 0.9, 0.01
    twin = copy.deepcopy(model)
    history = train(
        model, x, y, steps=2, generator=generator(5), batch_size=8,
        lr=rate, momentum=momentum, weight_decay=decay,
    )  # fmt: skip
    speed = [torch.zeros_like(p) for p in twin.parameters()]
    losses = []
    for index in itertools.islice(shuffled_batches(40, 8, generator(5)), 2):
        loss = cross_entropy(twin(x[index]), y[index])
        losses.append(loss.item())
        slopes = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for p, v, slope in zip(twin.parameters(), speed, slopes, strict=True):
                v.mul_(momentum).add_(slope + decay * p)
                p.sub_(rate * v)
    assert history.loss == pytest.approx(losses, rel=1e-12)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_milestones_scale_the_rate_of_the_steps_after_them():
    x, y = task(n=8)
    model = net()
    weights = []

    def look():
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))

    look()
    # plain SGD on one full batch: the step is the rate times the gradient
    train(
        model, x, y, steps=4, generator=generator(), batch_size=8, lr=0.01, momentum=0.0,
        milestones=[3, 1], gamma=0.5, monitor=look, monitor_every=1,
    )  # fmt: skip
    rates = []
    for before, after in itertools.pairwise(weights):
        nn.utils.vector_to_parameters(before, model.parameters())
        slopes = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
        slope = torch.cat([s.flatten() for s in slopes])
        rates.append(float((before - after).norm() / slope.norm()))
    assert rates == pytest.approx([0.01, 0.005, 0.005, 0.0025], rel=1e-6)


def test_the_same_seed_gives_the_same_weights_bit_by_bit():
    x, y = task()

    def run(seed):
        model = net()
        noise = lambda batch, g: batch + torch.randn(batch.shape, generator=g)  # noqa: E731
        train(model, x, y, steps=30, generator=generator(seed), batch_size=8, augment=noise)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.manual_seed(11)
    first = run(3)
    torch.manual_seed(12)
    assert torch.equal(first, run(3))
    assert not torch.equal(first, run(4))


def test_masked_training_equals_training_a_net_without_those_weights():
    x, y = task()
    wide, kept = net(hidden=7), [0, 2, 5]
    narrow = net(hidden=3)
    with torch.no_grad():
        narrow[0].weight.copy_(wide[0].weight[kept])
        narrow[0].bias.copy_(wide[0].bias[kept])
        narrow[2].weight.copy_(wide[2].weight[:, kept])
        narrow[2].bias.copy_(wide[2].bias)
    unit = torch.zeros(7).bool()
    unit[kept] = True
    masks = {
        "0.weight": unit[:, None].expand(7, 4),
        "0.bias": unit,
        "2.weight": unit[None].expand(3, 7),
    }
    options = {"steps": 60, "batch_size": 8, "lr": 0.1, "weight_decay": 1e-3, "milestones": [40]}
    with apply_masks(wide, masks):
        train(wide, x, y, generator=generator(1), **options)
    train(narrow, x, y, generator=generator(1), **options)
    torch.testing.assert_close(wide[0].weight[kept], narrow[0].weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(wide[2].weight[:, kept], narrow[2].weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(wide(x), narrow(x), rtol=1e-9, atol=1e-12)
    assert (wide[0].weight[~unit] == 0).all()


def test_frozen_parameters_do_not_move():
    x, y = task()
    model = net()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    train(model, x, y, steps=5, generator=generator(), batch_size=8, weight_decay=0.1)
    assert torch.equal(model[0].weight, before)


def test_a_separable_task_is_learnt():
    g = generator(3)
    y = torch.randint(3, (90,), generator=g)
    x = torch.eye(4, dtype=torch.float64)[y] + 0.1 * torch.randn(90, 4, generator=g)
    model = net(hidden=8)
    train(model, x, y, steps=150, generator=generator(), batch_size=30)
    assert error_rate(model, x, y) == 0.0


# ---------------------------------------------------------------- divergence


def test_divergence_raises_and_names_the_rate():
    x, y = task()
    x[3] = math.inf
    with pytest.raises(DivergenceError, match=r"not finite by step 7: lower lr = 0\.3"):
        train(net(), x, y, steps=7, generator=generator(), batch_size=40, lr=0.3)


def test_divergence_between_looks_is_not_missed():
    x, y = task(n=10)
    bad = x.clone()
    bad[0] = math.nan  # the batch order decides when it comes first
    first = next(
        step
        for step, index in enumerate(shuffled_batches(10, 1, generator()), 1)
        if 0 in index.tolist()
    )
    history = train(
        net(),
        bad,
        y,
        steps=120,
        generator=generator(),
        batch_size=1,
        lr=1e-3,
        on_divergence="stop",
    )
    assert history.diverged
    assert len(history.loss) == LOOK_EVERY
    assert all(map(math.isfinite, history.loss[: first - 1]))
    assert math.isnan(history.loss[first - 1])


def test_a_run_that_stops_still_keeps_to_its_mask():
    x, y = task()
    x[0] = math.nan
    model = net()
    mask = torch.rand(5, 4, generator=generator()) < 0.5
    with apply_masks(model, {"0.weight": mask}):
        train(
            model, x, y, steps=3, generator=generator(), batch_size=40, on_divergence="stop",
        )  # fmt: skip
    assert (model[0].weight[~mask] == 0).all()


def test_an_unknown_way_to_diverge_raises():
    x, y = task()
    with pytest.raises(ValueError, match="on_divergence = 'ignore'"):
        train(net(), x, y, steps=1, generator=generator(), on_divergence="ignore")


def test_losses_are_kept_for_every_step_and_checks_with_their_step():
    x, y = task()
    values = iter(range(100))
    history = train(
        net(), x, y, steps=120, generator=generator(), batch_size=8, lr=0.01,
        monitor=lambda: next(values), monitor_every=50,
    )  # fmt: skip
    assert len(history.loss) == 120
    assert history.checks == [(50, 0), (100, 1)]


def test_a_monitor_that_switches_to_inference_changes_no_step():
    x, y = task()
    ends = []
    for switches in (False, True):
        model = nn.Sequential(net(), nn.Dropout(0.5))
        look = (lambda model=model: model.eval()) if switches else (lambda: None)
        torch.manual_seed(4)
        history = train(
            model, x, y, steps=6, generator=generator(), batch_size=8, lr=0.1,
            monitor=look, monitor_every=2,
        )  # fmt: skip
        assert model.training
        ends.append(history.loss)
    assert ends[0] == ends[1]


def test_no_steps_leave_the_model_as_it_was_but_masked():
    x, y = task()
    model = net()
    before = model[0].weight.detach().clone()
    mask = torch.arange(20).view(5, 4) % 2 == 0
    with apply_masks(model, {"0.weight": mask}):
        history = train(model, x, y, steps=0, generator=generator(), batch_size=8)
    assert history.loss == []
    assert torch.equal(model[0].weight, before * mask)


# ---------------------------------------------------------------- evaluation


class Fixed(nn.Module):
    """Gives back its input as logits."""

    def forward(self, x):
        return x


def test_a_call_with_other_weights_gives_a_module_used_twice_its_own_back():
    square, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = square.weight
    model = nn.Sequential(square, nn.ReLU(), square, other)
    own = dict(model.named_parameters(remove_duplicate=False))
    state = {name: torch.full_like(p, 0.1) for name, p in model.named_parameters()}
    x = torch.ones(2, 3)
    found = functional_call(model, state, (x,))
    assert all(p is own[n] for n, p in model.named_parameters(remove_duplicate=False))
    h = 0.3 * (x + 1 / 3)
    for _ in range(2):
        h = 0.1 * h.sum(1, keepdim=True).expand(-1, 3) + 0.1
    torch.testing.assert_close(found, h)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_labels_may_be_of_any_integer_type(dtype):
    x, y = torch.randn(8, 3, generator=generator()), torch.arange(8) % 2
    first = nn.Linear(3, 2)
    other, stacked = copy.deepcopy(first), [nn.Sequential(copy.deepcopy(first)) for _ in range(2)]
    train(first, x, y, steps=3, batch_size=4, generator=generator())
    train(other, x, y.to(dtype), steps=3, batch_size=4, generator=generator())
    assert torch.equal(first.weight, other.weight)
    train_together(stacked, x, y.to(dtype), steps=3, batch_size=4, seeds=[0, 0])
    torch.testing.assert_close(stacked[0][0].weight, first.weight)


def test_error_rate_counts_mistakes_in_percent():
    outputs = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 9.0]])
    assert error_rate(Fixed(), outputs, torch.tensor([0, 1, 1, 0])) == 50.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_output_that_is_not_finite_is_a_mistake(bad):
    outputs = torch.tensor([[1.0, 0.0], [1.0, bad], [bad, 1.0]])
    right = torch.tensor([0, 0, 0])
    assert error_rate(Fixed(), outputs, right) == pytest.approx(200 / 3)


def test_prediction_does_not_depend_on_the_batch_size_and_restores_every_mode():
    model = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3)
    ).double()
    model.train()
    model[1].eval()
    x, _ = task()
    whole, parts = predict(model, x), predict(model, x, batch_size=7)
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-14)
    assert not whole.requires_grad
    assert [m.training for m in model] == [True, False, True, True]
    with pytest.raises(RuntimeError):
        predict(model, x[:, :2])
    assert model.training


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": -1}, "steps = -1"),
        ({"steps": 2.0}, r"steps = 2\.0"),
        ({"lr": math.nan}, "lr = nan"),
        ({"lr": -0.1}, r"lr = -0\.1"),
        ({"lr": "0.1"}, "lr = '0.1': expected a finite number, at least 0"),
        ({"momentum": 1.5}, r"momentum = 1\.5: expected a number in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum = -0\.1: expected a number in \[0, 1\)"),
        ({"momentum": 0.0, "nesterov": True}, r"momentum = 0\.0: expected above 0 with nesterov"),
        (
            {"weight_decay": -1e-4},
            r"weight_decay = -0\.0001: expected a finite number, at least 0",
        ),
        ({"batch_size": 8.0}, r"batch_size = 8\.0: expected a whole number"),
        ({"targets": torch.zeros(39).long()}, r"targets: shape \(39,\)"),
        ({"targets": torch.zeros(40, 1).long()}, r"targets: shape \(40, 1\)"),
        ({"targets": torch.zeros(40)}, r"targets: torch\.float32"),
        ({"targets": [0] * 40}, "targets: list, expected a tensor of labels: torch.tensor"),
        ({"targets": np.zeros(40, int)}, "targets: ndarray, expected a tensor of labels"),
    ],
)
def test_training_names_what_it_is_given_wrongly(options, told):
    x, y = task()
    options = {"steps": 2, "targets": y, "batch_size": 8, **options}
    with pytest.raises(ValueError, match=told):
        train(net(), x, generator=generator(), **options)
    with pytest.raises(ValueError, match=told):
        train_together([net(), net()], x, seeds=[0, 1], **options)


def test_errors_are_of_examples_with_one_label_each():
    x, y = task()
    # (n, 1) against (n,) would compare all with all
    with pytest.raises(ValueError, match=r"targets: shape \(40, 1\)"):
        error_rate(net(), x, y[:, None])
    with pytest.raises(ValueError, match="inputs: no example"):
        error_rate(net(), x[:0], y[:0])
    with pytest.raises(ValueError, match="targets: 2, but the model tells 1 classes apart"):
        error_rate(nn.Identity(), x[:, :1], y)  # of one logit the largest is the first
    with pytest.raises(ValueError, match="inputs: no example"):
        predict(net(), x[:0])
    with pytest.raises(ValueError, match="batch_size = 0"):
        predict(net(), x, batch_size=0)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3], "targets: 3, but the model tells 3 classes apart"),
        ([0, -100], "targets: -100, expected class indices of at least 0"),  # not ignored
    ],
)
def test_class_indices_out_of_range_are_named(labels, message, together):
    model, x, y = nn.Sequential(nn.Linear(2, 3)), torch.rand(2, 2), torch.tensor(labels)
    model = [model] if together else model
    kind, options = (train_together, {"seeds": [0]}) if together else (train, {})
    with pytest.raises(ValueError, match=message):
        kind(model, x, y, steps=1, batch_size=1, **options)


def test_counts_may_be_numpys_and_a_bar_changes_nothing():
    x, y = torch.rand(4, 2), torch.tensor([0, 1, 0, 1])
    ends = []
    for options in ({"steps": 3}, {"steps": np.int64(3), "progress": True}):
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        train(model, x, y, batch_size=2, generator=torch.Generator().manual_seed(0), **options)
        ends.append(model.weight.detach())
    assert torch.equal(*ends)


def test_a_loss_that_is_infinite_in_one_step_only_is_seen():
    class Once(nn.Linear):
        calls = 0

        def forward(self, x):
            self.calls += 1
            shut = torch.tensor([self.calls == 1, False, False])
            return super().forward(x).masked_fill(shut, -math.inf)

    x, y = task()
    with pytest.raises(DivergenceError):
        train(Once(4, 3).double(), x, 0 * y, steps=LOOK_EVERY, batch_size=4, generator=generator())


def test_a_milestone_that_comes_twice_lowers_the_rate_twice():
    x, y = task()
    two, one = net(), net()
    for model, options in (
        (two, {"milestones": [3, 3]}),
        (one, {"milestones": [3], "gamma": 0.01}),
    ):
        train(model, x, y, steps=6, batch_size=8, generator=generator(), **options)
    for a, b in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(a, b)
