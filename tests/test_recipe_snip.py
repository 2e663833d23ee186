"""SNIP's recipe on networks of torchvision and timm."""

import copy
import io

import pytest
import timm
import torch
import torchvision
from recipe import run
from torch import nn
from torch.nn.utils import prune

from companion.sparsity import export_weights, remove_masks, to_torch_prune

MAKE = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=4), 32),
    "vit": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=3, num_classes=4
        ),
        32,
    ),
}


@pytest.fixture(params=MAKE)
def pruned(request):
    torch.manual_seed(0)
    make, size = MAKE[request.param]
    images, labels = torch.rand(64, 3, size, size), torch.arange(64) % 4
    names, printed = run("snip", model=make(), images=images, labels=labels, steps=3)
    yield make, names, printed
    remove_masks(names["model"])


def test_a_strangers_network_is_pruned_and_trained(pruned):
    make, names, printed = pruned
    model, masks = names["model"], names["masks"]
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(total * (1 - 0.9))
    assert len(printed.splitlines()) == sum(mask.dim() > 1 for mask in masks.values())
    parameters = dict(model.named_parameters())
    assert all(not parameters[n][~mask].any() for n, mask in masks.items())
    # exported sparse, saved, and loaded into the plain architecture
    file = io.BytesIO()
    torch.save(names["pruned"], file)
    file.seek(0)
    plain = make().eval()
    plain.load_state_dict({n: v.to_dense() for n, v in torch.load(file).items()})
    x = names["images"][:4]
    torch.testing.assert_close(plain(x), model.eval()(x))
    # a copy keeps to the masks by itself, and so do loaded values
    twin = copy.deepcopy(model)
    twin.load_state_dict(make().state_dict())
    kept = dict(twin.named_parameters())
    assert all(not kept[n][~mask].any() for n, mask in masks.items())


def test_masks_live_on_in_pytorchs_pruning(pruned):
    _, names, _ = pruned
    model, masks, x = names["model"].eval(), names["masks"], names["images"][:4]
    expected = model(x)
    remove_masks(model)
    weights = {n: m for n, m in masks.items() if isinstance(_owner(model, n), nn.Linear)}
    to_torch_prune(model, weights)
    torch.testing.assert_close(model(x), expected)
    name = next(iter(weights))
    assert torch.equal(model.state_dict()[f"{name}_mask"] != 0, masks[name])
    assert prune.is_pruned(model)


def _owner(model, name):
    return model.get_submodule(name.rpartition(".")[0])


@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
def test_an_export_is_the_masked_state_in_any_layout(layout):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2))
    masks = {n: torch.rand(p.shape) < 0.5 for n, p in model.named_parameters()}
    before = copy.deepcopy(model.state_dict())
    found = export_weights(model, masks, layout=layout)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())
    for name, value in found.items():
        dense = value.to_dense().view_as(before[name])
        assert torch.equal(dense, before[name] * masks[name])
        sparse = layout != "dense" and before[name].dim() > 1
        assert (value.layout != torch.strided) == sparse
    with pytest.raises(ValueError, match="layout = 'bsr': expected one of dense, coo, csr"):
        export_weights(model, masks, layout="bsr")
    with pytest.raises(ValueError, match="no parameter 'x'"):
        to_torch_prune(model, {"x": masks["0.weight"]})
