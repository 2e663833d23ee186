"""Attention: exact counts, invariances, what pc cannot do, maps held to closed forms."""

import copy
import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from companion.data.clutter import cluttered_digits
from companion.papers import learn_to_pay_attention as att
from companion.papers.learn_to_pay_attention import attacks, attention, networks, training
from companion.progress import Progress
from companion.runs import chapters, executor
from companion.training import DivergenceError, error_rate

BOX = torch.zeros(1, 24, 24, dtype=torch.bool)
BOX[:, 4:12, 8:16] = True


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def images(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def small(compat="pc", **options):
    return seeded(lambda: att.small_att(compat=compat, width=12, **options))


def gradients(model, x, y):
    """The largest gradient of the query's branch and of everything."""
    model.zero_grad()
    cross_entropy(model(x), y).backward()
    size = [
        (n, p.grad.abs().max().item()) for n, p in model.named_parameters() if p.grad is not None
    ]
    branch = [g for n, g in size if n.startswith(("backbone.query", "projections"))]
    return max(branch, default=0.0), max(g for _, g in size)


def test_a_trunk_that_uses_one_layer_twice_keeps_all_its_stages():
    act, conv = nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1)
    trunk = nn.Sequential(nn.Conv2d(1, 6, 3), act, conv, act, nn.Conv2d(6, 8, 3), act, conv)
    gap = att.GapClassifier(trunk, "4")
    assert gap.linear.in_features == 8
    x = draw(2, 1, 12, 12)
    assert torch.equal(gap.features(x), trunk[:5](x))
    again = nn.Sequential(nn.Conv2d(1, 6, 3), act, conv, nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 1))
    again.append(nn.Conv2d(8, 6, 1)).append(conv)
    assert att.GapClassifier(again, "6", 3)(x).shape == (2, 3)
    pan = att.ProgressiveAttention(trunk, ["3", "5"])
    calls = []
    for stage in {conv, act}:
        stage.register_forward_hook(lambda module, *_: calls.append(module))
    logits, maps = pan.eval().attend(x)
    assert calls.count(act) == 3
    assert set(maps) == {"3", "5"}
    assert logits.shape == (2, 10)


def test_labels_may_be_of_any_integer_type_and_have_to_be_classes():
    x, y = images(4, 1, 24, 24), torch.tensor([0, 1, 2, 9])
    g = torch.Generator()
    settings = {"steps": 2, "lr": 0.01, "batch_size": 4}
    fitted = [
        att.fit(small(), x, labels, generator=g.manual_seed(0), **settings)
        for labels in (y, y.int(), y.to(torch.uint8))
    ]
    moved = [att.fgsm(fitted[0], x, labels, 0.1) for labels in (y, y.int(), y.to(torch.uint8))]
    for i in (1, 2):
        assert torch.equal(fitted[i](x), fitted[0](x))
        assert torch.equal(moved[i], moved[0])
    for wrong, told in (
        (torch.tensor([0, 1, 2, 10]), "y: 10, but the model tells 10 classes apart"),
        (torch.tensor([0, 1, 2, -1]), "y: -1, expected class indices of at least 0"),
        (torch.zeros(4), "y: torch.float32, expected integer class indices"),
        ([0, 1, 2, 9], "y: list, expected a tensor of labels"),
    ):
        with pytest.raises(ValueError, match=told):
            att.fit(small(), x, wrong, generator=g, **settings)
        with pytest.raises(ValueError, match=told):
            att.fgsm(fitted[0], x, wrong, 0.1)


# the module


@pytest.mark.parametrize("compat", attention.COMPATS)
@pytest.mark.parametrize("scale", attention.SCALES)
def test_weights_are_a_convex_combination(compat, scale):
    module = seeded(lambda: att.SpatialAttention(6, compat, scale))
    local, g = draw(3, 6, 5, 4), draw(3, 6, seed=1)
    pooled, a = module(local, g)
    assert a.shape == (3, 5, 4)
    assert (a >= 0).all()
    assert torch.allclose(a.sum((1, 2)), torch.ones(3), atol=1e-6)
    assert torch.allclose(pooled, (a[:, None] * local).sum((2, 3)), atol=1e-6)
    low, high = local.amin((2, 3)), local.amax((2, 3))
    assert ((low <= pooled + 1e-6) & (pooled <= high + 1e-6)).all()


def test_parametrised_compatibility_with_u_zero_is_average_pooling():
    module = att.SpatialAttention(6)
    nn.init.zeros_(module.u.weight)
    pooled, _ = module(draw(3, 6, 5, 4), draw(3, 6, seed=1))
    assert torch.allclose(pooled, draw(3, 6, 5, 4).mean((2, 3)), atol=1e-6)
    assert torch.allclose(att.SpatialAttention(6, "mean")(draw(3, 6, 5, 4), pooled)[0], pooled)


@pytest.mark.parametrize("compat", attention.COMPATS)
def test_constant_features_give_uniform_attention(compat):
    module = seeded(lambda: att.SpatialAttention(6, compat))
    a = module(draw(3, 6, 1, 1).expand(3, 6, 5, 4), draw(3, 6, seed=1))[1]
    assert torch.allclose(a, torch.full_like(a, 1 / 20), atol=1e-7)


@pytest.mark.parametrize("compat", attention.COMPATS)
def test_attention_moves_with_the_places(compat):
    module = seeded(lambda: att.SpatialAttention(6, compat)).double()
    local, g = draw(2, 6, 3, 4, dtype=torch.float64), draw(2, 6, seed=1, dtype=torch.float64)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    moved = local.flatten(2)[:, :, order].view_as(local)
    pooled, a = module(local, g)
    pooled_moved, a_moved = module(moved, g)
    assert torch.allclose(a.flatten(1)[:, order].view_as(a), a_moved, atol=1e-12)
    assert torch.allclose(pooled, pooled_moved, atol=1e-12)


def test_compatibilities_are_the_formulas():
    local, g = draw(2, 6, 3, 4), draw(2, 6, seed=1)
    both = local + g[:, :, None, None]
    pc = seeded(lambda: att.SpatialAttention(6))
    u, bias = pc.u.weight.view(6), pc.u.bias
    expected = torch.einsum("c,bchw->bhw", u, both) + bias
    assert torch.allclose(pc.logits(local, g), expected, atol=1e-5)
    dp = (local * g[:, :, None, None]).sum(1)
    assert torch.allclose(att.SpatialAttention(6, "dp", "none").logits(local, g), dp, atol=1e-5)
    root = att.SpatialAttention(6, "dp", "sqrt").logits(local, g)
    assert torch.allclose(root, dp / math.sqrt(6), atol=1e-5)
    tanh = seeded(lambda: att.SpatialAttention(6, "tanh"))
    mixed = torch.einsum("dc,bchw->bdhw", tanh.local.weight[:, :, 0, 0], local)
    mixed = torch.tanh(mixed + (g @ tanh.query.weight.T)[:, :, None, None])
    expected = torch.einsum("c,bchw->bhw", tanh.u.weight.view(6), mixed) + tanh.u.bias
    assert torch.allclose(tanh.logits(local, g), expected, atol=1e-5)


@pytest.mark.parametrize("compat", attention.COMPATS)
def test_gradients_are_right(compat):
    module = seeded(lambda: att.SpatialAttention(3, compat)).double()
    local = draw(2, 3, 2, 3, dtype=torch.float64).requires_grad_()
    g = draw(2, 3, seed=1, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(module, (local, g))


def test_dot_product_queries_learn_along_the_covariance():
    module = att.SpatialAttention(3, "dp", "none")
    local, g = draw(1, 3, 2, 4, dtype=torch.float64), draw(1, 3, seed=1, dtype=torch.float64)
    g.requires_grad_()
    pooled, a = module(local, g)
    slope = draw(3, seed=2, dtype=torch.float64)
    (found,) = torch.autograd.grad((pooled[0] * slope).sum(), g)
    points, weights = local[0].flatten(1), a.flatten()
    centred = points - points @ weights[:, None]
    covariance = (centred * weights) @ centred.T
    assert torch.allclose(found[0], covariance @ slope, rtol=1e-12)


def test_scale_keeps_attention_from_saturating_as_features_grow_many():
    def top(dim, scale):
        module = att.SpatialAttention(dim, "dp", scale)
        return module(draw(200, dim, 4, 4), draw(200, dim, seed=1))[1].amax((1, 2)).mean().item()

    assert top(1024, "none") > 0.9
    assert abs(top(1024, "sqrt") - top(64, "sqrt")) < 0.05
    assert top(1024, "sqrt") < 0.4
    logits = att.SpatialAttention(1024, "dp", "none").logits(
        draw(200, 1024, 4, 4), draw(200, 1024, seed=1)
    )
    assert logits.var().item() == pytest.approx(1024, rel=0.1)  # 200 queries: 5 % is one deviation


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((4, "dot"), "compat"), ((4, "dp", "root"), "scale")],
)
def test_bad_settings_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"{name} = .*expected one of"):
        att.SpatialAttention(*arguments)


def test_wrong_shapes_are_named():
    module = att.SpatialAttention(4)
    with pytest.raises(ValueError, match=r"local = \(2, 3, 5, 5\): expected \(batch, 4"):
        module(draw(2, 3, 5, 5), draw(2, 4))
    with pytest.raises(ValueError, match=r"g = \(2, 3\): expected \(2, 4\)"):
        module(draw(2, 4, 5, 5), draw(2, 3))


# heads


def test_independent_heads_average_probabilities():
    head = seeded(lambda: att.AttentionHead([5, 3], 4, "indep", 0.0)).eval()
    pooled = [draw(6, 5), draw(6, 3, seed=1)]
    out = head(pooled)
    assert torch.allclose(out.exp().sum(1), torch.ones(6), atol=1e-6)
    each = [
        linear(norm(g).relu()).softmax(1)
        for linear, norm, g in zip(head.linear, head.norms, pooled, strict=True)
    ]
    assert torch.allclose(out.exp(), (each[0] + each[1]) / 2, atol=1e-6)


def test_the_global_vector_never_reaches_the_classifier():
    model = small("mean").eval()
    x = images(3, 1, 24, 24)
    out, _ = model.attend(x)
    other, _ = model.attend(x, 100 * draw(3, 12))
    assert torch.equal(out, other)


# pc does not depend on g


def test_pc_gives_the_global_branch_no_gradient_and_the_others_do():
    x, y = images(16, 1, 24, 24), torch.arange(16) % 10
    for compat, options in (("pc", {}), ("mean", {})):
        branch, largest = gradients(small(compat, **options), x, y)
        assert branch < 1e-6 * largest
    for compat in ("dp", "tanh"):
        branch, largest = gradients(small(compat), x, y)
        assert branch > 1e-3 * largest
    branch, largest = gradients(small("pc", head="indep"), x, y)
    assert branch < 1e-6 * largest


def test_the_gradient_of_pc_is_rounding_error_and_shrinks_with_precision():
    x, y = images(16, 1, 24, 24), torch.arange(16) % 10
    branch, largest = gradients(small("pc").double(), x.double(), y)
    assert branch < 1e-14 * largest


def test_exchanging_queries_moves_no_map_of_pc():
    x = images(8, 1, 24, 24)
    for compat, moves in (("pc", False), ("mean", False), ("dp", True), ("tanh", True)):
        model = small(compat)
        own = att.attention_maps(model, x)
        g = att.global_vectors(model, x)
        asked = att.attention_maps(model, x, query=draw(8, 12))
        same = att.attention_maps(model, x, query=g)
        for level in own:
            gap = (own[level] - asked[level]).abs().max()
            assert (gap > 1e-6) == moves
            assert torch.allclose(own[level], same[level])


def test_the_bias_of_u_changes_nothing():
    model = small("pc")
    x = images(4, 1, 24, 24)
    before = att.attention_maps(model, x)
    for module in model.attention:
        nn.init.constant_(module.u.bias, 3.0)
    for level, a in att.attention_maps(model, x).items():
        assert torch.allclose(a, before[level], atol=1e-6)


# networks, counted


def test_vgg_att_has_the_stated_parameters_and_a_quarter_of_them_is_inert():
    model = att.vgg_att((2, 3), 10, "pc", "concat")
    assert networks.parameter_count(model) == 19_720_780
    assert networks.parameter_count(model.backbone.query) == 4_984_320
    assert len([m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]) == 15
    features = [model.backbone.level1, model.backbone.level2, model.backbone.level3]
    rates = [m.p for part in features for m in part.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.3, *[0.4] * 7]  # after the first, after the others but the last of a block


def test_multiply_adds_are_as_stated_and_attention_is_a_trifle():
    with torch.device("meta"):
        plain = networks.vgg()
        features = networks.vgg_trunk()
    model = att.vgg_att()
    total = networks.multiply_adds(model, (3, 32, 32))
    assert round(total / 1e9, 3) == 3.786 + 0.001
    assert round(networks.multiply_adds(plain, (3, 32, 32)) / 1e9, 3) == 0.313
    head = 1024 * 10
    trifle = total - head - networks.multiply_adds(features, (3, 32, 32))
    shared = 2 * 512  # u . g, once an image and level
    assert trifle == 2 * 16**2 * 512 + 2 * 8**2 * 512 + shared
    assert trifle < 0.0002 * total


def test_levels_of_vgg_att_lie_where_they_should():
    for match, dims in (("project", (256, 512, 512)), ("lift", (512, 512, 512))):
        model = att.vgg_att((1, 2, 3), match=match).eval()
        logits, maps = model.attend(images(2, 3, 32, 32))
        assert logits.shape == (2, 10)
        assert [m.shape[1] for m in maps.values()] == [32, 16, 8]
        assert tuple(module.dim for module in model.attention) == dims
    down = att.vgg_att((1, 2)).projections[0]
    assert [type(m) for m in down] == [nn.BatchNorm1d, nn.ReLU, nn.Dropout, nn.Linear]


def test_rn_att_is_a_pre_activation_resnet_164():
    model = att.resnet_att().eval()
    deep = model.backbone[:4]
    convolutions = [n for n, m in deep.named_modules() if isinstance(m, nn.Conv2d)]
    assert len([n for n in convolutions if "shortcut" not in n]) == 163  # and one linear layer
    logits, maps = model.attend(images(1, 3, 32, 32))
    assert logits.shape == (1, 10)
    assert [m.shape[1] for m in maps.values()] == [16, 8]
    assert model.head.linear[0].in_features == 384
    assert [type(p) for p in model.projections] == [nn.Linear, nn.Identity]
    assert all((part >= 0).all() for part in model.features(images(1, 3, 32, 32))[0])
    with pytest.raises(ValueError, match="depth = 100"):
        networks.resnet_trunk(depth=100)


@pytest.mark.parametrize("build", [networks.small_trunk, networks.vgg_trunk])
def test_receptive_fields_are_what_a_gradient_reaches(build):
    trunk = build(1).double()
    for p in trunk.parameters():  # nothing is cut off by a ReLU, nothing cancels
        nn.init.constant_(p, 0.1)
    for pool in [m for m in trunk.modules() if isinstance(m, nn.MaxPool2d)]:
        pool.forward = lambda x: nn.functional.avg_pool2d(x, 2)  # reaches all that maxima may
    x, sides = torch.ones(1, 1, 96, 96, dtype=torch.float64, requires_grad=True), []
    features = x
    for stage in trunk.eval()[:-1]:
        features = stage(features)
        middle = features.shape[2] // 2
        (slope,) = torch.autograd.grad(features[0, 0, middle, middle], x, retain_graph=True)
        sides.append(int((slope[0, 0].abs().sum(0) > 0).sum()))
    assert networks.receptive_fields(trunk) == sides


@pytest.mark.parametrize(
    "build",
    [
        lambda: att.small_att(width=12),
        lambda: att.small_att(width=12, compat="dp", head="indep"),
        lambda: att.vgg_att((1, 2, 3), in_channels=1),
        lambda: att.resnet_att(depth=11, in_channels=1, compat="tanh"),
        lambda: att.ProgressiveAttention(networks.small_trunk(width=12), ["level1", "level2"]),
        lambda: att.GapClassifier(networks.small_trunk(width=12), "level2"),
        lambda: networks.PlainClassifier(networks.small_trunk(width=12)),
    ],
)
def test_one_image_and_oblong_images_work(build):
    model = build().eval()
    for shape in ((1, 1, 32, 32), (1, 1, 24, 40), (2, 1, 40, 16)):
        assert model(images(*shape)).shape == (shape[0], 10)


def test_a_batch_of_one_cannot_train_and_it_says_why():
    with pytest.raises(ValueError, match=r"batch of 1 cannot train.*at least 2"):
        small().train()(images(1, 1, 24, 24))
    # taken alone or among others, an image gets the same in inference mode
    model, x = small().eval(), images(5, 1, 24, 24)
    assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-6)


@pytest.mark.parametrize("build", [att.vgg_att, att.small_att, att.resnet_att])
@pytest.mark.parametrize("levels", [(), (2, 2), (2, 9)])
def test_levels_that_do_not_exist_are_named(build, levels):
    with pytest.raises(ValueError, match=r"levels = .*expected some of"):
        build(levels)


def test_progressive_attention_gates_what_the_next_level_sees():
    model = seeded(
        lambda: att.ProgressiveAttention(networks.small_trunk(width=12), ["level1", "level2"])
    ).eval()
    x = images(3, 1, 24, 24)
    _, maps = model.attend(x)
    assert list(maps) == ["level1", "level2"]
    assert ((maps["level1"] > 0) & (maps["level1"] < 1)).all()
    assert torch.allclose(maps["level2"].sum((1, 2)), torch.ones(3), atol=1e-6)
    nn.init.constant_(model.gates["level1"].bias, -100.0)  # all gates shut
    closed, _ = model.attend(x)
    assert torch.allclose(closed, closed[:1].expand_as(closed), atol=1e-6)
    assert att.attention_maps(model, x).keys() == maps.keys()


# any backbone, by hooks


def test_torchvision_backbones_get_attention_at_named_layers():
    from torchvision.models import resnet18, vgg11_bn

    x = images(2, 3, 64, 48)
    deep = att.AttentionClassifier(resnet18(num_classes=32), ["layer2", "layer3"], 7, "dp")
    out, maps = deep.eval().attend(x)
    assert out.shape == (2, 7)
    assert {n: tuple(m.shape) for n, m in maps.items()} == {
        "layer2": (2, 8, 6),
        "layer3": (2, 4, 3),
    }
    with torch.device("meta"):
        wide = vgg11_bn(num_classes=512)
    wide = wide.to_empty(device="cpu")
    for p in wide.parameters():
        nn.init.constant_(p, 0.001)
    broad = att.AttentionClassifier(wide, ["features.20"], 7)
    assert broad.eval()(x).shape == (2, 7)
    assert isinstance(broad.projections[0], nn.Identity)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 32), (30, 41)])
def test_maps_that_seem_to_have_their_channels_last_warn_and_others_do_not(size):
    class ChannelsLast(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    example = torch.rand(2, 1, *size)
    for channels in (3, 8, 192):
        convolution = nn.Conv2d(1, channels, 4, 4, padding=2)
        backbone = nn.Sequential(convolution, nn.Flatten(), nn.LazyLinear(6))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = att.AttentionClassifier(backbone, ["0"], 2, example=example)
        assert model.attend(example)[1]["0"].shape == convolution(example)[:, 0].shape
    backbone = nn.Sequential(convolution, ChannelsLast(), nn.Flatten(), nn.LazyLinear(6))
    with pytest.warns(
        UserWarning, match=r"'1' puts out \(2, .*, 192\), which looks like channels"
    ):
        att.AttentionClassifier(backbone, ["1"], 2, example=example)


@pytest.mark.parametrize("match", ["project", "lift"])
@pytest.mark.parametrize("compat", ["pc", "dp"])
def test_what_is_added_has_the_backbones_dtype(match, compat):
    from torchvision.models import resnet18

    backbone = resnet18(num_classes=8).double()
    model = att.AttentionClassifier(backbone, ["layer2", "layer3"], 3, compat, match=match)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(torch.rand(2, 3, 64, 64).double()).dtype == torch.float64
    # a backbone without weights has no dtype to take
    bare = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plain = att.AttentionClassifier(bare, ["0"], 3, compat, match=match)
    assert {p.dtype for p in plain.parameters()} == {torch.float32}


def test_a_text_in_place_of_a_list_of_layers_is_refused():
    from torchvision.models import resnet18

    backbone = resnet18(num_classes=8)
    told = r"layers = 'layer2': expected a list of names, \['layer2'\]"
    with pytest.raises(ValueError, match=told):
        att.AttentionClassifier(backbone, "layer2", 3)
    with pytest.raises(ValueError, match=told), att.attention.captured(backbone, "layer2"):
        pass


def test_layers_that_cannot_be_attended_to_are_named():
    from torchvision.models import resnet18

    def build(layers, backbone=None):
        return att.AttentionClassifier(backbone or resnet18(num_classes=8), layers, 7)

    with pytest.raises(ValueError, match=r"no module 'layr3'; there is .*'layer3'"):
        build(["layr3"])
    with pytest.raises(ValueError, match=r"'fc' puts out \(1, 8\): attention needs maps"):
        build(["fc"])
    with pytest.raises(ValueError, match="'bn1' puts out is overwritten in place"):
        build(["bn1"])
    with pytest.raises(ValueError, match="expected at least one, none twice"):
        build(["layer3", "layer3"])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 4), nn.ReLU())
    with pytest.raises(ValueError, match=r"'2' puts out \(1, 4\): attention needs maps"):
        build(["2"], flat)
    maps_only = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(ValueError, match=r"backbone puts out \(1, 4, 62, 62\): expected a vector"):
        build(["1"], maps_only)
    unused = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    unused.forward = lambda x: unused[2](unused[1](x))
    with pytest.raises(ValueError, match="'0' puts out nothing: it was not called"):
        build(["0"], unused)


def test_hooks_are_gone_after_use_even_after_an_error():
    model = small()

    def hooks():
        return sum(len(m._forward_hooks) for m in model.modules())

    model.eval()(images(2, 1, 24, 24))
    assert hooks() == 0
    with att.captured(model.backbone, ["level1"]) as found:
        assert hooks() == 1
        model.backbone(images(2, 1, 24, 24))
    assert found["level1"].shape == (2, 12, 12, 12)
    with pytest.raises(RuntimeError):
        model(images(2, 5, 24, 24))  # five channels
    assert hooks() == 0


def test_a_module_called_twice_in_a_pass_is_no_level():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.active = nn.ReLU()  # one for both, as many networks have it

        def forward(self, x):
            return self.active(self.second(self.active(self.first(x)))).mean((2, 3))

    with pytest.raises(ValueError, match="layers: 'active' is called more than once"):
        att.AttentionClassifier(Twice(), ["active"], 5)
    backbone = Twice()
    with att.captured(backbone, ["second"]) as found:
        outputs = []
        for _ in range(2):  # two passes are no two calls in a pass
            backbone(images(2, 3, 8, 8))
            outputs.append(found["second"])
        with torch.no_grad():
            backbone.forward = lambda x: x  # the module is not called in this one
            backbone(images(2, 3, 8, 8))
        assert not found
    assert outputs[0].shape == (2, 4, 4, 4)
    assert outputs[0] is not outputs[1]


def test_compiled_or_not_the_maps_are_the_same():
    x = images(2, 1, 24, 24)
    for compiled in (
        lambda m: m.compile(backend="eager"),
        lambda m: m.backbone.compile(backend="eager"),
    ):
        torch._dynamo.reset()
        model = small().eval()
        logits, maps = model.attend(x)
        other = model.attend(x.flip(2))[0]
        compiled(model)
        assert torch.equal(model(x), logits)
        assert torch.equal(model(x.flip(2)), other)
        assert torch.equal(att.attention_maps(model, x)["level1"], maps["level1"])


def test_inference_is_deterministic_and_leaves_the_mode_alone():
    model = seeded(lambda: att.vgg_att(in_channels=1)).train()
    x = images(2, 1, 16, 16)
    first, second = att.attention_maps(model, x), att.attention_maps(model, x)
    assert all(torch.equal(first[level], second[level]) for level in first)
    assert model.training
    assert model.backbone.level1[3].training
    in_parts = att.attention_maps(model, x, batch_size=1)
    assert all(torch.allclose(first[level], in_parts[level], atol=1e-6) for level in first)


@pytest.mark.parametrize("compat", ["pc", "dp", "tanh"])
def test_half_precision_gives_the_same_maps(compat):
    model, x = small(compat), images(4, 1, 24, 24)
    full = att.attention_maps(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        half = att.attention_maps(model, x)
    for level in full:
        assert half[level].dtype == torch.float32
        assert torch.allclose(half[level].sum((1, 2)), torch.ones(4), atol=1e-6)
        assert (full[level] - half[level]).abs().max() < 1e-2
    assert not torch.equal(full["level2"], half["level2"])  # autocast was at work


# class activation maps


def gap():
    return seeded(lambda: att.GapClassifier(networks.small_trunk(width=12), "level2")).eval()


def test_class_activation_maps_add_up_to_the_logit():
    model, x = gap(), images(4, 1, 24, 24)
    logits = model(x)
    for classes in (None, torch.tensor([3, 1, 4, 1])):
        chosen = logits.argmax(1) if classes is None else classes
        total = att.cam_maps(model, x, classes, batch_size=3).mean((1, 2))
        expected = logits.gather(1, chosen[:, None])[:, 0] - model.linear.bias[chosen]
        assert torch.allclose(total, expected, atol=1e-5)


def test_class_activation_maps_are_captums_grad_cam():
    captum = pytest.importorskip("captum.attr")
    model, x, classes = gap(), images(4, 1, 24, 24), torch.tensor([3, 1, 4, 1])
    theirs = captum.LayerGradCam(model, model.features).attribute(x, classes)[:, 0]
    ours = att.cam_maps(model, x, classes)
    assert torch.allclose(ours, theirs * ours[0].numel(), atol=1e-5)  # its weights are means


# metrics


def one_hot(row, column):
    maps = torch.zeros(1, 24, 24)
    maps[:, row, column] = 1.0
    return maps


def test_metrics_on_one_hot_uniform_and_empty_maps():
    chance = 64 / 576
    for maps, value in (
        (one_hot(5, 9), 1.0),
        (one_hot(0, 0), 0.0),
        (torch.full((1, 24, 24), 1 / 576), chance),
        (torch.zeros(1, 24, 24), chance),
        (torch.full((1, 6, 6), -3.0), chance),
    ):
        assert att.pointing_game(maps, BOX).item() == pytest.approx(value)
        assert att.energy_in_box(maps, BOX).item() == pytest.approx(value)
    with pytest.raises(ValueError, match="expected finite"):
        att.energy_in_box(one_hot(0, 0) / 0, BOX)
    with pytest.raises(ValueError, match=r"expected \(images, h, w\)"):
        att.pointing_game(one_hot(0, 0)[0], BOX)


@pytest.mark.parametrize("side", [4, 6, 8, 15])
@pytest.mark.parametrize("value", [1.0, 0.3, -0.7])
def test_a_map_without_differences_marks_and_ranks_nothing(side, value):
    flat = torch.full((1, side, side), value / side**2)
    for size in ((24, 24), (25, 31)):
        wide = att.resized(flat, size)
        assert not wide.any()
        assert not any(att.binarised(wide, how).any() for how in ("otsu", "mean"))
    for maps in (flat, flat.double(), flat.bfloat16(), flat > 0):
        assert not att.binarised(maps, "mean").any()
    model = nn.Sequential(nn.Flatten(), nn.Linear(576, 10))
    curves = [
        att.perturbation_curve(model, images(3, 1, 24, 24), maps.expand(3, -1, -1), "deletion")
        for maps in (flat, torch.zeros_like(flat))
    ]
    assert torch.equal(*curves)


def test_pointing_shares_ties_and_energy_ignores_a_shift():
    two = one_hot(5, 9) + one_hot(0, 0)
    assert att.pointing_game(two, BOX).item() == 0.5
    maps = images(1, 24, 24)
    shifted = att.energy_in_box(7.0 + 3.0 * maps, BOX)
    assert att.energy_in_box(maps, BOX).item() == pytest.approx(shifted.item(), abs=1e-5)
    coarse = torch.zeros(1, 6, 6)
    coarse[0, 1, 2] = 1.0  # rows 4 to 7, columns 8 to 11: inside
    assert att.pointing_game(coarse, BOX).item() == 1.0


@pytest.mark.parametrize("side", [32, 56, 100, 112, 224])
def test_equal_peaks_share_the_point_whatever_the_rounding_of_resizing(side):
    maps, left = torch.zeros(2, 6, 6), torch.zeros(2, side, side, dtype=torch.bool)
    maps[0, 2, 1] = maps[0, 2, 4] = 0.7
    maps[1, 1:5, 1:5] = 0.3
    left[:, :, : side // 2] = True
    assert att.pointing_game(maps, left).tolist() == [0.5, 0.5]


def test_overlap_of_masks_by_hand():
    assert att.mask_iou(BOX, BOX).item() == 1.0
    assert att.mask_iou(BOX, ~BOX).item() == 0.0
    assert att.mask_iou(torch.zeros_like(BOX), torch.zeros_like(BOX)).item() == 0.0
    assert att.mask_iou(BOX, BOX.roll(4, 2)).item() == pytest.approx(32 / 96)
    with pytest.raises(ValueError, match="expected the truth's"):
        att.mask_iou(BOX[:, :5], BOX)


def brute_force_otsu(values):
    """The threshold that leaves the least variance within the two groups, by trying all."""
    spread = {}
    for level in np.unique(values)[:-1]:
        low, high = values[values <= level], values[values > level]
        spread[level] = len(low) * low.var() + len(high) * high.var()
    return min(spread, key=spread.get)


def test_otsu_splits_as_trying_every_threshold_does():
    maps = torch.cat([images(1, 12, 12), 0.3 * images(1, 12, 12, seed=1)])
    maps[:, 2:6, 3:9] += 1.5
    for values, level in zip(
        maps.double().numpy(), att.otsu_threshold(maps).tolist(), strict=True
    ):
        width = (values.max() - values.min()) / 256  # of a bin: the library's precision
        assert abs(level - brute_force_otsu(values)) <= width
    assert not att.binarised(torch.ones(1, 6, 6), "otsu").any()  # nothing stands out


def test_binarised_keeps_what_it_says():
    maps = images(3, 24, 24)
    area = att.binarised(maps, "area", area=64)
    assert area.sum((1, 2)).tolist() == [64] * 3
    assert (maps[area].min() >= maps[~area].max()) or (
        maps[0][area[0]].min() > maps[0][~area[0]].max()
    )
    assert att.binarised(
        torch.zeros(1, 4, 4), "area", area=3
    ).flatten().nonzero().flatten().tolist() == [0, 1, 2]
    assert torch.equal(att.binarised(maps, "mean"), maps > maps.mean((1, 2), keepdim=True))
    levels = (maps * 40 - 20).long()
    for how in ("otsu", "mean", "area"):
        assert torch.equal(att.binarised(levels, how), att.binarised(levels.double(), how))
    with pytest.raises(ValueError, match="how = 'ostu'"):
        att.binarised(maps, "ostu")


class OnePixel(nn.Module):
    """Class 1 if pixel (3, 5) is bright, else class 0, with certainty."""

    def forward(self, x):
        bright = 1000 * (x[:, 0, 3, 5] - 0.5)
        return torch.stack([-bright, bright], 1)


def test_perturbation_follows_the_pixel_that_matters():
    x = torch.zeros(2, 1, 10, 10)
    x[:, :, 3, 5] = 1.0
    right, wrong = torch.zeros(2, 10, 10), torch.ones(2, 10, 10)
    right[:, 3, 5], wrong[:, 3, 5] = 1.0, 0.0
    model = OnePixel()
    assert att.perturbation_curve(model, x, right, "deletion", parts=4).tolist() == [1, 0, 0, 0, 0]
    assert att.perturbation_curve(model, x, right, "insertion", parts=4).tolist() == [
        0,
        1,
        1,
        1,
        1,
    ]
    assert att.perturbation_curve(model, x, wrong, "deletion", parts=4).tolist() == [1, 1, 1, 1, 0]
    assert att.perturbation_curve(model, x, wrong, "insertion", parts=4).tolist() == [
        0,
        0,
        0,
        0,
        1,
    ]


# attacks


def test_fast_gradient_sign_is_exact_for_a_linear_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    x, y = 0.4 + 0.2 * images(3, 1, 4, 4), torch.tensor([0, 1, 0])
    moved = att.fgsm(model, x, y, 0.1)
    w = model[1].weight.detach()
    direction = torch.where(y[:, None] == 0, w[1] - w[0], w[0] - w[1]).sign().view_as(x)
    assert torch.allclose(moved, x + 0.1 * direction, atol=1e-6)
    assert torch.allclose(att.pgd(model, x, y, 0.1), moved, atol=1e-6)  # the same corner
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("scale", [1, 50, 200, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attacks_do_not_weaken_as_the_network_grows_certain(scale, dtype):
    # all logits times a number: no decision changes, nor may the attack
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    w = torch.tensor([[0.5, 0.5, 1, 1], [2, 0, 0, 0], [0, 2, 0, 0]], dtype=dtype)
    model[1].weight.data = scale * w
    x, y = torch.full((1, 1, 2, 2), 0.5, dtype=dtype), torch.tensor([0])
    # against w_0, towards the mean of w_1 and w_2, which are as likely by symmetry
    expected = x + 0.1 * ((w[1] + w[2]) / 2 - w[0]).sign().view_as(x)
    torch.testing.assert_close(att.fgsm(model, x, y, 0.1), expected)
    torch.testing.assert_close(att.pgd(model, x, y, 0.1), expected)


def test_one_gradient_serves_attacks_of_every_size(monkeypatch):
    model, x, y = small("dp"), images(3, 1, 24, 24), torch.arange(3)
    sizes = [0.0, 0.02, 0.1]
    alone = [att.fgsm(model, x, y, eps) for eps in sizes]
    calls, slope = [], attacks._slope
    monkeypatch.setattr(attacks, "_slope", lambda *a: calls.append(a) or slope(*a))
    together = attacks.fgsm_each(model, x, y, sizes)
    assert len(calls) == 1
    assert all(map(torch.equal, together, alone))
    assert torch.equal(together[2], att.pgd(model, x, y, 0.1, steps=1, step_size=0.1))
    assert attacks.fgsm_each(model, x, y, []) == []
    with pytest.raises(ValueError, match=r"eps = -0\.1"):
        attacks.fgsm_each(model, x, y, [0.1, -0.1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_find_their_gradient_where_gradients_are_off(mode):
    model, x, y = small("dp"), images(2, 1, 24, 24), torch.arange(2)
    for attack in (att.fgsm, att.pgd):
        expected = attack(model, x, y, 0.05)
        with mode():
            moved = attack(model, x.clone(), y.clone(), 0.05)  # tensors of this mode
            assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert torch.equal(moved, expected)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        of_a_leaf = attack(model, x.clone().requires_grad_(), y, 0.05)
        assert torch.equal(of_a_leaf, expected)
        assert not of_a_leaf.requires_grad


def test_attacks_stay_in_their_ball_and_in_the_image():
    model, x, y = small("dp").train(), images(6, 1, 24, 24), torch.arange(6)
    for attack in (att.fgsm, att.pgd):
        moved = attack(model, x, y, 0.05)
        assert (moved - x).abs().max() <= 0.05 + 1e-6
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert model.training
        model.eval()
        assert cross_entropy(model(moved), y) > cross_entropy(model(x), y)
        model.train()
    assert torch.equal(att.fgsm(model, x, y, 0.0), x)
    with pytest.raises(ValueError, match=r"eps = -0\.1"):
        att.fgsm(model, x, y, -0.1)


# training


def train_small(seed=0, **options):
    data = cluttered_digits(320, n_clutter=0, seed=0)
    model = seeded(lambda: att.small_att(width=12), seed)
    settings = {"steps": 80, "lr": 0.02, "batch_size": 32} | options
    generator = torch.Generator().manual_seed(seed)
    return att.fit(model, data.images, data.labels, generator=generator, **settings), data


def test_training_lowers_the_error():
    model, data = train_small()
    assert error_rate(model, data.images, data.labels) < 65  # chance: 90
    assert not model.training


def test_the_same_seed_trains_the_same_network():
    one, two, other = (list(train_small(s, steps=3)[0].parameters()) for s in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_paper_recipe_halves_its_rate_and_divergence_is_reported(monkeypatch):
    rates = []
    step = torch.optim.SGD.step

    def spy(self, *arguments, **named):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    train_small(recipe="sgd", lr=0.1, steps=5, halve_every=2, augment=training.flip)
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])
    data = cluttered_digits(64, seed=0)
    with pytest.raises(DivergenceError, match=r"lower lr = 0\.1"):
        att.fit(
            small(), data.images * math.nan, data.labels, steps=2, lr=0.1,
            generator=torch.Generator(),
        )  # fmt: skip
    for name, value in (("recipe", "adam"), ("amp", "fp16")):
        with pytest.raises(ValueError, match=f"{name} = '{value}'"):
            train_small(**{name: value})


def test_a_bar_is_shown_only_where_it_is_asked_for(capsys):
    train_small(steps=2)
    assert not "".join(capsys.readouterr())
    train_small(steps=2, progress=True)
    assert "steps of training" in "".join(capsys.readouterr())
    with Progress(4, "steps", show=False) as bar:
        for _ in range(2):
            train_small(steps=2, progress=bar)
    assert bar.done == 4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_before_the_relu_is_pooling_after_it_bit_for_bit(layout):
    """Forward and backward; a ReLU passes a maximum unchanged."""
    x, y = images(8, 1, 24, 24), torch.arange(8)
    model = small("dp").to(memory_format=layout).train()
    twin = copy.deepcopy(model)
    swapped = 0
    for stage in twin.backbone:
        layers = list(stage)
        for k, (pool, relu) in enumerate(itertools.pairwise(layers)):
            if isinstance(relu, nn.ReLU) and "Pool" in type(pool).__name__:
                stage[k], stage[k + 1] = relu, pool
                swapped += 1
    assert swapped == 2
    out, theirs = model(x), twin(x)
    assert torch.equal(out, theirs)
    cross_entropy(out, y).backward()
    cross_entropy(theirs, y).backward()
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet10t", ["layer2", "layer3"]), ("convnext_atto", ["stages.1", "stages.2"])],
)
def test_backbones_of_timm_get_attention_at_named_layers(name, layers):
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    backbone = timm.create_model(name, num_classes=16)
    model = att.AttentionClassifier(backbone, layers, 5, "dp")
    x, y = images(2, 3, 64, 96), torch.tensor([1, 3])
    out, maps = model.attend(x)
    assert {n: tuple(m.shape) for n, m in maps.items()} == {
        layers[0]: (2, 8, 12),
        layers[1]: (2, 4, 6),
    }
    cross_entropy(out, y).backward()
    assert all(torch.allclose(m.sum((1, 2)), torch.ones(2), atol=1e-5) for m in maps.values())


def test_flips_mirror_about_half():
    x = images(200, 1, 4, 6)
    flipped = training.flip(x, torch.Generator().manual_seed(0))
    mirrored = (flipped == x.flip(-1)).all((1, 2, 3))
    assert torch.equal(flipped[~mirrored], x[~mirrored])
    assert 70 < mirrored.sum() < 130  # four deviations


# the page


@pytest.mark.parametrize("networks", [["att"], ["dp", "att", "pan", "mean", "gap"]])
def test_the_notebook_runs_with_few_networks_and_without_some_claims(networks, tmp_path):
    """With other parameters claims are not asserted, and not run whose networks were not trained."""
    tiny = {
        "networks": networks, "n_clutter": [0], "width": 12, "steps": 2, "train_examples": 200,
        "test_examples": 40, "fgsm_eps": [0.05], "levels": [2], "head": "indep", "compat": "tanh",
    }  # fmt: skip
    code = tmp_path / "page.py"
    code.write_text(executor.script(chapters.find("learn_to_pay_attention"), tiny))
    done = subprocess.run([sys.executable, str(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "C8 reproduced" in done.stdout
    for id in ("C1", "C1b", "C3"):  # no two numbers of fragments, no first level
        assert f"{id} not run here" in done.stdout
    assert "1 of 15 claims asserted" in done.stdout


def test_more_that_cannot_be_is_named():
    x, y, maps = images(4, 1, 24, 24), torch.zeros(4).long(), torch.rand(4, 6, 6)
    model, gap = small().eval(), networks.build_network("gap", width=12).eval()
    g = torch.Generator()

    def fit(**k):
        return att.fit(
            small(), x, y, **{"steps": 1, "lr": 0.1, "generator": g, "batch_size": 2} | k
        )

    for call, message in {
        lambda: att.small_att(width=2): "width = 2",
        lambda: att.small_att(num_classes=0): "num_classes = 0",
        lambda: att.vgg_att(in_channels=0): "in_channels = 0",
        lambda: att.SpatialAttention(0): "dim = 0",
        lambda: att.AttentionHead([], 3): "dims = ",
        lambda: att.GapClassifier(networks.small_trunk(), "level9"): "last = 'level9'",
        lambda: att.ProgressiveAttention(networks.small_trunk(), []): "levels = ",
        lambda: att.ProgressiveAttention(networks.small_trunk(), ["level9"]): "levels = 'level9'",
        lambda: att.ProgressiveAttention(
            networks.small_trunk(), ["level2", "level1"]
        ): r"levels = \['level2', 'level1'\]: expected stages in order, none twice",
        lambda: att.ProgressiveAttention(
            networks.small_trunk(), ["level1", "level1"]
        ): r"levels = .* none twice",
        lambda: att.attention_maps(
            att.ProgressiveAttention(networks.small_trunk(), ["level1"]),
            x,
            query=torch.rand(4, 48),
        ): "query: a ProgressiveAttention has no global vector",
        lambda: att.attention_maps(model, x[:0]): r"x: shape \(0, 1, 24, 24\), expected \(images",
        lambda: att.attention_maps(model, x, batch_size=0): "batch_size = 0",
        lambda: att.attention_maps(model, x, query=torch.rand(2, 12)): "query: 2 vectors for 4",
        lambda: att.cam_maps(
            gap, x, torch.full((4,), 99)
        ): "classes: expected 4 numbers from 0 to 9",
        lambda: att.cam_maps(gap, x, y[:2]): "classes: expected 4",
        lambda: att.binarised(maps, "area", area=-1): "area = -1",
        lambda: att.perturbation_curve(gap, x, maps, "deletion", parts=0): "parts = 0",
        lambda: att.perturbation_curve(
            small(num_classes=1), x, maps, "deletion"
        ): "model: one class, expected",
        lambda: att.perturbation_curve(gap, x, maps * math.nan, "deletion"): "maps .* finite",
        lambda: att.pointing_game(maps, maps): "truth: dtype torch.float32, expected bool",
        lambda: att.mask_iou(maps, maps): "masks, truth: dtypes",
        lambda: att.pgd(gap, x, y, 0.1, steps=0): "steps = 0",
        lambda: att.pgd(gap, x, y, 0.1, step_size=-0.02): "step_size = -0.02",
        lambda: att.fgsm(gap, x, y, math.nan): "eps = nan",
        lambda: att.fgsm(small(num_classes=1), x, y, 0.1): "model: one class, expected",
        lambda: att.fgsm(gap, x * 2 - 1.5, y, 0.1): r"x: values from -1\.\d+ to 0\.\d+, expected",
        lambda: att.fgsm(
            gap, x / x.max() + 2**-23, y, 0.1
        ): r"x: values .* to 1\.0000001, expected",
        lambda: att.pgd(gap, x * math.nan, y, 0.1): "x: values from nan to nan",
        lambda: att.pgd(gap, (x * 255).byte(), y, 0.1): r"x: torch\.uint8, expected floating",
        lambda: fit(steps=-1): "steps = -1",
        lambda: fit(batch_size=9): "batch_size = 9",
        lambda: fit(halve_every=-1): "halve_every = -1",
        lambda: att.fit(small(), x, y[:2], steps=1, lr=0.1, generator=g): "4 images and 2 classes",
        # one image is no batch, a seed no generator, and only attention has attention maps
        lambda: model.attend(x[0]): r"x: shape \(1, 24, 24\).*one image is x\[None\]",
        lambda: att.attention_maps(model, x[0]): r"x: shape \(1, 24, 24\)",
        lambda: att.cam_maps(gap, x[0]): r"x: shape \(1, 24, 24\)",
        lambda: att.fgsm(gap, x[0], y, 0.1): r"x: shape \(1, 24, 24\)",
        lambda: att.perturbation_curve(gap, x[0], maps, "deletion"): r"x: shape \(1, 24, 24\)",
        lambda: fit(generator=0): "generator = 0: expected a torch.Generator",
        lambda: fit(lr=-1.0): "lr = -1.0",
        lambda: fit(weight_decay=math.nan): "weight_decay = nan",
        lambda: att.attention_maps(
            gap, x
        ): "model: a GapClassifier pays no attention; .* cam_maps",
        lambda: att.attention_maps(nn.Flatten(), x): "model: a Flatten pays no attention",
        lambda: att.cam_maps(model, x): "model: AttentionClassifier, expected a GapClassifier",
        lambda: att.SpatialAttention(4)(
            draw(2, 4, 5, 5), draw(2, 4).double()
        ): "local, g: dtypes torch.float32 and torch.float64",
        lambda: att.AttentionClassifier(
            networks.small_trunk(1, 12), ["level1"], 3
        ): r"example \(1, 3, 64, 64\): the backbone cannot take it",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
