"""Shared by all tests: one thread, where real data lies, Dask as processes of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import matplotlib
import pytest
import torch

from companion.files import ROOT

torch.set_num_threads(1)
matplotlib.use("Agg")
# how long an example takes says something of the machine's load only
hypothesis.settings.register_profile(
    "companion", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("companion")
# started in the background of a script, or by nohup: what the tests start is to stop all the same
for ignored, usual in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(ignored) == signal.SIG_IGN:
        signal.signal(ignored, usual)


# Files that take a minute or more: begun last, one of them would keep a single worker busy.
LONGEST = (
    "test_sweep.py", "test_pretend_gpu.py", "sparse_inr.ipynb", "masked_kd.ipynb",
    "visual_compiler.ipynb", "desire.ipynb", "learn_to_pay_attention.ipynb",
    "data_parallelism.ipynb", "signal_propagation.ipynb", "test_executor.py",
    "test_data_parallelism.py", "snip.ipynb", "spreme.ipynb", "fictitious_play.ipynb",
    "test_records.py", "test_masked_kd.py", "test_gpu.py", "test_signal_propagation.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first; `-m real_data` picks the tests that use the fixture of that name."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.fixture(autouse=True, scope="module")
def no_windows():
    """Figures are drawn into memory, by what a test starts too; kernels of nbval show theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLBACKEND", "Agg")
        yield


@pytest.fixture(scope="session")
def is_alive():
    """Whether a process runs; one that is dead and not yet waited for does not."""

    def alive(pid: int) -> bool:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except ProcessLookupError:
            return False
        except OSError:
            return not os.path.isdir("/proc/self")  # no /proc here, or gone in between
        return state != "Z"

    return alive


@pytest.fixture(scope="session")
def precision_switches():
    """For tests that set PyTorch's switches of precision part by part."""
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("PyTorch before 2.9 has other switches of precision")


@pytest.fixture(scope="session")
def real_data():
    """The data root with real sets; tests that need it are skipped where there is none."""

    def need(folder: str) -> Path:
        root = os.environ.get("COMPANION_DATA", "")
        if not root or not (Path(root) / folder).is_dir():
            pytest.skip(f"real data not here: set COMPANION_DATA to a folder with {folder}/")
        return Path(root)

    return need


@pytest.fixture(scope="session")
def dask_processes(tmp_path_factory):
    """Start a scheduler and workers, a process each, on loopback; gives the scheduler's address.

    options: more of them, for both. started: a list that is given the processes.
    """

    @contextmanager
    def start(workers=1, options=(), started=()):
        file = tmp_path_factory.mktemp("dask") / "scheduler.json"
        common = ["--scheduler-file", str(file), "--no-dashboard", *options]
        quiet = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
        scheduler = ["distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1"]
        parts = [scheduler] + workers * [["distributed.cli.dask_worker", "--nthreads", "1"]]
        processes = started if isinstance(started, list) else []
        try:
            for module, *own in parts:
                line = [sys.executable, "-m", module, *common, *own]
                processes.append(subprocess.Popen(line, **quiet))
                end = time.monotonic() + 60
                # the scheduler makes the file and then writes it: workers and we need all of it
                while not (file.exists() and file.read_text().rstrip().endswith("}")):
                    assert time.monotonic() < end, "no scheduler after a minute"
                    time.sleep(0.05)
            yield json.loads(file.read_text())["address"]
        finally:
            for process in reversed(processes):
                process.send_signal(signal.SIGCONT)
                process.terminate()
                process.wait(20)

    return start


@pytest.fixture(scope="session")
def tls(tmp_path_factory):
    """A certificate, and one of someone else, made as the book says."""
    if not shutil.which("openssl"):
        pytest.skip("certificates cannot be made here: there is no openssl")
    text = (ROOT / "book" / "sweeps.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("openssl req"))
    made = []
    for name in ("ours", "theirs"):
        folder = tmp_path_factory.mktemp(name)
        subprocess.run(line.split(), cwd=folder, check=True, capture_output=True)
        made.append((folder / "cert.pem", folder / "cert.pem", folder / "key.pem"))
    return made
