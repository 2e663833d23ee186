"""One command for a GPU machine: runs `companion.runs.gpu_jobs` within a budget of seconds.

It may be cut off at any second: what has finished lies in files that are whole, and a second
call with the same folder goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from companion.device import peak_memory, pick_device
from companion.files import ROOT, locked, scratch, sweep_up, to_json, write_whole
from companion.runs import chapters
from companion.runs.fingerprint import fingerprint
from companion.runs.gpu_jobs import JOBS, Job
from companion.runs.processes import PARENT, python_path
from companion.runs.provenance import provenance

DONE, FAILED, CUT, RUNNING = "done", "failed", "cut off", "running"
WAITING, NOT_STARTED = "waiting", "not started"
CLOSING = 3.0  # seconds of the budget kept for the end
GRACE = 2.0  # seconds that a job has to clean up after SIGTERM
LONGEST = {"cuda": 3, "cpu": 30}  # times its estimate, then a job is cut off
LEAST = 60.0  # seconds that each may take

# A job is a group of processes that ends with this one, however this one ends.
CHILD = """
import runpy, sys
from companion.runs.processes import end_with_parent
end_with_parent()
sys.argv = sys.argv[1:]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass
class State:
    """What is known of one job: an entry of summary.json."""

    state: str = WAITING
    why: str = ""
    seconds: float | None = None
    gpu_mb: int | None = None
    result: str = ""
    shows: str = ""
    estimate: float = 0.0


@dataclass(eq=False)
class Running:
    job: Job
    process: subprocess.Popen
    start: float
    log: Path


@dataclass(eq=False)
class Lease:
    """Jobs on one machine until a point in time.

    out: folder of the results. deadline: of time.monotonic(). slots: jobs at once.
    gpu_gb: memory that they may take together. data: gives the data sets that are there and why
    others are not, or None while they are being unpacked.
    """

    jobs: Sequence[Job]
    out: Path
    device: str
    deadline: float
    slots: int
    gpu_gb: float
    data: Callable[[], tuple[set[str], str] | None]
    about: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        for job in self.jobs:
            state = State(shows=job.shows, estimate=job.seconds)
            if result := finished(job, self.out, self.device):
                state.state, state.result = DONE, job.result
                state.why, state.seconds = "before", result.get("seconds")
                state.gpu_mb = result.get("peak_memory", {}).get("gpu_mb")
            self.states[job.name] = state

    def run(self) -> None:
        """Run what fits; whatever stops it, no job goes on and the summary says how it stands."""
        waiting = [job for job in self.jobs if self.states[job.name].state == WAITING]
        self.write()
        try:
            while waiting or self.running:
                self.look()
                while waiting and self.start_or_skip(waiting[0]):
                    waiting.pop(0)
                time.sleep(0.05)
        finally:
            with suppress(KeyboardInterrupt):  # once is enough
                self.stop(self.running, "interrupted")
                for job in waiting:
                    self.tell(job, NOT_STARTED, "interrupted")

    def start_or_skip(self, job: Job) -> bool:
        """Start the next job, or say why it is not started; False while it has to wait."""
        left = self.deadline - time.monotonic()
        if job.seconds > left:
            why = f"takes about {job.seconds:.0f} s, {max(left, 0):.0f} s were left"
            self.tell(job, NOT_STARTED, why)
            return True
        busy = [item.job for item in self.running]
        taken = job.gpu_gb + sum(other.gpu_gb for other in busy)
        alone = job.alone or any(other.alone for other in busy)
        if busy and (alone or len(busy) >= self.slots or taken > self.gpu_gb):
            return False
        if job.gpu_gb > self.gpu_gb:
            self.tell(job, NOT_STARTED, f"needs {job.gpu_gb:g} GB of GPU memory")
            return True
        if job.data:
            if (found := self.data()) is None:
                return False
            there, error = found
            if lacking := sorted(set(job.data) - there):
                why = f"needs the data set {', '.join(lacking)}" + (f": {error}" if error else "")
                self.tell(job, NOT_STARTED, why)
                return True
        self.start(job)
        return True

    def start(self, job: Job) -> None:
        log = self.out / "logs" / f"{job.name}.log"
        for folder in (log.parent, (self.out / job.result).parent):
            folder.mkdir(parents=True, exist_ok=True)
        cores = os.cpu_count() or 1
        threads = cores if job.alone else max(1, cores // self.slots)
        environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | self.environment
        environment |= {PARENT: str(os.getpid()), "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"}  # fmt: skip
        environment.pop("COMPANION_RECORD", None)
        arguments = command(job, self.out, self.device)
        with open(log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, *arguments], env=environment, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.running.append(Running(job, process, time.monotonic(), log))
        self.tell(job, RUNNING)

    def look(self) -> None:
        """Note the jobs that have ended; stop those that have taken too long."""
        now = time.monotonic()
        for item in list(self.running):
            if item.process.poll() is not None:
                self.running.remove(item)
                self.ended(item)
        longest = LONGEST.get(self.device.partition(":")[0], 3)
        late = [r for r in self.running if now - r.start > max(LEAST, longest * r.job.seconds)]
        self.stop(late, f"took more than {longest} times its estimate")
        if now >= self.deadline:
            self.stop(self.running, "the budget was spent")

    def ended(self, item: Running) -> None:
        self.states[item.job.name].seconds = round(time.monotonic() - item.start, 1)
        result = finished(item.job, self.out, self.device)
        if item.process.returncode == 0 and result:
            self.states[item.job.name].result = item.job.result
            self.states[item.job.name].gpu_mb = result.get("peak_memory", {}).get("gpu_mb")
            self.tell(item.job, DONE)
        else:
            self.tell(item.job, FAILED, self.last_words(item))

    def stop(self, items: Sequence[Running], why: str) -> None:
        """End these jobs, with all that they started."""
        items = list(items)
        for item in items:
            _signal(item.process, signal.SIGTERM)
        end = time.monotonic() + GRACE
        for item in items:
            with suppress(subprocess.TimeoutExpired):
                item.process.wait(max(0.0, end - time.monotonic()))
            _signal(item.process, signal.SIGKILL)
            item.process.wait()
            self.running.remove(item)
            self.states[item.job.name].seconds = round(time.monotonic() - item.start, 1)
            if item.process.returncode == 0:  # it ended just before
                self.ended(item)
            else:
                self.last_words(item)
                self.tell(item.job, CUT, why)

    def tell(self, job: Job, state: str, why: str = "") -> None:
        """Note how a job stands, in the summary and on the screen."""
        entry = self.states[job.name]
        entry.state, entry.why = state, why
        self.write()
        left = max(0.0, self.deadline - time.monotonic())
        with suppress(OSError):  # nobody reads on
            said = f"{job.name}: {state}{f' ({why})' if why else ''}"
            print(f"[{left:4.0f} s left] {said}", flush=True)

    def last_words(self, item: Running) -> str:
        """The last line of a job that broke off; what it left of a record goes to the logs."""
        job, said = item.job, []
        whole = self.out / job.result
        for part in whole.parent.glob(f"{whole.stem}*.part.*"):
            if part.suffix == ".json":
                with suppress(ValueError):
                    said = json.loads(part.read_text(encoding="utf-8")).get("said", [])
                part.replace(item.log.with_name(f"{job.name}.part.json"))
            else:
                part.unlink()
        if said:
            with open(item.log, "a", encoding="utf-8") as log:
                log.write("\n".join(["", *said, ""]))
        lines = item.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return (lines or [f"exit status {item.process.returncode}"])[-1][:300]

    def write(self) -> None:
        jobs = {name: vars(state) for name, state in self.states.items()}
        write_whole(self.out / "summary.json", to_json(self.about | {"jobs": jobs}))


def _signal(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a job's group, of which some may live though the job has ended."""
    with suppress(OSError):
        os.killpg(process.pid, number)


def command(job: Job, out: Path, device: str) -> list[str]:
    """The arguments of Python that run a job: a module or a file first."""
    result = out / job.result
    if job.script:
        return [str(ROOT / job.script), "--device", device, "--out", str(result)]
    given = job.given | {"device": device}
    options = [
        part
        for name, value in given.items()
        for part in ("-p", name, value if isinstance(value, str) else json.dumps(value))
    ]
    return ["companion", "record", job.stem, "--name", job.record, "--out", str(result.parent), *options]  # fmt: skip


def finished(job: Job, out: Path, device: str) -> dict | None:
    """The whole result of a job by the code as it is, for these parameters and this device."""
    try:
        result = json.loads((out / job.result).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict) or result.get("status") != "complete":
        return None
    if job.stem:
        current = fingerprint(chapters.find(job.stem))
        used, wanted = result.get("settings", {}), job.given | {"device": device}
        same = all(used.get(name) == value for name, value in wanted.items())
    else:
        current, same = code_fingerprint(job.script), result.get("device") == device
    return result if same and result.get("fingerprint") == current else None


def code_fingerprint(script: str) -> str:
    """sha256 over the library and the folder of a script below the project's root."""
    files = [*(ROOT / "src" / "companion").rglob("*.py"), *(ROOT / script).parent.glob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def chosen(names: Sequence[str], jobs: Sequence[Job] = JOBS) -> list[Job]:
    """The jobs of these names, in the order of the table; all of them for none.

    A name may be that of a chapter, for its jobs, or "tiny". Raises ValueError for others.
    """
    groups = {job.stem for job in jobs if job.stem} | {"tiny"}
    known = {job.name for job in jobs}
    for name in names:
        if name not in known | groups:
            raise ValueError(
                f"--only {name}: expected some of {', '.join(job.name for job in jobs)}, or all "
                f"those of {', '.join(sorted(groups))}"
            )
    wanted = set(names)
    return [
        job
        for job in jobs
        if not names or wanted & {job.name, job.stem, "tiny" if job.folder == "tiny" else ""}
    ]


def run(
    jobs: Sequence[Job],
    out: Path,
    *,
    budget_s: float,
    device: str = "cuda",
    data: Path | None = None,
    slots: int = 0,
) -> dict[str, State]:
    """Run jobs within a budget of seconds, counted from now; how each of them stands at the end.

    data: a folder that `companion gpu --prepare` made; None: the data root as it is.
    slots: jobs at once; 0: two fewer than there are cores.
    Raises ValueError for a device that is not there, BusyError for a folder in use.
    """
    deadline = time.monotonic() + budget_s - CLOSING
    place = pick_device(device)
    cores, on_gpu = os.cpu_count() or 1, place.type == "cuda"
    about = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "budget_s": budget_s,
        "device": device,
        "provenance": provenance(place),
    }
    busy = f"--out {out}: {{holder}} is writing there; wait, or take another folder"
    with ExitStack() as stack:
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(out / ".lock", busy))
        sweep_up(out)
        sets, environment = stack.enter_context(_data(data))
        lease = Lease(
            jobs, out, device, deadline, about=about, data=sets, environment=environment,
            slots=slots or max(1, cores - 2 if on_gpu else cores),
            gpu_gb=0.9 * _card_gb(place) if on_gpu else float("inf"),
        )  # fmt: skip
        lease.run()
        print(table(lease.states), flush=True)  # before anything is cleaned up
    return lease.states


def _card_gb(place) -> float:
    import torch

    return torch.cuda.get_device_properties(place).total_memory / 1e9


@contextmanager
def _data(archives: Path | None) -> Iterator[tuple[Callable, dict[str, str]]]:
    """A lease's `data`, and the environment in which a job finds them.

    Archives are unpacked beside the first jobs, into a folder that goes with the block.
    """
    if archives is None:

        def there() -> tuple[set[str], str]:
            from companion.data.catalogue import catalogue
            from companion.data.root import data_root

            root = data_root()
            return {name for name, set_ in catalogue().items() if set_.state(root) == "there"}, ""

        yield there, {}
        return
    from companion.runs.carry import unpack

    found: set[str] = set()
    errors: list[str] = []
    with scratch(_roomy()) as root:

        def work() -> None:
            try:
                unpack(archives, root, found.add)
            except Exception as error:  # the jobs without data go on
                errors.append(str(error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()

        def unpacked() -> tuple[set[str], str] | None:
            return None if thread.is_alive() else (found, "; ".join(errors))

        yield unpacked, {"COMPANION_DATA": str(root)}


def _roomy(memory: str = "/dev/shm", needed: int = 2**30) -> str:
    """A file system in memory with room for the data sets, or "": a disk takes minutes for them."""
    try:
        return memory if shutil.disk_usage(memory).free > needed else ""
    except OSError:
        return ""


def table(states: dict[str, State]) -> str:
    """How every job stands, a line each."""
    wide = max(map(len, states), default=0)
    lines = [f"{'job':{wide}}  {'state':11}  {'s':>6}  {'GPU MB':>7}"]
    for name, state in states.items():
        seconds = "" if state.seconds is None else f"{state.seconds:.0f}"
        memory = "" if state.gpu_mb is None else f"{state.gpu_mb:,}"
        lines.append(
            f"{name:{wide}}  {state.state:11}  {seconds:>6}  {memory:>7}  {state.why}".rstrip()
        )
    return "\n".join(lines)


def listing(jobs: Sequence[Job]) -> str:
    """The jobs, a line each: estimated seconds and memory, data, and what they show."""
    wide = max(len(job.name) for job in jobs)
    lines = [f"{'job':{wide}}  {'s':>4}  {'GB':>3}  (estimated for an H100)"]
    for job in jobs:
        more = [*(["alone"] if job.alone else []), *(f"data: {name}" for name in job.data)]
        told = f"{job.shows}{f' ({chr(44).join(more)})' if more else ''}"
        lines.append(f"{job.name:{wide}}  {job.seconds:4.0f}  {job.gpu_gb:3.0f}  {told}")
    return "\n".join(lines)


def keep_result(
    out: Path, script: str, device: str, content: dict[str, Any], status: str = "complete"
) -> None:
    """Write the result of a script, whole; `finished` knows it if its status is "complete"."""
    head: dict[str, Any] = {"status": status, "device": device}
    head["fingerprint"] = code_fingerprint(script)
    head |= {"provenance": provenance(device), "peak_memory": peak_memory()}
    write_whole(out, to_json(head | content))
