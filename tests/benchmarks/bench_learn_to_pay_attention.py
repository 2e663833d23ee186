"""What attention costs: a step of training, a forward pass, and a map beside Captum's."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from companion.papers import learn_to_pay_attention as att
from companion.papers.learn_to_pay_attention import networks


def images(count, channels, side):
    generator = torch.Generator().manual_seed(0)
    return torch.rand((count, channels, side, side), generator=generator)


def network(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return networks.build_network(name, **options)


def slopes(model, x, y):
    return torch.autograd.grad(
        cross_entropy(model(x), y), list(model.parameters()), allow_unused=True
    )


@pytest.mark.parametrize("name", ["att", "dp"])
def test_step_of_training(name, compare):
    x, y = images(64, 1, 24), torch.arange(64) % 10
    ours, peer = network(name).train(), network("gap").train()
    compare(
        f"gradient of 64 canvases, two levels of {'pc' if name == 'att' else name} attention",
        lambda: slopes(ours, x, y),
        "global average pooling on the same trunk",
        lambda: slopes(peer, x, y),
        rounds=30,
        aim=1.15,
        reason="the heads are work that the pooled network does not have",
        limit=1.0,
    )


@torch.no_grad()
def test_forward_pass_of_the_papers_network(compare):
    x = images(4, 3, 32)
    options = {"arch": "vgg", "levels": (2, 3), "in_channels": 3}
    ours, peer = network("att", **options).eval(), network("gap", **options).eval()
    compare(
        "forward pass of VGG-att2, 4 images",
        lambda: ours(x),
        "average pooling on the same trunk",
        lambda: peer(x),
        rounds=8,
        aim=1.1,
        limit=1.0,
    )


@pytest.mark.parametrize(("channels", "side"), [(48, 12), (512, 16)])
def test_scores_without_building_the_sum(channels, side, compare):
    generator = torch.Generator().manual_seed(0)
    local = torch.randn((64, channels, side, side), generator=generator, requires_grad=True)
    g = torch.randn((64, channels), generator=generator, requires_grad=True)
    module = att.SpatialAttention(channels)

    def ours():
        return torch.autograd.grad(module.logits(local, g).square().sum(), (local, g))

    def as_written():
        scores = module.u(local + g[:, :, None, None])
        return torch.autograd.grad(scores.square().sum(), (local, g))

    for mine, theirs in zip(ours(), as_written(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3)
    compare(
        f"pc scores and their gradient, 64 maps of {channels} channels, {side} by {side}",
        ours,
        "building l + g as the formula is written",
        as_written,
        rounds=40 if channels < 100 else 10,
        reason="so small a sum is built as fast as it is avoided",
        aim=1.0,
        agreement="equal to 1e-3",
    )


def test_class_activation_maps(compare):
    captum = pytest.importorskip("captum.attr")
    model, x = network("gap").eval(), images(200, 1, 24)
    classes = torch.arange(200) % 10
    peer = captum.LayerGradCam(model, model.features)
    ours = att.cam_maps(model, x, classes)
    theirs = peer.attribute(x, classes)[:, 0] * ours[0].numel()
    assert torch.allclose(ours, theirs, atol=1e-5)
    compare(
        "class activation maps of 200 canvases",
        lambda: att.cam_maps(model, x, classes),
        "Captum's LayerGradCam on the same network",
        lambda: peer.attribute(x, classes),
        rounds=15,
        aim=1.0,
        peers=["captum"],
        agreement="equal to 1e-5",
    )


def test_attention_maps(compare):
    captum = pytest.importorskip("captum.attr")
    model, x = network("att").eval(), images(200, 1, 24)
    classes = torch.arange(200) % 10
    peer = captum.LayerGradCam(model, model.backbone.level2)
    compare(
        "attention of both levels, 200 canvases",
        lambda: att.attention_maps(model, x),
        "Captum's LayerGradCam of one level of the same network",
        lambda: peer.attribute(x, classes),
        rounds=15,
        aim=1.0,
        peers=["captum"],
        note="different maps: attention comes with the forward pass",
    )


def test_class_activation_maps_against_grad_cam(compare):
    package = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, x = network("gap").eval(), images(200, 1, 24)
    classes = torch.arange(200) % 10
    wanted = [targets.ClassifierOutputTarget(c) for c in classes.tolist()]
    peer = package.GradCAM(model=model, target_layers=[model.features])
    theirs = torch.from_numpy(peer(input_tensor=x, targets=wanted))[:, None]

    def scaled(maps):
        maps = maps - maps.amin((2, 3), keepdim=True)
        return maps / (maps.amax((2, 3), keepdim=True) + 1e-7)

    mine = scaled(att.cam_maps(model, x, classes)[:, None].relu())
    mine = scaled(torch.nn.functional.interpolate(mine, x.shape[-2:], mode="bilinear"))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4)
    compare(
        "class activation maps of 200 canvases",
        lambda: att.cam_maps(model, x, classes),
        "grad-cam's GradCAM on the same network",
        lambda: peer(input_tensor=x, targets=wanted),
        rounds=15,
        aim=1.0,
        peers=["grad-cam"],
        agreement="equal to 1e-4, after each is scaled and resized as grad-cam does it",
    )


def test_fast_gradient_sign_against_torchattacks(compare):
    package = pytest.importorskip("torchattacks")
    model, x, y = network("att").eval(), images(200, 1, 24), torch.arange(200) % 10
    peer = package.FGSM(model, eps=0.1)
    torch.testing.assert_close(att.fgsm(model, x, y, 0.1), peer(x, y))
    compare(
        "FGSM on 200 canvases, attention network",
        lambda: att.fgsm(model, x, y, 0.1),
        "torchattacks' FGSM on the same network",
        lambda: peer(x, y),
        rounds=15,
        limit=1.0,
        peers=["torchattacks"],
        agreement="the same images to rounding",
        note="both are one forward and one backward pass",
    )


def test_growth_with_the_images(grow):
    model = network("att", arch="vgg", levels=(2, 3), in_channels=3).train()

    def make(count):
        x, y = images(count, 3, 32), torch.arange(count) % 10
        return lambda: slopes(model, x, y)

    grow("gradient of VGG-att2", "images", [2, 4, 8, 16, 32], make)
