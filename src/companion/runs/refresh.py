"""Store a chapter with the outputs of its default run, in a form that is the same every time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from companion.files import sweep_up, write_whole
from companion.runs.chapters import code_cells, joined, parse, read
from companion.runs.executor import in_kernel, prepared
from companion.runs.fingerprint import fingerprint, stamp

LIMIT_S = 3600  # for a run with the defaults


def refresh(path: Path) -> float:
    """Run a notebook with its defaults and store it with fresh outputs; return its CPU seconds.

    The stored form is canonical: two runs of the same code give the same bytes. Nothing is
    written, and RuntimeError raised, if a cell raises or writes to stderr, or if the code changed
    while it ran.
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
                outcome: float | Exception = await _refresh(path)
            except Exception as error:
                outcome = error
        tell(path, outcome)

    async def every() -> None:
        await asyncio.gather(*map(one, paths))

    asyncio.run(every())


async def _refresh(path: Path) -> float:
    import nbformat

    sweep_up(path.parent)
    stored = read(path)
    before, code = stored["metadata"].get("companion", {}), fingerprint(path)
    notebook = prepared(stored, {})
    # a last cell asks the kernel for its CPU seconds: wall time would depend on what else runs
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    outcome = await in_kernel(notebook, path.parent, limit_s=LIMIT_S)
    if outcome.error:
        raise RuntimeError(outcome.told)
    seconds = round(float(notebook.cells.pop().outputs[0].text))
    if fingerprint(path) != code:
        raise RuntimeError(f"{path.name}: its code changed while it ran: run it again")
    if before.get("fingerprint") == code:  # the same code: keep the bytes
        seconds = before.get("seconds", seconds)
    complaints = [
        f"{path.name}, cell {number} wrote to stderr:\n{output.text}"
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    if complaints:
        raise RuntimeError("\n".join(complaints))
    write_whole(path, _canonical(notebook, path, stored, seconds))
    return seconds


def _canonical(notebook, path: Path, before: dict, seconds: float) -> str:
    """The text of an executed notebook: cells numbered, metadata reduced to what is ours."""
    import nbformat

    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem.replace('_', '-')}-{number:02d}"
        kept = {key: cell.metadata[key] for key in ("tags", "mystnb") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
    for count, cell in enumerate(code_cells(notebook), 1):
        cell.execution_count = count
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat_minor = 5
    made = stamp(parse(nbformat.writes(notebook), path.name), path.name, before)
    notebook.metadata.companion = nbformat.from_dict(made | {"seconds": seconds})
    return nbformat.writes(notebook) + "\n"
