"""Where a run happens and what it was: device, seeds, provenance, files that are whole."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import random
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds: only where a function needs it
    import torch

ROOT = Path(__file__).resolve().parents[2]


def pick_device(name: str = "auto") -> torch.device:
    """The device to run on; "auto" takes CUDA, else the CPU.

    MPS is taken only where it is asked for: it has no float64, which many chapters need.
    Raises ValueError, naming what there is, for a device that this machine lacks.
    """
    import torch

    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found.insert(0, "cuda")
    if name == "auto":
        return torch.device("cuda" if "cuda" in found else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in found or (device.index or 0) >= _count(device):
        raise ValueError(f"device = {name!r}: this machine has {', '.join(found)}")
    return device


def has_float64(device: torch.device | str) -> bool:
    """Whether a device has numbers of double precision; Apple's GPUs do not."""
    import torch

    if torch.device(device).type in ("cpu", "cuda"):  # here or not
        return True
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def _count(device: torch.device) -> int:
    import torch

    return torch.cuda.device_count() if device.type == "cuda" else 1


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes that start inside the block are workers: they run no script and record nothing.

    A process that multiprocessing spawns first imports its parent's `__main__`, that is, it runs
    an exported script from the top, which starts processes again and writes the record that
    COMPANION_RECORD names. Inside the block there is no such module and no such variable. What
    workers are given has to be importable from elsewhere.
    """
    main, record = sys.modules["__main__"], os.environ.pop("COMPANION_RECORD", None)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if record is not None:
            os.environ["COMPANION_RECORD"] = record


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python's and torch's global generators and return a CPU generator of its own.

    Draw from the returned generator; the global state is for modules that initialise
    themselves.
    """
    import torch

    random.seed(seed)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def peak_memory() -> dict[str, int]:
    """Peak memory in MB so far: of this process, and of the GPU where torch uses one."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak["gpu_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return peak


class Progress:
    """A progress bar: tqdm in a terminal, one line that updates itself in a notebook.

    Where tqdm is absent nothing is shown. The notebook's line ends as "<done> <what>", so a
    stored output is the same every time.

    >>> with Progress(2, "steps") as bar:
    ...     bar.update()
    ...     bar.update()
    """

    def __init__(self, total: int, what: str, *, show: bool = True) -> None:
        self.total, self.what, self.done = total, what, 0
        self.start = self.shown = time.monotonic()
        self.line = self.bar = None
        if not show:
            return
        if "ipykernel" in sys.modules:
            from IPython.display import display

            self.line = display(self, display_id=True)
        else:
            with suppress(ImportError):  # a GPU machine may lack it
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc=what, mininterval=1.0)

    def update(self, steps: int = 1) -> None:
        """Count some steps as done."""
        self.done += steps
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(steps)
        elif self.line is not None and now - self.shown > 0.5:
            self.shown = now
            self.line.update(self)

    def __repr__(self) -> str:
        if self.done >= self.total:
            return f"{self.done} {self.what}"
        left = (time.monotonic() - self.start) / max(self.done, 1) * (self.total - self.done)
        filled = round(24 * self.done / self.total)
        return f"[{'#' * filled}{'.' * (24 - filled)}] {self.done}/{self.total} {self.what}, {left:.0f} s left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.line is not None:
            self.line.update(self)


def provenance(device: torch.device | str = "cpu") -> dict[str, object]:
    """What a reader needs to judge or repeat a run: code, packages, machine.

    Without git, as in an archive of the project, the commit is $COMPANION_COMMIT, and whether
    the code was changed since is None: not known.
    Raises ValueError for a $COMPANION_COMMIT that is no commit.
    """
    import torch

    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    packages = {}
    for package in ("torch", "torchvision", "numpy", "scikit-learn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:  # a GPU box may lack one
            packages[package] = "absent"
    commit, changed = _commit()
    return {
        "commit": commit,
        "changed_since_commit": changed,
        "python": platform.python_version(),
        "packages": packages,
        "device": device.type,
        "hardware": name,
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def _commit() -> tuple[str, bool | None]:
    """The commit of the code, "" if not known, and whether the code was changed since."""
    top = _git("rev-parse", "--show-toplevel")
    if top is not None and Path(top).resolve() == ROOT:  # and not of a repository around it
        commit = _git("rev-parse", "--short=12", "HEAD")
        status = _git("status", "--porcelain", "--", "src", "notebooks")
        if commit and status is not None:
            return commit, bool(status)
    given = os.environ.get("COMPANION_COMMIT", "")
    if not re.fullmatch("([0-9a-f]{7,64})?", given):
        raise ValueError(f"COMPANION_COMMIT = {given!r}: expected 7 to 64 digits of a commit")
    return given[:12], None


def _git(*arguments: str) -> str | None:
    """What git says; None where it cannot."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


PART = ".companion.part"  # ends the name of every file that is being written


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file so that readers see the old content or all of the new, never a part.

    A file that is there keeps its mode, a link stays and what it names is written. What a killed
    writer leaves, `sweep_up` removes from the folder of the file.
    Raises OSError, which names the file, also for a device or a pipe: these cannot be replaced.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode(path)
        with _own(lambda: _new_part(target)) as part:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(part, mode)
            os.replace(part, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _mode(path: Path | str) -> int | None:
    """The permissions of the file that a path names; None if there is none yet."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not an ordinary file")
    return stat.S_IMODE(mode)


def _new_part(path: Path) -> tuple[int, str]:
    """A new file beside the path, with the permissions that the user wants new files to have."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), str(part)


def check_writable(folder: Path | str) -> None:
    """Raise OSError, which names the folder, where no file can be made in it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from None


def sweep_up(folder: Path | str) -> None:
    """Remove what killed writers left in a folder: our parts that no process holds."""
    for part in Path(folder).glob(f".*{PART}"):
        _remove_unheld(part)


@contextmanager
def scratch(where: str = "") -> Iterator[Path]:
    """A temporary folder that goes with the block; those of killed processes go first.

    where: the folder around it; that of the system if empty.
    """
    where = where or tempfile.gettempdir()
    for left in Path(where).glob("companion-scratch-*"):
        _remove_unheld(left)

    def make() -> tuple[int, str]:
        folder = tempfile.mkdtemp(prefix="companion-scratch-", dir=where)
        return os.open(folder, os.O_RDONLY), folder

    with _own(make) as folder:
        yield Path(folder)


@contextmanager
def _own(make: Callable[[], tuple[int, str]]) -> Iterator[str]:
    """Make a file or folder, hold it while the block runs, then remove what is left of it.

    make: returns an open descriptor of it and its name.
    """
    import fcntl

    while True:
        handle, name = make()
        with suppress(OSError):  # a file system without locks: then nobody sweeps, either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_open(handle, name):
            break
        os.close(handle)  # swept up before we held it
    try:
        yield name
    finally:
        _remove(name)
        os.close(handle)


def _remove_unheld(path: Path) -> None:
    """Remove a file or folder of ours, a link never, unless a process holds it."""
    import fcntl

    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        finally:
            os.close(handle)


def _remove(path: Path | str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)


def _is_open(handle: int, path: Path | str) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


class BusyError(RuntimeError):
    """Raised where another process holds what only one may use at a time."""


@contextmanager
def locked(file: Path | str, busy: str) -> Iterator[int]:
    """Hold a lock while the block runs; it goes with the process, however that ends.

    file: the lock, removed afterwards. busy: the message if it is held, in which "{holder}"
      becomes the process that does.
    Gives a descriptor: a child process that inherits it holds the lock as well.
    Raises BusyError if the lock is held, FileExistsError for a file of that name that is no lock
    of ours, and OSError, which names the file, where it cannot be made or locked.
    """
    import fcntl

    def foreign() -> OSError:
        return OSError(errno.EEXIST, "is no lock of ours, and stays; move it away", str(file))

    def opener(name: str, flags: int) -> int:
        if os.path.islink(name):
            raise foreign()
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    while True:
        with open(file, "a+", encoding="utf-8", errors="replace", opener=opener) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except BlockingIOError:
                free = False
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot be locked: {error.strerror}", str(file)
                ) from None
            lock.seek(0)
            holder = lock.read(300)
            if holder and not re.fullmatch(r"process \d+ on .*", holder):
                raise foreign()
            if not free:
                raise BusyError(busy.replace("{holder}", holder or "another process"))
            if not _is_open(lock.fileno(), file):
                continue  # its holder has just removed it
            with suppress(OSError):  # only for the message above
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {platform.node()}")
                lock.flush()
            try:
                yield lock.fileno()
            finally:
                if _is_open(lock.fileno(), file):
                    _remove(file)
            return


def python_path() -> str:
    """$PYTHONPATH for a child process, this library first."""
    src = str(Path(__file__).parents[1])
    return os.pathsep.join([src, *filter(None, [os.environ.get("PYTHONPATH")])])


PARENT = "COMPANION_PARENT"  # the process that a child is not to outlive


def end_with_parent() -> None:
    """Kill this process group once the process that $COMPANION_PARENT names is gone.

    For the leader of a group that was started by it; the variable is not handed on.
    """
    parent = os.environ.pop(PARENT, "")
    if not parent:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.3)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def to_json(value: object) -> str:
    """Readable JSON in the order given, six digits a float; NaN and infinity become null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def seal(content: object) -> str:
    """sha256 of what `to_json` writes, but for a key ``seal``: tells whether a file was edited."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(to_json(content).encode()).hexdigest()


def _plain(value: object) -> object:
    if hasattr(value, "tolist"):  # tensors, arrays, numpy's scalars
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
