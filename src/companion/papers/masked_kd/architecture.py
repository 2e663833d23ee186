"""What the method must know of a vision transformer, read off the module: timm's, torchvision's
and our own are distinguished by their parts, so neither library is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class UnsupportedModelError(ValueError):
    """Raised for a model in which the method finds no place to work."""


@dataclass(frozen=True)
class DropPoint:
    """Where patch tokens have their positions and no block has seen them.

    Args:
        parent, name: the attribute that holds the layer there, whose output is (B, prefix + N,
            dim).
        prefix: tokens that are no patches (CLS, distillation, registers); 0 where CLS joins in
            the last blocks only.
    """

    parent: nn.Module
    name: str
    prefix: int

    @property
    def module(self) -> nn.Module:
        """The layer itself."""
        return getattr(self.parent, self.name)


def drop_point(model: nn.Module) -> DropPoint:
    """Find the layer after which patch tokens can be dropped.

    timm's vision transformers (DeiT, DeiT-III, registers): ``patch_drop``. torchvision's:
    ``encoder.dropout``. timm's CaiT: ``pos_drop``, before CLS exists. What `torch.compile` has
    made of one of them has its place.

    Raises:
        UnsupportedModelError: for any other model.
    """
    inner: Any = getattr(model, "_orig_mod", model)
    if isinstance(getattr(inner, "blocks_token_only", None), nn.Module):
        return DropPoint(inner, "pos_drop", 0)
    drop = getattr(inner, "patch_drop", None)  # one that gives indices as well, Eva's, is no place
    if isinstance(drop, nn.Module) and "WithIndices" not in type(drop).__name__:
        return DropPoint(inner, "patch_drop", inner.num_prefix_tokens)
    encoder: Any = getattr(inner, "encoder", None)
    if hasattr(inner, "class_token") and isinstance(getattr(encoder, "dropout", None), nn.Module):
        return DropPoint(encoder, "dropout", 1)
    raise UnsupportedModelError(
        f"{type(inner).__name__} has no known place to drop tokens: expected timm's vision "
        "transformers (patch_drop) or CaiT (pos_drop before class attention), or torchvision's "
        "VisionTransformer (encoder.dropout). Pass the model itself, not a wrapper around it."
    )


def attention_module(model: nn.Module, layer: int = -1) -> tuple[nn.Module, int]:
    """The attention of a block that reads CLS, and how many prefix tokens precede the patches.

    Args:
        layer: index of the block; CaiT counts its class-attention blocks only.

    Raises:
        UnsupportedModelError: without a CLS token that is classified, for an
            unknown kind of attention and for a compiled model.
        ValueError: for a layer that there is not.
    """
    name = type(model).__name__
    parts: Any = model  # named as timm or torchvision names them
    if isinstance(getattr(model, "blocks_token_only", None), nn.Module):
        blocks, part, prefix = parts.blocks_token_only, "attn", 1
    elif hasattr(model, "class_token") and hasattr(getattr(model, "encoder", None), "layers"):
        blocks, part, prefix = parts.encoder.layers, "self_attention", 1
    elif isinstance(getattr(model, "blocks", None), nn.Module):
        if getattr(model, "cls_token", None) is None:
            raise UnsupportedModelError(
                f"{name} has no CLS token whose attention could be read: "
                'use selector="saliency", which needs none'
            )
        blocks, part, prefix = parts.blocks, "attn", parts.num_prefix_tokens
    else:
        raise UnsupportedModelError(
            f"{name} has no known attention blocks: expected timm's or torchvision's vision "
            "transformer. Pass the model itself, not a wrapper around it."
        )
    # timm keeps a class token beside average pooling, but nothing teaches it where to look
    pooling = getattr(model, "global_pool", "token")
    if pooling != "token":
        raise UnsupportedModelError(
            f"{name} classifies pooled patches (global_pool = {pooling!r}), so the "
            'attention of its CLS token says nothing: use selector="saliency"'
        )
    if not -len(blocks) <= layer < len(blocks):
        raise ValueError(f"layer = {layer!r}: {name} has {len(blocks)} blocks that read CLS")
    module: Any = getattr(list(blocks)[layer], part, None)
    if module is not None and _is_compiled(model, module):
        raise UnsupportedModelError(
            "a compiled model may skip the hooks that read its attention: pass it as it was "
            "before torch.compile (a teacher that is only masked may be compiled)"
        )
    known = isinstance(module, nn.MultiheadAttention) or hasattr(module, "num_heads")
    if not known or getattr(module, "rel_pos", None) is not None or hasattr(model, "rope"):
        raise UnsupportedModelError(
            f"{name} computes its attention from more than queries and keys "
            '(relative or rotary positions, or none at all): use selector="saliency"'
        )
    return module, prefix


def _is_compiled(model: nn.Module, module: nn.Module) -> bool:
    """Whether `torch.compile` has a part of a model that holds a module, or lies within it."""
    within = set(module.modules())
    return any(
        (part._compiled_call_impl is not None or "_orig_mod" in part._modules)
        and (part in within or module in set(part.modules()))
        for part in model.modules()
    )


def patch_sides(model: nn.Module) -> tuple[int, int]:
    """Height and width of a model's patches, in pixels.

    Raises:
        UnsupportedModelError: for a model that does not state them.
    """
    patch = getattr(getattr(model, "patch_embed", model), "patch_size", None)
    if patch is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not state the size of its patches: expected "
            "patch_embed.patch_size (timm) or patch_size (torchvision)"
        )
    height, width = (patch, patch) if isinstance(patch, int) else patch
    return height, width


def token_grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """Rows and columns of patches into which a model cuts these images, (B, C, H, W).

    Raises:
        UnsupportedModelError: for a model that does not state the side of its patches.
        ValueError: for images that they do not tile.
    """
    height, width = patch_sides(model)
    sides = images.shape[-2:]
    embedding = getattr(model, "patch_embed", model)
    if getattr(embedding, "dynamic_img_pad", False):  # timm fills the last ones up
        return -(-sides[0] // height), -(-sides[1] // width)
    if sides[0] % height or sides[1] % width:
        raise ValueError(
            f"images of {sides[0]} x {sides[1]}: patches of {height} x {width} do not tile them"
        )
    return sides[0] // height, sides[1] // width


def patch_count(model: nn.Module) -> int | None:
    """Patches for which a model has positions; None where it does not say."""
    parts: Any = model
    count = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    if count is None and hasattr(model, "class_token"):
        count = parts.seq_length - 1
    return count
