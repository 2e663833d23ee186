"""Counts, shapes and initial weights of the shared networks."""

import math

import pytest
import torch
from torch import nn

from companion.models import (
    alexnet,
    lenet_5_caffe,
    lenet_300_100,
    mlp,
    parameter_counts,
    recurrent,
    truncated_variance_scaling_,
    vgg,
    wide_resnet,
)
from companion.models.costs import forward_macs
from companion.models.initialisers import TRUNCATED_STD

CIFAR, MNIST = (3, 32, 32), (1, 28, 28)
# (make, input, weights, biases) as the official code counts them; see also the recurrent test
COUNTED = {
    "lenet-300-100": (lenet_300_100, MNIST, 266_200, 410),
    "lenet-5-caffe": (lenet_5_caffe, MNIST, 430_500, 580),
    "alexnet-s": (lambda: alexnet("s"), CIFAR, 5_066_784, 3_434),
    "alexnet-b": (lambda: alexnet("b"), CIFAR, 8_484_896, 5_482),
    "vgg-c": (lambda: vgg("C"), CIFAR, 10_521_280, 5_258),
    "vgg-d": (lambda: vgg("D"), CIFAR, 15_239_872, 5_258),
    "vgg-like": (lambda: vgg("like"), CIFAR, 14_977_728, 4_746),
    "wrn-16-8": (lambda: wide_resnet(16, 8), CIFAR, 10_954_160, 4_506),
    "wrn-16-10": (lambda: wide_resnet(16, 10), CIFAR, 17_107_632, 5_626),
    "wrn-22-8": (lambda: wide_resnet(22, 8), CIFAR, 17_147_312, 6_298),
}


@pytest.mark.parametrize("name", COUNTED)
def test_weights_biases_and_output_shape(name):
    make, shape, weights, biases = COUNTED[name]
    with torch.device("meta"):
        model = make()
        outputs = model(torch.empty(2, *shape))
    assert parameter_counts(model) == (weights, biases)
    assert outputs.shape == (2, 10)


@pytest.mark.parametrize("name", COUNTED)
def test_a_batch_of_one_passes_in_inference_mode(name):
    make, shape, *_ = COUNTED[name]
    with torch.device("meta"):
        assert make().eval()(torch.empty(1, *shape)).shape == (1, 10)


@pytest.mark.parametrize(
    ("cell", "gates", "hidden", "thousands"),
    [("lstm", 4, 128, 137), ("lstm", 4, 256, 535), ("gru", 3, 128, 104), ("gru", 3, 256, 404)],
)
def test_recurrent_nets_count_as_the_paper_says_with_one_bias_a_cell(
    cell, gates, hidden, thousands
):
    weights, biases = parameter_counts(recurrent(cell, hidden))
    second = gates * hidden  # PyTorch's second bias vector
    assert weights == 28 * hidden + gates * hidden * 2 * hidden + hidden * 10
    assert biases == hidden + 2 * second + 10
    assert round((weights + biases - second) / 1000) == thousands


def test_recurrent_nets_read_rows_in_order():
    model = recurrent("gru", 8)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert model(x).shape == (2, 10)
    assert not torch.allclose(model(x), model(x.flip(2)))


def test_lenet_5_has_no_activation_after_its_convolutions():
    model = lenet_5_caffe()
    kinds = [type(m).__name__ for m in model]
    assert kinds == ["Conv2d", "MaxPool2d", "Conv2d", "MaxPool2d", "Flatten", "Linear", "ReLU", "Linear"]  # fmt: skip
    assert model[5].in_features == 800


def test_vgg_c_has_small_kernels_in_convolutions_7_10_and_13():
    with torch.device("meta"):
        sizes = [m.kernel_size[0] for m in vgg("C") if isinstance(m, nn.Conv2d)]
    assert [number for number, size in enumerate(sizes, 1) if size == 1] == [7, 10, 13]
    assert len(sizes) == 13


def test_nets_take_other_sizes():
    assert lenet_300_100(64, classes=7)(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert lenet_5_caffe(3, 16)(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    assert lenet_5_caffe(3, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_dense_nets_have_the_widths_and_the_activation_asked_for():
    model = mlp(12, (7, 5), 4, activation="tanh")
    assert [m.out_features for m in model if isinstance(m, nn.Linear)] == [7, 5, 4]
    assert [type(m).__name__ for m in model[2::2]] == ["Tanh", "Tanh"]
    assert model(torch.zeros(2, 3, 2, 2)).shape == (2, 4)
    # without an activation the net is linear
    line = mlp(6, (5,), 3, activation="linear")
    a, b = torch.randn(2, 6), torch.randn(2, 6)
    torch.testing.assert_close(line((a + b) / 2), (line(a) + line(b)) / 2)
    assert len(mlp(6, (), 3)) == 2


def test_unknown_variants_and_sizes_raise():
    for make, text in [
        (lambda: vgg("E"), "variant = 'E'"),
        (lambda: alexnet("m"), "variant = 'm'"),
        (lambda: mlp(2, (2,), activation="gelu"), "activation = 'gelu'"),
        (lambda: recurrent("rnn"), "cell = 'rnn'"),
        (lambda: wide_resnet(17), "depth = 17"),
        (lambda: wide_resnet(4), "depth = 4"),
        (lambda: lenet_5_caffe(image_size=15), "image_size = 15"),
    ]:
        with pytest.raises(ValueError, match=text):
            make()


def test_a_residual_block_without_convolutions_is_its_shortcut():
    model = wide_resnet(10, 1)
    blocks = [m for m in model if hasattr(m, "conv2")]
    assert len(blocks) == 3
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        blocks[0].conv2.weight.zero_()
        blocks[0].conv2.bias.zero_()
        assert blocks[0].shortcut is None
        assert torch.equal(blocks[0].eval()(x), x)
        assert blocks[1](x).shape == (2, 32, 4, 4)


def test_batch_normalisation_uses_the_papers_constants():
    norms = [m for m in vgg("D").modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


# ---------------------------------------------------------------- initial weights


def test_the_truncated_deviation_is_its_closed_form():
    phi, mass = math.exp(-2.0) / math.sqrt(2 * math.pi), math.erf(math.sqrt(2.0))
    assert math.sqrt(1 - 4 * phi / mass) == pytest.approx(TRUNCATED_STD, rel=1e-12)


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(400, 500), 400),
        (nn.Conv2d(16, 200, 5), 400),
        (nn.Conv2d(16, 500, 5, groups=4), 100),
        (nn.LSTM(100, 300), 100),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_weights_have_variance_scale_over_fan_in_and_stay_within_two_deviations(
    layer, fan_in, scale
):
    truncated_variance_scaling_(layer, scale=scale, generator=torch.Generator().manual_seed(1))
    weight = next(p for name, p in layer.named_parameters() if name.startswith("weight"))
    wanted = math.sqrt(scale / fan_in)
    bound = 2 * wanted / TRUNCATED_STD
    n = weight.numel()
    # the sample deviation of n such draws varies by less than 1 / sqrt(2 n); allow four of it
    assert weight.std().item() == pytest.approx(wanted, rel=4 / math.sqrt(2 * n))
    assert abs(weight.mean().item()) < 4 * wanted / math.sqrt(n)
    assert 0.99 * bound < weight.abs().max().item() <= bound * (1 + 1e-6)
    assert all((p == 0).all() for name, p in layer.named_parameters() if "bias" in name)


def test_the_initialiser_resets_normalisations_with_and_without_offset():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4, bias=False))
    for p in model.parameters():
        nn.init.constant_(p, 5.0)
    truncated_variance_scaling_(model)
    assert (model[1].weight == 1).all()
    assert (model[1].bias == 0).all()
    assert (model[2].weight == 1).all()


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((4,), 1e-4))


def test_the_initialiser_leaves_slopes_and_layer_scales_and_resets_gains_and_statistics():
    frozen_bn = pytest.importorskip("torchvision").ops.FrozenBatchNorm2d
    model = nn.Sequential(
        nn.Linear(4, 4), nn.RMSNorm(4), nn.PReLU(4), LayerScale(), nn.BatchNorm1d(4), frozen_bn(4)
    )
    for norm in (model[1], model[4], model[5]):
        for tensor in norm.state_dict().values():
            tensor.fill_(5)
    truncated_variance_scaling_(model, generator=torch.Generator().manual_seed(0))
    assert (model[1].weight == 1).all()
    assert (model[2].weight == 0.25).all()
    assert (model[3].gamma == 1e-4).all()
    for norm in (model[4], model[5]):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()
    assert model[4].num_batches_tracked == 0
    assert model[0].weight.std() > 0.1


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_scale_that_is_not_positive_raises(scale):
    with pytest.raises(ValueError, match="scale = "):
        truncated_variance_scaling_(nn.Linear(3, 2), scale=scale)


def test_the_initialiser_is_determined_by_its_generator():
    def weights(seed):
        model = vgg("like")
        truncated_variance_scaling_(model, generator=torch.Generator().manual_seed(seed))
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(0)
    first = weights(3)
    torch.manual_seed(1)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))


def test_the_initialiser_keeps_gradients_on_and_the_dtype():
    layer = nn.Linear(3, 2).double()
    truncated_variance_scaling_(layer)
    assert layer.weight.requires_grad
    assert layer.weight.dtype is torch.float64


@pytest.mark.parametrize(("kind", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
def test_recurrent_networks_are_counted_step_by_step(kind, gates):
    model = kind(8, 16, batch_first=True)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert forward_macs(model, torch.rand(2, 5, 8)) == 2 * 5 * gates * 16 * (8 + 16)
    assert torch.backends.mkldnn.enabled


def test_a_model_made_in_inference_mode_is_counted_in_and_outside_it():
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
        assert forward_macs(model, torch.rand(1, 3, 8, 8)) == 36 * 4 * 27 + 144 * 2
    assert forward_macs(model, torch.rand(1, 3, 8, 8)) == 36 * 4 * 27 + 144 * 2
