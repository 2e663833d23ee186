"""Sweeps: grids that are refused, and everything that a sweep has to survive."""

import contextlib
import csv
import gc
import html.parser
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import nbformat
import pandas
import psutil
import pytest
import yaml
from tiny import slurm_example

from companion.__main__ import main
from companion.files import ROOT
from companion.notebook import ParameterError
from companion.notebook.checking import NOT_REPRODUCED, NOT_RUN, REPRODUCED, Verdict
from companion.notebook.claims import parse_claims
from companion.runs import chapters, cluster, fingerprint, local, report, store
from companion.runs import sweep as rooms
from companion.runs import tls as tls_of_ours
from companion.runs.grid import Point, expand
from companion.runs.record import DONE, FAILED, Held, Run, held
from companion.runs.report import page, swept
from companion.runs.store import SweepError
from companion.runs.sweep import sweep
from companion.runs.tls import openssl, security
from companion.runs.worker import Order, carry_out

PARAMETERS = """\
x: int = 1  # a number
mode: str = "ok"  # what happens
seed: int = 0  # a seed
rate: float = 0.5  # a rate
device: str = "cpu"  # a device
where: str = ""  # a file that counts the runs
"""
CHECK = """\
from companion.notebook import check_parameters
settings = check_parameters(globals(), x=(0, 9), mode=["ok", "raise", "die", "kill", "sleep", "claim", "where"])
"""
BODY = """\
import os, signal, time
from companion.notebook import Claims, record
from companion.notebook.claims import parse_claims
if where:
    with open(where, "a") as file:
        file.write(f"{x} {seed}\\n")
if mode == "raise" and x == 2:
    raise OverflowError("x is 2")
if mode == "die" and x == 2:
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "kill" and x == 2:
    os.kill(os.getppid(), signal.SIGKILL)  # the worker
if mode == "sleep" and x == 2:
    time.sleep(600)
if mode == "where":
    record("toy.worker", os.getppid())
record("toy.double", 2 * x)
record("toy.threads", os.environ["OMP_NUM_THREADS"])
record("toy.gpu", os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
"""
STATED = """\
C1:
  says: Twice is even.
  kind: derivation
  where: arithmetic
  quantities: {even: {is: twice is even, within: "== true"}}
  settled: {on: 2026-01-01, before_looking: true}
C2:
  says: x is small.
  kind: control
  where: here
  quantities: {x: {is: x, within: "< 3"}}
  settled: {on: 2026-01-01, before_looking: true}
"""
END = f"""\
claims = Claims("toy", settings, parse_claims({STATED!r}))
claims.check("C1", even=2 * x % 2 == 0)
claims.check("C2", x=0 if mode == "ok" else x)
claims.settle()
"""


@pytest.fixture
def toy(tmp_path):
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, CHECK, BODY, END)]
    cells[0].metadata["tags"] = ["parameters"]
    notebook.cells = cells
    path = tmp_path / "toy.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """A machine that does much else may take long to start a worker; no client of an earlier
    test is collected while another one starts, as `cluster.connected` sees to in a sweep."""
    monkeypatch.setattr(cluster, "CONNECT_S", 60)
    gc.collect()


@pytest.fixture(scope="module")
def scheduler(dask_processes):
    with dask_processes(1) as address:
        yield address


def go(toy, out, grid, fixed=None, **options):
    options = {"workers": 1, "gpus": 0, "show": False} | options
    return sweep(toy, expand(toy, grid, fixed), out, **options)


def command(toy, out, *options):
    """The same as a process of its own, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, "-m", "companion", "sweep", str(toy), "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def lines(path):
    return sorted(path.read_text().splitlines()) if path.exists() else []


# ---------------------------------------------------------------- the grid


def test_a_grid_is_all_combinations_in_order(toy):
    runs = expand(toy, {"x": [1, 2], "seed": [0, 1, 2]}, {"mode": "ok"})
    assert [(r.given["x"], r.given["seed"]) for r in runs] == [
        (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    assert len({run.id for run in runs}) == 6


def test_checking_a_grid_prints_nothing(toy, capsys):
    expand(toy, {"x": [1, 2]})
    assert capsys.readouterr().out == ""


def test_a_run_keeps_its_name_in_another_grid(toy):
    small = expand(toy, {"x": [1, 2]}, {"seed": 5})
    large = expand(toy, {"seed": [4, 5], "x": [0, 1, 2, 3]})
    assert {run.id for run in small} < {run.id for run in large}
    assert small[0].id != Point("other", small[0].given).id


@pytest.mark.parametrize(
    ("grid", "fixed", "message"),
    [
        ({"y": [1]}, {}, r"'y' is no parameter of toy.ipynb; it has x, mode, seed"),
        ({"sede": [1]}, {}, r"did you mean 'seed'"),
        ({"x": []}, {}, "-g x: expected a list of values"),
        ({"x": 3}, {}, "-g x: expected a list of values"),
        ({"x": [1, 1]}, {}, "holds a value twice"),
        ({"x": [1]}, {"x": 2}, "-g x: also given by -p or -f"),
        ({"x": [1, 10]}, {}, "x = 10"),
        ({"x": [1, "two"]}, {}, "x = 'two'"),
        ({"x": [1]}, {"mode": "sing"}, "mode = 'sing'"),
    ],
)
def test_a_bad_grid_is_refused_with_the_parameter_and_its_value(toy, grid, fixed, message):
    with pytest.raises((ValueError, ParameterError), match=message):
        expand(toy, grid, fixed)


def test_the_command_refuses_before_anything_starts(toy, tmp_path, capsys):
    out = tmp_path / "out"
    for arguments, message in (
        (["-g", "x", "[1, 99]"], "x = 99"),
        (["-g", "x", "7"], "-g x: expected a list"),
        ([], "-g: expected at least one parameter"),
        (["-g", "x", "[1]", "-g", "x", "[2]"], "each only once"),
        (["-g", "x", "[1, 1.0]"], "x = 1.0"),  # of a whole number
        (["-g", "rate", "[1, 1.0]"], "-g rate: [1.0, 1.0] holds a value twice"),
        (["-g", "x", str(list(range(400))), "-g", "seed", str(list(range(300)))], "120,000"),
        (["--threads", "0"], "--threads 0: expected a whole number from 1"),
        (["--threads", "1.5"], "--threads 1.5: expected a whole number"),
        (["--workers", "-1"], "--workers -1: expected a whole number from 0"),
        (["--workers", "1000000"], "--workers 1000000: expected a whole number from 0 to 1000"),
        (["--workers", "many"], "--workers many"),
        (["--workers", "2", "--scheduler", "tcp://127.0.0.1:9"], "--workers 2: the scheduler"),
        *(
            (["--time-limit", text], f"--time-limit {text}: expected a number from 0")
            for text in ("nan", "inf", "-1", "1e300", "soon")
        ),
        (["--keep", "a/b"], "--keep a/b:"),
        (["--keep", "a\n"], r"--keep 'a\n':"),
        (["--keep", ""], "--keep ''"),
        (["--keep", "x" * 300], "80 at most"),
        (["--values", "a*"], "--values: says what --keep keeps"),
        (["--keep", "a", "--values", ""], "--values ''"),
    ):
        given = arguments if "-g" in arguments or not arguments else ["-g", "x", "[1]", *arguments]
        assert main(["sweep", str(toy), "--out", str(out), *given]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert not out.exists()


def test_equal_values_are_one_run(toy):
    whole, point = (expand(toy, {"rate": [value, 2]})[0] for value in (1, 1.0))
    assert whole == point
    assert whole.id == point.id
    assert type(whole.given["rate"]) is float
    assert Point("toy", {"a": [1, 2.0]}).id == Point("toy", {"a": [1.0, 2]}).id
    assert Point("toy", {"a": 1}).id != Point("toy", {"a": True}).id
    # a run that was finished before this rule is found again
    assert Point("toy", {"x": 1, "mode": "ok"}).id == "8c071463005d8146"


def test_a_large_grid_is_read_once(toy, monkeypatch):
    before = len(expand(toy, {"x": [1]}))
    seen, parse = [], chapters.parse
    monkeypatch.setattr(chapters, "parse", lambda *given: seen.append(1) or parse(*given))
    assert len(expand(toy, {"rate": [n / 8 for n in range(1, 200)]})) == 199 * before
    assert len(seen) < 5


# ---------------------------------------------------------------- what comes out


def test_a_sweep_ends_with_a_table_and_a_page(toy, tmp_path):
    out, count = tmp_path / "out", tmp_path / "count"
    rows = go(toy, out, {"x": [1, 2, 4], "seed": [0, 1]}, {"where": str(count)}, workers=2)
    assert [run.status for run in rows] == [DONE] * 6
    assert [run.values["toy.double"] for run in rows] == [2, 2, 4, 4, 8, 8]
    assert {run.values["toy.threads"] for run in rows} == {"1"}
    frame = pandas.read_parquet(out / "table.parquet")
    assert frame["x"].tolist() == [1, 1, 2, 2, 4, 4]
    assert frame["toy.double"].tolist() == [2, 2, 4, 4, 8, 8]
    assert frame["C1"].all()
    assert frame["C1.even"].all()
    assert frame["C2.x"].tolist() == [0] * 6
    assert (frame["seconds"] > 0).all()
    assert frame["ran_on"].str.startswith("cpu of ").all()
    again = pandas.read_csv(out / "table.csv")
    assert again["toy.double"].tolist() == frame["toy.double"].tolist()
    text = (out / "index.html").read_text()
    assert "6 runs done, 0 failed" in text
    assert "6 of 6 runs" in text
    assert text.count("data:image/png") == 1  # toy.double varies, the other values do not
    executed = nbformat.read(out / "runs" / f"{rows[0].name}.ipynb", as_version=4)
    assert executed.cells[2].outputs or executed.cells[3].outputs

    # a second time nothing is repeated, and a larger grid runs only what is new,
    # and that in the order of its values
    rows = go(toy, out, {"x": [4, 1, 2], "seed": [0, 1, 2]}, {"where": str(count)})
    assert len(rows) == 9
    assert len(lines(count)) == 9
    new = [run for run in rows if run.given["seed"] == 2]
    new.sort(key=lambda run: (out / "runs" / f"{run.name}.json").stat().st_mtime_ns)
    assert [run.given["x"] for run in new] == [4, 1, 2]


def test_every_worker_sees_one_gpu(toy, tmp_path):
    rows = go(toy, tmp_path / "out", {"x": [1, 3, 4, 5]}, workers=0, gpus=2)
    assert {run.values["toy.gpu"] for run in rows} == {"0", "1"}


@pytest.mark.parametrize("runs", [6, 9])  # two a worker, and more: Dask places them differently
def test_the_first_runs_go_to_all_workers(runs, toy, tmp_path, dask_processes, monkeypatch):
    """Also where the scheduler has learned that runs take no time, and keeps one copy of data."""
    from distributed import Client

    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ACTIVE_MEMORY_MANAGER__INTERVAL", "10ms")
    with dask_processes(3) as address:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(3, timeout=120)
            client.gather([client.submit(int, n, key=f"run-{n:016x}") for n in range(30)])
        grid, fixed = {"seed": list(range(runs))}, {"mode": "where"}
        rows = go(toy, tmp_path / "out", grid, fixed, scheduler=address)
    assert len({run.values["toy.worker"] for run in rows}) == 3


def test_threads_are_pinned_in_the_kernel(toy, tmp_path, scheduler):
    (row,) = go(toy, tmp_path / "out", {"x": [3]}, threads=3, scheduler=scheduler)
    assert row.values["toy.threads"] == "3"


def test_code_that_changed_is_run_again(toy, tmp_path, scheduler):
    out, count = tmp_path / "out", tmp_path / "count"
    grid, fixed = {"x": [1]}, {"where": str(count)}
    go(toy, out, grid, fixed, scheduler=scheduler)
    toy.write_text(toy.read_text().replace("2 * x)", "3 * x)", 1))
    (row,) = go(toy, out, grid, fixed, scheduler=scheduler)
    assert row.values["toy.double"] == 3
    assert len(lines(count)) == 2


def test_a_worker_with_other_code_refuses(toy):
    run = expand(toy, {"x": [1]})[0]
    result = carry_out(Order(run, "0" * 64), toy.read_text())
    assert result.run.status == FAILED
    assert "other code" in result.run.error


def test_no_column_is_lost_to_another_of_its_name(toy, tmp_path):
    row = fake({"device": "cpu", "seconds": 7, "C1": 3, "v": 2}, v=5)
    row.values.update({"a.b": 1, "a": {"b": 2}, "status": 9, "device": 4})
    row = replace(row, provenance={"device": "gpu 0", "hardware": "here"})
    cells = store.table([row]).iloc[0].to_dict()
    assert (cells["device"], cells["seconds"], cells["C1"], cells["v"]) == ("cpu", 7, 3, 2)
    assert (cells["ran_on"], cells["run seconds"]) == ("gpu 0 of here", 1.0)
    assert (cells["recorded device"], cells["recorded v"], cells["claim C1"]) == (4, 5, True)
    assert (cells["status"], cells["recorded status"]) == ("done", 9)
    file = store.keep("all", toy, [row], "", tmp_path, values=["a"])
    kept = pandas.read_csv(file).iloc[0].to_dict()
    assert (kept["device"], kept["ran_on"], kept["seconds"]) == ("cpu", "gpu 0", 7)
    assert {kept["a.b"], kept["recorded a.b"]} == {1, 2}


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"]


def test_text_in_a_table_is_no_formula_and_numbers_stay(toy, tmp_path):
    rows = [
        fake({"text": text, "n": -n}, v=-1.5, **{"=name": text}) for n, text in enumerate(FORMULAS)
    ]
    rows.append(fake({"text": "1-1", "n": "mixed"}, v=-2, **{"=name": "a\r=1"}))
    rows = [replace(row, error="=error") for row in rows]
    store.write_table(rows, tmp_path)
    kept = store.keep("seeds", toy, rows, "", tmp_path / "kept")
    for file in (tmp_path / "table.csv", kept):
        with file.open(encoding="utf-8", newline="") as lines:
            table = list(csv.reader(lines))
        assert len(table) == 1 + len(rows)
        for cell in itertools.chain(*table):
            assert not re.match(r"[=+@\t\r\n＝]|-(?![\d.]+$)", cell), cell
        frame = pandas.read_csv(file)
        assert frame["v"].tolist() == [-1.5] * len(FORMULAS) + [-2]
        assert frame["text"].tolist()[:4] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)"]
        assert frame["n"].tolist()[:2] == ["0", "-1"]  # a number in a mixed column
        assert "'=name" in frame.columns
    frame = pandas.read_parquet(tmp_path / "table.parquet")
    assert frame["text"].tolist() == [*FORMULAS, "1-1"]
    assert "=name" in frame.columns


# ---------------------------------------------------------------- what goes wrong


def test_a_run_that_raises_is_a_row_with_its_error_and_is_tried_again(toy, tmp_path, scheduler):
    out, count = tmp_path / "out", tmp_path / "count"
    grid, fixed = {"x": [1, 2, 3]}, {"mode": "raise", "where": str(count)}
    for attempt in (1, 2):
        rows = go(toy, out, grid, fixed, scheduler=scheduler)
        assert [run.status for run in rows] == [DONE, FAILED, DONE]
        assert rows[1].error == "OverflowError: x is 2"
        assert len(lines(count)) == 2 + attempt
    assert "OverflowError: x is 2" in (out / "index.html").read_text()
    assert pandas.read_csv(out / "table.csv")["error"].tolist()[1] == "OverflowError: x is 2"
    assert (out / "failed" / f"{rows[1].name}.ipynb").exists()
    assert not (out / "runs" / f"{rows[1].name}.json").exists()


def test_a_claim_that_does_not_hold_is_a_result(toy, tmp_path, scheduler):
    rows = go(toy, tmp_path / "out", {"x": [1, 5]}, {"mode": "claim"}, scheduler=scheduler)
    assert [run.status for run in rows] == [DONE, DONE]
    assert held(rows)["C2"] == Held(1, 2, {"x": [1, 5]}, ["", ""])


def test_a_kernel_that_is_killed_is_a_row(toy, tmp_path, scheduler):
    rows = go(toy, tmp_path / "out", {"x": [1, 2, 3]}, {"mode": "die"}, scheduler=scheduler)
    assert [run.status for run in rows] == [DONE, FAILED, DONE]
    assert "kernel died" in rows[1].error


@pytest.mark.parametrize(("failures", "status"), [(2, DONE), (3, FAILED)])
def test_a_kernel_that_does_not_start_is_started_again(toy, monkeypatch, failures, status):
    from nbclient import NotebookClient

    start, left = NotebookClient.async_start_new_kernel_client, [failures]

    async def start_or_not(self, **options):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("Kernel died before replying to kernel_info")
        return await start(self, **options)

    monkeypatch.setattr(NotebookClient, "async_start_new_kernel_client", start_or_not)
    order = Order(Point("toy", {"x": 2}), fingerprint.fingerprint(toy))
    result = carry_out(order, toy.read_text())
    assert (result.run.status, left) == (status, [0])
    assert ("Kernel died before" in result.run.error) == (status == FAILED)


def test_a_run_past_its_limit_is_a_row_and_leaves_no_kernel(toy, tmp_path, scheduler):
    rows = go(
        toy,
        tmp_path / "out",
        {"x": [1, 2]},
        {"mode": "sleep"},
        time_limit_s=15,
        scheduler=scheduler,
    )
    assert [run.status for run in rows] == [DONE, FAILED]
    assert rows[1].error == "ran past its time limit of 15 s"
    assert 14 < rows[1].seconds < 60


def test_a_worker_that_dies_takes_no_other_run_with_it(toy, tmp_path):
    rows = go(toy, tmp_path / "out", {"x": [1, 2, 3, 4]}, {"mode": "kill"}, workers=2)
    assert [run.status for run in rows] == [DONE, FAILED, DONE, DONE]
    assert "worker died" in rows[1].error


def test_a_sweep_that_is_killed_goes_on_where_it_was(toy, tmp_path):
    out, count = tmp_path / "out", tmp_path / "count"
    grid = ["-g", "x", "[1, 3, 4, 5]", "-p", "where", str(count), "--workers", "1"]
    first = command(toy, out, *grid)
    wait_for(lambda: len(list((out / "runs").glob("*.json"))) >= 2)
    first.send_signal(signal.SIGKILL)
    first.wait(30)
    kept = {file.name: file.read_bytes() for file in (out / "runs").glob("*.json")}
    half = out / "runs" / ".0123456789abcdef.json.abc_1234.companion.part"
    half.write_text('{"status": "do')
    foreign = [
        out / ".mine.part", out / "runs" / ".0123456789abcdef.json.abc.part", out / "x" / half.name
    ]  # fmt: skip
    foreign[-1].parent.mkdir()
    for file in foreign:
        file.write_text("not a sweep's")
    assert not (out / "table.csv").exists()

    second = command(toy, out, *grid)
    said, told = second.communicate(timeout=120)
    assert second.returncode == 0, told
    assert "4 of 4 runs done" in said
    assert "there before" in told
    again = f"{len(kept)} of 4 runs were there before and are not run again; if the data"
    assert again in said
    assert not half.exists()
    assert all(file.read_text() == "not a sweep's" for file in foreign)
    for name, content in kept.items():  # nothing finished was repeated
        assert (out / "runs" / name).read_bytes() == content
    assert len(pandas.read_csv(out / "table.csv")) == 4
    # the run that was under way when it was killed ran twice, no other
    assert len(lines(count)) <= 5


def test_a_half_written_result_does_not_count(toy, tmp_path, scheduler):
    out = tmp_path / "out"
    rows = go(toy, out, {"x": [1, 3]}, scheduler=scheduler)
    broken = out / "runs" / f"{rows[0].name}.json"
    broken.write_text(broken.read_text()[:50])
    again = go(toy, out, {"x": [1, 3]}, scheduler=scheduler)
    assert again[0].values == rows[0].values
    assert again[1].seconds == rows[1].seconds  # this one was kept


def test_two_sweeps_into_one_folder_do_not_meet(toy, tmp_path):
    out = tmp_path / "out"
    first = command(toy, out, "-g", "x", "[1, 3, 4]", "--workers", "1")
    wait_for(lambda: (out / ".lock").exists() and (out / ".lock").read_text())
    second = command(toy, out, "-g", "x", "[5]", "--workers", "1")
    _, told = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"process {first.pid} on" in told
    assert "is sweeping into it" in told
    said, told = first.communicate(timeout=120)
    assert first.returncode == 0, told
    assert "3 of 3 runs done" in said


def test_an_interrupt_keeps_what_is_finished(toy, tmp_path):
    out = tmp_path / "out"
    running = command(toy, out, "-g", "x", "[1, 2]", "-p", "mode", "sleep", "--workers", "1")
    wait_for(lambda: list((out / "runs").glob("*.json")))
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "Traceback" not in told
    assert len(list((out / "runs").glob("*.json"))) == 1


def below(process):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process.pid).children(recursive=True)
    return []


def named(part, process):
    """The first process below another with this part in its command line, or None."""
    for child in below(process):
        with contextlib.suppress(psutil.Error):
            if part in " ".join(child.cmdline()):
                return child
    return None


def gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=20)
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_ended_takes_workers_and_kernels_with_it(toy, tmp_path, number):
    out = tmp_path / "out"
    running = command(toy, out, "-g", "x", "[2, 3]", "-p", "mode", "sleep", "--workers", "2")
    try:
        wait_for(lambda: len(list((out / "runs").glob("*.json"))) == 1)
        wait_for(lambda: named("companion.runs.processes", running))
        started = below(running)
        running.send_signal(number)
        _, told = running.communicate(timeout=60)
        expected = {signal.SIGINT: 130, signal.SIGKILL: -number}.get(number, 128 + number)
        assert running.returncode == expected
        if number != signal.SIGKILL:
            assert "companion: " in told.splitlines()[-1]
        assert "Traceback" not in told
        assert gone(started) == []
        assert not list(out.rglob(".*.part"))
    finally:
        running.kill()


def worker_of(process):
    """The process of the only worker of a local sweep."""
    return named("sweep_local", process)


@pytest.mark.parametrize("waits", [(0.0,), (1.5, 0.3, 2.0), (4.0, 0.0)])
def test_a_sweep_goes_on_after_its_only_worker_was_killed(toy, tmp_path, waits):
    """At once, while it starts anew, and during a run."""
    out = tmp_path / "out"
    running = command(toy, out, "-g", "x", "[1, 3]", "--workers", "1")
    try:
        for seconds in waits:
            wait_for(lambda: worker_of(running) or running.poll() is not None)
            time.sleep(seconds)
            if worker := worker_of(running):
                worker.kill()
                gone([worker])
        said, told = running.communicate(timeout=150)
        assert running.returncode == 0, told
        assert "2 of 2 runs done" in said
    finally:
        running.kill()


def test_workers_that_cannot_live_end_the_sweep(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "WORKER", "raise SystemExit('no memory')")
    with pytest.raises(SweepError, match=r"die again and again .*no memory.*is kept"):
        go(toy, tmp_path / "out", {"x": [1]})


@pytest.mark.parametrize("fault", ["workers", "scheduler", "stopped"])
def test_a_cluster_that_goes_away_ends_the_sweep(
    toy, tmp_path, dask_processes, monkeypatch, fault
):
    monkeypatch.setattr(rooms, "LOST_S", 3)
    out, processes = tmp_path / "out", []
    with dask_processes(1, started=processes) as address:
        scheduler, worker = processes

        def strike():
            wait_for(lambda: named("companion.runs.processes", worker))
            monkeypatch.setattr(cluster, "CONNECT_S", 3)
            if fault == "workers":
                for process in [worker, *below(worker)]:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
            else:
                scheduler.send_signal(signal.SIGKILL if fault == "scheduler" else signal.SIGSTOP)

        striker = threading.Thread(target=strike, daemon=True)
        striker.start()
        start = time.monotonic()
        with pytest.raises(SweepError, match="what was finished is kept"):
            go(toy, out, {"x": [2]}, {"mode": "sleep"}, scheduler=address, time_limit_s=150)
        assert time.monotonic() - start < 240


def test_a_scheduler_that_is_not_there_is_named(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    start = time.monotonic()
    with pytest.raises(SweepError, match=r"--scheduler tcp://127.0.0.1:9: no scheduler"):
        go(toy, tmp_path / "out", {"x": [1]}, scheduler="tcp://127.0.0.1:9")
    assert time.monotonic() - start < 20
    with pytest.raises(SweepError, match="--scheduler nonsense"):
        go(toy, tmp_path / "out", {"x": [1]}, scheduler="nonsense")


def test_a_scheduler_of_ones_own_is_used_and_left_alone(toy, tmp_path, scheduler):
    for x in (1, 4):  # it is there for the second sweep
        (row,) = go(toy, tmp_path / "out", {"x": [x]}, scheduler=scheduler)
        assert row.values["toy.double"] == 2 * x


@pytest.mark.parametrize("own", [True, False], ids=["own scheduler", "local cluster"])
def test_an_event_loop_that_starts_late_is_started_again(
    toy, tmp_path, scheduler, own, monkeypatch
):
    """A machine that stalls for ten seconds makes `distributed` fail an assertion."""
    from distributed.utils import LoopRunner

    start, late = LoopRunner._start_unlocked, []

    def _start_unlocked(runner):
        if not late:
            late.append(runner)
            raise AssertionError
        return start(runner)

    monkeypatch.setattr(LoopRunner, "_start_unlocked", _start_unlocked)
    options = {"scheduler": scheduler} if own else {}
    (row,) = go(toy, tmp_path / "out", {"x": [3]}, **options)
    assert row.values["toy.double"] == 6
    assert late


def test_an_event_loop_that_never_starts_is_said_and_other_assertions_stay():
    def _start_unlocked():
        raise AssertionError

    def other():
        raise AssertionError("not ours")

    with pytest.raises(RuntimeError, match="event loop did not start"):
        local.patiently(_start_unlocked)
    with pytest.raises(AssertionError, match="not ours"):
        local.patiently(other)


def test_what_was_fetched_before_the_scheduler_went_is_stored(monkeypatch):
    import distributed

    class Future:
        def __init__(self, number):
            self.number = number

        def result(self, timeout):
            if self.number == 0:
                raise OSError("connection lost")
            return self.number

        def release(self):
            pass

    class Client:
        loop = None

        def submit(self, function, *args, **options):
            return None

        def replicate(self, futures, **options):
            raise ValueError("no worker runs")  # which ends nothing

        def map(self, function, orders, *, key, **options):
            return [Future(int(name[-1], 16)) for name in key]

    class Arriving:
        def __init__(self, futures, loop):
            self.futures = list(futures)

        def count(self):
            return len(self.futures)

        def next_batch(self, block):
            found, self.futures = self.futures, []
            return found

    monkeypatch.setattr(distributed, "as_completed", Arriving)
    monkeypatch.setattr(rooms, "_Watch", lambda *args: Mock())
    orders = [Mock(fingerprint="f", point=Mock(id=str(number))) for number in range(4)]
    got = []

    def store_all():
        for result in rooms._results(Client(), None, orders, "source"):
            got.append(result)

    with pytest.raises(SweepError, match=r"the scheduler is gone \(connection lost\); what was"):
        store_all()
    assert got == [1, 2, 3]


SCANCEL = """\
#!/bin/bash
pkill -P "$1"  # the worker; its job script ends with it
"""
SBATCH = """\
#!/bin/bash
# for Slurm: start a copy of the job script, after a wait in the queue
copy=$(mktemp -p "$JOBS")
cp "$1" "$copy"
(sleep 12; exec bash "$copy") > "$copy.log" 2>&1 &
echo "Submitted batch job $!"
"""


def test_the_example_for_slurm_runs_with_a_stand_in_for_its_command(toy, tmp_path, tls):
    pytest.importorskip("dask_jobqueue")
    example = slurm_example(toy, tmp_path / "out", tls[0], jobs=1)
    (tmp_path / "slurm_sweep.py").write_text(example)
    for name, script in {"sbatch": SBATCH, "scancel": SCANCEL}.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    road = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = os.environ | {"PATH": road, "JOBS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "slurm_sweep.py"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "4 of 4 runs done" in done.stdout, done.stderr
    assert len(list((tmp_path / "out" / "runs").glob("*.json"))) == 4


def test_a_full_disk_stops_the_sweep_and_loses_nothing(toy, tmp_path, scheduler):
    """A file system of 300 kB: executed notebooks fill it, what was finished stays readable."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(small)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here: it needs root")
    try:
        filler = small / "filler"
        out = small / "out"
        rows = go(toy, out, {"x": [1]}, scheduler=scheduler)
        free = os.statvfs(small)
        filler.write_bytes(b"x" * max(0, free.f_bavail * free.f_frsize - 4096))
        with pytest.raises(SweepError, match=r"No space left.*what was finished is kept"):
            go(toy, out, {"x": [1, 3, 4]}, scheduler=scheduler)
        kept = list((out / "runs").glob("*.json"))
        assert rows[0].name in {file.stem for file in kept}
        for file in kept:
            assert json.loads(file.read_text())["status"] == DONE
        assert not list(out.rglob(".*.part"))
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", str(small)], check=True)
        assert len(go(toy, out, {"x": [1, 3, 4]}, scheduler=scheduler)) == 3
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_a_folder_that_cannot_be_made_is_named(toy, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(SweepError, match=r"--out .*file"):
            go(toy, out, {"x": [1]})

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(SweepError, match=r"--out .*out: Permission denied"):
        store.alone(tmp_path / "out").__enter__()


def test_files_of_other_origin_stay(toy, tmp_path):
    for name in ("index.html", "table.csv", ".lock"):
        out = tmp_path / name.strip(".")
        out.mkdir()
        (out / name).write_text("mine")
        (out / "runs").mkdir()
        (out / "runs" / "mine.json").write_text("{}")
        with pytest.raises(SweepError, match=rf"--out .*{re.escape(name)} there is of no sweep"):
            go(toy, out, {"x": [1]})
        assert (out / name).read_text() == "mine"


def test_a_sweep_goes_on_in_its_own_folder_and_leaves_no_lock(toy, tmp_path, scheduler):
    out = tmp_path / "out"
    go(toy, out, {"x": [1]}, scheduler=scheduler)
    assert not (out / ".lock").exists()
    (out / ".lock").write_text("process 7 on a machine")  # as one that was killed leaves it
    assert len(go(toy, out, {"x": [1, 3]}, scheduler=scheduler)) == 2


# ---------------------------------------------------------------- who may send work


def addresses(processes):
    """Where these processes listen for TCP connections."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found |= {
                (" ".join(process.cmdline()), c.laddr.ip)
                for c in process.net_connections("tcp")
                if c.status == psutil.CONN_LISTEN
            }
    return found


def test_a_sweep_without_openssl_says_that_it_is_not_encrypted(toy, tmp_path, monkeypatch, capfd):
    go(toy, tmp_path / "with", {"x": [1]})
    assert "encryption" not in capfd.readouterr().err
    monkeypatch.setattr(tls_of_ours, "certificate", dict)
    assert go(toy, tmp_path / "without", {"x": [1]})[0].status == DONE
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "encryption" in line]
    assert line.startswith("companion: there is no openssl")


def test_a_local_sweep_listens_on_loopback_only(toy, tmp_path):
    """Scheduler, workers and kernels; a kernel must have been seen, or nothing was tested."""
    running = command(
        toy, tmp_path / "out", "-g", "x", "[1, 2]", "-p", "mode", "sleep", "--workers", "2",
        "--time-limit", "20",
    )  # fmt: skip
    seen = set()
    try:
        wait_for(lambda: list((tmp_path / "out" / "runs").glob("*.json")))
        wait_for(lambda: named("companion.runs.processes", running))
        for _ in range(20):
            seen |= addresses([psutil.Process(running.pid), *below(running)])
            time.sleep(0.1)
    finally:
        running.kill()
        running.wait(20)
    names = {name for name, _ in seen}
    assert any("companion.runs.processes" in name for name in names)
    assert len(names) >= 3
    assert {ip for _, ip in seen} == {"127.0.0.1"}


def test_a_local_sweep_takes_work_from_nobody_else(tls):
    from distributed import Client

    others = security(*map(str, tls[1]))
    with local.local_cluster([{}]) as (client, _):
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for where, shown in ((address, others), (address.replace("tls", "tcp"), None)):
            with pytest.raises(OSError):
                Client(where, security=shown, timeout=2, set_as_default=False)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3


STALE = """
import socket, ssl, sys, threading
from companion.runs import tls

*certificate, mended = sys.argv[1:]
if mended == "mended":
    tls.dask_setup(None)
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(*certificate)
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
near, far = socket.socketpair()
peers = []
threading.Thread(target=lambda: peers.append(client.wrap_socket(far))).start()
healthy = server.wrap_socket(near, server_side=True)
healthy.setblocking(False)
openssl = tls.openssl()
openssl.ERR_new()
openssl.ERR_set_error(2, 32, None)  # a broken pipe
try:
    healthy.recv(1)
except ssl.SSLWantReadError:
    print("nothing to read yet")
except OSError:
    print("broken")
"""


@pytest.mark.parametrize(
    ("mended", "said"), [("mended", "nothing to read yet"), ("as it is", "broken")]
)
def test_the_error_of_another_connection_breaks_no_healthy_one(tls, mended, said):
    if not hasattr(openssl(), "ERR_set_error"):
        pytest.skip("this Python hides its OpenSSL, or has one before 3")
    done = subprocess.run(
        [sys.executable, "-c", STALE, str(tls[0][1]), str(tls[0][2]), mended],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if mended == "as it is" and done.stdout == "nothing to read yet\n":
        pytest.skip("this Python clears the errors itself")
    assert (done.stdout, done.returncode) == (f"{said}\n", 0), done.stderr


def of_the_book(tls):
    """The options that the scheduler of Kubernetes has in the book, and its workers too."""
    text = (ROOT / "book" / "sweeps.md").read_text(encoding="utf-8")
    example = next(part for part in text.split("```") if "kind: Deployment" in part)
    parts = list(yaml.safe_load_all(example.removeprefix("yaml\n")))
    scheduler, worker = (
        part["spec"]["template"]["spec"]["containers"][0]["command"] for part in parts[1:]
    )
    options = scheduler[scheduler.index("--tls-ca-file") :]
    assert worker[worker.index("--tls-ca-file") :] == options
    assert worker[:5] == ["dask", "worker", "tls://sweep:8786", "--nthreads", "1"]
    assert scheduler[:4] == ["dask", "scheduler", "--protocol", "tls"]
    assert (
        worker[6:8]
        == ["--preload-nanny", options[-1]]
        == ["--preload-nanny", tls_of_ours.__name__]
    )
    files = {"/tls/cert.pem": str(tls[1]), "/tls/key.pem": str(tls[2])}
    return ["--protocol", "tls", *(files.get(option, option) for option in options)]


def test_a_cluster_with_tls_takes_our_certificate_only(
    toy, tmp_path, dask_processes, tls, monkeypatch
):
    ours, theirs = tls
    with dask_processes(1, of_the_book(ours)) as address:
        assert address.startswith("tls://")
        (row,) = go(toy, tmp_path / "out", {"x": [1]}, scheduler=address, tls=ours)
        assert row.values["toy.double"] == 2
        monkeypatch.setattr(cluster, "CONNECT_S", 2)
        for files, where in (
            (theirs, address),
            ((), address),
            ((), address.replace("tls", "tcp")),
        ):
            with pytest.raises(SweepError, match=r"--scheduler .*no scheduler with a worker"):
                go(toy, tmp_path / "out", {"x": [3]}, scheduler=where, tls=files)


def test_tls_options_that_cannot_be_used_are_named(toy, tmp_path, tls, capsys):
    ca, cert, key = map(str, tls[0])
    secret = tmp_path / "secret.pem"
    subprocess.run(
        ["openssl", "rsa", "-aes128", "-passout", "pass:word", "-in", key, "-out", str(secret)],
        check=True, capture_output=True,
    )  # fmt: skip
    safe = ["--scheduler", "tls://127.0.0.1:9"]
    for options, message in (
        (["--tls-ca", ca], "--tls-cert, --tls-key: missing"),
        (["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key], "tls://HOST:8786"),
        (["--scheduler", "tcp://h:1", "--tls-ca", ca, "--tls-cert", cert, "--tls-key", key],
         "such as tls://h:1"),
        ([*safe, "--tls-ca", "none.pem", "--tls-cert", cert, "--tls-key", key],
         "--tls-ca none.pem: No such file"),
        ([*safe, "--tls-ca", key, "--tls-cert", cert, "--tls-key", key], "--tls-ca"),
        ([*safe, "--tls-ca", ca, "--tls-cert", cert, "--tls-key", cert], "--tls-key"),
        ([*safe, "--tls-ca", ca, "--tls-cert", cert, "--tls-key", str(tls[1][2])], "--tls-key"),
        ([*safe, "--tls-ca", ca, "--tls-cert", cert, "--tls-key", str(secret)], "passphrase"),
        ([*safe, "--tls-ca", ca, "--tls-cert", cert, "--tls-key", str(tmp_path)], "--tls-key"),
    ):  # fmt: skip
        arguments = ["sweep", str(toy), "-g", "x", "[1]", "--out", str(tmp_path / "out")]
        assert main([*arguments, *options]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- kept for the book


def test_a_kept_sweep_is_a_small_table_and_counts_of_claims(toy, tmp_path):
    rows = [fake({"x": x, "seed": 0}, v=x, many=[1, 2]) for x in (1, 2, 3)]
    folder = tmp_path / "kept"
    file = store.keep("seeds", toy, rows, "companion sweep toy", folder)
    frame = pandas.read_csv(file)
    assert frame.columns.tolist() == ["x", "seed", "seconds", "ran_on", "v", "C1", "C1.v"]
    assert frame["C1.v"].tolist() == [1, 2, 3]
    assert frame["C1"].tolist() == [False, True, True]
    about = json.loads((folder / "seeds.json").read_text())
    assert about["claims"]["C1"] == {
        "held": 2,
        "of": 3,
        "measured": {"v": [1, 2, 3]},
        "profiles": [""] * 3,
    }
    assert (about["runs"], about["command"]) == (3, "companion sweep toy")
    elsewhere = replace(rows[0], provenance={"device": "gpu 0", "hardware": "node7"})
    store.keep("far", toy, [elsewhere, *rows[1:]], "", tmp_path)
    assert json.loads((tmp_path / "far.json").read_text())["provenance"]["device"] == "cpu, gpu 0"
    file = store.keep("curves", toy, rows, "", folder, values=["ma*"])
    kept = pandas.read_csv(file)
    assert kept.columns.tolist() == [
        "x",
        "seed",
        "seconds",
        "ran_on",
        "v",
        "many.0",
        "many.1",
        "C1",
        "C1.v",
    ]
    assert kept["many.1"].tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"--values few: matches no .* there are many"):
        store.keep("more", toy, rows, "", folder, values=["few"])
    with pytest.raises(ValueError, match="--keep a/b"):
        store.keep("a/b", toy, rows, "", folder)
    with pytest.raises(SweepError, match="1 of 4 runs failed"):
        store.keep("more", toy, [*rows, fake({"x": 9}, status=FAILED)], "", folder)
    names = [f"{name}.{kind}" for name in ("curves", "seeds") for kind in ("csv", "json")]
    assert sorted(f.name for f in folder.iterdir()) == names


def test_a_kept_table_that_was_edited_is_not_shown(toy, tmp_path, monkeypatch):
    from companion.runs import records

    monkeypatch.setattr(chapters, "FOLDER", toy.parent)
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    rows = [fake({"x": x}, v=x / 8) for x in (1, 2)]
    file = store.keep("seeds", toy, rows, "companion sweep toy")
    (about,) = store.kept("toy")
    assert about.runs == 2
    table, text = file.read_text(), file.with_suffix(".json").read_text()
    assert "0.125" in table
    for path, old, new in (
        (file, "0.125", "0.124"),
        (file.with_suffix(".json"), '"runs": 2', '"runs": 3'),
    ):
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(ValueError, match="not as it was written"):
            store.kept("toy")
        file.write_text(table), file.with_suffix(".json").write_text(text)
    assert store.kept("toy")


# ---------------------------------------------------------------- the page


def fake(given, status=DONE, **values):
    v = values.get("v", 0)
    verdict = Verdict("C1", REPRODUCED if v > 1 else NOT_REPRODUCED, False, "", {"v": v})
    return Run(
        "toy", "a", status, claims={"C1": verdict}, values=values, given=given, seconds=1.0,
        fingerprint="f" * 64, provenance={"device": "cpu", "hardware": "here"},
    )  # fmt: skip


def test_the_page_counts_claims_and_escapes_what_it_shows(monkeypatch):
    says = replace(parse_claims(STATED)["C1"], says="<b>")
    monkeypatch.setattr(report, "papers", lambda: ["toy"])
    monkeypatch.setattr(report, "load_claims", lambda paper: {"C1": says})
    rows = [fake({"x": x, "seed": s}, v=x) for x in (1, 2, 3) for s in (0, 1)]
    rows.append(fake({"x": 9, "seed": 0}, status=FAILED))
    text = page(rows)
    assert "4 of 6 runs" in text
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert "6 runs done, 1 failed" in text
    assert text.count("<figure>") == 2  # the value, and the claim's quantity
    assert swept(rows) == {"x": [1, 2, 3, 9], "seed": [0, 1]}


def test_the_page_escapes_hostile_names_and_values():
    bad = "</td><script>alert('\"&1')</script>"
    rows = [
        fake({bad: value, "seed": 0, "other": value}, v=n, **{f"number {bad}": n})
        for n, value in enumerate([bad, f"{bad}2", f"$x^{bad}$"])
    ]
    hostile = {bad: Verdict(bad, REPRODUCED, False, bad, {bad: 1})}
    text = page([replace(row, paper=bad, error=bad, claims=hostile) for row in rows])
    assert "<script" not in text
    assert "alert" in text
    parser = html.parser.HTMLParser()
    tags = []
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(text)
    plain = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "thead"}
    assert {tag for tag, _ in tags} <= plain | {"tbody", "tr", "th", "td", "figure", "img"}
    assert not [attributes for _, attributes in tags for name in attributes if name[:2] == "on"]


def test_a_claim_that_was_not_measured_does_not_count():
    row = replace(fake({"x": 1}, v=5), claims={"C1": Verdict("C1", NOT_RUN, False)})
    assert held([row]) == {}


def test_whole_numbers_stay_whole_where_a_run_lacks_one_and_may_be_long(toy, tmp_path):
    rows = [fake({"x": x, "text": "a"}, v=x) for x in (1, 2, 3)]
    rows[0].values.update(some=2**53 + 1, long=2**70, other=2**70, flag=True)
    rows[1].values.update(some=1_000_000_007, long=7, part=7)
    rows[2].values.update(long=0.5, part=0.5)
    store.write_table(rows, tmp_path)
    frame = pandas.read_parquet(tmp_path / "table.parquet")
    assert frame["some"].tolist()[:2] == [2**53 + 1, 1_000_000_007]
    assert frame["long"].tolist() == [str(2**70), "7", "0.5"]
    assert frame["other"][0] == str(2**70)
    for file in (tmp_path / "table.csv", store.keep("all", toy, rows, "", tmp_path)):
        with file.open(encoding="utf-8", newline="") as lines:
            table = list(csv.DictReader(lines))
        assert [row["some"] for row in table] == [str(2**53 + 1), "1000000007", ""]
        assert [row["long"] for row in table][:2] == [str(2**70), "7"]
        assert [row["other"] for row in table] == [str(2**70), "", ""]
        assert [float(row["part"] or "nan") for row in table][1:] == [7, 0.5]
        assert [row["flag"] for row in table] == ["True", "", ""]


def test_mixed_values_become_text_in_the_table():
    rows = [fake({"x": 1, "m": "a"}, v=1), fake({"x": [1], "m": 2}, v=2.5)]
    frame = store.table(rows)
    assert frame["m"].tolist() == ["a", "2"]
    assert frame["v"].tolist() == [1.0, 2.5]
    assert frame["x"].tolist() == ["1", "[1]"]


def test_a_kept_sweep_has_a_size_that_a_book_can_take_and_the_seconds_of_all_runs(toy, tmp_path):
    rows = [fake({"x": x}, v=x) for x in range(3)]
    store.keep("seeds", toy, rows, "", tmp_path)
    assert json.loads((tmp_path / "seeds.json").read_text())["seconds"] == 3
    for word in ("a" * 100_000, "é" * 60_000):  # bytes, not characters
        with pytest.raises(
            ValueError, match=r"--keep large: the table has 1\d{5} bytes, more than"
        ):
            store.keep("large", toy, [fake({"x": 1}, word=word)], "", tmp_path)
        assert not (tmp_path / "large.csv").exists()


def test_each_run_of_a_sweep_counts_under_its_own_profile():
    runs = [
        replace(fake({"x": x}), claims={"C1": Verdict("C1", REPRODUCED, False, profile, {"v": x})})
        for x, profile in ((1, "quick"), (2, "mnist"))
    ]
    assert held(runs)["C1"] == Held(2, 2, {"v": [1, 2]}, ["quick", "mnist"])
