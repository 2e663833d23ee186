"""What a sweep costs beside its runs, with scheduler, workers and client as separate processes.

By the clock and not by processor time: most of it is waiting. With COMPANION_BENCH_RECORD=1 at
full length (a quarter of an hour), otherwise with a tenth of the runs.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import nbformat
import numpy as np
import psutil
import pytest

from companion.runs import chapters
from companion.runs import sweep as rooms
from companion.runs.grid import Point, expand
from companion.runs.record import DONE, Run
from companion.runs.sweep import sweep
from companion.runs.worker import Result

FULL = os.environ.get("COMPANION_BENCH_RECORD") == "1"
MANY = 1000 if FULL else 100  # trivial runs
STAND_INS = 10_000 if FULL else 1000
CROWD = 100  # workers for them
STAND_IN_S = 2.0  # what a stand-in takes

TRIVIAL = [
    "seed: int = 0  # a seed",
    "from companion.notebook import check_parameters\nsettings = check_parameters(globals())",
    "from companion.notebook import record\nrecord('trivial.double', 2 * seed)",
]
# many workers in one process: they sleep, and a hundred processes would not fit two cores
WORKERS = """
import asyncio, sys
from distributed import Worker
async def main():
    address, count = sys.argv[1], int(sys.argv[2])
    there = [await Worker(address, nthreads=1, memory_limit=0) for _ in range(count)]
    await asyncio.gather(*(worker.finished() for worker in there))
asyncio.run(main())
"""


@cache
def chapter_text():
    return chapters.find("snip").read_text(encoding="utf-8")


def stand_in(order, source):
    """In the place of `carry_out`: no kernel, but a result of a chapter's size."""
    time.sleep(order.point.given["lr"])
    point = order.point
    run = Run(
        point.stem, point.id, values={"snip.error": 1.0}, given=point.given,
        seconds=point.given["lr"], fingerprint=order.fingerprint, provenance={"device": "cpu"},
    )  # fmt: skip
    return Result(run, chapter_text())


@pytest.fixture(scope="module")
def figures():
    """Seconds that the benchmarks below measure for each other."""
    return {}


@pytest.fixture(scope="module")
def trivial(tmp_path_factory):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in TRIVIAL])
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = tmp_path_factory.mktemp("trivial") / "trivial.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def out(tmp_path):
    yield tmp_path / "out"
    shutil.rmtree(tmp_path / "out", ignore_errors=True)  # gigabytes


def timed(benchmark, work):
    """The work's result, and its seconds by the clock."""

    def clocked():
        start = time.perf_counter()
        result = work()
        return result, time.perf_counter() - start

    return benchmark.pedantic(clocked, rounds=1, iterations=1)


def done(rows):
    assert not [run.error for run in rows if run.status != DONE]


def swept(benchmark, path, runs, out, address):
    """Seconds of a sweep in which every run is done."""
    rows, seconds = timed(benchmark, lambda: sweep(path, runs, out, scheduler=address, show=False))
    done(rows)
    return seconds


def trivial_runs(path, turn, count):
    return [Point(path.stem, {"seed": 10_000 * turn + number}) for number in range(count)]


def test_trivial_runs_against_papermill(benchmark, add_row, trivial, dask_processes, out, figures):
    import papermill

    count, times = 10, []

    def in_turns():
        with dask_processes(1) as one, dask_processes(2) as two:
            for turn in range(1 + (4 if FULL else 2)):  # the first warms up
                marks = [time.perf_counter()]
                for run in trivial_runs(trivial, turn, count):
                    copy = str(trivial.with_name("alone.ipynb"))
                    papermill.execute_notebook(str(trivial), copy, run.given, progress_bar=False)
                marks.append(time.perf_counter())
                for address, n in ((one, count), (two, 2 * count)):
                    runs, folder = trivial_runs(trivial, turn, n), out / f"{turn}-{n}"
                    done(sweep(trivial, runs, folder, scheduler=address, show=False))
                    marks.append(time.perf_counter())
                times.append([b - a for a, b in pairwise(marks)])

    benchmark.pedantic(in_turns, rounds=1, iterations=1)
    each = [[peer / count, one / count, two / count / 2] for peer, one, two in times[1:]]
    peer, one, two = map(statistics.median, zip(*each, strict=True))
    figures["one"] = one
    add_row(
        "a trivial run in a sweep, one worker", "papermill.execute_notebook in a loop",
        statistics.median(o / p for p, o, _ in each), aim=1.1,
        note=f"{one:.2f} s a run against {peer:.2f} s, medians of {len(each)} turns of {count} runs",
    )  # fmt: skip
    add_row(
        "trivial runs a second, two workers", "one worker",
        statistics.median(o / t for _, o, t in each), aim=1.8, at_least=True, aim_is=f"on {os.cpu_count()} cores",
        note=f"{1 / two:.2f} runs a second against {1 / one:.2f}, medians of {len(each)} turns",
    )  # fmt: skip


def test_the_last_of_many_runs_against_the_first(benchmark, add_row, trivial, dask_processes, out):
    with dask_processes(2) as address:
        seconds = swept(benchmark, trivial, trivial_runs(trivial, 0, MANY), out, address)
    finished = sorted(file.stat().st_mtime for file in (out / "runs").glob("*.json"))
    first, middle, last = (finished[i] for i in (0, MANY // 2, MANY - 1))
    add_row(
        f"the second half of {MANY:,} trivial runs, two workers", "the first half",
        (last - middle) / (middle - first), aim=1.1,
        note=f"{seconds:.0f} s in all, {seconds / MANY:.2f} s a run",
    )  # fmt: skip


@contextmanager
def crowd(address, count):
    """More workers for a scheduler that is there, in a few processes."""
    share = [count // 4 + (n < count % 4) for n in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKERS, address, str(n)],
            stderr=subprocess.DEVNULL,
        )
        for n in share
    ]  # fmt: skip
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)


@pytest.fixture
def stand_ins(monkeypatch):
    """Runs that wait, in the place of a chapter's; that chapter's path."""
    monkeypatch.setattr(rooms, "carry_out", stand_in)
    # where scheduler and workers find it
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    return chapters.find("snip")


def test_growth_with_the_workers(benchmark, rows, growth, dask_processes, stand_ins, out):
    """As many runs a worker, so that the line would be level if handing out cost nothing."""
    from distributed import Client

    each, sizes, seconds = 5, [1, 2, 5, 10, 25, 50, 100], []
    for workers in sizes:
        runs = [Point(stand_ins.stem, {"seed": n, "lr": 1.0}) for n in range(each * workers)]
        with dask_processes(0) as address, crowd(address, workers):
            with Client(address, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=120)
            start = time.perf_counter()
            done(sweep(stand_ins, runs, out / str(workers), scheduler=address, show=False))
            seconds.append(time.perf_counter() - start)
    benchmark.pedantic(lambda: None, rounds=1)
    exponent = float(np.polyfit(np.log(sizes[-3:]), np.log(seconds[-3:]), 1)[0])
    what = f"{each} stand-in runs of 1 s for each worker, by the clock"
    growth.append({
        "what": what, "of": "workers", "unit": "seconds", "sizes": sizes, "seconds": seconds,
        "exponent": exponent,
    })  # fmt: skip
    print(f"\n{what}: workers^{exponent:.2f}", dict(zip(sizes, seconds, strict=True)))


def test_a_hundred_workers(benchmark, add_row, conclude, dask_processes, out, figures, stand_ins):
    from distributed import Client

    path = stand_ins
    start = time.perf_counter()
    runs = expand(
        path, {"seed": list(range(STAND_INS // 100)), "weight_decay": [n / 1e5 for n in range(100)]},
        {"lr": STAND_IN_S},
    )  # fmt: skip
    checking = time.perf_counter() - start
    at_once = [Point(run.stem, run.given | {"lr": 0.0}) for run in runs[: len(runs) // 10]]
    with dask_processes(0) as address, crowd(address, CROWD):
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(CROWD, timeout=120)
        sweep(path, at_once[:CROWD], out / "warm", scheduler=address, show=False)
        start = time.perf_counter()
        sweep(path, at_once, out / "at_once", scheduler=address, show=False)
        each = (time.perf_counter() - start) / len(at_once)
        psutil.cpu_percent()  # from here on
        seconds = swept(benchmark, path, runs, out, address)
        busy = psutil.cpu_percent()
    start = time.perf_counter()
    sweep(path, runs, out, show=False)
    again = time.perf_counter() - start
    ideal = STAND_IN_S * len(runs) / CROWD
    add_row(
        f"{len(runs):,} stand-in runs of {STAND_IN_S:g} s on {CROWD} workers", "waiting alone",
        seconds / ideal, aim=1.25,
        note=f"{seconds:.0f} s against {ideal:.0f} s; results of a chapter's size "
        f"({len(chapter_text()) / 1e3:.0f} kB), all processes on {os.cpu_count()} cores, which "
        f"were {busy:.0f} % busy",
    )  # fmt: skip
    took = statistics.median(
        chapters.read(chapters.find(stem))["metadata"]["companion"]["seconds"]
        for stem in chapters.stems()
    )
    size = sum((out / "runs" / f"{runs[0].id}{end}").stat().st_size for end in (".ipynb", ".json"))
    conclude(
        *sentences(
            figures["one"],
            each,
            len(at_once),
            seconds / len(runs),
            len(runs),
            took,
            checking,
            again,
            size,
        )
    )


def sentences(overhead, few_each, few, many_each, many, took, checking, again, size):
    """What follows for a large sweep, from seconds a run, counts of runs, and bytes."""
    wanted, each = 10_000, max(few_each, many_each)
    hours = wanted * (took + overhead) / CROWD / 3600
    return (
        f"What a run costs beside its cells is the start of a kernel and of the library: "
        f"{overhead:.1f} s for a trivial notebook, nearly all of it on the worker. The one "
        f"process that hands out runs and writes their files took {1000 * few_each:.0f} ms a run "
        f"over {few:,} runs that take no time, and at most {1000 * many_each:.0f} ms over {many:,}, "
        f"with the scheduler and {CROWD} workers on the same {os.cpu_count()} cores: it keeps up "
        f"with {1 / each:.0f} runs a second at least.",
        f"So a sweep of {wanted:,} runs of a chapter's quick profile (median of the ten: "
        f"{took:.0f} s) on {CROWD} workers, a core each, would take {hours:.1f} hours, of which "
        f"{wanted * overhead / CROWD / 60:.0f} minutes would go into starting kernels. It asks the one "
        f"process for {CROWD / (took + overhead):.1f} results a second; with runs as long as these "
        f"it would keep up with about {round((took + overhead) / each, -2):,.0f} workers. Before the start, "
        f"checking a grid of {many:,} runs took {checking:.0f} s; finding all of them finished and "
        f"writing the table, {again:.0f} s; and {wanted:,} executed notebooks are "
        f"{wanted * size / 1e9:.1f} GB. This is worked out from the figures above and was not run "
        f"on a cluster.",
    )
