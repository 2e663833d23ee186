"""Many runs of one notebook over a grid of parameters, on Dask.

The scheduler hands runs to workers; a worker parameterises the notebook, executes it in a kernel
of its own, and sends the executed notebook back. Only the process that started the sweep writes
files, so workers need no shared disk. A run is finished when its JSON lies under its name: it is
written last, and whole or not at all.

    OUT/runs/<id>.ipynb   the executed notebook
    OUT/runs/<id>.json    parameters, recorded values, claims, seconds, device
    OUT/failed/<id>.json  the same of a run that failed, with its error; tried again next time
    OUT/table.parquet, OUT/table.csv, OUT/index.html
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from companion import notebooks
from companion.runtime import to_json, write_whole

CONNECT_S = 10  # to find a scheduler, and a worker on it
KERNEL_RETRIES = 2  # of a run whose kernel ended before its first cell
# threads of the numerical libraries in a run's kernel
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class SweepError(RuntimeError):
    """Raised when a sweep cannot go on; what was finished is kept."""


@dataclass(frozen=True)
class Run:
    """One point of the grid.

    given: the parameter values, as they are passed to the notebook.
    """

    stem: str
    given: dict[str, object]

    @property
    def id(self) -> str:
        """The same for the same notebook and values, whatever grid they come from."""
        text = json.dumps([self.stem, self.given], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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


# ---------------------------------------------------------------- the grid


def expand(
    path: Path,
    grid: dict[str, Sequence[object]],
    fixed: dict[str, object] | None = None,
    *,
    here: bool = False,
) -> list[Run]:
    """All combinations of a grid, each checked by the notebook's own rules.

    grid: values to try, by parameter. fixed: values of other parameters, the same in all runs.
    here: the runs would be on this machine, as in `notebooks.validate`.
    Raises ValueError for an empty or doubled axis and for a parameter that is no parameter of
    the notebook or is also fixed, and ParameterError, with all that is wrong, for a value that
    the notebook would refuse.
    """
    fixed = fixed or {}
    for name, axis in grid.items():
        if not isinstance(axis, (list, tuple)) or not axis:
            raise ValueError(
                f"-g {name}: expected a list of values such as '[0, 1, 2]', got {axis!r}"
            )
        texts = [json.dumps(value, sort_keys=True) for value in axis]
        if len(set(texts)) < len(texts):
            raise ValueError(f"-g {name}: {axis!r} holds a value twice")
    both = grid.keys() & fixed.keys()
    if both:
        raise ValueError(f"-g {', '.join(sorted(both))}: also given by -p or -f")
    runs = [
        Run(path.stem, fixed | dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
    ]
    _inspect(path, runs[0].given)
    with contextlib.redirect_stdout(io.StringIO()):  # each check prints what it settled on
        for run in runs:
            notebooks.validate(path, run.given, here=here)
    return runs


def _inspect(path: Path, given: dict[str, object]) -> None:
    """Refuse unknown names, from papermill's view of the notebook, without running anything."""
    import difflib

    import papermill

    known = papermill.inspect_notebook(str(path))
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{name!r} is no parameter of {path.name}{hint}; it has {', '.join(known)}"
            )


# ---------------------------------------------------------------- on a worker


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
        values = nbformat.v4.new_code_cell(notebooks.injected(order.run.given))
        values.metadata["tags"] = ["injected-parameters"]
        first = next(n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first + 1, values)
        error = _execute(notebook, order)
        # a start may fail now and then, for instance where two kernels draw the same port
        if not error or notebook.cells[first].execution_count or error.startswith("ran past"):
            break
    text = nbformat.writes(notebook)
    if error:
        return failed(error, text)
    values = notebooks.recorded_values(json.loads(text))
    seconds = round(time.perf_counter() - start, 3)
    device = _device(values.get(f"{order.run.stem}.settings", {}))
    return Result(order.run, "done", seconds, "", values, order.fingerprint, device, text)


def _execute(notebook, order: Order) -> str:
    """Run all cells in a kernel of their own; what went wrong, or ""."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    with tempfile.TemporaryDirectory(prefix="companion-") as folder:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        error = ""
        with _killed_after(client, order.time_limit_s) as too_long:
            try:
                # what the kernel itself says, such as that its worker died, is told by the row
                client.execute(
                    env=notebooks.kernel_environment(**dict.fromkeys(THREADS, str(order.threads))),
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
    if settings.get("device", "auto") == "cpu" or not _gpu_count():
        return f"cpu of {name}"
    return f"gpu {os.environ.get('CUDA_VISIBLE_DEVICES', '0')} of {name}"


@functools.lru_cache(maxsize=8)
def _fingerprint(stem: str, source: str) -> str:
    with tempfile.TemporaryDirectory(prefix="companion-") as folder:
        path = Path(folder, f"{stem}.ipynb")
        path.write_text(source, encoding="utf-8")
        return notebooks.fingerprint(path)


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


# ---------------------------------------------------------------- the sweep


def sweep(
    path: Path,
    runs: Sequence[Run],
    out: Path,
    *,
    scheduler: str = "",
    workers: int = 0,
    threads: int = 1,
    gpus: int | None = None,
    time_limit_s: float = 0.0,
    show: bool = True,
) -> list[dict]:
    """Carry out the runs that `out` does not hold yet, and write the table and its page.

    scheduler: address of a Dask scheduler that is there; "" starts a local cluster of `workers`
    processes, a run each (0: one a GPU, or one for every `threads` cores).
    threads: of the numerical libraries, in each run. gpus: how many to hand out, one a worker;
    None takes all there are. time_limit_s: for one run; 0 for none.
    Returns a row for each of the runs, in their order.
    Raises SweepError if the scheduler is not there or goes away, if the disk is full, or if
    another sweep is writing into `out`.
    """
    runs_dir, failed_dir = out / "runs", out / "failed"
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        failed_dir.mkdir(exist_ok=True)
    except OSError as error:
        raise SweepError(f"--out {out}: {error.strerror or error}") from error
    with _alone(out):
        _sweep_up(out)
        fingerprint = notebooks.fingerprint(path)
        source = _without_outputs(path)
        rows = {run.id: row for run in runs if (row := _finished(runs_dir, run, fingerprint))}
        waiting = [run for run in runs if run.id not in rows]
        if waiting:
            with (
                _client(scheduler, workers, threads, gpus) as client,
                _Bar(len(waiting), len(rows), show) as bar,
            ):
                orders = [Order(run, fingerprint, threads, time_limit_s) for run in waiting]
                for result in _results(client, orders, source):
                    rows[result.run.id] = _keep(result, runs_dir, failed_dir)
                    bar.count(result.status)
        ordered = [rows[run.id] for run in runs]
        with _disk(out):
            write_table(ordered, out)
    return ordered


def _results(client, orders: list[Order], source: str) -> Iterator[Result]:
    """The results as they come; a run whose workers died is a failed one."""
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    # a task and not scattered data: that would be lost with the worker that holds it
    shared = client.submit(str, source, key=f"source-{orders[0].fingerprint}", pure=False)
    futures = {
        client.submit(carry_out, order, shared, key=f"run-{order.run.id}", pure=False): order
        for order in orders
    }
    try:
        for future in as_completed(futures, loop=client.loop):
            order = futures[future]
            try:
                result = future.result()
            except KilledWorker:
                error = "the worker died with it, more than once (killed, or out of memory)"
                result = Result(order.run, "failed", 0.0, error, fingerprint=order.fingerprint)
            except (OSError, FutureCancelledError) as error:
                raise SweepError(
                    "the scheduler is gone; what was finished is kept: start the same sweep again"
                ) from error
            future.release()
            yield result
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(futures), force=True)


def _keep(result: Result, runs_dir: Path, failed_dir: Path) -> dict:
    """Write a result, its JSON last; a failed run never looks like a finished one."""
    folder = runs_dir if result.status == "done" else failed_dir
    row = result.row()
    with _disk(folder.parent):
        if result.notebook:
            write_whole(folder / f"{result.run.id}.ipynb", result.notebook)
        write_whole(folder / f"{result.run.id}.json", to_json(row))
        if result.status == "done":  # an earlier try may have failed
            for file in failed_dir.glob(f"{result.run.id}.*"):
                file.unlink()
    return json.loads(to_json(row))


def _finished(runs_dir: Path, run: Run, fingerprint: str) -> dict | None:
    """The row of a run that is done by the code as it is now."""
    try:
        row = json.loads((runs_dir / f"{run.id}.json").read_text(encoding="utf-8"))
        current = row["fingerprint"] == fingerprint and row["status"] == "done"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return row if current else None


def _without_outputs(path: Path) -> str:
    """The notebook as text, its outputs dropped: they need not travel."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook)


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder; the lock goes with the process, however that ends."""
    import fcntl

    with open(out / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise SweepError(
                f"--out {out}: {holder} is sweeping into it; wait for it or take another folder"
            ) from error
        lock.truncate(0)
        with contextlib.suppress(OSError):  # only for the message above
            lock.write(f"process {os.getpid()} on {os.uname().nodename}")
            lock.flush()
        yield


def _sweep_up(out: Path) -> None:
    """Remove what an interrupted writer left."""
    for file in out.rglob(".*.part"):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SweepError(
            f"cannot write to {out}: {error.strerror or error}; what was finished is kept: "
            "make room and start the same sweep again"
        ) from error


@contextlib.contextmanager
def _client(scheduler: str, workers: int, threads: int, gpus: int | None):
    """A client of the scheduler at an address, or of a local cluster that ends with the sweep."""
    import logging

    import dask
    from distributed import Client

    # a run that uses much memory is the user's wish; a dead worker is told once, by us
    dask.config.set({"distributed.worker.memory.terminate": False})
    dask.config.set({"distributed.scheduler.allowed-failures": 2})
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    for name in ("distributed", "distributed.nanny", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    if scheduler:
        try:
            client = Client(scheduler, timeout=CONNECT_S, set_as_default=False)
            client.wait_for_workers(1, timeout=CONNECT_S)
        except (OSError, TimeoutError, ValueError) as error:
            raise SweepError(
                f"--scheduler {scheduler}: no scheduler with a worker answered within "
                f"{CONNECT_S} s; start one with `dask scheduler` and `dask worker`, or leave the "
                "option out for a local cluster"
            ) from error
        with client:
            yield client
        return
    cluster = _local_cluster(workers, threads, gpus)
    try:
        with Client(cluster, set_as_default=False) as client:
            yield client
    finally:
        cluster.close(timeout=20)


def _local_cluster(workers: int, threads: int, gpus: int | None):
    """A process a worker, one run at a time in each; with GPUs, each worker sees one."""
    from distributed import Nanny, Scheduler, SpecCluster

    gpus = _gpu_count() if gpus is None else gpus
    workers = workers or gpus or max(1, (os.cpu_count() or 1) // threads)
    specification = {}
    for number in range(workers):
        environment = dict.fromkeys(THREADS, str(threads))
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
        options = {"nthreads": 1, "env": environment, "dashboard": False, "silence_logs": 50}
        specification[number] = {"cls": Nanny, "options": options}
    scheduler = {
        "cls": Scheduler,
        "options": {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"},
    }
    return SpecCluster(workers=specification, scheduler=scheduler, silence_logs=50)


def _gpu_count() -> int:
    """Visible NVIDIA GPUs, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


class _Bar:
    """Done, failed, left, and the time to go."""

    def __init__(self, total: int, before: int, show: bool) -> None:
        from tqdm import tqdm

        self.counts = {"done": 0, "failed": 0}
        self.before, self.total = before, total
        form = "{desc} |{bar:24}| {elapsed}, {remaining} to go"
        self.bar = tqdm(total=total, disable=not show, bar_format=form, mininterval=0.2)
        self._tell()

    def count(self, status: str) -> None:
        self.counts[status] += 1
        self.bar.update()
        self._tell()

    def _tell(self) -> None:
        left = self.total - sum(self.counts.values())
        done = f"{self.counts['done']} done, {self.counts['failed']} failed, {left} left"
        earlier = f"{self.before} there before, " if self.before else ""
        self.bar.set_description_str(earlier + done)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


# ---------------------------------------------------------------- what comes out


def keep(
    name: str,
    path: Path,
    rows: list[dict],
    command: str,
    folder: Path | None = None,
    values: Sequence[str] = (),
) -> Path:
    """Keep a sweep for the book: a small table, and how often each claim held.

    Writes <name>.csv and <name>.json to `folder`, by default book/recorded/<stem>/sweeps. The
    table has a row a run: parameters, seconds, device, recorded numbers, and whether each claim
    held. Of recorded lists and mappings it has those whose name matches one of `values`
    (shell patterns), a column a number: `name.key` or `name.index`.
    Raises ValueError for a bad name, a pattern that matches no list or mapping, or a table of
    more than 100 kB, SweepError if a run failed.
    """
    from companion.records import FOLDER, LIMIT
    from companion.runtime import provenance
    from companion.sweep_page import claim_counts

    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"--keep {name}: expected letters, digits, '-' and '_'")
    failed = sum(row["status"] != "done" for row in rows)
    if failed:
        raise SweepError(f"--keep {name}: {failed} of {len(rows)} runs failed, so it is not kept")
    text = _small_table(rows, values)
    if len(text) > LIMIT:
        raise ValueError(f"--keep {name}: the table has {len(text)} bytes, more than {LIMIT}")
    about = {
        "stem": path.stem,
        "name": name,
        "command": command,
        "fingerprint": rows[0]["fingerprint"],
        "runs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows)),
        "claims": claim_counts(rows),
        "provenance": provenance(),
    }
    folder = folder or FOLDER / path.stem / "sweeps"
    write_whole(folder / f"{name}.csv", text)
    write_whole(folder / f"{name}.json", to_json(about))
    return folder / f"{name}.csv"


def _small_table(rows: list[dict], patterns: Sequence[str]) -> str:
    """The table that is kept, as CSV."""
    import pandas

    nested = {
        name
        for row in rows
        for name, value in row["values"].items()
        if isinstance(value, (list, dict)) and not name.endswith((".claims", ".settings"))
    }
    for pattern in patterns:
        if not fnmatch.filter(nested, pattern):
            raise ValueError(
                f"--values {pattern}: matches no recorded list or mapping; "
                f"there are {', '.join(sorted(nested)) or 'none'}"
            )
    wanted = {name for pattern in patterns for name in fnmatch.filter(nested, pattern)}
    lines = []
    for row in rows:
        line = {name: _scalar(value) for name, value in row["given"].items()}
        line |= {"seconds": row["seconds"], "device": row["device"].partition(" of ")[0]}
        for name, value in row["values"].items():
            if name in wanted:
                line |= dict(_numbers_in(name, value))
            elif isinstance(value, (bool, int, float, str)):
                line[name] = value
        claims = row["values"].get(f"{row['stem']}.claims", [])
        lines.append(line | {claim["id"]: claim["holds"] for claim in claims})
    return pandas.DataFrame(lines).to_csv(index=False, float_format="%.6g")


def _numbers_in(name: str, value: object) -> Iterator[tuple[str, float]]:
    """The numbers in nested lists and mappings, each with the road to it."""
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _numbers_in(f"{name}.{key}", item)
    elif isinstance(value, (bool, int, float)):
        yield name, value


def kept(stem: str) -> list[dict]:
    """The kept sweeps of a chapter by name, each with `stale` added, as records have it."""
    from companion.records import FOLDER

    current = notebooks.fingerprint(notebooks.find(stem))
    sweeps = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((FOLDER / stem / "sweeps").glob("*.json"))
    ]
    return [about | {"stale": about["fingerprint"] != current} for about in sweeps]


def write_table(rows: list[dict], out: Path) -> None:
    """Write table.parquet, table.csv and index.html of the rows."""
    from companion.sweep_page import page

    frame = table(rows)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_whole(out / "table.parquet", buffer.getvalue())
    write_whole(out / "table.csv", frame.to_csv(index=False))
    write_whole(out / "index.html", page(rows))


def table(rows: list[dict]):
    """One row a run: status, parameters, seconds, device, recorded values, claims, as a data frame.

    Lists and mappings become JSON text. A claim gives three columns: `C1` (whether it held; none
    where it was not computed), `C1 verdict` and `C1 ours`.
    """
    import pandas

    flat = []
    for row in rows:
        values = dict(row.get("values", {}))
        claims = values.pop(f"{row['stem']}.claims", [])
        values.pop(f"{row['stem']}.settings", None)  # what was not given is the notebook's default
        line = {"id": row["id"], "status": row["status"], "error": row["error"]}
        line |= {name: _scalar(value) for name, value in row["given"].items()}
        line |= {"seconds": row["seconds"], "device": row["device"]}
        line |= {name: _scalar(value) for name, value in values.items()}
        for claim in claims:
            line[claim["id"]] = claim["holds"]
            line[f"{claim['id']} verdict"] = claim["verdict"]
            line[f"{claim['id']} ours"] = claim["ours"]
        flat.append(line)
    frame = pandas.DataFrame(flat)
    # a column of one kind: parquet takes no mixture
    for name in frame.columns:
        kinds = {type(value) for value in frame[name] if not _missing(value)}
        if len(kinds) > 1 and not kinds <= {int, float}:
            frame[name] = [None if _missing(v) else str(v) for v in frame[name]]
    return frame


def _scalar(value: object) -> object:
    return (
        value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)
    )


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)
