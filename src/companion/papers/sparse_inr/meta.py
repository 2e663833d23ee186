"""Meta-learning a starting point, densely and round by round sparser."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from companion.checks import at_least, tensors, whole
from companion.papers.sparse_inr.masks import (
    Masks,
    active_masks,
    apply_mask,
    count_params,
    full_masks,
    magnitude_prune,
    zero_masked,
)
from companion.papers.sparse_inr.network import (
    Params,
    check_points,
    checked,
    ordinary,
    signals_at,
    siren,
    strict_float32,
)
from companion.progress import Progress, progress_bar
from companion.training import LOOK_EVERY, DivergenceError, shuffled_batches


def _check_shape(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            f"targets: (points, channels) {tuple(target.shape)}, expected the network's "
            f"{tuple(output.shape)}"
        )


def signal_loss(
    theta: Params, masks: Masks, omega_0: Tensor, coords: Tensor, target: Tensor
) -> Tensor:
    """Mean squared error of one signal.

    Args:
        theta: weights and biases by name.
        masks: boolean tensors by parameter name.
        omega_0: the frequency, a scalar.
        coords: (points, in).
        target: (points, out).

    Raises:
        ValueError: for a target of another shape than the output, which would broadcast.
    """
    theta = theta | {"omega_0": omega_0}  # eq. (4.2)
    output = siren(theta, coords, masks)
    _check_shape(output, target)
    return (output - target).square().mean()


def maml_loss(
    params: Params,
    masks: Masks,
    coords: Tensor,
    targets: Tensor,
    inner_lr: float,
    inner_steps: int,
    *,
    first_order: bool = False,
) -> Tensor:
    """Mean loss of several signals after a few steps of gradient descent on each.

    Args:
        params: of the network.
        masks: boolean tensors by parameter name.
        coords: (points, in).
        targets: (signals, points, out). All signals are stepped at once; the result can be
            differentiated through the inner steps.
        inner_lr: alpha, of the inner steps.
        inner_steps: of gradient descent, n.
        first_order: take the inner gradients for constants.

    Raises:
        ValueError: for inner_steps below 0, and masks or targets that do not fit.

    References:
        Finn et al. (2017); Lee, Tack et al. (2021), section 3.
    """
    whole(0, inner_steps=inner_steps)
    theta, omega_0 = checked(params, masks)
    check_points(params, coords=coords)
    coords, targets = coords.to(omega_0), targets.to(omega_0)

    def adapted_loss(target: Tensor) -> Tensor:
        fast = theta
        fixed = masks, omega_0, coords, target
        for _ in range(inner_steps):  # eq. (4.3)
            slope = grad(signal_loss)(fast, *fixed)
            if first_order:
                slope = {n: g.detach() for n, g in slope.items()}
            fast = {  # one step of gradient descent
                n: w - inner_lr * slope[n] for n, w in fast.items()
            }
        return signal_loss(fast, *fixed)

    with strict_float32():  # eq. (4.4)
        return vmap(adapted_loss)(targets).mean()


@torch.inference_mode(False)
@torch.enable_grad()
def meta_train(
    params: Params,
    masks: Masks,
    tasks: Tensor,
    steps: int,
    *,
    coords: Tensor | None = None,
    inner_lr: float = 1e-2,
    inner_steps: int = 2,
    outer_lr: float = 3e-4,
    tasks_per_step: int = 3,
    generator: torch.Generator | None = None,
    opt_state: dict | None = None,
    first_order: bool = False,
    progress: bool | Progress = False,
) -> tuple[Params, dict, list[float]]:
    """Minimise `maml_loss` over random signals with Adam, keeping to the masks.

    Works inside `torch.no_grad` and `torch.inference_mode` too.

    Args:
        params: of the network to start from; they stay as they are.
        masks: boolean tensors by parameter name.
        tasks: (n, points, channels), the family of signals, in [0, 1] as `fit` has it.
        steps: of the outer optimiser, at least 0.
        coords: (points, 2); None takes the pixel grid of square pictures.
        inner_lr: alpha, of the inner steps, at least 0.
        inner_steps: of gradient descent, n.
        outer_lr: of Adam, at least 0.
        tasks_per_step: signals an outer step, 1 to n.
        generator: draws the signals of every step, without repeating one before all had their
            turn; None: PyTorch's own, so that every call draws others.
        opt_state: Adam's, from an earlier call, to continue where it stopped, at this call's
            outer_lr.
        first_order: take the inner gradients for constants.
        progress: show a bar; or a bar to move on.

    Returns:
        The trained copy of params, Adam's state, and the loss of every step.

    Raises:
        ValueError: for numbers below 0, more tasks a step than there are, and masks, tasks or
            coords that do not fit.
        DivergenceError: for a loss that is not finite.
    """
    whole(0, steps=steps, inner_steps=inner_steps)
    at_least(0, inner_lr=inner_lr, outer_lr=outer_lr)
    tensors(tasks=tasks)
    theta, omega_0 = checked(params, masks)
    coords, tasks = map(ordinary, signals_at(coords, tasks, params))
    omega_0, masks = ordinary(omega_0), {name: ordinary(m) for name, m in masks.items()}
    if steps and not 1 <= tasks_per_step <= len(tasks):
        raise ValueError(
            f"tasks_per_step = {tasks_per_step!r}: expected 1 to {len(tasks)}, the number of tasks"
        )
    theta = {
        name: w.detach().clone().requires_grad_() for name, w in apply_mask(theta, masks).items()
    }
    optimizer = torch.optim.Adam(theta.values(), lr=outer_lr)
    active = active_masks(masks)
    if opt_state is not None:
        # the optimiser works on the state that it is given: the caller's must stay as it is
        optimizer.load_state_dict(copy.deepcopy(opt_state))
        optimizer.param_groups[0]["lr"] = outer_lr  # not the earlier call's
        # what it remembers of pruned weights would decay into subnormal numbers, which are slow
        for name, mask in active.items():
            for value in optimizer.state[theta[name]].values():
                if value.shape == mask.shape:  # not the number of steps
                    value.masked_fill_(~mask, 0)
    order = shuffled_batches(len(tasks), tasks_per_step, generator, tasks.device)
    log: list[Tensor] = []
    with strict_float32(), progress_bar(progress, steps, "outer steps") as bar:
        for step in range(1, steps + 1):
            batch = tasks[next(order)]
            optimizer.zero_grad(set_to_none=True)
            loss = maml_loss(
                theta | {"omega_0": omega_0}, active, coords, batch, inner_lr, inner_steps, first_order=first_order
            )  # fmt: skip
            loss.backward()
            optimizer.step()
            zero_masked(theta, active)  # Adam's memory from before the pruning would move them
            log.append(loss.detach())
            if (step % LOOK_EVERY == 0 or step == steps) and not (
                torch.stack(log[-LOOK_EVERY:]).isfinite().all()
            ):
                raise DivergenceError(
                    f"the meta-learning loss is not finite by step {step}: lower "
                    f"outer_lr = {outer_lr} or inner_lr = {inner_lr}"
                )
            bar.update()
    trained = {name: w.detach() for name, w in theta.items()} | {"omega_0": omega_0}
    return trained, optimizer.state_dict(), torch.stack(log).tolist() if log else []


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A meta-learned network: its masks, outer steps so far, Adam's state, losses of all steps."""

    params: Params
    masks: Masks
    outer_steps: int
    opt_state: dict
    log: tuple[float, ...]

    @property
    def weights(self) -> int:
        return count_params(self.masks, params=self.params)


def meta_learn(params: Params, tasks: Tensor, steps: int, **options: Any) -> Checkpoint:
    """Meta-train a dense network; options as `meta_train`.

    Args:
        params: of the network to start from.
        tasks: (n, points, channels), in [0, 1].
        steps: of the outer optimiser, at least 0.
        options: of `meta_train`.
    """
    masks = full_masks(params)
    params, state, log = meta_train(params, masks, tasks, steps, **options)
    return Checkpoint(params, masks, steps, state, tuple(log))


def meta_prune(
    start: Checkpoint,
    tasks: Tensor,
    *,
    rounds: int,
    amount: float,
    round_steps: int,
    prune: Callable[[Params, Masks, float], Masks] = magnitude_prune,
    **options: Any,
) -> list[Checkpoint]:
    """Meta-SparseINR: prune the meta-learned network, continue to meta-train it, and again.

    No rewinding: every round goes on from the current weights with Adam's state.

    Args:
        start: a meta-learned network.
        tasks: (n, points, channels), in [0, 1].
        rounds: of pruning, at least 0.
        amount: fraction of the survivors removed a round, in [0, 1).
        round_steps: outer steps after each pruning.
        prune: `magnitude_prune`, or any function of the same arguments.
        options: as `meta_train`.

    Returns:
        The start and the network after every round.

    Raises:
        ValueError: for rounds below 0, and as `meta_train`.

    References:
        Lee, Tack et al. (2021), section 3.
    """
    whole(0, rounds=rounds)
    chain = [start]
    for _ in range(rounds):
        last = chain[-1]
        masks = prune(last.params, last.masks, amount)
        params, state, log = meta_train(
            last.params, masks, tasks, round_steps, opt_state=last.opt_state, **options
        )
        steps = last.outer_steps + round_steps
        chain.append(Checkpoint(params, masks, steps, state, last.log + tuple(log)))
    return chain
