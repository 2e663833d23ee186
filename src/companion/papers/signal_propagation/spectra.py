"""Singular values of Jacobians, layer by layer and from end to end."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from companion.checks import boolean, tensors, whole
from companion.device import has_float64
from companion.sparsity import (
    apply_masks,
    check_in_one_piece,
    check_masks,
    check_not_computed,
    full_precision,
    is_bias,
    mask_report,
    prunable_parameters,
    remove_masks,
    tracks_statistics,
)
from companion.training import evaluation_mode, functional_call

CHUNK = 64  # examples whose Jacobians are taken at once
# Condition number beyond which a Jacobian that was computed in float32 is computed again in
# float64: its smallest singular value then carries a relative error of about 1e-4.
ILL_CONDITIONED = 1e3


def masked_parameters(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's parameters, detached, with masked entries 0; the model stays as it is.

    Args:
        masks: boolean tensors by parameter name; parameters without one are given whole.

    Raises:
        ValueError: for a name or shape that does not fit the model, and with masks for a model of
            `torch.nn.utils.prune`, which has no copy.
    """
    if masks:
        check_masks(model, masks)
        try:
            model = copy.deepcopy(model)
        except RuntimeError:  # of a weight that torch.nn.utils.prune has computed with a graph
            check_not_computed(model, [name for name, _ in model.named_parameters()])
            raise
        remove_masks(model)
        apply_masks(model, masks).remove()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def matrices(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The weights of two or more dimensions through which signals pass, trainable or not.

    Those of `prunable_parameters`, and what a mask says is one.

    Raises:
        ValueError: as `check_in_one_piece` and `check_not_computed`.
    """
    check_in_one_piece(model)
    layers = prunable_parameters(model, biases=False, frozen=True)
    known = dict(model.named_parameters())
    named = layers | {name: known[name] for name in masks if not is_bias(name)}
    found = {name: value for name, value in named.items() if value.dim() > 1}
    check_not_computed(model, found)
    return found


GATED = ("weight_ih", "weight_hh")
GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}


def parts(model: nn.Module, name: str) -> tuple[int, bool]:
    """How many maps a layer's weight holds, and whether it is that of a transposed convolution.

    One map, or one a group of a grouped convolution, one a gate of an LSTM or GRU, and one each of
    the queries, keys and values that attention packs into one weight: their signals never meet.
    """
    path, _, local = name.rpartition(".")
    layer = model.get_submodule(path)
    if isinstance(layer, _ConvNd):
        return layer.groups, layer.transposed
    if isinstance(layer, nn.MultiheadAttention) and local == "in_proj_weight":
        return 3, False
    if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)) and local.startswith(GATED):
        return next((n for kind, n in GATES.items() if isinstance(layer, kind)), 1), False
    return 1, False


def as_maps(weight: Tensor, groups: int = 1, transposed: bool = False) -> Tensor:
    """A weight as the matrices of its maps, (maps, out, in * kernel)."""
    if transposed:  # (in, out / groups, ...): outputs first, group by group
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.flatten(1).unflatten(0, (groups, -1))


def from_maps(matrices: Tensor, shape: torch.Size, transposed: bool = False) -> Tensor:
    """The weight, of this shape, whose `as_maps` are these matrices."""
    if not transposed:
        return matrices.reshape(shape)
    groups, out, _ = matrices.shape
    return matrices.reshape(groups, out, -1, *shape[2:]).transpose(1, 2).reshape(shape)


def maps(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A layer's weight as the matrices of its maps, (maps, out, in * kernel), as `parts` tells."""
    return as_maps(weight, *parts(model, name))


def by_first_name(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks by the first name of each parameter: tied weights have several, and one mask."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for name, parameter in check_masks(model, masks).items():
        if name in masks:
            one = first[parameter]
            found[one] = found[one] & masks[name] if one in found else masks[name]
    return found


def jacobian(
    model: nn.Module,
    x: Tensor,
    *,
    masks: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Jacobians of the outputs with respect to the inputs, in inference mode.

    One backward pass an output, batched over outputs and examples: in inference mode an output
    depends on its own example only, so the sum over the batch has all Jacobians as derivatives.
    Batch normalisation without running statistics breaks that, and is refused.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        x: (B, ...), at least one example.
        masks: applied without changing the model.
        dtype: in which to compute; None: the model's. float32 is full float32 on every device.

    Returns:
        (B, K, d) for K outputs and d inputs an example, each flattened if it has several axes.

    Raises:
        ValueError: for no example, an x that is no tensor, masks that do not fit, a type that is
            not floating-point, or a model in which examples depend on each other.
    """
    tensors(x=x)
    if len(x) == 0:
        raise ValueError("x: no example to take a Jacobian at")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype = {dtype}: expected a floating-point type")
    for path, module in model.named_modules():
        if isinstance(module, _BatchNorm) and not tracks_statistics(module):
            raise ValueError(
                f"model: {path!r} tracks no statistics and always uses the batch's, so that an "
                "example has no Jacobian of its own"
            )
    state = dict(model.named_buffers()) | masked_parameters(model, masks or {})
    dtype = dtype or next((p.dtype for p in model.parameters()), x.dtype)
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    with evaluation_mode(model), full_precision():

        def total(part: Tensor) -> Tensor:  # (outputs,)
            return functional_call(model, state, (part,)).flatten(1).sum(0)

        parts = [
            jacrev(total)(part.to(dtype))  # eq. (2.1)
            for part in x.split(CHUNK)
        ]
    parts = [part.flatten(2).movedim(0, 1) for part in parts]  # from (K, B, d)
    return torch.cat(parts) if len(parts) > 1 else parts[0]  # a copy costs as much as the passes


def jacobian_singular_values(
    model: nn.Module,
    x: Tensor,
    *,
    masks: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Singular values of the Jacobian from inputs to outputs at every example of x.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        x: (B, ...), at least one example.
        masks: applied without changing the model.
        dtype: in which passes are computed; None: the model's, and float64 for examples whose
            Jacobian is so ill-conditioned that float32 cannot resolve it. The decomposition itself
            is always in float64.

    Returns:
        (B, min(K, d)) in descending order, float64, on the CPU. A linear network has the same
        values at every x: give it one example.

    Raises:
        ValueError: for masks that do not fit and for a Jacobian that is not finite.

    Examples:
        >>> layer = nn.Linear(2, 2)
        >>> _ = nn.init.eye_(layer.weight)
        >>> jacobian_singular_values(layer, torch.zeros(1, 2))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    J = jacobian(model, x, masks=masks, dtype=dtype).cpu()
    values = _decompose(J)
    if dtype is None and J.dtype != torch.float64:
        ill = values[:, -1] * ILL_CONDITIONED <= values[:, 0]
        # Apple's GPUs have no float64: there the first answer stands
        if ill.any() and has_float64(x.device):
            again = jacobian(model, x[ill.to(x.device)], masks=masks, dtype=torch.float64)
            values[ill] = _decompose(again.cpu())
    return values


def _decompose(J: Tensor) -> Tensor:
    finite = J.flatten(1).isfinite().all(1)
    if not finite.all():
        raise ValueError(
            f"the Jacobian of example {int(finite.logical_not().nonzero()[0])} is not finite: "
            "activations or weights overflow"
        )
    return torch.linalg.svdvals(J.double())


def layer_singular_values(
    model: nn.Module, masks: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Singular values of every masked weight, a convolution reshaped to (out, in * kernel), each
    of its maps for itself, as `enforce_isometry` tells them apart.

    Frozen layers count; `masks` as in `enforce_isometry`.

    Returns:
        Vectors of length min(out, in * kernel) a map, descending, float64, by parameter name.

    Raises:
        ValueError: for masks that do not fit, and for weights that are computed from others, as
            in `enforce_isometry`.
    """
    masks = by_first_name(model, masks or {})
    names = list(matrices(model, masks))
    weights = masked_parameters(model, masks)
    return {
        name: torch.linalg.svdvals(maps(model, name, weights[name]).cpu().double())
        .flatten()
        .sort(descending=True)
        .values
        for name in names
    }


def structural_rank(mask: Tensor, groups: int = 1, *, transposed: bool = False) -> int:
    """Largest rank that weights with this pattern can have; convolutions as (out, in * kernel).

    Args:
        mask: boolean, (out, in, ...).
        groups: of a grouped convolution, whose maps from its inputs to its outputs each have a
            rank, and the layer their sum; likewise 3 for the packed `in_proj_weight` of attention
            and for the gates of a GRU, 4 for those of an LSTM.
        transposed: of a transposed convolution, whose masks are (in, out / groups, ...).

    Raises:
        ValueError: for a mask that is not boolean or has fewer than two dimensions, and groups
            that do not divide its outputs (transposed: its inputs).

    Examples:
        >>> structural_rank(torch.tensor([[True, True], [False, True], [False, False]]))
        2
    """
    boolean(mask=mask)
    if mask.dim() < 2:
        raise ValueError(f"mask: shape {tuple(mask.shape)}, expected at least two dimensions")
    check_groups(mask, groups, transposed)
    each = as_maps(mask, groups, transposed)
    return sum(mask_report({"": part})[0].structural_rank for part in each)


def check_groups(weight: Tensor, groups: int, transposed: bool = False) -> None:
    """Raise ValueError unless a weight's outputs (transposed: inputs) are in so many groups."""
    whole(1, groups=groups)
    if len(weight) % groups:
        what = "inputs" if transposed else "outputs"
        raise ValueError(f"groups = {groups}: expected a divisor of the {len(weight)} {what}")


def summary(values: Tensor) -> dict[str, float]:
    """Mean, deviation and extremes of singular values, pooled over examples."""
    return {
        "mean": values.mean().item(),
        "std": values.std(correction=0).item(),
        "max": values.max().item(),
        "min": values.min().item(),
    }
