"""Spatial attention over a network's local features, and a classifier that sees nothing else."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from companion.checks import images, one_of, whole
from companion.training import evaluation_mode

COMPATS = ("pc", "dp", "tanh", "mean")
SCALES = ("sqrt", "none")
HEADS = ("concat", "indep")


class SpatialAttention(nn.Module):
    """Pool local features under a map of weights, by their compatibility with a global vector.

    u begins as normal numbers of variance 1 / dim.

    Args:
        dim: features of a place, and of the global vector, at least 1.
        compat: how place i is scored, from its features l_i and the global vector g.
            "pc", the paper's parametrised compatibility: u . (l_i + g), and a bias as in its
            code. "dp", the dot product: l_i . g. "tanh", which is not in the paper: additive and
            query-dependent, u . tanh(W_l l_i + W_g g). "mean": the same for every place, global
            average pooling.
        scale: "sqrt" divides "dp" by the root of `dim`; "none" leaves it as it is in the paper.

    Raises:
        ValueError: for a value that is not allowed.

    References:
        Jetley et al. (2018), sections 3.1 and 3.2.

    >>> local, g = torch.rand(2, 8, 6, 6), torch.rand(2, 8)
    >>> pooled, weights = SpatialAttention(8, "dp")(local, g)
    >>> pooled.shape, weights.shape
    (torch.Size([2, 8]), torch.Size([2, 6, 6]))
    >>> torch.allclose(weights.sum((1, 2)), torch.ones(2))
    True
    """

    def __init__(self, dim: int, compat: str = "pc", scale: str = "sqrt") -> None:
        super().__init__()
        one_of(COMPATS, compat=compat)
        one_of(SCALES, scale=scale)
        whole(1, dim=dim)
        self.dim, self.compat = dim, compat
        self.factor = dim**-0.5 if scale == "sqrt" else 1.0  # eq. (5.3), its root
        if compat in ("pc", "tanh"):
            self.u = nn.Conv2d(dim, 1, 1)
            nn.init.normal_(self.u.weight, std=dim**-0.5)
            assert self.u.bias is not None
            nn.init.zeros_(self.u.bias)
        if compat == "tanh":
            self.local = nn.Conv2d(dim, dim, 1, bias=False)
            self.query = nn.Linear(dim, dim, bias=False)

    def logits(self, local: Tensor, g: Tensor) -> Tensor:
        """Compatibility of every place, (batch, height, width).

        The sum l_i + g is never built: u is linear, so its share of g is one number an image.
        """
        if self.compat == "pc":  # eq. (5.1), u . (l_i + g)
            shared = g @ self.u.weight.view(-1, 1)
            return self.u(local).squeeze(1) + shared[:, :, None]
        if self.compat == "dp":  # eq. (5.1), l_i . g
            return torch.einsum("bchw,bc->bhw", local, g) * self.factor
        if self.compat == "tanh":
            mixed = self.local(local) + self.query(g)[:, :, None, None]
            return self.u(torch.tanh(mixed)).squeeze(1)
        return local.new_zeros(len(local), *local.shape[2:])

    def forward(self, local: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the local features under the attention that the global vector asks for.

        Args:
            local: local features, (batch, dim, height, width).
            g: global vectors, (batch, dim).

        Returns:
            The pooled features (batch, dim), and the weights (batch, height, width) in at least
            float32, not negative, adding up to 1 in every image.

        Raises:
            ValueError: for other shapes and dtypes.
        """
        if local.dim() != 4 or local.shape[1] != self.dim:
            raise ValueError(f"local = {tuple(local.shape)}: expected (batch, {self.dim}, h, w)")
        if g.shape != (len(local), self.dim):
            raise ValueError(f"g = {tuple(g.shape)}: expected {(len(local), self.dim)}")
        if local.dtype != g.dtype and not torch.is_autocast_enabled(local.device.type):
            raise ValueError(f"local, g: dtypes {local.dtype} and {g.dtype}, expected the same")
        logits = self.logits(local, g).flatten(1)
        # half precision would round small weights away; softmax takes off the maximum
        weights = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)  # a_i
        # eq. (5.2), the sum of a_i l_i
        pooled = torch.bmm(local.flatten(2), weights.to(local.dtype)[:, :, None])[:, :, 0]
        return pooled, weights.view(len(local), *local.shape[2:])


class AttentionHead(nn.Module):
    """A classifier that gets the attended features of some levels and nothing else.

    Each level passes batch normalisation, ReLU and dropout first, as in the official code.

    Args:
        dims: features of each level.
        num_classes: at least 1.
        head: "concat" puts one linear layer on all levels together; "indep" one on each, whose
            class probabilities are averaged, as the paper has it.
        dropout: probability, before the linear layers.

    Raises:
        ValueError: for an unknown head, no levels or no classes.

    References:
        Jetley et al. (2018), section 3.3.
    """

    def __init__(
        self, dims: Sequence[int], num_classes: int, head: str = "concat", dropout: float = 0.5
    ) -> None:
        super().__init__()
        one_of(HEADS, head=head)
        whole(1, num_classes=num_classes)
        if not len(dims):
            raise ValueError("dims = []: expected the features of at least one level")
        self.norms = nn.ModuleList(nn.BatchNorm1d(dim) for dim in dims)
        self.dropout = nn.Dropout(dropout)
        sizes = [sum(dims)] if head == "concat" else dims
        self.linear = nn.ModuleList(nn.Linear(size, num_classes) for size in sizes)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Classify the attended features of each level, a list of (batch, features).

        Returns:
            Logits (batch, classes); of "indep", the logarithm of the averaged probabilities.

        Raises:
            ValueError: for a single image in training, which batch normalisation cannot take.
        """
        if self.training and len(pooled[0]) == 1:
            raise ValueError(
                "a batch of 1 cannot train: the head's batch normalisation needs at least 2 "
                "images; eval() takes one"
            )
        h = [self.dropout(norm(g).relu()) for norm, g in zip(self.norms, pooled, strict=True)]
        if len(self.linear) == 1:
            return self.linear[0](torch.cat(h, 1))
        each = [linear(x).log_softmax(1) for linear, x in zip(self.linear, h, strict=True)]
        return torch.stack(each).logsumexp(0) - math.log(len(each))


def _refuse_text(layers: Sequence[str]) -> None:
    if isinstance(layers, str):  # its letters would be taken for names
        raise ValueError(f"layers = {layers!r}: expected a list of names, [{layers!r}]")


@contextmanager
def captured(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Keep what the named modules put out while the model runs inside the block.

    Args:
        model: any module.
        layers: names of its modules, as in `named_modules`.

    Yields:
        A dictionary that a forward pass fills; every pass empties it first. The hooks are
        removed at the end of the block, whatever happened in it.

    Raises:
        ValueError: for a module that does not exist, with what comes close; in a forward pass
            for one that it calls more than once, whose outputs no name tells apart; at the end
            of the block for one whose output a later module overwrote in place.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
    >>> with captured(model, ["1"]) as found:
    ...     _ = model(torch.zeros(2, 1, 8, 8))
    >>> found["1"].shape
    torch.Size([2, 4, 6, 6])
    """
    _refuse_text(layers)
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules or not name:
            near = difflib.get_close_matches(name, modules, n=3) or list(modules)[1:6]
            raise ValueError(f"layers: no module {name!r}; there is {', '.join(map(repr, near))}")
    found: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def begin(module: nn.Module, inputs: object) -> None:
        found.clear()
        versions.clear()

    def keep(name: str) -> Callable:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            if name in found:
                raise ValueError(
                    f"layers: {name!r} is called more than once in a forward pass, so it has no "
                    "one output: give every call a module of its own, or name another"
                )
            found[name] = output
            if isinstance(output, Tensor) and not output.is_inference():
                versions[name] = output._version

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    hooks.append(model.register_forward_pre_hook(begin))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    for name, version in versions.items():
        if found[name]._version != version:
            raise ValueError(
                f"layers: what {name!r} puts out is overwritten in place by the module after it "
                "(a ReLU?): name that one"
            )


def _is_channels_last(shape: Sequence[int], images: Sequence[int]) -> bool:
    """Whether of a map's sizes the first two, and not the last two, have the images' proportions."""
    height, width = images[-2:]

    def proportional(rows: int, columns: int) -> bool:  # but for rounding, of a place at most
        return abs(rows * width - columns * height) <= height + width

    return proportional(shape[1], shape[2]) and not proportional(shape[2], shape[3])


class AttentionClassifier(nn.Module):
    """Attach trainable attention to the named layers of any backbone.

    The output of the backbone, a vector an image, is the global vector g. It is not classified:
    classified are the attended features of the layers alone.

    Args:
        backbone: maps images to (batch, features), such as a torchvision VGG or ResNet.
        layers: names of its modules, as in `named_modules`, that put out maps (batch, channels,
            height, width); best after a ReLU.
        num_classes: at least 1.
        compat, scale: as `SpatialAttention`.
        head, dropout: as `AttentionHead`.
        match: where a level's channels differ from g's features, "project" maps g to the level
            and "lift" maps the level's features to g's by a 1 by 1 convolution.
        project: makes the map of g, from two sizes.
        example: images to find the sizes with, run once in inference mode; None: one black
            image, 3 by 64 by 64.

    The layers that are added have the backbone's dtype and device.

    Raises:
        ValueError: for a layer that does not exist or puts out no map, and for a backbone that
            puts out no vectors or cannot take the example. Warns where a map seems to have its
            channels last.

    References:
        Jetley et al. (2018), section 3.

    >>> from torchvision.models import resnet18
    >>> backbone = resnet18(num_classes=32)  # its output is g
    >>> model = AttentionClassifier(backbone, ["layer2", "layer3"], num_classes=5, compat="dp")
    >>> logits, maps = model.eval().attend(torch.rand(2, 3, 64, 64))
    >>> logits.shape, {name: tuple(found.shape) for name, found in maps.items()}
    (torch.Size([2, 5]), {'layer2': (2, 8, 8), 'layer3': (2, 4, 4)})
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[str],
        num_classes: int,
        compat: str = "pc",
        head: str = "concat",
        *,
        scale: str = "sqrt",
        dropout: float = 0.5,
        match: str = "project",
        project: Callable[[int, int], nn.Module] = nn.Linear,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        one_of(("project", "lift"), match=match)
        _refuse_text(layers)
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(f"layers = {list(layers)!r}: expected at least one, none twice")
        self.backbone, self.layers = backbone, tuple(layers)
        channels, width = self._sizes(torch.zeros(1, 3, 64, 64) if example is None else example)
        dims = [width if match == "lift" else c for c in channels]
        self.lifts = nn.ModuleList(
            nn.Identity() if c == dim else nn.Conv2d(c, dim, 1)
            for c, dim in zip(channels, dims, strict=True)
        )
        self.projections = nn.ModuleList(
            nn.Identity() if dim == width else project(width, dim) for dim in dims
        )
        self.attention = nn.ModuleList(SpatialAttention(dim, compat, scale) for dim in dims)
        self.head = AttentionHead(dims, num_classes, head, dropout)
        weights = (p for p in backbone.parameters() if p.is_floating_point())
        if (like := next(weights, None)) is not None:
            for added in (self.lifts, self.projections, self.attention, self.head):
                added.to(like.device, like.dtype)

    def _sizes(self, example: Tensor) -> tuple[list[int], int]:
        like = next(self.backbone.parameters(), example)
        with evaluation_mode(self.backbone), torch.no_grad():
            try:
                local, g = self.features(example.to(like.device, like.dtype))
            except RuntimeError as error:
                raise ValueError(
                    f"example {tuple(example.shape)}: the backbone cannot take it "
                    f"({str(error).splitlines()[0]}); give images of its size and channels"
                ) from error
        for name, part in zip(self.layers, local, strict=True):
            if _is_channels_last(part.shape, example.shape):
                warnings.warn(
                    f"layers: {name!r} puts out {tuple(part.shape)}, which looks like channels last: "
                    "attention takes it for (batch, channels, height, width); if it is not, let the "
                    "layer put out x.permute(0, 3, 1, 2)",
                    stacklevel=3,
                )
        return [part.shape[1] for part in local], g.shape[1]

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """The local features of every level and the global vector, as the backbone has them.

        Returns:
            A map (batch, channels, height, width) for each layer, and g, (batch, features).

        Raises:
            ValueError: for images that are no batch, a layer that puts out no map, and a backbone
                that puts out no vectors.
        """
        images(x=x)
        with captured(self.backbone, self.layers) as found:
            g = self.backbone(x)
        for name in self.layers:
            part = found.get(name)
            if not isinstance(part, Tensor) or part.dim() != 4:
                what = (
                    "nothing: it was not called" if name not in found
                    else tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                )  # fmt: skip
                raise ValueError(
                    f"layers: {name!r} puts out {what}: attention needs maps "
                    "(batch, channels, height, width)"
                )
        if not isinstance(g, Tensor) or g.dim() != 2:
            what = tuple(g.shape) if isinstance(g, Tensor) else type(g).__name__
            raise ValueError(f"backbone puts out {what}: expected a vector an image")
        return [found[name] for name in self.layers], g

    def attend(self, x: Tensor, query: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Classify, and say where the network looked.

        Args:
            x: images, (batch, channels, height, width).
            query: global vectors (batch, features) to use instead of the images' own.

        Returns:
            Logits (batch, classes), and each layer's weights (batch, height, width), which add up
            to 1.
        """
        local, g = self.features(x)
        g = g if query is None else query
        pooled, maps = [], {}
        parts = zip(self.layers, local, self.lifts, self.projections, self.attention, strict=True)
        for name, part, lift, project, attention in parts:
            attended, maps[name] = attention(lift(part), project(g))
            pooled.append(attended)
        return self.head(pooled), maps

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        return self.attend(x)[0]
