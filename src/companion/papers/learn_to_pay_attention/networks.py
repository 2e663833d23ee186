"""The paper's networks and their controls, as trunks in stages.

A trunk is a sequence of stages "level1", "level2", ... that put out maps, before pooling, and a
last stage "query" that puts out the global vector.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from companion.checks import one_of, whole
from companion.models.costs import forward_macs
from companion.papers.learn_to_pay_attention.attention import (
    AttentionClassifier,
    AttentionHead,
    SpatialAttention,
)

VGG_BLOCKS = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
NETWORKS = ("gap", "att", "dp", "dp_unscaled", "plain", "mean", "pan")
EPS = 1e-3  # of batch normalisation in the VGGs, as in the official code


def _conv(channels: int, width: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width, EPS), nn.ReLU()]


def _pooled(channels: int, width: int, pool: nn.Module) -> list[nn.Module]:
    """`_conv` and maximum pooling, which passes a ReLU unchanged and leaves it less to do."""
    *layers, relu = _conv(channels, width)
    return [*layers, pool, relu]


def _block(channels: int, widths: Sequence[int], first: float = 0.4) -> list[nn.Module]:
    """Convolutions with dropout after all but the last; `first`: that after the first one."""
    layers: list[nn.Module] = []
    for place, width in enumerate(widths):
        layers += _conv(channels, width)
        if place < len(widths) - 1:
            layers.append(nn.Dropout(first if place == 0 else 0.4))
        channels = width
    return layers


def _stages(**stages: list[nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((k, nn.Sequential(*v)) for k, v in stages.items()))


def _names(levels: Sequence[int], number: int) -> list[str]:
    allowed = range(1, number + 1)
    if not levels or not set(levels) <= set(allowed) or len(set(levels)) < len(levels):
        raise ValueError(
            f"levels = {list(levels)!r}: expected some of {list(allowed)}, none twice"
        )
    return [f"level{level}" for level in sorted(levels)]


def small_trunk(in_channels: int = 1, width: int = 48) -> nn.Sequential:
    """The small VGG of this page: two levels, at a half and a quarter of the image's side.

    Takes images of 8 pixels a side and more.

    Raises:
        ValueError: for a width below 3.
    """
    whole(1, in_channels=in_channels)
    whole(3, width=width)
    return _stages(
        level1=[
            *_pooled(in_channels, width // 3, nn.MaxPool2d(2)),
            *_conv(width // 3, width), *_conv(width, width),
        ],
        level2=[nn.MaxPool2d(2), *_conv(width, width), *_conv(width, width)],
        query=[
            nn.MaxPool2d(2), *_pooled(width, width, nn.AdaptiveMaxPool2d(1)), nn.Flatten(),
            nn.Linear(width, width),
        ],
    )  # fmt: skip


def vgg_trunk(in_channels: int = 3) -> nn.Sequential:
    """VGG-16 without its first two pools, and two more convolutions that put out g.

    Levels after the 7th, 10th and 13th convolution: 256, 512 and 512 channels at the full, half
    and quarter side of the image. The official code has dropout of 0.3 after the first
    convolution and 0.4 after the others but the last of each block.

    Raises:
        ValueError: for a number of channels below 1.
    """
    whole(1, in_channels=in_channels)
    one, two, three, four, five = VGG_BLOCKS
    return _stages(
        level1=[*_block(in_channels, one, 0.3), *_block(64, two), *_block(128, three)],
        level2=[nn.MaxPool2d(2), *_block(256, four)],
        level3=[nn.MaxPool2d(2), *_block(512, five)],
        query=[
            nn.MaxPool2d(2), *_conv(512, 512), nn.MaxPool2d(2), *_conv(512, 512),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(512, 512),
        ],
    )  # fmt: skip


def vgg(num_classes: int = 10, *, in_channels: int = 3) -> nn.Sequential:
    """The baseline: VGG-16 with all five pools and two dense layers."""
    layers, channels = [], in_channels
    for number, widths in enumerate(VGG_BLOCKS):
        layers += [*_block(channels, widths, 0.3 if number == 0 else 0.4), nn.MaxPool2d(2)]
        channels = widths[-1]
    layers[-1] = nn.AdaptiveMaxPool2d(1)
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(512, num_classes),
    )  # fmt: skip


def _projection(width: int, dim: int) -> nn.Sequential:
    """How the official code takes g down to a level with fewer channels."""
    return nn.Sequential(nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, dim))


def vgg_att(
    levels: Sequence[int] = (2, 3), num_classes: int = 10, compat: str = "pc",
    head: str = "concat", *, scale: str = "sqrt", match: str = "project", in_channels: int = 3,
) -> AttentionClassifier:  # fmt: skip
    """VGG-att: att1 has levels (3,), att2 (2, 3), att3 (1, 2, 3).

    Takes images of 16 pixels a side and more.

    Args:
        levels: where attention is paid, some of 1, 2, 3.
        num_classes, compat, head, scale, match: as `AttentionClassifier`.
        in_channels: of the images.

    Raises:
        ValueError: for levels that do not exist, and as `AttentionClassifier`.

    References:
        Jetley et al. (2018), section 4; layers as in the official code.

    >>> model = vgg_att((2, 3), num_classes=10, compat="dp")
    >>> logits, maps = model.eval().attend(torch.rand(1, 3, 32, 32))
    >>> {level: tuple(found.shape) for level, found in maps.items()}
    {'level2': (1, 16, 16), 'level3': (1, 8, 8)}
    """
    return AttentionClassifier(
        vgg_trunk(in_channels), _names(levels, 3), num_classes, compat, head, scale=scale,
        match=match, project=_projection, example=torch.zeros(1, in_channels, 32, 32),
    )  # fmt: skip


def small_att(
    levels: Sequence[int] = (1, 2), num_classes: int = 10, compat: str = "pc",
    head: str = "concat", *, scale: str = "sqrt", width: int = 48, in_channels: int = 1,
) -> AttentionClassifier:  # fmt: skip
    """The small VGG with attention at one or both of its levels, without dropout.

    Args:
        levels: where attention is paid, some of 1, 2.
        num_classes, compat, head, scale: as `AttentionClassifier`.
        width: channels, at least 3.
        in_channels: of the images.

    Raises:
        ValueError: for levels that do not exist, and as `AttentionClassifier`.
    """
    return AttentionClassifier(
        small_trunk(in_channels, width), _names(levels, 2), num_classes, compat, head,
        scale=scale, dropout=0.0, example=torch.zeros(1, in_channels, 24, 24),
    )  # fmt: skip


class _Bottleneck(nn.Module):
    """Pre-activation bottleneck; where the shape changes, the shortcut starts activated."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.preactivation = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, width, 1, bias=False),
        )  # fmt: skip
        changes = stride > 1 or channels != width
        self.shortcut = nn.Conv2d(channels, width, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.preactivation(x)
        return self.residual(active) + (x if self.shortcut is None else self.shortcut(active))


def resnet_trunk(in_channels: int = 3, depth: int = 164) -> nn.Sequential:
    """Pre-activation bottleneck ResNet, 64, 128 and 256 channels in three stages, and RN-att's g.

    Its maps are activated: that of stage 2 is the pre-activation with which stage 3 begins,
    "stage3.0.preactivation"; that of stage 3 is "level3". Which pooling the official network
    uses, and where exactly it takes its maps, we do not know; here it is maximum pooling.

    Raises:
        ValueError: for a depth that is not 9 n + 2.
    """
    if depth < 11 or (depth - 2) % 9:
        raise ValueError(f"depth = {depth!r}: expected 9 n + 2, such as 164")

    def stage(channels: int, width: int, stride: int) -> list[nn.Module]:
        rest = [_Bottleneck(width, width, 1) for _ in range((depth - 2) // 9 - 1)]
        return [_Bottleneck(channels, width, stride), *rest]

    return _stages(
        stem=[nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)],
        stage1=stage(16, 64, 1),
        stage2=stage(64, 128, 2),
        stage3=stage(128, 256, 2),
        level3=[nn.BatchNorm2d(256), nn.ReLU()],
        query=[
            nn.MaxPool2d(2), nn.Conv2d(256, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Dropout(0.4), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.4),
            nn.Linear(256, 256),
        ],
    )  # fmt: skip


def resnet_att(
    levels: Sequence[int] = (2, 3), num_classes: int = 10, compat: str = "pc",
    head: str = "concat", *, scale: str = "sqrt", depth: int = 164, in_channels: int = 3,
) -> AttentionClassifier:  # fmt: skip
    """RN-att: attention at stage 2 (128 channels) and stage 3 (256), 384 features in all.

    Args:
        levels: where attention is paid, some of 2, 3.
        num_classes, compat, head, scale: as `AttentionClassifier`.
        depth: layers, 9 n + 2.
        in_channels: of the images.

    Raises:
        ValueError: for levels other than 2 and 3, and for another depth.

    References:
        Jetley et al. (2018), section 4.
    """
    maps = {2: "stage3.0.preactivation", 3: "level3"}
    if not levels or not set(levels) <= set(maps) or len(set(levels)) < len(levels):
        raise ValueError(f"levels = {list(levels)!r}: expected some of [2, 3], none twice")
    return AttentionClassifier(
        resnet_trunk(in_channels, depth), [maps[level] for level in sorted(levels)], num_classes,
        compat, head, scale=scale, dropout=0.3, example=torch.zeros(1, in_channels, 32, 32),
    )  # fmt: skip


class GapClassifier(nn.Module):
    """Global average pooling and one linear layer: what class activation maps need.

    Args:
        trunk: stages as above; those after `last` are left out, so that it computes nothing
            that it does not use.
        last: name of the stage that is pooled.
        num_classes: at least 1.

    Raises:
        ValueError: for a stage that does not exist.
    """

    def __init__(self, trunk: nn.Sequential, last: str, num_classes: int = 10) -> None:
        super().__init__()
        names = list(trunk._modules)  # one used twice included
        one_of(names, last=last)
        whole(1, num_classes=num_classes)
        self.features = trunk[: names.index(last) + 1]
        self.linear = nn.Linear(_channels(self.features), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.linear(self.features(x).mean((2, 3)))


class PlainClassifier(nn.Module):
    """The global vector and one linear layer: the network without attention."""

    def __init__(self, trunk: nn.Sequential, num_classes: int = 10) -> None:
        super().__init__()
        self.features = trunk
        query: Any = trunk.query
        self.linear = nn.Sequential(nn.ReLU(), nn.Linear(query[-1].out_features, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.linear(self.features(x))


class ProgressiveAttention(nn.Module):
    """The baseline PAN: gates on the way, attention at the end, no global vector.

    Every level but the last is multiplied, place by place, by a sigmoid of its own features
    before the next stage sees it; the last is pooled under a softmax, which is "pc" without g.

    Args:
        trunk: stages as above.
        levels: names of the stages, in order; those after the last are left out.
        num_classes: at least 1.
        dropout: of the head.

    Raises:
        ValueError: for stages that do not exist, are not in order or stand there twice.

    References:
        Seo et al. (2018), Progressive attention networks for visual attribute prediction.
    """

    def __init__(
        self, trunk: nn.Sequential, levels: Sequence[str], num_classes: int = 10,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        names = list(trunk._modules)  # one used twice included
        if not len(levels):
            raise ValueError("levels = []: expected the name of at least one stage")
        for level in levels:
            one_of(names, levels=level)
        places = [names.index(level) for level in levels]
        if places != sorted(set(places)):
            raise ValueError(f"levels = {list(levels)!r}: expected stages in order, none twice")
        self.features = trunk[: names.index(levels[-1]) + 1]
        self.gates = nn.ModuleDict()
        for name in levels[:-1]:
            before = trunk[: names.index(name) + 1]
            self.gates[name] = nn.Conv2d(_channels(before), 1, 1)
        self.last = levels[-1]
        dim = _channels(self.features)
        self.attention = SpatialAttention(dim)
        self.head = AttentionHead([dim], num_classes, dropout=dropout)

    def attend(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits, and by level the gates in (0, 1) and the weights, (batch, height, width)."""
        maps = {}
        for name, stage in self.features._modules.items():  # a stage used twice counts twice
            assert stage is not None
            x = stage(x)
            if name in self.gates:
                gate = torch.sigmoid(self.gates[name](x))
                x, maps[name] = x * gate, gate.squeeze(1)
        pooled, maps[self.last] = self.attention(x, x.new_zeros(len(x), x.shape[1]))
        return self.head([pooled]), maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.attend(x)[0]


def build_network(
    name: str, *, arch: str = "small", levels: Sequence[int] = (1, 2), compat: str = "pc",
    scale: str = "sqrt", head: str = "concat", width: int = 48, in_channels: int = 1,
    num_classes: int = 10,
) -> nn.Module:  # fmt: skip
    """One of the networks that this page compares, all on the same trunk.

    Args:
        name: "att" with the given compatibility; "dp", "dp_unscaled", "mean" with that one;
            "gap" pools the last of the levels; "pan" gates and attends at them; "plain"
            classifies the global vector ("small") or is VGG-16 with all its pools ("vgg").
        arch: "small" of a `width`, or "vgg".
        levels: where attention is paid, some of 1, 2 ("small") or 1, 2, 3 ("vgg").
        compat, scale, head, num_classes: as `AttentionClassifier`.
        width: channels of "small", at least 3.
        in_channels: of the images.

    Raises:
        ValueError: for names and levels that do not exist.
    """
    one_of(NETWORKS, name=name)
    one_of(("small", "vgg"), arch=arch)
    names = _names(levels, 2 if arch == "small" else 3)
    if name == "plain" and arch == "vgg":
        return vgg(num_classes, in_channels=in_channels)
    if name in ("gap", "plain", "pan"):
        trunk = small_trunk(in_channels, width) if arch == "small" else vgg_trunk(in_channels)
        if name == "gap":
            return GapClassifier(trunk, names[-1], num_classes)
        if name == "plain":
            return PlainClassifier(trunk, num_classes)
        return ProgressiveAttention(trunk, names, num_classes, 0.0 if arch == "small" else 0.5)
    compat, scale = {
        "att": (compat, scale), "dp": ("dp", "sqrt"), "dp_unscaled": ("dp", "none"),
        "mean": ("mean", "sqrt"),
    }[name]  # fmt: skip
    if arch == "vgg":
        return vgg_att(levels, num_classes, compat, head, scale=scale, in_channels=in_channels)
    return small_att(
        levels, num_classes, compat, head, scale=scale, width=width, in_channels=in_channels
    )


def _channels(stages: nn.Module) -> int:
    every = stages.named_modules(remove_duplicate=False)  # the last may be used before, too
    return [m for _, m in every if isinstance(m, nn.Conv2d)][-1].out_channels


def receptive_fields(trunk: nn.Sequential) -> list[int]:
    """Side, in pixels, of the square that a place of each level sees; the last stage is left out.

    Args:
        trunk: stages of plain sequences, as the small one and VGG's.
    """
    sides, side, step = [], 1, 1
    levels: Any = trunk[:-1]  # sequences, which torch's types leave open
    for stage in levels:
        for layer in stage:
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                kernel, stride = (
                    k if isinstance(k, int) else k[0] for k in (layer.kernel_size, layer.stride)
                )
                side, step = side + (kernel - 1) * step, step * stride
        sides.append(side)
    return sides


def parameter_count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def multiply_adds(model: nn.Module, shape: Sequence[int]) -> int:
    """Multiply-adds of a forward pass over one image of a shape (channels, height, width).

    Counts convolutions and matrix products, half of the operations that torch's counter sees.
    """
    where = next(model.parameters())
    return forward_macs(model, torch.zeros(1, *shape, device=where.device, dtype=where.dtype))
