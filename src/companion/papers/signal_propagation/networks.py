"""The networks of this paper that no other chapter uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

from companion.checks import whole
from companion.data.images import ImageSet
from companion.models import mlp, vgg, wide_resnet
from companion.models.classifiers import ACTIVATIONS, BN


class _Block(nn.Module):
    """Two convolutions and a shortcut without parameters: pooled, and padded with zeros."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(width, **BN)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width, **BN)
        self.stride, self.missing = stride, width - channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = avg_pool2d(x, self.stride)
        before = self.missing // 2
        return relu(y + pad(x, (0, 0, 0, 0, before, self.missing - before)))


def resnet(depth: int = 32, in_channels: int = 3, classes: int = 10) -> nn.Sequential:
    """Residual network for 32x32 images, (depth - 2) / 6 blocks in each of three groups.

    Raises:
        ValueError: for a depth that is not 6 n + 2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth = {depth!r}: expected 6 n + 2, such as 32, 56 or 110")
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, 16, 3, padding=1), nn.BatchNorm2d(16, **BN), nn.ReLU()
    ]  # fmt: skip
    channels = 16
    for group, width in enumerate((16, 32, 64)):
        for block in range((depth - 2) // 6):
            layers.append(_Block(channels, width, 2 if group and not block else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


# name -> maker from (channels, classes), for 32x32 images
CONVOLUTIONAL: dict[str, Callable[[int, int], nn.Module]] = {
    "vgg_c": lambda channels, classes: vgg("C", channels, classes),
    "resnet32": lambda channels, classes: resnet(32, channels, classes),
    "resnet56": lambda channels, classes: resnet(56, channels, classes),
    "resnet110": lambda channels, classes: resnet(110, channels, classes),
    "wrn_16_6": lambda channels, classes: wide_resnet(16, 6, channels, classes),
}
ARCHITECTURES = ("mlp", *CONVOLUTIONAL)


def check_network(arch: str, data: ImageSet, activations: Iterable[str]) -> None:
    """Raise ValueError for unknown names and for networks that do not fit the images or each other.

    Raises:
        ValueError: for unknown names and for networks that do not fit the images.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch = {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    known = list(ACTIVATIONS) if arch == "mlp" else ["relu"]
    for activation in activations:
        if activation not in known:
            raise ValueError(
                f"activation = {activation!r}: {arch!r} takes {', '.join(map(repr, known))}"
            )
    size = tuple(data.train_x.shape[2:])
    if arch != "mlp" and size != (32, 32):
        raise ValueError(
            f"arch = {arch!r}: needs images of 32x32 pixels, {data.name!r} has {size[0]}x{size[1]}"
        )


def untrained_network(
    arch: str, data: ImageSet, *, activation: str = "linear", depth: int = 7, width: int = 100
) -> nn.Module:
    """A network for these images, on their device, with PyTorch's default weights.

    Args:
        arch: "mlp" has `depth` dense layers, all but the last of `width` units; the others are
            convolutional ReLU networks for 32x32 images, to which the remaining options do not
            apply.
        data: labelled images, which say sizes and classes.
        activation: "relu", "tanh" or "linear".
        depth: dense layers, at least 1.
        width: units a layer, at least 1.

    Raises:
        ValueError: for an unknown name, a depth or width out of range, or images of the wrong
            size.
    """
    channels, *size = data.train_x.shape[1:]
    check_network(arch, data, [activation])
    if arch != "mlp":
        return CONVOLUTIONAL[arch](channels, len(data.classes)).to(data.train_x.device)
    whole(1, depth=depth, width=width)
    inputs = torch.Size([channels, *size]).numel()
    model = mlp(inputs, [width] * (depth - 1), len(data.classes), activation=activation)
    return model.to(data.train_x.device)
