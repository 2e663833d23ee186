"""Scores with and without labels, and pruned networks that are repaired, trained and tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.data.images import ImageSet
from companion.papers.signal_propagation.initialisers import init_weights
from companion.papers.signal_propagation.isometry import (
    enforce_isometry,
    rescale_layers,
    residual_floor,
)
from companion.papers.signal_propagation.spectra import jacobian_singular_values, parts, summary
from companion.progress import Progress
from companion.sparsity import (
    Loss,
    connection_sensitivity,
    global_topk_mask,
    magnitude_scores,
    prunable_parameters,
    random_scores,
)
from companion.stacked import groups, train_together
from companion.training import error_rate

Pairs = Sequence[tuple[Tensor, Tensor]]


class NoSignalError(ValueError):
    """Raised for scores that are nothing but rounding noise."""


def _uniform(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against the same probability for every class."""
    return -outputs.log_softmax(1).mean()


def _entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Entropy of the predictions, through which the gradient flows twice."""
    log_p = outputs.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def _argmax(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against the network's own most likely class."""
    return cross_entropy(outputs, outputs.detach().argmax(1))


def _softmax(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy against the network's own prediction, held fixed: its gradient is zero."""
    return cross_entropy(outputs, outputs.detach().softmax(1))


SCORING_LOSSES: dict[str, Loss] = {
    "labels": cross_entropy,
    "uniform": _uniform,
    "entropy": _entropy,
    "argmax": _argmax,
    "softmax": _softmax,
}
SCORINGS = (*SCORING_LOSSES, "random_labels")
CRITERIA = ("connection_sensitivity", "magnitude", "random")
NOISE = 1e-8  # scores whose largest is below this are rounding errors


def scoring_loss(kind: str) -> Loss:
    """A loss (outputs, targets) -> mean over the batch, to score connections with.

    Args:
        kind: "labels" is the cross-entropy that training uses; "uniform", "entropy" and "argmax"
            ignore the targets. So does "softmax", which looks sensible and has no gradient at all:
            `connection_scores` refuses it.

    Raises:
        ValueError: for an unknown kind.

    Examples:
        >>> round(scoring_loss("uniform")(torch.zeros(1, 4), torch.tensor([0])).item(), 4)
        1.3863
    """
    if kind not in SCORING_LOSSES:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(SCORING_LOSSES)}")
    return SCORING_LOSSES[kind]


def check_sizes(data: ImageSet, *, batch_size: int, n_jacobian_examples: int) -> None:
    """Raise ValueError if more examples are asked for than the training set has.

    Raises:
        ValueError: for what the images do not allow.
    """
    for name, count in (("batch_size", batch_size), ("n_jacobian_examples", n_jacobian_examples)):
        if count > len(data.train_x):
            raise ValueError(
                f"{name} = {count}: {data.name!r} has {len(data.train_x)} training examples"
            )


def full_set(data: ImageSet, batch_size: int = 100) -> list[tuple[Tensor, Tensor]]:
    """All training examples in batches, not augmented."""
    return list(zip(data.train_x.split(batch_size), data.train_y.split(batch_size), strict=True))


def connection_scores(
    model: nn.Module,
    batches: Pairs,
    kind: str = "labels",
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Connection sensitivity over all batches: signed gradients added up, then one absolute value.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        batches: list of (inputs, targets).
        kind: of `SCORING_LOSSES`, or "random_labels": the labels, dealt out anew by the generator.
        generator: on the CPU; deals out random labels.

    Raises:
        ValueError: for an unknown kind.
        NoSignalError: if no score reaches 1e-8, and always for "softmax": a ranking of rounding
            errors is no ranking.

    References:
        Lee et al. (2020).
    """
    if kind not in SCORINGS:
        raise ValueError(f"kind = {kind!r}: expected one of {', '.join(SCORINGS)}")
    if not batches:
        raise ValueError("batches: no example to score with")
    if kind == "random_labels":
        every = torch.cat([y for _, y in batches])
        every = every[torch.randperm(len(every), generator=generator).to(every.device)]
        parts = every.split([len(y) for _, y in batches])
        batches = [(x, y) for (x, _), y in zip(batches, parts, strict=True)]
        kind = "labels"
    scores = connection_sensitivity(model, scoring_loss(kind), batches)
    largest = max(s.max().item() for s in scores.values())
    if largest < NOISE or kind == "softmax":  # whose rounding errors grow with the inputs
        below = f", below {NOISE:.0e}" if largest < NOISE else ""
        raise NoSignalError(
            f"kind = {kind!r}: the largest score is {largest:.0e}{below}: this loss has "
            "no gradient at these weights, and a mask from it would be rounding noise"
        )
    return scores


def criterion_scores(
    criterion: str, model: nn.Module, batches: Pairs, generator: torch.Generator
) -> dict[str, Tensor]:
    """Scores of every prunable parameter under one of `CRITERIA`.

    Args:
        criterion: of `CRITERIA`.
        model: any module that maps inputs to logits; it stays as it is.
        batches: iterable of (inputs, targets); inputs (n, ...), targets as `loss_fn` takes them.
        generator: on the CPU.

    Raises:
        ValueError: for an unknown criterion.
    """
    if criterion == "connection_sensitivity":
        return connection_scores(model, batches)
    if criterion == "magnitude":
        return magnitude_scores(prunable_parameters(model))
    if criterion == "random":
        return random_scores(prunable_parameters(model), generator)
    raise ValueError(f"criterion = {criterion!r}: expected one of {', '.join(CRITERIA)}")


@dataclass(frozen=True)
class Spectrum:
    """End-to-end singular values of one pruned network that was not trained.

    Attributes:
        before, after: summaries with the weights as the mask left them, and after isometry (None
            where that was not asked for).
        margin: how far the layer that came nearest is above the least residual that its mask
            allows.
    """

    activation: str
    criterion: str
    sparsity: float
    seed: int
    before: dict[str, float]
    after: dict[str, float] | None
    margin: float | None


def spectra_by_sparsity(
    activations: Iterable[str],
    data: ImageSet,
    make: Callable[[str], nn.Module],
    *,
    sparsities: Sequence[float],
    seeds: Iterable[int],
    look_at: Tensor,
    init: str = "orthogonal",
    gain: float = 1.0,
    repaired: bool = True,
    isometry: dict[str, Any] | None = None,
    progress: bool = False,
) -> list[Spectrum]:
    """Prune fresh networks by every criterion to every sparsity and take their spectra.

    Args:
        activations: names, for `make`.
        data: labelled images.
        make: builds an untrained network from the name of an activation.
        sparsities: fractions removed, each in [0, 1).
        seeds: one or more whole numbers, each a repetition.
        look_at: examples at which spectra are taken; linear networks use the first.
        init: of `INITS`.
        gain: multiplies every initial weight, above 0.
        repaired: also take them after `enforce_isometry`, whose options `isometry` gives. The
            other arguments are those of `train_cases`.
        isometry: options of `enforce_isometry`.
        progress: show a progress bar.
    """
    plans = [(a, s) for a in activations for s in seeds]
    batches, found = full_set(data), []
    total = len(plans) * len(CRITERIA) * len(sparsities)
    with Progress(total, "spectra taken", show=progress) as bar:
        for activation, seed in plans:
            model = make(activation)
            init_weights(model, init, gain=gain, generator=torch.Generator().manual_seed(seed))
            start = {name: value.clone() for name, value in model.state_dict().items()}
            x = look_at[:1] if activation == "linear" else look_at
            for criterion in CRITERIA:
                generator = torch.Generator().manual_seed(seed + 3000)
                scores = criterion_scores(criterion, model, batches, generator)
                for sparsity in sparsities:
                    masks = global_topk_mask(scores, sparsity, warn=False)
                    before = summary(jacobian_singular_values(model, x, masks=masks))
                    after = margin = None
                    if repaired:
                        history = enforce_isometry(model, masks, **(isometry or {}))
                        after = summary(jacobian_singular_values(model, x, masks=masks))
                        margin = min(
                            residuals[-1] - _floor(model, name, masks)
                            for name, residuals in history.items()
                        )
                        model.load_state_dict(start)
                    found.append(
                        Spectrum(activation, criterion, sparsity, seed, before, after, margin)
                    )
                    bar.update()
    return found


def _floor(model: nn.Module, name: str, masks: Mapping[str, Tensor]) -> float:
    """`residual_floor` of a layer as `enforce_isometry` sees it: by maps, dense without a mask."""
    dense = torch.ones_like(model.get_parameter(name), dtype=torch.bool)
    groups, transposed = parts(model, name)
    return residual_floor(masks.get(name, dense), groups, transposed=transposed)


# mean singular value by sparsity, of the paper's Fig. 2a (MNIST), read off the figure; "repaired"
# is pruned by connection sensitivity. What the figure has as 0 is left out.
PAPER_SIGMA: dict[str, dict[float, float]] = {
    "linear, connection_sensitivity": {
        0.0: 1.0, 0.1: 0.969, 0.2: 0.912, 0.3: 0.836, 0.4: 0.743, 0.5: 0.623, 0.6: 0.479,
        0.7: 0.316, 0.8: 0.160, 0.9: 0.039,
    },
    "linear, random": {
        0.0: 1.0, 0.1: 0.677, 0.2: 0.444, 0.3: 0.273, 0.4: 0.159, 0.5: 0.083, 0.6: 0.037,
        0.7: 0.014, 0.8: 0.003,
    },
    "linear, repaired": {0.0: 1.0, 0.9: 0.978},
    "tanh, connection_sensitivity": {
        0.0: 0.344, 0.1: 0.337, 0.2: 0.324, 0.3: 0.305, 0.4: 0.282, 0.5: 0.248, 0.6: 0.204,
        0.7: 0.151, 0.8: 0.091, 0.9: 0.029,
    },
    "tanh, random": {
        0.0: 0.344, 0.1: 0.267, 0.2: 0.199, 0.3: 0.138, 0.4: 0.091, 0.5: 0.053, 0.6: 0.026,
        0.7: 0.011, 0.8: 0.003,
    },
    "tanh, repaired": {0.0: 0.343, 0.7: 0.286, 0.9: 0.341},
}  # fmt: skip

VARIANTS = ("dense", "pruned", "rescaled", "isometry")


@dataclass(frozen=True)
class Case:
    """What distinguishes one trained network from another, the seed apart.

    Attributes:
        scoring: of `SCORINGS`.
        variant: "dense" is not pruned; "pruned" is trained as it is; "rescaled" and "isometry"
            have their weights repaired first.
    """

    activation: str
    init: str
    variant: str = "pruned"
    scoring: str = "labels"


@dataclass(frozen=True, eq=False)
class CaseRun:
    """One trained network.

    Attributes:
        error: percent of the test set.
        loss: of every training step.
        spectrum: summary of the end-to-end singular values before training.
        masks: by parameter name; empty if dense.
    """

    case: Case
    seed: int
    error: float
    loss: list[float]
    spectrum: dict[str, float]
    masks: dict[str, Tensor]
    diverged: bool


def repair(model: nn.Module, masks: dict[str, Tensor], variant: str, **isometry: Any) -> None:
    """Change the masked weights as a variant of `Case` says.

    Args:
        model: changed in place.
        masks: boolean tensors by parameter name.
        variant: of `VARIANTS`.
        isometry: of `enforce_isometry`.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant = {variant!r}: expected one of {', '.join(VARIANTS)}")
    if variant == "isometry":
        enforce_isometry(model, masks, **isometry)
    elif variant == "rescaled":
        rescale_layers(model, masks)


def train_cases(
    cases: Iterable[Case],
    data: ImageSet,
    make: Callable[[str], nn.Module],
    *,
    seeds: Iterable[int],
    sparsity: float,
    look_at: Tensor,
    isometry: dict[str, Any] | None = None,
    gain: float = 1.0,
    augment: Callable | None = None,
    progress: bool = False,
    **training: Any,
) -> list[CaseRun]:
    """Initialise, score on the whole training set, prune, repair, train and test.

    Networks of one seed and initialisation start from the same weights and see the same batches.
    Those that can be stacked train together (`companion.stacked`).

    Args:
        cases: what to train.
        data: labelled images.
        make: builds an untrained network from the name of an activation.
        seeds: one or more whole numbers, each a repetition.
        sparsity: fraction removed, in [0, 1).
        look_at: examples at which the end-to-end spectrum is taken; linear networks use the first.
        isometry: options of `enforce_isometry`.
        gain: multiplies every initial weight, above 0.
        augment: function (batch, generator) -> batch; None: none.
        progress: show a progress bar.
        training: options of `companion.training.train`.
    """
    cases, seeds = list(cases), list(seeds)
    batches = full_set(data)

    def plans(activation: str) -> Iterator[_Plan]:
        for number, seed in enumerate(seeds):
            known: dict[tuple[str, str], dict[str, Tensor]] = {}
            for place, case in enumerate(cases):
                if case.activation != activation:
                    continue
                model = make(case.activation)
                init_weights(
                    model, case.init, gain=gain, generator=torch.Generator().manual_seed(seed)
                )
                masks: dict[str, Tensor] = {}
                if case.variant != "dense":
                    key = (case.init, case.scoring)
                    if key not in known:
                        generator = torch.Generator().manual_seed(seed + 1000)
                        scores = connection_scores(
                            model, batches, case.scoring, generator=generator
                        )
                        known[key] = global_topk_mask(scores, sparsity, warn=False)
                    masks = known[key]
                    repair(model, masks, case.variant, **(isometry or {}))
                x = look_at[:1] if activation == "linear" else look_at
                spectrum = summary(jacobian_singular_values(model, x, masks=masks))
                yield _Plan((number, place), model, case, seed, masks, spectrum)

    runs: dict[tuple[int, int], CaseRun] = {}
    size = training.get("batch_size", 100)
    with Progress(len(cases) * len(seeds), "networks trained", show=progress) as bar:
        # networks with one activation may train together
        for activation in dict.fromkeys(case.activation for case in cases):
            for group in groups(
                plans(activation), lambda plan: plan.model, data.train_x, size, augment
            ):
                runs |= _trained(group, data, augment, training)
                bar.update(len(group))
    return [runs[place] for place in sorted(runs)]


@dataclass(frozen=True, eq=False)
class _Plan:
    """A network that is to be trained.

    Attributes:
        place: numbers of its seed and of its case.
    """

    place: tuple[int, int]
    model: nn.Module
    case: Case
    seed: int
    masks: dict[str, Tensor]
    spectrum: dict[str, float]


def _trained(plans: list[_Plan], data, augment, training) -> dict[tuple[int, int], CaseRun]:
    histories = train_together(
        [plan.model for plan in plans], data.train_x, data.train_y,
        seeds=[plan.seed + 2000 for plan in plans], masks=[plan.masks for plan in plans],
        augment=augment, on_divergence="stop", **training,
    )  # fmt: skip
    return {
        plan.place: CaseRun(
            plan.case, plan.seed, error_rate(plan.model, data.test_x, data.test_y), history.loss,
            plan.spectrum, plan.masks, history.diverged,
        )
        for plan, history in zip(plans, histories, strict=True)
    }  # fmt: skip
