"""Meta-SparseINR: counts, initialisation, MAML, pruning, fitting, and what each must catch."""

import copy
import dataclasses
import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from companion.papers import sparse_inr as inr
from companion.papers.sparse_inr.fitting import held_out_psnr, mean_psnr, render
from companion.papers.sparse_inr.masks import (
    apply_mask,
    dense_count,
    mask_bits,
    survivor_chain,
    survivors,
)
from companion.progress import Progress
from companion.runs import chapters, executor
from companion.training import DivergenceError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(width=8, layers=4, channels=1, omega_0=30.0, seed=0, dtype=torch.float64):
    params = inr.siren_params(2, width, layers, channels, omega_0, generator=generator(seed))
    return {name: value.to(dtype) for name, value in params.items()}


def signals(count=3, side=6, channels=1, seed=5, dtype=torch.float64):
    return torch.rand((count, side * side, channels), generator=generator(seed), dtype=dtype)


def pruned(params, amount=0.5):
    masks = inr.full_masks(params)
    return inr.magnitude_prune(params, masks, amount)


# ---------------------------------------------------------------- counting

PAPER_CHAIN = [
    158311, 126649, 101320, 81056, 64845, 51876, 41501, 33201, 26561, 21249,
    17000, 13600, 10880, 8704, 6964, 5572, 4458, 3567, 2854, 2284,
]  # fmt: skip
PAPER_WIDTHS = [
    230,
    206,
    184,
    164,
    148,
    132,
    118,
    106,
    94,
    84,
    76,
    68,
    60,
    54,
    48,
    44,
    38,
    34,
    32,
    28,
]


def test_the_paper_s_chain_of_survivors_is_exact():
    assert dense_count(256, 2, 3) == 197_888
    assert survivor_chain(197_888, 0.2, 20)[1:] == PAPER_CHAIN


def test_the_paper_s_twenty_widths_are_the_smallest_even_ones():
    assert [inr.matched_width(n, 2, 3) for n in PAPER_CHAIN] == PAPER_WIDTHS
    assert dense_count(94, 2, 3) == 26_978
    assert dense_count(32, 2, 3) == 3_232


def test_the_quick_profile_s_counts():
    assert survivor_chain(dense_count(48, 2, 1), 0.37, 5) == [
        7056,
        4446,
        2801,
        1765,
        1112,
        701,
    ]
    assert inr.matched_width(1112, 2, 1) == 20
    assert inr.matched_width(1112 + 193, 2, 1, biases=True) == 20
    assert inr.matched_width(1112, 2, 1, multiple=1) == 19


@pytest.mark.parametrize(("width", "layers", "channels"), [(7, 4, 3), (16, 2, 1), (5, 1, 2)])
def test_counts_are_those_of_a_real_network(width, layers, channels):
    masks = inr.full_masks(network(width, layers, channels))
    modules = [
        m
        for m in inr.Siren(2, width, layers, channels, 30.0).modules()
        if isinstance(m, nn.Linear)
    ]
    weights = sum(m.weight.numel() for m in modules)
    assert inr.count_params(masks) == weights
    assert inr.count_params(masks, biases=True) == weights + sum(m.bias.numel() for m in modules)
    assert dense_count(width, 2, channels, hidden_layers=layers) == weights
    assert sum(survivors(masks)) == weights


def test_biases_that_the_paper_does_not_count():
    masks = inr.full_masks(inr.siren_params(2, 256, 4, 3, 200.0))
    assert inr.count_params(masks, biases=True) - inr.count_params(masks) == 1027
    assert dense_count(32, 2, 3, biases=True) - dense_count(32, 2, 3) == 131


# ---------------------------------------------------------------- the network


def test_forward_is_the_formula():
    params = network(5, 2, 3, 40.0)
    coords = inr.pixel_grid(3, 4).double()
    h = coords.numpy()
    for layer in ("layers.0", "layers.1"):
        W, b = params[f"{layer}.weight"].numpy(), params[f"{layer}.bias"].numpy()
        h = np.sin(40.0 * (h @ W.T + b))
    h = h @ params["layers.2.weight"].numpy().T + params["layers.2.bias"].numpy()
    assert np.allclose(inr.siren(params, coords).numpy(), h, rtol=1e-12)


def test_the_module_and_the_dictionary_are_the_same_network():
    params = inr.siren_params(2, 16, 4, 3, 50.0, generator=generator(1))
    module = inr.Siren(2, 16, 4, 3, 50.0, generator=generator(1))
    coords = inr.pixel_grid(5, 5)
    assert torch.equal(module(coords), inr.siren(params, coords))
    assert [n for n, _ in module.named_parameters()] == [n for n in params if n != "omega_0"]


def test_every_layer_is_drawn_within_its_bounds_and_fills_them():
    params = inr.siren_params(2, 256, 4, 3, 200.0, generator=generator())
    for number in range(5):
        bound = 0.5 if number == 0 else math.sqrt(6 / 256) / 200
        for kind in ("weight", "bias"):
            value = params[f"layers.{number}.{kind}"]
            assert value.abs().max() <= bound
            if value.numel() > 100:
                assert value.abs().max() > 0.97 * bound
                assert value.mean().abs() < 0.1 * bound


def test_pre_activations_have_a_deviation_near_one_from_the_second_layer_on():
    params = inr.siren_params(2, 512, 4, 1, 100.0, generator=generator())
    h = inr.pixel_grid(40, 40)
    expected = [None, 1.0]
    while len(expected) < 4:  # the sine of a normal has variance (1 - exp(-2 sigma^2)) / 2
        expected.append(math.sqrt(1 - math.exp(-2 * expected[-1] ** 2)))
    for number in range(4):
        W, b = params[f"layers.{number}.weight"], params[f"layers.{number}.bias"]
        z = 100.0 * torch.nn.functional.linear(h, W, b)
        if number:
            assert z.std().item() == pytest.approx(expected[number], rel=0.04)  # 512 units
        h = torch.sin(z)
    wrong = 30.0 * torch.nn.functional.linear(h, params["layers.3.weight"])
    assert wrong.std().item() < 0.5  # what another omega_0 in the initialiser would give


def test_the_grid_counts_rows_first_and_includes_the_ends():
    grid = inr.pixel_grid(2, 3)
    assert grid.tolist() == [[-1, -1], [-1, 0], [-1, 1], [1, -1], [1, 0], [1, 1]]
    images = torch.rand(2, 3, 4, 5)
    assert torch.equal(inr.as_targets(images)[1, 7], images[1, :, 1, 2])
    assert torch.equal(inr.as_images(inr.as_targets(images), 4, 5), images)


def test_permuting_hidden_units_changes_nothing():
    params, targets = network(8, omega_0=20.0), signals()
    coords = inr.pixel_grid(6, 6).double()
    order = torch.randperm(8, generator=generator(2))
    moved = dict(params)
    for name in ("layers.1.weight", "layers.1.bias"):
        moved[name] = moved[name][order]
    moved["layers.2.weight"] = moved["layers.2.weight"][:, order]
    masks = inr.full_masks(params)
    a = inr.fit(params, masks, targets, 5, 1e-3, coords=coords).psnr
    b = inr.fit(moved, masks, targets, 5, 1e-3, coords=coords).psnr
    assert torch.allclose(a, b, atol=1e-8)
    assert not torch.allclose(a, inr.fit(network(seed=1), masks, targets, 5, 1e-3).psnr, atol=1e-3)


# ---------------------------------------------------------------- strict float32


def test_reduced_precision_around_the_network_does_not_reach_it(monkeypatch, precision_switches):
    params = {n: v.float() for n, v in network(32, omega_0=200.0).items()}
    coords, targets = inr.pixel_grid(12, 12), signals(2, 12, dtype=torch.float32)
    masks = inr.full_masks(params)

    def run():
        loss = inr.maml_loss(params, masks, coords, targets, 1e-2, 2)
        trained, _, _ = inr.meta_train(
            params, masks, targets, 2, tasks_per_step=2, generator=generator()
        )
        return loss, trained["layers.1.weight"], inr.fit(params, masks, targets, 3, 1e-4).psnr

    exact = run()
    seen = []
    original = torch.sin

    def spy(x):
        seen.append(
            (
                x.dtype,
                torch.backends.cuda.matmul.fp32_precision,
                torch.backends.mkldnn.matmul.fp32_precision,
            )
        )
        return original(x)

    monkeypatch.setattr(torch, "sin", spy)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guarded = run()
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # given back
    finally:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = (
            before
        )
    assert set(seen) == {(torch.float32, "ieee", "ieee")}
    for ours, theirs in zip(guarded, exact, strict=True):
        assert torch.equal(ours, theirs)


def test_without_the_guard_bf16_would_show():
    """The planted fault that the test above is there for."""
    params = {n: v.float() for n, v in network(32, omega_0=200.0).items()}
    coords = inr.pixel_grid(12, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wrong = inr.siren(params, coords).float()
    assert (wrong - inr.siren(params, coords)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_reduced_precision_are_refused(dtype):
    params = {n: v.to(dtype) for n, v in network().items()}
    masks, targets = inr.full_masks(params), signals()
    for call in (
        lambda: inr.maml_loss(params, masks, inr.pixel_grid(6, 6), targets, 1e-2, 1),
        lambda: inr.meta_train(params, masks, targets, 1),
        lambda: inr.fit(params, masks, targets, 1, 1e-3),
    ):
        with pytest.raises(ValueError, match="expected float32 or float64"):
            call()


# ---------------------------------------------------------------- MAML


def maml_by_loop(params, masks, coords, targets, inner_lr, inner_steps):
    """A second implementation: task after task, ordinary autograd, ordinary modules of matmul."""
    omega_0, total = params["omega_0"], 0.0
    theta = {n: v for n, v in params.items() if n != "omega_0"}

    def loss_of(theta, y):
        h = coords
        for number in range(5):
            W = theta[f"layers.{number}.weight"] * masks[f"layers.{number}.weight"]
            z = h @ W.T + theta[f"layers.{number}.bias"]
            h = torch.sin(omega_0 * z) if number < 4 else z
        return ((h - y) ** 2).mean()

    for y in targets:
        fast = theta
        for _ in range(inner_steps):
            slope = torch.autograd.grad(loss_of(fast, y), list(fast.values()), create_graph=True)
            fast = {n: w - inner_lr * g for (n, w), g in zip(fast.items(), slope, strict=True)}
        total = total + loss_of(fast, y)
    return total / len(targets)


@pytest.mark.parametrize("inner_steps", [0, 1, 2])
def test_batched_maml_is_the_loop_over_tasks(inner_steps):
    params, targets = network(omega_0=10.0, channels=2), signals(4, channels=2)
    theta = {n: v.requires_grad_() for n, v in params.items() if n != "omega_0"}
    masks, coords = pruned(params), inr.pixel_grid(6, 6).double()
    arguments = (theta | {"omega_0": params["omega_0"]}, masks, coords, targets, 1e-2, inner_steps)
    ours, theirs = inr.maml_loss(*arguments), maml_by_loop(*arguments)
    assert abs(ours - theirs) <= 1e-10 * abs(theirs)
    slopes = [torch.autograd.grad(value, list(theta.values())) for value in (ours, theirs)]
    for a, b in zip(*slopes, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def linear_case(alpha, steps, first_order=False):
    """The outer slope of L = (a/2) (w - c)^2, which a network without sines on two points has."""
    s, c, w = 0.7, 0.4, 1.3  # a = 2 s^2
    params = {
        "layers.0.weight": torch.tensor([[w]], dtype=torch.float64, requires_grad=True),
        "layers.0.bias": torch.zeros(1, dtype=torch.float64),
        "omega_0": torch.tensor(1.0, dtype=torch.float64),
    }
    coords = torch.tensor([[s], [-s]], dtype=torch.float64)
    loss = inr.maml_loss(
        params, {}, coords, (c * coords)[None], alpha, steps, first_order=first_order
    )
    (slope,) = torch.autograd.grad(loss, params["layers.0.weight"])
    return slope.item(), 2 * s**2, w - c


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_the_outer_slope_on_a_quadratic_has_its_closed_form(steps):
    alpha = 0.3
    second, a, distance = linear_case(alpha, steps)
    first, _, _ = linear_case(alpha, steps, first_order=True)
    assert second == pytest.approx(a * (1 - alpha * a) ** (2 * steps) * distance, rel=1e-12)
    assert second / first == pytest.approx((1 - alpha * a) ** steps, rel=1e-12)


def test_one_outer_step_is_adam_s_on_that_loss():
    params, targets = network(omega_0=10.0), signals(3)
    coords, masks = inr.pixel_grid(6, 6).double(), inr.full_masks(params)
    trained, _, log = inr.meta_train(
        params, masks, targets, 1, outer_lr=1e-3, generator=generator()
    )
    theta = {n: v.clone().requires_grad_() for n, v in params.items() if n != "omega_0"}
    loss = inr.maml_loss(theta | {"omega_0": params["omega_0"]}, masks, coords, targets, 1e-2, 2)
    slopes = torch.autograd.grad(loss, list(theta.values()))
    assert log == pytest.approx([loss.item()])
    for (name, before), g in zip(theta.items(), slopes, strict=True):
        step = 1e-3 * g / (g.abs() + 1e-8)  # Adam's first step
        assert torch.allclose(trained[name], before - step, atol=1e-12)


def test_two_calls_with_adam_s_state_are_one_longer_call():
    params, tasks = network(omega_0=10.0), signals(7)
    masks = pruned(params)
    whole, _, log = inr.meta_train(
        params, masks, tasks, 4, generator=generator(3), tasks_per_step=7
    )
    half, state, first = inr.meta_train(
        params, masks, tasks, 2, generator=generator(3), tasks_per_step=7
    )
    rest, _, second = inr.meta_train(
        half, masks, tasks, 2, generator=generator(4), tasks_per_step=7, opt_state=state
    )
    assert first + second == pytest.approx(log, rel=1e-9)  # all tasks each step: order is nothing
    for name in params:
        assert torch.allclose(whole[name], rest[name], atol=1e-12)
    forgot, _, _ = inr.meta_train(half, masks, tasks, 2, generator=generator(4), tasks_per_step=7)
    assert not torch.allclose(whole["layers.1.weight"], forgot["layers.1.weight"], atol=1e-6)


def test_two_rounds_from_one_checkpoint_do_not_disturb_each_other():
    start = inr.meta_learn(network(omega_0=10.0), signals(7), 3, generator=generator())
    kept = copy.deepcopy(start.opt_state)

    def once():
        options = {"rounds": 1, "amount": 0.5, "round_steps": 3, "generator": generator(4)}
        return inr.meta_prune(start, signals(7), **options)[-1]

    first, second = once(), once()
    assert all(torch.equal(first.params[n], second.params[n]) for n in first.params)
    for number, memory in kept["state"].items():
        for name, value in memory.items():
            assert torch.equal(start.opt_state["state"][number][name], value)


def test_a_call_with_adam_s_state_goes_on_at_its_own_rate():
    start = inr.meta_learn(network(omega_0=10.0), signals(3), 3, outer_lr=1e-2)
    rates = 1e-2, 1e-4
    once = [
        inr.meta_prune(start, signals(3), rounds=1, amount=0.0, round_steps=1, outer_lr=lr)[-1]
        for lr in rates
    ]  # all signals each step: their order is nothing
    for name in start.masks:  # Adam's step is the rate times what its state says
        moved, less = (net.params[name] - start.params[name] for net in once)
        torch.testing.assert_close(less, moved / 100)
        assert moved.any()
    assert [net.opt_state["param_groups"][0]["lr"] for net in (start, *once)] == [1e-2, *rates]


def test_adam_forgets_weights_when_they_are_pruned():
    start = inr.meta_learn(network(omega_0=10.0), signals(7), 3, generator=generator())
    end = inr.meta_prune(
        start, signals(7), rounds=1, amount=0.5, round_steps=1, generator=generator()
    )[-1]
    names = [name for name in start.params if name != "omega_0"]
    gone = 0
    for memory, name in zip(end.opt_state["state"].values(), names, strict=True):
        assert not memory["exp_avg"][~end.masks[name]].any()
        assert memory["exp_avg"][end.masks[name]].any()
        gone += int((~end.masks[name]).sum())
    assert gone
    nothing = inr.meta_learn(network(), signals(2), 0)  # no step: no memory to forget
    inr.meta_prune(nothing, signals(2), rounds=1, amount=0.5, round_steps=1, tasks_per_step=2)


def test_meta_training_lowers_the_loss_and_leaves_its_input_alone():
    params, tasks = network(16), signals(4)
    kept = {n: v.clone() for n, v in params.items()}
    _, _, log = inr.meta_train(
        params, inr.full_masks(params), tasks, 30, outer_lr=1e-3, generator=generator()
    )
    assert sum(log[-5:]) < 0.8 * sum(log[:5])
    assert all(torch.equal(params[n], kept[n]) for n in params)


def test_a_diverging_loss_is_named():
    params = network()
    with pytest.raises(DivergenceError, match="outer_lr"):
        inr.meta_train(params, inr.full_masks(params), signals(), 3, outer_lr=1e300)
    with pytest.raises(DivergenceError, match="lr = "):
        inr.fit(params, inr.full_masks(params), signals(), 3, 1e300, "sgd")


# ---------------------------------------------------------------- pruning


def test_an_all_ones_mask_is_the_dense_network():
    params, targets = network(), signals()
    masks = inr.full_masks(params)
    coords = inr.pixel_grid(6, 6).double()
    with_masks = inr.maml_loss(params, masks, coords, targets, 1e-2, 2)
    assert torch.equal(with_masks, inr.maml_loss(params, {}, coords, targets, 1e-2, 2))
    assert torch.equal(
        inr.fit(params, masks, targets, 3, 1e-3).psnr, inr.fit(params, {}, targets, 3, 1e-3).psnr
    )


@pytest.mark.parametrize("opt", ["adam", "sgd"])
def test_masked_weights_stay_exactly_zero_through_everything(opt):
    tasks = signals(5)
    start = inr.meta_learn(network(), tasks, 3, generator=generator())  # Adam has momentum now
    for checkpoint in inr.meta_prune(
        start, tasks, rounds=3, amount=0.4, round_steps=3, generator=generator()
    ):
        fitted = inr.fit(checkpoint.params, checkpoint.masks, tasks, 4, 1e-2, opt)
        for name, mask in checkpoint.masks.items():
            assert not checkpoint.params[name][~mask].any()
            assert not fitted.params[name][:, ~mask].any()
            assert checkpoint.params[name][mask].all()


def test_the_inner_steps_never_see_a_masked_weight():
    params, targets = network(), signals()
    masks, coords = pruned(params), inr.pixel_grid(6, 6).double()
    loss = inr.maml_loss(params, masks, coords, targets, 1e-2, 2)
    noise = {n: v + 7.0 * ~masks[n] if n in masks else v for n, v in params.items()}
    assert torch.equal(loss, inr.maml_loss(noise, masks, coords, targets, 1e-2, 2))


def test_pruning_goes_down_the_chain_and_masks_are_nested():
    tasks = signals(5)
    start = inr.meta_learn(network(12), tasks, 2, generator=generator())
    chain = inr.meta_prune(
        start, tasks, rounds=5, amount=0.37, round_steps=2, generator=generator()
    )
    assert [c.weights for c in chain] == survivor_chain(dense_count(12, 2, 1), 0.37, 5)
    assert [c.outer_steps for c in chain] == [2, 4, 6, 8, 10, 12]
    assert [len(c.log) for c in chain] == [2, 4, 6, 8, 10, 12]
    for earlier, later in pairwise(chain):
        assert all(not (later.masks[n] & ~earlier.masks[n]).any() for n in later.masks)
    assert all(m.all() for n, m in chain[-1].masks.items() if n.endswith("bias"))


def test_global_pruning_takes_the_smallest_of_what_is_left():
    params = network()
    masks = pruned(params, 0.3)
    names = [n for n in masks if n.endswith("weight")]
    after = inr.magnitude_prune(params, masks, 0.25)
    alive = torch.cat([params[n].abs()[masks[n]] for n in names])
    kept = torch.cat([params[n].abs()[after[n]] for n in names])
    assert torch.equal(kept.sort().values, alive.sort().values[-len(kept) :])
    assert len(kept) == len(alive) - int(0.25 * len(alive))


def test_a_surviving_weight_of_zero_outranks_a_pruned_one():
    params = network(4, 1)
    masks = pruned(params, 0.5)
    params = {n: torch.zeros_like(v) if n.endswith("weight") else v for n, v in params.items()}
    after = inr.magnitude_prune(params, masks, 0.5)
    assert all(not (after[n] & ~masks[n]).any() for n in masks)
    assert inr.count_params(after) == inr.count_params(masks) - inr.count_params(masks) // 2


def test_by_layer_every_layer_loses_its_share():
    params = network(12, 4, 3)
    masks = inr.magnitude_prune(params, inr.full_masks(params), 0.3, "layer")
    before = survivors(inr.full_masks(params))
    assert survivors(masks) == [n - int(0.3 * n) for n in before]


@pytest.mark.parametrize("scope", inr.masks.SCOPES)
@pytest.mark.parametrize("zeros", [1, 3])
def test_weights_of_zero_go_by_their_place(scope, zeros):
    params = network(4, 2)
    for name in [f"layers.{k}.weight" for k in range(3)][:zeros]:
        params[name] = torch.zeros_like(params[name])
    masks = inr.full_masks(params)
    after = inr.magnitude_prune(params, masks, 0.25, scope)
    n = inr.count_params(masks)
    assert inr.count_params(after) == n - n // 4
    if scope == "layer":
        assert after["layers.0.weight"].flatten().tolist() == [True] * 6 + [False] * 2
    elif zeros == 3:
        flat = torch.cat([m.flatten() for name, m in after.items() if "weight" in name])
        assert flat.tolist() == [True] * (n - n // 4) + [False] * (n // 4)


def test_lamp_scores_are_their_definition():
    params = network(6, 2)
    masks = pruned(params, 0.2)
    scored = []
    for name in (n for n in masks if n.endswith("weight")):
        squares = (params[name] ** 2)[masks[name]]
        for w in squares:
            scored.append((w / squares[squares >= w].sum()).item())
    after = inr.magnitude_prune(params, masks, 0.5, "lamp")
    kept = inr.count_params(after)
    threshold = sorted(scored)[-kept]
    for name in (n for n in masks if n.endswith("weight")):
        squares = (params[name] ** 2)[masks[name]]
        scores = torch.tensor([(w / squares[squares >= w].sum()).item() for w in squares])
        assert torch.equal(after[name][masks[name]], scores >= threshold - 1e-15)
    assert min(survivors(inr.magnitude_prune(params, masks, 0.9, "lamp"))) >= 1


def test_random_pruning_repeats_with_the_generator_s_seed():
    params = network()
    masks = inr.full_masks(params)
    one, same, other = (inr.random_prune(params, masks, 0.5, generator(s)) for s in (1, 1, 2))
    assert all(torch.equal(one[n], same[n]) for n in masks)
    assert not all(torch.equal(one[n], other[n]) for n in masks)


def test_random_pruning_spares_no_layer_and_magnitude_spares_the_first():
    params = inr.siren_params(2, 64, 4, 1, 100.0, generator=generator())
    masks = inr.full_masks(params)
    by_chance = inr.random_prune(params, masks, 0.9, generator(1))
    by_size = inr.magnitude_prune(params, masks, 0.9)
    assert inr.count_params(by_chance) == inr.count_params(by_size)
    assert survivors(by_chance)[0] < 0.25 * 128
    assert survivors(by_size)[0] > 0.9 * 128
    assert not all(
        torch.equal(by_chance[n], inr.random_prune(params, masks, 0.9, generator(2))[n])
        for n in masks
    )


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda p, m: inr.magnitude_prune(p, m, 1.0), "amount = 1.0"),
        (lambda p, m: inr.random_prune(p, m, -0.1), "amount = -0.1"),
        (lambda p, m: inr.magnitude_prune(p, m, 0.5, "row"), "scope = 'row'"),
        (lambda p, m: inr.fit(p, m, signals(), 1, 1e-3, "lbfgs"), "opt = 'lbfgs'"),
        (lambda p, m: inr.fit(p, m, signals()[:, :35], 1, 1e-3), "35 points"),
        (
            lambda p, m: inr.fit(p, m, signals(), 1, 1e-3, coords=inr.pixel_grid(5, 7)),
            "35 points, but",
        ),
        (
            lambda p, m: inr.fit(p, m, signals() * 255, 1, 1e-3),
            r"targets: values from .* expected \[0, 1\]",
        ),
        (lambda p, m: inr.fit(p, m, signals() * math.nan, 1, 1e-3), "targets: values from nan"),
        (lambda p, m: inr.fit(p, m, (signals() * 255).byte(), 1, 1e-3), r"targets: torch\.uint8"),
        (lambda p, m: inr.fit(p, m, signals()[:, :0], 1, 1e-3), "targets: shape"),
        (
            lambda p, m: inr.fit(p, {k: v.int() for k, v in m.items()}, signals(), 1, 1e-3),
            r"masks: 'layers.0.weight' is torch\.int32",
        ),
        (
            lambda p, m: inr.fit(p, {k: v[None] for k, v in m.items()}, signals(), 1, 1e-3),
            "masks: 'layers.0.weight' has shape",
        ),
        (
            lambda p, m: inr.magnitude_prune(p, {k: v.float() for k, v in m.items()}, 0.5),
            r"masks: .* torch\.float32",
        ),
        (
            lambda p, m: inr.random_prune(p, {k: v.float() for k, v in m.items()}, 0.5),
            r"masks: .* torch\.float32",
        ),
        (
            lambda p, m: apply_mask(p, {k: v.float() for k, v in m.items()}),
            r"masks: .* torch\.float32",
        ),
        (lambda p, m: survivor_chain(100, 20, 2), "amount = 20"),
        (lambda p, m: survivor_chain(100, 0.2, -1), "rounds = -1"),
        (lambda p, m: inr.bits_per_pixel(m, 0), "pixels = 0"),
        (
            lambda p, m: inr.bits_per_pixel({"w": m["layers.0.weight"]}, 9, params=p),
            "no parameter 'w'",
        ),
        (
            lambda p, m: inr.fit(p, m, signals(), 1, 1e-3, coords=torch.zeros(36, 3)),
            r"coords: shape \(36, 3\), expected \(points, 2\)",
        ),
        (
            lambda p, m: inr.meta_train(p, m, signals(), 1, coords=torch.zeros(36, 1)),
            r"coords: shape \(36, 1\)",
        ),
        (
            lambda p, m: inr.maml_loss(p, m, torch.zeros(36, 3), signals(), 1e-2, 1),
            r"coords: shape \(36, 3\)",
        ),
        (
            lambda p, m: render({k: v[None] for k, v in p.items()}, torch.zeros(5, 3)),
            r"coords: shape \(5, 3\)",
        ),
        (lambda p, m: inr.as_targets(torch.zeros(8, 8)), r"images: shape \(8, 8\)"),
        (lambda p, m: inr.fit(p, m, signals()[0], 1, 1e-3), "targets: shape"),
        (lambda p, m: inr.fit(p, m, signals(channels=3), 1, 1e-3), r"targets: .* \(36, 3\)"),
        (
            lambda p, m: inr.maml_loss(
                p, m, inr.pixel_grid(6, 6).double(), signals(channels=3), 1e-2, 1
            ),
            r"targets: .* \(36, 3\)",
        ),
        (lambda p, m: inr.fit(p, m, signals(), -1, 1e-3), "steps = -1"),
        (lambda p, m: inr.fit(p, m, signals(), 1, -1e-3), "lr = -0.001"),
        (
            lambda p, m: inr.fit(p, m, signals(), 5, 1e-3, prune_at={50: 10}),
            "prune_at: step 50, expected 0 to steps = 5",
        ),
        (
            lambda p, m: inr.fit(p, m, signals(), 5, 1e-3, prune_at={1: 30, 4: 31}),
            "prune_at: 31 weights at step 4, expected 0 to the 30",
        ),
        (
            lambda p, m: inr.fit(p, pruned(p), signals(), 5, 1e-3, prune_at={1: 109}),
            "prune_at: 109 weights at step 1, expected 0 to the 108",
        ),
        (lambda p, m: inr.meta_learn(p, signals(), -3), "steps = -3"),
        (lambda p, m: inr.meta_learn(p, signals(), 1, inner_steps=-1), "inner_steps = -1"),
        (lambda p, m: inr.meta_learn(p, signals(), 1, inner_lr=-1), "inner_lr = -1: expected"),
        (lambda p, m: inr.meta_learn(p, signals(), 1, inner_lr=math.nan), "inner_lr = nan"),
        (lambda p, m: inr.meta_learn(p, signals(), 1, outer_lr=-1), "outer_lr = -1: expected"),
        (
            lambda p, m: inr.meta_learn(p, signals(2), 1),
            "tasks_per_step = 3: expected 1 to 2, the number of tasks",
        ),
        (
            lambda p, m: inr.meta_prune(
                inr.Checkpoint(p, m, 0, {}, ()), signals(), rounds=-1, amount=0.5, round_steps=1
            ),
            "rounds = -1",
        ),
        (
            lambda p, m: inr.fit(p, m | {"x.weight": m["layers.0.weight"]}, signals(), 1, 1e-3),
            "'x.weight'",
        ),
        (lambda p, m: inr.matched_width(0, 2, 1), "n = 0"),
        (lambda p, m: inr.matched_width(9, 2, 1, multiple=-2), "multiple = -2"),
        (lambda p, m: inr.matched_width(9, 2, 1, multiple=0), "multiple = 0"),
        (lambda p, m: inr.matched_width(9, 2, 1, hidden_layers=0), "hidden_layers = 0"),
        (lambda p, m: inr.siren_params(2, 0, 4, 1, 30.0), "hidden_features = 0"),
        (lambda p, m: inr.siren_params(2, 8, -1, 1, 30.0), "hidden_layers = -1"),
        (lambda p, m: inr.siren_params(2, 8, 4, 1, 0.0), "omega_0 = 0.0"),
    ],
)
def test_bad_input_is_named(call, told):
    params = network()
    with pytest.raises(ValueError, match=told):
        call(params, inr.full_masks(params))


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize("opt", ["adam", "sgd"])
def test_fitting_many_signals_is_fitting_each(opt):
    params, targets = network(omega_0=10.0, channels=2), signals(3, channels=2)
    masks = pruned(params)
    together = inr.fit(params, masks, targets, 6, 1e-3, opt)
    for i, target in enumerate(targets):
        alone = inr.fit(params, masks, target[None], 6, 1e-3, opt)
        assert torch.allclose(together.psnr[i], alone.psnr[0], atol=1e-9)
        for name in masks:
            assert torch.allclose(together.params[name][i], alone.params[name][0], atol=1e-12)


def test_a_fit_starts_from_masked_weights():
    params, targets = network(omega_0=10.0), signals(2)
    masks = pruned(params)
    start = inr.fit(params, masks, targets, 0, 1e-3)
    for name, mask in masks.items():
        assert torch.equal(start.params[name], (params[name] * mask).expand(2, *mask.shape))


def test_a_fit_with_plain_descent_is_the_inner_loop():
    params, targets = network(omega_0=10.0), signals(3)
    masks, coords = pruned(params), inr.pixel_grid(6, 6).double()
    result = inr.fit(params, masks, targets, 2, 1e-2, "sgd")
    for step in range(3):
        loss = inr.maml_loss(params, masks, coords, targets, 1e-2, step)
        mse = 10 ** (-result.psnr[:, step] / 10)
        assert mse.mean() == pytest.approx(loss.item(), rel=1e-10)


def test_psnr_is_averaged_over_pictures_and_not_over_errors():
    targets = signals(4)
    params = network()
    result = inr.fit(params, inr.full_masks(params), targets, 1, 1e-3)
    mse = 10 ** (-result.psnr[:, -1] / 10)
    assert mean_psnr(result) > inr.psnr(mse.mean()).item()
    assert mean_psnr(result) == pytest.approx(result.psnr[:, -1].mean().item())
    assert inr.psnr(0.01) == pytest.approx(20.0)
    assert inr.psnr(0.0) == math.inf
    assert math.isnan(inr.psnr(math.nan))


def test_the_mean_psnr_is_that_of_the_step_asked_for():
    params = network()
    results = [inr.fit(params, {}, signals(n, seed=n), 2, 1e-3) for n in (1, 3)]
    for step in (0, 1, 2):
        each = torch.cat([r.psnr[:, step] for r in results])
        assert mean_psnr(results, step) == pytest.approx(each.mean().item())
    assert mean_psnr(results) == mean_psnr(results, 2) > mean_psnr(results, 0)


def test_rendering_gives_the_error_that_the_fit_reports():
    params, targets = network(), signals(3)
    masks, coords = pruned(params), inr.pixel_grid(6, 6).double()
    result = inr.fit(params, masks, targets, 4, 1e-3)
    mse = (inr.render(result.params, coords) - targets).square().mean((1, 2))
    assert torch.allclose(inr.psnr(mse), result.psnr[:, -1])


def test_pruning_while_fitting_keeps_each_signal_s_own_largest_weights():
    params, targets = network(omega_0=10.0), signals(3)
    masks = inr.full_masks(params)
    before = inr.fit(params, masks, targets, 2, 1e-2)
    result = inr.fit(params, masks, targets, 5, 1e-2, prune_at={2: 60, 4: 30})
    assert torch.equal(result.psnr[:, :2], before.psnr[:, :2])
    names = [n for n in masks if n.endswith("weight")]
    for i in range(3):
        assert sum(int(result.masks[n][i].sum()) for n in names) == 30
        assert all(not result.params[n][i][~result.masks[n][i]].any() for n in names)
    once = inr.fit(params, masks, targets, 2, 1e-2, prune_at={2: 60})
    for i in range(3):
        flat = torch.cat([before.params[n][i].flatten() for n in names]).abs()
        kept = torch.cat([once.masks[n][i].flatten() for n in names])
        assert flat[kept].min() >= flat[~kept].max()
    assert any(not torch.equal(result.masks[n][0], result.masks[n][1]) for n in names)
    # the weights of all signals added up are the size of no network
    assert inr.count_params({n: m[1] for n, m in result.masks.items()}) == 30
    biases = {n: m for n, m in result.masks.items() if n not in names}
    for call in (
        lambda: inr.count_params(result.masks),
        lambda: inr.count_params(result.masks, params=result.params),
        lambda: inr.bits_per_pixel(result.masks, 36),
        lambda: inr.count_params({n: m[1] for n, m in result.masks.items()} | biases, biases=True),
    ):
        with pytest.raises(ValueError, match=r"masks: .* has shape \(3, .* of several signals"):
            call()


# ---------------------------------------------------------------- size, fairly


def test_index_cost_counts_the_masks_that_there_are():
    masks = {
        "layers.0.weight": torch.tensor([[True, True, False, False, False]]),
        "layers.0.bias": torch.ones(1),
    }
    assert mask_bits(masks) == pytest.approx(math.log2(10))  # 5 choose 2
    assert mask_bits(inr.full_masks(network())) == pytest.approx(0, abs=1e-9)
    masks["layers.0.bias"] = masks["layers.0.bias"].bool()
    assert inr.bits_per_pixel(masks, 4, bits=8) == pytest.approx((8 * 3 + math.log2(10)) / 4)
    assert inr.bits_per_pixel(masks, 4, bits=8, index=False) == 6


def test_what_masks_leave_out_is_counted_or_asked_for():
    params = network(7, 4, 3)
    masks = inr.full_masks(params)
    for name in [n for n in masks if n.endswith("weight")]:
        masks[name] = torch.rand(masks[name].shape, generator=generator()) < 0.5
    total, bits = inr.count_params(masks, biases=True), inr.bits_per_pixel(masks, 9)
    assert inr.count_params(masks, biases=True, params=params) == total
    assert inr.bits_per_pixel(masks, 9, params=params) == bits
    for left_out in (["layers.0.weight"], ["layers.2.weight", "layers.2.bias"], list(masks)):
        some = {n: m for n, m in masks.items() if n not in left_out}
        whole = sum(params[n].numel() - int(masks[n].sum()) for n in left_out)
        assert inr.count_params(some, biases=True, params=params) == total + whole
        less = inr.bits_per_pixel(some, 9, params=params, index=False)
        assert less == pytest.approx(32 * (total + whole) / 9)
    for missing in (["0"], ["1"], ["2"], ["0", "1"], ["1", "2"], ["0", "3"]):  # all as wide
        some = {n: m for n, m in masks.items() if not any(f"s.{k}." in n for k in missing)}
        with pytest.raises(ValueError, match=r"masks: of the layers .* only; give masks of all"):
            inr.count_params(some)
    # as in a Sequential with activations, and as names that do not number layers
    for names in (
        ["0.weight", "2.weight"],
        ["net.0.weight", "net.3.weight"],
        ["a0.weight", "b0.weight"],
    ):
        ones = dict(zip(names, (torch.ones(4, 2).bool(), torch.ones(3, 4).bool()), strict=True))
        assert inr.count_params(ones) == 20
    # numbers with a gap may be those of all layers: the network tells
    uneven = {f"{k}.weight": torch.ones(2, 2).bool() for k in (0, 2, 3)}
    with pytest.raises(ValueError, match=r"layers 0, 2, 3 only; .* or params \(if these are all"):
        inr.count_params(uneven)
    assert inr.count_params(uneven, params={n: m.float() for n, m in uneven.items()}) == 12
    gap = {n: m for n, m in inr.full_masks(network(7, 2, 3)).items() if "layers.1" not in n}
    gap["layers.2.weight"] = torch.ones(3, 6).bool()
    with pytest.raises(
        ValueError, match=r"'layers\.0\.weight' has 7 outputs, 'layers\.2\.weight' 6"
    ):
        inr.count_params(gap)
    weights = {n: m for n, m in masks.items() if n.endswith("weight")}
    assert inr.count_params(weights) == inr.count_params(masks)
    for undercount in (
        lambda: inr.count_params(weights, biases=True),
        lambda: inr.bits_per_pixel(weights, 9),
    ):
        with pytest.raises(ValueError, match=r"masks: no 'layers\.0\.bias'"):
            undercount()


@pytest.mark.parametrize("amount", [0.0, 0.6, 0.9, 0.98])
def test_the_compacted_network_computes_the_same(amount):
    params = network(12, 4, 2, seed=3)
    masks = inr.magnitude_prune(params, inr.full_masks(params), amount, "layer")
    small = inr.compact(params, masks)
    coords = inr.pixel_grid(6, 6).double()
    assert torch.allclose(inr.siren(small, coords), inr.siren(params, coords, masks), atol=1e-12)
    numbers = [sum(v.numel() for v in p.values()) for p in (small, params)]
    assert numbers[0] == numbers[1] if amount == 0 else numbers[0] < numbers[1]


def test_a_layer_with_nothing_going_on_keeps_a_unit():
    params = network(6, 3, 2)
    masks = inr.full_masks(params)
    masks["layers.2.weight"] = torch.zeros_like(masks["layers.2.weight"])
    small = inr.compact(params, masks)
    # what feeds the unit kept for form's sake goes as far as it can
    assert [len(small[f"layers.{k}.weight"]) for k in range(4)] == [6, 1, 1, 2]
    coords = inr.pixel_grid(4, 4).double()
    assert torch.allclose(inr.siren(small, coords), inr.siren(params, coords, masks))


def test_held_out_pixels_are_not_fitted():
    params = network(24, omega_0=15.0)
    # smooth along one axis, with stripes that only the held-out rows see
    images = torch.linspace(0, 1, 9, dtype=torch.float64).expand(1, 1, 9, 9).clone()
    images[:, :, 1::2] = 0.0
    seen, between, linear = held_out_psnr(params, inr.full_masks(params), images, 200, 1e-3)
    assert seen.item() > 30
    assert between.item() < 12
    assert linear.item() < 12
    smooth = torch.linspace(0, 1, 9, dtype=torch.float64).expand(2, 3, 9, 9)
    colour = network(8, channels=3)
    assert held_out_psnr(colour, {}, smooth, 1, 1e-4)[2].min() > 100  # a plane is linear


# ---------------------------------------------------------------- the chapter


def test_the_chapter_runs_with_other_parameters(tmp_path):
    tiny = {
        "width": 16, "dense_steps": 2, "round_steps": 1, "prune_rounds": 2, "n_train": 6, "n_test": 2,
        "fit_steps": 4, "n_seeds": 1, "w0_sweep": [30.0], "narrow_rates": [1e-3], "tasks_per_step": 2,
    }  # fmt: skip
    code = tmp_path / "chapter.py"
    code.write_text(executor.script(chapters.find("sparse_inr"), tiny))
    done = subprocess.run([sys.executable, str(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "C4 reproduced" in done.stdout


def test_a_bar_given_to_several_trainings_counts_the_steps_of_all(capsys):
    params = network()
    bar = Progress(5, "outer steps", show=False)
    start = inr.meta_learn(params, signals(), 3, progress=bar)
    inr.meta_prune(start, signals(), rounds=1, amount=0.5, round_steps=2, progress=bar)
    assert bar.done == 5
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- pictures that are not square


def test_no_picture_is_fitted_as_a_square_that_it_is_not(tmp_path):
    params = network(dtype=torch.float32)
    masks = inr.full_masks(params)
    oblong = inr.as_targets(torch.rand(2, 1, 8, 32, generator=generator()))  # as many as 16 x 16
    for made in (oblong, oblong[:1], oblong.double(), oblong.clone(), torch.cat([oblong, oblong])):
        with pytest.raises(ValueError, match="coords: 256 points are no square"):
            inr.fit(params, masks, made, 1, 1e-3)
        with pytest.raises(ValueError, match="coords: 256 points are no square"):
            inr.meta_train(params, masks, made, 1, tasks_per_step=1)
    together = copy.deepcopy({"a": oblong, "again": oblong})
    assert together["a"] is together["again"]
    assert together["a"].data_ptr() != oblong.data_ptr()
    assert torch.equal(together["a"], oblong)
    torch.save(together, tmp_path / "signals.pt")
    read = torch.load(tmp_path / "signals.pt")["a"]
    assert torch.equal(read, oblong)
    with pytest.raises(ValueError, match="coords: 256 points are no square"):
        inr.fit(params, masks, read, 1, 1e-3)
    with pytest.raises(ValueError, match="coords: 256 points are no square"):
        inr.fit(params, masks, together["a"], 1, 1e-3)
    grid = inr.pixel_grid(8, 32)
    plain = oblong.as_subclass(torch.Tensor)
    found = inr.fit(params, masks, oblong, 3, 1e-3, coords=grid).psnr
    assert type(found) is torch.Tensor
    assert torch.equal(found, inr.fit(params, masks, plain, 3, 1e-3, coords=grid).psnr)
    assert type(inr.as_images(oblong, 8, 32)) is torch.Tensor
    assert type(inr.as_targets(torch.rand(1, 1, 6, 6))) is torch.Tensor


def test_held_out_pixels_of_an_oblong_picture_are_where_they_are():
    # rows are bright and dark in turn: between them, linear interpolation sees what was fitted
    images = torch.linspace(0, 1, 17, dtype=torch.float64).expand(1, 1, 9, 17)
    three = held_out_psnr(network(), {}, images, 1, 1e-4)
    assert three[2].item() > 100  # a plane is linear, whatever its sides
    assert all(type(value) is torch.Tensor for value in three)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_targets_are_taken_in_the_precision_of_the_network(dtype):
    params = network(dtype=torch.float32)
    targets = signals(dtype=torch.float32).to(dtype)
    found = inr.fit(params, inr.full_masks(params), targets, 2, 1e-3).psnr
    expected = inr.fit(params, inr.full_masks(params), targets.float(), 2, 1e-3).psnr
    assert torch.equal(found, expected)


def test_without_a_generator_every_call_draws_anew_and_from_pytorch_s_seed():
    params, tasks = network(), signals(12)
    masks = inr.full_masks(params)

    def drawn():
        mask = inr.random_prune(params, masks, 0.5)["layers.1.weight"]
        return mask, inr.meta_train(params, masks, tasks, 2, tasks_per_step=2)[2]

    torch.manual_seed(3)
    first, second = drawn(), drawn()
    assert not torch.equal(first[0], second[0])
    assert first[1] != second[1]
    torch.manual_seed(3)
    again = drawn()
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]


def partial_masks(masks):
    """The same network with masks of weights only, of some layers, and in another order."""
    weights = {n: m for n, m in masks.items() if n.endswith("weight")}
    return [
        weights,
        {n: m for n, m in weights.items() if not m.all()},
        dict([*masks.items()][::-1]),
    ]


@pytest.mark.parametrize(
    "call",
    [
        inr.full_masks,
        lambda net: inr.meta_learn(net, signals(dtype=torch.float32), 1),
        lambda net: inr.fit(net, {}, signals(dtype=torch.float32), 1, 1e-3),
        lambda net: inr.render(net, inr.pixel_grid(2, 2)),
        lambda net: inr.siren(net, inr.pixel_grid(2, 2)),
        lambda net: inr.magnitude_prune(net, {}, 0.5),
    ],
)
def test_a_module_in_place_of_its_parameters_is_told_what_to_pass(call):
    net = inr.Siren(2, 8, 2, 1, 20.0)
    with pytest.raises(ValueError, match=r"params: Siren, expected a dictionary .*state_dict"):
        call(net)
    assert inr.meta_learn(net.state_dict(), signals(dtype=torch.float32), 1).outer_steps == 1
    with pytest.raises(ValueError, match="net: Siren, expected a Checkpoint"):
        inr.encode(net, torch.rand(1, 4, 4))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_learning_fitting_and_storing_are_the_same_without_gradients(mode):
    def learnt():
        start = inr.siren_params(2, 8, 2, 1, 20.0, generator=generator())
        tasks = torch.rand(3, 16, 1, generator=generator(1))
        dense = inr.meta_learn(start, tasks, 2, generator=generator())
        options = {"rounds": 1, "amount": 0.3, "round_steps": 2, "generator": generator()}
        sparse = inr.meta_prune(dense, tasks, **options)[-1]
        pruned = inr.fit(start, dense.masks, tasks, 3, 1e-2, prune_at={2: 20})
        stored = inr.encode(sparse, torch.rand(1, 5, 9, generator=generator()), steps=2)
        return [*sparse.params.values(), *pruned.params.values(), pruned.psnr], stored

    expected, stored = learnt()
    with mode():
        found, again = learnt()
        assert again == stored
        assert all(map(torch.equal, expected, found))


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (
            torch.tensor([[[1.4, 0.2]]]),
            r"image: values from 0\.2 to 1\.4, expected \[0, 1\]; .* image\.clamp\(0, 1\)",
        ),
        (torch.tensor([[[-0.01, 0.2]]]), r"image: values from -0\.01 to 0\.2"),
        (torch.tensor([[[math.nan, 0.2]]]), "image: values from nan"),
        (torch.ones(1, 1, 2, dtype=torch.uint8), r"image: torch\.uint8, expected floating-point"),
        (torch.zeros(1, 0, 2), r"image: shape \(1, 0, 2\)"),
    ],
)
def test_what_decoding_cannot_give_is_not_encoded(image, told):
    params = network(dtype=torch.float32)
    with pytest.raises(ValueError, match=told):
        inr.encode(inr.Checkpoint(params, {}, 0, {}, ()), image)
    # fits take what overshoots, and say how far
    inr.fit(params, {}, torch.full((1, 4, 1), 1.4), 0, 1e-3)
    with pytest.raises(ValueError, match=r"expected \[0, 1\], or at most 0\.5 beyond it"):
        inr.fit(params, {}, torch.full((1, 4, 1), 1.6), 0, 1e-3)


def test_networks_and_bytes_are_float32_whatever_pytorchs_default():
    plain = inr.siren_params(2, 8, 2, 1, 20.0, generator=generator())
    data = inr.encode(inr.meta_learn(plain, signals(3), 0), torch.rand(1, 4, 4), steps=1)
    image = inr.decode(data)
    torch.set_default_dtype(torch.float64)
    try:
        params = inr.siren_params(2, 8, 2, 1, 20.0, generator=generator())
        grid, again = inr.pixel_grid(4, 4), inr.decode(data)
        assert inr.Siren(2, 8, 2, 1, 20.0)(grid).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in params.values()} == {torch.float32}
    assert all(torch.equal(value, plain[name]) for name, value in params.items())
    assert torch.equal(again, image)
    assert torch.equal(grid, inr.pixel_grid(4, 4))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "companion-inr-2"}, {"bits": 8}, {"bits": [16]}, {"shapes": {}}, {"shapes": [3]},
        {"shapes": {"layers.0.weight": [-8, 2]}}, {"image": [5]}, {"image": [5, 0]},
        {"omega_0": "high"}, {"omega_0": 10**400}, {"shapes": {"a.weight": [2, 2]}}, {"shapes": None}, {"image": None}, {"omega_0": None},
    ],
)  # fmt: skip
def test_bytes_with_another_head_are_refused(change):
    params = {n: p.float() for n, p in network(8, 2, omega_0=10.0).items()}
    net = inr.Checkpoint(params, inr.full_masks(params), 0, {}, ())
    data = inr.encode(net, torch.zeros(1, 5, 9), steps=0)
    assert inr.decode(data).shape == (1, 5, 9)
    line, _, rest = data.partition(b"\n")
    head = {k: v for k, v in (json.loads(line) | change).items() if v is not None}
    with pytest.raises(ValueError, match=r"data: \d+ bytes that `encode` did not write"):
        inr.decode(json.dumps(head).encode() + b"\n" + rest)


def test_a_weight_that_16_bits_cannot_hold_is_refused():
    params = {n: p.float() for n, p in network(8, 2, omega_0=10.0).items()}
    params["layers.2.bias"] = torch.tensor([1e6])
    net = inr.Checkpoint(params, inr.full_masks(params), 0, {}, ())
    with pytest.raises(ValueError, match=r"bits = 16: a weight of 1e\+06 does not fit"):
        inr.encode(net, torch.zeros(1, 5, 9), steps=0, bits=16)
    params["layers.2.bias"] = torch.tensor([65504.0])  # the largest that it can
    inr.encode(net, torch.zeros(1, 5, 9), steps=0, bits=16)
    params["layers.2.bias"] = torch.tensor([1e6])
    inr.encode(net, torch.zeros(1, 5, 9), steps=0)


def test_masks_may_leave_out_what_is_kept_and_come_in_any_order():
    params = {n: p.float() for n, p in network(12, 3, 2, omega_0=10.0).items()}
    pruned_layer = {"layers.1.weight": torch.rand(12, 12, generator=generator(1)) > 0.7}
    masks = inr.full_masks(params) | pruned_layer
    image = torch.rand(2, 6, 5, generator=generator(2))
    whole = inr.Checkpoint(params, masks, 0, {}, ())
    coords = inr.pixel_grid(6, 6)
    small = inr.compact(params, masks)
    for part in partial_masks(masks):
        data = inr.encode(dataclasses.replace(whole, masks=part), image, steps=3)
        assert data == inr.encode(whole, image, steps=3)
        other = inr.compact(params, part)
        assert {n: p.shape for n, p in other.items()} == {n: p.shape for n, p in small.items()}
        assert torch.allclose(
            inr.siren(other, coords), inr.siren(params, coords, masks), atol=1e-5
        )
    cut = whole.masks | {"layers.0.bias": torch.arange(12) > 3}
    data = inr.encode(dataclasses.replace(whole, masks=cut), image, steps=3)
    fitted = inr.fit(
        params, cut, inr.as_targets(image[None]), 3, 1e-3, coords=inr.pixel_grid(6, 5)
    )
    drawn = inr.as_images(inr.render(fitted.params, inr.pixel_grid(6, 5)), 6, 5)[0].clamp(0, 1)
    assert torch.allclose(inr.decode(data), drawn, atol=1e-6)


def test_a_fit_leaves_no_gradient_on_the_images():
    leaf = signals(1).float().requires_grad_()
    for targets in (leaf, leaf.square()):
        inr.fit(network(dtype=torch.float32), {}, targets, 3, 1e-3)
    assert leaf.grad is None


def test_a_network_of_float64_is_fitted_rendered_and_held_out_on_a_float32_grid():
    params, masks, grid = network(), inr.full_masks(network()), inr.pixel_grid(6, 6)
    fitted = inr.fit(params, masks, signals(), 2, 1e-3).params
    assert render(fitted, grid).dtype == torch.float64
    pictures = torch.rand(2, 1, 5, 5, generator=generator())
    assert all(v.isfinite().all() for v in held_out_psnr(params, masks, pictures, 1, 1e-3))
    loss = inr.maml_loss(params, masks, grid, signals(dtype=torch.float32), 1e-3, 1)
    assert loss.dtype == torch.float64


def test_a_schedule_of_pruning_may_be_given_in_any_order():
    params = network()
    fits = [
        inr.fit(params, inr.full_masks(params), signals(), 5, 1e-3, prune_at=at).psnr
        for at in ({1: 60, 4: 30}, {4: 30, 1: 60})
    ]
    assert torch.equal(*fits)


def test_a_weight_far_below_0_does_not_fit_16_bits_either():
    params = network(dtype=torch.float32)
    first = next(name for name in params if name.endswith("weight"))
    params[first][0, 0] = -1e6
    net = inr.Checkpoint(params, inr.full_masks(params), 0, {}, ())
    with pytest.raises(ValueError, match=r"bits = 16: a weight of 1e\+06 does not fit"):
        inr.encode(net, torch.rand(1, 6, 6), steps=0, bits=16)
