"""Scores, masks, and training that keeps to a mask.

A pruner is a score: a dictionary with one tensor a parameter. `global_topk_mask` turns any
scores into a mask, and `apply_masks` makes a model keep to it. Sparsity always means the
fraction *removed*, in [0, 1). The order of a dictionary is the order of its entries: where
scores tie, the earlier entry is kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

NORMALISATIONS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm)


def prunable_parameters(model: nn.Module, *, biases: bool = True) -> dict[str, nn.Parameter]:
    """Trainable weights, then biases, of every layer that is not a normalisation.

    Weights come first because ties are broken by this order. A parameter that two modules
    share appears once.
    """
    excluded = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, NORMALISATIONS)
        for parameter in module.parameters()
    }
    named = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in excluded
    ]
    weights = {name: p for name, p in named if not is_bias(name)}
    if not biases:
        return weights
    return weights | {name: p for name, p in named if is_bias(name)}


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
    batch; nothing of the model changes.

    loss_fn: maps (outputs, targets) to the mean loss of a batch. Batches are weighted by their
      size, so how the examples are split does not matter.
    params: names to score; None: `prunable_parameters`.
    bn_mode: "identity" runs batch normalisation in inference mode with fresh statistics
      (mean 0, variance 1); "batch" with the statistics of each batch.
    reduction: "signed" adds gradients before any absolute value is taken; "absolute" adds
      their absolute values batch by batch.

    Raises ValueError for unknown modes or names, for no batches, for a loss or gradient that
    is not finite, and in identity mode for a normalisation that tracks no statistics.
    """
    if bn_mode not in ("identity", "batch"):
        raise ValueError(f"bn_mode = {bn_mode!r}: expected 'identity' or 'batch'")
    if reduction not in ("signed", "absolute"):
        raise ValueError(f"reduction = {reduction!r}: expected 'signed' or 'absolute'")
    if params is None:
        chosen = prunable_parameters(model)
    else:
        known, names = dict(model.named_parameters()), list(params)
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"params: the model has no parameter {missing[0]!r}")
        chosen = {name: known[name] for name in names}

    theta = {name: parameter.detach().requires_grad_() for name, parameter in chosen.items()}
    mean: dict[str, Tensor] = {}
    count = 0
    with _scoring_mode(model, bn_mode) as buffers, torch.enable_grad():
        for inputs, targets in batches:
            gradients = switch_gradients(model, loss_fn, theta, (inputs, targets), buffers)
            count += len(inputs)
            for name, g in gradients.items():
                if reduction == "absolute":
                    g.abs_()
                # the mean moves by this batch's share of all examples so far
                mean[name] = mean[name].lerp_(g, len(inputs) / count) if name in mean else g
    if not count:
        raise ValueError("batches: no example to score with")
    if (bad := _not_finite(mean)) is not None:
        raise ValueError(f"the gradient of {bad!r} is not finite, though the loss is")
    return mean


def switch_gradients(
    model: nn.Module,
    loss_fn: Loss,
    theta: Mapping[str, Tensor],
    batch: tuple[Tensor, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """w dL/dw of one batch for the parameters theta, which must be leaves that require gradients.

    buffers: tensors that stand in for the model's own buffers.
    Raises ValueError if the loss is not finite.
    """
    inputs, targets = batch
    outputs = functional_call(model, {**theta, **(buffers or {})}, (inputs,))
    loss = loss_fn(outputs, targets)
    if not math.isfinite(loss.item()):
        raise ValueError(f"the loss of a scoring batch is {loss.item()}: check data and weights")
    # backward, not grad: what it leaves in .grad is ours to multiply in place
    loss.backward(inputs=list(theta.values()))
    gradients = {}
    for name, w in theta.items():
        g, w.grad = torch.zeros_like(w) if w.grad is None else w.grad, None
        gradients[name] = g.mul_(w.detach())  # dL/dc = w dL/dw
    return gradients


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
    """
    gradients = connection_gradients(
        model, loss_fn, batches, params=params, bn_mode=bn_mode, reduction=reduction
    )
    return {name: g.abs_() for name, g in gradients.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in inference mode inside the block; every module's own mode comes back."""
    was = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in was.items():
            module.training = training


@contextmanager
def _scoring_mode(model: nn.Module, bn_mode: str) -> Iterator[dict[str, Tensor]]:
    """Put the model in scoring mode; yield fresh buffers for its batch normalisations."""
    fresh: dict[str, Tensor] = {}
    with evaluation_mode(model), ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, nn.RNNBase):
                # cuDNN has no backward pass for these in inference mode; PyTorch's kernels do
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            if not isinstance(module, _BatchNorm):
                continue
            if bn_mode == "batch":
                module.train()
            elif module.running_mean is None:
                raise ValueError(
                    f"bn_mode = 'identity': {path!r} tracks no statistics and always uses the batch's"
                )
            if module.running_mean is not None:
                prefix = f"{path}." if path else ""
                fresh[f"{prefix}running_mean"] = torch.zeros_like(module.running_mean)
                fresh[f"{prefix}running_var"] = torch.ones_like(module.running_var)
                fresh[f"{prefix}num_batches_tracked"] = module.num_batches_tracked.clone()
        yield fresh


def random_scores(params: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Independent uniform scores, drawn on the CPU so that every device gets the same ones."""
    return {
        name: torch.rand(p.shape, generator=generator).to(p.device) for name, p in params.items()
    }


def magnitude_scores(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The absolute value of every entry."""
    return {name: p.detach().abs() for name, p in params.items()}


def shuffle_within_layer(
    tensors: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Permute the entries of each tensor: layers keep their counts, connections their luck.

    Works on scores and on masks alike.
    """
    return {
        name: t.flatten()[torch.randperm(t.numel(), generator=generator).to(t.device)].view_as(t)
        for name, t in tensors.items()
    }


ROUNDINGS: dict[str, Callable[[float], int]] = {
    "round": round,
    "floor": math.floor,
    "ceil": math.ceil,
}


def kept_count(total: int, sparsity: float, rounding: str = "round") -> int:
    """How many of `total` entries a sparsity leaves: kappa = round(total * (1 - sparsity)).

    "round" goes half to even, as the official code does.
    Raises ValueError for a sparsity outside [0, 1) or an unknown rounding.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity = {sparsity!r}: expected the fraction removed, in [0, 1)")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding = {rounding!r}: expected one of {', '.join(ROUNDINGS)}")
    return ROUNDINGS[rounding](total * (1.0 - sparsity))


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

    Returns boolean tensors of the scores' shapes. Warns if a tensor of weights is left empty
    (unless `warn` is off, for callers to whom that is a result).
    Raises ValueError for scores that are not finite and for a sparsity or count out of range.
    """
    if (sparsity is None) == (keep is None):
        raise ValueError("global_topk_mask: give either sparsity or keep")
    if not scores:
        raise ValueError("scores: no tensor to rank")
    flat = torch.cat([s.detach().flatten() for s in scores.values()])
    if (bad := _not_finite(scores)) is not None:
        raise ValueError(f"scores: {bad!r} holds NaN or infinity")
    keep = kept_count(flat.numel(), sparsity, rounding) if keep is None else keep
    if type(keep) is not int or not 0 <= keep <= flat.numel():
        raise ValueError(f"keep = {keep!r}: expected a count between 0 and {flat.numel()}")

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
    """Boolean mask of the `keep` largest entries; equal ones by lowest index."""
    if keep == 0:
        return torch.zeros_like(flat, dtype=torch.bool)
    # selection picks arbitrary ties but is faster than a stable sort: take its threshold only
    threshold = _kth_largest(flat, keep, by_topk=flat.is_cuda)
    chosen = flat > threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    chosen[ties[: keep - int(chosen.sum())]] = True
    return chosen


def _kth_largest(flat: Tensor, k: int, *, by_topk: bool) -> Tensor:
    """The k-th largest entry; by topk on a GPU, where kthvalue of a vector uses one block."""
    if by_topk:
        return flat.topk(k, sorted=False).values.min()
    return flat.kthvalue(flat.numel() - k + 1).values


class apply_masks:
    """Make a model keep to its masks, whatever the optimiser does.

    Zeroes the masked entries, masks their gradients, and zeroes them again before every
    forward pass, so that momentum from before or weight decay cannot revive one. Works as a
    context manager or until `remove` is called; the entries stay zero afterwards.

    masks: boolean tensors by parameter name; parameters without one are left alone.
    Raises ValueError for a name or shape that does not fit the model.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        known = dict(model.named_parameters())
        self._pairs: list[tuple[nn.Parameter, Tensor]] = []
        for name, mask in masks.items():
            if name not in known:
                raise ValueError(f"masks: the model has no parameter {name!r}")
            if mask.shape != known[name].shape:
                expected = tuple(known[name].shape)
                raise ValueError(
                    f"masks: {name!r} has shape {tuple(mask.shape)}, expected {expected}"
                )
            self._pairs.append((known[name], ~mask.to(known[name].device)))
        # filled, not multiplied: NaN times 0 is NaN
        self._hooks = [
            parameter.register_hook(lambda g, pruned=pruned: g.masked_fill(pruned, 0))
            for parameter, pruned in self._pairs
            if parameter.requires_grad
        ]
        self._hooks.append(model.register_forward_pre_hook(lambda *_: self._zero()))
        self._zero()

    def _zero(self) -> None:
        for parameter, pruned in self._pairs:
            # through .data: to autograd a weight that was zero before has not changed, so
            # several forward passes may share one backward pass
            parameter.data.masked_fill_(pruned, 0)

    def remove(self) -> None:
        """Let go of the model; the masked entries are zero at this moment."""
        for hook in self._hooks:
            hook.remove()
        self._zero()

    def __enter__(self) -> apply_masks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


@dataclass(frozen=True)
class LayerReport:
    """What a mask leaves of one layer.

    dead_units: outputs without an incoming connection.
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

    ranks: False leaves out the structural ranks (-1), which take seconds for millions of entries.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import structural_rank

    reports = []
    for name, mask in masks.items():
        if mask.dim() < 2:
            continue
        rows = mask.flatten(1).cpu()
        rank = -1
        if ranks:
            rank = structural_rank(csr_array(rows.numpy())) if rows.any() else 0
        dead = int((~rows.any(dim=1)).sum())
        reports.append(LayerReport(name, mask.numel(), int(mask.sum()), dead, int(rank)))
    return reports


def mask_overlap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Fraction of the entries kept by `a` that `b` keeps too (1 for equal masks).

    Two independent random masks of density d overlap by d.
    Raises ValueError if the masks are not of the same parameters or `a` keeps nothing.
    """
    if a.keys() != b.keys():
        raise ValueError(f"masks of different parameters: {sorted(a.keys() ^ b.keys())}")
    kept = count_kept(a)
    if not kept:
        raise ValueError("a: keeps nothing")
    return sum(int((a[name] & b[name]).sum()) for name in a) / kept


def count_kept(masks: Mapping[str, Tensor]) -> int:
    """How many entries all masks together keep."""
    return sum(int(mask.sum()) for mask in masks.values())
