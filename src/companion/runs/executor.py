"""Run a chapter: its notebook in a kernel, or its code cells as a script in a Python of their own.

The one place where cells are run, for `companion run`, `refresh`, `record` and the workers of a
sweep. What happens in a run is no exception here: it is the run's `Outcome`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.files import scratch, sweep_up, write_whole
from companion.notebook.recording import TARGET
from companion.runs.chapters import code_cells, injected, read, tags
from companion.runs.processes import PARENT, python_path

STARTS = 3  # tries to start a kernel: now and then two draw the same port
# threads of the numerical libraries
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    error: what went wrong, in one line; "" if nothing did. told: all that was said of it.
    missed: the error is that of a whole run in which an asserted claim came out otherwise.
    """

    error: str = ""
    told: str = ""
    missed: bool = False


def prepared(notebook: dict, given: dict[str, Any]):
    """A notebook to be run: without outputs, its values in a cell after the parameters cell.

    As papermill does, the cell takes the place of an earlier one. Returns nbformat's node.
    """
    import nbformat

    node = nbformat.reads(json.dumps(notebook), as_version=4)
    node.cells = [cell for cell in node.cells if "injected-parameters" not in tags(cell)]
    for cell in code_cells(node):
        cell.outputs, cell.execution_count = [], None
    if given:
        cell = nbformat.v4.new_code_cell(injected(given))
        cell.metadata["tags"] = ["injected-parameters"]
        first = next(n for n, cell in enumerate(node.cells) if cell.cell_type == "code")
        node.cells.insert(first + 1, cell)
    return node


async def in_kernel(
    notebook,
    folder: Path,
    *,
    limit_s: float = 0.0,
    threads: int = 0,
    quiet: bool = False,
    tell: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run what `prepared` gave in a kernel of its own, in place; the kernel ends with it.

    folder: where the cells run. limit_s: for all of them; 0 for none. threads: of the numerical
    libraries; 0 leaves them. quiet: drop what the kernel's process itself says. tell: called
    after each cell.
    """
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    from companion.runs.kernels import execute

    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    options = options if quiet else {}
    if threads:
        options["env"] = os.environ | dict.fromkeys(THREADS, str(threads))
    try:
        async with asyncio.timeout(limit_s or None):
            for left in reversed(range(STARTS)):
                try:
                    await execute(notebook, folder, tell, **options)
                    break
                except RuntimeError:  # DeadKernelError is one
                    if not left or any(cell.execution_count for cell in code_cells(notebook)):
                        raise
    except CellExecutionError as error:
        said = f"{error.ename}: {error.evalue}"
        return Outcome(said, str(error), error.ename == "ClaimError")
    except DeadKernelError:
        return _failed("the kernel died: killed, or out of memory")
    except TimeoutError:
        return _failed(f"ran past its time limit of {limit_s:g} s")
    except Exception as error:  # a kernel that does not start, a full disk
        return _failed(f"{type(error).__name__}: {error}")
    cells = code_cells(notebook)
    shown = (output.get("metadata", {}) for cell in cells for output in cell.outputs)
    return _finished(cells, [data.get("scrapbook", {}).get("name", "") for data in shown])


def _failed(error: str) -> Outcome:
    return Outcome(error, error)


def _finished(cells: Iterable[dict], recorded: Iterable[str]) -> Outcome:
    """The outcome of a run whose cells all ran: claims that no cell settled were not judged."""
    makes_claims = any(re.search(r"\bClaims\(", cell["source"]) for cell in cells)
    if makes_claims and not any(name.endswith(".claims") for name in recorded):
        return _failed("no cell calls claims.settle(): the claims were not recorded")
    return Outcome()


def run(path: Path, given: dict[str, Any], output: Path, *, show: bool = True) -> Outcome:
    """Run a copy of a notebook with these values, and write it, up to a cell that fails.

    show: a progress bar.
    """
    import nbformat
    from tqdm import tqdm

    sweep_up(output.parent)
    notebook = prepared(read(path), given)
    with tqdm(total=len(notebook.cells), unit="cell", disable=not show) as bar:
        # here: a path among the parameters is the caller's
        outcome = asyncio.run(in_kernel(notebook, Path.cwd(), tell=bar.update))
    write_whole(output, nbformat.writes(notebook) + "\n")
    return outcome


def as_script(path: Path, given: dict[str, Any], target: Path, after: str = "") -> Outcome:
    """Run a chapter's code cells in a Python of their own, without Jupyter.

    target: the file that takes what they record. after: code to run when they have run; what it
    prints is recorded as `printed`, a list of lines. The Python ends with this process, and so
    does all that it started.
    """
    with scratch() as folder:
        code = folder / f"{path.stem}.py"
        parts = [script(path, given), _PRINTED.format(after)] if after else [script(path, given)]
        code.write_text("\n".join(parts), encoding="utf-8")
        environment = os.environ | {
            TARGET: str(target.resolve()),
            PARENT: str(os.getpid()),
            "PYTHONPATH": python_path(),
            "PYTHONIOENCODING": "utf-8",  # the locale may not know what a chapter prints
            "MPLBACKEND": "Agg",
        }
        with subprocess.Popen(
            [sys.executable, str(code)], env=environment, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said = process.communicate()[1].strip()
            finally:
                with suppress(OSError):  # there is none
                    os.killpg(process.pid, signal.SIGKILL)
    if not process.returncode:
        kept = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
        return _finished(code_cells(read(path)), kept.get("values", {}))
    error = _raised(said) or f"exit status {process.returncode}"
    return Outcome(error, said, error.partition(":")[0].endswith(".ClaimError"))


def _raised(said: str) -> str:
    """The line that names the exception which ended a Python, or the last line it said.

    Below its traceback others may say something, and their own tracebacks, too.
    """
    lines = said.splitlines()
    found = lines[-1] if lines else ""
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else ""
        if line.startswith("Traceback (") and not before.startswith(("Exception ", "Error in ")):
            found = next((line for line in lines[number + 1 :] if line[:1].strip()), found)
    return found


_PRINTED = """# --- what follows the cells
import contextlib, io
_said = io.StringIO()
with contextlib.redirect_stdout(_said):
    exec({!r})
record("printed", _said.getvalue().splitlines())
"""


def script(path: Path, given: dict[str, Any] | None = None) -> str:
    """A notebook's code cells as a plain Python script, for machines without Jupyter.

    Figures with a name in their metadata and all recorded values go to the file that the
    variable COMPANION_RECORD names, as soon as they are there.
    """
    cells = [cell for cell in code_cells(read(path)) if cell["source"].strip()]
    parts = [
        f"# {path.name} as a script: written by `companion record`, not by hand\n"
        "import warnings\n"
        "import matplotlib\n"
        'matplotlib.use("Agg")\n'
        'warnings.filterwarnings("ignore", message=".*non-interactive.*")\n'
        "from companion.runs.records import keep_figure\n"
        "from companion.runs.processes import end_with_parent\n"
        "end_with_parent()\n"
        "In = []\n"
    ]
    for number, cell in enumerate(cells, 1):
        parts.append(_script_cell(cell["source"], f"cell {number} of {len(cells)}"))
        figure = cell["metadata"].get("mystnb", {}).get("figure")
        if figure:
            alt = cell["metadata"]["mystnb"].get("image", {}).get("alt", "")
            parts.append(
                f"keep_figure({figure['name']!r}, {figure.get('caption', '')!r}, {alt!r})\n"
            )
        if "parameters" in tags(cell):
            parts.append(_script_cell(injected(given or {}), "values set by hand"))
    # before the last cell: that one may raise, to say that a claim failed
    closing = (
        "from companion.notebook import record\n"
        "from companion.device import peak_memory\n"
        'record("peak_memory", peak_memory())\n'
    )
    parts.insert(-1, closing)
    return "\n".join(parts)


def _script_cell(source: str, title: str) -> str:
    return f"# --- {title}\nIn.append({source!r})\n{source}\n"
