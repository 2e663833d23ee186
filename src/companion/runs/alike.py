"""Whether a change of the library changes what a chapter gives: its default run with an earlier
commit's code and with today's, one after the other on this machine.

Between machines the last digits differ, so that stored outputs alone cannot tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from companion.files import ROOT, scratch, write_whole
from companion.runs.chapters import code_cells, read


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own.

    Raises ValueError for what is no commit here.
    """
    with scratch() as folder:
        archive = folder / "tree.tar"
        git = ["git", "-C", str(ROOT), "archive", "--output", str(archive), commit, "--"]
        done = subprocess.run(git, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"against = {commit!r}: expected a commit: {done.stderr.strip()}")
        with tarfile.open(archive) as files:
            files.extractall(folder / "tree", filter="data")
        yield folder / "tree"


def judge(path: Path, tree: Path) -> list[int]:
    """The code cells, counted from 1, whose results differ from those of an earlier tree.

    path: a chapter that was refreshed just now. Where all are the same, the earlier code, and what
    was like it, is listed in the notebook, and runs made with it are not called stale
    (`fingerprint.standing`). A cell whose results differ between two runs of the earlier code, as
    those that tell the time do, does not count.

    Raises ValueError for a chapter that the tree lacks or whose cells are others, RuntimeError if
    it does not run.
    """
    new, earlier = read(path), tree / path.relative_to(ROOT)
    if not earlier.is_file():
        raise ValueError(f"{path.name}: not there in the earlier commit")
    stored = read(earlier)["metadata"].get("companion", {})
    first = _rerun(earlier, tree)
    if [c["source"] for c in code_cells(first)] != [c["source"] for c in code_cells(new)]:
        raise ValueError(f"{path.name}: its cells have changed, not only the library below them")
    differ = _differing(first, new)
    if differ:
        differ -= _differing(first, _rerun(earlier, tree))
    if not differ:
        made = first["metadata"]["companion"]["fingerprint"]
        before = stored.get("alike", []) if stored.get("fingerprint") == made else []
        _list(path, {made, *before})
    return sorted(differ)


def _rerun(notebook: Path, tree: Path) -> dict:
    """The notebook, run and stored by the tree's own library."""
    done = subprocess.run(
        [sys.executable, "-m", "companion", "refresh", str(notebook)],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{notebook.name} does not run with the earlier code:\n{done.stderr}")
    return read(notebook)


def _differing(one: dict, other: dict) -> set[int]:
    pairs = zip(code_cells(one), code_cells(other), strict=True)
    return {n for n, (a, b) in enumerate(pairs, 1) if _results(a) != _results(b)}


def _results(cell: dict) -> list[Any]:
    """Outputs of a cell but for listings, which show the library's code and not what it gives."""

    def lists(output: dict) -> bool:
        return "".join(output.get("data", {}).get("text/markdown", "")).startswith("```python")

    return [output for output in cell["outputs"] if not lists(output)]


def _list(path: Path, codes: set[str]) -> None:
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    about = notebook.metadata.companion
    about.alike = sorted({*about.get("alike", []), *codes} - {about.fingerprint})
    write_whole(path, nbformat.writes(notebook) + "\n")
