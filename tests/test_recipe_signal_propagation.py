"""Signal propagation's recipe on networks of torchvision and timm."""

import pytest
import timm
import torch
from recipe import run
from torchvision.models import resnet

from companion.papers import signal_propagation as signals
from companion.sparsity import remove_masks
from companion.training import train


@pytest.mark.parametrize(
    "make",
    [
        lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=4),
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=4
        ),
    ],
    ids=["resnet10", "vit"],
)
def test_a_strangers_network_is_pruned_without_labels_repaired_and_trained(make):
    torch.manual_seed(0)
    images, labels = torch.rand(32, 3, 32, 32), torch.arange(32) % 4
    model = make()
    names, printed = run("signal_propagation", model=model, images=images, labels=labels)
    masks, residuals = names["masks"], names["residuals"]
    torch.manual_seed(0)
    torch.rand(32, 3, 32, 32)
    blind = signals.connection_sensitivity(make(), names["loss"], [(images, 0 * labels)])
    assert all(torch.equal(blind[n], s) for n, s in names["scores"].items())  # no label is read
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(total * (1 - 0.9))
    assert len(printed.splitlines()) == len(residuals)
    assert all(after[-1] <= after[0] + 1e-3 for after in residuals.values())
    assert names["spectrum"].shape == (2, 4)
    assert (names["spectrum"] >= 0).all()
    before = [p.detach().clone() for p in model.parameters()]
    train(model, images, labels, steps=2, batch_size=16, lr=0.01)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    parameters = dict(model.named_parameters())
    assert all(not parameters[n][~mask].any() for n, mask in masks.items())
    remove_masks(model)
