"""Maps of attention and of class activation, and how well they point at what is there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch import Tensor, nn
from torch.nn.functional import interpolate

from companion.checks import images, one_of, whole
from companion.papers.learn_to_pay_attention.attention import AttentionClassifier
from companion.papers.learn_to_pay_attention.networks import GapClassifier, ProgressiveAttention
from companion.training import evaluation_mode

THRESHOLDS = ("otsu", "area", "mean")


def _check_images(x: Tensor, batch_size: int) -> None:
    whole(1, batch_size=batch_size)
    images(x=x)


@torch.no_grad()
def attention_maps(
    model: nn.Module, x: Tensor, *, query: Tensor | None = None, batch_size: int = 500
) -> dict[str, Tensor]:
    """The attention of every level, in inference mode.

    Args:
        model: an `AttentionClassifier` or a `ProgressiveAttention`.
        x: images, (images, channels, height, width).
        query: global vectors (images, features) to ask an `AttentionClassifier` with instead of
            the images' own, see `global_vectors`.
        batch_size: images at once.

    Returns:
        Layer -> (images, height, width); the weights of an image add up to 1 (gates of a
        `ProgressiveAttention` do not).

    Raises:
        ValueError: for a model without attention, or that takes no query, for what is no batch of
            images, or other numbers of images and queries.
    """
    _check_images(x, batch_size)
    attend = getattr(model, "attend", None)
    if not callable(attend):
        hint = "; its maps are cam_maps" if isinstance(model, GapClassifier) else ""
        raise ValueError(f"model: a {type(model).__name__} pays no attention{hint}")
    if query is not None and isinstance(model, ProgressiveAttention):
        raise ValueError("query: a ProgressiveAttention has no global vector to ask with")
    if query is not None and len(query) != len(x):
        raise ValueError(f"query: {len(query)} vectors for {len(x)} images")
    queries = [None] * len(x) if query is None else query.split(batch_size)
    with evaluation_mode(model):
        parts = [
            attend(batch)[1] if q is None else attend(batch, q)[1]
            for batch, q in zip(x.split(batch_size), queries, strict=False)
        ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def global_vectors(model: AttentionClassifier, x: Tensor, *, batch_size: int = 500) -> Tensor:
    """The global vectors g of some images, (images, features), in inference mode.

    Raises:
        ValueError: for what is no batch of images.
    """
    _check_images(x, batch_size)
    with evaluation_mode(model):
        return torch.cat([model.features(batch)[1] for batch in x.split(batch_size)])


@torch.no_grad()
def cam_maps(
    model: GapClassifier, x: Tensor, classes: Tensor | None = None, *, batch_size: int = 500
) -> Tensor:
    """Class activation maps, (images, height, width): the share of each place in a class's logit.

    Their mean over the places, plus the class's bias, is the logit.

    Args:
        model: a `GapClassifier`.
        x: images, (images, channels, height, width).
        classes: (images,), which class to explain; None: the predicted one.
        batch_size: images at once.

    Raises:
        ValueError: for another kind of model, for what is no batch of images, or classes that
            there are not.

    References:
        Zhou et al. (2016), Learning deep features for discriminative localization.
    """
    if not isinstance(model, GapClassifier):
        raise ValueError(f"model: {type(model).__name__}, expected a GapClassifier")
    _check_images(x, batch_size)
    number = model.linear.out_features
    if classes is not None and not (
        classes.shape == x.shape[:1] and ((classes >= 0) & (classes < number)).all()
    ):
        raise ValueError(f"classes: expected {len(x)} numbers from 0 to {number - 1}")
    maps = []
    with evaluation_mode(model):
        for start in range(0, len(x), batch_size):
            features = model.features(x[start : start + batch_size])
            if classes is None:
                chosen = model.linear(features.mean((2, 3))).argmax(1)
            else:
                chosen = classes[start : start + batch_size]
            weights = model.linear.weight[chosen]
            maps.append(torch.einsum("bchw,bc->bhw", features, weights))
    return torch.cat(maps)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (images, h, w) at the size of the images, bilinear, the least value of each at 0.

    A map that is the same everywhere but for rounding is 0 everywhere.

    Args:
        maps: (images, h, w).
        size: height and width to resize to.
    """
    maps = maps.float()
    wide = interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]
    wide = wide - wide.amin((1, 2), keepdim=True)
    # what is left of a map without differences
    flat = wide.amax((1, 2), keepdim=True) <= _rounding(maps)[:, None, None]
    return wide.masked_fill(flat, 0.0)


def _rounding(maps: Tensor) -> Tensor:
    """Below which the values of each resized map do not differ, (images,)."""
    maps = maps.float()
    return 8 * torch.finfo(maps.dtype).eps * maps.abs().amax((1, 2))


def _fit(maps: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Maps at the size of the truth, and the truth, both (images, pixels)."""
    if truth.dim() != 3 or maps.dim() != 3 or len(maps) != len(truth):
        raise ValueError(
            f"maps {tuple(maps.shape)}, truth {tuple(truth.shape)}: expected (images, h, w) each"
        )
    if truth.dtype != torch.bool:
        raise ValueError(f"truth: dtype {truth.dtype}, expected bool")
    if not maps.isfinite().all():
        raise ValueError("maps: expected finite values")
    return resized(maps, truth.shape[1:]).flatten(1), truth.flatten(1)


def pointing_game(maps: Tensor, truth: Tensor) -> Tensor:
    """Whether the largest value of each map lies in the truth: (images,), 0 or 1.

    Where several places share the largest value, up to rounding at the size of the map's values,
    the share of them in the truth; so a map that is the same everywhere scores as chance does.

    Args:
        maps: (images, h, w), resized to the truth.
        truth: (images, height, width), bool.

    Raises:
        ValueError: for other shapes, a truth that is not bool, and maps that are not finite.

    >>> maps, truth = torch.zeros(1, 6, 6), torch.zeros(1, 24, 24, dtype=torch.bool)
    >>> maps[0, 1, 2] = 1.0
    >>> truth[0, 4:12, 8:16] = True
    >>> pointing_game(maps, truth).tolist(), energy_in_box(maps, truth).tolist()
    ([1.0], [0.7...])
    """
    wide, inside = _fit(maps, truth)
    top = wide >= wide.amax(1, keepdim=True) - _rounding(maps)[:, None]
    return (top & inside).sum(1) / top.sum(1)


def energy_in_box(maps: Tensor, truth: Tensor) -> Tensor:
    """The share of each map, above its least value, that lies in the truth: (images,).

    A map that is the same everywhere has nothing to share out and scores as chance does, the
    truth's share of the image.

    Args:
        maps, truth: as `pointing_game`.

    Raises:
        ValueError: as `pointing_game`.
    """
    wide, inside = _fit(maps, truth)
    total = wide.sum(1)
    share = (wide * inside).sum(1) / total
    return torch.where(total > 0, share, inside.float().mean(1))


def otsu_threshold(maps: Tensor) -> Tensor:
    """Otsu's threshold of every map, (images,): it splits the values into two narrow groups.

    scikit-image's, on a histogram of 256 bins; of a map that is the same everywhere, its value.
    """
    values = [float(threshold_otsu(m)) for m in maps.detach().cpu().numpy().astype(np.float64)]
    return torch.tensor(values, dtype=_fractional(maps), device=maps.device)


def _fractional(maps: Tensor) -> torch.dtype:
    """Of a threshold, which need not be an integer where the maps are."""
    return maps.dtype if maps.is_floating_point() else torch.float64


def binarised(maps: Tensor, how: str = "otsu", *, area: int = 64) -> Tensor:
    """The pixels of each map that stand out, bool, same shape.

    Args:
        maps: (images, height, width).
        how: "otsu" above Otsu's threshold, "mean" above the mean, "area" the `area` largest
            (the earlier ones where values tie).
        area: pixels, at least 0.

    Raises:
        ValueError: for another way or area.
    """
    one_of(THRESHOLDS, how=how)
    whole(0, area=area)
    if how == "area":
        flat = maps.flatten(1)
        order = flat.argsort(dim=1, descending=True, stable=True)[:, :area]
        return torch.zeros_like(flat, dtype=torch.bool).scatter(1, order, True).view_as(maps)
    if how == "otsu":
        level = otsu_threshold(maps)
    else:  # rounded, the mean of equal values may lie below them
        level = maps.mean((1, 2), dtype=_fractional(maps)).maximum(maps.amin((1, 2)))
    return maps > level[:, None, None]


def mask_iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of two sets of pixels, (images,); 0 where both are empty.

    Args:
        masks, truth: (images, height, width), bool.

    Raises:
        ValueError: for other dtypes, or two shapes.
    """
    if (masks.dtype, truth.dtype) != (torch.bool, torch.bool):
        raise ValueError(f"masks, truth: dtypes {masks.dtype}, {truth.dtype}, expected bool")
    if masks.shape != truth.shape:
        raise ValueError(f"masks {tuple(masks.shape)}: expected the truth's {tuple(truth.shape)}")
    both, either = (masks & truth).flatten(1).sum(1), (masks | truth).flatten(1).sum(1)
    return both / either.clamp(min=1)


def check_several(logits: Tensor) -> None:
    """Raise ValueError for a model of a single class, of which the softmax is always 1."""
    if logits.shape[-1] < 2:
        raise ValueError("model: one class, expected at least two to tell apart")


@torch.no_grad()
def perturbation_curve(
    model: nn.Module, x: Tensor, maps: Tensor, kind: str, *, parts: int = 10, fill: float = 0.0
) -> Tensor:
    """Mean probability of the class predicted at first, as pixels are removed or inserted.

    Pixels are taken in the order of the map, the largest value first, a `parts`-th of the image
    at a time.

    Args:
        model: a classifier.
        x: images, (images, channels, height, width).
        maps: (images, h, w); resized to the images.
        kind: "deletion" replaces them by `fill`; "insertion" begins with `fill` everywhere and
            puts them back. A map that says what the network uses makes deletion fall early and
            insertion rise early.
        parts: steps from none to all pixels, at least 1.
        fill: value of a removed pixel.

    Returns:
        (parts + 1,), from none of the pixels to all of them.

    Raises:
        ValueError: for another kind, no parts, what is no batch of images, maps that do not fit
            or are not finite, and a model of a single class.

    References:
        Petsiuk, Das and Saenko (2018), RISE, section 4.3.
    """
    one_of(("deletion", "insertion"), kind=kind)
    whole(1, parts=parts)
    images(x=x)
    if len(maps) != len(x) or not maps.isfinite().all():
        raise ValueError(f"maps {tuple(maps.shape)}: expected finite values, {len(x)} maps")
    pixels = x.shape[2] * x.shape[3]
    order = resized(maps, x.shape[2:]).flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1).view(len(x), 1, *x.shape[2:])
    curve = []
    with evaluation_mode(model):
        whole_image = model(x)
        check_several(whole_image)
        chosen = whole_image.argmax(1)
        for part in range(parts + 1):
            first = rank < round(pixels * part / parts)
            gone = first if kind == "deletion" else ~first
            nothing = part == (0 if kind == "deletion" else parts)
            logits = whole_image if nothing else model(x.masked_fill(gone, fill))
            curve.append(logits.softmax(1).gather(1, chosen[:, None]).mean())
    return torch.stack(curve)
