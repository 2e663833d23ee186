"""Many runs of one notebook over a grid of parameters, on Dask.

The scheduler hands runs to workers; a worker parameterises the notebook, executes it in a kernel
of its own, and sends the executed notebook back. Only the process that started the sweep writes
files, so workers need no shared disk.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from companion.runs import local, store
from companion.runs.executor import THREADS
from companion.runs.fingerprint import fingerprint
from companion.runs.grid import Point
from companion.runs.record import DONE, FAILED, Run
from companion.runs.store import SweepError
from companion.runs.worker import Order, Result, carry_out, failed

CONNECT_S = 10  # to find a scheduler, and a worker on it
LOST_S = 60  # without any worker of a cluster, then the sweep ends
START_S = 300  # the same on this machine, where they are known to be starting
POLL_S = 0.05
LOOK_S = 2.0  # between two looks whether workers are there
DEATHS = 3  # of a worker, on this machine, without any result: then the sweep ends
RESUME = "what was finished is kept: start the same sweep again"


def sweep(
    path: Path,
    runs: Sequence[Point],
    out: Path,
    *,
    scheduler: str = "",
    tls: Sequence[str | os.PathLike] = (),
    workers: int = 0,
    threads: int = 1,
    gpus: int | None = None,
    time_limit_s: float = 0.0,
    show: bool = True,
) -> list[Run]:
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
    store.not_in_the_way(out)
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        failed_dir.mkdir(exist_ok=True)
    except OSError as error:
        raise SweepError(f"--out {out}: {error.strerror or error}") from error
    with store.alone(out):
        store.clear(out)
        stamp = fingerprint(path)
        source = store.without_outputs(path)
        rows = {run.id: row for run in runs if (row := store.finished(runs_dir, run, stamp))}
        waiting = [run for run in runs if run.id not in rows]
        if waiting:
            with (
                _client(scheduler, tls, workers, threads, gpus) as (client, crew),
                _Bar(len(waiting), len(rows), show) as bar,
            ):
                orders = [Order(run, stamp, threads, time_limit_s) for run in waiting]
                for result in _results(client, crew, orders, source):
                    rows[result.run.name] = store.keep_result(result, runs_dir, failed_dir)
                    bar.count(result.run.status)
        ordered = [rows[run.id] for run in runs]
        with store.disk(out):
            store.write_table(ordered, out)
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
            carry_out, order, shared, key=f"run-{order.point.id}", pure=False, priority=-place
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
                result = failed(
                    order, "the worker died with it, more than once (killed, or out of memory)"
                )
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
        with local.local_cluster(_environments(workers, threads, gpus)) as both:
            yield both
        return
    security = local.security(*map(os.fspath, tls)) if any(tls) else None
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
    names = local.gpus() if gpus is None else [str(number) for number in range(gpus)]
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

        self.counts = {DONE: 0, FAILED: 0}
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
        done = f"{self.counts[DONE]} done, {self.counts[FAILED]} failed, {left} left"
        earlier = f"{self.before} there before, " if self.before else ""
        self.bar.set_description_str(earlier + done)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
