"""The device a run computes on, its seeds, its memory, its processes."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes seconds: only where a function needs it
    import torch


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
