"""Whether a change of the code changes what a chapter gives: its default run with an earlier
commit's code and with today's, one after the other on this machine.

Between machines the last digits differ, so that stored outputs alone cannot tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from companion.files import ROOT, scratch, unpack, write_whole
from companion.notebook.claims import natural
from companion.runs.chapters import code_cells, joined, read, recorded_values
from companion.runs.processes import LIBRARY, PARENT

CLAIMS = ".claims"  # ends the name under which `Claims.settle` records the verdicts
ROUNDS = 5  # a rounded time may be the same in some runs by chance
ABSENT = object()
Look = Callable[[dict], Iterator[tuple[tuple, Any]]]
# the earlier library may be older than its own way to end with its parent
CHILD = """\
import contextlib, runpy
with contextlib.suppress(ImportError):
    from companion.runs.processes import end_with_parent
    end_with_parent()
runpy.run_module("companion", run_name="__main__", alter_sys=True)
"""


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own.

    Raises ValueError for what is no commit here.
    """

    def git(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)

    try:
        found = git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}")
    except FileNotFoundError:
        raise ValueError(f"against = {commit!r}: needs git, which is not here") from None
    top = git("rev-parse", "--show-toplevel").stdout.strip()
    if found.returncode or Path(top).resolve() != ROOT:  # nor of a repository around it
        raise ValueError(f"against = {commit!r}: expected a commit of this checkout")
    with scratch() as folder:
        archive, tree = folder / "tree.tar", folder / "tree"
        packed = git("archive", "--output", str(archive), found.stdout.strip())
        if packed.returncode:
            raise ValueError(f"against = {commit!r}: {packed.stderr.strip()}")
        try:
            unpack(archive, tree)
        except (OSError, tarfile.TarError) as error:
            raise ValueError(f"against = {commit!r}: cannot be unpacked: {error}") from error
        yield tree


def check(paths: Sequence[Path], tree: Path) -> None:
    """Raise ValueError unless these chapters can be compared with those of the tree."""
    if not paths:
        raise ValueError("against: expected the names of notebooks to compare")
    for path in paths:
        if not path.is_relative_to(ROOT) or not (tree / path.relative_to(ROOT)).is_file():
            raise ValueError(f"against: {path.name} is not there in the earlier commit")


def compare(paths: Sequence[Path], tree: Path, jobs: int) -> Iterator[tuple[Path, str]]:
    """What of chapters differs from an earlier tree: one line each.

    Where only the library changed, all that the code cells show is compared, and they are named,
    counted from 1. Where claims changed as well, cells that show these are left out; where cells
    did, all are. In their place stands all that the earlier chapter recorded by name, on which
    verdicts, prose and records stand.

    paths: chapters that were refreshed just now. Where all is the same, the earlier code, and what
    was like it, is listed in the notebook, and runs made with it are not called stale
    (`fingerprint.standing`); where some differs, it is listed no more. A value that differs
    between runs of the earlier code and between runs of today's, such as a time, does not count;
    up to four more runs of each are made to see that.

    Raises RuntimeError for chapters that do not run.
    """
    news = {path: [read(path)] for path in paths}
    earlier = {path: read(tree / path.relative_to(ROOT)) for path in paths}
    looks: dict[Path, Look] = dict.fromkeys(paths, _shown)
    for path in paths:
        if _sources(earlier[path]) != _sources(news[path][0]):
            looks[path] = _recorded
        elif _claims(tree, path) != _claims(ROOT, path):
            looks[path] = _but_claims
    then = {path: tree / path.relative_to(ROOT) for path in paths}
    today = {path: tree.parent / "today" / path.name for path in paths}
    olds = {path: [run] for path, run in _rerun(then, tree / "src", jobs).items()}
    for left in reversed(range(ROUNDS)):
        found = {path: _differing(olds[path], news[path], looks[path]) for path in paths}
        doubtful = [path for path, (_, undecided) in found.items() if undecided]
        if not (left and doubtful):
            break
        for path in doubtful:
            write_whole(today[path], path.read_bytes())
        for runs, places, library in ((olds, then, tree / "src"), (news, today, LIBRARY.parent)):
            for path, run in _rerun({p: places[p] for p in doubtful}, library, jobs).items():
                runs[path].append(run)
    for path in paths:
        code, old = _about(olds[path][0])["fingerprint"], _about(earlier[path])
        like = {code, *(old.get("alike", []) if old.get("fingerprint") == code else [])}
        differ, _ = found[path]
        _note(path, news[path][0], like, bool(differ))
        same, other = TOLD[looks[path]]
        names = ", ".join(sorted({str(_place(road)) for road in differ}, key=natural))
        yield path, f"{other} {names}" if differ else same


def _rerun(places: Mapping[Path, Path], library: Path, jobs: int) -> dict[Path, dict]:
    """The notebooks that lie at these places, run and stored there by a library."""
    around = filter(None, [str(library), os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, "refresh", *map(str, places.values()), "--jobs", str(jobs)],
        cwd=next(iter(places.values())).parent,  # `-c` looks there for modules first
        env=os.environ | {"PYTHONPATH": os.pathsep.join(around), PARENT: str(os.getpid())},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        raise RuntimeError(f"with the library in {library}:\n{done.stderr}")
    return {path: read(place) for path, place in places.items()}


def _about(notebook: dict) -> dict[str, Any]:
    return notebook["metadata"].get("companion", {})


def _sources(notebook: dict) -> list[str]:
    return [cell["source"] for cell in code_cells(notebook)]


def _claims(tree: Path, path: Path) -> Any:
    """What the file of a chapter's claims says, of which its cells show the words."""
    import yaml

    file = tree / "src" / "companion" / "papers" / path.stem / "claims.yaml"
    return yaml.safe_load(file.read_bytes()) if file.is_file() else None


def _differing(olds: Sequence[dict], news: Sequence[dict], look: Look) -> tuple[set[tuple], bool]:
    """Where the first runs of two codes differ, but for what differs between runs of either; and
    whether more runs may show it all to be such noise. look: what of a run is compared.
    """
    old, new = ([dict(look(run)) for run in runs] for runs in (olds, news))
    # what is recorded besides, or claimed, moves nothing
    there = {_place(road) for road in old[0]}
    new = [
        {road: part for road, part in run.items() if type(road[0]) is int or _place(road) in there}
        for run in new
    ]

    def seen(runs: list[dict], road: tuple) -> int:
        return len({run.get(road, ABSENT) for run in runs})

    noisy = {
        road
        for road in old[0].keys() | new[0].keys()
        if 1 not in (seen(old, road), seen(new, road))
    }
    moved = {road for road in old[0].keys() | new[0].keys() if seen([old[0], new[0]], road) > 1}
    differ = moved - noisy
    # a rounded time that has not moved yet stands in a cell, or a table, in which another has
    places = {place for place, *_ in noisy}
    return differ, bool(differ) and (len(olds) == 1 or all(p in places for p, *_ in differ))


def _place(road: tuple) -> Any:
    """The cell, or the name of the value or the claim, that a road leads to."""
    return " ".join(map(str, road[:2])) if str(road[0]).endswith(CLAIMS) else road[0]


def _recorded(notebook: dict) -> Iterator[tuple[tuple, Any]]:
    """All that the cells record by name, verdicts by the ids of their claims."""
    for name, value in recorded_values(notebook).items():
        if name.endswith(CLAIMS):
            with suppress(TypeError, KeyError):  # somebody's own value of such a name
                value = {verdict["id"]: verdict for verdict in value}
        yield from _leaves((name,), value)


def _but_claims(notebook: dict) -> Iterator[tuple[tuple, Any]]:
    yield from _recorded(notebook)
    yield from _shown(notebook, without="claims.")


def _shown(notebook: dict, without: str = "") -> Iterator[tuple[tuple, Any]]:
    """All that the outputs hold, texts word by word; but for listings of the library's source.

    without: leave out the outputs of cells with this text.
    """
    for number, cell in enumerate(code_cells(notebook), 1):
        if without and without in cell["source"]:
            continue
        lists = "show_source(" in cell["source"]
        for place, output in enumerate(joined(cell["outputs"])):
            text = "".join(output.get("data", {}).get("text/markdown", ""))
            if not (lists and text.startswith("```python")):
                yield from _leaves((number, place), output)


# by what is compared: what is said of chapters where all is the same, and where some differs
TOLD: dict[Look, tuple[str, str]] = {
    _shown: ("the same results", "other results in code cells"),
    _but_claims: ("the same results, by changed claims", "other results:"),
    _recorded: ("the same values, by changed cells", "other values:"),
}


def _leaves(road: tuple, value: Any) -> Iterator[tuple[tuple, Any]]:
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "".join(value)  # as notebooks store a text
    if isinstance(value, str):
        words = value.split() or [""]
        yield from (((*road, place), word) for place, word in enumerate(words))
    elif isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in items:
            yield from _leaves((*road, key), part)
    else:
        yield road, value if value or isinstance(value, (int, float)) else str(value)


def _note(path: Path, compared: dict, codes: set[str], differ: bool) -> None:
    """List codes in a notebook as alike, or take them out."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    about, was = notebook.metadata.companion, _about(compared)
    if (about.fingerprint, about.outputs) != (was["fingerprint"], was["outputs"]):
        raise RuntimeError(f"{path.name} changed while it was compared: run it again")
    listed = set(about.get("alike", []))
    about.alike = sorted((listed - codes if differ else listed | codes) - {about.fingerprint})
    write_whole(path, nbformat.writes(notebook) + "\n")
