"""Where a run happens and what it was: device, seeds, provenance, files that are whole."""

from __future__ import annotations

import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds: only where a function needs it
    import torch

ROOT = Path(__file__).resolve().parents[2]


def pick_device(name: str = "auto") -> torch.device:
    """The device to run on; "auto" takes CUDA, then MPS, then the CPU.

    Raises ValueError, naming what there is, for a device that this machine lacks.
    """
    import torch

    found = ["cpu"]
    if torch.backends.mps.is_available():
        found.insert(0, "mps")
    if torch.cuda.is_available():
        found.insert(0, "cuda")
    if name == "auto":
        return torch.device(found[0])
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


@contextmanager
def deterministic(device: torch.device | str = "cpu") -> Iterator[None]:
    """Bit-reproducible kernels inside the block: one CPU thread, deterministic algorithms.

    On CUDA, TF32 is off inside the block as well.
    """
    import torch

    threads = torch.get_num_threads()
    flag = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if torch.device(device).type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(flag, warn_only=warn_only)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


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

    The notebook's line ends as "<done> <what>", so a stored output is the same every time.

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
    """What a reader needs to judge or repeat a run: code, packages, machine."""
    import torch

    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    packages = {}
    for package in ("torch", "torchvision", "numpy", "scikit-learn"):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:  # a GPU box may lack one
            packages[package] = "absent"
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--", "src", "notebooks")),
        "python": platform.python_version(),
        "packages": packages,
        "device": device.type,
        "hardware": name,
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model}, {os.cpu_count()} cores"


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file so that readers see the old content or all of the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def to_json(value: object) -> str:
    """Readable JSON in the order given, six digits a float; NaN and infinity become null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
