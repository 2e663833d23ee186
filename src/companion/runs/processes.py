"""Processes that have this library and do not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path


def python_path() -> str:
    """$PYTHONPATH for a child process, this library first."""
    src = str(Path(__file__).parents[2])
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
