"""Which patches a student looks at, without attention maps in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from companion.checks import images as check_images
from companion.papers.masked_kd.architecture import (
    UnsupportedModelError,
    attention_module,
    token_grid,
)
from companion.training import evaluation_mode


class ClsAttention:
    """What `cls_attention` captured in the latest forward pass.

    Args:
        prefix: tokens before the patches, which `scores` leaves out.

    Attributes:
        row: (B, heads, prefix + N), float32: attention of CLS to every token, sums to 1.
    """

    def __init__(self, prefix: int) -> None:
        self.prefix = prefix
        self.row: Tensor | None = None
        self._calls: int | None = None  # of the block, in the forward pass that is running

    def _begin(self, *_: object) -> None:
        self.row, self._calls = None, 0

    def _end(self, *_: object) -> None:
        self._calls = None

    def _fill(self, row: Tensor) -> None:
        """Keep a row. Checkpointed blocks run again in the backward pass, which may be."""
        if self._calls is not None:
            self._calls += 1
            if self._calls > 1:
                raise UnsupportedModelError(
                    "the block is called more than once in a forward pass, so it has no one "
                    'attention: choose another layer, or selector="saliency"'
                )
        self.row = row

    @property
    def scores(self) -> Tensor:
        """(B, N): attention of CLS to each patch, averaged over heads, detached.

        Raises:
            RuntimeError: before the first forward pass.
        """
        if self.row is None:
            raise RuntimeError("no attention yet: call the model inside cls_attention first")
        return self.row[..., self.prefix :].mean(1)


class _Hook:
    """A hook that stays with its model: in a copy or a pickle of it, it does nothing."""

    def __init__(self, call: Callable[..., None] | None = None) -> None:
        self.call = call

    def __call__(self, *args: Any) -> None:
        if self.call is not None:
            self.call(*args)

    def __reduce__(self) -> tuple:
        return _Hook, ()


@contextmanager
def cls_attention(model: nn.Module, layer: int = -1) -> Iterator[ClsAttention]:
    """Read the CLS row of a block's attention from every forward pass inside the block.

    Works beside fused attention, which returns no weights: a hook takes queries and keys as the
    model computes them, and one softmax row per head is computed from them in float32, before
    dropout and outside autocast. Outputs and gradients of the model stay as they are; the hooks
    are gone after the block, and a copy or pickle made inside it has idle ones. Every pass forgets
    the row of the one before.

    Args:
        model: a vision transformer of timm (distilled, registers and CaiT included), of
            torchvision or of `vit`.
        layer: as `attention_module` counts; -1 is the last.

    Raises:
        UnsupportedModelError: as `attention_module`, and in a forward pass that calls the block
            more than once.
        ValueError: as `attention_module`.

    References:
        Son et al. (2024), section 3.1: the scores of the patches.

    >>> from companion.papers.masked_kd.vit import ViT
    >>> model = ViT(24, 4)
    >>> with cls_attention(model) as attention:
    ...     _ = model(torch.rand(2, 1, 24, 24))
    >>> attention.row.shape, attention.scores.shape
    (torch.Size([2, 4, 37]), torch.Size([2, 36]))
    """
    module, prefix = attention_module(model, layer)
    found = ClsAttention(prefix)
    hooks = _attach(module, found, type(model).__name__)
    hooks.append(model.register_forward_pre_hook(_Hook(found._begin)))
    hooks.append(model.register_forward_hook(_Hook(found._end), always_call=True))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _attach(module: nn.Module, found: ClsAttention, name: str) -> list:
    """Hooks that fill `found`, by the kind of attention."""
    if isinstance(module, nn.MultiheadAttention):
        same = module._qkv_same_embed_dim and module.batch_first and module.bias_k is None
        if not same or module.add_zero_attn:
            raise UnsupportedModelError(
                f"{name}: expected nn.MultiheadAttention with batch_first and plain keys"
            )

        def from_input(_, args):
            found._fill(_projected_row(module, args[0].detach()))

        return [module.register_forward_pre_hook(_Hook(from_input))]

    parts: Any = module  # named as timm or torchvision names them
    heads = parts.num_heads
    if all(isinstance(getattr(module, part, None), nn.Module) for part in ("q", "k", "v")):
        queries: list[Tensor] = []  # CaiT computes its one query before its keys

        def from_query(_, __, output):
            queries[:] = [output.detach()]

        def from_key(_, __, output):
            key = output.detach().unflatten(-1, (heads, -1)).transpose(1, 2)
            query = queries.pop().unflatten(-1, (heads, -1))
            found._fill(cls_row(query, key, module.scale))

        hooks = (parts.q, from_query), (parts.k, from_key)
        return [part.register_forward_hook(_Hook(hook)) for part, hook in hooks]

    qkv = getattr(module, "qkv", None)
    head_dim = getattr(module, "head_dim", None)
    if not isinstance(qkv, nn.Linear) or qkv.out_features != 3 * heads * (head_dim or 0):
        raise UnsupportedModelError(
            f"{name}: expected attention with one qkv layer of 3 x heads x head_dim outputs"
        )

    def from_qkv(_, __, output):
        q, k, _v = output.detach().unflatten(-1, (3, heads, head_dim)).unbind(2)
        query = _normed(getattr(module, "q_norm", None), q[:, 0])
        key = _normed(getattr(module, "k_norm", None), k).transpose(1, 2)
        found._fill(cls_row(query, key, module.scale))

    return [qkv.register_forward_hook(_Hook(from_qkv))]


@torch.no_grad()
def cls_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Softmax of one query over all keys, in float32 whatever autocast says.

    Args:
        query: (B, heads, d).
        key: (B, heads, n, d).

    Returns:
        (B, heads, n).
    """
    with torch.autocast(query.device.type, enabled=False):
        # eq. (6.1): q_cls . k_j, in float32
        logits = key.float() @ query.float()[..., None]
        return (scale * logits[..., 0]).softmax(-1)


@torch.no_grad()
def _projected_row(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """The CLS row from the input (B, n, dim) of PyTorch's multi-head attention.

    The keys are not computed again: q·(W x_j + b) = (Wᵀq)·x_j + q·b, and q·b, the same for all j,
    drops out of the softmax.
    """
    dim, heads = module.embed_dim, module.num_heads
    with torch.autocast(x.device.type, enabled=False):
        x, weight = x.float(), module.in_proj_weight.float()
        bias = None if module.in_proj_bias is None else module.in_proj_bias[:dim].float()
        q = linear(x[:, 0], weight[:dim], bias).unflatten(-1, (heads, -1))
        back = torch.einsum("bhd,hde->bhe", q, weight[dim : 2 * dim].unflatten(0, (heads, -1)))
        logits = back @ x.transpose(1, 2)
        return (logits * module.head_dim**-0.5).softmax(-1)


def _normed(norm: nn.Module | None, x: Tensor) -> Tensor:
    """The model's own normalisation of queries or keys, in the precision of its weights."""
    if norm is None:
        return x
    weight = next(norm.parameters(), None)
    return norm(x if weight is None else x.to(weight.dtype))


def gradient_saliency(model: nn.Module, images: Tensor) -> Tensor:
    """Gradient times input of the largest logit, absolute, averaged over each patch; (B, N).

    Scores for any classifier that cuts images into patches, with a CLS token or without; costs
    a forward and a backward pass of it. Parameters get no gradient. Works inside `torch.no_grad`
    and `torch.inference_mode` too.

    Raises:
        UnsupportedModelError: as `token_grid`.
        ValueError: for what is no batch of images, or images that patches do not tile.
    """
    check_images(images=images)
    rows, columns = token_grid(model, images)
    # what was made in inference mode cannot be saved for a backward pass: work on a copy
    with evaluation_mode(model), torch.inference_mode(False), torch.enable_grad():
        x = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).max(1).values.sum(), x)
    relevance = (gradient * images.detach()).abs().sum(1, keepdim=True)
    patches = torch.nn.functional.adaptive_avg_pool2d(relevance.float(), (rows, columns))
    return patches.flatten(1)
