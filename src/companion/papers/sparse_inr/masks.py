"""Masks of a network: count, prune, match with a narrow network, and what they cost to store."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import torch
from torch import Tensor

from companion.checks import whole
from companion.papers.sparse_inr.network import Params, check_masks, check_params
from companion.sparsity import global_topk_mask, is_bias, magnitude_scores, random_scores

Masks = dict[str, Tensor]

_LAYER = re.compile(r"(?P<of>.*?)(?P<number>\d+)\.weight")

SCOPES = ("global", "layer", "lamp")


def full_masks(params: Params) -> Masks:
    """Masks that keep everything.

    Raises:
        ValueError: for what is no dictionary of tensors, such as a module.
    """
    check_params(params)
    return {
        name: torch.ones_like(value, dtype=torch.bool)
        for name, value in params.items()
        if name != "omega_0"
    }


def apply_mask(params: Params, masks: Masks) -> Params:
    """A copy with the masked entries at zero.

    Raises:
        ValueError: for masks that do not fit.
    """
    check_masks(masks, params)
    return {
        name: value * masks[name] if name in masks else value.clone()
        for name, value in params.items()
    }


def active_masks(masks: Masks) -> Masks:
    """The masks that remove something; multiplying by the others costs time only."""
    return {name: mask for name, mask in masks.items() if not mask.all()}


@torch.no_grad()
def zero_masked(theta: Params, masks: Masks) -> None:
    for name, mask in masks.items():
        theta[name].masked_fill_(~mask, 0)


def count_params(masks: Masks, biases: bool = False, *, params: Params | None = None) -> int:
    """Surviving weights, as the paper counts; with biases: all surviving parameters.

    Args:
        masks: boolean tensors by parameter name.
        biases: count them too.
        params: of the network, of which what has no mask counts whole. None: the masks are those
            of all layers, as `full_masks` and all pruning here give them; a last layer that they
            leave out cannot be noticed.

    Raises:
        ValueError: for masks that do not fit, or of several signals (`FitResult.masks`); without
            params for layers that do not follow on each other by their numbers and sizes, and for
            a bias that counts but has no mask.

    Examples:
        >>> count_params({"0.weight": torch.tensor([[True, False]]), "0.bias": torch.tensor([True])})
        1
    """
    masks = _all_layers(masks, params, biases)
    for name, mask in masks.items():
        if mask.dim() > (1 if is_bias(name) else 2):
            raise ValueError(
                f"masks: {name!r} has shape {tuple(mask.shape)}, of several signals; give the "
                "masks of one"
            )
    return sum(int(m.count_nonzero()) for name, m in masks.items() if biases or not is_bias(name))


def _all_layers(masks: Masks, params: Params | None, biases: bool) -> Masks:
    """The masks of all layers, as `count_params` tells."""
    if params is not None:
        check_masks(masks, params)
        return full_masks(params) | masks
    weights = [name for name in masks if not is_bias(name)]
    for name, following in pairwise(w for w in weights if masks[w].dim() > 1):
        outputs, inputs = masks[name].shape[-2], masks[following].shape[-1]
        if outputs != inputs:
            raise ValueError(
                f"masks: {name!r} has {outputs} outputs, {following!r} {inputs} inputs; give "
                "masks of all layers, in order, or params"
            )
    # layers may stand among others, such as activations: 0, 2, 4
    layers = [found for name in weights if (found := _LAYER.fullmatch(name))]
    if len(layers) == len(weights) and len({found["of"] for found in layers}) == 1:
        numbers = [int(found["number"]) for found in layers]
        if numbers != [numbers[-1] * i // max(1, len(numbers) - 1) for i in range(len(numbers))]:
            raise ValueError(
                f"masks: of the layers {', '.join(map(str, numbers))} only; give masks of all "
                "layers, in order, or params (if these are all: their numbers do not tell)"
            )
    for name in weights:
        bias = name.removesuffix("weight") + "bias"
        if biases and bias not in masks:
            raise ValueError(f"masks: no {bias!r}, which counts; give it, or params")
    return masks


def survivors(masks: Masks) -> list[int]:
    """Surviving weights of each layer that has a mask."""
    return [int(m.count_nonzero()) for name, m in masks.items() if not is_bias(name)]


def matched_width(
    n: int,
    in_features: int,
    out_features: int,
    biases: bool = False,
    *,
    hidden_layers: int = 4,
    multiple: int = 2,
) -> int:
    """Width of the dense network that is no smaller than a sparse one.

    Args:
        n: parameters of the sparse network, biases counted in or not. The width is the smallest
            multiple of `multiple` with at least n of the same kind; even widths give the paper's
            list.
        in_features: coordinates a point.
        out_features: channels.
        biases: whether n counts biases.
        hidden_layers: sine layers.
        multiple: of which the width is one.

    Raises:
        ValueError: for what is not a whole number of at least 1.

    Examples:
        >>> matched_width(2284, 2, 3)
        28
    """
    whole(
        1, n=n, in_features=in_features, out_features=out_features, hidden_layers=hidden_layers,
        multiple=multiple,
    )  # fmt: skip
    width = multiple
    while dense_count(width, in_features, out_features, biases, hidden_layers=hidden_layers) < n:
        width += multiple
    return width


def dense_count(
    width: int,
    in_features: int,
    out_features: int,
    biases: bool = False,
    *,
    hidden_layers: int = 4,
) -> int:
    """Weights of a dense network, (D - 1) W^2 + (in + out) W; with biases: all its parameters.

    Args:
        width: units a layer.
        in_features: coordinates a point.
        out_features: channels.
        biases: count them too.
        hidden_layers: sine layers, D.
    """
    weights = (hidden_layers - 1) * width**2 + (in_features + out_features) * width
    return weights + biases * (hidden_layers * width + out_features)


def survivor_chain(n: int, amount: float, rounds: int) -> list[int]:
    """Weights left after 0, 1, ..., `rounds` rounds.

    Each leaves n - floor(amount n), as the official code counts.

    Args:
        n: weights at the start.
        amount: removed in a round, a fraction of what is left, in [0, 1).
        rounds: at least 0.

    Raises:
        ValueError: for an amount or rounds out of range.

    Examples:
        >>> survivor_chain(197_888, 0.2, 2)
        [197888, 158311, 126649]
    """
    if not 0 <= amount < 1:
        raise ValueError(f"amount = {amount!r}: expected the fraction removed, in [0, 1)")
    whole(0, rounds=rounds)
    chain = [n]
    for _ in range(rounds):  # eq. (4.5)
        chain.append(chain[-1] - int(amount * chain[-1]))
    return chain


def magnitude_prune(params: Params, masks: Masks, amount: float, scope: str = "global") -> Masks:
    """Remove a fraction of the surviving weights, the smallest first; biases stay.

    Of equal weights the last one goes first (order of the masks, then row-major).

    Args:
        params: of the network.
        masks: boolean tensors by parameter name.
        amount: in [0, 1); floor(amount n) of n survivors go.
        scope: "global" ranks all layers together; "layer" removes the fraction from every layer;
            "lamp" ranks w^2 / (sum of v^2 over the layer's survivors v with |v| >= |w|), so that
            the last weight of a layer is never taken before another layer has one left over.

    Raises:
        ValueError: for an amount or scope out of range and for masks that do not fit.
    """
    if scope not in SCOPES:
        raise ValueError(f"scope = {scope!r}: expected one of {', '.join(SCOPES)}")
    check_masks(masks, params)
    scores = magnitude_scores({name: params[name] for name in masks if not is_bias(name)})
    if scope == "lamp":
        scores = {name: _lamp(s, masks[name]) for name, s in scores.items()}
    return _remove(scores, masks, amount, by_layer=scope == "layer")


def random_prune(
    params: Params, masks: Masks, amount: float, generator: torch.Generator | None = None
) -> Masks:
    """As `magnitude_prune` over all layers together, but chance decides.

    Args:
        params: of the network.
        masks: boolean tensors by parameter name.
        amount: in [0, 1).
        generator: on the CPU; None: PyTorch's own, so that every call draws another mask.
    """
    check_masks(masks, params)
    weights = {name: params[name] for name in masks if not is_bias(name)}
    return _remove(random_scores(weights, generator), masks, amount)


def _lamp(magnitudes: Tensor, mask: Tensor) -> Tensor:
    squares = (magnitudes.double() * mask).square().flatten()
    ordered, place = squares.sort(descending=True)
    score = torch.empty_like(squares)
    score[place] = ordered / ordered.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return score.view_as(mask)


def _remove(scores: Params, masks: Masks, amount: float, by_layer: bool = False) -> Masks:
    # what is gone ranks below everything that is left, even below a weight of zero
    ranked = {name: s.masked_fill(~masks[name], -1.0) for name, s in scores.items()}
    groups = [[name] for name in ranked] if by_layer else [list(ranked)]
    new = dict(masks)
    for group in groups:
        (_, keep) = survivor_chain(
            sum(int(masks[name].count_nonzero()) for name in group), amount, 1
        )
        some = {name: ranked[name] for name in group}
        if not any(s.any() for s in some.values()):  # weights of zero go by their place
            some = {name: s + 1 for name, s in some.items()}
        new |= global_topk_mask(some, keep=keep, warn=False)
    return new


def mask_bits(masks: Masks) -> float:
    """Bits that say which weights survived: log2 of the number of such masks, layer by layer."""
    bits = 0.0
    for name, mask in masks.items():
        if not is_bias(name):
            n, k = mask.numel(), int(mask.count_nonzero())
            bits += (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(
                2
            )
    return bits


def bits_per_pixel(
    masks: Masks,
    pixels: int,
    *,
    bits: int = 32,
    index: bool = True,
    params: Params | None = None,
) -> float:
    """Bits to store one fitted network, biases included, a pixel of its picture.

    Args:
        masks: boolean tensors by parameter name.
        pixels: of the picture, at least 1.
        bits: of a stored number.
        index: add `mask_bits`.
        params: of the network, as `count_params`.

    Raises:
        ValueError: for no pixels, and for masks as `count_params`.
    """
    if pixels < 1:
        raise ValueError(f"pixels = {pixels!r}: expected at least 1")
    numbers = bits * count_params(masks, biases=True, params=params)
    return (numbers + (mask_bits(masks) if index else 0)) / pixels


@torch.no_grad()
def compact(params: Params, masks: Masks) -> Params:
    """An equal dense network without the units that the mask has cut off.

    A unit whose output goes nowhere is dropped. A unit that hears nothing is constant: its value
    moves into the next layer's biases. Layers may come out with different widths.
    """
    params = apply_mask(params, masks)
    weights = [name for name in full_masks(params) if not is_bias(name)]
    pairs = list(pairwise(weights))
    for name, following in pairs:  # forwards: constants travel on
        bias = name.removesuffix("weight") + "bias"
        W, b, V = params[name], params[bias], params[following]
        constant = ~W.any(1)
        value = torch.sin(params["omega_0"] * b) * constant
        after = following.removesuffix("weight") + "bias"
        params[after] = params[after] + V @ value
        params[following] = V * ~constant
    for name, following in reversed(pairs):  # backwards: what feeds a dropped unit goes too
        bias = name.removesuffix("weight") + "bias"
        used = params[following].any(0)
        if not used.any():
            used[0] = True  # a layer needs a unit, even an idle one
        params[name], params[bias] = params[name][used], params[bias][used]
        params[following] = params[following][:, used]
    return params
