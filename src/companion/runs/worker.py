"""What a worker of a sweep does: one run, in a kernel of its own."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from companion.runs.chapters import parse, recorded_values
from companion.runs.executor import in_kernel, prepared
from companion.runs.fingerprint import fingerprint_of
from companion.runs.grid import Point
from companion.runs.local import gpus
from companion.runs.record import DONE, FAILED, Run


@dataclass(frozen=True)
class Order:
    """What a worker needs to carry out a run.

    fingerprint: of the notebook and library that the sweep was started with.
    time_limit_s: after so many seconds the kernel is killed; 0 for no limit.
    """

    point: Point
    fingerprint: str
    threads: int = 1
    time_limit_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """What came of a run; a claim that came out otherwise is a result, and no failure.

    run: named by its point's id. notebook: the executed notebook as text.
    """

    run: Run
    notebook: str = field(default="", repr=False)


def failed(order: Order, error: str) -> Result:
    """The result of a run that brought none."""
    return Result(_run(order, FAILED, {}, error=error, seconds=0.0))


def _run(order: Order, status: str, values: dict[str, Any], **rest) -> Run:
    point = order.point
    return Run.of_values(
        point.stem, point.id, values, status=status, given=point.given,
        fingerprint=order.fingerprint, **rest,
    )  # fmt: skip


def carry_out(order: Order, source: str) -> Result:
    """Execute the notebook `source` with the run's values, in a kernel of its own.

    Never raises for what happens in the run: an exception in a cell, a kernel that dies and a
    run past its limit are results, with their error. A claim that came out otherwise is none.
    """
    import nbformat

    start, stem, values, text = time.perf_counter(), order.point.stem, {}, ""
    notebook = parse(source, stem)
    if fingerprint_of(notebook, stem) != order.fingerprint:
        error = "this worker has other code than the sweep was started with: install the same version there"
    else:
        node = prepared(notebook, order.point.given)
        outcome = asyncio.run(
            in_kernel(
                node, Path.cwd(), limit_s=order.time_limit_s, threads=order.threads, quiet=True
            )
        )
        error, text = "" if outcome.missed else outcome.error, nbformat.writes(node)
        values = {} if error else recorded_values(json.loads(text))
    where = {
        "device": _device(values.get(f"{stem}.settings", {})),
        "hardware": os.uname().nodename,
    }
    seconds, status = round(time.perf_counter() - start, 3), FAILED if error else DONE
    run = _run(order, status, values, error=error, seconds=seconds, provenance=where)
    return Result(run, text)


def _device(settings: dict) -> str:
    """What the run had to compute on: the CPU, or the GPU that the worker may use."""
    if settings.get("device", "auto") == "cpu" or not gpus():
        return "cpu"
    return f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '0')}"
