"""What a worker of a sweep does: one run, in a kernel of its own."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from companion.runs import local
from companion.runs.chapters import recorded_values
from companion.runs.executor import put_values
from companion.runs.fingerprint import fingerprint
from companion.runs.grid import Run

KERNEL_RETRIES = 2  # of a run whose kernel ended before its first cell
# threads of the numerical libraries in a run's kernel
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Order:
    """What a worker needs to carry out a run.

    fingerprint: of the notebook and library that the sweep was started with.
    time_limit_s: after so many seconds the kernel is killed; 0 for no limit.
    """

    run: Run
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

    run: Run
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
            key: value for key, value in asdict(self).items() if key not in ("run", "notebook")
        }
        return {"id": self.run.id, "stem": self.run.stem, "given": self.run.given} | kept


def carry_out(order: Order, source: str) -> Result:
    """Execute the notebook `source` with the run's values, in a kernel of its own.

    Never raises for what happens in the run: an exception in a cell, a kernel that dies and a
    run past its limit are results, with their error.
    """
    start = time.perf_counter()

    def failed(error: str, text: str = "") -> Result:
        seconds = round(time.perf_counter() - start, 3)
        return Result(
            order.run, "failed", seconds, error, {}, order.fingerprint, _device({}), text
        )

    here = _fingerprint(order.run.stem, source)
    if here != order.fingerprint:
        return failed(
            "this worker has other code than the sweep was started with: "
            "install the same version there"
        )

    import nbformat

    for _ in range(1 + KERNEL_RETRIES):
        notebook = nbformat.reads(source, as_version=4)
        put_values(notebook, order.run.given)
        error = _execute(notebook, order)
        # a start may fail now and then, for instance where two kernels draw the same port
        began = any(cell.get("execution_count") for cell in notebook.cells)
        if not error or began or error.startswith("ran past"):
            break
    text = nbformat.writes(notebook)
    if error:
        return failed(error, text)
    values = recorded_values(json.loads(text))
    seconds = round(time.perf_counter() - start, 3)
    device = _device(values.get(f"{order.run.stem}.settings", {}))
    return Result(order.run, "done", seconds, "", values, order.fingerprint, device, text)


def _execute(notebook, order: Order) -> str:
    """Run all cells in a kernel of their own; what went wrong, or ""."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    from companion.runs.kernels import Kernel

    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_manager_class=Kernel,
        record_timing=False,
        resources={"metadata": {"path": os.getcwd()}},
    )
    error = ""
    with _killed_after(client, order.time_limit_s) as too_long:
        try:
            # what the kernel itself says, such as that its worker died, is told by the row
            client.execute(
                env=os.environ | dict.fromkeys(THREADS, str(order.threads)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except CellExecutionError as raised:
            # claims that came out otherwise are a result
            if raised.ename != "ClaimError":
                error = f"{raised.ename}: {raised.evalue}"
        except DeadKernelError:
            error = "the kernel died (killed, or out of memory)"
        except Exception as raised:  # a kernel that does not start, a full disk
            error = f"{type(raised).__name__}: {raised}"
    return f"ran past its time limit of {order.time_limit_s:g} s" if too_long.is_set() else error


def _device(settings: dict) -> str:
    """What the run had to compute on: the machine's name, and the GPU that the worker may use."""
    name = os.uname().nodename
    if settings.get("device", "auto") == "cpu" or not local.gpus():
        return f"cpu of {name}"
    return f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '0')} of {name}"


@functools.lru_cache(maxsize=8)
def _fingerprint(stem: str, source: str) -> str:
    with tempfile.TemporaryDirectory(prefix="companion-") as folder:
        path = Path(folder, f"{stem}.ipynb")
        path.write_text(source, encoding="utf-8")
        return fingerprint(path)


@contextlib.contextmanager
def _killed_after(client, seconds: float) -> Iterator[threading.Event]:
    """Kill the client's kernel after so many seconds; the event says whether that happened."""
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        while not over.is_set():  # the kernel may only just be starting
            pid = getattr(getattr(client.km, "provisioner", None), "pid", None)
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(os.getpgid(pid), signal.SIGKILL)  # with what it started
                return
            time.sleep(0.1)

    over = threading.Event()
    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield expired
    finally:
        over.set()
        timer.cancel()
