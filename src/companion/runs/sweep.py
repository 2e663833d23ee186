"""Many runs of one notebook over a grid of parameters, on Dask.

The scheduler hands runs to workers; a worker parameterises the notebook, executes it in a kernel
of its own, and sends the executed notebook back. Only the process that started the sweep writes
files, so workers need no shared disk.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from companion.runs import cluster, store
from companion.runs.fingerprint import fingerprint
from companion.runs.grid import Point
from companion.runs.record import DONE, FAILED, Run
from companion.runs.store import SweepError
from companion.runs.worker import Order, Result, carry_out, failed

LOST_S = 300  # without any worker, then the sweep ends; others may be starting
POLL_S = 0.05
FETCHERS = 8  # results under way at once: so many are in memory
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
    cluster.check_tls(scheduler, tls)
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
        if rows and show:
            print(
                f"{len(rows)} of {len(runs)} runs were there before and are not run again; "
                "if the data have changed since, take another --out"
            )
        if waiting:
            with cluster.connected(scheduler, tls, workers, threads, gpus) as (client, crew):
                orders = [Order(run, stamp, threads, time_limit_s) for run in waiting]
                results = _results(client, crew, orders, source)
                for result in _shown(results, len(waiting), len(rows), show):
                    rows[result.run.name] = store.keep_result(result, runs_dir, failed_dir)
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
    # The scheduler gives a few tasks, two a worker, to those that hold the source, and leaves them
    # there if tasks of that name took no time so far. So all have a copy, which it may drop, the
    # name is new, and the tasks come at once.
    with contextlib.suppress(Exception):  # for speed only: a worker may have gone meanwhile
        client.replicate([shared], callback_timeout=cluster.CONNECT_S)
    name = f"run_{uuid.uuid4().hex}"
    keys = [f"{name}-{order.point.id}" for order in orders]
    runs = client.map(carry_out, orders, key=keys, pure=False, source=shared)
    futures = dict(zip(runs, orders, strict=True))
    arriving = as_completed(futures, loop=client.loop)
    watch = _Watch(client, crew)

    def fetch(future):
        """Its result, as a failed run if its workers died; None if it has to come again; the
        error that ends the sweep, once the others are stored."""
        try:
            return future.result(timeout=cluster.CONNECT_S)
        except KilledWorker:
            said = "the worker died with it, more than once (killed, or out of memory)"
            return failed(futures[future], said)
        except TimeoutError:  # its worker died before the result was fetched
            return None
        except (OSError, FutureCancelledError) as error:
            return SweepError(f"the scheduler is gone ({error}); {RESUME}")

    with ThreadPoolExecutor(FETCHERS) as fetchers:  # a fetch is mostly waiting
        while arriving.count():
            # never wait without looking whether there is anybody to wait for
            watch.look()
            batch = arriving.next_batch(block=False)
            if not batch:
                time.sleep(POLL_S)
            for start in range(0, len(batch), FETCHERS):
                some = batch[start : start + FETCHERS]
                gone = None
                for future, result in zip(some, fetchers.map(fetch, some), strict=True):
                    if result is None:
                        arriving.add(future)
                    elif isinstance(result, SweepError):
                        gone = result
                    else:
                        future.release()
                        watch.result()
                        yield result
                if gone:
                    raise gone


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
            if self.client.sync(self.client.scheduler.ncores, callback_timeout=cluster.CONNECT_S):
                self.seen = time.monotonic()
        self.looked = time.monotonic()
        if self.looked > self.seen + LOST_S:
            raise SweepError(f"there has been no worker for {LOST_S} s; {RESUME}")


def _shown(results: Iterator[Result], total: int, before: int, show: bool) -> Iterator[Result]:
    """The results, with a line that says how many are done, failed, left, and the time to go."""
    from tqdm import tqdm

    counts = {DONE: 0, FAILED: 0}

    def told() -> str:
        left = total - sum(counts.values())
        earlier = f"{before} there before, " if before else ""
        return f"{earlier}{counts[DONE]} done, {counts[FAILED]} failed, {left} left"

    form = "{desc} |{bar:24}| {elapsed}, {remaining} to go"
    options = {"bar_format": form, "mininterval": 0.2, "disable": not show}
    with tqdm(total=total, desc=told(), **options) as bar:
        for result in results:
            yield result
            counts[result.run.status] += 1
            bar.update()
            bar.set_description_str(told())
