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
import math
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from companion import notebooks, sweep_local
from companion.runtime import BusyError, locked, seal, sweep_up, to_json, write_whole

CONNECT_S = 10  # to find a scheduler, and a worker on it
LOST_S = 60  # without any worker of a cluster, then the sweep ends
START_S = 300  # the same on this machine, where they are known to be starting
POLL_S = 0.05
LOOK_S = 2.0  # between two looks whether workers are there
LOCK = ".lock"
TABLES = ("table.parquet", "table.csv", "index.html")
DEATHS = 3  # of a worker, on this machine, without any result: then the sweep ends
KERNEL_RETRIES = 2  # of a run whose kernel ended before its first cell
MOST_RUNS = 100_000  # of one sweep
# threads of the numerical libraries in a run's kernel
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


RESUME = "what was finished is kept: start the same sweep again"


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
        return hashlib.sha256(_text([self.stem, self.given]).encode()).hexdigest()[:16]


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
    A run has the values as the check cell leaves them, so that 1 and 1.0 are one value of a
    float parameter. here: the runs would be on this machine, as in `notebooks.validate`.
    Raises ValueError for an empty or doubled axis, for more than MOST_RUNS combinations, and for
    a parameter that is no parameter of the notebook or is also fixed, and ParameterError, with
    all that is wrong, for a value that the notebook would refuse.
    """
    fixed = fixed or {}
    for name, axis in grid.items():
        if not isinstance(axis, (list, tuple)) or not axis:
            raise ValueError(
                f"-g {name}: expected a list of values such as '[0, 1, 2]', got {axis!r}"
            )
    count = math.prod(map(len, grid.values()))
    if count > MOST_RUNS:
        raise ValueError(f"-g: {count:,} combinations, more than {MOST_RUNS:,}: take fewer values")
    both = grid.keys() & fixed.keys()
    if both:
        raise ValueError(f"-g {', '.join(sorted(both))}: also given by -p or -f")
    combinations = [
        fixed | dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    _inspect(path, combinations[0])
    runs: dict[str, Run] = {}
    with (
        _head(path) as head,
        contextlib.redirect_stdout(io.StringIO()),  # each check prints what it settled on
    ):
        for given in combinations:
            settled = notebooks.validate(head, given, here=here)
            run = Run(path.stem, {name: settled.get(name, given[name]) for name in given})
            runs.setdefault(run.id, run)
    if len(runs) < count:
        for name, axis in grid.items():
            texts = {_text(run.given[name]) for run in runs.values()}
            if len(texts) < len(axis):
                raise ValueError(f"-g {name}: {axis!r} holds a value twice")
    return list(runs.values())


@contextlib.contextmanager
def _head(path: Path) -> Iterator[Path]:
    """A copy of the notebook with its first two code cells only: quick to read often."""
    notebook = notebooks.read(path)
    cells = [cell | {"outputs": []} for cell in notebooks.code_cells(notebook)[:2]]
    with tempfile.TemporaryDirectory(prefix="companion-") as folder:
        head = Path(folder, path.name)
        head.write_text(json.dumps(notebook | {"cells": cells}), encoding="utf-8")
        yield head


def _text(value: object) -> str:
    """The same for equal values: 1 and 1.0 are, 1 and true are not."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(plain(value), sort_keys=True, default=repr)


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
        notebooks.put_values(notebook, order.run.given)
        error = _execute(notebook, order)
        # a start may fail now and then, for instance where two kernels draw the same port
        began = any(cell.get("execution_count") for cell in notebook.cells)
        if not error or began or error.startswith("ran past"):
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

    from companion.kernels import Kernel

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
    if settings.get("device", "auto") == "cpu" or not sweep_local.gpus():
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
    tls: Sequence[str | os.PathLike] = (),
    workers: int = 0,
    threads: int = 1,
    gpus: int | None = None,
    time_limit_s: float = 0.0,
    show: bool = True,
) -> list[dict]:
    """Carry out the runs that `out` does not hold yet, and write the table and its page.

    scheduler: address of a Dask scheduler that is there; "" starts a local cluster of `workers`
    processes, a run each (0: one a GPU, or one for every `threads` cores), that listens on the
    loopback interface only.
    tls: files in PEM format (of the authorities that are trusted, our certificate, its key) for
    a scheduler at a tls:// address.
    threads: of the numerical libraries, in each run. gpus: how many to hand out, one a worker;
    None takes all there are. time_limit_s: for one run; 0 for none.
    Returns a row for each of the runs, in their order.
    Raises SweepError if the scheduler is not there or goes away, if no worker is left, if the
    disk is full, if another sweep is writing into `out`, or if `out` has files of other origin
    in the way; ValueError for TLS files that cannot be used.
    """
    check_tls(scheduler, tls)
    runs_dir, failed_dir = out / "runs", out / "failed"
    _not_in_the_way(out)
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
                _client(scheduler, tls, workers, threads, gpus) as (client, crew),
                _Bar(len(waiting), len(rows), show) as bar,
            ):
                orders = [Order(run, fingerprint, threads, time_limit_s) for run in waiting]
                for result in _results(client, crew, orders, source):
                    rows[result.run.id] = _keep(result, runs_dir, failed_dir)
                    bar.count(result.status)
        ordered = [rows[run.id] for run in runs]
        with _disk(out):
            write_table(ordered, out)
    return ordered


def _results(client, crew, orders: list[Order], source: str) -> Iterator[Result]:
    """The results as they come; a run whose workers died is a failed one."""
    from distributed import as_completed
    from distributed.client import FutureCancelledError
    from distributed.scheduler import KilledWorker

    # a task and not scattered data: that would be lost with the worker that holds it
    shared = client.submit(str, source, key=f"source-{orders[0].fingerprint}", pure=False)
    futures = {
        client.submit(
            carry_out, order, shared, key=f"run-{order.run.id}", pure=False, priority=-place
        ): order
        for place, order in enumerate(orders)  # in their order, also where no worker is there yet
    }
    arriving = as_completed(futures, loop=client.loop)
    watch = _Watch(client, crew)
    while arriving.count():
        # never wait without looking whether there is anybody to wait for
        watch.look()
        batch = arriving.next_batch(block=False)
        if not batch:
            time.sleep(POLL_S)
        for future in batch:
            order = futures[future]
            try:
                result = future.result(timeout=CONNECT_S)
            except KilledWorker:
                error = "the worker died with it, more than once (killed, or out of memory)"
                result = Result(order.run, "failed", 0.0, error, fingerprint=order.fingerprint)
            except TimeoutError:  # its worker died before the result was fetched: it comes again
                arriving.add(future)
                continue
            except (OSError, FutureCancelledError) as error:
                raise SweepError(f"the scheduler is gone; {RESUME}") from error
            future.release()
            watch.result()
            yield result


class _Watch:
    """Sees to it that there are workers, or ends the sweep."""

    def __init__(self, client, crew) -> None:
        self.client, self.crew = client, crew
        self.seen = self.looked = time.monotonic()
        self.deaths = 0  # before the last result

    def result(self) -> None:
        self.seen = time.monotonic()
        if self.crew:
            self.deaths = self.crew.deaths

    def look(self) -> None:
        if self.crew:
            self.crew.mend()
            if self.crew.deaths - self.deaths > DEATHS * (1 + len(self.crew.processes)):
                raise SweepError(
                    f"the workers die again and again (the last: {self.crew.last_words}); {RESUME}"
                )
        if time.monotonic() < self.looked + LOOK_S:
            return
        with contextlib.suppress(OSError):  # also that of a scheduler that does not answer
            if self.client.sync(self.client.scheduler.ncores, callback_timeout=CONNECT_S):
                self.seen = time.monotonic()
        self.looked = time.monotonic()
        patience = START_S if self.crew else LOST_S
        if self.looked > self.seen + patience:
            raise SweepError(f"there has been no worker for {patience} s; {RESUME}")


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
        current = current and row["id"] == run.id and isinstance(row["values"], dict)
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


def _not_in_the_way(out: Path) -> None:
    """Refuse a folder in which a sweep would write over files that no sweep has written."""
    ours = any(
        re.fullmatch("[0-9a-f]{16}", file.stem)
        for folder in ("runs", "failed")
        for file in (out / folder).glob("*.json")
    )
    theirs = [name for name in TABLES if not ours and (out / name).exists()]
    if theirs:
        raise SweepError(
            f"--out {out}: {', '.join(theirs)} there is of no sweep; take another folder"
        )


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder."""
    busy = f"--out {out}: {{holder}} is sweeping into it; wait for it or take another folder"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out / LOCK, busy))
        except BusyError as error:
            raise SweepError(str(error)) from error
        except FileExistsError as error:
            raise SweepError(
                f"--out {out}: {LOCK} there is of no sweep; take another folder"
            ) from error
        except OSError as error:
            raise SweepError(f"--out {out}: {error.strerror or error}") from error
        yield


def _sweep_up(out: Path) -> None:
    """Remove what an interrupted writer left, and nothing that is not ours."""
    for folder in (out, out / "runs", out / "failed"):
        sweep_up(folder)


@contextlib.contextmanager
def _disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SweepError(
            f"cannot write to {out}: {error.strerror or error}; what was finished is kept: "
            "make room and start the same sweep again"
        ) from error


def check_tls(scheduler: str, tls: Sequence[str | os.PathLike]) -> None:
    """Raise ValueError, naming the option, for TLS files that cannot be used."""
    import ssl

    if not any(tls):
        return
    options = ("--tls-ca", "--tls-cert", "--tls-key")
    missing = [option for option, file in zip(options, tls, strict=True) if not file]
    if missing:
        raise ValueError(f"{', '.join(missing)}: missing; TLS takes {', '.join(options)}")
    if not scheduler.startswith("tls://"):
        address = scheduler.rpartition("://")[2] or "HOST:8786"
        raise ValueError(
            f"--scheduler {scheduler!r}: with {', '.join(options)} expected an address that "
            f"begins with tls://, such as tls://{address}"
        )
    for option, file in zip(options, tls, strict=True):
        try:
            with open(file, "rb"):
                pass
        except (OSError, ValueError) as error:  # ValueError: no name of a file
            what = getattr(error, "strerror", None) or error
            raise ValueError(f"{option} {file}: {what}") from error
    ca, cert, key = map(os.fspath, tls)
    try:
        context = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(f"--tls-ca {ca}: no certificates in PEM format ({error})") from error
    try:
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"--tls-cert {cert}, --tls-key {key}: expected a certificate and its key, in PEM "
            f"format and without a passphrase ({error})"
        ) from error


@contextlib.contextmanager
def _client(scheduler: str, tls, workers: int, threads: int, gpus: int | None):
    """A client of the scheduler at an address, or of a local cluster that ends with the sweep.

    With it, the workers of the local cluster, or None.
    """
    import logging

    import dask
    from distributed import Client

    # a run that uses much memory is the user's wish; a dead worker is told once, by us
    dask.config.set({"distributed.worker.memory.terminate": False})
    dask.config.set({"distributed.scheduler.allowed-failures": 2})
    dask.config.set({"distributed.scheduler.worker-saturation": 1.0})
    for name in ("distributed", "distributed.nanny", "distributed.scheduler"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    if not scheduler:
        with sweep_local.local_cluster(_environments(workers, threads, gpus)) as both:
            yield both
        return
    security = sweep_local.security(*map(os.fspath, tls)) if any(tls) else None
    client = None
    try:
        client = Client(scheduler, timeout=CONNECT_S, set_as_default=False, security=security)
        client.wait_for_workers(1, timeout=CONNECT_S)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        if client:
            client.close(timeout=CONNECT_S)
        secure = scheduler.startswith("tls://")
        raise SweepError(
            f"--scheduler {scheduler}: no scheduler with a worker answered within "
            f"{CONNECT_S} s{', or it does not take our certificate' if secure else ''}; "
            "start one with `dask scheduler` and `dask worker`, or leave the "
            "option out for a local cluster"
        ) from error
    try:
        yield client, None
    finally:
        client.close(timeout=CONNECT_S)  # which also withdraws what is not done yet


def _environments(workers: int, threads: int, gpus: int | None) -> list[dict[str, str]]:
    """What each local worker's environment adds; with GPUs, each sees one."""
    names = sweep_local.gpus() if gpus is None else [str(number) for number in range(gpus)]
    workers = workers or len(names) or max(1, (os.cpu_count() or 1) // threads)
    common = dict.fromkeys(THREADS, str(threads))
    return [
        common | ({"CUDA_VISIBLE_DEVICES": names[number % len(names)]} if names else {})
        for number in range(workers)
    ]


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

    check_name(name)
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
        "table": hashlib.sha256(text.encode()).hexdigest(),
    }
    about["seal"] = seal(about)
    folder = folder or FOLDER / path.stem / "sweeps"
    with _disk(folder):
        write_whole(folder / f"{name}.csv", text)
        write_whole(folder / f"{name}.json", to_json(about))
    return folder / f"{name}.csv"


def check_name(name: str) -> None:
    """Raise ValueError if a sweep cannot be kept under this name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        shown = name if isinstance(name, str) and name.isprintable() and name else repr(name)
        raise ValueError(f"--keep {shown}: expected letters, digits, '-' and '_', 80 at most")


def _small_table(rows: list[dict], patterns: Sequence[str]) -> str:
    """The table that is kept, as CSV."""
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
        line = {("parameter", name): _scalar(value) for name, value in row["given"].items()}
        line["run", "seconds"] = row["seconds"]
        line["run", "ran_on"] = row["device"].partition(" of ")[0]
        for name, value in row["values"].items():
            if name in wanted:
                line |= {("recorded", *road): number for road, number in _numbers_in(name, value)}
            elif isinstance(value, (bool, int, float, str)):
                line["recorded", name] = value
        claims = row["values"].get(f"{row['stem']}.claims", [])
        lines.append(line | {("claim", claim["id"]): claim["holds"] for claim in claims})
    return _csv(_named(lines), float_format="%.6g")


def _named(lines: list[dict[tuple[str, ...], object]]) -> list[dict[str, object]]:
    """The lines of a table with the names of its columns, no two the same.

    A cell is keyed by what it is (parameter, run, recorded, claim) and its name, or the road to
    it. Where two things have one name, the parameter keeps it and what the others are goes before theirs.
    """
    kinds = ("parameter", "run", "recorded", "claim")
    keys = dict.fromkeys(key for line in lines for key in line)
    names: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for key in sorted(keys, key=lambda key: (kinds.index(key[0]), len(key))):
        name = ".".join(key[1:])
        while name in taken:
            name = f"{key[0]} {name}"
        taken.add(name)
        names[key] = name
    # a table has its columns in the order in which they first come
    return [{names[key]: value for key, value in line.items()} for line in lines]


def _csv(lines: list[dict[str, object]], **options) -> str:
    """The lines as CSV whose text no spreadsheet takes for a formula."""
    import pandas

    safe = [{_defused(name): _defused(cell) for name, cell in line.items()} for line in lines]
    return pandas.DataFrame(safe).to_csv(index=False, **options)


def _defused(cell: object) -> object:
    """Text with an apostrophe before it if a spreadsheet could take it for a formula.

    See OWASP's page on CSV injection. Numbers stay as they are.
    """
    if not isinstance(cell, str):
        return cell
    # a bare carriage return would not be quoted, and begin a new line
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\n", *"＝＋－＠")) else cell


def _numbers_in(*road: object) -> Iterator[tuple[tuple[str, ...], float]]:
    """The numbers in nested lists and mappings, the last of `road`, each with the road to it."""
    *road, value = road
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _numbers_in(*road, str(key), item)
    elif isinstance(value, (bool, int, float)):
        yield tuple(road), value


def kept(stem: str) -> list[dict]:
    """The kept sweeps of a chapter by name, each with `stale` added, as records have it."""
    from companion.records import FOLDER

    current = notebooks.fingerprint(notebooks.find(stem))
    sweeps = []
    for file in sorted((FOLDER / stem / "sweeps").glob("*.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        table = hashlib.sha256(file.with_suffix(".csv").read_bytes()).hexdigest()
        if about.get("seal") != seal(about) or about.get("table") != table:
            raise SweepError(f"{file} or its table is not as it was written: sweep again")
        sweeps.append(about)
    return [about | {"stale": about["fingerprint"] != current} for about in sweeps]


def write_table(rows: list[dict], out: Path) -> None:
    """Write table.parquet, table.csv and index.html of the rows."""
    from companion.sweep_page import page

    buffer = io.BytesIO()
    table(rows).to_parquet(buffer, index=False)
    write_whole(out / "table.parquet", buffer.getvalue())
    write_whole(out / "table.csv", _csv(_lines(rows)))
    write_whole(out / "index.html", page(rows))


def table(rows: list[dict]):
    """One row a run as a data frame: status, parameters, where it ran, recorded values, claims.

    Lists and mappings become JSON text. `seconds` and `ran_on` tell how long the run took, and
    where. A claim gives three columns: `C1` (whether it held; none where it was not computed),
    `C1 verdict` and `C1 ours`. A parameter's column has its name; where another column would
    have the same one, it says what it is: `recorded x`, `claim C1`, `run seconds`.
    """
    import pandas

    frame = pandas.DataFrame(_lines(rows))
    # a column of one kind: parquet takes no mixture
    for name in frame.columns:
        kinds = {type(value) for value in frame[name] if not _missing(value)}
        if len(kinds) > 1 and not kinds <= {int, float}:
            frame[name] = [None if _missing(v) else str(v) for v in frame[name]]
    return frame


def _lines(rows: list[dict]) -> list[dict[str, object]]:
    """The cells of the table by column, a mapping a run."""
    lines = []
    for row in rows:
        values = dict(row.get("values", {}))
        claims = values.pop(f"{row['stem']}.claims", [])
        values.pop(f"{row['stem']}.settings", None)  # what was not given is the notebook's default
        line = {("run", name): row[name] for name in ("id", "status", "error")}
        line |= {("parameter", name): _scalar(value) for name, value in row["given"].items()}
        line |= {("run", "seconds"): row["seconds"], ("run", "ran_on"): row["device"]}
        line |= {("recorded", name): _scalar(value) for name, value in values.items()}
        for claim in claims:
            line["claim", claim["id"]] = claim["holds"]
            line["claim", f"{claim['id']} verdict"] = claim["verdict"]
            line["claim", f"{claim['id']} ours"] = claim["ours"]
        lines.append(line)
    return _named(lines)


def _scalar(value: object) -> object:
    return (
        value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)
    )


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)
