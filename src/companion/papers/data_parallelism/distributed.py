"""Data parallelism for real: one update computed by several processes.

Every process holds all weights and a shard of the batch. It adds up the gradients of its own
examples, the sums of all processes are added by all-reduce, and each divides by the size of
the whole batch and takes the same step. Shards need not be equal.

Over several GPUs or machines:

    torchrun --nproc-per-node 2 -m companion.papers.data_parallelism.distributed --steps 5
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.device import starting_workers
from companion.training import functional_call

REDUCTIONS = ("sum", "mean_of_means")


class WorkerError(RuntimeError):
    """Raised when a process of a group failed, died or did not answer in time."""


def split(batch: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """Cut a batch into shards of these sizes.

    Raises:
        ValueError: unless they are positive and add up to the batch.
    """
    if not sizes or min(sizes) < 1 or sum(sizes) != len(batch):
        raise ValueError(
            f"shards = {list(sizes)!r}: expected positive sizes that add up to {len(batch)}"
        )
    return batch.split(list(sizes))


@dataclass(frozen=True)
class Update:
    """Metaparameters of the updates: learning rate, momentum, Nesterov's correction."""

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True


def train_shard(
    model: nn.Module,
    params: Mapping[str, Tensor],
    shards: Sequence[tuple[Tensor, Tensor]],
    update: Update,
    *,
    reduction: str = "sum",
) -> dict[str, Tensor]:
    """Take one step a shard with the other processes of the group; return the new parameters.

    Args:
        model: any module that maps inputs to logits; it stays as it is, its buffers (running
            statistics) too, and so do parameters that are frozen there (`requires_grad`).
        params: of the network at the start.
        shards: this process's part of every batch. Without a process group it is the whole batch.
        update: learning rate, momentum, Nesterov's correction.
        reduction: "sum" adds summed gradients and divides by the size of the whole batch, which is
            exact. "mean_of_means" averages the processes' mean gradients, which gives examples of
            small shards too much weight; it is here to be shown wrong.

    Raises:
        ValueError: for an unknown reduction, and a model of which every parameter is frozen.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction = {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    theta = {name: p.detach().clone() for name, p in params.items()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    still = {name: b.detach().clone() for name, b in model.named_buffers()}
    still |= {name: theta.pop(name) for name in frozen & theta.keys()}
    if not theta:
        raise ValueError(
            "model: every parameter is frozen, expected one with requires_grad = True"
        )
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    for x, y in shards:
        leaves = {name: p.requires_grad_() for name, p in theta.items()}
        outputs = functional_call(model, still | leaves, (x,))
        loss = cross_entropy(outputs, y.long(), reduction="sum")
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        # one message: all gradients and, last, how many examples they are of
        scale = 1.0 if reduction == "sum" else 1.0 / len(y)
        # a sum of 16-bit gradients overflows, and a count of examples is rounded
        wide = functools.reduce(torch.promote_types, (g.dtype for g in gradients), torch.float32)
        message = torch.cat(
            [scale * g.flatten().to(wide) for g in gradients]
            + [gradients[0].new_tensor([scale * len(y)], dtype=wide)]
        )
        if dist.is_initialized():
            dist.all_reduce(message)
        mean = message[:-1] / message[-1]  # eq. (3.6)
        parts = mean.split([g.numel() for g in gradients])
        theta = {
            name: _moved(p.detach(), g.view_as(p).to(p.dtype), velocity[name], update)
            for (name, p), g in zip(theta.items(), parts, strict=True)
        }
    return {name: theta[name] if name in theta else still[name] for name in params}


def _moved(w: Tensor, g: Tensor, v: Tensor, update: Update) -> Tensor:
    v.mul_(update.momentum).add_(g)
    step = g + update.momentum * v if update.nesterov else v
    return w - update.lr * step


def update_in_processes(
    model: nn.Module,
    params: Mapping[str, Tensor],
    batches: Sequence[tuple[Tensor, Tensor]],
    shards: Sequence[int],
    update: Update,
    *,
    reduction: str = "sum",
    timeout: float = 60.0,
) -> list[dict[str, Tensor]]:
    """Train on the batches with one gloo process a shard; return every process's parameters.

    Args:
        model: any module that maps inputs to logits; it stays as it is.
        params: one network on the CPU.
        batches: list of (inputs, targets).
        shards: sizes, one a process; they may differ.
        update: learning rate, momentum, Nesterov's correction.
        reduction: as `train_shard`.
        timeout: seconds after which the group is given up.

    Raises:
        ValueError: for no batches, shards that do not fit them or another reduction.
        WorkerError: if a process fails, dies or does not answer. No process outlives the call, nor
            a parent that is killed.
    """
    if not batches:
        raise ValueError("batches = []: expected at least one")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction = {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    for x, _ in batches:
        split(x, shards)
    parts = [
        [(split(x, shards)[rank], split(y, shards)[rank]) for x, y in batches]
        for rank in range(len(shards))
    ]
    plain = {name: p.detach().clone() for name, p in params.items()}
    jobs = [(model, plain, part, update, reduction) for part in parts]
    results = run_group(_train_job, jobs, timeout=timeout)
    return [
        {name: torch.from_numpy(p).view(plain[name].dtype) for name, p in result.items()}
        for result in results
    ]


def _train_job(rank: int, model, params, shards, update, reduction) -> dict[str, Tensor]:
    trained = train_shard(model, params, shards, update, reduction=reduction)
    # to be sent as NumPy's, which has no bfloat16
    return {n: p.view(torch.int16) if p.dtype == torch.bfloat16 else p for n, p in trained.items()}


def run_group(job, arguments: Sequence[tuple], *, timeout: float = 60.0) -> list:
    """Run job(rank, *arguments[rank]) in one process a rank, joined in a gloo group.

    Returns:
        What each rank returned. Processes are forked where that is safe (Linux, no GPU in use),
        otherwise spawned: then `job` has to be of an importable module. They do not run the
        calling script again, and write no record.

    Raises:
        ValueError: for no rank, a timeout that is not positive, or a job that cannot be spawned.
        WorkerError: after ending all of them, as soon as one fails or dies.
    """
    if not arguments:
        raise ValueError("arguments = []: expected one tuple a process, at least one")
    if not timeout > 0:
        raise ValueError(f"timeout = {timeout!r}: expected seconds above 0")
    forked = sys.platform == "linux" and not torch.cuda.is_initialized()
    if not forked and job.__module__ == "__main__":
        raise ValueError(f"job = {job.__name__}: expected a function of a module, not of a script")
    context = multiprocessing.get_context("fork" if forked else "spawn")
    world, deadline = len(arguments), time.monotonic() + timeout
    results: list = [None] * world
    with tempfile.TemporaryDirectory() as folder:
        pipes, workers = [], []
        try:
            for rank, given in enumerate(arguments):
                mine, theirs = context.Pipe(duplex=False)
                worker = context.Process(  # type: ignore[attr-defined]  # the stubs have it by platform
                    target=_worker,
                    args=(
                        theirs,
                        os.getpid(),
                        rank,
                        world,
                        f"{folder}/rendezvous",
                        timeout,
                        job,
                        given,
                    ),
                    daemon=True,
                )
                with starting_workers():
                    worker.start()
                theirs.close()  # so that a dead worker is seen as the end of its pipe
                pipes.append(mine)
                workers.append(worker)
            waiting = dict(enumerate(pipes))
            while waiting:
                left = deadline - time.monotonic()
                ready = wait(list(waiting.values()), max(left, 0))
                if not ready:
                    raise WorkerError(
                        f"processes {sorted(waiting)} did not answer in {timeout:g} s"
                    )
                for rank in [r for r, pipe in waiting.items() if pipe in ready]:
                    results[rank] = _received(waiting.pop(rank), rank, workers)
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                worker.join()
            for pipe in pipes:
                pipe.close()
    return results


def _received(pipe, rank: int, workers: Sequence):
    try:
        ok, value = pipe.recv()
    except EOFError:
        workers[rank].join(5)
        ok, value = False, ""
    if ok:
        return value
    # a process that dies makes the others fail as well: name the one that was first, though its
    # end may be seen a moment after theirs
    end = time.monotonic() + 1
    for other, worker in enumerate(workers):
        worker.join(max(0.0, end - time.monotonic()))
        if worker.exitcode not in (None, 0):
            raise WorkerError(f"process {other} died (exit code {worker.exitcode})")
    raise WorkerError(f"process {rank} failed: {value or 'it ended without an answer'}")


def _worker(pipe, parent: int, rank: int, world: int, store: str, timeout: float, job, given):
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
        answer = True, _to_numpy(job(rank, *given))
    except Exception as error:
        answer = False, traceback.format_exception_only(error)[-1].strip()
    pipe.send(answer)
    pipe.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_with(parent: int) -> None:
    """End this process when its parent is gone: a killed parent leaves nobody behind."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _to_numpy(value):
    """Tensors by value: shared memory would need its owner to outlive the reader."""
    if isinstance(value, dict):
        return {k: _to_numpy(v) for k, v in value.items()}
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else value


def largest_difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest absolute difference of two sets of parameters."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def main(arguments: list[str] | None = None) -> int:
    """Under torchrun: compare a group of any size with the joined batch; 0 if they agree."""
    from companion.papers.data_parallelism.stacked import row
    from companion.papers.data_parallelism.workloads import initial_networks, load_workload

    parser = argparse.ArgumentParser(description="One update computed by several processes.")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--data-root", default="")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--lr", type=float, default=0.1)
    options = parser.parse_args(arguments)

    gpus = torch.cuda.device_count()
    local, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    on_gpus = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    device = torch.device("cuda", local) if on_gpus and gpus else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=120)
        )
    try:
        workload = load_workload(
            options.dataset, options.model, data_root=options.data_root, device=device
        )
        network = initial_networks(workload, [0.0], 1)
        params = {n: p[0] for n, p in row(network.params, 0).items()}
        stream = workload.batches(options.batch_size)
        batches = [next(stream) for _ in range(options.steps)]
        # shards in the ratio 1 : 2 : 3 ..., so that they differ
        weights = torch.arange(1, world + 1, dtype=torch.float64)
        sizes = (options.batch_size * weights / weights.sum()).floor().long().tolist()
        sizes[-1] += options.batch_size - sum(sizes)
        rank = dist.get_rank() if dist.is_initialized() else 0
        mine = [(split(x, sizes)[rank], split(y, sizes)[rank]) for x, y in batches]
        update = Update(options.lr)
        ours = train_shard(workload.model, params, mine, update)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    joined = train_shard(workload.model, params, batches, update)
    gap = largest_difference(ours, joined)
    agree = gap < 1e-4
    if rank == 0:
        print(f"{world} processes on {device.type}, shards {sizes}, {options.steps} steps: "
              f"largest difference from the joined batch {gap:.1e}")  # fmt: skip
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
