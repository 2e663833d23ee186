"""One supervised loop and one evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.checks import at_least, fraction, generators, tensor_of_labels, tensors, whole
from companion.progress import Progress

# Steps between two looks at the loss: a GPU has to be waited for.
LOOK_EVERY = 100
# Devices on which `train(mixed=True)` computes in bf16.
MIXED = ("cuda",)


class DivergenceError(RuntimeError):
    """Raised when a training loss is no longer finite."""


@dataclass
class History:
    """What a training run left behind.

    Attributes:
        loss: training loss of every step.
        checks: (step, value) of every call of `monitor`.
    """

    loss: list[float] = field(default_factory=list)
    checks: list[tuple[int, Any]] = field(default_factory=list)
    diverged: bool = False


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor on a device, without waiting for what the device still computes.

    CUDA sets ordinary memory of the CPU aside before it returns; MPS does not promise that.
    """
    return tensor.to(device, non_blocking=torch.device(device).type != "mps")


def shuffled_batches(
    count: int,
    batch_size: int,
    generator: torch.Generator | None,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Endless index batches; every epoch in a new order, batches crossing epoch boundaries.

    Args:
        count: size of the set, at least 1.
        batch_size: 1 to `count`.
        generator: of the CPU, so that the order is the same everywhere; None: PyTorch's own.
        device: where the batches are used; the order goes there an epoch at a time.

    Raises:
        ValueError: for a batch larger than the set.

    Examples:
        >>> next(shuffled_batches(4, 4, None)).sort().values
        tensor([0, 1, 2, 3])
    """
    generators(generator=generator)
    whole(1, batch_size=batch_size)
    if batch_size > count:
        raise ValueError(
            f"batch_size = {batch_size!r}: expected 1 to {count}, the size of the set"
        )
    waiting = torch.empty(0, dtype=torch.long, device=device)
    while True:
        while len(waiting) < batch_size:
            order = torch.randperm(count, generator=generator)
            waiting = torch.cat([waiting, upload(order, device)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def train(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    generator: torch.Generator | None = None,
    batch_size: int = 100,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    milestones: Iterable[int] = (),
    gamma: float = 0.1,
    augment=None,
    monitor=None,
    monitor_every: int = 0,
    on_divergence: str = "raise",
    mixed: bool = False,
    progress: bool = False,
) -> History:
    """Minimise the mean cross-entropy by SGD.

    A masked model keeps to its masks: train it inside `companion.sparsity.apply_masks`.

    Args:
        model: trained in place.
        inputs, targets: tensors on the model's device, (n, ...) and (n,) class indices.
        steps: optimiser steps, at least 0.
        generator: CPU generator of the batch order (and of the augmentation); None: PyTorch's own.
        batch_size: examples a step, 1 to n.
        lr: learning rate, at least 0.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD, at least 0.
        nesterov: use Nesterov's correction, which needs a momentum above 0.
        milestones: steps at which the learning rate is multiplied by gamma.
        gamma: factor on the rate at a milestone.
        augment: function (batch, generator) -> batch.
        monitor: called without arguments every `monitor_every` steps; its value is kept.
        monitor_every: steps between two calls of `monitor`; 0: never.
        on_divergence: "raise" a DivergenceError on a loss that is not finite, or "stop".
        mixed: on CUDA, and for a network with convolutions, compute products in bf16 (autocast)
            and lay images and kernels out with the channels innermost. Weights, their updates and
            the loss stay float32, but a product keeps eight bits only: the run ends as one of
            another seed might. Without effect elsewhere; scoring and testing stay in full
            precision.
        progress: show a progress bar.

    Raises:
        ValueError: for arguments out of range and for inputs and targets that do not fit.
    """
    check_training(
        inputs, targets, steps=steps, lr=lr, momentum=momentum, weight_decay=weight_decay,
        nesterov=nesterov, on_divergence=on_divergence,
    )  # fmt: skip
    targets = targets.long()
    history = History()
    device = inputs.device
    precision: AbstractContextManager = nullcontext()
    if mixed and device.type in MIXED and any(isinstance(m, nn.Conv2d) for m in model.modules()):
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in the stubs
        precision = torch.autocast(device.type, torch.bfloat16)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov,
        fused=device.type == "cuda" or None,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, sorted(milestones), gamma)
    order = shuffled_batches(len(inputs), batch_size, generator, device)
    losses: list[Tensor] = []
    model.train()
    with Progress(steps, "steps", show=progress) as bar:
        for step in range(1, steps + 1):
            index = next(order)
            batch = inputs[index] if augment is None else augment(inputs[index], generator)
            optimizer.zero_grad(set_to_none=True)
            with precision:
                outputs = model(batch)
                if step == 1:
                    check_classes(outputs, targets)
                loss = cross_entropy(outputs, targets[index])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            bar.update()
            if step % LOOK_EVERY == 0 or step == steps:
                history.loss += torch.stack(losses).tolist()
                losses.clear()
                if not torch.isfinite(torch.tensor(history.loss[-LOOK_EVERY:])).all():
                    history.diverged = True
                    if on_divergence == "raise":
                        raise DivergenceError(
                            f"the training loss is not finite by step {step}: lower lr = {lr}"
                        )
                    return history
            if monitor is not None and monitor_every and step % monitor_every == 0:
                history.checks.append((step, monitor()))
                model.train()
    return history


@contextmanager
def evaluation_mode(model: nn.Module, training: bool = False) -> Iterator[None]:
    """Put the model in inference mode inside the block; every module's own mode comes back."""
    was = {module: module.training for module in model.modules()}
    try:
        if (not training) in was.values():  # setting what is set is slow, in a loop of many steps
            model.train(training)
        yield
    finally:
        for module, mode in was.items():
            if module.training != mode:
                module.training = mode


def training_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Put the model in training mode inside the block; every module's own mode comes back."""
    return evaluation_mode(model, training=True)


def functional_call(model: nn.Module, state: Mapping[str, Tensor], args: tuple) -> Tensor:
    """The model's outputs with these parameters and buffers in place of its own.

    As `torch.func.functional_call`, which leaves its own tensors in a model that uses one module
    twice: it swaps them in and out by name, and that module has two.
    """
    names: dict[Tensor, list[str]] = {}
    for path, module in model.named_modules():  # every module once
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                names.setdefault(tensor, []).append(f"{path}.{name}" if path else name)
    tied = {name: state[same[0]] for same in names.values() if same[0] in state for name in same}
    return torch.func.functional_call(model, {**tied, **state}, args, tie_weights=False)


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 1000) -> Tensor:
    """Outputs of the model in inference mode, (n, classes).

    Raises:
        ValueError: for no inputs or such as are no tensor, and for a batch_size below 1.
    """
    tensors(inputs=inputs)
    if len(inputs) == 0:
        raise ValueError("inputs: no example")
    whole(1, batch_size=batch_size)
    with evaluation_mode(model):
        return torch.cat([model(batch) for batch in inputs.split(batch_size)])


def error_rate(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, batch_size: int = 1000
) -> float:
    """Misclassified examples in percent; an output that is not finite is a mistake.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        inputs: (n, ...), on the model's device.
        targets: (n,), class indices.
        batch_size: examples at a time, at least 1.

    Raises:
        ValueError: for no examples and for inputs and targets that do not fit.

    Examples:
        >>> error_rate(nn.Identity(), torch.eye(2), torch.tensor([0, 0]))
        50.0
    """
    check_labels(inputs, targets=targets)
    outputs = predict(model, inputs, batch_size=batch_size)
    check_classes(outputs, targets)
    right = (outputs.argmax(1) == targets) & outputs.isfinite().all(1)
    return 100.0 * (1.0 - int(right.sum()) / len(right))


def check_training(
    inputs: Tensor,
    targets: Tensor,
    *,
    steps: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    on_divergence: str,
) -> None:
    """Raise ValueError for what `train` cannot work with.

    Args:
        inputs: (n, ...), on the model's device.
        targets: (n,), class indices.
        steps: optimiser steps, at least 0.
        lr: learning rate, at least 0.
        momentum: in [0, 1).
        weight_decay: at least 0.
        nesterov: whether a momentum above 0 is needed.
        on_divergence: "raise" or "stop".

    Raises:
        ValueError: for what `train` cannot work with.
    """
    whole(0, steps=steps)
    at_least(0, lr=lr, weight_decay=weight_decay)
    fraction(momentum=momentum)
    if nesterov and not momentum:
        raise ValueError(f"momentum = {momentum!r}: expected above 0 with nesterov = {nesterov!r}")
    tensors(inputs=inputs)
    check_labels(inputs, targets=targets)
    if on_divergence not in ("raise", "stop"):
        raise ValueError(f"on_divergence = {on_divergence!r}: expected 'raise' or 'stop'")


def check_classes(outputs: Tensor, targets: Tensor, *, name: str = "targets") -> None:
    """Raise ValueError unless every class index has an output, (..., classes)."""
    if (largest := int(targets.max())) >= (classes := outputs.shape[-1]):
        raise ValueError(f"{name}: {largest}, but the model tells {classes} classes apart")


def check_labels(inputs: Tensor, **labels: Tensor) -> None:
    """Raise ValueError unless there is one class index, an integer, for every input."""
    tensor_of_labels(**labels)
    for name, targets in labels.items():
        if targets.shape != inputs.shape[:1]:
            raise ValueError(
                f"{name}: shape {tuple(targets.shape)}, expected one class index for each of {len(inputs)} inputs"
            )
        if targets.is_floating_point() or targets.dtype == torch.bool:
            raise ValueError(f"{name}: {targets.dtype}, expected integer class indices")
        if len(targets) and (least := int(targets.min())) < 0:
            raise ValueError(f"{name}: {least}, expected class indices of at least 0")
