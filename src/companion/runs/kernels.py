"""Kernels of this interpreter with this library, whatever else Jupyter finds on the machine.

Imports Jupyter: only where a notebook is run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError

from companion.files import scratch
from companion.runs.processes import LIBRARY, PARENT, python_path

# the working folder comes first otherwise, and another `companion` may lie there
START = f"""import sys
sys.path[:] = [{str(LIBRARY.parent)!r}, *filter(None, sys.path)]
from companion.runs.processes import serve
serve({str(LIBRARY)!r})"""

LONGEST_SOCKET = 95  # characters of a folder: with the socket's name, 103 at most on macOS

QUIET = logging.getLogger("companion.runs.kernels")  # what goes wrong is raised
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False


class Kernel(AsyncKernelManager):
    """Starts this interpreter, with this checkout's library, free of the user's settings.

    No kernel specification, start-up file or IPython configuration is read, and nothing is
    written to the user's home. The kernel does not outlive this process.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-c", START, "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python", name="python3")

    async def start_kernel(self, **options) -> None:  # type: ignore[override]
        self._files = ExitStack()
        folder = self._files.enter_context(scratch())
        self.connection_file = str(folder / "kernel.json")
        if os.name == "posix" and len(str(folder)) < LONGEST_SOCKET:
            # sockets in a folder of ours: nobody else can reach them, and no two draw one port
            self.transport, self.ip = "ipc", str(folder / "k")
        given = options.pop("env", os.environ)
        (folder / "matplotlibrc").touch()
        options["env"] = environment(given) | {
            "IPYTHONDIR": str(folder / "ipython"),
            "MATPLOTLIBRC": str(folder / "matplotlibrc"),
        }
        if not os.access(Path.home(), os.W_OK):  # else matplotlib complains on stderr
            options["env"].setdefault("MPLCONFIGDIR", str(folder))
        await super().start_kernel(**options)

    async def shutdown_kernel(  # type: ignore[override]
        self, now: bool = False, restart: bool = False
    ) -> None:
        group = getattr(self.provisioner, "pgid", None)
        await super().shutdown_kernel(now, restart)
        if group:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)  # what the kernel had started

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        await super().cleanup_resources(restart)
        if not restart:
            self._files.close()


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """An environment for a kernel: this library first, figures as outputs, no start-up file.

    A backend that is set outside, as it often is on a machine without a display, would win over
    the kernel's own, and the notebook would come out without its figures.
    """
    dropped = {"MPLBACKEND", "PYTHONSTARTUP", "PYTHONSAFEPATH"}
    kept = {name: value for name, value in given.items() if name not in dropped}
    return kept | {"PYTHONPATH": python_path(), PARENT: str(os.getpid())}


async def execute(
    notebook, folder: Path, tell: Callable[[], object] = lambda: None, **options: object
) -> None:
    """Run a notebook's cells in a kernel of their own, in place; the kernel ends with it.

    folder: where the cells run. tell: called after each cell. options: of the kernel's process.
    Raises nbclient's CellExecutionError and DeadKernelError, and RuntimeError for a kernel that
    does not start.
    """
    kernel = Kernel()
    client = NotebookClient(notebook, km=kernel, timeout=None, record_timing=False, log=QUIET)
    done = False
    # not client.async_execute: that takes SIGINT and SIGTERM for itself
    try:
        await client.async_start_new_kernel(cwd=str(folder), **options)
        await client.async_start_new_kernel_client()
        for number, cell in enumerate(notebook.cells):
            await client.async_execute_cell(cell, number)
            tell()
        client.set_widgets_metadata()
        done = True
    except DeadKernelError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # nbclient takes the one for the other
            raise asyncio.CancelledError from None
        raise
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if kernel.has_kernel:
            await kernel.shutdown_kernel(now=not done)
        await kernel.cleanup_resources()
