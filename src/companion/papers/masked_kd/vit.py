"""A plain vision transformer, and the sizes of the paper's.

Its parts have timm's names (``patch_embed``, ``patch_drop``, ``blocks[i].attn.qkv``,
``num_prefix_tokens``), so whatever works on it works on timm's vision transformers.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from companion.checks import above, at_least, one_of, whole


@dataclass(frozen=True)
class Size:
    """Width, number of blocks, number of heads, hidden units of an MLP over the width."""

    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0


SIZES = {
    "Ti": Size(192, 12, 3),
    "S": Size(384, 12, 6),
    "B": Size(768, 12, 12),
    "L": Size(1024, 24, 16),
}


# of linear weights; DeiT, which is much wider, has 0.02
INIT_STD = 0.03


class PatchEmbed(nn.Module):
    """Square patches, each mapped linearly to a token: (B, channels, H, W) -> (B, N, dim)."""

    def __init__(self, image_size: int, patch: int, channels: int, dim: int) -> None:
        super().__init__()
        self.img_size = (image_size, image_size)
        self.patch_size = (patch, patch)
        self.grid_size = (image_size // patch, image_size // patch)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, dim) of images (B, channels, H, W); ValueError for another H or W."""
        if x.shape[-2:] != self.img_size:
            sides, own = (" x ".join(map(str, size)) for size in (x.shape[-2:], self.img_size))
            raise ValueError(f"images of {sides}: expected {own}, the model's image_size")
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention, fused: the attention weights are never in memory."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attended tokens, (B, n, dim) as the input."""
        batch, n, dim = x.shape
        q, k, v = self.qkv(x).view(batch, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, n, dim))


class Block(nn.Module):
    """Attention, then an MLP, each on normalised tokens and added to its input."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.fc1 = nn.Linear(dim, round(mlp_ratio * dim))
        self.fc2 = nn.Linear(round(mlp_ratio * dim), dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens after the block, (B, n, dim) as the input."""
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer that classifies by its CLS token.

    Images (batch, channels, image_size, image_size) -> logits (batch, classes).

    Args:
        image_size: side of the images, pixels.
        patch: side of a patch, pixels; a divisor of image_size.
        dim: width, a multiple of heads.
        depth: blocks.
        heads: of the attention in each block.
        mlp_ratio: hidden units of an MLP over dim.
        channels: of the images.
        classes: outputs.
        init_std: standard deviation of the linear layers' initial weights.

    Raises:
        ValueError: for an image that patches do not tile, or a width that heads do not share.

    >>> ViT(24, 4)(torch.rand(2, 1, 24, 24)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        image_size: int = 24,
        patch: int = 4,
        *,
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        mlp_ratio: float = 2.0,
        channels: int = 1,
        classes: int = 10,
        init_std: float = INIT_STD,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "patch": patch, "dim": dim, "heads": heads}
        whole(1, **sizes, depth=depth, channels=channels, classes=classes)
        above(0, mlp_ratio=mlp_ratio)
        at_least(0, init_std=init_std)
        if image_size % patch:
            raise ValueError(
                f"patch = {patch!r}: expected a divisor of image_size = {image_size!r}"
            )
        if dim % heads:
            raise ValueError(f"heads = {heads!r}: expected a divisor of dim = {dim!r}")
        self.num_prefix_tokens = 1
        self.patch_embed = PatchEmbed(image_size, patch, channels, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.patch_embed.num_patches, dim))
        self.patch_drop = nn.Identity()  # where `token_drop` reaches in
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_ratio) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=init_std)
                nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)

    @classmethod
    def of(
        cls, size: str, image_size: int = 224, patch: int = 16, *, channels: int = 3,
        classes: int = 1000, init_std: float = 0.02,
    ) -> ViT:  # fmt: skip
        """A transformer of one of the paper's sizes: "Ti", "S", "B" or "L".

        Args:
            size: key of `SIZES`.
            image_size, patch, channels, classes, init_std: as the class.

        Raises:
            ValueError: for another size, and as the class.

        >>> with torch.device("meta"):  # nothing is computed
        ...     model = ViT.of("S")
        >>> sum(p.numel() for p in model.parameters())
        22050664
        """
        one_of(SIZES, size=size)
        named = SIZES[size]
        return cls(
            image_size, patch, dim=named.dim, depth=named.depth, heads=named.heads,
            mlp_ratio=named.mlp_ratio, channels=channels, classes=classes, init_std=init_std,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, channels, image_size, image_size), no others."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        x = self.blocks(self.patch_drop(x))
        return self.head(self.norm(x[:, 0]))


def named_model(
    name: str, classes: int, image_size: int = 224, *, pretrained: bool = False
) -> nn.Module:
    """One of timm's models, with random or pretrained weights, for pictures of some size.

    Args:
        name: of timm.
        classes: outputs.
        image_size: side of the images, pixels.
        pretrained: timm fetches the weights; a head of another number of classes is drawn anew.

    Raises:
        ImportError: without timm.
        ValueError: for a name that timm does not know, a model that takes no size of picture,
            or a size that its patches do not tile.
    """
    whole(1, classes=classes, image_size=image_size)
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            f"model {name!r} is one of timm's: install it with `pip install timm`, or leave the "
            "name empty for this chapter's own small transformers"
        ) from error
    if name not in timm.list_models():
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; close: {', '.join(close)}" if close else ""
        raise ValueError(f"model {name!r}: timm has no such model{hint}")
    made: dict[str, Any] = {
        "pretrained": pretrained,
        "num_classes": classes,
        "img_size": image_size,
    }
    try:
        model = timm.create_model(name, **made)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        raise ValueError(f"model {name!r}: no vision transformer, it takes no img_size") from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", (1,))[0]
    if image_size % patch:
        raise ValueError(
            f"image_size = {image_size!r}: expected a multiple of {name}'s patch, {patch}"
        )
    return model
