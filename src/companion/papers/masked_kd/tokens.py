"""Choosing patches, and dropping the others from a transformer's sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from companion.checks import generators, one_of
from companion.papers.masked_kd.architecture import (
    UnsupportedModelError,
    drop_point,
    token_grid,
)
from companion.training import upload

MODES = ("top", "bottom", "random", "full")


def check_keep(keep: int, tokens: int | None = None) -> None:
    """Raise ValueError unless `keep` is a whole number from 1 to the number of patches."""
    whole = isinstance(keep, Integral) and not isinstance(keep, bool)
    if not whole or keep < 1 or (tokens is not None and keep > tokens):
        allowed = "at least 1" if tokens is None else f"1 to {tokens}, the number of patches"
        raise ValueError(f"keep = {keep!r}: expected a whole number, {allowed}")


def select_tokens(
    scores: Tensor, k: int, mode: str = "top", generator: torch.Generator | None = None,
    *, check: bool = True,
) -> Tensor:  # fmt: skip
    """Indices of k patches an image, in ascending order, (B, k).

    Args:
        scores: (B, N).
        k: patches to keep of each image, 1 to N.
        mode: "top" takes the largest, "bottom" the smallest, "random" any k with the same
            chance, "full" all N whatever k. Equal scores go by their place, so that every
            device chooses the same.
        generator: CPU generator for "random".
        check: look whether the scores are finite, for which a GPU has to be waited for.

    Raises:
        ValueError: for k outside 1 to N, an unknown mode, a number as generator, and scores of
            another shape or that are not finite.

    References:
        Son et al. (2024), section 3.1: the set of patches that are kept.

    >>> scores = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    >>> select_tokens(scores, 2).tolist(), select_tokens(scores, 2, "bottom").tolist()
    ([[1, 3]], [[0, 2]])
    """
    one_of(MODES, mode=mode)
    if scores.dim() != 2:
        raise ValueError(f"scores: shape {tuple(scores.shape)}, expected (images, patches)")
    generators(generator=generator)
    batch, tokens = scores.shape
    if mode == "full":
        return torch.arange(tokens, device=scores.device).expand(batch, -1)
    check_keep(k, tokens)
    if mode == "random":
        scores = upload(torch.rand((batch, tokens), generator=generator), scores.device)
    elif check and not scores.isfinite().all():
        raise ValueError("scores: expected finite numbers; the student may have diverged")
    # not every device sorts 16 bits; wider numbers would lose their order in float32
    wide = scores if scores.element_size() >= 4 else scores.float()
    order = wide.argsort(dim=1, descending=mode != "bottom", stable=True)
    return order[:, :k].sort(1).values


class _Kept(nn.Module):
    """A layer of a model, and behind it the patches that are kept."""

    def __init__(self, layer: nn.Module, prefix: int, keep: Tensor) -> None:
        super().__init__()
        self.layer, self.prefix, self.keep = layer, prefix, keep

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.layer(x)
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        if self.keep.shape[0] != len(tokens) or self.keep.shape[1] > patches.shape[1]:
            raise ValueError(
                f"keep: expected ({len(tokens)}, at most {patches.shape[1]}) indices, "
                f"got {tuple(self.keep.shape)}"
            )
        kept = patches.gather(1, self.keep[:, :, None].expand(-1, -1, tokens.shape[2]))
        return torch.cat([prefix, kept], 1)


def _patches(model: nn.Module, images: Tensor) -> int | None:
    """Patches into which a model cuts these images; None where it does not say."""
    try:
        rows, columns = token_grid(model, images)
    except UnsupportedModelError:
        return None
    return rows * columns


def _check_indices(keep: Tensor, patches: int | None) -> None:
    """Raise ValueError for an index that no patch has; a GPU would have to be waited for."""
    if keep.device.type == "cpu" and keep.numel():
        low, high = (int(value) for value in keep.aminmax())
        if low < 0 or (patches is not None and high >= patches):
            allowed = "at least 0" if patches is None else f"0 to {patches - 1}"
            raise ValueError(f"keep: indices {low} to {high}, expected {allowed}")


@contextmanager
def token_drop(model: nn.Module) -> Iterator[Callable[[Tensor, Tensor | None], Tensor]]:
    """Let a vision transformer see some patches only.

    All patches are embedded and get their positions; then those that are not kept leave the
    sequence. Nothing of the model changes but during a call of the function. A model may be
    compiled, before or after: not a hook (`torch.compile` does not look whether there are new
    ones) but another layer drops the tokens, for which it compiles anew.

    Args:
        model: a vision transformer, see `drop_point`.

    Yields:
        A function (images, keep) -> outputs of the model. Its `keep` has indices of patches,
        (B, k), 0 to N - 1, without those of CLS and other prefix tokens; None keeps all.

    Raises:
        UnsupportedModelError: as `drop_point`.
        ValueError: for a `keep` of another shape or dtype, or with an index that no patch has.

    >>> from companion.papers.masked_kd.vit import ViT
    >>> with token_drop(ViT(24, 4)) as masked:
    ...     logits = masked(torch.rand(2, 1, 24, 24), torch.tensor([[0, 5, 7], [1, 2, 35]]))
    >>> logits.shape
    torch.Size([2, 10])
    """
    drop_point(model)

    def forward(images: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None:
            return model(images)
        if keep.dtype != torch.long or keep.ndim != 2 or not keep.numel():
            raise ValueError(f"keep: {keep.dtype} {tuple(keep.shape)}, expected (B, k) indices")
        _check_indices(keep, _patches(model, images))
        place = drop_point(model)
        layer = place.module
        kept = _Kept(layer, place.prefix, keep).train(layer.training)
        setattr(place.parent, place.name, kept)
        try:
            return model(images)
        finally:
            setattr(place.parent, place.name, layer)

    yield forward


def resize_scores(scores: Tensor, grid_s: tuple[int, int], grid_t: tuple[int, int]) -> Tensor:
    """Carry a student's scores (B, rows x columns) over to a teacher's grid, bilinearly.

    Args:
        scores: (B, rows x columns) of the student.
        grid_s, grid_t: rows and columns of patches of student and teacher.

    Raises:
        ValueError: for scores that do not fill the grid, or grids of different aspect ratios,
            whose patches cannot lie over the same image.
    """
    (rows_s, columns_s), (rows_t, columns_t) = grid_s, grid_t
    if scores.shape[1] != rows_s * columns_s:
        raise ValueError(
            f"scores: {scores.shape[1]} a picture do not fill a grid of {rows_s} x {columns_s}"
        )
    if grid_s == grid_t:
        return scores
    if rows_s * columns_t != columns_s * rows_t:
        raise ValueError(
            f"grids of {rows_s} x {columns_s} (student) and {rows_t} x {columns_t} (teacher) have "
            "different shapes: give both models pictures of the same aspect ratio"
        )
    maps = scores.unflatten(1, grid_s)[:, None]
    smaller = rows_t < rows_s
    return interpolate(maps, grid_t, mode="bilinear", antialias=smaller).flatten(1)


def patch_truth(mask: Tensor, patch: int | tuple[int, int]) -> Tensor:
    """Which patches hold a pixel of a mask.

    Args:
        mask: (B, H, W) bool.
        patch: side of a patch in pixels, or its height and width.

    Returns:
        (B, N) bool.

    Raises:
        ValueError: for another kind of mask, and a patch that does not tile it.
    """
    if mask.dim() != 3 or mask.dtype != torch.bool:
        raise ValueError(f"mask: {mask.dtype} {tuple(mask.shape)}, expected bool (B, H, W)")
    height, width = (patch, patch) if isinstance(patch, int | Integral) else patch
    if min(height, width) < 1 or mask.shape[1] % height or mask.shape[2] % width:
        raise ValueError(f"patch = {patch!r}: expected a divisor of {tuple(mask.shape[1:])}")
    pooled = torch.nn.functional.max_pool2d(mask[:, None].float(), (height, width))
    return pooled.flatten(1) > 0


def mask_recall(keep: Tensor, truth: Tensor) -> Tensor:
    """The share of the true patches of each image that is kept, (B,).

    NaN for an image without a true patch.

    Args:
        keep: (B, k) indices of different patches.
        truth: (B, N) bool.

    Raises:
        ValueError: for a truth that is not bool, other shapes, and indices that no patch has.

    >>> truth = torch.tensor([[True, True, False, False]])
    >>> mask_recall(torch.tensor([[1, 3]]), truth)
    tensor([0.5000])
    """
    if truth.dim() != 2 or truth.dtype != torch.bool:
        raise ValueError(f"truth: {truth.dtype} {tuple(truth.shape)}, expected bool (B, N)")
    if keep.dim() != 2 or len(keep) != len(truth) or keep.dtype != torch.long:
        raise ValueError(
            f"keep: {keep.dtype} {tuple(keep.shape)}, expected indices ({len(truth)}, k)"
        )
    _check_indices(keep, truth.shape[1])
    return truth.gather(1, keep).sum(1) / truth.sum(1)
