"""Approximate layerwise isometry: repair the weights that a mask has left, without data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import hardshrink

from companion.checks import above, boolean, whole
from companion.papers.signal_propagation.spectra import (
    as_maps,
    by_first_name,
    check_groups,
    from_maps,
    maps,
    masked_parameters,
    matrices,
    parts,
    structural_rank,
)
from companion.sparsity import full_precision

OBJECTIVES = ("squared", "paper")
LR = {"squared": 0.5, "paper": 0.1}
# A Newton-Schulz step of 1/2 descends while the curvature, at most 3 s^2 - 1, is below 4.
LARGEST = 1.2
CLOSE = 1e-5  # residual per unit and square root of their number at which a layer is done
# Weights below this part of the smallest layer's largest are zero: what decays would become
# subnormal and stay so, and processors compute with subnormal numbers many times slower.
NOTHING = 1e-12


def isometry_residual(
    weight: Tensor, mask: Tensor | None = None, groups: int = 1, *, transposed: bool = False
) -> float:
    """Frobenius norm of V'V - I, with V the masked weight as (fan-in, out).

    Args:
        weight: (out, in, ...), mask: of the same shape. No weights with this mask get below
            `residual_floor`.
        groups: of a grouped convolution, in which V has a block a group; as in `structural_rank`.
        transposed: of a transposed convolution, whose weights are (in, out / groups, ...).

    Raises:
        ValueError: for a weight that is no matrix of floating-point numbers, a mask that does not
            fit, and groups that do not divide the outputs.

    Examples:
        >>> isometry_residual(2 * torch.eye(1))
        3.0
    """
    if weight.dim() < 2 or not weight.is_floating_point():
        raise ValueError(
            f"weight: {weight.dtype} of shape {tuple(weight.shape)}, expected floating-point "
            "numbers, (out, in, ...)"
        )
    V = weight.detach().double()
    if mask is not None:
        boolean(weight.shape, mask=mask)
        V = V.masked_fill(~mask, 0)  # a product would keep what is not finite
    check_groups(weight, groups, transposed)
    G, missing = _gram(as_maps(V, groups, transposed).mT)  # eq. (2.2)
    return _residuals(G, missing).norm().item()


def residual_floor(mask: Tensor, groups: int = 1, *, transposed: bool = False) -> float:
    """The least residual that any weights with this mask can have: sqrt(out - structural rank).

    Args:
        mask: boolean, (out, in, ...).
        groups, transposed: as in `structural_rank`.

    Raises:
        ValueError: as `structural_rank`.

    Examples:
        >>> residual_floor(torch.tensor([[True, True], [False, False]]))
        1.0
    """
    rank = structural_rank(mask, groups, transposed=transposed)
    out = groups * mask.shape[1] if transposed else mask.shape[0]
    return math.sqrt(out - rank)  # eq. (2.4)


def _gram(V: Tensor) -> tuple[Tensor, int]:
    """The smaller of V'V - I and VV' - I, and what the squared norm of the former has more.

    The nonzero eigenvalues of V'V and VV' agree, so the squared norms differ by out - fan-in.
    """
    fan_in, out = V.shape[-2:]
    wide = out > fan_in
    G = V @ V.mT if wide else V.mT @ V
    return G - torch.eye(G.shape[-1], dtype=V.dtype, device=V.device), (out - fan_in) * wide


def _residuals(G: Tensor, missing: int) -> Tensor:
    return (G.square().sum((-2, -1)) + missing).sqrt()


def isometry_gradient(V: Tensor, objective: str = "squared") -> Tensor:
    """Gradient of the objective at V, (..., fan-in, out), by formula.

    With G = V'V - I: V G for a quarter of the squared norm ("squared"), and 2 V G / |G| for the
    norm itself ("paper"), which has no gradient at G = 0; 0 is returned there.
    """
    return _gradient(V, *_gram(V), objective)


def _gradient(V: Tensor, G: Tensor, missing: int, objective: str) -> Tensor:
    # V (V'V - I), from whichever side G is the Gram matrix of
    product = V @ G if G.shape[-1] == V.shape[-1] else G @ V
    if objective == "squared":
        return product
    norm = _residuals(G, missing)[..., None, None]
    return torch.where(norm > 0, 2 * product / norm, torch.zeros_like(product))


@torch.no_grad()
def enforce_isometry(
    model: nn.Module,
    masks: Mapping[str, Tensor] | None = None,
    *,
    steps: int = 200,
    objective: str = "squared",
    lr: float | None = None,
    milestones: Iterable[int] = (),
) -> dict[str, list[float]]:
    """Bring the masked weights of every layer near orthogonality; no data is looked at.

    Changes the weights in place: masked entries become 0, biases stay. Frozen layers
    (`requires_grad` False) are repaired like all others, because signals pass through them too.
    The groups of a grouped convolution are maps of their own, each brought near orthogonality, and
    so are queries, keys and values that attention packs into one weight, and the gates of an LSTM
    or GRU. A transposed convolution counts as (out, in * kernel), like any other.
    Layers of equal shape are worked on together, in float32 (weights of 16 bits too, which are
    rounded at the end) or float64.

    Args:
        model: changed in place. Its layers are those of `prunable_parameters`, trainable or not.
        masks: layers without one count as dense; None: all of them. What has one of two or more
            dimensions is repaired whatever its layer is.
        steps: of the iteration, at least 0.
        objective: "squared" steps V <- C * (V - lr V (V'V - I)), which for lr = 1/2 is Newton and
            Schulz's iteration kept to the mask C; a layer with a singular value above 1.2 is
            scaled down first, because the step need not descend beyond. "paper" descends on the
            norm without the square, as the official code does: with a constant lr it never
            converges, but circles at a residual near 2 lr.
        lr: None: 0.5 for "squared", 0.1 for "paper".
        milestones: steps at which it is divided by 10.

    Returns:
        By layer the residuals |V'V - I| before the first step and after each one; where all layers
        of a shape are isometric already, no step is taken.

    Raises:
        ValueError: for bad arguments, masks that do not fit, weights that are not finite or run
            away, and those that are computed from parameters, as by `weight_norm`,
            `torch.nn.utils.prune` or any parametrization.

    References:
        Lee et al. (2020), approximate dynamical isometry.

    Examples:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> residuals = enforce_isometry(layer, {"weight": torch.eye(2, dtype=torch.bool)})
        >>> layer.weight.detach().abs().round()
        tensor([[1., 0.],
                [0., 1.]])
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective = {objective!r}: expected one of {', '.join(OBJECTIVES)}")
    whole(0, steps=steps)
    lr = LR[objective] if lr is None else lr
    above(0, lr=lr)
    milestones = set(milestones)
    masks = by_first_name(model, {} if masks is None else masks)
    parameters = matrices(model, masks)
    values = masked_parameters(model, masks)
    alike: dict[torch.Size, list[str]] = {}
    for name in parameters:
        if not values[name].isfinite().all():
            raise ValueError(f"the weights of {name!r} are not finite")
        values[name] = _at_least_float32(values[name])
        alike.setdefault(maps(model, name, values[name]).shape[1:], []).append(name)

    found: dict[str, list[float]] = {}
    for names in alike.values():
        layers = [maps(model, name, values[name]).mT for name in names]
        V = torch.cat(layers)  # (maps, fan-in, out)
        C = torch.cat(
            [maps(model, n, masks.get(n, torch.ones_like(values[n])).to(V)).mT for n in names]
        )
        with full_precision():
            V, history = _descend(V, C, steps, objective, lr, milestones)
        if not history.isfinite().all():
            raise ValueError(f"lr = {lr!r}: the weights of {names[0]!r} ran away; lower it")
        counts = [len(layer) for layer in layers]
        of_each = zip(names, V.split(counts), history.split(counts, 1), strict=True)
        for name, one, residuals in of_each:
            _, transposed = parts(model, name)
            parameters[name].copy_(from_maps(one.mT, parameters[name].shape, transposed))
            of_layer = residuals[:, 0] if len(one) == 1 else residuals.norm(dim=1)
            found[name] = of_layer.tolist()
    return {name: found[name] for name in parameters}


def _at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.element_size() < 4 else value


def _descend(V, C, steps, objective, lr, milestones) -> tuple[Tensor, Tensor]:
    """Iterate on a stack of layers; returns it with the residuals, (steps taken + 1, layers)."""
    G, missing = _gram(V)
    history = [_residuals(G, missing)]
    # without what is missing: this part can become zero
    near = CLOSE * math.sqrt(G.shape[-1])
    if (G.square().sum((-2, -1)).sqrt() <= near).all():
        return V, torch.stack(history).cpu()
    if objective == "squared":
        largest = torch.linalg.matrix_norm(V, ord=2)[:, None, None]
        V = torch.where(largest > LARGEST, V / largest, V)
        G, missing = _gram(V)
    size = V.abs().amax((-2, -1))
    nothing = NOTHING * size[size > 0].min().item() if size.any() else 0.0
    for step in range(1, steps + 1):
        change = lr * C * _gradient(V, G, missing, objective)
        V = hardshrink(V - change, nothing)  # eq. (2.3)
        G, missing = _gram(V)
        history.append(_residuals(G, missing))
        if step in milestones:
            lr /= 10
    return V, torch.stack(history).cpu()


@torch.no_grad()
def rescale_layers(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> None:
    """Multiply each masked weight by a number, so that its mean squared singular value is 1.

    The cheapest repair there is, and a baseline for `enforce_isometry`: it restores the size of
    signals but not the evenness of the spectrum. Changes the weights in place, of the same layers
    as `enforce_isometry`; an empty layer stays empty.

    Raises:
        ValueError: for masks that do not fit, and for weights that are computed from others, as
            in `enforce_isometry`.
    """
    masks = by_first_name(model, {} if masks is None else masks)
    parameters = matrices(model, masks)
    values = masked_parameters(model, masks)
    for name, parameter in parameters.items():
        value = _at_least_float32(values[name])
        matrix = maps(model, name, value)
        norm, rank = value.norm(), len(matrix) * min(matrix.shape[1:])
        parameter.copy_(value * math.sqrt(rank) / norm if norm > 0 else value)
