"""Processes that have this library and do not outlive the one that started them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

LIBRARY = Path(__file__).parents[1]
PARENT = "COMPANION_PARENT"  # the process that a child is not to outlive


def python_path() -> str:
    """$PYTHONPATH for a child process, this library first."""
    return os.pathsep.join([str(LIBRARY.parent), *filter(None, [os.environ.get("PYTHONPATH")])])


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


def serve(library: str) -> None:
    """In the kernel's process: check whose library it has, then be a kernel."""
    from ipykernel.kernelapp import IPKernelApp

    if Path(library) != LIBRARY:
        sys.exit(f"the kernel would run the library in {LIBRARY}, not that in {library}")

    class Server(IPKernelApp):
        def load_config_file(self, *_, **__) -> None:
            """Reads no configuration, neither the user's nor the machine's."""

        def start(self) -> None:
            """Ends the control thread before the one that sends what it has to say.

            ipykernel ends them the other way round, and now and then the kernel's last word is
            a traceback.
            """
            super().start()
            if self.control_thread and self.control_thread.is_alive():
                self.control_thread.stop()
                self.control_thread.join()

    end_with_parent()
    Server.launch_instance()
