"""The two convolutional networks of the paper; the dense one is `companion.models.mlp`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

from companion.models import mlp

MODELS = ("mlp", "simple_cnn", "resnet8")
HIDDEN = (64, 64)  # units of the dense network


def simple_cnn(in_channels: int = 1, image_size: int = 28, classes: int = 10) -> nn.Sequential:
    """Two valid 5x5 convolutions of 32 and 64 channels with ReLU and pooling, one dense layer.

    For 28x28 grey images it has 62,240 weights and 106 biases. Pooling comes before ReLU: the
    order changes no output, and ReLU then has a quarter of the work.

    Raises:
        ValueError: for images too small for it.

    Examples:
        >>> sum(p.numel() for p in simple_cnn().parameters())
        62346
    """
    side = ((image_size - 4) // 2 - 4) // 2
    if side < 1:
        raise ValueError(
            f"image_size = {image_size!r}: Simple-CNN needs at least 16 pixels a side"
        )
    return nn.Sequential(
        nn.Conv2d(in_channels, 32, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 64, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * side * side, classes),
    )  # fmt: skip


class _PlainBlock(nn.Module):
    """Pre-activation residual block without normalisation and with a parameter-free shortcut."""

    any_layout = True

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.grow, self.stride = width - channels, stride

    def forward(self, x: Tensor) -> Tensor:
        y = relu(x)
        # where the shape changes, the activated input is averaged and zero channels are added
        skip = pad(avg_pool2d(y, self.stride), (0, 0, 0, 0, 0, self.grow)) if self.grow else x
        return skip + self.conv2(relu(self.conv1(y)))


class _GlobalMean(nn.Module):
    any_layout = True

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def resnet8(in_channels: int = 3, classes: int = 10) -> nn.Sequential:
    """ResNet-8 without batch normalisation: widths 16, 32, 64, biases everywhere.

    For colour images it has 74,800 weights and 250 biases.

    Examples:
        >>> sum(p.numel() for p in resnet8().parameters())
        75050
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        _PlainBlock(16, 16, 1),
        _PlainBlock(16, 32, 2),
        _PlainBlock(32, 64, 2),
        nn.ReLU(),
        _GlobalMean(),
        nn.Linear(64, classes),
    )


def build_network(name: str, images: Tensor, classes: int) -> nn.Module:
    """A network of `MODELS` for images (n, channels, height, width); weights are PyTorch's.

    Raises:
        ValueError: for an unknown name or for images that do not fit.
    """
    _, channels, _, size = images.shape
    if name == "mlp":
        return mlp(images[0].numel(), HIDDEN, classes)
    if name == "simple_cnn":
        return simple_cnn(channels, size, classes)
    if name == "resnet8":
        if size % 4:
            raise ValueError(f"image_size = {size!r}: ResNet-8 needs a multiple of 4")
        return resnet8(channels, classes)
    raise ValueError(f"model = {name!r}: expected one of {', '.join(map(repr, MODELS))}")
