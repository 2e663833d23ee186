"""Initialisers, spectra, isometry and label-free scores of the signal-propagation chapter."""

import copy
import math
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, cross_entropy, pad

from companion.data.images import load_images, standardise
from companion.models import mlp, parameter_counts
from companion.papers import signal_propagation as sp
from companion.papers.signal_propagation.experiment import VARIANTS, check_sizes, repair
from companion.papers.signal_propagation.initialisers import orthogonal_kernel
from companion.papers.signal_propagation.isometry import isometry_gradient
from companion.papers.signal_propagation.networks import resnet
from companion.papers.signal_propagation.spectra import jacobian, masked_parameters
from companion.runs import chapters, executor
from companion.sparsity import (
    global_topk_mask,
    magnitude_scores,
    mask_overlap,
    prunable_parameters,
    random_scores,
    to_torch_prune,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def orthogonal_mlp(inputs=64, activation="linear", seed=0, kind="orthogonal"):
    model = mlp(inputs, [100] * 6, 10, activation=activation)
    sp.init_weights(model, kind, generator=seeded(seed))
    return model


def some_masks(model, sparsity=0.9, seed=1):
    scores = random_scores(prunable_parameters(model, biases=False), seeded(seed))
    return sp.global_topk_mask(scores, sparsity, warn=False)


@pytest.fixture(scope="module")
def digits():
    return standardise(load_images("digits"))


# ---------------------------------------------------------------- initialisers


@pytest.mark.parametrize(("rows", "columns"), [(40, 90), (90, 40), (50, 50)])
def test_orthogonal_dense_weights_have_orthonormal_rows_or_columns(rows, columns):
    layer = nn.Linear(columns, rows).double()
    sp.init_weights(layer, "orthogonal", gain=1.5, generator=seeded())
    W = layer.weight.detach() / 1.5
    gram = W @ W.T if rows < columns else W.T @ W
    torch.testing.assert_close(gram, torch.eye(len(gram), dtype=W.dtype), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("inputs", "outputs", "size"), [(3, 8, 3), (5, 5, 2), (4, 6, 5), (3, 7, 1)]
)
def test_orthogonal_kernels_keep_norms_under_circular_convolution(inputs, outputs, size):
    kernel = orthogonal_kernel(outputs, inputs, size, generator=seeded())
    x = torch.randn(4, inputs, 9, 9, generator=seeded(1), dtype=torch.float64)
    wrapped = pad(x, (0, size - 1, 0, size - 1), mode="circular") if size > 1 else x
    y = conv2d(wrapped, kernel)
    torch.testing.assert_close(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))
    # every inner product is kept, not only the norms
    torch.testing.assert_close(y.flatten(1) @ y.flatten(1).T, x.flatten(1) @ x.flatten(1).T)


def test_an_orthogonal_kernel_is_more_than_its_middle():
    kernel = orthogonal_kernel(8, 8, 3, generator=seeded())
    assert kernel.flatten(2).norm(dim=(0, 1)).min() > 0.05


def test_orthogonal_convolutions_refuse_more_inputs_than_outputs_by_name():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 3))
    with pytest.raises(ValueError, match=r"layer '1': 16 input and 8 output channels"):
        sp.init_weights(model, "orthogonal")


@pytest.mark.parametrize(
    ("kind", "variance"),
    [("lecun", 1 / 180), ("glorot", 2 / (180 + 270)), ("he", 2 / 180), ("normal", 1.0)],
)
def test_variances_count_the_kernel_in_both_fans(kind, variance):
    layer = nn.Conv2d(20, 30, 3)
    draws = torch.stack([_drawn(layer, kind, s) for s in range(10)])
    # 54,000 normals: the relative error of their variance is 0.6 %
    assert draws.var().item() == pytest.approx(variance, rel=0.03)
    assert draws.abs().max() > 3.5 * math.sqrt(variance)  # not truncated
    assert not layer.bias.any()


def _drawn(layer, kind, seed):
    sp.init_weights(layer, kind, generator=seeded(seed))
    return layer.weight.detach().clone()


def test_drawing_again_from_a_seed_gives_the_same_weights():
    for kind in sp.INITS:
        one, two = (orthogonal_mlp(kind=kind, seed=3).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_unknown_kinds_and_gains_are_refused():
    with pytest.raises(ValueError, match="kind = 'xavier': expected one of orthogonal"):
        sp.init_weights(nn.Linear(2, 2), "xavier")
    with pytest.raises(ValueError, match=r"gain = 0\.0"):
        sp.init_weights(nn.Linear(2, 2), "he", gain=0.0)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("depth", "weights", "biases"), [(32, 461_872, 1_146), (56, 848_944, 2_042), (110, 1_719_856, 4_058)]
)  # fmt: skip
def test_resnets_count_as_the_official_code_does(depth, weights, biases):
    with torch.device("meta"):
        model = resnet(depth)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert parameter_counts(model) == (weights, biases)


def test_the_other_networks_count_as_the_official_code_does(digits):
    assert parameter_counts(orthogonal_mlp(784)) == (129_400, 610)
    images = digits.replace(train_x=torch.zeros(2, 3, 32, 32))
    counts = {"vgg_c": (10_521_280, 5_258), "wrn_16_6": (6_166_704, None)}
    for arch, (weights, biases) in counts.items():
        with torch.device("meta"):
            model = sp.untrained_network(arch, images.to("meta"), activation="relu")
        found = parameter_counts(model)
        assert found[0] == weights
        assert biases in (None, found[1])


def test_shortcuts_pool_and_pad_without_parameters():
    block = resnet(8)[4]  # the first block of the second group: 16 to 32 channels, stride 2
    for p in block.parameters():
        nn.init.zeros_(p)
    x = torch.rand(1, 16, 4, 4, generator=seeded())
    y = block(x)
    torch.testing.assert_close(y[:, 8:24], nn.functional.avg_pool2d(x, 2))
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "lenet"}, "arch = 'lenet'"),
        ({"activation": "gelu"}, "activation = 'gelu'"),
        ({"depth": 0}, "depth = 0"),
        ({"width": 2.5}, r"width = 2\.5"),
        ({"arch": "resnet32", "activation": "relu"}, "needs images of 32x32"),
        ({"arch": "resnet32"}, "'resnet32' takes 'relu'"),
    ],
)
def test_wrong_networks_are_refused_by_name(digits, options, message):
    with pytest.raises(ValueError, match=message):
        sp.untrained_network(**({"arch": "mlp", "data": digits} | options))


def test_sizes_beyond_the_training_set_are_refused(digits):
    check_sizes(digits, batch_size=1347, n_jacobian_examples=1347)
    with pytest.raises(ValueError, match="batch_size = 1348: 'digits' has 1347"):
        check_sizes(digits, batch_size=1348, n_jacobian_examples=1)
    with pytest.raises(ValueError, match="n_jacobian_examples = 2000"):
        check_sizes(digits, batch_size=1, n_jacobian_examples=2000)


def test_residual_networks_have_depths_of_six_n_plus_two():
    with pytest.raises(ValueError, match="depth = 34"):
        resnet(34)


# ---------------------------------------------------------------- spectra


def test_a_linear_spectrum_is_that_of_the_product_of_the_masked_weights():
    model = orthogonal_mlp().double()
    masks = some_masks(model, 0.7)
    product = torch.eye(64, dtype=torch.float64)
    for W in masked_parameters(model, masks).values():
        product = W @ product if W.dim() > 1 else product
    found = sp.jacobian_singular_values(
        model, torch.randn(3, 1, 8, 8, generator=seeded()), masks=masks
    )
    assert found.shape == (3, 10)
    expected = torch.linalg.svdvals(product)
    torch.testing.assert_close(found, expected.expand(3, -1), rtol=1e-10, atol=0)


def test_masks_leave_the_model_alone():
    model = orthogonal_mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    sp.jacobian_singular_values(model, torch.zeros(1, 64), masks=some_masks(model))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_nonlinear_jacobian_is_that_of_autograd_example_by_example():
    model = orthogonal_mlp(activation="tanh").double()
    x = torch.randn(70, 64, generator=seeded(), dtype=torch.float64)  # more than a chunk
    found = jacobian(model, x)
    for i in (0, 63, 64, 69):
        twin = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x[i])
        torch.testing.assert_close(found[i], twin)


def test_batch_normalisation_is_taken_in_inference_mode():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))  # fmt: skip
    sp.init_weights(model, "he", generator=seeded())
    x = torch.randn(5, 1, 8, 8, generator=seeded(1))
    together = sp.jacobian_singular_values(model, x)
    apart = torch.cat([sp.jacobian_singular_values(model, one) for one in x.split(1)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-6)
    assert int(model[1].num_batches_tracked) == 0


def test_rotating_the_outputs_changes_no_singular_value():
    model = orthogonal_mlp(activation="tanh").double()
    x = torch.randn(4, 64, generator=seeded(), dtype=torch.float64)
    turn = nn.init.orthogonal_(torch.empty(10, 10, dtype=torch.float64), generator=seeded(1))
    turned = nn.Sequential(model, nn.Linear(10, 10, bias=False).double())
    turned[1].weight.data.copy_(turn)
    torch.testing.assert_close(
        sp.jacobian_singular_values(turned, x), sp.jacobian_singular_values(model, x)
    )


def test_ill_conditioned_jacobians_are_resolved_in_double_precision():
    U = nn.init.orthogonal_(torch.empty(10, 10, dtype=torch.float64), generator=seeded())
    V = nn.init.orthogonal_(torch.empty(10, 64, dtype=torch.float64), generator=seeded(1))
    wanted = torch.logspace(0, -5, 10, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(64, 10, bias=False), nn.Linear(10, 10, bias=False))
    model[0].weight.data = (wanted[:, None] * V).float()
    model[1].weight.data = U.float()
    exact = torch.linalg.svdvals(
        model[1].weight.detach().double() @ model[0].weight.detach().double()
    )
    x = torch.zeros(1, 64)
    torch.testing.assert_close(sp.jacobian_singular_values(model, x)[0], exact, rtol=1e-9, atol=0)
    # without the second look it would fail: the planted fault
    single = sp.jacobian_singular_values(model, x, dtype=torch.float32)[0]
    assert ((single - exact) / exact).abs().max() > 1e-6


def test_overflowing_networks_are_named():
    model = orthogonal_mlp()
    model[1].weight.data *= 1e38
    model[3].weight.data *= 1e38
    with pytest.raises(ValueError, match="Jacobian of example 0 is not finite"):
        sp.jacobian_singular_values(model, torch.ones(1, 64))


@pytest.mark.parametrize(
    "use",
    [
        lambda model, masks: sp.jacobian_singular_values(model, torch.zeros(1, 64), masks=masks),
        sp.layer_singular_values,
        sp.enforce_isometry,
        sp.rescale_layers,
    ],
)
def test_masks_that_do_not_fit_are_refused(use):
    model = orthogonal_mlp()
    with pytest.raises(ValueError, match=r"no parameter 'head\.weight'"):
        use(model, {"head.weight": torch.ones(10, 100, dtype=torch.bool)})
    with pytest.raises(
        ValueError, match=r"'1.weight' has shape \(64, 100\), expected \(100, 64\)"
    ):
        use(model, {"1.weight": torch.ones(64, 100, dtype=torch.bool)})


def test_no_example_is_refused():
    with pytest.raises(ValueError, match="x: no example"):
        sp.jacobian_singular_values(orthogonal_mlp(), torch.empty(0, 64))


def test_layer_spectra_are_those_of_the_masked_weights():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 4))
    masks = some_masks(model, 0.5)
    found = sp.layer_singular_values(model, masks)
    assert {name: len(values) for name, values in found.items()} == {"0.weight": 5, "2.weight": 4}
    W = (model[0].weight * masks["0.weight"]).detach().flatten(1).double()
    torch.testing.assert_close(found["0.weight"], torch.linalg.svdvals(W))


def test_gaussian_spectra_spread_as_the_recursion_says():
    """Pooled Var(s^2) = 0.695 for LeCun weights, 784-100x6-10, to the error of 250 draws."""
    a, b2 = 784.0, 784.0**2
    widths = [784, *[100] * 6, 10]
    for fan_in, n in pairwise(widths):
        a, b2 = (n * (n + 1) * a + n * b2) / fan_in**2, (2 * n * a + n**2 * b2) / fan_in**2
    assert a / 10 - 1 == pytest.approx(0.695, abs=5e-4)
    squares = torch.cat(
        [
            sp.jacobian_singular_values(
                orthogonal_mlp(784, kind="lecun", seed=s), torch.zeros(1, 784)
            ).square()
            for s in range(250)
        ]
    )
    assert squares.mean().item() == pytest.approx(1, rel=0.06)
    assert squares.var().item() == pytest.approx(a / 10 - 1, rel=0.15)


# ---------------------------------------------------------------- isometry


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
@pytest.mark.parametrize("objective", ["squared", "paper"])
def test_the_gradient_by_formula_is_that_of_autograd(shape, objective):
    V = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64, requires_grad=True)
    G = V.mT @ V - torch.eye(shape[1], dtype=torch.float64)
    norms = torch.linalg.matrix_norm(G)
    loss = norms.square().sum() / 4 if objective == "squared" else norms.sum()
    (expected,) = torch.autograd.grad(loss, V)
    found = isometry_gradient(V.detach(), objective)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_the_norm_has_no_gradient_at_isometry_and_gives_zero_not_nan():
    V = torch.eye(4, dtype=torch.float64)[None]
    assert torch.equal(isometry_gradient(V, "paper"), torch.zeros_like(V))


@pytest.mark.parametrize("objective", ["squared", "paper"])
def test_isometric_layers_take_no_step(objective):
    model = orthogonal_mlp()
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    history = sp.enforce_isometry(model, masks, objective=objective)
    assert {len(residuals) for residuals in history.values()} == {1}
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_repair_keeps_to_the_mask_and_lowers_every_residual():
    model = orthogonal_mlp()
    masks = some_masks(model, 0.8)
    history = sp.enforce_isometry(model, masks)
    for name, residuals in history.items():
        weight = dict(model.named_parameters())[name].detach()
        assert not weight[~masks[name]].any()
        assert len(residuals) == 201
        assert residuals[-1] < residuals[0]
        # the history's last entry is the residual of the weights that came out
        assert residuals[-1] == pytest.approx(sp.isometry_residual(weight, masks[name]), abs=1e-4)


@pytest.mark.parametrize("largest", [0.5, 1.0, 1.2])
def test_the_squared_residual_never_rises_from_small_singular_values(largest):
    for seed in range(5):
        model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 30)).double()
        sp.init_weights(model, "he", generator=seeded(seed))
        masks = some_masks(model, 0.6, seed)
        for name, values in sp.layer_singular_values(model, masks).items():
            dict(model.named_parameters())[name].data *= largest / values[0].item()
        for residuals in sp.enforce_isometry(model, masks, steps=60).values():
            r = torch.tensor(residuals)
            assert (r[1:] <= r[:-1] + 1e-12).all()


def test_what_decays_in_a_repair_becomes_zero_and_not_subnormal():
    model = nn.Sequential(nn.Linear(100, 100, bias=False))
    sp.init_weights(model, "orthogonal", generator=seeded())
    masks = {"0.weight": torch.rand(100, 100, generator=seeded(1)) < 0.05}
    sp.enforce_isometry(model, masks, steps=400)
    sizes = model[0].weight.abs()[masks["0.weight"]]
    assert (sizes == 0).any()  # some have decayed
    assert not ((sizes > 0) & (sizes < 1e-14)).any()
    # a small layer is not nothing: it grows, and an empty one beside it stays
    both = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)).double()
    with torch.no_grad():
        both[0].weight.mul_(1e-13)
    empty = {"1.weight": torch.zeros(5, 5, dtype=torch.bool)}
    residuals = sp.enforce_isometry(both, empty, steps=300)
    assert residuals["0.weight"][-1] < 1e-6
    assert not both[1].weight.any()


def test_large_weights_are_scaled_down_before_they_run_away():
    """A dense He layer has singular values beyond the root of 3, where plain steps diverge."""
    layer = nn.Linear(784, 100)
    sp.init_weights(layer, "he", generator=seeded())
    V, eye = layer.weight.detach().double().T * 1.1, torch.eye(100, dtype=torch.float64)
    for _ in range(8):
        V = V - 0.5 * V @ (V.T @ V - eye)
    assert not torch.linalg.matrix_norm(V.T @ V - eye) < 1
    (residuals,) = sp.enforce_isometry(layer, {}, steps=30).values()
    assert residuals[-1] < 1e-4


def test_a_constant_step_on_the_norm_circles_at_twice_its_size_and_a_shorter_one_settles():
    for milestones, low, high in (((), 0.05, 0.6), ((100, 200), 0.0, 0.02)):
        layer = nn.Linear(20, 20)
        sp.init_weights(layer, "lecun", generator=seeded())
        (r,) = sp.enforce_isometry(
            layer, {}, steps=300, objective="paper", milestones=milestones
        ).values()
        assert low <= max(r[-20:]) <= high


def test_no_repair_gets_below_the_rank_of_its_mask():
    for seed in range(6):
        model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 9), nn.Linear(9, 9)).double()
        sp.init_weights(model, "lecun", generator=seeded(seed))
        masks = some_masks(model, 0.85, seed)
        for name, residuals in sp.enforce_isometry(model, masks, steps=300).items():
            floor = math.sqrt(masks[name].shape[0] - sp.structural_rank(masks[name]))
            assert sp.residual_floor(masks[name]) == floor
            assert residuals[-1] >= floor - 1e-9


def test_a_wide_first_convolution_stops_at_the_root_of_its_missing_rank():
    layer = nn.Conv2d(3, 64, 3)
    sp.init_weights(layer, "he", generator=seeded())
    (residuals,) = sp.enforce_isometry(layer, {}, steps=100).values()
    assert residuals[-1] == pytest.approx(math.sqrt(64 - 27), abs=1e-3)
    assert math.sqrt(37) == pytest.approx(6.083, abs=1e-3)


def test_residual_by_definition():
    weight = torch.randn(6, 4, generator=seeded())
    mask = torch.rand(6, 4, generator=seeded(1)) < 0.6
    V = (weight * mask).double().T
    expected = torch.linalg.matrix_norm(V.T @ V - torch.eye(6, dtype=torch.float64)).item()
    assert sp.isometry_residual(weight, mask) == pytest.approx(expected, rel=1e-12)
    holed = weight.masked_fill(~mask, math.nan)  # what is masked away counts as zero
    assert sp.isometry_residual(holed, mask) == sp.isometry_residual(weight, mask)
    with pytest.raises(ValueError, match=r"mask \(4, 6\): expected the shape \(6, 4\)"):
        sp.isometry_residual(weight, mask.T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "norm"}, "objective = 'norm'"),
        ({"steps": -1}, "steps = -1"),
        ({"lr": 0.0}, r"lr = 0\.0"),
        ({"lr": 50.0}, r"lr = 50\.0: the weights of '1.weight' ran away"),
    ],
)
def test_wrong_repairs_are_refused(options, message):
    model = orthogonal_mlp()
    with pytest.raises(ValueError, match=message):
        sp.enforce_isometry(model, some_masks(model), **options)


def test_weights_that_are_not_finite_are_named():
    model = orthogonal_mlp()
    model[5].weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"weights of '5.weight' are not finite"):
        sp.enforce_isometry(model, {})


def test_rescaling_sets_the_mean_square_singular_value_to_one():
    model = orthogonal_mlp()
    masks = some_masks(model)
    masks["3.weight"][:] = False
    sp.rescale_layers(model, masks)
    for name, values in sp.layer_singular_values(model, masks).items():
        wanted = 0 if name == "3.weight" else 1
        assert values.square().mean().item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("repair", [sp.enforce_isometry, sp.rescale_layers])
def test_frozen_layers_are_repaired_like_all_others(repair):
    model = orthogonal_mlp()
    masks = some_masks(model)
    frozen = copy.deepcopy(model)
    frozen[3].requires_grad_(False)
    values = sp.layer_singular_values(frozen, masks)
    assert values.keys() == sp.layer_singular_values(model, masks).keys()
    repair(model, masks)
    repair(frozen, masks)
    assert not frozen[3].weight.requires_grad
    for name, weight in model.named_parameters():
        assert torch.equal(weight, frozen.get_parameter(name)), name
    assert (frozen[3].weight[~masks["3.weight"]] == 0).all()


class Readout(nn.Module):
    """A layer of one's own with one output: its weight is a matrix, no scale of channels."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, 0.5))

    def forward(self, x):
        return x @ self.weight.flatten(1).T


def test_a_layer_of_ones_own_with_one_output_is_a_layer():
    model = nn.Sequential(nn.Linear(4, 4), Readout(1, 4))
    assert list(sp.layer_singular_values(model)) == ["0.weight", "1.weight"]
    assert sp.enforce_isometry(model, {})["1.weight"][0] == pytest.approx(0)  # 4 halves: length 1
    mask = {"1.weight": torch.tensor([[True, True, False, False]])}
    sp.rescale_layers(model, mask)
    torch.testing.assert_close(
        model[1].weight.detach(), torch.tensor([[0.5, 0.5, 0, 0]]).mul(2**0.5)
    )
    before = model[1].weight.detach().clone()
    sp.init_weights(model, "lecun", generator=seeded())
    assert not torch.equal(model[1].weight, before)


def test_what_has_a_mask_is_repaired_whatever_its_layer_is():
    layer = Readout(1, 1, 4)  # as a scale of channels is shaped: only a mask tells
    assert not sp.layer_singular_values(layer)
    mask = {"weight": torch.tensor([[[True, True, True, False]]])}
    assert list(sp.layer_singular_values(layer, mask)) == ["weight"]
    sp.enforce_isometry(layer, mask)
    assert layer.weight[0, 0, 3] == 0
    assert sp.isometry_residual(layer.weight, mask["weight"]) < 1e-3


@pytest.mark.parametrize("repair", [sp.enforce_isometry, sp.rescale_layers])
def test_a_mask_by_the_second_name_of_a_tied_weight_is_kept_to(repair):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    sp.init_weights(model, "lecun", generator=seeded())
    low, diagonal = torch.ones(4, 4).tril().bool(), torch.eye(4).bool()
    repair(model, {"2.weight": low, "0.weight": low | diagonal})
    assert (model[0].weight[~low] == 0).all()
    repair(model, {"2.weight": diagonal})
    assert (model[0].weight[~diagonal] == 0).all()
    assert (model[0].weight[diagonal] != 0).all()


# ---------------------------------------------------------------- scores


def test_signed_accumulation_equals_one_full_batch(digits):
    model = orthogonal_mlp(activation="tanh").double()
    data = digits.replace(train_x=digits.train_x.double())
    one = sp.connection_sensitivity(model, cross_entropy, sp.full_set(data, 1347))
    many = sp.connection_scores(model, sp.full_set(data, 100))
    largest = max(v.max() for v in one.values())
    assert all((one[n] - many[n]).abs().max() <= 1e-6 * largest for n in one)
    # absolute values batch by batch are another ranking: the planted fault
    other = sp.connection_sensitivity(
        model, cross_entropy, sp.full_set(data, 100), reduction="absolute"
    )
    masks = [sp.global_topk_mask(scores, 0.9) for scores in (many, other)]
    assert mask_overlap(*masks) < 0.99


def test_label_free_losses_ignore_the_labels(digits):
    outputs = torch.randn(8, 10, generator=seeded())
    one, two = torch.arange(8), torch.zeros(8, dtype=torch.long)
    for kind in ("uniform", "entropy", "argmax", "softmax"):
        loss = sp.scoring_loss(kind)
        assert torch.equal(loss(outputs, one), loss(outputs, two))
    assert sp.scoring_loss("labels")(outputs, one) != sp.scoring_loss("labels")(outputs, two)


def test_label_free_losses_by_definition():
    outputs = torch.randn(8, 10, generator=seeded(), dtype=torch.float64)
    p, none = outputs.softmax(1), torch.empty(0)
    assert sp.scoring_loss("uniform")(outputs, none) == pytest.approx(
        -(p.log() / 10).sum(1).mean()
    )
    assert sp.scoring_loss("entropy")(outputs, none) == pytest.approx(-(p * p.log()).sum(1).mean())
    assert sp.scoring_loss("argmax")(outputs, none) == pytest.approx(-p.max(1).values.log().mean())


def test_a_networks_own_prediction_has_no_gradient_and_is_refused(digits):
    model = orthogonal_mlp(activation="tanh")
    with pytest.raises(sp.NoSignalError, match="kind = 'softmax': the largest score is"):
        sp.connection_scores(model, sp.full_set(digits), "softmax")
    # of inputs up to 255 even its rounding errors are above the bound
    model = sp.untrained_network("mlp", digits, activation="relu")
    sp.init_weights(model, "he", generator=seeded())
    raw = [(255 * digits.train_x, digits.train_y)]
    with pytest.raises(sp.NoSignalError, match=r"'softmax': the largest score is [^,]*: this"):
        sp.connection_scores(model, raw, "softmax")
    # detached: with the gradient through the target it is the entropy, which has one
    outputs = model(digits.train_x[:50]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(sp.scoring_loss("softmax")(outputs, None), outputs)
    assert gradient.abs().max() < 1e-7


def test_random_labels_are_the_same_labels_dealt_out_anew(digits):
    model = orthogonal_mlp(activation="tanh")
    batches = sp.full_set(digits)
    found = sp.connection_scores(model, batches, "random_labels", generator=seeded(4))
    order = torch.randperm(len(digits.train_y), generator=seeded(4))
    twin = sp.connection_scores(model, sp.full_set(digits.replace(train_y=digits.train_y[order])))
    assert all(torch.equal(found[name], twin[name]) for name in twin)


def test_unknown_scorings_are_refused(digits):
    for call in (sp.scoring_loss, lambda kind: sp.connection_scores(orthogonal_mlp(), [], kind)):
        with pytest.raises(ValueError, match="kind = 'labelz': expected one of labels"):
            call("labelz")
    with pytest.raises(ValueError, match="criterion = 'snip'"):
        sp.criterion_scores("snip", orthogonal_mlp(), [], seeded())


# ---------------------------------------------------------------- experiments


def test_runs_differ_only_in_what_their_case_says(digits):
    cases = [sp.Case("tanh", "orthogonal", variant) for variant in VARIANTS]
    options = {
        "seeds": [0], "sparsity": 0.9, "look_at": digits.train_x[:4], "isometry": {"steps": 20},
        "steps": 3, "batch_size": 50,
    }  # fmt: skip

    def make(activation):
        return sp.untrained_network("mlp", digits, activation=activation)

    runs = sp.train_cases(cases, digits, make, **options)
    assert [run.case for run in runs] == cases
    assert not runs[0].masks
    assert all(torch.equal(runs[1].masks[n], runs[3].masks[n]) for n in runs[1].masks)
    sigma = {run.case.variant: run.spectrum["mean"] for run in runs}
    assert sigma["pruned"] < 0.1 * sigma["isometry"]
    again = sp.train_cases(cases[1:2], digits, make, **options)
    assert again[0].loss == runs[1].loss
    with pytest.raises(ValueError, match="variant = 'repaired'"):
        repair(make("tanh"), {}, "repaired")


def test_spectra_are_taken_before_and_after_repair(digits):
    found = sp.spectra_by_sparsity(
        ["linear"], digits, lambda a: sp.untrained_network("mlp", digits, activation=a), sparsities=[0.0, 0.8],
        seeds=[0], look_at=digits.train_x[:2], isometry={"steps": 30},
    )  # fmt: skip
    assert [(s.criterion, s.sparsity) for s in found] == [(c, q) for c in sp.CRITERIA for q in (0.0, 0.8)]  # fmt: skip
    dense = [s for s in found if s.sparsity == 0]
    assert {s.before["mean"] for s in dense} == {s.after["mean"] for s in dense} == {dense[0].before["mean"]}  # fmt: skip
    sparse = [s for s in found if s.sparsity == 0.8]
    assert all(s.after["mean"] > 2 * s.before["mean"] for s in sparse)
    assert next(s for s in sparse if s.criterion == "random").after["mean"] > 0.5
    assert all(s.margin >= -1e-3 for s in found)


def grouped_network(activation):
    # the frozen layer has no mask and, wider than its fan-in, a floor above 0
    layers = [
        nn.Conv2d(1, 16, 2, 2),
        nn.Conv2d(16, 16, 1, groups=4),
        nn.Flatten(),
        nn.Linear(256, 10),
    ]
    layers[0].requires_grad_(False)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("groups", [None, {"1.weight": 4}])
def test_the_margin_is_that_of_the_layer_nearest_its_floor(digits, groups):
    make = grouped_network if groups else lambda a: sp.untrained_network("mlp", digits)
    found = sp.spectra_by_sparsity(
        ["linear"], digits, make, sparsities=[0.9], seeds=[0], look_at=digits.train_x[:1], isometry={"steps": 30}
    )  # fmt: skip
    model = make("linear")
    sp.init_weights(model, "orthogonal", generator=seeded())
    masks = global_topk_mask(magnitude_scores(prunable_parameters(model)), 0.9, warn=False)
    margins = []
    for name, residuals in sp.enforce_isometry(model, masks, steps=30).items():
        mask = masks.get(name, torch.ones_like(model.get_parameter(name), dtype=torch.bool))
        parts = mask.flatten(1).chunk((groups or {}).get(name, 1))
        floor = math.hypot(*[sp.residual_floor(part) for part in parts])
        margins.append(residuals[-1] - floor)
    assert next(s.margin for s in found if s.criterion == "magnitude") == pytest.approx(
        min(margins), abs=1e-5
    )
    assert max(margins) > min(margins) + 0.01
    assert min(margins) >= -1e-3


def test_the_notebook_refuses_bad_parameters_before_it_starts():
    path = chapters.find("signal_propagation")
    with pytest.raises(ValueError, match=r"depth = 2: .*inits = \['kaiming'\]"):
        chapters.validate(path, {"depth": 2, "inits": ["kaiming"]})


def test_the_notebook_runs_with_small_parameters(tmp_path):
    """Every code cell, with other activations, initialisers and the official isometry."""
    given = {
        "n_seeds": 1, "train_iterations": 2, "activations": ["relu"], "inits": ["he"], "sparsities": [0.0, 0.5],
        "n_jacobian_examples": 2, "isometry": "paper", "isometry_steps": 3, "scoring_losses": ["labels", "entropy"],
        "train_examples": 200, "device": "cpu",
    }  # fmt: skip
    code = tmp_path / "run.py"
    code.write_text(executor.script(chapters.find("signal_propagation"), given))
    environment = os.environ | {"COMPANION_RECORD": str(tmp_path / "record.part.json")}
    (tmp_path / "record.part.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, str(code)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "all came out as expected" in done.stdout


# ---------------------------------------------------------------- other layers, other precision


@pytest.mark.parametrize("kind", sp.INITS)
def test_slopes_and_scales_stay_and_gains_become_one(kind):
    model = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.PReLU(8), nn.Linear(8, 3))
    nn.init.constant_(model[1].weight, 5.0)
    sp.init_weights(model, kind, generator=seeded())
    assert (model[1].weight == 1).all()
    assert (model[2].weight == 0.25).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Conv2d(8, 8, 1)], ids=["dense", "1x1"])
def test_orthogonal_weights_of_16_bits_are_the_rounded_ones(layer, dtype):
    low = copy.deepcopy(layer).to(dtype)
    sp.init_weights(layer, "orthogonal", generator=seeded())
    sp.init_weights(low, "orthogonal", generator=seeded())
    assert torch.equal(low.weight, layer.weight.to(dtype))


@pytest.mark.parametrize(("groups", "size"), [(6, 3), (2, 3), (3, 1), (6, 1)])
def test_an_orthogonal_convolution_in_groups_keeps_the_norm_of_every_image(groups, size):
    layer = nn.Conv2d(
        6, 6, size, padding=size // 2, padding_mode="circular", groups=groups, bias=False
    ).double()
    sp.init_weights(layer, "orthogonal", generator=seeded())
    x = torch.randn(4, 6, 7, 7, generator=seeded(1), dtype=torch.float64)
    torch.testing.assert_close(layer(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["isometry", "rescaled"])
def test_weights_of_16_bits_are_repaired_in_32(dtype, variant):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.normal_(model[0].weight, generator=seeded(3))
    nn.init.normal_(model[1].weight, generator=seeded(4))
    masks = {f"{i}.weight": torch.rand(8, 8, generator=seeded(i)) < 0.8 for i in range(2)}
    low = copy.deepcopy(model).to(dtype)
    wide = copy.deepcopy(low).float()
    for network in (low, wide):
        repair(network, masks, variant)
    for a, b in zip(low.parameters(), wide.parameters(), strict=True):
        assert torch.equal(a, b.to(dtype))


def test_spectra_and_isometry_are_taken_in_full_precision(monkeypatch, precision_switches):
    from companion.papers.signal_propagation import isometry, spectra

    seen = []
    plain_jacrev, plain_descend = spectra.jacrev, isometry._descend

    def look(function):
        def wrapped(*args, **options):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return function(*args, **options)

        return wrapped

    monkeypatch.setattr(spectra, "jacrev", look(plain_jacrev))
    monkeypatch.setattr(isometry, "_descend", look(plain_descend))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        sp.jacobian_singular_values(model, torch.randn(1, 4, generator=seeded()))
        sp.enforce_isometry(model, {})
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) >= 4
    assert set(seen) == {"ieee"}


def test_every_draw_of_a_comparison_follows_its_seed(monkeypatch):
    from companion.papers.signal_propagation import experiment

    data, seen = standardise(load_images("digits")), {}

    def spy(name):
        plain = getattr(experiment, name)

        def wrapped(*args, **options):
            if "generator" in options:
                seen.setdefault(name, []).append(options["generator"].initial_seed())
            seen.setdefault(name, []).extend(options.get("seeds", ()))
            return plain(*args, **options)

        monkeypatch.setattr(experiment, name, wrapped)

    for name in ("init_weights", "connection_scores", "train_together"):
        spy(name)

    def make(activation):
        return sp.untrained_network("mlp", data, activation=activation, depth=2, width=8)

    sp.train_cases(
        [sp.Case("tanh", "lecun", scoring="random_labels")], data, make, seeds=[0, 1, 0],
        sparsity=0.5, look_at=data.train_x[:1], steps=1,
    )  # fmt: skip
    for name, (first, second, third) in seen.items():
        assert first == third != second, name
    assert len({seeds[0] for seeds in seen.values()}) == 3

    chosen = []
    plain = experiment.random_scores

    def drawn(params, generator):
        chosen.append(generator.initial_seed())
        return plain(params, generator)

    monkeypatch.setattr(experiment, "random_scores", drawn)
    sp.spectra_by_sparsity(
        ["tanh"], data, make, sparsities=[0.5], seeds=[0, 1], look_at=data.train_x[:1],
        repaired=False,
    )  # fmt: skip
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(("groups", "out"), [(6, 6), (3, 12), (2, 2)])
def test_a_grouped_convolution_is_judged_and_repaired_as_its_separate_maps(groups, out):
    layer = nn.Conv2d(6, out, 3, groups=groups, bias=False).double()
    mask = torch.rand(layer.weight.shape, generator=seeded()) < 0.3
    apart = nn.Sequential(
        *(nn.Conv2d(6 // groups, out // groups, 3, bias=False) for _ in range(groups))
    ).double()
    masks = {f"{i}.weight": part for i, part in enumerate(mask.chunk(groups))}
    for one, part in zip(apart, layer.weight.detach().chunk(groups), strict=True):
        one.weight.data = part.clone()

    def rooted(values):
        return math.sqrt(sum(value**2 for value in values))

    spectra = sp.layer_singular_values(apart, masks).values()
    (found,) = sp.layer_singular_values(layer, {"weight": mask}).values()
    torch.testing.assert_close(found, torch.cat([*spectra]).sort(descending=True).values)
    assert sp.residual_floor(mask, groups) == pytest.approx(
        rooted(map(sp.residual_floor, masks.values()))
    )
    history = sp.enforce_isometry(apart, masks).values()
    (residuals,) = sp.enforce_isometry(layer, {"weight": mask}).values()
    assert residuals == pytest.approx([rooted(step) for step in zip(*history, strict=True)])
    assert sp.isometry_residual(layer.weight, mask, groups) == pytest.approx(residuals[-1])
    for one, part in zip(apart, layer.weight.detach().chunk(groups), strict=True):
        torch.testing.assert_close(one.weight.detach(), part)
    layer.weight.data *= 7
    sp.rescale_layers(layer, {})
    (values,) = sp.layer_singular_values(layer).values()
    assert values.square().mean().item() == pytest.approx(1)


def matrices_of(weight, groups, transposed):
    parts = weight.chunk(groups)
    return [(part.transpose(0, 1) if transposed else part).flatten(1) for part in parts]


@pytest.mark.parametrize(
    ("layer", "name", "groups"),
    [
        (nn.MultiheadAttention(8, 2), "in_proj_weight", 3),
        (nn.LSTM(6, 8), "weight_ih_l0", 4),
        (nn.LSTM(6, 8, proj_size=4), "weight_hr_l0", 1),
        (nn.GRU(6, 8, bidirectional=True), "weight_hh_l0_reverse", 3),
        (nn.RNN(6, 8), "weight_hh_l0", 1),
        (nn.LSTMCell(6, 8), "weight_hh", 4),
        (nn.GRUCell(6, 8), "weight_ih", 3),
        (nn.RNNCell(6, 8), "weight_ih", 1),
        (nn.ConvTranspose2d(8, 4, 1), "weight", 1),
        (nn.ConvTranspose2d(4, 8, 3), "weight", 1),
        (nn.ConvTranspose1d(8, 4, 2, groups=2), "weight", 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
@pytest.mark.parametrize("masked", [False, True])
def test_what_a_layer_packs_or_transposes_is_judged_and_repaired_as_what_it_computes(
    layer, name, groups, masked
):
    model, transposed = copy.deepcopy(layer).double(), "ConvT" in type(layer).__name__
    weight = model.get_parameter(name)
    mask = torch.rand(weight.shape, generator=seeded()) < (0.5 if masked else 2)
    kernels = matrices_of(weight.detach(), groups, transposed)
    chunks = matrices_of(mask, groups, transposed)
    apart = nn.Sequential(*(nn.Linear(*k.shape[::-1], bias=False) for k in kernels)).double()
    for one, kernel in zip(apart, kernels, strict=True):
        one.weight.data = kernel.clone()
    masks = {f"{i}.weight": chunk for i, chunk in enumerate(chunks)}

    found = sp.layer_singular_values(model, {name: mask})[name]
    expected = torch.cat([*sp.layer_singular_values(apart, masks).values()])
    torch.testing.assert_close(found, expected.sort(descending=True).values)
    residuals = sp.enforce_isometry(model, {name: mask})[name]
    steps = zip(*sp.enforce_isometry(apart, masks).values(), strict=True)
    assert residuals[0] == pytest.approx(math.hypot(*next(steps)))
    assert residuals[-1] == pytest.approx(math.hypot(*list(steps)[-1]), abs=1e-6)
    options = {"transposed": transposed}
    assert sp.isometry_residual(weight, mask, groups, **options) == pytest.approx(
        residuals[-1], abs=1e-6
    )
    repaired = matrices_of(weight.detach(), groups, transposed)
    for one, kernel in zip(apart, repaired, strict=True):
        torch.testing.assert_close(one.weight.detach(), kernel, rtol=1e-5, atol=1e-6)
    floors = [sp.residual_floor(chunk) for chunk in chunks]
    assert sp.residual_floor(mask, groups, **options) == pytest.approx(math.hypot(*floors))
    sp.rescale_layers(model, {name: mask})
    values = sp.layer_singular_values(model)[name]
    assert values.square().mean().item() == pytest.approx(1)


def test_a_repaired_transposed_convolution_of_one_pixel_keeps_norms_as_its_matrix_does():
    model = nn.ConvTranspose2d(8, 4, 1, bias=False)
    assert sp.enforce_isometry(model, {})["weight"][-1] < 1e-4
    values = sp.jacobian_singular_values(model, torch.zeros(1, 8, 1, 1))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=1e-4, atol=1e-4)


def test_no_masks_are_none_or_an_empty_dictionary():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    other = copy.deepcopy(model)
    assert sp.enforce_isometry(model, None) == sp.enforce_isometry(other, {})
    for network in (model, other):
        network[0].weight.data *= 3
    sp.rescale_layers(model)
    sp.rescale_layers(other, {})
    assert torch.equal(model[0].weight, other[0].weight)


def test_isometric_depthwise_convolutions_stay_as_they_are():
    model = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False, padding_mode="circular")
    sp.init_weights(model, "orthogonal", generator=seeded())
    before = model.weight.detach().clone()
    assert sp.enforce_isometry(model, {})["weight"] == pytest.approx([0.0], abs=1e-5)
    sp.rescale_layers(model, {})
    torch.testing.assert_close(model.weight.detach(), before)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: sp.init_weights(model, "orthogonal"),
        lambda model: sp.enforce_isometry(model, {}),
        lambda model: sp.rescale_layers(model, {}),
        sp.layer_singular_values,
    ],
)
@pytest.mark.parametrize("normed", ["parametrizations.weight_norm", "weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the older one
def test_weights_that_are_no_parameter_are_refused_before_anything_changes(use, normed):
    make = (
        nn.utils.weight_norm if normed == "weight_norm" else nn.utils.parametrizations.weight_norm
    )
    model = nn.Sequential(nn.Linear(4, 4), make(nn.Linear(4, 4)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="layer '1': its weight is computed from several"):
        use(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


class Times(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


@pytest.mark.parametrize(
    "use",
    [
        lambda model, masks: sp.enforce_isometry(model, masks),
        lambda model, masks: sp.rescale_layers(model, masks),
        lambda model, masks: sp.layer_singular_values(model, masks),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["prune", "parametrization", "spectral_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the older spectral_norm
def test_weights_that_are_computed_from_one_parameter_are_refused_too(use, masked, kind):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    mask = torch.rand(4, 4, generator=seeded()) < 0.5
    name, undo = "1.weight_orig", f"utils.{kind}.remove"
    if kind == "prune":
        to_torch_prune(model, {"1.weight": mask})
    elif kind == "spectral_norm":
        nn.utils.spectral_norm(model[1])
        undo = "utils.remove_spectral_norm"
    else:
        nn.utils.parametrize.register_parametrization(model[1], "weight", Times(mask))
        name, undo = "1.parametrizations.weight.original", "parametrize.remove_parametrizations"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^layer '1': its weight is computed .*{undo}\(layer"):
        use(model, {name: mask} if masked else {})
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_of_torch_prune_is_drawn_anew_and_has_jacobians_of_its_own_masks_only():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    mask = torch.rand(4, 4, generator=seeded()) < 0.5
    plain, x = copy.deepcopy(model), torch.randn(2, 4, generator=seeded())
    to_torch_prune(model, {"0.weight": mask})
    for network in (model, plain):
        sp.init_weights(network, "lecun", generator=seeded())
    expected = sp.jacobian_singular_values(plain, x, masks={"0.weight": mask})
    torch.testing.assert_close(sp.jacobian_singular_values(model, x), expected)
    with pytest.raises(ValueError, match=r"layer '0': its weight .*utils\.prune\.remove"):
        sp.jacobian_singular_values(model, x, masks={"2.weight": torch.ones(3, 4).bool()})


def test_a_network_in_which_examples_depend_on_each_other_has_no_jacobian():
    norm = nn.BatchNorm1d(16, track_running_stats=False)
    model = nn.Sequential(nn.Linear(8, 16), norm, nn.Tanh(), nn.Linear(16, 3))
    with pytest.raises(ValueError, match="model: '1' tracks no statistics"):
        sp.jacobian_singular_values(model, torch.randn(3, 8, generator=seeded()))


def test_more_bad_input_is_named():
    model = nn.Linear(4, 3)
    for call, told in (
        (lambda: sp.structural_rank(torch.ones(3).bool()), r"mask: shape \(3,\)"),
        (lambda: sp.enforce_isometry(model, {}, steps=1.5), r"steps = 1\.5"),
        (lambda: sp.enforce_isometry(model, {"weight": torch.ones(3, 4)}), "masks: 'weight' is torch"),
        (lambda: jacobian(model, torch.ones(1, 4), dtype=torch.int64), "dtype = torch.int64"),
        (lambda: sp.connection_scores(model, []), "batches: no example"),
        (lambda: sp.structural_rank(torch.ones(3, 3)), r"mask: torch\.float32, expected a boolean"),
        (lambda: sp.structural_rank([[True]]), "mask: list, expected a boolean"),
        (lambda: sp.structural_rank(torch.ones(3, 3).bool(), 2), "groups = 2: expected a divisor of the 3"),
        (lambda: sp.isometry_residual(torch.eye(3), groups=0), "groups = 0"),
        (lambda: sp.isometry_residual(torch.ones(3)), r"weight: torch\.float32 of shape \(3,\)"),
        (lambda: sp.isometry_residual(torch.eye(3).long()), r"weight: torch\.int64 of shape \(3, 3\)"),
        (lambda: sp.isometry_residual(torch.eye(3), torch.ones(3, 3)), r"mask: torch\.float32"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            call()


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Conv2d(1, 2, 3, padding=1), (3, 1, 4, 4)), (nn.Linear(4, 4), (2, 5, 4))],
)
def test_outputs_of_several_axes_count_one_by_one(model, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    whole = torch.autograd.functional.jacobian(lambda v: model(v[None]).flatten(), x[1])
    expected = torch.linalg.svdvals(whole.flatten(1).double())
    found = sp.jacobian_singular_values(model, x)[1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_parameters_has_a_jacobian():
    assert sp.jacobian_singular_values(nn.Flatten(), torch.zeros(2, 3)).tolist() == [[1.0] * 3] * 2


def test_a_cell_of_ones_own_kind_has_the_gates_of_its_base():
    class Own(nn.LSTMCell):
        pass

    cell = Own(4, 4, dtype=torch.float64)
    assert sp.enforce_isometry(cell)["weight_ih"][-1] < 1e-6


def test_masks_may_lie_beside_a_weight_that_torch_has_pruned():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    to_torch_prune(model, {"0.weight": torch.rand(4, 4) > 0.2})
    full = {"1.weight": torch.ones(4, 4, dtype=torch.bool)}
    x = torch.rand(2, 4)
    found = sp.jacobian_singular_values(model, x, masks=full)
    torch.testing.assert_close(found, sp.jacobian_singular_values(model, x))
