"""Networks of one architecture trained side by side as one stacked network.

Parameters are tensors with a leading axis of R rows, one a network. The loss is the *sum* of
the networks' losses: they share no parameter, so one backward pass gives every network its own
gradient. Each network keeps its weights, its mask and its batch order: it takes the steps that
`companion.training.train` would take with it alone.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, pad

from companion.sparsity import Zeros, apply_masks, check_masks
from companion.training import (
    LOOK_EVERY,
    DivergenceError,
    History,
    check_classes,
    check_training,
    shuffled_batches,
    train,
    upload,
)

Plan = TypeVar("Plan")

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Identity)
POOLING = (nn.MaxPool2d, nn.AvgPool2d)
# What `train_together` takes of the options of `train`, as they are.
OPTIONS = (
    "steps", "batch_size", "lr", "momentum", "weight_decay", "nesterov", "milestones", "gamma",
    "on_divergence",
)  # fmt: skip
# Of weights, gradients, velocities and masks on a CPU: more networks at once gain nothing.
CACHE_BYTES = 20e6
# Of those and of what the backward pass needs, on a GPU.
MEMORY_BYTES = 8e9
# Channels up to which a convolution on a CPU is faster with the channels innermost.
NARROW = 128
# Steps of a CUDA graph's making that are taken as they are, so that all that is lazy is there.
WARM_UP = 3


def stack(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """The parameters of R models of one shape as one dictionary, each tensor (R, ...).

    Raises:
        ValueError: for no model.
    """
    if not models:
        raise ValueError("models = []: expected at least one")
    each = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([p[name].detach() for p in each]) for name in each[0]}


def layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of a chain in the order of the forward pass, one used twice included."""
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is not nn.Sequential:
            yield name, module


def stackable(model: nn.Module, inputs: Tensor) -> bool:
    """Whether a model can be stacked: a plain chain of dense layers, convolutions and pooling.

    Not: whatever depends on the batch or on chance (batch normalisation, dropout), branches,
    shared or frozen parameters, hooks.

    Args:
        inputs: (n, ...), what the model is for.
    """
    if type(model) is not nn.Sequential:
        return False
    dims = inputs.dim()
    for _, module in layers(model):
        if isinstance(module, nn.Flatten):
            fits, dims = (module.start_dim, module.end_dim) == (1, -1), 2
        elif type(module) is nn.Linear:
            fits = dims == 2
        elif type(module) is nn.Conv2d:
            plain = (module.groups, module.dilation, module.padding_mode) == (1, (1, 1), "zeros")
            fits = dims == 4 and plain and not isinstance(module.padding, str)
        else:
            fits = type(module) in ELEMENTWISE or (type(module) in POOLING and dims == 4)
        if not fits:
            return False
    parameters = list(model.parameters())
    return (
        is_plain(model) and bool(parameters)
        and all(p.requires_grad and p.is_floating_point() for p in parameters)
    )  # fmt: skip


def is_plain(model: nn.Module) -> bool:
    """Whether no parameter is shared and no module or parameter has a hook."""
    named = list(model.named_parameters(remove_duplicate=False))
    if len(named) > len(list(model.parameters())):
        return False
    modules = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    tensors = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return not any(getattr(m, name) for m in model.modules() for name in modules) and not any(
        getattr(p, name) for _, p in named for name in tensors
    )


def outputs(model: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of R networks, each on a batch of its own, (R, batch, classes).

    Args:
        model: a chain (`stackable`), of which only the architecture is read.
        x: (R, batch, ...).
    """
    if _one_after_another(model, x.device):
        each = zip(*(p.unbind() for p in params.values()), strict=True)
        images = list(x)
        if any(getattr(module, "inplace", False) for module in model.modules()):
            images = [b.clone() for b in images]  # they may be the caller's
        return torch.stack(
            [
                functional_call(model, dict(zip(params, row, strict=True)), (laid_out(model, b),))
                for row, b in zip(each, images, strict=True)
            ]
        )
    h = x
    for name, module in layers(model):
        bias = params.get(f"{name}.bias")
        if isinstance(module, nn.Linear):
            weight = params[f"{name}.weight"]
            h = _products(h, weight.mT, None if bias is None else bias[:, None])
        elif isinstance(module, nn.Conv2d):
            h = _convolve(module, h, params[f"{name}.weight"], bias)
        elif isinstance(module, nn.Flatten):
            h = h.flatten(2)
        elif isinstance(module, POOLING):
            # every plane is pooled alone: (R, channels, batch, ...) is how they lie
            planes = h.transpose(1, 2)
            h = module(planes.flatten(0, 1)).unflatten(0, planes.shape[:2]).transpose(1, 2)
        else:  # not in place: that may be the caller's images
            h = h.relu() if isinstance(module, nn.ReLU) else module(h)
    return h


def _one_after_another(model: nn.Module, device: torch.device) -> bool:
    """Whether a CPU's kernels for convolutions beat matrix products of many networks."""
    return device.type == "cpu" and any(isinstance(m, nn.Conv2d) for m in model.modules())


def _products(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)


def _convolve(module: nn.Conv2d, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """R convolutions as matrix products of unfolded images, (R, batch, channels, height, width).

    Kernels for grouped convolutions are much slower where groups are as large as networks.
    """
    (rows, high), (columns, wide) = (
        (module.kernel_size[i], module.stride[i]) for i in (0, 1)
    )  # fmt: skip
    planes = h.transpose(1, 2)  # (R, channels, batch, height, width)
    assert not isinstance(module.padding, str)  # such a model is not `stackable`
    if any(module.padding):
        top, left = module.padding
        planes = pad(planes, (left, left, top, top))
    patches = planes.unfold(3, rows, high).unfold(4, columns, wide)
    size = patches.shape[2:5]  # batch, height, width
    patches = patches.permute(0, 1, 5, 6, 2, 3, 4).reshape(len(h), -1, math.prod(size))
    found = _products(weight.flatten(2), patches, None if bias is None else bias[..., None])
    return found.unflatten(2, size).transpose(1, 2)


def laid_out(model: nn.Module, images: Tensor) -> Tensor:
    """A batch as the CPU's kernels for this model's convolutions like it best.

    With the channels innermost where every convolution is narrow: a training step of LeNet-5,
    Simple-CNN or ResNet-8 takes 0.6 to 0.95 of the time, one of VGG-D more. Outputs differ by
    float rounding. Modules that are not PyTorch's might use `view`, which some layouts refuse:
    they say by an attribute `any_layout` that they do not.
    """
    modules = list(model.modules())
    widths = [m.out_channels for m in modules if isinstance(m, nn.Conv2d)]
    narrow = 0 < max(widths, default=0) <= NARROW
    known = all(
        type(m).__module__.startswith("torch.nn.") or getattr(m, "any_layout", False)
        for m in modules
    )
    if images.device.type != "cpu" or images.dim() != 4 or not (narrow and known):
        return images
    # a copy with explicit strides: `contiguous` leaves images of one channel as they are
    _, channels, height, width = images.shape
    strides = (channels * height * width, 1, width * channels, channels)
    return torch.empty_strided(images.shape, strides, dtype=images.dtype).copy_(images)


def groups(
    plans: Iterable[Plan],
    model_of: Callable[[Plan], nn.Module],
    inputs: Tensor,
    batch_size: int,
    augment: Callable | None = None,
) -> Iterator[list[Plan]]:
    """Plans of networks of one architecture in groups that train together best, in order.

    Plans are asked for when their group's turn comes.

    Args:
        plans: of networks of one architecture.
        model_of: the network of a plan.
        inputs: (n, ...), what the networks are for.
        batch_size: examples at a time, at least 1.
        augment: as `train_together`.
    """
    plans = iter(plans)
    for plan in plans:
        model = model_of(plan)
        size = 1 if augment else group_size(model, inputs, batch_size)
        yield [plan, *itertools.islice(plans, size - 1)]


def group_size(model: nn.Module, inputs: Tensor, batch_size: int) -> int:
    """How many such networks to train together: 1 where the model cannot be stacked.

    On a CPU as many dense networks as `CACHE_BYTES` hold, at least two, and convolutional ones
    one by one. On a GPU as many as fit in `MEMORY_BYTES`.
    """
    if not stackable(model, inputs):
        return 1
    if _one_after_another(model, inputs.device):
        return 1
    weights = 4 * sum(p.nbytes for p in model.parameters())  # with gradient, velocity and mask
    if inputs.device.type == "cpu":
        return max(2, int(CACHE_BYTES / weights))
    needed = weights + 2 * batch_size * _bytes_an_example(model, inputs)
    return max(1, int(MEMORY_BYTES / needed))


def _bytes_an_example(model: nn.Module, inputs: Tensor) -> int:
    """What the backward pass of one example needs beside the parameters."""
    params = {name: p.requires_grad_() for name, p in stack([model]).items()}
    known, needed = {p.data_ptr() for p in params.values()}, 0

    def saved(tensor: Tensor) -> Tensor:
        nonlocal needed
        needed += tensor.nbytes * (tensor.data_ptr() not in known)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(saved, lambda t: t):
        outputs(model, params, inputs[None, :1])
    return needed


def train_together(
    models: Sequence[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    *,
    seeds: Sequence[int],
    masks: Sequence[Mapping[str, Tensor]] | None = None,
    augment: Callable | None = None,
    monitor: Callable[[int], Any] | None = None,
    monitor_every: int = 0,
    **training: Any,
) -> list[History]:
    """Train networks of one architecture: stacked where they can be, else one after another.

    Either way each network takes the steps of `companion.training.train`, to float rounding, with
    a generator of its own seed: networks of one seed see the same batches. Convolutions on a CPU
    run with the channels innermost. On CUDA the step is a CUDA graph, and networks with
    convolutions that cannot be stacked (batch normalisation, branches, augmented images) train in
    `mixed` precision. How many networks to pass at a time says `group_size`.

    Args:
        models: changed in place.
        inputs: (n, ...), on the models' device.
        targets: (n,), class indices.
        seeds, masks: one a model.
        augment: function (batch, generator) -> batch; None: none.
        monitor: called with a model's position. The other arguments are those of `train`.
        monitor_every: steps between two calls of `monitor`; 0: never.
        training: other options of `train`, but `generator`, `mixed` and `progress`.

    Raises:
        ValueError: as `train` does, for other options, and for seeds or masks that are not one a
            model.
    """
    for name, value in training.items():
        if name not in OPTIONS:
            raise ValueError(f"{name} = {value!r}: expected options among {', '.join(OPTIONS)}")
    if "milestones" in training:  # an iterator would serve one network
        training["milestones"] = tuple(training["milestones"])
    masks = [{}] * len(models) if masks is None else masks
    for name, given in (("seeds", seeds), ("masks", masks)):
        if len(given) != len(models):
            raise ValueError(
                f"{name}: {len(given)}, expected one for each of {len(models)} models"
            )
    alike = len({str(model) for model in models}) == 1
    if augment is None and alike and all(stackable(model, inputs) for model in models):
        return _train_stacked(
            models, inputs, targets, seeds, masks, monitor, monitor_every, **training
        )
    found = []
    for i, (model, seed, mask) in enumerate(zip(models, seeds, masks, strict=True)):
        with apply_masks(model, mask):
            history = train(
                model, inputs, targets, augment=augment,
                generator=torch.Generator().manual_seed(seed), mixed=True,
                monitor=None if monitor is None else lambda i=i: monitor(i),
                monitor_every=monitor_every, **training,
            )  # fmt: skip
        found.append(history)
    return found


def _train_stacked(
    models: Sequence[nn.Module],
    inputs: Tensor,
    targets: Tensor,
    seeds: Sequence[int],
    masks: Sequence[Mapping[str, Tensor]],
    monitor: Callable[[int], Any] | None,
    monitor_every: int,
    *,
    steps: int,
    batch_size: int = 100,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    milestones: Iterable[int] = (),
    gamma: float = 0.1,
    on_divergence: str = "raise",
) -> list[History]:
    check_training(
        inputs, targets, steps=steps, lr=lr, momentum=momentum, weight_decay=weight_decay,
        nesterov=nesterov, on_divergence=on_divergence,
    )  # fmt: skip
    targets = targets.long()
    for model, mask in zip(models, masks, strict=True):
        model.train()
        check_masks(model, mask)
    # matrices lie as the products that are their gradients do: updates run through memory in order
    params = {
        name: nn.Parameter(p.mT.contiguous().mT if p.dim() == 3 else p)
        for name, p in stack(models).items()
    }
    zeros = _joint_masks(params, masks)
    for name, zero in zeros.items():
        zero.fill(params[name].data)
    leaves = list(params.values())
    optimizer = torch.optim.SGD(
        leaves, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, sorted(milestones), gamma)
    shape = copy.copy(models[0])  # its parameters are not read
    rows = len(models)
    with torch.no_grad():
        check_classes(
            outputs(shape, params, inputs[None, :1].expand(rows, *inputs[:1].shape)), targets
        )

    def step(index: Tensor) -> Tensor:
        """Losses of a step, (R,), for one batch of indices a network, or one for all."""
        x, y = inputs[index], targets[index]  # (R or 1, batch, ...)
        found = outputs(shape, params, x.expand(rows, *x.shape[1:]))
        labels = y.expand(rows, -1).flatten()
        losses = cross_entropy(found.flatten(0, 1), labels, reduction="none").view(rows, -1)
        losses = losses.mean(1)
        for p, g in zip(leaves, torch.autograd.grad(losses.sum(), leaves), strict=True):
            p.grad = g
        # a masked entry has neither gradient nor weight: no momentum or decay can move it
        for name, zero in zeros.items():
            gradient = params[name].grad
            assert gradient is not None  # set above
            zero.fill(gradient)
        optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def write_back(chosen: Iterable[int]) -> None:
        for r in chosen:
            for name, parameter in models[r].named_parameters():
                parameter.copy_(params[name][r])

    take = Graphed(step, optimizer) if _draws_graphs(inputs.device) else step
    order = _orders(seeds, len(inputs), batch_size, steps, inputs.device)
    histories = [History() for _ in models]
    alive, losses = list(range(rows)), []
    for number in range(1, steps + 1):
        losses.append(take(next(order)))
        schedule.step()
        if number % LOOK_EVERY == 0 or number == steps:
            table = torch.stack(losses).T.tolist()
            losses.clear()
            for r in alive:
                histories[r].loss += table[r]
                histories[r].diverged = not all(map(math.isfinite, table[r]))
            lost = [r for r in alive if histories[r].diverged]
            if lost and on_divergence == "raise":
                write_back(alive)
                raise DivergenceError(
                    f"the training loss is not finite by step {number}: lower lr = {lr}"
                )
            write_back(lost)
            alive = [r for r in alive if not histories[r].diverged]
            if not alive:
                break
        if monitor is not None and monitor_every and number % monitor_every == 0:
            write_back(alive)
            for r in alive:
                histories[r].checks.append((number, monitor(r)))
                models[r].train()
    write_back(alive)
    return histories


def _joint_masks(params: Mapping[str, Tensor], masks: Sequence[Mapping]) -> dict[str, Zeros]:
    """The masks of R networks as one; a network without one keeps all."""
    joint = {}
    for name, parameter in params.items():
        if any(name in mask for mask in masks):
            kept = torch.ones_like(parameter, dtype=torch.bool)
            for row, mask in zip(kept, masks, strict=True):
                if name in mask:
                    row.copy_(mask[name])
            joint[name] = Zeros(kept)
    return joint


def _orders(
    seeds: Sequence[int], count: int, batch_size: int, steps: int, device: torch.device
) -> Iterator[Tensor]:
    """Index batches of R networks, (R, batch), or (1, batch) where all share one seed.

    Drawn on the CPU as for each network alone, and uploaded together for `LOOK_EVERY` steps.
    """
    streams = {
        seed: shuffled_batches(count, batch_size, torch.Generator().manual_seed(seed))
        for seed in seeds
    }
    where = [list(streams).index(seed) for seed in seeds] if len(streams) > 1 else [0]
    for start in range(0, steps, LOOK_EVERY):
        some = range(min(LOOK_EVERY, steps - start))
        each = [torch.stack([next(stream) for _ in some]) for stream in streams.values()]
        yield from upload(torch.stack([each[s] for s in where], 1), device)


def _draws_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


class Graphed:
    """A training step as a CUDA graph: its hundred small kernels are launched as one.

    The first steps are taken as they are; then one is recorded, which computes nothing, and
    played from there on. It is recorded anew when the learning rate changes, which the graph
    holds as a constant. Where recording fails, steps go on as they are, and `failures` counts it.
    """

    failures = 0

    def __init__(self, step: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer) -> None:
        self.step, self.optimizer = step, optimizer
        self.graph: torch.cuda.CUDAGraph | None = None
        self.rate: float | None = None
        self.index: Tensor  # what the graph reads and what it writes, once there is one
        self.losses: Tensor
        self.taken, self.failed = 0, False

    def __call__(self, index: Tensor) -> Tensor:
        self.taken += 1
        if self.failed:
            return self.step(index)
        if self.taken <= WARM_UP:
            side, here = torch.cuda.Stream(), torch.cuda.current_stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                losses = self.step(index)
            here.wait_stream(side)
            return losses
        rate = self.optimizer.param_groups[0]["lr"]
        if self.graph is None or rate != self.rate:
            try:
                self._record(index)
            except RuntimeError:
                self.failed = True
                Graphed.failures += 1
                return self.step(index)
            self.rate = rate
        assert self.graph is not None  # recorded above, if not before
        self.index.copy_(index)
        self.graph.replay()
        return self.losses.clone()  # the next step overwrites them

    def _record(self, index: Tensor) -> None:
        self.graph, self.index = None, index.clone()
        self.optimizer.zero_grad(set_to_none=True)  # the old ones may lie in the old graph
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.losses = self.step(self.index)
        self.graph = graph
