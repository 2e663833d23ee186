"""What masking the teacher saves in practice: time and memory, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from companion.checks import one_of
from companion.papers.masked_kd.architecture import token_grid
from companion.papers.masked_kd.distillation import AMP, MaskedDistiller, autocast
from companion.papers.masked_kd.tokens import check_keep, select_tokens, token_drop
from companion.progress import Progress, progress_bar
from companion.training import evaluation_mode

Name = TypeVar("Name")


def timed_in_turns(
    calls: Mapping[Name, Callable[[], object]],
    device: torch.device,
    rounds: int,
    *,
    progress: bool | Progress = False,
) -> dict[Name, dict[str, float]]:
    """Time several calls, one turn each in every round, after a round that does not count.

    Processor time on a CPU (other work on the machine weighs little), wall time on a GPU.

    Args:
        calls: name -> function without arguments.
        device: on which they compute.
        rounds: that count, at least 1.
        progress: show a bar; or a bar to move on.

    Returns:
        For each name the median milliseconds ("ms") and, on a GPU, the peak memory ("MB").

    Raises:
        ValueError: for no round.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds!r}: expected at least 1")
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    times: dict[Name, list[float]] = {name: [] for name in calls}
    peaks = dict.fromkeys(calls, 0.0)
    with progress_bar(progress, (rounds + 1) * len(calls), "timed calls") as bar:
        for turn in range(rounds + 1):
            for name, call in calls.items():
                if gpu:
                    torch.cuda.synchronize(device)
                    torch.cuda.reset_peak_memory_stats(device)
                start = clock()
                call()
                if gpu:
                    torch.cuda.synchronize(device)
                    peaks[name] = torch.cuda.max_memory_allocated(device) / 1e6
                if turn:
                    times[name].append(clock() - start)
                bar.update()
    found = {name: {"ms": 1000 * statistics.median(spent)} for name, spent in times.items()}
    return {name: row | ({"MB": peaks[name]} if gpu else {}) for name, row in found.items()}


def _patches(teacher: nn.Module, images: Tensor, keeps: Sequence[int], tokens: int | None) -> int:
    """Patches of these images, after a check of what is to be kept of them."""
    rows, columns = token_grid(teacher, images)
    if tokens not in (None, rows * columns):
        raise ValueError(
            f"tokens = {tokens!r}: the teacher cuts these images into {rows * columns}"
        )
    if not keeps:
        raise ValueError("keeps = []: expected at least one number of patches")
    for keep in keeps:
        check_keep(keep, rows * columns)
    return rows * columns


def teacher_cost(
    teacher: nn.Module,
    images: Tensor,
    keeps: Iterable[int],
    *,
    tokens: int | None = None,
    rounds: int = 5,
    amp: torch.dtype | None = None,
    progress: bool | Progress = False,
) -> dict[int, dict[str, float]]:
    """Time of the teacher's forward pass by patches kept, as `timed_in_turns`.

    Which patches are kept is drawn once, always the same, as it has no part in the time;
    keeping all of them is the plain forward pass.

    Args:
        teacher: a vision transformer, see `token_drop`.
        images: (B, C, H, W).
        keeps: numbers of patches to keep.
        tokens: patches of an image, if given for a check; the teacher says how many there are.
        rounds, progress: as `timed_in_turns`.
        amp: as `MaskedDistiller`.

    Raises:
        ValueError: for another number, for no `keeps` or for one out of range.
    """
    one_of(AMP, amp=amp)
    keeps, device = list(keeps), images.device
    tokens = _patches(teacher, images, keeps, tokens)
    draw = torch.Generator().manual_seed(0)
    blank = torch.zeros(len(images), tokens, device=device)
    with (
        evaluation_mode(teacher),
        torch.inference_mode(),
        autocast(images, amp),
        token_drop(teacher) as masked,
    ):

        def call(keep: int) -> Callable[[], Tensor]:
            chosen = select_tokens(blank, keep, "random", draw) if keep < tokens else None
            return lambda: masked(images, chosen)

        return timed_in_turns(
            {keep: call(keep) for keep in keeps}, device, rounds, progress=progress
        )


def step_cost(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    labels: Tensor,
    keeps: Iterable[int],
    *,
    tokens: int | None = None,
    rounds: int = 5,
    amp: torch.dtype | None = None,
    progress: bool | Progress = False,
) -> dict[int, dict[str, float]]:
    """Time of a whole step without the optimiser, by patches kept, as `timed_in_turns`.

    Args:
        student: chooses the patches, see `cls_attention`.
        labels: (B,) class indices.
        teacher, images, keeps, tokens, rounds, amp, progress: as `teacher_cost`.

    Raises:
        ValueError: as `teacher_cost`.
    """
    one_of(AMP, amp=amp)
    keeps = list(keeps)
    tokens = _patches(teacher, images, keeps, tokens)

    def call(keep: int) -> Callable[[], None]:
        selector = "full" if keep == tokens else "student"

        def step() -> None:
            student.zero_grad(set_to_none=True)
            with MaskedDistiller(student, teacher, keep, selector=selector, amp=amp) as distiller:
                distiller(images, labels).loss.backward()

        return step

    found = timed_in_turns(
        {keep: call(keep) for keep in keeps}, images.device, rounds, progress=progress
    )
    student.zero_grad(set_to_none=True)
    return found
