"""What a worker of a sweep does: one run, in a kernel of its own."""

from __future__ import annotations

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from companion.runs.chapters import parse, recorded_values
from companion.runs.executor import in_kernel, prepared
from companion.runs.fingerprint import fingerprint_of
from companion.runs.grid import Point
from companion.runs.local import gpus


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
    """What came of a run.

    status: "done" or "failed"; a claim that did not hold is a result, and so done.
    error: the last line of what went wrong. device: where it ran, with the worker's name.
    notebook: the executed notebook as text.
    """

    point: Point
    status: str
    seconds: float
    error: str = ""
    values: dict[str, object] = field(default_factory=dict)
    fingerprint: str = ""
    device: str = ""
    notebook: str = field(default="", repr=False)

    def row(self) -> dict[str, object]:
        """Everything but the notebook, as it is stored."""
        kept = {
            key: value for key, value in asdict(self).items() if key not in ("point", "notebook")
        }
        return {"id": self.point.id, "stem": self.point.stem, "given": self.point.given} | kept


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
    seconds = round(time.perf_counter() - start, 3)
    status, device = "failed" if error else "done", _device(values.get(f"{stem}.settings", {}))
    return Result(order.point, status, seconds, error, values, order.fingerprint, device, text)


def _device(settings: dict) -> str:
    """What the run had to compute on: the machine's name, and the GPU that the worker may use."""
    name = os.uname().nodename
    if settings.get("device", "auto") == "cpu" or not gpus():
        return f"cpu of {name}"
    return f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '0')} of {name}"
