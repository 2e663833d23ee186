"""Image and sequence classifiers, sized as the pruning papers count them.

Every function returns an untrained module with PyTorch's default weights; draw new ones with
an initialiser. Inputs are (batch, channels, height, width) unless said otherwise; outputs are
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import relu

from companion.sparsity import prunable_parameters

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "linear": nn.Identity}
# TensorFlow's defaults, which the papers used: decay 0.99 is PyTorch's momentum 0.01
BN: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Numbers of prunable weights and of prunable biases."""
    every = sum(p.numel() for p in prunable_parameters(model).values())
    weights = sum(p.numel() for p in prunable_parameters(model, biases=False).values())
    return weights, every - weights


def lenet_300_100(in_features: int = 784, classes: int = 10) -> nn.Sequential:
    """Two hidden ReLU layers of 300 and 100 units; flattens its input."""
    return mlp(in_features, (300, 100), classes)


def mlp(
    in_features: int, hidden: Sequence[int], classes: int = 10, *, activation: str = "relu"
) -> nn.Sequential:
    """Dense layers of the given widths with one activation between them; flattens its input.

    Args:
        in_features: values an example.
        hidden: units of each hidden layer.
        classes: number of logits.
        activation: "relu", "tanh" or "linear" (none).

    Raises:
        ValueError: for an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(in_features, width), ACTIVATIONS[activation]()]
        in_features = width
    return nn.Sequential(*layers, nn.Linear(in_features, classes))


def lenet_5_caffe(in_channels: int = 1, image_size: int = 28, classes: int = 10) -> nn.Sequential:
    """The Caffe variant of LeNet-5: no activation after its convolutions.

    Raises:
        ValueError: for images too small for two valid 5x5 convolutions with pooling.
    """
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(
            f"image_size = {image_size!r}: LeNet-5-Caffe needs at least 16 pixels a side"
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, 20, 5), nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(50 * side * side, 500), nn.ReLU(),
        nn.Linear(500, classes),
    )  # fmt: skip


def alexnet(variant: str = "s", in_channels: int = 3, classes: int = 10) -> nn.Sequential:
    """AlexNet for 32x32 images: five strided convolutions; "s" has 1024 dense units, "b" 2048.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in ("s", "b"):
        raise ValueError(f"variant = {variant!r}: expected 's' or 'b'")
    dense = {"s": 1024, "b": 2048}[variant]
    layers: list[nn.Module] = []
    channels = in_channels
    for width, kernel in ((96, 11), (256, 5), (384, 3), (384, 3), (256, 3)):
        layers += [nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2)]
        layers += [nn.BatchNorm2d(width, **BN), nn.ReLU()]
        channels = width
    layers.append(nn.Flatten())
    for width in (dense, dense):
        layers += [nn.Linear(channels, width), nn.BatchNorm1d(width, **BN), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Linear(channels, classes))


def vgg(variant: str = "D", in_channels: int = 3, classes: int = 10) -> nn.Sequential:
    """VGG-16 for 32x32 images with batch normalisation and dense layers of 512.

    "D" is the usual one; "C" has 1x1 kernels in convolutions 7, 10 and 13; "like" has one
    dense layer less.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in ("C", "D", "like"):
        raise ValueError(f"variant = {variant!r}: expected 'C', 'D' or 'like'")
    layers: list[nn.Module] = []
    channels, number = in_channels, 0
    for width, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            number += 1
            kernel = 1 if variant == "C" and number in (7, 10, 13) else 3
            layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2)]
            layers += [nn.BatchNorm2d(width, **BN), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for _ in range(1 if variant == "like" else 2):
        layers += [nn.Linear(512, 512), nn.BatchNorm1d(512, **BN), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, classes))


class _WideBlock(nn.Module):
    """Pre-activation residual block; projects where the width or the stride changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels, **BN)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.bn2 = nn.BatchNorm2d(width, **BN)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        same = channels == width and stride == 1
        self.shortcut = None if same else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(y)
        return skip + self.conv2(relu(self.bn2(self.conv1(y))))


def wide_resnet(
    depth: int = 16, width: int = 8, in_channels: int = 3, classes: int = 10
) -> nn.Sequential:
    """Wide ResNet with (depth - 4) / 6 blocks a group, for 32x32 images; every conv has a bias.

    Args:
        depth: 6 n + 4.
        width: factor on 16, 32 and 64 channels.
        in_channels: of the images.
        classes: number of logits.

    Raises:
        ValueError: for a depth that is not 6 n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth = {depth!r}: expected 6 n + 4, such as 16, 22 or 28")
    layers: list[nn.Module] = [nn.Conv2d(in_channels, 16, 3, padding=1)]
    channels = 16
    for group, base in enumerate((16, 32, 64)):
        for block in range((depth - 4) // 6):
            stride = 2 if group and not block else 1
            layers.append(_WideBlock(channels, base * width, stride))
            channels = base * width
    layers += [nn.BatchNorm2d(channels, **BN), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, classes))


class _LastStep(nn.Module):
    """Reads an image row by row, projects each row, and classifies the last state."""

    def __init__(
        self, cell: Callable[..., nn.RNNBase], features: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(features, hidden)
        self.rnn = cell(hidden, hidden, batch_first=True)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(x.squeeze(1)))
        return self.head(states[:, -1])


def recurrent(
    cell: str = "lstm", hidden: int = 128, features: int = 28, classes: int = 10
) -> nn.Module:
    """LSTM or GRU over the rows of a grey image, (batch, 1, rows, features).

    PyTorch's cells have two bias vectors where the papers count one; weights agree.

    Args:
        cell: "lstm" or "gru".
        hidden: units of the state.
        features: pixels a row.
        classes: number of logits.

    Raises:
        ValueError: for an unknown cell.
    """
    cells = {"lstm": nn.LSTM, "gru": nn.GRU}
    if cell not in cells:
        raise ValueError(f"cell = {cell!r}: expected 'lstm' or 'gru'")
    return _LastStep(cells[cell], features, hidden, classes)
