"""Steps to a goal error: K*(B, s), the least over a metaparameter search."""

from __future__ import annotations

import copy
import errno
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from companion import checks
from companion import sparsity as pruning
from companion.checks import number, one_of, tensors, whole
from companion.data.images import hold_out, load_images, standardise
from companion.files import locked, to_json, write_whole
from companion.models import truncated_variance_scaling_
from companion.papers.data_parallelism.networks import build_network
from companion.papers.data_parallelism.stacked import (
    errors_up_to,
    hardest_first,
    stacked_gradients,
    train_batched,
)
from companion.papers.data_parallelism.trials import OPTIMIZERS, search_space, sobol_trials
from companion.progress import Progress
from companion.stacked import stack
from companion.training import check_classes, check_labels, shuffled_batches

# what each may be, and in words
METAPARAMETERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "lr": (lambda v: v >= 0, "finite numbers of at least 0"),
    "momentum": (lambda v: (v >= 0) & (v < 1), "numbers in [0, 1)"),
    "decay_steps": (lambda v: v > 0, "finite numbers above 0"),
    "decay_factor": (lambda v: v >= 0, "finite numbers of at least 0"),
}

# Status of a trial, and the entry of `steps` where there is no hit (the official code's numbers).
COMPLETE, INCOMPLETE, INFEASIBLE, STOPPED = 1, -1, -2, -3
STATUS = {
    COMPLETE: "complete",  # reached the goal
    INCOMPLETE: "incomplete",  # spent its budget
    INFEASIBLE: "infeasible",  # diverged
    STOPPED: "stopped",  # another trial of its group reached the goal first
}


# Training examples by whose outputs a model is known.
PROBES = 8


@dataclass(frozen=True, eq=False)
class Workload:
    """A data set, a network and an optimiser, with the goal they are to reach.

    Attributes:
        train_x, valid_x: (n, ...); train_y, valid_y: (n,) class indices.
        model: gives the architecture; its weights are not used, but for those that are frozen
            (`requires_grad`): they are neither drawn, pruned nor trained. Networks train in
            training mode and are checked in inference mode, which have to compute the same:
            dropout would leave the result to chance, and batch normalisation has no statistics
            of its own for each of the networks that train side by side.
        goal_error: fraction of the validation set, in (0, 1).
        max_steps: budget of a trial.
        check_every: steps between two looks at the validation error.
        prune_bias: rank biases with the weights (as the official code does); they start at 0, so
            every one of them is pruned.
        seed: of initial weights and of the order of the examples.
        name, checksum: of the data set, for provenance.

    Raises:
        ValueError: for a goal, an optimiser or a check interval that cannot work, for data that
            do not fit, and for a model with dropout or batch normalisation.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    model: nn.Module
    optimizer: str = "sgd"
    goal_error: float = 0.08
    max_steps: int = 3000
    check_every: int = 2
    prune_bias: bool = True
    seed: int = 0
    name: str = ""
    checksum: str = ""

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            allowed = ", ".join(OPTIMIZERS)
            raise ValueError(f"optimizer = {self.optimizer!r}: expected one of {allowed}")
        number(lambda e: 0 < e < 1, "a fraction in (0, 1)", goal_error=self.goal_error)
        whole(1, max_steps=self.max_steps, check_every=self.check_every)
        if self.check_every > self.max_steps:
            raise ValueError(
                f"check_every = {self.check_every!r}: expected 1 to max_steps = {self.max_steps}, "
                "otherwise the goal is never checked"
            )
        for part in ("train", "valid"):
            x, y = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            tensors(**{f"{part}_x": x})
            if not len(x):
                raise ValueError(f"{part}_x: no example")
            check_labels(x, **{f"{part}_y": y})
            object.__setattr__(self, f"{part}_y", y.long())
        x, kinds = self.train_x, {p.dtype for p in self.model.parameters()}
        if x.is_floating_point() and kinds and x.dtype not in kinds:
            weights = ", ".join(sorted(map(str, kinds)))
            raise ValueError(f"train_x: {x.dtype}, the model's weights are {weights}")
        outputs = _outputs_of_one_mode(self.model, self.train_x[:PROBES])
        check_classes(outputs, self.train_y, name="train_y")
        check_classes(outputs, self.valid_y, name="valid_y")

    def replace(self, **fields: Any) -> Workload:
        """A copy with some fields replaced; its network is its own, the data are shared."""
        return replace(self, **{"model": copy.deepcopy(self.model), **fields})

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless batches in the order of this seed; the same for every trial.

        Raises:
            ValueError: for a batch larger than the training set.
        """
        order = torch.Generator().manual_seed(self.seed)
        device = self.train_x.device
        for index in shuffled_batches(len(self.train_x), batch_size, order, device):
            yield self.train_x[index], self.train_y[index]


def _outputs_of_one_mode(model: nn.Module, x: Tensor) -> Tensor:
    """What a model puts out; ValueError where that depends on its mode, on chance or the batch."""
    for name, module in model.named_modules():
        drops = isinstance(module, _DropoutNd) and module.p > 0
        tracks = isinstance(module, _BatchNorm) or getattr(module, "track_running_stats", False)
        if drops or tracks:
            raise ValueError(
                f"model: {name!r} is a {type(module).__name__}, which computes something else in "
                "training than in inference: expected a model without, for instance with GroupNorm"
            )
    model = copy.deepcopy(model).to(x if x.is_floating_point() else x.device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        outputs = model.eval()(x)
        same = torch.allclose(model.train()(x), outputs, rtol=1e-3, atol=1e-5, equal_nan=True)
    if not same:
        raise ValueError(
            f"model: {type(model).__name__} computes something else in training than in "
            "inference: expected the same"
        )
    return outputs


def load_workload(
    dataset: str,
    model: str = "mlp",
    optimizer: str = "sgd",
    *,
    data_root: str = "",
    device: torch.device | str = "cpu",
    train_examples: int = 0,
    **options: Any,
) -> Workload:
    """A workload on one of the data sets of `companion.data`.

    Digits are split 1197 / 300 / 300 into training, validation and test set, elsewhere a tenth
    of the training images is held out for validation; the parts are always the same, whatever
    the seed. The dense network sees images of more than 20 pixels a side at half their size
    (averages of 2x2 pixels).

    Args:
        dataset: of `companion.data.images.IMAGE_SETS`.
        model: of `MODELS`.
        optimizer: of `OPTIMIZERS`.
        data_root: as `companion.data.root.data_root`.
        device: where everything lies.
        train_examples: take only so many of the images that are split into training and
            validation set, 10 up to all there are, 1497 digits; 0: all.
        options: other fields of `Workload`.

    Raises:
        ValueError: for an unknown data set, network or optimiser, and numbers out of range.
    """
    data = load_images(dataset, data_root)
    if dataset == "digits":
        joined = data.replace(
            train_x=torch.cat([data.train_x, data.test_x]),
            train_y=torch.cat([data.train_y, data.test_y]),
        )
        data, _ = hold_out(joined, 300 / len(joined.train_x), seed=1)
    whole(0, train_examples=train_examples)
    if train_examples and not 10 <= train_examples <= len(data.train_x):
        raise ValueError(
            f"train_examples = {train_examples!r}: expected 0, or 10 to {len(data.train_x)}, "
            f"what {dataset!r} has to be split"
        )
    fraction = 300 / len(data.train_x) if dataset == "digits" else 0.1
    data = data.limited(train_examples)
    if model == "mlp" and data.train_x.shape[-1] > 20:
        data = data.replace(train_x=avg_pool2d(data.train_x, 2), test_x=avg_pool2d(data.test_x, 2))
    data = standardise(data, per_channel=dataset.startswith("cifar10"))
    data, (valid_x, valid_y) = hold_out(data, fraction, seed=0)
    network = build_network(model, data.train_x, len(data.classes))
    return Workload(
        data.train_x.to(device),
        data.train_y.to(device),
        valid_x.to(device),
        valid_y.to(device),
        network.to(device),
        optimizer,
        name=dataset,
        checksum=data.checksum,
        **options,
    )


def connection_sensitivity(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], *, prune_bias: bool = True
) -> dict[str, Tensor]:
    """Normalised saliency |w dL/dw| / sum, signed gradients summed over the whole loader.

    Weights first, then (with `prune_bias`) the biases, whose initial value of 0 gives them 0.

    Raises:
        ValueError: where every saliency is 0, and as `companion.sparsity.connection_sensitivity`.
    """
    params = pruning.prunable_parameters(model, biases=prune_bias)
    scores = pruning.connection_sensitivity(model, cross_entropy, loader, params=params)
    if not any(s.any() for s in scores.values()):
        raise ValueError(
            "loader: every saliency is 0 at these weights and examples, so there is no sum to "
            "divide by"
        )
    total = sum(s.sum() for s in scores.values())
    # eq. (3.2)
    return {name: s / total for name, s in scores.items()}


def topk_mask(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Keep exactly round(P (1 - sparsity)) entries, ranked over all tensors jointly.

    Examples:
        >>> topk_mask({"w": torch.tensor([3.0, 1.0])}, 0.5)
        {'w': tensor([ True, False])}
    """
    return pruning.global_topk_mask(scores, sparsity, warn=False)


@dataclass(frozen=True, eq=False)
class Networks:
    """Initial networks of a search, each tensor (S, T, ...): sparsity, trial.

    Trial t starts from the same weights at every sparsity; only its mask differs.
    """

    sparsities: tuple[float, ...]
    params: dict[str, Tensor]
    masks: dict[str, Tensor]

    @property
    def trials(self) -> int:
        return next(iter(self.params.values())).shape[1]


def initial_networks(
    workload: Workload, sparsities: Sequence[float], trials: int, *, batch_size: int = 1000
) -> Networks:
    """Draw one network a trial and prune it at initialisation to every sparsity.

    Weights are truncated normal with variance 1 / fan-in, biases 0. Scores add up signed
    gradients over one pass of the training set, for all trials at once; how it is cut into
    batches does not matter.

    Args:
        workload: data, architecture and seed.
        sparsities: fractions removed, each in [0, 1).
        trials: networks a sparsity, at least 1.
        batch_size: examples a pass.

    Raises:
        ValueError: for no sparsity or a count below 1.
    """
    whole(1, trials=trials, batch_size=batch_size)
    if not len(sparsities):
        raise ValueError("sparsities = []: expected at least one")
    models: list[nn.Module] = []
    frozen = {n: p for n, p in workload.model.named_parameters() if not p.requires_grad}
    for trial in range(trials):
        network = copy.deepcopy(workload.model)
        generator = torch.Generator().manual_seed(100_003 * workload.seed + trial)
        truncated_variance_scaling_(network, generator=generator)
        network.load_state_dict(frozen, strict=False)
        models.append(network)
    params = stack(models)
    names = list(pruning.prunable_parameters(workload.model, biases=workload.prune_bias))
    total = {name: torch.zeros_like(p) for name, p in params.items()}
    if any(sparsities):
        pairs = zip(
            workload.train_x.split(batch_size), workload.train_y.split(batch_size), strict=True
        )
        for x, y in pairs:
            for name, g in stacked_gradients(workload.model, params, x, y).items():
                total[name] += g * len(x)
    masks = {
        name: torch.ones(len(sparsities), *p.shape, dtype=torch.bool, device=p.device)
        for name, p in params.items()
    }
    for t in range(trials):
        scores = {name: (params[name][t] * total[name][t]).abs() for name in names}  # |w dL/dw|
        for i, s in enumerate(sparsities):
            for name, mask in topk_mask(scores, s).items():
                masks[name][i, t] = mask
    wide = {name: p.expand(len(sparsities), *p.shape) for name, p in params.items()}
    return Networks(tuple(sparsities), wide, masks)


@dataclass(frozen=True, eq=False)
class StepsToResult:
    """Outcome of one search at one batch size, for S sparsities and T trials.

    Attributes:
        steps: (S, T), the first checked step at which a trial reached the goal; where there is
            none, the number of its status.
        status: (S, T), numbers of `STATUS`.
        best: (S,), trial with the fewest steps (among equals, with the fewest mistakes); -1: none.
        work: (S,), optimiser steps that all trials of a sparsity took together.
    """

    batch_size: int
    steps: Tensor
    status: Tensor
    best: Tensor
    work: Tensor

    def k_star(self, i: int) -> int | None:
        """Steps to the result at the i-th sparsity, or None if no trial reached the goal."""
        best = int(self.best[i])
        if best < 0:
            return None
        return int(self.steps[i, best])  # eq. (3.1)

    def outcome(self, i: int) -> str:
        """ "complete", or why there is no result: "incomplete", or "infeasible" if all diverged."""
        if self.best[i] >= 0:
            return STATUS[COMPLETE]
        lost = bool((self.status[i] == INFEASIBLE).all())
        return STATUS[INFEASIBLE if lost else INCOMPLETE]


def steps_to_result(
    workload: Workload,
    batch_size: int,
    sparsities: Sequence[float],
    trials: Mapping[str, Tensor],
    race: bool = True,
    *,
    networks: Networks | None = None,
    way: str = "auto",
) -> StepsToResult:
    """Train all trials at all sparsities at once until the goal error is reached.

    Args:
        workload: data, architecture, goal and budget.
        batch_size: 1 to the size of the training set.
        sparsities: fractions removed, each in [0, 1).
        trials: as `sobol_trials` gives them, each (T,): tensors, lists or arrays.
        race: stop all trials of a sparsity at its first hit. They train in lock-step, so the least
            number of steps is known then; without it every trial goes on to its own hit or its
            budget.
        networks: from `initial_networks`, where several batch sizes share them.
        way: as `stacked_outputs`.

    Raises:
        ValueError: for a batch larger than the training set, for networks that do not fit, and for
            trials without a learning rate, of unknown names, of different lengths, with values out
            of range, or with a momentum where the optimiser has none ("sgd").

    References:
        Lee et al. (2021), section 2.
    """
    trials = _as_vectors(trials, workload.optimizer)
    count = len(trials["lr"])
    if not _is_size(batch_size, workload):
        raise ValueError(
            f"batch_size = {batch_size!r}: expected a whole number, 1 to "
            f"{len(workload.train_x)}, the size of the training set"
        )
    networks = networks or initial_networks(workload, sparsities, count)
    if (networks.sparsities, networks.trials) != (tuple(sparsities), count):
        raise ValueError(
            f"networks: made for {networks.trials} trials at {networks.sparsities}, "
            f"expected {count} at {tuple(sparsities)}"
        )
    groups = len(sparsities)
    device = workload.train_x.device
    shape = (groups * count,)
    steps = torch.full(shape, INCOMPLETE)
    mistakes = torch.zeros(shape, dtype=torch.long)
    stopped = torch.zeros(shape, dtype=torch.bool)
    # the largest whole number of mistakes that is still within the goal
    allowed = int(workload.goal_error * len(workload.valid_y) + 1e-9)
    valid_x, valid_y = workload.valid_x, workload.valid_y
    reorder_at = workload.check_every

    def check(step: int, params: dict[str, Tensor], rows: Tensor) -> Tensor:
        nonlocal valid_x, valid_y, reorder_at
        if step >= reorder_at:  # the order changes no count, only how soon it is too large
            order = hardest_first(workload.model, params, valid_x, valid_y, way=way)
            valid_x, valid_y, reorder_at = valid_x[order], valid_y[order], 2 * step
        wrong = errors_up_to(workload.model, params, valid_x, valid_y, allowed, way=way)
        hit = wrong <= allowed
        if not hit.any():
            return hit
        steps[rows[hit].cpu()] = step
        mistakes[rows[hit].cpu()] = wrong[hit].cpu()
        if not race:
            return hit
        done = torch.isin(rows // count, rows[hit] // count)
        stopped[rows[done & ~hit].cpu()] = True
        return done

    def repeated(name: str) -> Tensor | None:  # (T,) to (S * T,)
        return trials[name].repeat(groups).to(device) if name in trials else None

    lr, momentum = repeated("lr"), repeated("momentum")
    assert lr is not None  # counted above
    training = train_batched(
        workload.model,
        {name: p.flatten(0, 1) for name, p in networks.params.items()},
        {name: m.flatten(0, 1) for name, m in networks.masks.items()},
        lr,
        0.0 if momentum is None else momentum,
        workload.batches(batch_size),
        steps=workload.max_steps,
        nesterov=workload.optimizer == "nesterov",
        decay_steps=repeated("decay_steps"),
        decay_factor=repeated("decay_factor"),
        check=check,
        check_every=workload.check_every,
        way=way,
    )
    status = torch.where(steps > 0, COMPLETE, INCOMPLETE)
    status[stopped] = STOPPED
    status[training.diverged] = INFEASIBLE
    steps = torch.where(steps > 0, steps, status).view(groups, count)
    order = torch.where(
        steps > 0, steps * (len(workload.valid_y) + 1) + mistakes.view_as(steps), 2**62
    )
    best = torch.where((steps > 0).any(1), order.argmin(1), -1)
    work = training.steps.view(groups, count).sum(1)
    return StepsToResult(batch_size, steps, status.view(groups, count), best, work)


def _is_size(batch_size: object, workload: Workload) -> bool:
    """Whether a batch can have so many examples."""
    whole_number = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    return whole_number and 1 <= batch_size <= len(workload.train_x)  # type: ignore[operator]


def _as_vectors(trials: Mapping[str, Any], optimizer: str) -> dict[str, Tensor]:
    """Values of every metaparameter as a vector; ValueError for what is no set of trials."""
    one_of(METAPARAMETERS, trials=next((n for n in trials if n not in METAPARAMETERS), "lr"))
    if optimizer == "sgd" and "momentum" in trials:
        raise ValueError(
            "trials: have a 'momentum', which optimizer = 'sgd' has not: leave it out, or take a "
            "workload with optimizer = 'momentum'"
        )
    vectors = {}
    for name, v in trials.items():
        try:
            vectors[name] = torch.as_tensor(
                v, dtype=v.dtype if isinstance(v, Tensor) else torch.float64
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"trials: {name!r} = {v!r}: expected a vector of numbers") from error
    if "lr" not in vectors or not vectors["lr"].numel():
        raise ValueError(f"trials = {sorted(trials)}: expected at least one value of 'lr'")
    for name, v in vectors.items():
        if v.is_complex():
            raise ValueError(f"trials: {name!r} {v.dtype}, expected real numbers")
        if v.shape != (expected := (vectors["lr"].numel(),)):
            raise ValueError(f"trials: {name!r} {tuple(v.shape)}, expected the shape {expected}")
    if ("decay_steps" in vectors) != ("decay_factor" in vectors):
        raise ValueError(
            f"trials = {sorted(trials)}: expected decay_steps and decay_factor or none"
        )
    for name, v in vectors.items():
        allows, expected_values = METAPARAMETERS[name]
        if not (fine := v.isfinite() & allows(v)).all():
            raise ValueError(f"trials: {name!r} {v[~fine][0].item()}: expected {expected_values}")
    return vectors


def search(
    workload: Workload,
    batch_sizes: Sequence[int],
    sparsities: Sequence[float],
    trials: Mapping[str, Tensor],
    *,
    seeds: Sequence[int] = (0,),
    race: bool = True,
    store: Path | str = "",
    progress: bool = False,
) -> dict[tuple[int, int], StepsToResult]:
    """Steps to the result for every seed and batch size: (seed, batch size) -> result.

    Args:
        workload: data, architecture, goal and budget.
        batch_sizes: each 1 to the size of the training set.
        sparsities: fractions removed, each in [0, 1).
        trials: as `sobol_trials` gives them, each (T,).
        seeds: one or more whole numbers, each a repetition.
        race: as `steps_to_result`.
        store: a JSON file that keeps every finished batch size, so that a run that was cut off
            goes on where it stopped. What was made with other settings is not used. Several
            searches may share it, where the file system has locks.
        progress: show a progress bar.

    Raises:
        ValueError: for an empty list, seeds that are no whole numbers, a batch larger than the
            training set, trials as in `steps_to_result`, and a store that is something else or
            cannot be written.
    """
    checks.seeds(bits=46, seeds=seeds)  # which are multiplied for the networks' own
    for name, given in {
        "batch_sizes": batch_sizes,
        "sparsities": sparsities,
        "seeds": seeds,
    }.items():
        if not len(given):
            raise ValueError(f"{name} = []: expected at least one")
    if unfit := [b for b in batch_sizes if not _is_size(b, workload)]:
        raise ValueError(
            f"batch_sizes = {list(batch_sizes)!r}: element {unfit[0]!r}: expected a whole number, "
            f"1 to {len(workload.train_x)}, the size of the training set"
        )
    trials = _as_vectors(trials, workload.optimizer)
    path = Path(store) if store else None
    kept = _read(path) if path else {}
    results = {}
    with Progress(len(seeds) * len(batch_sizes), "searches done", show=progress) as bar:
        for seed in map(int, seeds):  # those of NumPy are none to PyTorch
            seeded, networks = workload.replace(seed=seed), None
            known = _probe(seeded) if path else None
            for batch_size in sorted(batch_sizes, reverse=True):  # the cheap ones first
                key = _key(seeded, batch_size, sparsities, trials, race)
                if known is not None and key in kept and _like(kept[key].get("outputs"), known):
                    result = _restored(batch_size, kept[key])
                else:
                    if path:  # cannot it be written? before the work is done, not after
                        _keep(path, {})
                    networks = networks or initial_networks(seeded, sparsities, len(trials["lr"]))
                    result = steps_to_result(
                        seeded, batch_size, sparsities, trials, race, networks=networks
                    )
                    if path:
                        kept = _keep(path, {key: _stored(result) | {"outputs": known}})
                results[seed, batch_size] = result
                bar.update()
    return results


def _read(path: Path) -> dict[str, dict]:
    """What an earlier search kept; nothing where there is no file.

    Raises:
        ValueError: for a file that is something else.
    """
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"store = {str(path)!r}: not a file that a search kept: {error}"
        ) from error
    if not isinstance(kept, dict):
        raise ValueError(f"store = {str(path)!r}: not a file that a search kept")
    return kept


NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # what file systems without them say


def _keep(path: Path, more: dict[str, dict]) -> dict[str, dict]:
    """Add to what searches kept, other ones meanwhile included; all that is there then.

    Raises:
        ValueError: for a file that cannot be written or is something else.
    """
    target = Path(os.path.realpath(path))

    def add() -> dict[str, dict]:
        kept = _read(path) | more
        if more:
            write_whole(path, to_json(kept))
        return kept

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(target.with_name(f".{target.name}.lock"), wait=True):
                return add()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return add()
    except OSError as error:
        raise ValueError(f"store = {str(path)!r}: cannot be written: {error}") from error


FIELDS = ("steps", "status", "best", "work")


def _stored(result: StepsToResult) -> dict[str, list]:
    return {name: getattr(result, name).tolist() for name in FIELDS}


def _restored(batch_size: int, kept: Mapping[str, list]) -> StepsToResult:
    return StepsToResult(batch_size, *(torch.tensor(kept[name]) for name in FIELDS))


def _probe(workload: Workload) -> list:
    """Outputs of one network of the architecture: what its `repr` does not tell shows in them."""
    network = copy.deepcopy(workload.model).eval()
    truncated_variance_scaling_(network, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return network(workload.train_x[:PROBES]).nan_to_num().tolist()


def _like(kept: list | None, outputs: list) -> bool:
    """Whether these are the outputs of one network, up to the rounding of another machine."""
    a, b = torch.tensor(kept or []), torch.tensor(outputs)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)


def _told(value: object) -> str:
    """A function by its source where there is one, whatever else by its repr, without addresses."""
    try:
        return inspect.getsource(value)  # type: ignore[arg-type]  # a TypeError is one answer
    except (OSError, TypeError):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _described(model: nn.Module) -> list:
    """Forward pass, plain attributes and frozen weights of every module."""
    parts: list = []
    for name, module in model.named_modules(remove_duplicate=False):
        plain = {
            k: _told(v)
            for k, v in vars(module).items()
            if not k.startswith("_") and k != "training"
        }
        parts.append((name, _told(type(module).forward), plain))
    still: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if not p.requires_grad}
    still |= dict(model.named_buffers())
    parts += [(name, t.tolist()) for name, t in still.items()]
    return parts


def _key(workload, batch_size, sparsities, trials, race) -> str:
    """Everything that a result depends on, as a hash."""
    digest = hashlib.sha256()
    for tensor in (workload.train_x, workload.train_y, workload.valid_x, workload.valid_y):
        if tensor.dtype == torch.bfloat16:  # which NumPy has not
            tensor = tensor.view(torch.int16)
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    told = {k: v for k, v in vars(workload).items() if not isinstance(v, (Tensor, nn.Module))}
    told["model"] = repr(workload.model), _described(workload.model)
    values = {name: value.tolist() for name, value in trials.items()}
    digest.update(repr([told, batch_size, list(sparsities), values, race]).encode())
    return digest.hexdigest()


def trials_for(workload: Workload, n: int, lr_range: Sequence[float]) -> dict[str, Tensor]:
    """The paper's trials for a workload's optimiser."""
    return sobol_trials(search_space(workload.optimizer, lr_range, workload.max_steps), n)
