"""Scores, masks, and training that keeps to a mask.

A pruner is a score: a dictionary with one tensor a parameter. `global_topk_mask` turns any
scores into a mask, and `apply_masks` makes a model keep to it. Sparsity always means the
fraction *removed*, in [0, 1). The order of a dictionary is the order of its entries: where
scores tie, the earlier entry is kept.
"""

from __future__ import annotations

import math
import re
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim.optimizer import register_optimizer_step_post_hook

from companion.checks import generators, number
from companion.training import evaluation_mode, functional_call

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

NORMALISATIONS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# layers whose weights are matrices, however small
MATRICES = (
    nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention,
    nn.Embedding, nn.EmbeddingBag,
)  # fmt: skip

# words of the names of modules that only scale: RmsNorm, LayerScale2d, but not NormalHead
SCALING = re.compile(
    r"([Nn]orm|NORM|[Nn]ormali[sz]ation|[Ss]cale|[Ss]cal(er|ing)|[Gg]ain)(?![a-z])"
)

RELATIVE = re.compile(r"rel(ative)?_pos")


def prunable_parameters(
    model: nn.Module, *, biases: bool = True, frozen: bool = False
) -> dict[str, nn.Parameter]:
    """Trainable weights, then biases, of every layer that does more than scale its input.

    Left out are normalisations of any make, PReLU, and layer scales: modules without submodules
    whose weights all are vectors, such as (channels,) or (channels, 1, 1), and the vectors that
    modules hold beside their submodules, such as temperatures. A weight of shape (1, inputs) is the
    matrix of a layer with one output, unless its module is called a norm or a scale. Left out, too,
    are a transformer's tables of relative positions, and its tokens and position tables,
    (1, tokens, width), which belong to a module that has submodules. Weights come first because
    ties are broken by this order. A parameter that two modules share appears once.

    Args:
        model: any module; it stays as it is.
        biases: whether biases count.
        frozen: whether parameters that require no gradient count.

    Raises:
        ValueError: for a lazy layer that has not seen an input yet.

    Examples:
        >>> list(prunable_parameters(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['0.weight', '0.bias']
    """
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(
                f"model: {name!r} of a lazy layer has no values yet; pass a batch first"
            )
    excluded = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_scaling(module) or is_scale(module, name) or is_token(module, name)
    }
    named = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if (frozen or parameter.requires_grad) and id(parameter) not in excluded
    ]
    weights = {name: p for name, p in named if not is_bias(name)}
    if not biases:
        return weights
    return weights | {name: p for name, p in named if is_bias(name)}


def check_in_one_piece(model: nn.Module, names: Iterable[str] | None = None) -> None:
    """Raise ValueError for a layer whose weight is computed from several parameters, as by
    `weight_norm`: what is done to one of them is not done to the weight.

    names: parameters of which none may be one of several; None: all of the model's.
    """
    if names is None:
        names = [name for name, _ in model.named_parameters()]
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        path, _, local = name.rpartition(".")
        owner = modules[path]
        tensor, undo = local[:-2], "remove_weight_norm"
        if isinstance(owner, ParametrizationList):
            path, _, tensor = path.rpartition("parametrizations.")
            several, undo = not owner.is_tensor, "parametrize.remove_parametrizations"
        else:
            pair = f"{tensor}_g", f"{tensor}_v"
            several = local in pair and all(hasattr(owner, part) for part in pair)
            several = several and (tensor == "weight" or hasattr(owner, tensor))
        if several:
            raise ValueError(
                f"layer {path.rstrip('.')!r}: its {tensor} is computed from several parameters, as "
                f"by weight_norm: merge them first (torch.nn.utils.{undo})"
            )


def check_zeros_stay(
    model: nn.Module, names: Iterable[str], masks: Mapping[str, Tensor] | None = None
) -> None:
    """Raise ValueError where a mask on one of these parameters does not hold for the weight that a
    parametrization computes from it, as for `orthogonal`; it does for `spectral_norm`.

    masks: boolean, by name; None: tried with every other entry masked. It is tried with the values
      that the model has now.
    """
    names = list(names)
    check_in_one_piece(model, names)
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        path, _, local = name.rpartition(".")
        owner = modules[path]
        if not isinstance(owner, ParametrizationList) or getattr(owner, local).is_meta:
            continue
        original = getattr(owner, local).detach()
        mask = None if masks is None else masks[name].to(original.device)
        if mask is None:
            mask = (torch.arange(original.numel()) % 2 == 0).view(original.shape)
            mask = mask.to(original.device)
        with torch.no_grad(), evaluation_mode(owner):  # in training some write things down
            masked = {local: original.masked_fill(~mask, 0)}
            weight = torch.func.functional_call(owner, masked, ())
        if weight.shape == mask.shape and (weight[~mask] == 0).all():
            continue
        path, _, tensor = path.rpartition("parametrizations.")
        becomes = "becomes NaN" if weight.isnan().any() else "is not 0 where that is"
        raise ValueError(
            f"layer {path.rstrip('.')!r}: its {tensor} is computed from {name!r} and {becomes}: "
            "make it a parameter first, "
            f"torch.nn.utils.parametrize.remove_parametrizations(layer, {tensor!r})"
        )


def check_not_computed(model: nn.Module, names: Iterable[str]) -> None:
    """Raise ValueError where one of these parameters is not a layer's weight but what it is
    computed from, as by `torch.nn.utils.prune`, `spectral_norm` or a parametrization.
    """
    for name in names:
        path, _, local = name.rpartition(".")
        owner = model.get_submodule(path)
        tensor = local.removesuffix("_orig")
        if isinstance(owner, ParametrizationList):
            path, _, tensor = path.rpartition("parametrizations.")
            undo = "torch.nn.utils.parametrize.remove_parametrizations"
        elif tensor == local or not isinstance(vars(owner).get(tensor), Tensor):
            continue
        elif f"{tensor}_mask" in owner._buffers:
            undo = "torch.nn.utils.prune.remove"
        else:
            undo = "torch.nn.utils.remove_spectral_norm"
        raise ValueError(
            f"layer {path.rstrip('.')!r}: its {tensor} is computed from {name!r}: make it a "
            f"parameter first, {undo}(layer, {tensor!r})"
        )


def is_scaling(module: nn.Module) -> bool:
    """Whether a module's weights only multiply channels: a normalisation, PReLU, a layer scale."""
    if isinstance(module, NORMALISATIONS):
        return True
    if isinstance(module, MATRICES) or any(True for _ in module.children()):
        return False
    own = dict(module.named_parameters(recurse=False))
    weights = [own[name] for name in own if not is_bias(name)]
    if any(_is_row(w) for w in weights) and not SCALING.search(type(module).__name__):
        return False
    return bool(weights) and all(_is_vector(w) for w in weights)


def is_scale(module: nn.Module, name: str) -> bool:
    """Whether one parameter of a module is a scale of channels, as in `ConvNeXt` or `weight_norm`:
    beside layers every vector is one, a temperature (heads, 1, 1) or the weights of a fusion, too.
    """
    parameter = getattr(module, name)
    if isinstance(module, MATRICES) or is_bias(name) or not _is_vector(parameter):
        return False
    if isinstance(module, ParametrizationList):  # lengths, of which every output has one
        return len(list(module.parameters())) > 1 and name == "original0"
    if parameter.dim() == 0 or "gamma" in name or "scale" in name:
        return True
    # (inputs, 1) is a matrix too, of a layer written as x @ W
    beside_layers = any(True for _ in module.children())
    return beside_layers and (parameter.dim() != 2 or parameter.numel() == 1)


def is_token(module: nn.Module, name: str) -> bool:
    """Whether one parameter of a module is a table of tokens or positions, (1, tokens, width), or
    of relative positions, as in `SwinTransformer`.
    """
    if RELATIVE.match(name):
        return True
    parameter = getattr(module, name)
    if isinstance(module, MATRICES) or not any(True for _ in module.children()):
        return False
    return parameter.dim() == 3 and parameter.shape[0] == 1


def _is_vector(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) <= 1


def _is_row(parameter: Tensor) -> bool:
    """Whether a parameter is the matrix, (1, inputs), of a layer with one output."""
    return parameter.dim() == 2 and parameter.shape[0] == 1 < parameter.shape[1]


def is_bias(name: str) -> bool:
    """Whether a parameter of this name is a bias ("fc.bias", "bias_ih_l0", "in_proj_bias")."""
    return "bias" in name.rpartition(".")[2]


def connection_gradients(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    *,
    params: Iterable[str] | None = None,
    bn_mode: str = "identity",
    reduction: str = "signed",
) -> dict[str, Tensor]:
    """Derivative of the loss with respect to a multiplier on every weight, at 1.

    g_j = dL(c * w)/dc_j at c = 1 = w_j dL/dw_j (connection sensitivity, SNIP). One ordinary backward pass a
    batch, in `full_precision`; nothing of the model changes. Scores of 16-bit weights are float32.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        loss_fn: maps (outputs, targets) to the mean loss of a batch. Batches are weighted by their
            size, so how the examples are split does not matter.
        batches: iterable of (inputs, targets); inputs (n, ...), targets as `loss_fn` takes them.
        params: names to score; None: `prunable_parameters`.
        bn_mode: "identity" runs batch normalisation (and any other that tracks statistics, frozen
            ones included) in inference mode with fresh statistics (mean 0, variance 1); "batch"
            with the statistics of each batch.
        reduction: "signed" adds gradients before any absolute value is taken; "absolute" adds
            their absolute values batch by batch.

    Raises:
        ValueError: for unknown modes or names, for nothing to score or no real numbers, for no
            batches or an empty one, for a loss that is no finite scalar or a gradient that is not
            finite, in identity mode for a normalisation that tracks no statistics, and in batch
            mode for a frozen one; for a weight that is computed from several parameters, as by
            `weight_norm`, or is not 0 where the one that it is computed from is, as by
            `orthogonal`.

    References:
        Lee et al. (2019), section 4.1.
    """
    if bn_mode not in ("identity", "batch"):
        raise ValueError(f"bn_mode = {bn_mode!r}: expected 'identity' or 'batch'")
    if reduction not in ("signed", "absolute"):
        raise ValueError(f"reduction = {reduction!r}: expected 'signed' or 'absolute'")
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise ValueError("model: is in nn.DataParallel; score the network in its .module")
    if params is None:
        chosen = prunable_parameters(model)
    else:
        known, names = dict(model.named_parameters()), list(params)
        if missing := [name for name in names if name not in known]:
            name, hint = missing[0], ""
            if name in dict(model.named_parameters(remove_duplicate=False)):  # of tied weights
                hint = f" of its own: it is {_names(model, name)[0]!r}, name that one"
            raise ValueError(f"params: the model has no parameter {name!r}{hint}")
        chosen = {name: known[name] for name in names}
    if not chosen:
        raise ValueError("params: no trainable parameter to score")
    for name, parameter in chosen.items():
        if not parameter.is_floating_point():
            raise ValueError(f"params: {name!r} is {parameter.dtype}, expected real numbers")
    check_zeros_stay(model, chosen)

    mean: dict[str, Tensor] = {}
    count = 0
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        fixed = stack.enter_context(scoring_mode(model, bn_mode))
        theta = {name: _leaf(parameter) for name, parameter in chosen.items()}
        for inputs, targets in _pairs(batches, theta):
            gradients = switch_gradients(model, loss_fn, theta, (inputs, targets), fixed)
            count += (examples := _examples(inputs, targets))
            for name, g in gradients.items():
                if reduction == "absolute":
                    g.abs_()
                # the mean moves by this batch's share of all examples so far
                mean[name] = mean[name].lerp_(g, examples / count) if name in mean else g
    if not count:
        raise ValueError("batches: no example to score with")
    if (bad := _not_finite(mean)) is not None:
        raise ValueError(f"the gradient of {bad!r} is not finite, though the loss is")
    return mean


def _pairs(batches: Batches, theta: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches one by one, each a pair of tensors of one length and of the weights' type."""
    kinds = {parameter.dtype for parameter in theta.values()}
    expected = "an iterable of pairs (inputs, targets)"
    for batch in batches:
        if isinstance(batch, Tensor):
            raise ValueError(
                f"batches: holds bare tensors, expected {expected}: [(inputs, targets)]"
            )
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"batches: holds {type(batch).__name__}, expected {expected}")
        inputs, targets = batch
        if not _examples(inputs, targets):
            raise ValueError("batches: an empty batch")
        if isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.dtype not in kinds:
            weights = ", ".join(sorted(map(str, kinds)))
            raise ValueError(f"batches: inputs are {inputs.dtype}, the weights are {weights}")
        if isinstance(targets, Tensor) and targets.dtype in (torch.int8, torch.int16, torch.int32):
            targets = targets.long()  # PyTorch's losses take no shorter class indices
        yield inputs, targets


def _examples(inputs: object, targets: object) -> int:
    """How many there are; of inputs that are a mapping or several tensors, the targets tell."""
    if isinstance(inputs, list) and isinstance(targets, list) and len(inputs) == len(targets):
        return len(inputs)  # a picture and a target each, as detectors take them
    counted = inputs if isinstance(inputs, Tensor) else targets
    if isinstance(inputs, np.ndarray) or not isinstance(counted, Tensor):
        kinds = f"{type(inputs).__name__} and {type(targets).__name__}"
        raise ValueError(f"batches: holds pairs of {kinds}, expected tensors")
    return len(counted)


def _leaf(parameter: Tensor) -> Tensor:
    """The parameter's values as a leaf of a graph of its own."""
    value = parameter.detach()
    # what was made in inference mode cannot be saved for a backward pass
    return (value.clone() if value.is_inference() else value).requires_grad_()


def switch_gradients(
    model: nn.Module,
    loss_fn: Loss,
    theta: Mapping[str, Tensor],
    batch: tuple[Tensor, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """w dL/dw of one batch for the parameters theta, which must be leaves that require gradients.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        loss_fn: maps (outputs, targets) to the mean loss of a batch.
        theta: leaves by parameter name.
        batch: (inputs, targets).
        buffers: tensors that stand in for the model's own buffers.

    Raises:
        ValueError: if the loss is no finite scalar.
    """
    inputs, targets = (
        t.clone() if isinstance(t, Tensor) and t.is_inference() else t for t in batch
    )
    with full_precision():
        outputs = functional_call(model, {**(buffers or {}), **theta}, (inputs,))
        loss = loss_fn(outputs, targets)
        if loss.numel() != 1:
            raise ValueError(f"loss_fn: returned {tuple(loss.shape)}, expected the mean loss")
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss of a scoring batch is {loss.item()}: check data and weights"
            )
        # backward, not grad: what it leaves in .grad is ours to multiply in place
        loss.backward(inputs=list(theta.values()))
    gradients = {}
    for name, w in theta.items():
        g, w.grad = torch.zeros_like(w) if w.grad is None else w.grad, None
        if g.is_sparse:  # of nn.Embedding(sparse=True)
            g = g.to_dense()
        if g.element_size() < 4:  # a product of 16-bit numbers vanishes, a mean of them drifts
            g = g.float()
        gradients[name] = g.mul_(w.detach())  # w dL/dw, eq. (1.1)
    return gradients


@contextmanager
def full_precision() -> Iterator[None]:
    """Full float32, the same twice, inside the block: no TF32, no bf16, no autocast, and of cuDNN
    its deterministic algorithms only; all comes back as it was.

    Scores near a threshold and small singular values do not survive eleven bits, nor sums whose
    order changes from one call to the next.
    """
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    named = [
        (cuda, "matmul"),
        *((where, name) for where in (cudnn, mkldnn) for name in ("matmul", "conv", "rnn")),
    ]
    # PyTorch before 2.9 has the older switches only
    parts: list[Any] = [
        part
        for where, name in named
        if hasattr(part := getattr(where, name, None), "fp32_precision")
    ]
    before = [part.fp32_precision for part in parts]
    deterministic = cudnn.deterministic
    # PyTorch refuses to read its older switches where they differ from the newer ones: they go
    # along, unless they differ already
    matmul = convolutions = None
    with suppress(RuntimeError):
        matmul = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = cudnn.allow_tf32
    try:
        cudnn.deterministic = True
        if matmul is not None:
            torch.set_float32_matmul_precision("highest")
        if convolutions is not None:
            cudnn.allow_tf32 = False
        for part in parts:
            part.fp32_precision = "ieee"
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        cudnn.deterministic = deterministic
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds NaN or infinity."""
    # the sum shows either, ten times faster than isfinite and with one wait for a GPU
    sums = [tensor.sum(dtype=torch.float32) for tensor in tensors.values()]
    if not sums or math.isfinite(torch.stack(sums).sum()):
        return None
    # a sum can also overflow
    return next((name for name, t in tensors.items() if not torch.isfinite(t).all()), None)


def connection_sensitivity(
    model: nn.Module,
    loss_fn: Loss,
    batches: Batches,
    *,
    params: Iterable[str] | None = None,
    bn_mode: str = "identity",
    reduction: str = "signed",
) -> dict[str, Tensor]:
    """SNIP's saliency |dL/dc|, not normalised (normalising never changes the ranking).

    Arguments and errors as `connection_gradients`.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        loss_fn: maps (outputs, targets) to the mean loss of a batch.
        batches: iterable of (inputs, targets); inputs (n, ...), targets as `loss_fn` takes them.
        params: names to score; None: `prunable_parameters`.
        bn_mode: "identity" or "batch", as `connection_gradients`.
        reduction: "signed" or "absolute", as `connection_gradients`.

    References:
        Lee et al. (2019), section 4.1.

    Examples:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(layer.weight)
        >>> batch = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> connection_sensitivity(layer, nn.functional.cross_entropy, [batch])["weight"]
        tensor([[0.2689, 0.0000],
                [0.0000, 0.0000]])
    """
    gradients = connection_gradients(
        model, loss_fn, batches, params=params, bn_mode=bn_mode, reduction=reduction
    )
    return {name: g.abs_() for name, g in gradients.items()}


@contextmanager
def scoring_mode(model: nn.Module, bn_mode: str) -> Iterator[dict[str, Tensor]]:
    """Put the model in scoring mode; yield what stands in for its own tensors: fresh statistics."""
    stand_in = {
        name: tensor.clone()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not is_lazy(tensor) and tensor.is_inference()  # as in `_leaf`
    }
    with evaluation_mode(model), ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                # cuDNN has no backward pass for these in inference mode; PyTorch's kernels do
                stack.enter_context(torch.backends.cudnn.flags(enabled=False, allow_tf32=False))
            tracked = tracks_statistics(module)
            if bn_mode == "batch" and isinstance(module, (_BatchNorm, _InstanceNorm)):
                module.train()
            elif bn_mode == "batch" and tracked:
                raise ValueError(f"bn_mode = 'batch': the statistics of {path!r} are frozen")
            elif isinstance(module, _BatchNorm) and not tracked:
                raise ValueError(
                    f"bn_mode = 'identity': {path!r} tracks no statistics and always uses the batch's"
                )
            if tracked:
                prefix = f"{path}." if path else ""
                stand_in[f"{prefix}running_mean"] = torch.zeros_like(module.running_mean)
                stand_in[f"{prefix}running_var"] = torch.ones_like(module.running_var)
                if getattr(module, "num_batches_tracked", None) is not None:
                    stand_in[f"{prefix}num_batches_tracked"] = module.num_batches_tracked.clone()
        yield stand_in


def tracks_statistics(module: nn.Module) -> bool:
    """Whether a module normalises by running statistics: batch normalisation, frozen or not."""
    statistics = (getattr(module, name, None) for name in ("running_mean", "running_var"))
    return all(isinstance(value, Tensor) for value in statistics)


def random_scores(
    params: Mapping[str, Tensor] | nn.Module, generator: torch.Generator | None
) -> dict[str, Tensor]:
    """Independent uniform scores, drawn on the CPU so that every device gets the same ones.

    Args:
        params: tensors by name; a model: its `prunable_parameters`.
        generator: on the CPU; None: PyTorch's own.

    Raises:
        ValueError: for anything else, and for a model with nothing to score.
    """
    generators(generator=generator)
    named = _to_score(params)
    return {
        name: torch.rand(p.shape, generator=generator).to(p.device) for name, p in named.items()
    }


def magnitude_scores(params: Mapping[str, Tensor] | nn.Module) -> dict[str, Tensor]:
    """The absolute value of every entry.

    Args:
        params: tensors by name; a model: its `prunable_parameters`.

    Raises:
        ValueError: for anything else, and for a model with nothing to score or whose weights are
            computed from others, as by `torch.nn.utils.prune` or `weight_norm`.
    """
    named = _to_score(params)
    if isinstance(params, nn.Module) and named is not params:
        check_in_one_piece(params)
        check_not_computed(params, named)
    return {name: p.detach().abs() for name, p in named.items()}


def _to_score(params: Mapping[str, Tensor] | nn.Module) -> Mapping[str, Tensor]:
    """Tensors by name, as they are given or those of a model."""
    if isinstance(params, nn.Module) and not isinstance(params, nn.ParameterDict):
        if named := prunable_parameters(params):
            return named
        raise ValueError("params: no trainable parameter to score")
    check_named(params=params)
    return params  # type: ignore[return-value]  # nn.ParameterDict has all that is needed


def check_named(**values: object) -> None:
    """Raise ValueError for what is no dictionary, such as None or a list."""
    for name, value in values.items():
        if not hasattr(value, "items"):
            kind = type(value).__name__
            raise ValueError(f"{name}: {kind}, expected a dictionary of tensors by parameter name")


def shuffle_within_layer(
    tensors: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Permute the entries of each tensor: layers keep their counts, connections their luck.

    Works on scores and on masks alike.
    """
    generators(generator=generator)
    return {
        name: t.flatten()[torch.randperm(t.numel(), generator=generator).to(t.device)].view_as(t)
        for name, t in tensors.items()
    }


ROUNDINGS: dict[str, Callable[[Any], int]] = {
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
}


def kept_count(total: int, sparsity: float, rounding: str = "round") -> int:
    """How many of `total` entries a sparsity leaves: kappa = round(total * (1 - sparsity)).

    "round" goes half to even, as the official code does; "floor" and "ceil" take the sparsity as
    it is written, 0.8 as eight tenths.

    Raises:
        ValueError: for a sparsity outside [0, 1) or an unknown rounding.

    Examples:
        >>> kept_count(266_610, 0.9)
        26661
    """
    number(lambda s: 0 <= s < 1, "the fraction removed, in [0, 1)", sparsity=sparsity)
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding = {rounding!r}: expected one of {', '.join(ROUNDINGS)}")
    if rounding == "round":
        return round(total * (1.0 - float(sparsity)))
    return ROUNDINGS[rounding](int(total) * (1 - Fraction(str(float(sparsity)))))


def global_topk_mask(
    scores: Mapping[str, Tensor],
    sparsity: float | None = None,
    keep: int | None = None,
    rounding: str = "round",
    *,
    warn: bool = True,
) -> dict[str, Tensor]:
    """Keep the highest scores over all tensors jointly, exactly as many as asked for.

    Give either the sparsity (fraction removed, in [0, 1)) or the number of entries to keep.
    Among equal scores the earlier one is kept (order of the dictionary, then row-major).

    Args:
        scores: tensors of numbers by name, all on one device.
        sparsity: fraction removed, in [0, 1); None: give `keep`.
        keep: number of entries to keep, 0 to all; None: give `sparsity`.
        rounding: of the number kept: "round" (half to even), "floor" or "ceil".
        warn: whether an emptied tensor of weights is worth a warning.

    Returns:
        Boolean tensors of the scores' shapes. Warns if a tensor of weights is left empty (unless
        `warn` is off, for callers to whom that is a result).

    Raises:
        ValueError: for scores that are not finite, not real numbers, on several devices or all 0
            (unless none or all are kept), and for a sparsity or count out of range.

    References:
        Lee et al. (2019), section 4.1 and Algorithm 1.

    Examples:
        >>> global_topk_mask({"w": torch.tensor([[0.1, 0.5], [0.3, 0.2]])}, sparsity=0.5)
        {'w': tensor([[False,  True],
                [ True, False]])}
    """
    if (sparsity is None) == (keep is None):
        raise ValueError("global_topk_mask: give either sparsity or keep")
    check_named(scores=scores)
    if not scores:
        raise ValueError("scores: no tensor to rank")
    for name, score in scores.items():
        if not isinstance(score, Tensor) or score.is_complex() or score.dtype == torch.bool:
            kind = score.dtype if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"scores: {name!r} is {kind}, expected a tensor of numbers")
    if len(devices := {str(score.device) for score in scores.values()}) > 1:
        raise ValueError(f"scores: on several devices, {', '.join(sorted(devices))}")
    flat = torch.cat([s.detach().flatten() for s in scores.values()])
    if (bad := _not_finite(scores)) is not None:
        raise ValueError(f"scores: {bad!r} holds NaN or infinity")
    if sparsity is not None:
        keep = kept_count(flat.numel(), sparsity, rounding)
    if not isinstance(keep, Integral) or isinstance(keep, bool) or not 0 <= keep <= flat.numel():
        raise ValueError(f"keep = {keep!r}: expected a count between 0 and {flat.numel()}")
    # the first tensor settles it nearly always
    if 0 < keep < flat.numel() and not any(s.any() for s in scores.values()):
        raise ValueError(
            "scores: all are 0, no order to prune by: no weight moves the loss (one output "
            "only, or a last layer of zeros?)"
        )

    chosen = topk_by_index(flat, keep)
    parts = chosen.split([s.numel() for s in scores.values()])
    masks = {
        name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)
    }
    empty = [name for name, mask in masks.items() if mask.dim() > 1 and not mask.any()]
    if empty and warn:
        warnings.warn(f"layer collapse: nothing is left of {', '.join(empty)}", stacklevel=2)
    return masks


def topk_by_index(flat: Tensor, keep: int) -> Tensor:
    """Boolean mask of the `keep` largest entries; equal ones by lowest index.

    Args:
        flat: vector of finite numbers, on any device.
        keep: 0 to its length.

    >>> topk_by_index(torch.tensor([1.0, 3.0, 1.0, 1.0]), 2)
    tensor([ True,  True, False, False])
    """
    if keep == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    return _topk_on_gpu(flat, keep) if flat.is_cuda else _topk_on_cpu(flat, keep)


# Selection picks arbitrary ties but is faster than a stable sort: take its threshold only.
def _topk_on_gpu(flat: Tensor, keep: int) -> Tensor:
    threshold = flat.topk(keep, sorted=False).values.min()
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: keep - int(chosen.sum())]] = True
    return chosen


def _topk_on_cpu(flat: Tensor, keep: int) -> Tensor:
    # NumPy takes a quarter of PyTorch's time, whose kthvalue is quadratic in some orders
    found = flat.detach().cpu()
    values = (found.float() if found.element_size() < 4 else found).numpy()
    threshold = kth_largest(values, keep)  # eq. (1.2)
    chosen = values > threshold
    ties = np.flatnonzero(values == threshold)
    chosen[ties[: keep - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(chosen).to(flat.device)


def kth_largest(values: np.ndarray, k: int) -> Any:
    """The k-th largest number, exactly.

    Two quantiles of a sample nearly always have it between them, and few others: to partition
    these only takes a third of the time (Floyd and Rivest, 1975).
    """
    total, size, beside = len(values), 4096, 128  # four deviations of a median's place
    if total < 8 * size:
        return np.partition(values, -k)[-k]
    sample = np.sort(values[np.random.default_rng(0).integers(total, size=size)])
    place = round((1 - k / total) * size)
    low = sample[place - beside] if place >= beside else -np.inf
    high = sample[place + beside] if place + beside < size else np.inf
    above = values > high
    within = values[(values >= low) & ~above]
    k_within = k - np.count_nonzero(above)
    if not 0 < k_within <= len(within):
        return np.partition(values, -k)[-k]
    return low if low == high else np.partition(within, -k_within)[-k_within]


class apply_masks:
    """Make a model keep to its masks, whatever the optimiser does.

    Zeroes the masked entries and masks their gradients; zeroes them again at the end of every
    `torch.optim` step, after `load_state_dict` and before every forward pass of the model, so
    that no momentum, weight decay or stored value revives one. Names of parameters and of the
    `state_dict` stay as they are. A copy of the model (`copy.deepcopy`, pickle) keeps to the masks on its
    own, until `remove_masks`. A compiled or traced model is masked likewise, whenever it was compiled,
    but for one thing: entries written by hand stay until the next step, not only until the next pass.
    `torch.jit.script` takes no model that is still masked, as it would compile the hooks: call
    `remove_masks` first.

    Works as a context manager or until `remove` is called; the entries stay zero afterwards.

    Args:
        masks: boolean tensors by parameter name, on any device; parameters without one are left
            alone.

    Raises:
        ValueError: for a name, shape or dtype that does not fit the model, and where a mask would
            not hold for the weight that is computed from a parameter, as by `weight_norm` or
            `orthogonal`.

    Examples:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> masked = apply_masks(layer, {"weight": torch.tensor([[True, False]])})
        >>> layer.weight[0, 1].item()
        0.0
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        known = check_masks(model, masks)
        self._masked: list[_Masked] = []
        self._hooks = []
        for name, mask in masks.items():
            path, _, local = name.rpartition(".")
            masked = _Masked(known[name], local, Zeros(mask))
            self._masked.append(masked)
            owner = model.get_submodule(path)
            self._hooks.append(owner.register_load_state_dict_post_hook(masked.after_load))
        self._hooks.append(model.register_forward_pre_hook(self._before_forward))

    def _before_forward(self, *_: object) -> None:
        # a compiled graph outlives masks and is shared between models: it must not contain any; a
        # trace cannot, and its weights are zero there already
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            for masked in self._masked:
                if masked in _MASKED:
                    masked.zero()

    def remove(self) -> None:
        """Let go of the model; the masked entries are zero at this moment."""
        for hook in self._hooks:
            hook.remove()
        for masked in self._masked:
            masked.release()
        self._masked.clear()

    def __enter__(self) -> apply_masks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def remove_masks(model: nn.Module) -> None:
    """Let go of a model that keeps to masks, such as a copy of a masked one; no hook stays."""
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(holder := getattr(hook, "__self__", None), apply_masks):
                holder.remove()
    own = {id(parameter) for parameter in model.parameters()}
    for masked in list(_MASKED):
        if id(masked.parameter) in own:
            masked.release()


INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Zeros:
    """Zeroes the masked entries of a tensor, wherever it lies.

    By a bitwise and: four times as fast on a CPU as filling, and 0 where NaN times 0 is NaN.
    """

    def __init__(self, mask: Tensor) -> None:
        self.bits = mask

    def fitting(self, tensor: Tensor) -> Tensor:
        """All bits set where an entry is kept, in integers of the tensor's width."""
        dtype = INTEGERS[tensor.element_size()]
        if self.bits.dtype != dtype or self.bits.device != tensor.device:
            self.bits = -(self.bits != 0).to(tensor.device, dtype)
        return self.bits

    def fill(self, tensor: Tensor) -> None:
        bits = self.fitting(tensor)
        tensor.view(bits.dtype).bitwise_and_(bits)

    def __call__(self, gradient: Tensor) -> Tensor:
        if gradient.is_sparse:  # of nn.Embedding(sparse=True)
            return gradient * (self.fitting(gradient) != 0)
        bits = self.fitting(gradient)
        if gradient.requires_grad:  # for a second derivative
            return gradient.masked_fill(bits == 0, 0)
        return (gradient.view(bits.dtype) & bits).view(gradient.dtype)


class _Masked:
    """Keeps the masked entries of one parameter and of its gradient at zero.

    The hooks of its module hold it, so a copy of the module comes with one for its own parameter.
    """

    def __init__(
        self, parameter: nn.Parameter, name: str, zeros: Zeros, active: bool = True
    ) -> None:
        self.parameter, self.name, self.zeros = parameter, name, zeros
        self._hook = None
        if active:
            _MASKED.add(self)
            self._bind(parameter)

    def _bind(self, parameter: nn.Parameter) -> None:
        if self._hook is not None:
            self._hook.remove()
        self.parameter = parameter
        self._hook = parameter.register_hook(self.zeros) if parameter.requires_grad else None
        self.zero()

    def zero(self) -> None:
        # through .data: to autograd a weight that was zero before has not changed, so
        # several forward passes may share one backward pass
        self.zeros.fill(self.parameter.data)

    def after_load(self, module: nn.Module, _: object) -> None:
        if self in _MASKED:  # load_state_dict(assign=True) puts another parameter there
            self._bind(getattr(module, self.name))

    def release(self) -> None:
        self.zero()
        if self._hook is not None:
            self._hook.remove()
        _MASKED.discard(self)

    def __reduce__(self) -> tuple:
        return _Masked, (self.parameter, self.name, self.zeros, self in _MASKED)


_MASKED: weakref.WeakSet[_Masked] = weakref.WeakSet()


@torch.compiler.disable
def _after_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Zero what an optimiser's memory has moved, of all models that keep to masks."""
    if not _MASKED:
        return
    moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for masked in list(_MASKED):
        if id(masked.parameter) in moved:
            masked.zero()


register_optimizer_step_post_hook(_after_step)


def check_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """The model's parameters by name; ValueError for a mask that fits none of them, or does not
    hold for the weight that is computed from one.
    """
    check_named(masks=masks)
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        check_mask(name, mask, known)
    check_zeros_stay(model, masks, masks)
    return known


def check_mask(name: str, mask: object, known: Mapping[str, Tensor] | None = None) -> None:
    """Check one mask.

    Args:
        name: of the parameter.
        mask: what should be a boolean tensor.
        known: tensors by name, of one of which it has to be; None: of any.

    Raises:
        ValueError: if it is no boolean tensor, or of no known name or shape.
    """
    if known is not None and name not in known:
        # of a compiled model and of torch.nn.utils.prune
        others = [other for other in (f"_orig_mod.{name}", f"{name}_orig") if other in known]
        hint = f" (it has {others[0]!r})" if others else ""
        raise ValueError(f"masks: the model has no parameter {name!r}{hint}")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"masks: {name!r} is {kind}, expected a tensor of torch.bool")
    if known is not None and mask.shape != known[name].shape:
        expected = tuple(known[name].shape)
        raise ValueError(f"masks: {name!r} has shape {tuple(mask.shape)}, expected {expected}")


@dataclass(frozen=True)
class LayerReport:
    """What a mask leaves of one layer.

    Attributes:
        dead_units: outputs without an incoming connection; of a transposed convolution, whose
            weights are (in, out, ...) and whose mask does not tell, inputs without an outgoing one.
        structural_rank: largest rank that weights with this pattern can have (the largest matching
            of inputs and outputs); convolutions are reshaped to (out, in * kernel).
    """

    name: str
    total: int
    kept: int
    dead_units: int
    structural_rank: int

    @property
    def density(self) -> float:
        return self.kept / self.total


def mask_report(masks: Mapping[str, Tensor], *, ranks: bool = True) -> list[LayerReport]:
    """One `LayerReport` for every mask of two or more dimensions, in order.

    Args:
        ranks: False leaves out the structural ranks (-1), which take seconds for millions of
            entries.

    Examples:
        >>> mask_report({"w": torch.tensor([[True, True], [False, False]])})
        [LayerReport(name='w', total=4, kept=2, dead_units=1, structural_rank=1)]
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import structural_rank

    check_named(masks=masks)
    for name, mask in masks.items():
        check_mask(name, mask)
    reports = []
    for name, mask in masks.items():
        if mask.dim() < 2:
            continue
        rows = mask.flatten(1).cpu()
        rank = -1
        if ranks:
            rank = structural_rank(csr_array(rows.numpy())) if rows.any() else 0
        dead = int((~rows.any(dim=1)).count_nonzero())
        reports.append(LayerReport(name, mask.numel(), int(mask.count_nonzero()), dead, int(rank)))
    return reports


def mask_overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Fraction of the entries kept by `a` that `b` keeps too (1 for equal masks).

    Two independent random masks of density d overlap by d.

    Raises:
        ValueError: if the masks are not of the same parameters and shapes, not boolean, or `a`
            keeps nothing.

    Examples:
        >>> mask_overlap({"w": torch.tensor([True, True])}, {"w": torch.tensor([True, False])})
        0.5
    """
    check_named(a=a, b=b)
    if a.keys() != b.keys():
        raise ValueError(f"masks of different parameters: {sorted(a.keys() ^ b.keys())}")
    for name, mask in a.items():
        check_mask(name, mask)
        check_mask(name, b[name], a)
    kept = count_kept(a)
    if not kept:
        raise ValueError("a: keeps nothing")
    return sum(int((a[name] & b[name].to(a[name].device)).count_nonzero()) for name in a) / kept


def count_kept(masks: Mapping[str, Tensor]) -> int:
    """How many entries all masks together keep."""
    return sum(int(mask.count_nonzero()) for mask in masks.values())


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": Tensor.clone,
    "coo": Tensor.to_sparse_coo,
    "csr": Tensor.to_sparse_csr,
}


@torch.no_grad()
def export_weights(
    model: nn.Module, masks: Mapping[str, Tensor], *, layout: str = "dense"
) -> dict[str, Tensor]:
    """The model's `state_dict` with masked entries zero, to save or to hand on.

    A parameter with several names, such as tied weights, is masked under each of them.

    Args:
        model: any module; it stays as it is.
        masks: boolean tensors by parameter name.
        layout: "dense" loads into the same architecture by `load_state_dict`; "coo" and "csr"
            store masked weights as PyTorch's sparse tensors ("csr": matrices; a convolution is
            reshaped to (out, in * kernel)), of which ``.to_dense()`` is the dense one. What has no
            mask or fewer than two dimensions stays dense.

    Returns:
        Tensors of their own by name, on the model's device.

    >>> layer = nn.Linear(3, 2)
    >>> masks = {"weight": torch.tensor([[True, False, True], [False, False, True]])}
    >>> export_weights(layer, masks, layout="csr")["weight"].values().numel()
    3

    Raises:
        ValueError: for another layout and for masks that do not fit.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout = {layout!r}: expected one of {', '.join(LAYOUTS)}")
    check_masks(model, masks)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    masked: dict[str, Tensor] = {}
    for first, mask in masks.items():
        for name in _names(model, first):
            masked[name] = state[name].masked_fill_(~mask.to(state[name].device), 0)
    # only now, as each name of a tied weight may bring a mask of its own
    for name, value in masked.items():
        if value.dim() > 1:
            with warnings.catch_warnings():  # PyTorch calls its rows in order "beta"
                warnings.simplefilter("ignore", UserWarning)
                state[name] = LAYOUTS[layout](value.flatten(1) if layout == "csr" else value)
    return state


def _names(model: nn.Module, name: str) -> list[str]:
    """All names of a parameter: tied weights have several."""
    named = dict(model.named_parameters(remove_duplicate=False))
    return [other for other, value in named.items() if value is named[name]]


def to_torch_prune(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Hand the masks over to `torch.nn.utils.prune`, which keeps them as buffers of the modules.

    From here on a weight is the product of `<name>_orig` and `<name>_mask`, with these names in the
    `state_dict`, until `torch.nn.utils.prune.remove`. Changes the model in place.

    Args:
        model: any module that keeps to no masks of `apply_masks`.
        masks: boolean tensors by parameter name.

    Raises:
        ValueError: for masks that do not fit, for a parameter with several names, whose tie
            `torch.nn.utils.prune` would break, and for one that was handed over before.
    """
    from torch.nn.utils import prune

    known = check_masks(model, masks)
    check_not_computed(model, [name for name in masks if name.endswith("_orig")])
    for name in masks:
        if len(names := _names(model, name)) > 1:
            raise ValueError(
                f"masks: {' and '.join(names)} are one parameter, a tie that torch.nn.utils.prune "
                "would break; use apply_masks"
            )
    for name, mask in masks.items():
        path, _, local = name.rpartition(".")
        prune.custom_from_mask(model.get_submodule(path), local, mask.to(known[name].device))
