"""Run a chapter: in a kernel, or its code cells as a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from companion.files import sweep_up, write_whole
from companion.runs.chapters import code_cells, injected, read, tags
from companion.runs.fingerprint import fingerprint, outputs_seal

CELL_TIMEOUT = 3600  # seconds


def run(path: Path, given: dict[str, object], show: bool = True) -> tuple[str, str]:
    """Run a notebook with these values; return it as text, and what went wrong or "".

    The text of a run that failed ends with the failing cell. show: a progress bar.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from tqdm import tqdm

    from companion.runs import kernels

    notebook = nbformat.reads(json.dumps(read(path)), as_version=4)
    put_values(notebook, given)
    failure = ""
    with tqdm(total=len(notebook.cells), unit="cell", disable=not show) as bar:
        try:
            # here: a path among the parameters is the caller's
            asyncio.run(kernels.execute(notebook, Path.cwd(), tell=bar.update))
        except CellExecutionError as error:
            failure = f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            failure = "the kernel died: killed, or out of memory"
    return nbformat.writes(notebook) + "\n", failure


def put_values(notebook, given: dict[str, object]) -> None:
    """Put a cell of values after the parameters cell, as papermill does, for an earlier one."""
    import nbformat

    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in tags(cell)]
    if given:
        cell = nbformat.v4.new_code_cell(injected(given))
        cell.metadata["tags"] = ["injected-parameters"]
        first = next(n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first + 1, cell)


def refresh(path: Path) -> float:
    """Run a notebook with its defaults and store it with fresh outputs; return its CPU seconds.

    The stored form is canonical: two runs of the same code give the same bytes. Nothing is
    written if a cell raises or writes to stderr, or if the code changed while it ran.
    """
    return asyncio.run(_refresh(path))


def refresh_all(
    paths: Sequence[Path], jobs: int, tell: Callable[[Path, float | Exception], None]
) -> None:
    """Refresh several notebooks, `jobs` at once. Interrupted, it leaves no kernel behind.

    tell: called as each ends, with its CPU seconds or with what went wrong.
    """
    gate = asyncio.Semaphore(jobs)

    async def one(path: Path) -> None:
        async with gate:
            try:
                outcome = await _refresh(path)
            except Exception as error:
                outcome = error
        tell(path, outcome)

    async def every() -> None:
        await asyncio.gather(*map(one, paths))

    asyncio.run(every())


async def _refresh(path: Path) -> float:
    import nbformat

    from companion.runs import kernels

    sweep_up(path.parent)
    notebook = nbformat.reads(json.dumps(read(path)), as_version=4)
    before = notebook.metadata.get("companion", {})
    stamp = fingerprint(path)
    # a last cell asks the kernel for its CPU seconds: wall time would depend on what else runs
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    await kernels.execute(notebook, path.parent, CELL_TIMEOUT)
    seconds = round(float(notebook.cells.pop().outputs[0].text))
    if fingerprint(path) != stamp:
        raise RuntimeError(f"{path.name}: its code changed while it ran: run it again")
    if before.get("fingerprint") == stamp:  # the same code: keep the bytes
        seconds = before.get("seconds", seconds)

    complaints = [
        f"{path.name}, cell {number} wrote to stderr:\n{output.text}"
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    if complaints:
        raise RuntimeError("\n".join(complaints))
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem.replace('_', '-')}-{number:02d}"
        kept = {key: cell.metadata[key] for key in ("tags", "mystnb") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata = nbformat.from_dict(
        {
            "companion": {"fingerprint": stamp, "seconds": seconds},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat_minor = 5
    stored = json.loads(nbformat.writes(notebook))
    notebook.metadata.companion.outputs = outputs_seal(stored)
    write_whole(path, nbformat.writes(notebook) + "\n")
    return seconds


def script(path: Path, given: dict[str, object] | None = None) -> str:
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
