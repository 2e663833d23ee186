"""Scores and masks against second implementations, closed forms and invariances."""

import copy
import gc
import itertools
import math
import operator
import pickle
import time
import types
import warnings
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from companion import sparsity
from companion.data.images import crop_pad_flip
from companion.models import (
    lenet_5_caffe,
    lenet_300_100,
    recurrent,
    truncated_variance_scaling_,
    vgg,
)
from companion.papers.signal_propagation import init_weights
from companion.papers.sparse_inr import siren_params
from companion.sparsity import (
    apply_masks,
    connection_gradients,
    connection_sensitivity,
    count_kept,
    export_weights,
    full_precision,
    global_topk_mask,
    kept_count,
    magnitude_scores,
    mask_overlap,
    mask_report,
    prunable_parameters,
    random_scores,
    remove_masks,
    shuffle_within_layer,
    to_torch_prune,
)
from companion.training import shuffled_batches


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_weights(model, seed=0):
    """Every parameter from a normal of the same generator, biases and scales included."""
    g = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.4)
    return model


def dense_net(seed=0):
    layers = nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    return draw_weights(nn.Sequential(*layers).double(), seed)


def conv_net(seed=0):
    layers = (
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return draw_weights(nn.Sequential(*layers).double(), seed)


def bn_net(seed=0):
    """Normalisations whose running statistics are far from fresh."""
    layers = (
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, eps=1e-3), nn.ReLU(),
        nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4, eps=1e-3), nn.ReLU(), nn.Linear(4, 3),
    )  # fmt: skip
    model = draw_weights(nn.Sequential(*layers).double(), seed)
    for index, size in ((1, 3), (5, 4)):
        with torch.no_grad():
            model[index].weight.copy_(torch.linspace(0.5, 1.5, size))
            model[index].running_mean.copy_(torch.linspace(-2, 3, size))
            model[index].running_var.copy_(torch.linspace(0.1, 5, size))
    return model


def rnn(cell):
    return draw_weights(recurrent(cell, hidden=3, features=4, classes=3).double())


NETS = {
    "dense": (dense_net, (6,)),
    "conv": (conv_net, (2, 6, 6)),
    "bn": (bn_net, (2, 5, 5)),
    "lstm": (lambda: rnn("lstm"), (1, 4, 4)),
    "gru": (lambda: rnn("gru"), (1, 4, 4)),
}
CASES = [("dense", "identity"), ("conv", "identity"), ("bn", "identity"), ("bn", "batch"),
         ("lstm", "identity"), ("gru", "identity")]  # fmt: skip


def batch(shape, n=8, seed=1, classes=3):
    g = generator(seed)
    x = torch.randn((n, *shape), generator=g, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=g)


def loss_of_multipliers(model, x, y, bn_mode):
    """The loss as a function of explicit multipliers c: SNIP's definition, taken literally."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
    twin.train(bn_mode == "batch")
    w = {name: p.detach() for name, p in prunable_parameters(twin).items()}

    def loss(c):
        return cross_entropy(functional_call(twin, {k: c[k] * w[k] for k in w}, (x,)), y)

    return loss, {k: torch.ones_like(v) for k, v in w.items()}


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize(("net", "bn_mode"), CASES)
def test_gradients_equal_those_of_explicit_multipliers(net, bn_mode):
    make, shape = NETS[net]
    model, (x, y) = make(), batch(shape)
    loss, c = loss_of_multipliers(model, x, y, bn_mode)
    for value in c.values():
        value.requires_grad_()
    expected = dict(zip(c, torch.autograd.grad(loss(c), list(c.values())), strict=True))
    found = connection_gradients(model, cross_entropy, [(x, y)], bn_mode=bn_mode)
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("net", "bn_mode"), CASES)
def test_gradients_equal_central_differences(net, bn_mode):
    make, shape = NETS[net]
    model, (x, y) = make(), batch(shape)
    loss, c = loss_of_multipliers(model, x, y, bn_mode)
    found = connection_gradients(model, cross_entropy, [(x, y)], bn_mode=bn_mode)
    # truncation leaves 1e-10 of a slope; rounding of the loss 1e-16 / step = 1e-11 an entry
    step, rounding = 1e-5, 1e-10
    with torch.no_grad():
        for name, value in c.items():
            slopes = torch.empty_like(value)
            for j in range(value.numel()):
                ends = []
                for sign in (1, -1):
                    value.view(-1)[j] = 1 + sign * step
                    ends.append(loss(c))
                value.view(-1)[j] = 1
                slopes.view(-1)[j] = (ends[0] - ends[1]) / (2 * step)
            assert (found[name] - slopes).norm() <= 1e-6 * slopes.norm() + rounding, name


def test_identity_mode_only_divides_by_the_root_of_one_plus_eps():
    model, (x, y) = bn_net(), batch((2, 5, 5))

    class Divide(nn.Module):
        def __init__(self, norm):
            super().__init__()
            shape = (-1,) + (1,) * (2 if isinstance(norm, nn.BatchNorm2d) else 0)
            self.scale, self.offset = norm.weight.view(shape), norm.bias.view(shape)

        def forward(self, z):
            return z / math.sqrt(1.001) * self.scale + self.offset

    hand = nn.Sequential(
        *(Divide(m) if isinstance(m, nn.modules.batchnorm._BatchNorm) else m for m in model)
    )
    expected = connection_gradients(
        hand, cross_entropy, [(x, y)], params=prunable_parameters(model)
    )
    found = connection_gradients(model, cross_entropy, [(x, y)], bn_mode="identity")
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-14)


def test_layer_sums_are_conserved_across_relu_layers():
    model, (x, y) = dense_net(), batch((6,), n=20)
    with torch.no_grad():
        for layer in model[::2]:
            layer.bias.zero_()
        z = model(x)
    g = connection_gradients(model, cross_entropy, [(x, y)])
    error = z.softmax(1) - nn.functional.one_hot(y, 3)
    outcome = (error * z).sum(1).mean().item()
    sums = [g[f"{i}.weight"].sum().item() for i in (0, 2, 4)]
    assert sums == pytest.approx([outcome] * 3, rel=1e-10)
    assert all((g[f"{i}.bias"] == 0).all() for i in (0, 2, 4))


def test_rescaling_layers_by_inverse_powers_of_two_leaves_scores_bit_identical():
    model, (x, y) = lenet_300_100(64), batch((64,), classes=10)
    with torch.no_grad():
        for layer in (model[1], model[3], model[5]):
            layer.bias.zero_()
    before = connection_gradients(model, cross_entropy, [(x.float(), y)])
    with torch.no_grad():
        model[1].weight *= 8
        model[3].weight /= 2
        model[5].weight /= 4
    after = connection_gradients(model, cross_entropy, [(x.float(), y)])
    assert all(torch.equal(before[name], after[name]) for name in before)
    # magnitude has no such invariance
    assert not torch.equal(
        magnitude_scores(prunable_parameters(model))["1.weight"],
        model[1].weight.detach().abs() / 8,
    )


def test_sensitivity_is_the_absolute_gradient():
    model, data = dense_net(), [batch((6,))]
    g = connection_gradients(model, cross_entropy, data)
    s = connection_sensitivity(model, cross_entropy, data)
    assert all(torch.equal(s[name], g[name].abs()) for name in g)


@pytest.mark.parametrize("sizes", [(50, 50), (7, 33, 60), (99, 1)])
def test_mask_does_not_depend_on_the_split_into_microbatches(sizes):
    model, (x, y) = dense_net(), batch((6,), n=100)
    parts = list(zip(x.split(sizes), y.split(sizes), strict=True))
    whole = connection_gradients(model, cross_entropy, [(x, y)])
    split = connection_gradients(model, cross_entropy, parts)
    for name in whole:
        torch.testing.assert_close(whole[name], split[name], rtol=1e-9, atol=1e-14)
    masks = [
        global_topk_mask({k: v.abs() for k, v in g.items()}, sparsity=0.7) for g in (whole, split)
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in whole)


def test_one_batch_gives_the_product_of_weight_and_gradient_bit_by_bit():
    model, (x, y) = lenet_300_100(64), batch((64,), classes=10)
    found = connection_gradients(model, cross_entropy, [(x.float(), y)])
    params = dict(model.named_parameters())
    slopes = torch.autograd.grad(cross_entropy(model(x.float()), y), list(params.values()))
    for (name, p), slope in zip(params.items(), slopes, strict=True):
        assert torch.equal(found[name], p.detach() * slope)


def test_absolute_reduction_adds_absolute_values_of_batches():
    model, (x, y) = dense_net(), batch((6,), n=10)
    parts = list(zip(x.split((4, 6)), y.split((4, 6)), strict=True))
    each = [connection_gradients(model, cross_entropy, [part]) for part in parts]
    found = connection_gradients(model, cross_entropy, parts, reduction="absolute")
    for name in found:
        expected = 0.4 * each[0][name].abs() + 0.6 * each[1][name].abs()
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-16)


def test_scaling_the_loss_by_a_power_of_two_leaves_the_mask_identical():
    model, (x, y) = lenet_300_100(64), batch((64,), n=50, classes=10)
    data = [(x.float(), y)]
    plain = connection_sensitivity(model, cross_entropy, data)
    scaled = connection_sensitivity(model, lambda a, b: 2.0**-12 * cross_entropy(a, b), data)
    a, b = (global_topk_mask(s, sparsity=0.95) for s in (plain, scaled))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_permuting_hidden_units_permutes_the_mask():
    model, data = dense_net(), [batch((6,), n=30)]
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = copy.deepcopy(model)
    with torch.no_grad():
        moved[0].weight.copy_(model[0].weight[order])
        moved[0].bias.copy_(model[0].bias[order])
        moved[2].weight.copy_(model[2].weight[:, order])
    a, b = (
        global_topk_mask(connection_sensitivity(m, cross_entropy, data), sparsity=0.6)
        for m in (model, moved)
    )
    assert torch.equal(a["0.weight"][order], b["0.weight"])
    assert torch.equal(a["0.bias"][order], b["0.bias"])
    assert torch.equal(a["2.weight"][:, order], b["2.weight"])
    assert torch.equal(a["4.weight"], b["4.weight"])


def test_a_tied_weight_is_counted_once_and_scored_over_both_uses():
    model = draw_weights(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double())
    model[2].weight = model[0].weight
    assert list(prunable_parameters(model)) == ["0.weight", "0.bias", "2.bias"]
    x, y = batch((3,))
    found = connection_gradients(model, cross_entropy, [(x, y)])["0.weight"]
    loose = copy.deepcopy(model)
    loose[2].weight = nn.Parameter(model[0].weight.detach().clone())
    apart = connection_gradients(loose, cross_entropy, [(x, y)])
    torch.testing.assert_close(found, apart["0.weight"] + apart["2.weight"])


@pytest.mark.parametrize("bn_mode", ["identity", "batch"])
@pytest.mark.parametrize("fails", [False, True])
def test_scoring_leaves_buffers_modes_weights_and_gradients_untouched(bn_mode, fails):
    model = bn_net().train()
    model[1].eval()  # a mixture of modes has to come back as it was
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]

    def loss(outputs, targets):
        if fails:
            raise KeyboardInterrupt
        return cross_entropy(outputs, targets)

    if fails:
        with pytest.raises(KeyboardInterrupt):
            connection_gradients(model, loss, [batch((2, 5, 5))], bn_mode=bn_mode)
    else:
        connection_gradients(model, loss, [batch((2, 5, 5))], bn_mode=bn_mode)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_scoring_runs_dropout_in_inference_mode():
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.9), nn.Linear(5, 3)).double().train()
    data = [batch((6,))]
    first, second = (connection_gradients(model, cross_entropy, data) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_scoring_works_where_gradients_are_off():
    with torch.no_grad():
        g = connection_gradients(dense_net(), cross_entropy, [batch((6,))])
    assert not any(value.requires_grad for value in g.values())
    assert g["0.weight"].abs().sum() > 0


def test_a_parameter_that_the_loss_does_not_use_scores_zero():
    model = dense_net()
    model.register_parameter("idle", nn.Parameter(torch.ones(2, 2, dtype=torch.float64)))
    assert (connection_gradients(model, cross_entropy, [batch((6,))])["idle"] == 0).all()


def test_scoring_refuses_what_it_cannot_score():
    model, data = dense_net(), [batch((6,))]
    with pytest.raises(ValueError, match="bn_mode = 'fresh'"):
        connection_gradients(model, cross_entropy, data, bn_mode="fresh")
    with pytest.raises(ValueError, match="reduction = 'mean'"):
        connection_gradients(model, cross_entropy, data, reduction="mean")
    with pytest.raises(ValueError, match=r"no parameter '7\.weight'"):
        connection_gradients(model, cross_entropy, data, params=["7.weight"])
    with pytest.raises(ValueError, match="no example"):
        connection_gradients(model, cross_entropy, [])
    x, y = data[0]
    with pytest.raises(ValueError, match="loss of a scoring batch is nan"):
        connection_gradients(model, cross_entropy, [(x * math.nan, y)])


def test_a_finite_loss_with_a_gradient_that_is_not_names_the_tensor():
    model, data = dense_net(), [batch((6,))]

    def flat_root(outputs, targets):  # 0 with an infinite slope, times 0
        return (outputs * 0).sum().sqrt() + cross_entropy(outputs, targets)

    with pytest.raises(ValueError, match=r"'0\.weight' is not finite"):
        connection_gradients(model, flat_root, data)


def test_identity_mode_refuses_a_normalisation_without_statistics():
    # such a layer uses those of the batch even in inference mode
    model = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    with pytest.raises(ValueError, match="'1' tracks no statistics"):
        connection_gradients(model, cross_entropy, [batch((6,))])
    connection_gradients(model, cross_entropy, [batch((6,))], bn_mode="batch")


# ---------------------------------------------------------------- which parameters


def test_weights_come_before_biases_and_normalisations_are_left_out():
    names = list(prunable_parameters(bn_net()))
    assert names == ["0.weight", "4.weight", "7.weight", "0.bias", "4.bias", "7.bias"]
    assert list(prunable_parameters(bn_net(), biases=False)) == names[:3]


def test_frozen_parameters_are_not_prunable():
    model = dense_net()
    model[0].weight.requires_grad_(False)
    assert "0.weight" not in prunable_parameters(model)


def test_biases_of_recurrent_and_attention_layers_are_biases():
    assert list(prunable_parameters(nn.LSTM(2, 3), biases=False)) == [
        "weight_ih_l0",
        "weight_hh_l0",
    ]
    weights = prunable_parameters(nn.MultiheadAttention(4, 2), biases=False)
    assert list(weights) == ["in_proj_weight", "out_proj.weight"]


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize(
    ("make", "sparsity", "kept"),
    [
        (lenet_300_100, 0.90, 26_661),
        (lenet_300_100, 0.98, 5_332),
        (lenet_5_caffe, 0.99, 4_311),
        (vgg, 0.95, 762_257),
    ],
)
def test_exactly_kappa_entries_survive(make, sparsity, kept):
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in prunable_parameters(make()).items()}
    # ten levels only: nearly every score ties with the threshold
    g = generator()
    scores = {
        name: torch.randint(10, shape, generator=g).float() for name, shape in shapes.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert count_kept(global_topk_mask(scores, sparsity=sparsity)) == kept


def test_half_rounds_to_even():
    assert kept_count(5, 0.5) == 2
    assert kept_count(7, 0.5) == 4
    assert count_kept(global_topk_mask({"w": torch.arange(5.0)}, sparsity=0.5)) == 2


def test_rounding_can_be_down_or_up():
    assert (kept_count(5, 0.5, "floor"), kept_count(5, 0.5, "ceil")) == (2, 3)
    with pytest.raises(ValueError, match="rounding = 'up'"):
        kept_count(5, 0.5, "up")


def test_equal_scores_keep_the_lowest_indices_over_all_tensors():
    scores = {"b": torch.ones(2, 3), "a": torch.ones(4)}
    masks = global_topk_mask(scores, keep=7)
    assert masks["b"].all()
    assert masks["a"].tolist() == [True, False, False, False]


def stable_twin(scores, keep):
    """Selection by a full stable sort, which keeps equal scores in order."""
    flat = torch.cat([s.flatten() for s in scores.values()])
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[torch.sort(flat, descending=True, stable=True).indices[:keep]] = True
    return chosen.split([s.numel() for s in scores.values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("select", [sparsity._topk_on_cpu, sparsity._topk_on_gpu])
def test_selection_equals_a_stable_sort_under_many_ties(select, dtype, monkeypatch):
    monkeypatch.setattr(sparsity, "_topk_on_cpu", select)
    g = generator(3)

    def whole(low, high):
        return int(torch.randint(low, high, (1,), generator=g))

    for _ in range(200):
        shapes = [(whole(1, 5), whole(1, 5)) for _ in range(whole(1, 4))]
        levels = whole(1, 6)
        scores = {
            str(i): (torch.randint(levels, s, generator=g) - whole(0, 3)).to(dtype) * 0.1
            for i, s in enumerate(shapes)
        }
        scores["0"][0, 0] = -0.0  # ties with 0
        scores["one"] = torch.ones(1, dtype=dtype)  # scores that are all 0 give no mask
        total = sum(s.numel() for s in scores.values())
        keep = whole(0, total + 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            masks = global_topk_mask(scores, keep=keep)
        expected = stable_twin(scores, keep)
        for mask, part in zip(masks.values(), expected, strict=True):
            assert torch.equal(mask.flatten(), part)
        assert count_kept(masks) == keep


@pytest.mark.parametrize("lucky", [True, False])
@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).standard_normal(50_000).astype(np.float32) ** 3,
        np.random.default_rng(1).integers(-2, 3, 50_000),
        np.arange(50_000)[::-1] % 784 * 0.1,  # repeats as the rows of a weight do
        np.r_[np.zeros(49_990), np.full(10, 1e-40)],
        np.full(50_000, -0.0),
    ],
    ids=["cubes", "few", "rows", "rare", "one"],
)
def test_the_kth_largest_is_exact_whatever_the_sample(values, lucky, monkeypatch):
    if not lucky:  # all of the sample is one number
        draw = types.SimpleNamespace(integers=lambda total, size: np.zeros(size, int))
        monkeypatch.setattr(np.random, "default_rng", lambda seed: draw)
    ranked = np.sort(values)[::-1]
    for k in (1, 2, 9, 10, 11, 128, 2_500, 25_000, 49_990, 49_999, 50_000):
        assert sparsity.kth_largest(values, k) == ranked[k - 1]


def test_selection_is_fast_in_every_order():
    # kthvalue, which was used before, takes half a second for falling numbers
    falling = -torch.arange(300_000.0)
    start = time.process_time()
    mask = sparsity.topk_by_index(falling, 15_000)
    assert time.process_time() - start < 0.2
    assert mask[:15_000].all()
    assert not mask[15_000:].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_masks_on_a_gpu_equal_those_on_the_cpu():
    scores = {"w": torch.randint(50, (300, 400), generator=generator()).float()}
    there = global_topk_mask({"w": scores["w"].cuda()}, sparsity=0.93)
    assert torch.equal(there["w"].cpu(), global_topk_mask(scores, sparsity=0.93)["w"])


def test_selection_accepts_any_layout_of_memory():
    score = torch.arange(12.0).view(3, 4).t()
    mask = global_topk_mask({"w": score}, keep=5)["w"]
    assert torch.equal(mask, score >= 7)


def test_sparsity_zero_keeps_all():
    masks = global_topk_mask({"w": torch.zeros(3, 4)}, sparsity=0.0)
    assert masks["w"].all()


@pytest.mark.parametrize("sparsity", [1.0, 1.5, -0.1, math.nan])
def test_a_sparsity_outside_zero_to_one_raises(sparsity):
    with pytest.raises(ValueError, match="sparsity = "):
        global_topk_mask({"w": torch.ones(3)}, sparsity=sparsity)


def test_scores_that_are_not_finite_raise_and_are_named():
    scores = {"good": torch.ones(2), "bad": torch.tensor([1.0, math.nan])}
    with pytest.raises(ValueError, match="'bad' holds NaN"):
        global_topk_mask(scores, sparsity=0.5)
    scores["bad"][1] = math.inf
    with pytest.raises(ValueError, match="'bad' holds NaN or infinity"):
        global_topk_mask(scores, sparsity=0.5)


def test_large_scores_are_finite_though_their_sum_is_not():
    scores = {"w": torch.full((4,), 3e38), "v": torch.tensor([1e300], dtype=torch.float64)}
    assert count_kept(global_topk_mask(scores, keep=2)) == 2


def test_scores_that_are_all_zero_give_no_mask():
    one, (x, y) = nn.Linear(4, 1), batch((4,), classes=1)
    scores = connection_sensitivity(one, cross_entropy, [(x.float(), y)])
    with pytest.raises(ValueError, match="scores: all are 0"):
        global_topk_mask(scores, sparsity=0.5)
    assert count_kept(global_topk_mask(scores, keep=0, warn=False)) == 0
    assert count_kept(global_topk_mask(scores, keep=5)) == 5
    assert count_kept(global_topk_mask(scores | {"w": torch.tensor([0.1])}, keep=2)) == 2


def test_keep_covers_none_to_all_and_nothing_else():
    scores = {"w": torch.arange(4.0)}
    assert count_kept(global_topk_mask(scores, keep=0, warn=False)) == 0
    assert global_topk_mask(scores, keep=1)["w"].tolist() == [False, False, False, True]
    assert count_kept(global_topk_mask(scores, keep=4)) == 4
    for bad in (-1, 5, 2.0, True):
        with pytest.raises(ValueError, match="keep = "):
            global_topk_mask(scores, keep=bad)
    with pytest.raises(ValueError, match="either sparsity or keep"):
        global_topk_mask(scores)
    with pytest.raises(ValueError, match="either sparsity or keep"):
        global_topk_mask(scores, sparsity=0.5, keep=2)
    with pytest.raises(ValueError, match="no tensor"):
        global_topk_mask({}, sparsity=0.5)


def test_an_emptied_layer_warns_but_an_emptied_bias_does_not():
    scores = {
        "a.weight": torch.ones(2, 2),
        "b.weight": torch.zeros(2, 2),
        "a.bias": torch.zeros(2),
    }
    with pytest.warns(UserWarning, match=r"layer collapse: .* b\.weight$"):
        global_topk_mask(scores, keep=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        global_topk_mask(scores, keep=5)
        global_topk_mask(scores, keep=4, warn=False)


# ---------------------------------------------------------------- other scores


def test_random_scores_are_the_same_for_a_seed():
    params = prunable_parameters(dense_net())
    a, b, c = (random_scores(params, generator(seed)) for seed in (4, 4, 5))
    assert all(torch.equal(a[name], b[name]) for name in params)
    assert not torch.equal(a["0.weight"], c["0.weight"])
    assert all(a[name].shape == params[name].shape for name in params)


def test_magnitude_scores_are_detached_absolute_values():
    params = prunable_parameters(dense_net())
    scores = magnitude_scores(params)
    assert all(torch.equal(scores[n], params[n].detach().abs()) for n in params)
    assert not scores["0.weight"].requires_grad


def test_shuffling_keeps_the_entries_of_every_layer_and_moves_them():
    masks = {"a": torch.rand(30, 20, generator=generator(1)) < 0.1, "b": torch.zeros(7).bool()}
    shuffled = shuffle_within_layer(masks, generator(2))
    assert {k: int(v.sum()) for k, v in shuffled.items()} == {
        k: int(v.sum()) for k, v in masks.items()
    }
    assert shuffled["a"].shape == (30, 20)
    assert not torch.equal(shuffled["a"], masks["a"])
    values = {"w": torch.arange(24.0).view(2, 3, 4)}
    assert torch.equal(
        shuffle_within_layer(values, generator())["w"].flatten().sort().values, torch.arange(24.0)
    )


# ---------------------------------------------------------------- keeping to a mask

OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
    "adam": lambda p: torch.optim.Adam(p, 0.01, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("warm", [False, True], ids=["fresh", "with_momentum"])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_pruned_entries_stay_zero_through_fifty_steps(name, warm):
    model, (x, y) = dense_net(), batch((6,), n=30)
    optimiser = OPTIMISERS[name](model.parameters())

    def step():
        optimiser.zero_grad()
        outputs = model(x)
        used = {k: p.detach().clone() for k, p in model.named_parameters()}
        cross_entropy(outputs, y).backward()
        optimiser.step()
        return used

    if warm:
        for _ in range(5):
            step()
    masks = global_topk_mask(random_scores(prunable_parameters(model), generator()), sparsity=0.6)
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    with apply_masks(model, masks):
        for _ in range(50):
            used = step()
            assert all((used[k][~m] == 0).all() for k, m in masks.items())
            # nor between the passes, where a checkpoint would be saved
            assert all((p[~masks[k]] == 0).all() for k, p in model.state_dict().items())
            assert all((p.grad[~masks[k]] == 0).all() for k, p in model.named_parameters())
    final = dict(model.named_parameters())
    assert all((final[k][~m] == 0).all() for k, m in masks.items())
    assert all((final[k] != start[k])[m].all() for k, m in masks.items() if k != "4.bias")
    # the model is free again
    step()
    assert (final["0.weight"][~masks["0.weight"]] != 0).any()


def test_two_passes_may_share_one_backward():
    # the second pass must not look like a change of the weights that the first has saved
    model, (x, y) = dense_net(), batch((6,))
    masks = global_topk_mask(magnitude_scores(prunable_parameters(model)), sparsity=0.5)
    with apply_masks(model, masks):
        (cross_entropy(model(x), y) + cross_entropy(model(-x), y)).backward()
    assert (model[2].weight.grad[~masks["2.weight"]] == 0).all()


def test_masks_clear_entries_that_are_not_finite():
    model = dense_net()
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
    mask = torch.ones(5, 6).bool()
    mask[0, 0] = False
    with apply_masks(model, {"0.weight": mask}):
        assert model[0].weight[0, 0] == 0


def test_masks_work_on_frozen_parameters_and_leave_others_alone():
    model = dense_net()
    model[0].weight.requires_grad_(False)
    before = model[2].weight.detach().clone()
    with apply_masks(model, {"0.weight": torch.zeros(5, 6).bool()}):
        model(batch((6,))[0]).sum().backward()
    assert (model[0].weight == 0).all()
    assert torch.equal(model[2].weight, before)


def test_masks_that_do_not_fit_the_model_raise_and_change_nothing():
    model = dense_net()
    before = model[0].weight.detach().clone()
    zero = torch.zeros(5, 6).bool()
    with pytest.raises(ValueError, match=r"no parameter '9\.weight'"):
        apply_masks(model, {"0.weight": zero, "9.weight": zero})
    with pytest.raises(ValueError, match=r"'2.weight' has shape \(5, 6\), expected \(4, 5\)"):
        apply_masks(model, {"0.weight": zero, "2.weight": zero})
    assert torch.equal(model[0].weight, before)


def warmed(model, x, y, f=None, name="adamw"):
    """An optimiser with a memory of every weight, and its step."""
    optimiser = OPTIMISERS[name](model.parameters())

    def step():
        optimiser.zero_grad()
        cross_entropy((f or model)(x), y).backward()
        optimiser.step()

    for _ in range(3):
        step()
    return step


def chosen(model, sparsity=0.6, seed=0):
    return global_topk_mask(random_scores(prunable_parameters(model), generator(seed)), sparsity)


def alive(model, masks):
    known = dict(model.named_parameters(remove_duplicate=False))
    return sum(int((known[name][~mask] != 0).sum()) for name, mask in masks.items())


def test_part_of_a_masked_network_is_masked_right_after_a_step():
    model, (x, y) = dense_net(), batch((6,))
    step, masks = warmed(model, x, y), chosen(model)
    apply_masks(model, masks)
    step()
    weight, bias = model[0].weight * masks["0.weight"], model[0].bias * masks["0.bias"]
    assert torch.equal(model[0](x), nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize("copied", ["deepcopy", "pickle", "part"])
def test_a_copy_of_a_masked_network_keeps_to_the_masks_on_its_own(copied):
    model, (x, y) = dense_net(), batch((6,))
    masks = chosen(model)
    with apply_masks(model, masks):
        if copied == "part":
            twin = nn.Sequential(*(copy.deepcopy(layer) for layer in model))
        else:
            twin = (
                copy.deepcopy(model) if copied == "deepcopy" else pickle.loads(pickle.dumps(model))
            )
    assert list(twin.state_dict()) == list(model.state_dict())
    step = warmed(twin, x, y)
    assert alive(twin, masks) == 0
    before = model[0].weight.detach().clone()
    twice = copy.deepcopy(twin)
    remove_masks(twin)
    step()
    assert alive(twin, masks) > 0
    warmed(twice, x, y)
    assert alive(twice, masks) == 0  # a copy of a copy
    assert alive(copy.deepcopy(twin), masks) > 0
    assert torch.equal(model[0].weight, before)  # left alone
    warmed(model, x, y)
    assert alive(model, masks) > 0  # the original is free


def masked_chain():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    apply_masks(model, {name: p > 0 for name, p in model.named_parameters() if p.dim() == 2})
    return model


@pytest.mark.parametrize(
    "copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_masked_model_can_be_traced_and_without_its_masks_scripted(copied):
    model = copied(masked_chain())
    x = torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(model, x)
    torch.testing.assert_close(traced(x), model(x))
    remove_masks(model)
    assert not any(m._forward_pre_hooks or m._load_state_dict_post_hooks for m in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x))


@pytest.mark.parametrize("assign", [False, True])
def test_loading_values_does_not_undo_masks(assign):
    model, (x, y) = dense_net(), batch((6,))
    model[2].weight = nn.Parameter(torch.randn(4, 5).double())
    masks = chosen(model)
    handle = apply_masks(model, masks)
    state = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    assert alive(model, masks) == 0
    warmed(model, x, y)
    assert alive(model, masks) == 0
    assert (model[0].weight.grad[~masks["0.weight"]] == 0).all()
    handle.remove()
    model.load_state_dict({k: torch.randn_like(v) for k, v in state.items()}, assign=assign)
    assert alive(model, masks) > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_masks_follow_a_change_of_dtype(dtype):
    model, (x, y) = dense_net(), batch((6,))
    masks = chosen(model)
    apply_masks(model, masks)
    model.to(dtype)
    step = warmed(model, x.to(dtype), y)
    step()
    assert alive(model, masks) == 0
    assert model[0].weight.dtype == dtype


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("when", ["compiled before", "dense twin before", "masked first"])
def test_masks_hold_in_compiled_networks(backend, when):
    torch._dynamo.reset()  # graphs of another test
    model, (x, y) = dense_net(), batch((6,))
    compiled = torch.compile(model, backend=backend)
    if when == "compiled before":
        step = warmed(model, x, y, compiled)
    elif when == "dense twin before":
        twin = dense_net()
        warmed(twin, x, y, torch.compile(twin, backend=backend))
        step = warmed(model, x, y)
        step = warmed(model, x, y, compiled)
    masks = chosen(model)
    with apply_masks(model, masks):
        if when == "masked first":
            step = warmed(model, x, y, compiled)
        for _ in range(3):
            step()
            assert alive(model, masks) == 0
        assert (model[0].weight.grad[~masks["0.weight"]] == 0).all()
        by_hand = dense_net()
        by_hand.load_state_dict({k: v * masks[k] for k, v in model.state_dict().items()})
        torch.testing.assert_close(compiled(x), by_hand(x))
    # and no graph remembers them
    step()
    assert alive(model, masks) > 0
    twin = dense_net(3)
    warmed(twin, x, y, torch.compile(twin, backend=backend))
    assert alive(twin, masks) == sum(int((~mask).sum()) for mask in masks.values())


def test_masks_hold_under_a_compiled_step():
    torch._dynamo.reset()
    model, (x, y) = dense_net(), batch((6,))
    optimiser = OPTIMISERS["adamw"](model.parameters())
    step = torch.compile(optimiser.step, backend="eager")
    masks = chosen(model)
    for number in range(6):
        if number == 3:
            apply_masks(model, masks)
        cross_entropy(model(x), y).backward()
        step()
    assert alive(model, masks) == 0


def test_masks_of_tied_weights_and_of_two_appliers_add_up():
    model = draw_weights(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double())
    model[2].weight = model[0].weight
    x, y = batch((3,))
    a = torch.tensor([[True, False, True]] * 3)
    b = torch.tensor([[True, True, False]] * 3)
    first = apply_masks(model, {"0.weight": a})
    with apply_masks(model, {"2.weight": b}):
        warmed(model, x, y)
        assert torch.equal(model[0].weight != 0, a & b)
        model.load_state_dict(  # which takes the two apart
            {name: torch.ones_like(value) for name, value in model.state_dict().items()},
            assign=True,
        )
        assert torch.equal(model[0].weight != 0, a)
        assert torch.equal(model[2].weight != 0, b)
    warmed(model, x, y)
    assert torch.equal(model[0].weight != 0, a)
    first.remove()
    warmed(model, x, y)
    assert (model[0].weight != 0).all()


def test_masks_hold_in_data_parallel_and_leave_functional_calls_their_values():
    model, (x, y) = dense_net(), batch((6,))
    masks = chosen(model)
    wrapped = nn.DataParallel(model)
    apply_masks(wrapped, {f"module.{name}": mask for name, mask in masks.items()})
    warmed(model, x, y, wrapped)
    assert alive(model, masks) == 0
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    free = dense_net()
    free.load_state_dict(other)
    assert torch.equal(functional_call(model, other, (x,)), free(x))
    stacked = {name: torch.stack([p.detach(), p.detach()]) for name, p in model.named_parameters()}
    both = torch.vmap(lambda theta: functional_call(model, theta, (x,)))(stacked)
    torch.testing.assert_close(both[1], model(x))


def test_gradients_under_masks_can_be_differentiated_again():
    model, (x, y) = dense_net(), batch((6,))
    masks = chosen(model)
    apply_masks(model, masks)
    cross_entropy(model(x), y).backward(create_graph=True)
    w = model[2].weight
    (second,) = torch.autograd.grad(w.grad.square().sum(), w)
    assert second[masks["2.weight"]].abs().sum() > 0


def test_an_applier_keeps_no_model_alive():
    model = dense_net()
    apply_masks(model, chosen(model))
    count = len(sparsity._MASKED)
    weight = weakref.ref(model[0].weight)
    del model
    gc.collect()
    assert weight() is None
    assert len(sparsity._MASKED) < count


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (torch.zeros(5, 6), r"'0.weight' is torch.float32, expected a tensor of torch.bool"),
        (torch.zeros(5, 6, dtype=torch.uint8), "is torch.uint8"),
        (torch.zeros(6, 5).bool(), r"has shape \(6, 5\), expected \(5, 6\)"),
        ([[True]], "is list"),
    ],
)
def test_masks_that_are_none_are_named(mask, told):
    model = dense_net()
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=told):
        apply_masks(model, {"0.weight": mask})
    assert torch.equal(model[0].weight, before)
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        with pytest.raises(ValueError, match=told):
            mask_report({"0.weight": mask})
        with pytest.raises(ValueError, match=told):
            mask_overlap({"0.weight": mask}, {"0.weight": mask})


NORMED = {  # whether zeros of the parameter are zeros of the weight
    "parametrizations.weight_norm": "is computed from several parameters, as by",
    "weight_norm": "is computed from several parameters, as by",
    "parametrizations.orthogonal": "is computed from '0.parametrizations.weight.original' and is",
    "parametrizations.spectral_norm": "",
    "spectral_norm": "",
}


@pytest.mark.parametrize("normed", NORMED)
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the older ones
def test_a_mask_that_the_weight_would_not_keep_is_refused_and_any_other_holds(normed):
    torch.manual_seed(0)
    first, told = nn.Linear(6, 6), NORMED[normed]
    model = nn.Sequential(operator.attrgetter(normed)(nn.utils)(first), nn.Linear(6, 3))
    batch = torch.randn(8, 6), torch.arange(8) % 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    name = next(n for n, p in prunable_parameters(model).items() if p.shape == (6, 6))
    masks = {name: torch.rand(6, 6) < 0.3}
    if told:
        with pytest.raises(ValueError, match=f"^layer '0': its weight .*{told}"):
            connection_sensitivity(model, cross_entropy, [batch])
        with pytest.raises(ValueError, match=f"^layer '0': its weight .*{told}"):
            apply_masks(model, masks)
    else:
        masks = global_topk_mask(connection_sensitivity(model, cross_entropy, [batch]), 0.5)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    if not told:
        apply_masks(model, masks)
        model(batch[0])
        assert torch.equal(first.weight != 0, masks[name])
    # other layers, and its bias
    others = connection_sensitivity(model, cross_entropy, [batch], params=["1.weight", "0.bias"])
    apply_masks(model, global_topk_mask(others, 0.5))


def test_a_mask_that_leaves_nothing_for_a_norm_to_divide_by_is_refused():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    nothing = {"parametrizations.weight.original": torch.zeros(3, 3).bool()}
    with pytest.raises(ValueError, match=r"^layer '': its weight is computed from .* becomes NaN"):
        apply_masks(layer, nothing)
    assert layer.parametrizations.weight.original.all()
    apply_masks(layer.to("meta"), nothing)  # which has no values to look at


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of scripting itself
def test_scripted_models_are_initialised_and_exported():
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 3)))
    truncated_variance_scaling_(model, generator=generator())
    masks = {"0.weight": torch.rand(3, 4) < 0.5}
    assert torch.equal(export_weights(model, masks)["0.weight"] != 0, masks["0.weight"])


def test_overlap_refuses_masks_of_other_shapes():
    # (5, 1) and (1, 5) would broadcast to 25 entries
    with pytest.raises(ValueError, match=r"has shape \(1, 5\), expected \(5, 1\)"):
        mask_overlap({"w": torch.ones(5, 1).bool()}, {"w": torch.ones(1, 5).bool()})


# ---------------------------------------------------------------- layers that only scale


class RmsNorm(nn.Module):
    """As other libraries write it, with an offset besides."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))


class LayerScale(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, 1e-4))


class Block(nn.Module):
    """A scale of channels among the parameters of a module that holds layers, as in ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.layer_scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize(
    "layer",
    [nn.RMSNorm(4), RmsNorm(4), RmsNorm((1, 4)), nn.PReLU(), nn.PReLU(4), LayerScale(4), LayerScale(4, 1, 1),
     nn.LayerNorm(4), nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True)],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_layers_that_only_scale_are_not_pruned(layer):
    model = nn.Sequential(nn.Linear(8, 4), layer, nn.Linear(4, 3))
    assert list(prunable_parameters(model)) == ["0.weight", "2.weight", "0.bias", "2.bias"]


def test_scales_beside_weights_are_not_pruned_and_small_matrices_are():
    assert list(prunable_parameters(Block())) == ["layer.weight", "layer.bias"]
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))
    assert list(prunable_parameters(normed)) == ["parametrizations.weight.original1", "bias"]
    small = nn.Sequential(nn.Linear(1, 1), nn.Conv2d(1, 4, 1), nn.Linear(1, 5), nn.GRU(1, 1))
    weights = list(prunable_parameters(small, biases=False))
    assert weights == [
        "0.weight", "1.weight", "2.weight", "3.weight_ih_l0", "3.weight_hh_l0"
    ]  # fmt: skip


def test_what_cannot_be_scored_is_named():
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    wave = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.complex64))
    batch = torch.ones(2, 3), torch.tensor([0, 1])
    for model, params, told in (
        (
            tied,
            ["1.weight"],
            "no parameter '1.weight' of its own: it is '0.weight', name that one",
        ),
        (tied, ["2.weight"], "no parameter '2.weight'$"),
        (wave, None, "'1.weight' is torch.complex64, expected real numbers"),
    ):
        with pytest.raises(ValueError, match=f"^params: .*{told}"):
            connection_sensitivity(model, cross_entropy, [batch], params=params)


def test_vectors_that_a_block_holds_beside_its_layers_are_scales_and_stay_as_they_are():
    model = nn.ModuleDict({"layer": nn.Linear(4, 4), "fused": nn.Linear(4, 4)})
    scales = {"temperature": (2, 1, 1), "ls1": (4,), "fuse": (2,), "gain": (1, 4, 1, 1)}
    matrices = {"readout": (1, 4), "column": (4, 1), "mix": (3, 4)}
    for name, shape in (scales | matrices).items():
        model.register_parameter(name, nn.Parameter(torch.full(shape, 1e-5)))
    weights = [*matrices, "layer.weight", "fused.weight"]
    assert list(prunable_parameters(model, biases=False)) == weights
    truncated_variance_scaling_(model, generator=generator())
    for name, parameter in model.named_parameters():
        assert (parameter == 1e-5).all() == (name in scales), name


def test_a_weight_with_one_output_is_a_matrix_and_no_scale():
    class Own(nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape))

    shapes = [(1, 4), (4, 1), (1, 1), (1, 1, 4), (4,)]
    model = nn.Sequential(LayerScale(1, 4), *[Own(*shape) for shape in shapes])
    assert list(prunable_parameters(model, biases=False)) == ["1.weight"]


@pytest.mark.parametrize(
    ("kind", "scales"),
    [("RmsNorm", True), ("LayerNorm2d", True), ("batch_norm", True), ("Normalization", True), ("LayerScale2d", True),
     ("Gain", True), ("NormalHead", False), ("Normed", False), ("Scaled", False), ("Gained", False), ("Head", False)],
)  # fmt: skip
def test_only_whole_words_of_a_name_make_a_row_a_scale(kind, scales):
    def init(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.ones(1, 4))

    module = type(kind, (nn.Module,), {"__init__": init})()
    assert (not prunable_parameters(module)) == scales


def test_tokens_and_position_tables_are_not_pruned_and_kernels_with_one_output_are():
    model = nn.ModuleDict({"conv": nn.Conv1d(2, 1, 3, bias=False), "own": nn.Module()})
    for name, shape in (("cls_token", (1, 1, 4)), ("pos_embed", (1, 5, 4)), ("w", (2, 1, 4))):
        model.register_parameter(name, nn.Parameter(torch.ones(shape)))
    model["own"].w = nn.Parameter(torch.ones(1, 5, 4))  # of a module without submodules
    model["own"].relative_position_bias_table = nn.Parameter(torch.ones(9, 4))  # a Swin's
    assert list(prunable_parameters(model)) == ["w", "conv.weight", "own.w"]
    truncated_variance_scaling_(model)
    for table in (model.cls_token, model.pos_embed, model["own"].relative_position_bias_table):
        assert (table == 1).all()
    assert not (model.w == 1).any()


def test_inputs_of_several_tensors_weigh_as_their_targets():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, parts):
            return self.layer(parts["x"] + parts["z"])

    torch.manual_seed(0)
    model, x, z, y = Named(), *torch.randn(2, 10, 3), torch.arange(10) % 2
    batches = [({"x": x[part], "z": z[part]}, y[part]) for part in (slice(9), slice(9, 10))]
    found = connection_gradients(model, cross_entropy, batches)
    whole = connection_gradients(model, cross_entropy, [({"x": x, "z": z}, y)])
    for name, g in found.items():
        torch.testing.assert_close(g, whole[name])
    pictures = [{"x": a, "z": b} for a, b in zip(x, z, strict=True)]

    def listed(outputs, targets):
        return cross_entropy(torch.stack(outputs), torch.stack(targets))

    class Each(Named):
        def forward(self, parts):
            return [super(Each, self).forward(part) for part in parts]

    each = Each()
    each.load_state_dict(model.state_dict())
    split = [(pictures[:9], list(y[:9])), (pictures[9:], list(y[9:]))]  # as detectors take them
    for name, g in connection_gradients(each, listed, split).items():
        torch.testing.assert_close(g, whole[name])
    for bad in ((x.numpy(), y), ({"x": x, "z": z}, y.tolist())):
        with pytest.raises(ValueError, match=r"batches: holds pairs of .*, expected tensors"):
            connection_gradients(model, cross_entropy, [bad])


class Tokens(nn.Module):
    """An embedding whose gradient is sparse, and a layer behind it."""

    def __init__(self, sparse):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(6, 3, sparse=sparse), nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(self.embedding(x).mean(1))


@pytest.mark.parametrize("reduction", ["signed", "absolute"])
def test_sparse_gradients_of_embeddings_score_like_dense_ones(reduction):
    torch.manual_seed(0)
    dense, sparse = Tokens(False), Tokens(True)
    sparse.load_state_dict(dense.state_dict())
    x, y = torch.tensor([[0, 1, 1], [1, 2, 4], [4, 4, 0]]), torch.tensor([0, 1, 1])
    batches = [(x[:2], y[:2]), (x[2:], y[2:])]  # tokens that occur twice, and one that does not
    expected = connection_sensitivity(dense, cross_entropy, batches, reduction=reduction)
    found = connection_sensitivity(sparse, cross_entropy, batches, reduction=reduction)
    for name, score in expected.items():
        torch.testing.assert_close(found[name], score, rtol=1e-6, atol=1e-9)
    masks = global_topk_mask(found, sparsity=0.5)
    for optimiser in (torch.optim.SparseAdam, torch.optim.SGD):
        with apply_masks(sparse, masks):
            cross_entropy(sparse(x), y).backward()
            gradient = sparse.embedding.weight.grad
            assert gradient.is_sparse
            assert (gradient.to_dense()[~masks["embedding.weight"]] == 0).all()
            before = sparse.embedding.weight.detach().clone()
            optimiser([sparse.embedding.weight], lr=0.1).step()
            assert not torch.equal(sparse.embedding.weight, before)
            assert (sparse.embedding.weight[~masks["embedding.weight"]] == 0).all()
        sparse.zero_grad()


def test_lazy_layers_are_named():
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"model: '0\.weight' of a lazy layer"):
        prunable_parameters(model)


def test_scores_do_not_see_frozen_statistics_in_identity_mode():
    class Frozen(nn.Module):
        def __init__(self, width):
            super().__init__()
            for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):  # fmt: skip
                self.register_buffer(name, torch.full((width,), value).double())

        def forward(self, x):
            return (x - self.running_mean) * self.running_var.rsqrt() * self.weight + self.bias

    model, (x, y) = (
        nn.Sequential(nn.Linear(6, 5), Frozen(5), nn.Linear(5, 3)).double(),
        batch((6,)),
    )
    fresh = connection_gradients(model, cross_entropy, [(x, y)])
    model[1].running_var.fill_(100.0)
    model[1].running_mean.fill_(2.0)
    found = connection_gradients(model, cross_entropy, [(x, y)])
    assert all(torch.equal(fresh[name], found[name]) for name in fresh)
    assert (model[1].running_var == 100).all()
    with pytest.raises(ValueError, match="bn_mode = 'batch': the statistics of '1' are frozen"):
        connection_gradients(model, cross_entropy, [(x, y)], bn_mode="batch")


# ---------------------------------------------------------------- precision


def switches():
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    parts = (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    return parts, [part.fp32_precision for part in parts]


@pytest.fixture
def restored(precision_switches):
    parts, before = switches()
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
    for part, value in zip(parts, before, strict=True):
        part.fp32_precision = value


@pytest.mark.parametrize("start", ["default", "high", "medium", "legacy", "off", "newer"])
def test_full_precision_switches_tf32_off_and_brings_everything_back(start, restored):
    if start in ("high", "medium"):
        torch.set_float32_matmul_precision(start)
    elif start == "newer":  # one of two convolution switches: PyTorch no longer reads the old one
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    elif start != "default":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = start == "legacy"

    def older():
        found = []
        for read in (
            torch.get_float32_matmul_precision,
            lambda: torch.backends.cuda.matmul.allow_tf32,
            lambda: torch.backends.cudnn.allow_tf32,
        ):
            try:
                found.append(read())
            except RuntimeError:
                found.append(None)
        return found

    _, before = switches()
    was = older()

    def interrupted():
        with full_precision():
            assert switches()[1] == ["ieee"] * 6
            assert torch.backends.cudnn.deterministic
            if start != "newer":
                assert older() == ["highest", False, False]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert switches()[1] == before
    assert older() == was
    assert not torch.backends.cudnn.deterministic


def test_scores_are_taken_in_full_precision(restored):
    torch.set_float32_matmul_precision("high")
    _, before = switches()
    model, (x, y) = dense_net().float(), batch((6,))
    seen = []

    def loss(outputs, targets):
        seen.append((switches()[1], torch.is_autocast_enabled("cpu")))
        outputs.register_hook(
            lambda g: seen.append((switches()[1], torch.is_autocast_enabled("cpu")))
        )
        return cross_entropy(outputs, targets)

    plain = connection_gradients(model, cross_entropy, [(x.float(), y)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = connection_gradients(model, loss, [(x.float(), y)])
    assert seen == [(["ieee"] * 6, False)] * 2  # forwards and backwards
    assert switches()[1] == before
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_16_bit_weights_neither_vanish_nor_drift(dtype):
    x, y = batch((6,), n=64)
    model = nn.Sequential(nn.Linear(6, 3)).to(dtype)
    with torch.no_grad():
        model[0].weight.fill_(1e-5)
    found = connection_gradients(model, cross_entropy, [(x.to(dtype), y)] * 50)["0.weight"]
    once = connection_gradients(model, cross_entropy, [(x.to(dtype), y)])["0.weight"]
    assert found.dtype == torch.float32
    assert (found != 0).all()  # 1e-5 times a gradient is below the least float16
    torch.testing.assert_close(found, once, rtol=1e-5, atol=0)


# ---------------------------------------------------------------- what cannot be scored


def test_scoring_names_what_it_is_given_wrongly():
    model, (x, y) = dense_net(), batch((6,))
    frozen = dense_net().requires_grad_(False)
    for call, told in (
        (lambda: connection_gradients(frozen, cross_entropy, [(x, y)]), "params: no trainable"),
        (lambda: connection_gradients(model, cross_entropy, [(x, y)], params=[]), "params: no"),
        (lambda: connection_gradients(model, cross_entropy, [(x[:0], y[:0])]), "batches: an empty"),
        (lambda: connection_gradients(nn.DataParallel(model), cross_entropy, [(x, y)]), "DataParallel"),
        (lambda: connection_gradients(model, lambda a, b: a.square().sum(1), [(x, y)]), r"loss_fn: returned \(8,\)"),
        (lambda: global_topk_mask({"w": torch.ones(3).bool()}, 0.5), "scores: 'w' is torch.bool"),
        (lambda: global_topk_mask({"w": torch.ones(3) * 1j}, 0.5), "scores: 'w' is torch.complex64"),
        (lambda: global_topk_mask({"w": [1.0]}, 0.5), "scores: 'w' is list"),
        (lambda: global_topk_mask({"w": torch.ones(3), "v": torch.ones(3, device="meta")}, 0.5), "scores: on several devices, cpu, meta"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            call()


def test_integers_are_ranked_as_integers():
    big = 2**24  # where float32 no longer tells neighbours apart
    mask = global_topk_mask({"w": torch.tensor([big, big + 1, big - 1])}, keep=1)["w"]
    assert mask.tolist() == [False, True, False]


def test_targets_are_what_the_loss_takes():
    x, y = batch((6,))

    def mixed(outputs, targets):
        one, other = targets
        return 0.3 * cross_entropy(outputs, one) + 0.7 * cross_entropy(outputs, other)

    found = connection_gradients(dense_net(), mixed, [(x, (y, y.flip(0)))])
    parts = [connection_gradients(dense_net(), cross_entropy, [(x, t)]) for t in (y, y.flip(0))]
    for name, g in found.items():
        torch.testing.assert_close(g, 0.3 * parts[0][name] + 0.7 * parts[1][name])


def test_networks_made_in_inference_mode_can_be_scored():
    x, y = batch((6,))
    expected = connection_gradients(dense_net(), cross_entropy, [(x, y)])
    with torch.inference_mode():
        found = connection_gradients(dense_net(), cross_entropy, [(x + 0, y)])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------- reports


def test_structural_rank_is_the_rank_of_generic_weights():
    g = generator(7)
    for rows, columns in itertools.product(range(1, 6), range(1, 6)):
        for density in (0.2, 0.5, 0.8):
            mask = torch.rand(rows, columns, generator=g) < density
            # weights drawn from a continuous law reach the structural rank almost surely
            weights = mask * torch.randn(rows, columns, generator=g, dtype=torch.float64)
            (report,) = mask_report({"w": mask})
            assert report.structural_rank == int(torch.linalg.matrix_rank(weights)), mask
            assert report.dead_units == sum(not any(row) for row in mask.tolist())


def test_mask_report_of_known_patterns():
    masks = {
        "full": torch.ones(4, 6).bool(),
        "column": torch.tensor([[1, 0], [1, 0], [1, 0]]).bool(),
        "empty": torch.zeros(3, 2).bool(),
        "conv": torch.eye(4).bool().view(4, 1, 2, 2),
        "bias": torch.ones(4).bool(),
    }
    reports = {r.name: r for r in mask_report(masks)}
    assert list(reports) == ["full", "column", "empty", "conv"]
    assert [r.structural_rank for r in reports.values()] == [4, 1, 0, 4]
    assert [r.dead_units for r in reports.values()] == [0, 0, 3, 0]
    assert [r.kept for r in reports.values()] == [24, 3, 0, 4]
    assert [r.structural_rank for r in mask_report(masks, ranks=False)] == [-1] * 4
    assert [r.density for r in reports.values()] == [1.0, 0.5, 0.0, 0.25]


def test_mask_overlap_is_the_share_of_what_the_first_keeps():
    a = {"w": torch.tensor([True, True, True, False])}
    b = {"w": torch.tensor([True, False, False, True])}
    assert mask_overlap(a, a) == 1.0
    assert mask_overlap(a, b) == pytest.approx(1 / 3)
    assert mask_overlap(b, a) == pytest.approx(1 / 2)
    big = [
        {"w": torch.rand(100_000, generator=generator(seed)) < d}
        for seed, d in ((1, 0.1), (2, 0.3))
    ]
    # binomial: standard deviation sqrt(0.3 * 0.7 / 10000) = 0.0046, four of them
    assert mask_overlap(*big) == pytest.approx(0.3, abs=0.019)
    with pytest.raises(ValueError, match="different parameters"):
        mask_overlap(a, {"v": a["w"]})
    with pytest.raises(ValueError, match="keeps nothing"):
        mask_overlap({"w": torch.zeros(4).bool()}, a)


def test_batches_of_another_kind_are_named():
    model = nn.Linear(3, 2)
    x, y = torch.rand(2, 3), torch.tensor([0, 1])

    def score(batches):
        return connection_sensitivity(model, cross_entropy, batches)

    for wrong, message in [
        ((x, y), "batches: holds bare tensors, expected an iterable of pairs"),
        (x, "batches: holds bare tensors"),
        ([(x, y, y)], "batches: holds tuple, expected an iterable of pairs"),
        ([{"x": x}], "batches: holds dict"),
        ([(x.double(), y)], "batches: inputs are torch.float64, the weights are torch.float32"),
        ([(x[:0], y[:0])], "batches: an empty batch"),
    ]:
        with pytest.raises(ValueError, match=message):
            score(wrong)


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: random_scores({"w": torch.ones(2)}, seed),
        lambda seed: shuffle_within_layer({"w": torch.ones(2)}, seed),
        lambda seed: truncated_variance_scaling_(nn.Linear(2, 2), generator=seed),
        lambda seed: init_weights(nn.Linear(2, 2), "he", generator=seed),
        lambda seed: siren_params(2, 4, 2, 1, 30.0, generator=seed),
        lambda seed: crop_pad_flip(torch.rand(1, 1, 4, 4), seed),
        lambda seed: next(shuffled_batches(4, 2, seed)),
    ],
)
def test_a_seed_is_no_generator(draw):
    draw(generator())
    with pytest.raises(ValueError, match="generator = 3: expected a torch"):
        draw(3)


def test_counts_may_be_numpys():
    scores = {"w": torch.tensor([3.0, 1.0])}
    assert global_topk_mask(scores, keep=np.int64(1))["w"].tolist() == [True, False]
    for wrong in (np.int64(3), True, 1.0):
        with pytest.raises(ValueError, match="expected a count between 0 and 2"):
            global_topk_mask(scores, keep=wrong)


class _Tied(nn.Module):
    """An embedding whose weights are those of the last layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x).mean(1))


@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
@pytest.mark.parametrize("masked_before", [False, True])
def test_tied_weights_are_exported_under_each_name(layout, masked_before):
    model, kept = _Tied(), torch.zeros(6, 4, dtype=torch.bool)
    kept[2, 1] = kept[5, 0] = True
    masks = {"embedding.weight": kept}
    if masked_before:
        apply_masks(model, masks)
    state = export_weights(model, masks, layout=layout)
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(state[name].to_dense() != 0, kept), name
    if layout == "dense":
        again = _Tied()
        again.load_state_dict(state)
        assert torch.equal(again.head.weight != 0, kept)


@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
def test_masks_under_both_names_of_a_tied_weight_add_up(layout):
    one, other = torch.rand(2, 6, 4, generator=generator()) < 0.5
    masks = {"embedding.weight": one, "head.weight": other}
    state = export_weights(_Tied(), masks, layout=layout)
    for name in masks:
        assert torch.equal(state[name].to_dense() != 0, one & other), name


def test_scores_that_look_at_no_data_take_a_model_as_well_as_its_parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    params = prunable_parameters(model)
    for score in (magnitude_scores, lambda p: random_scores(p, generator())):
        expected, found = score(params), score(model)
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in found)
    own = nn.ParameterDict({"scale": torch.ones(3)})
    assert list(magnitude_scores(own)) == ["scale"]
    with pytest.raises(ValueError, match="params: no trainable parameter to score"):
        magnitude_scores(nn.ReLU())
    to_torch_prune(model, {"0.weight": torch.ones(3, 4, dtype=torch.bool)})
    with pytest.raises(
        ValueError, match=r"layer '0': its weight is computed from '0\.weight_orig'"
    ):
        magnitude_scores(model)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (magnitude_scores, "params"),
        (lambda value: random_scores(value, None), "params"),
        (lambda value: global_topk_mask(value, 0.5), "scores"),
        (mask_report, "masks"),
        (lambda value: mask_overlap({}, value), "b"),
        (lambda value: apply_masks(nn.Linear(2, 2), value), "masks"),
        (lambda value: export_weights(nn.Linear(2, 2), value), "masks"),
        (lambda value: to_torch_prune(nn.Linear(2, 2), value), "masks"),
    ],
)
def test_what_is_no_dictionary_is_named(call, named):
    for value, kind in ((None, "NoneType"), ([torch.ones(2)], "list")):
        with pytest.raises(
            ValueError, match=f"^{named}: {kind}, expected a dictionary of tensors"
        ):
            call(value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of newer PyTorch
def test_a_model_that_has_let_go_of_its_masks_can_be_scripted():
    model, mask = nn.Sequential(nn.Linear(4, 3)), torch.rand(3, 4, generator=generator()) < 0.5
    apply_masks(model, {"0.weight": mask})
    remove_masks(model)
    scripted = torch.jit.script(model)
    assert torch.equal(scripted.state_dict()["0.weight"] != 0, mask)
    assert torch.equal(scripted(torch.ones(1, 4)), model(torch.ones(1, 4)))


def test_masks_are_handed_to_torch_prune_once_and_its_names_are_told():
    model, masks = nn.Linear(4, 3), {"weight": torch.ones(3, 4, dtype=torch.bool)}
    to_torch_prune(model, masks)
    with pytest.raises(ValueError, match=r"'weight' \(it has 'weight_orig'\)"):
        to_torch_prune(model, masks)
    with pytest.raises(
        ValueError, match=r"is computed from 'weight_orig': .*utils\.prune\.remove"
    ):
        to_torch_prune(model, {"weight_orig": masks["weight"]})
    assert list(model.state_dict()) == ["bias", "weight_orig", "weight_mask"]


def test_a_tie_is_not_handed_to_torch_prune_which_would_break_it():
    model = _Tied()
    masks = {"embedding.weight": torch.ones(6, 4, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"embedding\.weight and head\.weight are one parameter"):
        to_torch_prune(model, masks)
    assert model.head.weight is model.embedding.weight


@given(st.integers(1, 500), st.integers(0, 99))
def test_floor_and_ceil_take_the_sparsity_as_written(total, percent):
    exact = total * (100 - percent)
    sparsity = percent / 100
    assert kept_count(total, sparsity, "floor") == exact // 100
    assert kept_count(total, sparsity, "ceil") == -(-exact // 100)
    assert kept_count(total, np.float64(sparsity), "ceil") == -(-exact // 100)


def test_short_class_indices_are_class_indices():
    model, (x, y) = dense_net().float(), batch((6,))
    expected = connection_sensitivity(model, cross_entropy, [(x.float(), y)])
    for dtype in (torch.int8, torch.int16, torch.int32):
        found = connection_sensitivity(model, cross_entropy, [(x.float(), y.to(dtype))])
        assert all(torch.equal(found[name], expected[name]) for name in expected)
