"""Networks pruned once by a criterion and trained; what their masks look like."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from companion import checks
from companion.checks import whole
from companion.data.images import ImageSet
from companion.models import (
    alexnet,
    lenet_5_caffe,
    lenet_300_100,
    truncated_variance_scaling_,
    vgg,
    wide_resnet,
)
from companion.models.initialisers import TRUNCATED_STD
from companion.progress import Progress
from companion.sparsity import (
    Batches,
    apply_masks,
    connection_gradients,
    connection_sensitivity,
    count_kept,
    full_precision,
    global_topk_mask,
    magnitude_scores,
    prunable_parameters,
    random_scores,
    scoring_mode,
    shuffle_within_layer,
)
from companion.stacked import groups, train_together
from companion.training import error_rate, predict, train

CRITERIA = ("snip", "random", "magnitude", "snip_shuffled")

# Errors in per cent that the paper reports, by architecture and sparsity.
PAPER_ERRORS = {
    ("lenet300", 0.9): 1.761,  # Fig. 1, mean of 20 runs; the others: Tables 1 and 2
    ("lenet300", 0.95): 1.6,
    ("lenet300", 0.98): 2.4,
    ("lenet5", 0.98): 0.8,
    ("lenet5", 0.99): 1.1,
    ("vgg_d", 0.95): 7.09,
}
# test error in per cent by scoring batch: LeNet-300-100 on MNIST at 90 %, Fig. 3 (vector graphics)
PAPER_BATCH_ERRORS = {1: 1.94, 10: 1.72, 100: 1.64, 1000: 1.56, 10000: 1.40}


def _two_convolutions(channels: int, size: int, classes: int) -> nn.Module:
    """Two 5x5 convolutions with ReLU and pooling, and one dense layer: small enough for a CPU."""
    side = ((size - 4) // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 16, 5), nn.MaxPool2d(2), nn.ReLU(),  # pooled first: less to do
        nn.Conv2d(16, 32, 5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * side * side, classes),
    )  # fmt: skip


# name -> maker from (channels, image size, classes)
ARCHITECTURES: dict[str, Callable[[int, int, int], nn.Module]] = {
    "lenet300": lambda channels, size, classes: lenet_300_100(channels * size * size, classes),
    "lenet5": lenet_5_caffe,
    "conv2": _two_convolutions,
    "alexnet_s": lambda channels, size, classes: alexnet("s", channels, classes),
    "alexnet_b": lambda channels, size, classes: alexnet("b", channels, classes),
    "vgg_c": lambda channels, size, classes: vgg("C", channels, classes),
    "vgg_d": lambda channels, size, classes: vgg("D", channels, classes),
    "vgg_like": lambda channels, size, classes: vgg("like", channels, classes),
    "wrn_16_8": lambda channels, size, classes: wide_resnet(16, 8, channels, classes),
    "wrn_16_10": lambda channels, size, classes: wide_resnet(16, 10, channels, classes),
    "wrn_22_8": lambda channels, size, classes: wide_resnet(22, 8, channels, classes),
}
SMALLEST_IMAGE = {"lenet300": 1, "lenet5": 16, "conv2": 16}  # pixels a side; others: 32


def check_sizes(arch: str, data: ImageSet, *, batch_size: int, scoring_examples: int) -> None:
    """Raise ValueError if the network or the batches do not fit the images.

    Args:
        arch: name in `ARCHITECTURES`.
        data: labelled images.
        batch_size: examples at a time, at least 1.
        scoring_examples: examples of all scoring batches together.

    Raises:
        ValueError: for what the images do not allow.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch = {arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    channels, height, size = data.train_x.shape[1:]
    if size < (least := SMALLEST_IMAGE.get(arch, 32)):
        raise ValueError(
            f"arch = {arch!r}: needs images of {least} pixels a side, {data.name!r} has {size}"
        )
    try:
        with torch.device("meta"):  # neither memory nor time
            model = ARCHITECTURES[arch](channels, size, len(data.classes)).eval()
            model(torch.empty(1, channels, height, size))
    except RuntimeError:
        raise ValueError(
            f"arch = {arch!r}: is not made for images of {height} by {size} pixels, "
            f"which {data.name!r} has"
        ) from None
    _check_count("batch_size", batch_size, data)
    _check_count("prune_batch_size * n_prune_batches", scoring_examples, data)


def _check_count(name: str, count: int, data: ImageSet) -> None:
    if count > len(data.train_x):
        raise ValueError(
            f"{name} = {count}: {data.name!r} has {len(data.train_x)} training examples"
        )


def build_model(arch: str, data: ImageSet, generator: torch.Generator) -> nn.Module:
    """A network for these images with fresh weights (variance scaling, truncated normal).

    Raises:
        ValueError: for an unknown architecture or images of a size that is not for it.

    Examples:
        >>> from companion.data.images import load_images
        >>> build_model("lenet300", load_images("digits"), torch.Generator())[1]
        Linear(in_features=64, out_features=300, bias=True)
    """
    check_sizes(arch, data, batch_size=1, scoring_examples=1)
    channels, size = data.train_x.shape[1], data.train_x.shape[-1]
    model = ARCHITECTURES[arch](channels, size, len(data.classes)).to(data.train_x.device)
    truncated_variance_scaling_(model, generator=generator)
    return model


def scoring_batches(
    data: ImageSet, batch_size: int, generator: torch.Generator, *, number: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Disjoint random batches of training examples, not augmented.

    Args:
        data: labelled images.
        batch_size: examples at a time, at least 1.
        generator: on the CPU.
        number: of batches, at least 1.

    Raises:
        ValueError: for numbers below 1, and where the set is too small for so many.

    Examples:
        >>> from companion.data.images import load_images
        >>> batches = scoring_batches(load_images("digits"), 20, torch.Generator(), number=2)
        >>> [tuple(x.shape) for x, _ in batches]
        [(20, 1, 8, 8), (20, 1, 8, 8)]
    """
    whole(1, batch_size=batch_size, number=number)
    _check_count("batch_size * number", batch_size * number, data)
    order = torch.randperm(len(data.train_x), generator=generator).to(data.train_x.device)
    chosen = order[: batch_size * number].split(batch_size)
    return [(data.train_x[index], data.train_y[index]) for index in chosen]


def criterion_scores(
    criterion: str,
    model: nn.Module,
    batches: Batches,
    generator: torch.Generator,
    *,
    biases: bool = True,
    bn_mode: str = "identity",
) -> dict[str, Tensor]:
    """Scores of every prunable parameter under one of `CRITERIA`.

    "snip_shuffled" permutes SNIP's scores inside each layer: layers keep their densities, but
    which connections survive is chance.

    Args:
        criterion: of `CRITERIA`.
        model: any module that maps inputs to logits; it stays as it is.
        batches: iterable of (inputs, targets); inputs (n, ...), targets as `loss_fn` takes them.
        generator: on the CPU.
        biases: rank biases with the weights.
        bn_mode: "identity" or "batch", as `connection_sensitivity`.

    Raises:
        ValueError: for an unknown criterion.

    Examples:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, -2.0)
        >>> criterion_scores("magnitude", layer, [], torch.Generator())
        {'weight': tensor([[2., 2.]])}
    """
    params = prunable_parameters(model, biases=biases)
    if criterion == "random":
        return random_scores(params, generator)
    if criterion == "magnitude":
        return magnitude_scores(params)
    if criterion not in CRITERIA:
        raise ValueError(f"criterion = {criterion!r}: expected one of {', '.join(CRITERIA)}")
    scores = connection_sensitivity(model, cross_entropy, batches, params=params, bn_mode=bn_mode)
    return shuffle_within_layer(scores, generator) if criterion == "snip_shuffled" else scores


@dataclass(frozen=True)
class PrunedRun:
    """One trained network. Errors are in percent of the test set.

    Attributes:
        error: after the last step.
        selected_error: at the step with the lowest validation error (the same where there is no
            validation set).
        kept: surviving weights and biases.
        empty: names of weight tensors of which nothing is left.
    """

    criterion: str
    sparsity: float
    seed: int
    error: float
    selected_error: float
    kept: int
    empty: tuple[str, ...]
    diverged: bool


def compare_criteria(
    arch: str,
    data: ImageSet,
    *,
    criteria: Sequence[str],
    sparsities: Sequence[float],
    seeds: Iterable[int],
    steps: int,
    prune_batch_size: int = 100,
    n_prune_batches: int = 1,
    bn_mode: str = "identity",
    prune_biases: bool = True,
    reinit_after_pruning: bool = False,
    validation: tuple[Tensor, Tensor] | None = None,
    augment: Callable | None = None,
    dense: bool = True,
    progress: bool = False,
    **training: Any,
) -> list[PrunedRun]:
    """Prune once by each criterion, train, and test; a dense network a seed for comparison.

    Scores are computed once a seed and criterion and reused for every sparsity. All networks
    of a seed start from the same weights and see the same batches. Networks that can be stacked
    train together (`companion.stacked`).

    Args:
        arch: name in `ARCHITECTURES`.
        data: labelled images.
        criteria: of `CRITERIA`.
        sparsities: fractions removed, each in [0, 1).
        seeds: one or more whole numbers, each a repetition.
        steps: optimiser steps, at least 0.
        prune_batch_size: examples a scoring batch.
        n_prune_batches: scoring batches.
        bn_mode: "identity" or "batch", as `connection_sensitivity`.
        prune_biases: rank biases with the weights.
        reinit_after_pruning: take the mask from the first weights, train a freshly drawn set, as
            the official code does.
        validation: held-out (inputs, targets), looked at 20 times a run.
        augment: function (batch, generator) -> batch; None: none.
        dense: also train a dense network a seed.
        progress: show a progress bar.
        training: other options of `companion.training.train`.

    Raises:
        ValueError: for scoring batches of no example, or of more than there are, for seeds that are
            no whole numbers, and for a number of steps below 0.
    """
    whole(1, prune_batch_size=prune_batch_size, n_prune_batches=n_prune_batches)
    whole(0, steps=steps)
    _check_count("prune_batch_size * n_prune_batches", prune_batch_size * n_prune_batches, data)
    seeds = list(seeds) if isinstance(seeds, Iterable) else seeds
    checks.seeds(seeds=seeds)
    seeds = [int(seed) for seed in seeds]  # those of NumPy are none to PyTorch
    total = len(seeds) * (len(criteria) * len(sparsities) + dense)

    def plans() -> Iterator[_Plan]:
        for seed in seeds:
            model = build_model(arch, data, torch.Generator().manual_seed(seed))
            batches = scoring_batches(
                data,
                prune_batch_size,
                torch.Generator().manual_seed(seed + 1000),
                number=n_prune_batches,
            )
            chosen: list[tuple[str, float, dict[str, Tensor]]] = [("dense", 0.0, {})] * dense
            for criterion in criteria:
                generator = torch.Generator().manual_seed(seed + 2000)
                scores = criterion_scores(
                    criterion, model, batches, generator, biases=prune_biases, bn_mode=bn_mode
                )
                chosen += [
                    (criterion, s, global_topk_mask(scores, s, warn=False)) for s in sparsities
                ]
            if reinit_after_pruning:
                truncated_variance_scaling_(
                    model, generator=torch.Generator().manual_seed(seed + 3000)
                )
            for criterion, sparsity, masks in chosen:
                yield _Plan(copy.deepcopy(model), criterion, sparsity, seed, masks)

    runs: list[PrunedRun] = []
    with Progress(total, "networks trained", show=progress) as bar:
        # a plan exists only when it is its turn: masks and weights of all may not fit
        for group in groups(
            plans(),
            lambda plan: plan.model,
            data.train_x,
            training.get("batch_size", 100),
            augment,
        ):
            runs += _trained(group, data, validation, augment, training | {"steps": steps})
            bar.update(len(group))
    return runs


@dataclass(frozen=True, eq=False)
class _Plan:
    """A network that is to be trained."""

    model: nn.Module
    criterion: str
    sparsity: float
    seed: int
    masks: dict[str, Tensor]


def _trained(plans: list[_Plan], data, validation, augment, training) -> list[PrunedRun]:
    checks: list[list[tuple[float, float]]] = [[] for _ in plans]

    def look(i: int) -> float:
        model = plans[i].model
        checks[i].append(
            (error_rate(model, *validation), error_rate(model, data.test_x, data.test_y))
        )
        return checks[i][-1][0]

    histories = train_together(
        [plan.model for plan in plans],
        data.train_x,
        data.train_y,
        seeds=[plan.seed + 4000 for plan in plans],
        masks=[plan.masks for plan in plans],
        augment=augment,
        monitor=look if validation else None,
        monitor_every=max(1, training["steps"] // 20),
        on_divergence="stop",
        **training,
    )
    errors = [error_rate(plan.model, data.test_x, data.test_y) for plan in plans]
    return [
        PrunedRun(
            plan.criterion,
            plan.sparsity,
            plan.seed,
            error,
            min(seen, key=itemgetter(0))[1] if seen else error,  # of equal ones the first
            _kept(plan),
            tuple(name for name, mask in plan.masks.items() if mask.dim() > 1 and not mask.any()),
            history.diverged,
        )
        for plan, error, seen, history in zip(plans, errors, checks, histories, strict=True)
    ]


def _kept(plan: _Plan) -> int:
    """Weights and biases that are left, those without a mask included."""
    left = prunable_parameters(plan.model)
    return count_kept(plan.masks) + sum(left[n].numel() for n in left.keys() - plan.masks.keys())


def class_scoring_batch(data: ImageSet, label: int, size: int, generator: torch.Generator):
    """A scoring batch with examples of one class only (all of them, where there are fewer).

    Args:
        data: labelled images.
        label: class index.
        size: examples at most.
        generator: on the CPU.

    Raises:
        ValueError: for a class without an example.
    """
    members = (data.train_y == label).nonzero().squeeze(1)
    if not len(members):
        raise ValueError(f"label = {label!r}: {data.name!r} has no training example of it")
    chosen = members[torch.randperm(len(members), generator=generator)[:size].to(members.device)]
    return [(data.train_x[chosen], data.train_y[chosen])]


def class_pixel_maps(
    model: nn.Module,
    data: ImageSet,
    sparsity: float | Sequence[float],
    *,
    size: int,
    generator: torch.Generator,
) -> Tensor:
    """How many first-layer connections of each input pixel survive, for every class.

    The network is scored once a class, with `size` examples of it alone. Its first weight must be
    a dense layer's.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        data: labelled images.
        sparsity: fraction removed, in [0, 1), or several.
        size: examples a class at most.
        generator: on the CPU.

    Returns:
        (classes, height, width) counts, of several sparsities (sparsities, classes, height, width).
    """
    several = isinstance(sparsity, Sequence)
    sparsities = list(sparsity) if isinstance(sparsity, Sequence) else [sparsity]
    maps = []
    for label in range(len(data.classes)):
        batch = class_scoring_batch(data, label, size, generator)
        scores = connection_sensitivity(model, cross_entropy, batch)
        for removed in sparsities:
            masks = global_topk_mask(scores, removed, warn=False)
            first = next(mask for mask in masks.values() if mask.dim() == 2)  # (units, pixels)
            maps.append(first.sum(0).view(data.train_x.shape[1:]).sum(0))
    found = torch.stack(maps).unflatten(0, (-1, len(sparsities))).movedim(1, 0)
    return found if several else found[0]


def matched_classes(maps: Tensor, data: ImageSet) -> int:
    """For how many classes the pixel map correlates best with that class's mean image.

    Args:
        maps: (classes, height, width), on any device. A map that is the same everywhere matches
            none.

    Raises:
        ValueError: for maps of another shape than the images'.
    """
    size = (len(data.classes), *data.train_x.shape[2:])
    if maps.shape != size:
        raise ValueError(f"maps: shape {tuple(maps.shape)}, expected {size}")
    means = torch.stack([data.train_x[data.train_y == k].mean((0, 1)) for k in range(len(maps))])
    # on the CPU: not every device has float64
    each = torch.corrcoef(torch.cat([maps.cpu().flatten(1), means.cpu().flatten(1)]).double())
    between = each[: len(maps), len(maps) :].nan_to_num(-2.0)  # (maps, means)
    best, where = between.max(1)
    return int(((where == torch.arange(len(maps))) & (best > -2)).sum())


def removal_effects(
    model: nn.Module, batch: tuple[Tensor, Tensor], number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """First-order prediction and true change of the loss when single weights are removed.

    Weights are drawn at random from those with a nonzero score, a third of them each from the
    top percent, the top tenth and the rest (which have one more where thirds are not whole), so
    that the rare sensitive ones are seen (fewer where a part has not as many).

    Both in the mode in which weights are scored: inference, batch normalisation with fresh
    statistics.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        batch: (inputs, targets).
        number: weights to remove, one at a time; at least 1.
        generator: on the CPU.

    Returns:
        Two vectors, -g_j and L(w with w_j = 0) - L(w).

    Raises:
        ValueError: for a number below 1.
    """
    whole(1, number=number)
    inputs, targets = batch
    gradients = connection_gradients(model, cross_entropy, [batch])
    known = dict(model.named_parameters())
    where = [(name, i) for name, g in gradients.items() for i in range(g.numel())]
    flat = torch.cat([g.flatten() for g in gradients.values()])
    ranked = flat.abs().argsort(descending=True)[: int((flat != 0).sum())]
    n = len(ranked)
    strata = (ranked[: n // 100], ranked[n // 100 : n // 10], ranked[n // 10 :])
    chosen = torch.cat(
        [
            s[torch.randperm(len(s), generator=generator)[: (number + i) // 3]]
            for i, s in enumerate(strata)
        ]
    )
    true = []
    with torch.no_grad(), full_precision(), scoring_mode(model, "identity") as stand_in:
        weights = {
            name: known[name].clone(memory_format=torch.contiguous_format) for name in gradients
        }

        def loss() -> Tensor:
            return cross_entropy(functional_call(model, stand_in | weights, (inputs,)), targets)

        base = loss()
        for j in chosen.tolist():
            name, i = where[j]
            entry = weights[name].view(-1)[i]
            value = entry.clone()
            entry.zero_()
            true.append(loss() - base)
            entry.copy_(value)
    return -flat[chosen], torch.stack(true)


def logit_sum(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """mean_n sum_k (p_nk - y_nk) z_nk: what every layer's signed scores add up to."""
    z = predict(model, inputs)
    y = torch.nn.functional.one_hot(targets, z.shape[1])
    return ((z.softmax(1) - y) * z).sum(1).mean()


def critical_sparsities(model: nn.Module) -> dict[str, float]:
    """Sparsity at which global magnitude pruning is expected to empty each layer of weights.

    A truncated normal ends at 2 sigma_l / 0.8796 with sigma_l^2 = 1 / fan-in. Layer l is gone once the
    threshold passes that end; by then the other layers keep their tails beyond it. Biases (zeros) are
    gone before.

    Examples:
        >>> {name: round(s, 2) for name, s in critical_sparsities(lenet_300_100(64)).items()}
        {'1.weight': 1.0, '3.weight': 0.87, '5.weight': 0.97}
    """
    layers = prunable_parameters(model, biases=False)
    sigma = {name: 1 / math.sqrt(w[0].numel()) / TRUNCATED_STD for name, w in layers.items()}
    total = sum(p.numel() for p in prunable_parameters(model).values())
    inside = math.erf(math.sqrt(2))  # probability of a normal within two deviations
    expected = {}
    for name in layers:
        threshold = 2 * sigma[name]
        left = sum(
            w.numel() * max(0.0, 1 - math.erf(threshold / sigma[other] / math.sqrt(2)) / inside)
            for other, w in layers.items()
        )
        expected[name] = 1 - left / total
    return expected


def fit_labels(
    arch: str,
    data: ImageSet,
    *,
    sparsity: float,
    examples: int,
    steps: int,
    seed: int,
    shuffled: bool,
    lr: float = 0.1,
) -> float:
    """Training accuracy in percent on few examples with true or random labels (plain SGD, no decay).

    The mask comes from a batch of 100 of the same examples with the same labels, and so do the
    steps; of fewer examples, from all of them.

    Args:
        arch: name in `ARCHITECTURES`.
        data: labelled images.
        sparsity: fraction removed, in [0, 1); 0 trains the dense network.
        examples: how many to learn, at least 1.
        steps: optimiser steps, at least 0.
        seed: of all draws.
        shuffled: draw the labels at random.
        lr: learning rate, above 0.

    Raises:
        ValueError: for no examples or more than there are.
    """
    whole(1, examples=examples)
    _check_count("examples", examples, data)
    generator = torch.Generator().manual_seed(seed)
    model = build_model(arch, data, generator)
    chosen = torch.randperm(len(data.train_x), generator=generator)[:examples].to(
        data.train_x.device
    )
    x, y = data.train_x[chosen], data.train_y[chosen]
    if shuffled:
        y = torch.randint(len(data.classes), y.shape, generator=generator).to(y.device)
    masks = {}
    if sparsity:
        masks = global_topk_mask(
            connection_sensitivity(model, cross_entropy, [(x[:100], y[:100])]),
            sparsity,
            warn=False,
        )
    with apply_masks(model, masks):
        train(
            model, x, y, steps=steps, generator=generator, batch_size=min(100, examples), lr=lr,
            momentum=0.0, on_divergence="stop",
        )  # fmt: skip
    return 100.0 - error_rate(model, x, y)
