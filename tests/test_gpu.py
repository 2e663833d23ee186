"""`companion gpu`: the order, the budget, and that nothing is lost whenever it is cut off."""

import hashlib
import importlib.util
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from companion.__main__ import main
from companion.data.catalogue import catalogue
from companion.data.root import CorruptDataError, DataSource, MissingDataError
from companion.files import ROOT, BusyError
from companion.notebook.outside import OUTSIDE
from companion.runs import carry, chapters, fingerprint, gpu
from companion.runs.gpu_jobs import JOBS, TINY, Job, jobs_of
from companion.runs.processes import python_path
from companion.runs.record import FAILED, Run, save

# A job that takes a while, notes in a journal when it ran, and writes its result in one go.
WORK = """
import argparse, json, os, sys, time
from companion.runs.gpu import code_fingerprint
from companion.files import write_whole
parser = argparse.ArgumentParser()
parser.add_argument("--device"), parser.add_argument("--out")
options = parser.parse_args()
begin = time.time()
def note(what):
    with open({journal!r}, "a") as file:
        print(json.dumps([{name!r}, what, begin, time.time(), os.getpid()]), file=file)
note("begin")
{body}
write_whole(options.out, json.dumps({{
    "status": "complete", "device": options.device, "fingerprint": code_fingerprint(__file__),
    "peak_memory": {{"gpu_mb": 7}},
}}))
note("end")
"""


@pytest.fixture
def make(tmp_path):
    """Makes a job out of a few lines of Python; each has a folder, so a fingerprint, of its own."""

    def make(name, body="time.sleep(0.2)", seconds=1, gpu_gb=1, **about):
        script = tmp_path / "scripts" / name / "work.py"
        script.parent.mkdir(parents=True)
        script.write_text(WORK.format(journal=str(tmp_path / "journal"), name=name, body=body))
        return Job(name, name, seconds, gpu_gb, script=str(script), **about)

    return make


@pytest.fixture
def journal(tmp_path):
    """Name -> (begin, end) of the jobs that ended, and the names of all that began, in order."""

    def read():
        file = tmp_path / "journal"
        lines = (
            [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        )
        ended = {name: (begin, end) for name, what, begin, end, _ in lines if what == "end"}
        return ended, [line[0] for line in lines if line[1] == "begin"]

    return read


def lease(jobs, out, seconds=60.0, slots=1, gpu_gb=80.0, data=lambda: (set(), "")):
    found = gpu.Lease(jobs, out, "cpu", time.monotonic() + seconds, slots, gpu_gb, data)
    found.run()
    return found.states


def states_of(out):
    return {
        k: v["state"] for k, v in json.loads((out / "summary.json").read_text())["jobs"].items()
    }


def test_jobs_run_in_order_and_only_if_their_estimate_fits_what_is_left(make, journal, tmp_path):
    jobs = [
        make("a"),
        make("long", seconds=1000),
        make("b"),
        make("set", data=("mnist",)),
        make("c"),
    ]
    states = lease(jobs, tmp_path / "out", data=lambda: ({"digits"}, "no room"))
    assert journal()[1] == ["a", "b", "c"]
    assert states["long"].state == gpu.NOT_STARTED
    assert states["long"].why.startswith("takes about 1000 s, ")
    assert states["set"].why == "needs the data set mnist: no room"
    assert states["a"].gpu_mb == 7
    assert states_of(tmp_path / "out") == {k: v.state for k, v in states.items()}


def test_jobs_share_the_card_but_for_those_that_must_be_alone(make, journal, tmp_path):
    body = "time.sleep(1)"
    memory = {"a": 30, "b": 30, "c": 50, "alone": 1, "d": 40, "e": 40}
    jobs = [make(n, body, gpu_gb=gb, alone=n == "alone") for n, gb in memory.items()]
    states = lease([*jobs, make("huge", gpu_gb=200)], tmp_path / "out", slots=4)
    assert "needs 200 GB" in states["huge"].why
    times, order = journal()
    assert sorted(order) == sorted(memory)

    def meets(x, y):
        return times[x][0] < times[y][1] and times[y][0] < times[x][1]

    assert meets("a", "b")  # side by side
    assert meets("d", "e")
    for name in memory:
        together = sum(gb for other, gb in memory.items() if meets(name, other))
        assert name == "alone" or together <= 80 + memory[name]
        assert name == "alone" or not meets("alone", name)
    assert not meets("c", "a") or not meets("c", "b")  # 110 GB


def test_a_job_that_fails_is_kept_with_its_log_and_stops_no_other(make, tmp_path):
    jobs = [make("bad", "print('so far'); raise RuntimeError('out of luck')"), make("good")]
    states = lease(jobs, tmp_path / "out")
    assert (states["bad"].state, states["bad"].why) == (gpu.FAILED, "RuntimeError: out of luck")
    assert states["good"].state == gpu.DONE
    log = (tmp_path / "out" / "logs" / "bad.log").read_text()
    assert "so far" in log
    assert "Traceback" in log
    assert "bad " in gpu.table(states)


def is_gone(pid, wait=5.0):
    end = time.monotonic() + wait
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


BRANCHES = """
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(options.out + ".pids", "w") as file:
    print(os.getpid(), child.pid, file=file)
time.sleep(600)
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_at_the_deadline_jobs_end_with_all_that_they_started(deaf, make, tmp_path):
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if deaf else ""
    job, out = make("tree", ignore + BRANCHES), tmp_path / "out"
    states = lease([job, make("late", seconds=20)], out, seconds=4.0, slots=2)
    assert states["tree"].state == gpu.CUT
    assert states["tree"].why == "the budget was spent"
    assert states["late"].state == gpu.NOT_STARTED
    pids = (out / f"{job.result}.pids").read_text().split()
    assert all(map(is_gone, pids))


def test_a_job_that_hangs_does_not_hold_up_the_others(make, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "LONGEST", {"cpu": 3})
    monkeypatch.setattr(gpu, "LEAST", 2.0)
    states = lease([make("hangs", "time.sleep(600)", seconds=0.1), make("good")], tmp_path / "out")
    assert states["hangs"].state == gpu.CUT
    assert "3 times its estimate" in states["hangs"].why
    assert states["good"].state == gpu.DONE


DRIVER = """
import sys
from companion.runs import gpu
from companion.runs.gpu_jobs import Job
from types import SimpleNamespace
gpu.pick_device, gpu.provenance = lambda name: SimpleNamespace(type="cpu"), lambda place: {{}}
from pathlib import Path
jobs = [Job(name, name, 1, 1, script=script) for name, script in {scripts!r}]
gpu.run(jobs, Path({out!r}), budget_s=120, device="cpu", slots=2)
"""


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_second_it_keeps_what_was_finished_and_goes_on(
    seed, make, journal, tmp_path
):
    out = tmp_path / "out"
    jobs = [make(f"job{i}", "time.sleep(0.3)") for i in range(6)]
    scripts = [(job.name, job.script) for job in jobs]
    command = [sys.executable, "-c", DRIVER.format(scripts=scripts, out=str(out))]
    environment = os.environ | {"PYTHONPATH": python_path()}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    while not (out / "summary.json").exists():  # it takes a while to begin
        time.sleep(0.02)
    time.sleep(random.Random(seed).uniform(0.1, 3.0))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert all(is_gone(line[-1]) for line in lines), "a job outlived the command"

    told = states_of(out)  # whole, whatever happened
    whole = {job.name for job in jobs if gpu.finished(job, out, "cpu")}
    assert {name for name, state in told.items() if state == gpu.DONE} <= whole
    files = [out / "summary.json", *(out / "recorded").glob("*.json")]
    assert all(json.loads(file.read_text()) for file in files)

    subprocess.run(command, env=environment, check=True, timeout=120)
    assert set(states_of(out).values()) == {gpu.DONE}
    _, begun = journal()
    assert all(begun.count(name) == 1 for name in whole), "what was done was done again"
    assert set(begun) == {job.name for job in jobs}
    assert not [p for p in out.rglob("*") if ".part" in p.name]


def test_no_job_outlives_a_command_that_was_killed(make, tmp_path):
    scripts = [(job.name, job.script) for job in [make("a", BRANCHES), make("b", BRANCHES)]]
    out = tmp_path / "out"
    command = [sys.executable, "-c", DRIVER.format(scripts=scripts, out=str(out))]
    environment = os.environ | {"PYTHONPATH": python_path()}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    files = [out / "recorded" / f"{name}-gpu.json.pids" for name, _ in scripts]
    end = time.monotonic() + 60
    while not all(file.exists() and file.read_text().strip() for file in files):
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert all(is_gone(pid) for file in files for pid in file.read_text().split())


def test_what_is_done_is_not_repeated_unless_the_code_changed(make, journal, tmp_path):
    jobs, out = [make("a"), make("b")], tmp_path / "out"
    lease(jobs, out)
    Path(jobs[1].script).write_text(Path(jobs[1].script).read_text() + "\n# changed")
    states = lease(jobs, out)
    assert journal()[1] == ["a", "b", "b"]
    assert (states["a"].why, states["b"].why) == ("before", "")


def test_a_record_counts_only_for_its_own_parameters_and_device(tmp_path):
    job = Job("snip-paper", "", 1, 1, "snip", {"profile": "paper"})
    file = tmp_path / job.result
    good = Run(
        "snip",
        "paper-gpu",
        settings={"profile": "paper", "device": "cuda", "seed": 0},
        fingerprint=fingerprint.fingerprint(chapters.find("snip")),
    )
    for change, found in [
        ({}, True),
        ({"status": FAILED}, False),
        ({"fingerprint": "0" * 64}, False),
        ({"settings": {"profile": "quick", "device": "cuda"}}, False),
        ({"settings": {"profile": "paper", "device": "cpu"}}, False),
    ]:
        save(replace(good, **change), file)
        assert bool(gpu.finished(job, tmp_path, "cuda")) is found, change
    file.write_text('{"status": "comp')
    assert gpu.finished(job, tmp_path, "cuda") is None


def test_a_chapter_that_was_recorded_counts_as_done(tmp_path):
    (job,) = gpu.chosen(["fictitious_play-tiny"])
    states = gpu.run([job], tmp_path, budget_s=300, device="cpu", slots=1)
    assert states[job.name].state == gpu.DONE, states[job.name].why
    again = gpu.run([job], tmp_path, budget_s=300, device="cpu", slots=1)
    assert again[job.name].why == "before"


def test_what_a_chapter_left_when_it_broke_off_goes_to_the_logs(make, tmp_path):
    log = tmp_path / "logs" / "snip-paper.log"
    log.parent.mkdir()
    log.write_text("companion: snip did not finish\n")
    job = Job("snip-paper", "", 1, 1, "snip")
    folder = (tmp_path / job.result).parent
    folder.mkdir(parents=True)
    (folder / "paper-gpu.part.json").write_text('{"said": ["Traceback", "KeyError: 3"]}')
    (folder / "paper-gpu-fig.part.png").write_bytes(b"png")
    (folder / "other.json").write_text("{}")
    found = gpu.Lease([job], tmp_path, "cpu", 0.0, 1, 1.0, lambda: None)
    item = gpu.Running(job, SimpleNamespace(returncode=1), 0.0, log)
    assert found.last_words(item) == "KeyError: 3"
    assert [p.name for p in folder.iterdir()] == ["other.json"]
    assert (log.parent / "snip-paper.part.json").exists()


def test_two_at_once_in_one_folder_are_refused(make, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "provenance", lambda place: {})
    from companion.files import locked

    with locked(tmp_path / ".lock", ""), pytest.raises(BusyError, match="--out"):
        gpu.run([make("a")], tmp_path, budget_s=20, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nope"], "--only nope: expected some of checks"),
        (["--budget", "5"], "--budget 5: expected a number from 10"),
        (["--budget", "nan"], "--budget nan"),
        (["--out", "{file}/x"], "--out {file}/x: "),
        (["--data", "{file}"], "--data {file}: expected a folder"),
        (["--device", "tpu"], "device = 'tpu'"),
        (["--prepare", "{file}"], "--prepare {file}: "),
    ],
)
def test_bad_options_give_one_line(arguments, said, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    arguments = ["--out", str(tmp_path / "out"), *(a.format(file=file) for a in arguments)]
    assert main(["gpu", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert said.format(file=file) in error
    assert "\n" not in error


def test_the_list_of_jobs_runs_nothing(tmp_path, capsys):
    assert main(["gpu", "--list", "--only", "snip", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "snip-paper" in said
    assert "masked_kd" not in said
    assert not (tmp_path / "out").exists()


# --- the table of jobs


def test_the_jobs_are_of_chapters_that_are_there():
    assert set(TINY) <= set(chapters.stems())
    assert all(jobs_of(stem) for stem in TINY)
    names = [job.name for job in JOBS]
    assert len({job.result for job in JOBS}) == len(set(names)) == len(names)
    assert {name for job in JOBS for name in job.data} <= set(catalogue())
    assert all((ROOT / job.script).is_file() for job in JOBS if job.script)
    assert [job.name for job in gpu.chosen(["tiny"])] == [f"{stem}-tiny" for stem in TINY]
    assert gpu.chosen([]) == list(JOBS)


@pytest.mark.parametrize("job", [job for job in JOBS if job.stem], ids=lambda job: job.name)
def test_a_job_can_be_run_as_its_command_says(job, tmp_path, monkeypatch):
    monkeypatch.setitem(OUTSIDE, "timm model", lambda name: None)  # a second each to look up
    from companion.__main__ import _parameters, _parser

    arguments = gpu.command(job, tmp_path, "cuda")
    options = _parser().parse_args(arguments[1:])
    given = _parameters(options)
    assert given == job.given | {"device": "cuda"}
    assert options.out / f"{options.name}.json" == tmp_path / job.result
    path = chapters.find(job.stem)
    values = chapters.validate(path, given)
    assert values.get("dataset") not in catalogue() or values["dataset"] in {
        *job.data, chapters.defaults(path).get("dataset"),
    }, "it needs data that it does not name"  # fmt: skip


# --- data to carry


@pytest.fixture
def little(tmp_path, monkeypatch):
    """A data set of three small files below a data root."""
    source = DataSource("t", "pics", "l", "Get it.", needs={"pics/*/*.jpg": 2, "pics/list": 1})
    monkeypatch.setattr("companion.data.catalogue.catalogue", lambda: {"little": source})
    root = tmp_path / "root"
    for name in ("a/1.jpg", "b/2.jpg", "list"):
        (root / "pics" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "pics" / name).write_bytes(name.encode() * 100)
    return root


def test_data_are_packed_small_and_unpacked_as_they_were(little, tmp_path):
    folder, there = tmp_path / "carry", tmp_path / "there"
    sizes = carry.prepare(["little", "little"], little, folder)
    assert sizes == {"little": (folder / "little.tar.gz").stat().st_size}
    first = (folder / "little.tar.gz").read_bytes()
    assert first[4:8] == bytes(4)  # the time of packing, which a .gz may tell
    os.utime(little / "pics" / "list", (0, 0))
    carry.prepare(["little"], little, folder)
    assert (folder / "little.tar.gz").read_bytes() == first
    ready = []
    carry.unpack(folder, there, ready.append)
    assert ready == ["little"]
    assert {p.relative_to(there): p.read_bytes() for p in there.rglob("*") if p.is_file()} == {
        p.relative_to(little): p.read_bytes() for p in little.rglob("*") if p.is_file()
    }


def test_data_that_are_missing_too_large_or_damaged_are_refused(little, tmp_path):
    folder = tmp_path / "carry"
    with pytest.raises(ValueError, match="more than 100"):
        carry.prepare(["little"], little, folder, limit=100)
    with pytest.raises(MissingDataError, match=r"no archives\.json"):
        carry.unpack(folder, tmp_path / "there")
    carry.prepare(["little"], little, folder)
    packed = folder / "little.tar.gz"
    content = packed.read_bytes()
    packed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptDataError, match="damaged"):
        carry.unpack(folder, tmp_path / "there")
    (folder / "archives.json").write_text('{"little": 3}')
    with pytest.raises(CorruptDataError, match="not as"):
        carry.unpack(folder, tmp_path / "there")
    (little / "pics" / "list").unlink()
    with pytest.raises(MissingDataError, match="lacks pics/list"):
        carry.prepare(["little"], little, folder)


def test_the_limit_is_for_all_archives_together(little, tmp_path, monkeypatch):
    sources = [
        DataSource("t", "pics", "l", "Get it.", needs={need: count})
        for need, count in (("pics/*/*.jpg", 2), ("pics/list", 1))
    ]
    monkeypatch.setattr(
        "companion.data.catalogue.catalogue", lambda: dict(zip("ab", sources, strict=True))
    )
    total = sum(carry.prepare("ba", little, tmp_path / "carry").values())
    carry.prepare("ab", little, tmp_path / "carry", limit=total)
    with pytest.raises(ValueError, match=f"{total:,} bytes in all, more than {total - 1:,}"):
        carry.prepare("ab", little, tmp_path / "carry", limit=total - 1)


def test_a_file_that_is_not_as_published_is_not_packed(little, tmp_path, monkeypatch):
    source = SimpleNamespace(
        needs={"pics/list": 1}, require=lambda *_: None, files={"pics/list": "0" * 64}
    )
    monkeypatch.setattr("companion.data.catalogue.catalogue", lambda: {"little": source})
    with pytest.raises(CorruptDataError, match="list"):
        carry.prepare(["little"], little, tmp_path / "carry")
    assert not (tmp_path / "carry").exists()


def test_a_set_whose_archive_lacks_a_file_is_not_ready(little, tmp_path):
    folder, ready = tmp_path / "carry", []
    carry.prepare(["little"], little, folder)
    content = carry._packed(little, ["pics/*/*.jpg"])
    (folder / "little.tar.gz").write_bytes(content)
    about = json.loads((folder / "archives.json").read_text())
    about["little"]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "archives.json").write_text(json.dumps(about))
    with pytest.raises(MissingDataError, match="lacks pics/list"):
        carry.unpack(folder, tmp_path / "there", ready.append)
    assert not ready


def test_an_archive_that_reaches_out_of_its_folder_is_refused(little, tmp_path):
    folder, there = tmp_path / "carry", tmp_path / "there"
    carry.prepare(["little"], little, folder)
    with tarfile.open(folder / "little.tar.gz", "w:gz") as tar:
        tar.add(little / "pics" / "list", "../outside")
    about = json.loads((folder / "archives.json").read_text())
    about["little"]["sha256"] = hashlib.sha256((folder / "little.tar.gz").read_bytes()).hexdigest()
    (folder / "archives.json").write_text(json.dumps(about))
    with pytest.raises(tarfile.TarError):
        carry.unpack(folder, there)
    assert not (tmp_path / "outside").exists()


def test_jobs_without_data_go_on_while_the_archives_are_damaged(
    make, journal, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu, "provenance", lambda place: {})
    jobs = [make("set", data=("mnist",)), make("free")]
    (tmp_path / "carry").mkdir()
    states = gpu.run(
        jobs, tmp_path / "out", budget_s=60, device="cpu", data=tmp_path / "carry", slots=1
    )
    assert "no archives.json" in states["set"].why
    assert states["free"].state == gpu.DONE


def test_data_are_unpacked_into_memory_where_there_is_room(tmp_path):
    assert gpu._roomy(str(tmp_path), 1) == str(tmp_path)
    assert gpu._roomy(str(tmp_path), 2**80) == ""
    assert gpu._roomy(str(tmp_path / "none"), 1) == ""


# --- the checks of a GPU themselves


@pytest.fixture(scope="module")
def checks():
    spec = importlib.util.spec_from_file_location("gpu_checks", ROOT / "tests/gpu/checks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


QUICK = ("same_selection", "same_spectra", "same_isometry", "same_picture", "same_masked_teacher",
         "same_meta_gradient", "a_step_in_bf16_is_finite", "training_is_repeated")  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_a_check_passes_on_the_cpu(name, checks):
    assert getattr(checks, name)(checks.CPU)


def test_a_check_that_fails_is_kept_and_the_others_go_on(checks):
    def wrong(device):
        return checks.below(
            checks.gap(checks.torch.ones(2), checks.torch.zeros(2) + 0.5), 1e-3, "gap"
        )

    kept = []
    found = checks.run(
        checks.CPU, [wrong, checks.same_selection], keep=lambda f: kept.append(len(f))
    )
    assert not found["wrong"]["passed"]
    assert found["wrong"]["said"] == "AssertionError: gap: 1, expected at most 0.001"
    assert found["same_selection"]["passed"]
    assert kept == [1, 2]


# --- growth, as the GPU's curves are made


@pytest.fixture(scope="module")
def growth():
    spec = importlib.util.spec_from_file_location("gpu_growth", ROOT / "tests/gpu/growth.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def grown(growth, monkeypatch, out, *more):
    """The exit status of the script, and what it wrote."""
    monkeypatch.setattr(sys, "argv", ["growth.py", "--device", "cpu", "--out", str(out), *more])
    return growth.main(), json.loads(out.read_text())


def test_growth_is_measured_for_every_method(growth, monkeypatch, tmp_path):
    (job,) = gpu.chosen(["growth-gpu"])
    monkeypatch.setattr(growth, "ENOUGH", 0.0)  # a call a size
    monkeypatch.setattr(growth, "LONG", math.inf)  # however slow the machine is
    status, found = grown(growth, monkeypatch, tmp_path / job.result)
    assert (status, found["errors"]) == (0, {})
    assert gpu.finished(job, tmp_path, "cpu")
    assert set(found["chapters"]) == set(TINY)
    for about in found["chapters"].values():
        (curve,) = about["growth"]
        assert len(curve["sizes"]) == len(curve["seconds"]) == growth.ON_CPU
        assert all(1.7 < b / a < 2.3 for a, b in itertools.pairwise(curve["sizes"]))
        assert math.isfinite(curve["exponent"])
        assert curve["ended"] == {"why": "sizes"}

    del found["chapters"]["snip"]
    (tmp_path / job.result).write_text(json.dumps(found))
    status, again = grown(growth, monkeypatch, tmp_path / job.result, "--go-on")
    assert status == 0
    assert again["chapters"].pop("snip")["growth"]
    assert again["chapters"] == found["chapters"], "what was there was measured again"


def method(growth, make, **options):
    return growth.Method("snip", "w", "trials", 8, make, **options)


def failing(error, at):
    """A method that raises an error from a size on."""

    def make(device, size):
        def work():
            if size >= at:
                raise error

        return work

    return make


@pytest.fixture
def card(monkeypatch):
    """Stands for a GPU whose peak memory is what was asked for last."""
    import torch

    monkeypatch.setattr("gc.collect", lambda: 0)  # slow among so many modules
    for name, answer in (
        ("synchronize", None),
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("max_memory_allocated", 71.2e9),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    return SimpleNamespace(type="cuda")


def test_growth_says_where_memory_ended(growth, card):
    import torch

    from companion.book.performance import curves

    for error in (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
    ):
        one = method(growth, failing(error, at=64))
        curve = growth.grow(one, card, one.sizes(), share=60)
        assert curve["sizes"] == [8, 16, 32]
        assert curve["peak_gb"] == [71.2] * 3
        assert (curve["ended"]["why"], curve["ended"]["at"]) == ("memory", 64)
        (shown,) = curves([curve])
        assert shown.ended == "Memory ended between 32 and 64 trials (71 GB at the former)."
    one = method(growth, failing(RuntimeError("an index is too large"), at=64))
    curve = growth.grow(one, card, one.sizes(), share=60)
    assert curve["ended"]["said"] == "RuntimeError: an index is too large"
    assert curves([curve])[0].ended == "Stopped at 32 trials: 64 raised an error."
    with pytest.raises(RuntimeError, match="1 sizes were measured"):
        growth.grow(method(growth, failing(MemoryError(), at=16)), card, one.sizes(), share=60)


def test_growth_stops_at_a_long_call_and_when_its_share_is_spent(growth, card, monkeypatch):
    from companion.book.performance import curves

    now = [0.0]
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(growth.time, name, lambda: now[0])

    def make(device, size):
        def work():
            now[0] += size**2 * 1e-4

        return work

    squares = method(growth, make)
    curve = growth.grow(squares, card, squares.sizes(), share=1000)
    assert curve["sizes"] == [8, 16, 32, 64, 128, 256]  # the last takes 6.6 s
    assert curve["exponent"] == pytest.approx(2)
    assert curves([curve])[0].ended == "Stopped at 6.55 s a call."
    for share in (0.5, 1.0, 3.0):
        now[0] = 0.0
        curve = growth.grow(squares, card, squares.sizes(), share=share)
        assert now[0] <= share
        assert curve["ended"] == {"why": "share", "at": 2 * curve["sizes"][-1]}


def test_growth_goes_on_after_a_method_that_fails(growth, monkeypatch, tmp_path):
    good = method(growth, failing(None, at=math.inf))
    bad = replace(good, stem="desire", make=failing(ValueError("out of luck"), at=0))
    monkeypatch.setattr(growth, "METHODS", (bad, good))
    status, found = grown(growth, monkeypatch, tmp_path / "g.json")
    assert (status, found["status"]) == (1, "failed")
    assert list(found["chapters"]) == ["snip"]
    assert "out of luck" in found["errors"]["desire"]


def test_growth_starts_anew_where_an_error_has_left_the_device_unusable(
    growth, monkeypatch, tmp_path
):
    class Replaced(Exception):
        pass

    def execv(python, arguments):
        assert [*arguments[2:]] == [
            "--device",
            "cpu",
            "--out",
            str(tmp_path / "g.json"),
            "--go-on",
        ]
        raise Replaced

    good = method(growth, failing(None, at=math.inf))
    monkeypatch.setattr(growth, "METHODS", (good, replace(good, stem="desire")))
    with monkeypatch.context() as patch:
        patch.setattr(growth, "is_lost", lambda device: True)
        patch.setattr(growth.os, "execv", execv)
        with pytest.raises(Replaced):
            grown(growth, monkeypatch, tmp_path / "g.json")
    first = json.loads((tmp_path / "g.json").read_text())
    assert (first["status"], list(first["chapters"])) == ("unfinished", ["snip"])
    status, found = grown(growth, monkeypatch, tmp_path / "g.json", "--go-on")
    assert status == 0
    assert found["chapters"]["snip"] == first["chapters"]["snip"]
    assert list(found["chapters"]) == ["desire", "snip"]
