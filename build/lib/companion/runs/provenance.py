"""What a run was: code, packages, machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from companion.files import ROOT

if TYPE_CHECKING:  # importing torch takes seconds: only where a function needs it
    import torch


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
