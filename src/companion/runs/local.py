"""The scheduler and the workers of a sweep on this machine.

Everything listens on the loopback interface only, and talks over TLS with a certificate that is
made for the one sweep and kept in memory, because on a machine with several users the others
reach that interface too. A worker is a process of its own that is started anew when it dies. Its
standard input stays open as long as the sweep lives; when it closes, the worker ends its kernel
and itself, so nothing outlives a sweep that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TypeVar

from companion.runs import tls

T = TypeVar("T")

HOST = "127.0.0.1"
END_S = 5  # for a worker to end by itself
# the road to this module goes along, as it may come from anywhere
WORKER = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from companion.runs.local import work
work()
"""


class Crew:
    """The workers: a process each, started anew when it dies.

    environments: what each worker's environment has beside this process's.
    deaths: how often a worker had to be started anew. last_words: of the last that died.
    """

    def __init__(
        self, scheduler: str, secret: dict[str, str], environments: Sequence[dict[str, str]]
    ) -> None:
        self.scheduler, self.secret = scheduler, secret
        self.environments = environments
        self.deaths, self.last_words = 0, ""
        self.errors = [tempfile.TemporaryFile() for _ in environments]  # noqa: SIM115
        self.processes: list[subprocess.Popen] = []
        for place in range(len(environments)):
            self.processes.append(self._start(place))

    def _start(self, place: int) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", WORKER, json.dumps(sys.path)],
            env=os.environ | self.environments[place],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors[place],
            start_new_session=True,  # an interrupt from the keyboard is for the sweep alone
        )
        told = {"scheduler": self.scheduler, "secret": self.secret}
        with contextlib.suppress(BrokenPipeError):  # it died at once: that is seen later
            _stdin(process).write(json.dumps(told).encode() + b"\n")
            _stdin(process).flush()
        return process

    def mend(self) -> None:
        """Start the workers anew that have died."""
        for place, process in enumerate(self.processes):
            if process.poll() is None:
                continue
            self.deaths += 1
            self.last_words = self._said(place) or f"exit status {process.returncode}"
            with contextlib.suppress(OSError):
                _stdin(process).close()
            self.processes[place] = self._start(place)

    def _said(self, place: int) -> str:
        errors = self.errors[place]
        errors.seek(0)
        lines = errors.read().decode(errors="replace").strip().splitlines()
        errors.seek(0)
        errors.truncate()
        return lines[-1] if lines else ""

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):
                _stdin(process).close()
        end = time.monotonic() + END_S
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
            if process.poll() is None:
                _kill_below(process.pid)
                process.kill()
                process.wait()
        for errors in self.errors:
            errors.close()


def patiently(make: Callable[..., T], *args, **options) -> T:
    """Make a client or a cluster; twice, if its event loop did not start in time.

    `distributed` gives the thread of its event loop ten seconds to start, which a machine that
    stalls can overrun, and then fails an assertion.
    """
    for last in (False, True):
        try:
            return make(*args, **options)
        except AssertionError as error:
            if traceback.extract_tb(error.__traceback__)[-1].name != "_start_unlocked":
                raise
            if last:
                said = "Dask's event loop did not start: the machine is too busy; start it again"
                raise RuntimeError(said) from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def local_cluster(environments: Sequence[dict[str, str]]) -> Iterator[tuple[object, Crew]]:
    """A client of a scheduler in this process, and its workers; all end with the block."""
    import dask
    from distributed import Client, Scheduler, SpecCluster

    secret = tls.certificate()
    if not secret:
        print(
            "companion: there is no openssl that makes a certificate: the sweep's processes talk "
            "without encryption, and other users of this machine could send them code",
            file=sys.stderr,
        )
    security = _security(secret)
    options = {
        "host": HOST,
        "dashboard": False,
        "dashboard_address": f"{HOST}:0",
        "protocol": "tls://" if secret else "tcp://",
        "security": security,
    }
    with dask.config.set({"distributed.scheduler.http.routes": []}):
        cluster = patiently(
            SpecCluster,
            workers={},
            scheduler={"cls": Scheduler, "options": options},
            security=security,
            silence_logs=logging.CRITICAL,
        )
    try:
        crew = Crew(cluster.scheduler_address, secret, environments)
        try:
            with Client(cluster, set_as_default=False) as client:
                yield client, crew
        finally:
            crew.close()
    finally:
        cluster.close(timeout=20)


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None  # `_start` gave it a pipe
    return process.stdin


def _security(secret: dict[str, str]):
    from distributed import Security

    if not secret:
        return Security(require_encryption=False)
    return tls.security(secret["cert"], secret["cert"], secret["key"])


def gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls the NVIDIA GPUs that are visible, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = (device.strip() for device in visible.split(","))
        return tuple(name for name in names if name not in ("", "-1"))
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    count = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return tuple(str(number) for number in range(count))


# ---------------------------------------------------------------- in a worker's process


def work() -> None:
    """Be a worker of the scheduler that standard input names, until that closes."""
    told = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_the_sweep, daemon=True).start()
    try:
        asyncio.run(_serve(told["scheduler"], told["secret"]))
    finally:
        _kill_below(os.getpid())


async def _serve(scheduler: str, secret: dict[str, str]) -> None:
    import dask
    from distributed import Worker

    dask.config.set({"distributed.worker.http.routes": []})
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    worker = await Worker(
        scheduler,
        host=HOST,
        nthreads=1,
        memory_limit=0,
        dashboard=False,
        security=_security(secret),
    )
    await worker.finished()


def _end_with_the_sweep() -> None:
    os.read(sys.stdin.fileno(), 1)
    end = time.monotonic() + END_S / 2
    while time.monotonic() < end and _kill_below(os.getpid()):
        time.sleep(0.1)  # the run notices, and clears up behind its kernel
    os._exit(0)


def _kill_below(pid: int) -> int:
    """Kill everything that a process has started, directly or not; how many there were."""
    import psutil

    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return 0
    for process in below:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return len(below)
