"""The number that says what a chapter's outputs depend on."""

import inspect
import json
import os
import shutil
import subprocess

import pytest
from tiny import tiny_notebook

from companion.files import ROOT
from companion.runs import chapters, fingerprint

PACKAGE = {
    "__init__.py": "",
    "notebooks.py": "",
    "room.py": "from companion.other import x\nfrom companion.data import load\n",
    "other.py": 'x = 1\ntext = """\n# no comment\n"""\n',
    "unused.py": "",
    "data/__init__.py": "from .table import load\n",
    "data/table.py": "load = f'{1:>{2}} # {{}}'\n",
    "data/a.csv": "1,2\n",
    "data/more/b.npz": "\0\1",
    "data/notes.md": "",
    "papers/__init__.py": "",
    "papers/zoo.py": "z = 1\n",
    "papers/weights.bin": "w",
    "apart/__init__.py": "",
    "apart/c.csv": "3\n",
}
CELLS = ["import companion.room\nfrom companion.papers import zoo", "x = 1", "y = 2", "'shown'"]
# file or cell, what stands there now, what instead: what changes the outcome ...
CHANGES = [
    ("other.py", "x = 1", "x = 2"),
    ("other.py", "# no comment", "# another text"),
    ("other.py", "# no comment", "#no comment"),
    ("other.py", "x = 1", "if x:\n    x = 1"),
    ("other.py", "x = 1\n", "x = 1; "),
    ("data/__init__.py", "load", "load as load"),
    ("data/table.py", ">", "<"),
    ("data/table.py", "# ", "#"),
    ("data/a.csv", "1,2", "1,3"),
    ("data/more/b.npz", "\1", "\2"),
    ("papers/__init__.py", "", "a = 1"),
    ("papers/zoo.py", "z = 1", "z = 2"),
    ("papers/weights.bin", "w", "v"),  # the last of all files
    ("room.py", "import load", "import load as x"),  # the last Python file
    (0, "from companion.papers import zoo", "from companion.papers import zoo as z"),
    (2, "y = 2", "y = 3"),
    (3, "shown", "seen"),
]
# ... and what does not
NO_CHANGES = [
    ("unused.py", "", "u = 1"),
    ("apart/c.csv", "3", "4"),
    ("data/notes.md", "", "words"),
    ("other.py", "x = 1", '"""What x is."""\n\n\n# why\nx  =  1  # so'),
    ("data/table.py", "load", "'''Twice\n# loads.''' 'more'\nload"),
    ("room.py", "\n", "\n\n"),
    (1, "x = 1", "# why\nx = \\\n    1"),
    (2, "y = 2", "y = 2\n\n# end"),
]


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A library and a notebook of our own; gives a function that writes both, changed or not."""
    package = tmp_path / "src" / "companion"
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    fingerprint._memory.cache_clear()

    def write(where=None, old="", new="", cells=CELLS):
        for name, text in PACKAGE.items():
            (package / name).parent.mkdir(parents=True, exist_ok=True)
            (package / name).write_text(text.replace(old, new, 1) if name == where else text)
        cells = [text.replace(old, new, 1) if n == where else text for n, text in enumerate(cells)]
        return tiny_notebook(tmp_path, cells)

    return write


def faults(fingerprint, library):
    """What a fingerprint gets wrong."""
    before = fingerprint(library())
    swapped = [CELLS[0], CELLS[2], CELLS[1], CELLS[3]]
    moved = [CELLS[0], "x = 1\ny = 2", CELLS[3]]
    for cells in (swapped, moved, CELLS[:-1], [*CELLS, "1"]):
        if fingerprint(library(cells=cells)) == before:
            yield cells
    for change in CHANGES:
        if fingerprint(library(*change)) == before:
            yield change
    for change in NO_CHANGES:
        if fingerprint(library(*change)) != before:
            yield change


def test_the_fingerprint_follows_all_that_changes_an_outcome_and_nothing_else(library):
    assert list(faults(fingerprint.fingerprint, library)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for cell in cells]", "for cell in sorted(cells)]"),
        ("for cell in cells]", "for cell in cells[:-1]]"),
        ("for cell in cells]", "for cell in cells[1:]]"),
        ("is_cell=True", "is_cell=False"),
        ("json.dumps(parts)", "json.dumps(sorted(parts, key=str))"),
        ("is_cell=True)[0]", "is_cell=True)[1]"),
        ("where)[0]", "where)[1]"),
        ("files + data_files(files)", "files"),
        ("files + data_files(files)", "data_files(files)"),
        ("files + data_files(files)", "(files + data_files(files))[:-1]"),
        ("files + data_files(files)", "files[:-1] + data_files(files)"),
        ("files + data_files(files)", "files + data_files(files)[1:]"),
        ("file.read_bytes()", "file.name.encode()"),
    ],
)
def test_a_fault_planted_in_the_fingerprint_is_noticed(library, old, new):
    source = inspect.getsource(fingerprint.fingerprint_of)
    assert source.count(old) == 1
    space = dict(vars(fingerprint))
    exec("from __future__ import annotations\n" + source.replace(old, new), space)
    found = faults(lambda path: space["fingerprint_of"](chapters.read(path), path.name), library)
    assert list(found)


def test_every_data_file_of_the_library_is_in_the_fingerprint_of_what_reaches_it():
    files = fingerprint.library_files(["from companion.papers.visual_compiler import bodies"])
    names = {file.name for file in fingerprint.data_files(files)}
    assert {"bodies.npz", "growth.csv"} <= names  # the chapter's own, and those of companion.data
    assert not {name for name in names if name.endswith((".py", ".pyc", ".md", ".part"))}


OTHERS = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13, 14)]


@pytest.mark.parametrize("python", OTHERS, ids=["3.11", "3.12", "3.13", "3.14"])
def test_the_fingerprint_is_the_same_on_every_python(python):
    code = (
        "from companion.runs.chapters import find, stems\n"
        "from companion.runs.fingerprint import fingerprint\n"
        "print([fingerprint(find(stem)) for stem in stems()])"
    )
    if not python or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip("this Python is not here")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == f"{[fingerprint.fingerprint(path) for path in map(chapters.find, chapters.stems())]}\n"
    )


def test_what_is_no_python_is_named(tmp_path):
    path = tiny_notebook(tmp_path, ["x = (1"])
    with pytest.raises(ValueError, match=r"tiny\.ipynb: not Python"):
        fingerprint.fingerprint(path)


def test_a_fingerprint_reaches_what_a_chapter_uses_and_not_what_others_use():
    def reached(stem):
        cells = chapters.code_cells(chapters.read(chapters.find(stem)))
        files = fingerprint.library_files([cell["source"] for cell in cells])
        return {file.relative_to(ROOT / "src" / "companion").as_posix() for file in files}

    snip, desire = reached("snip"), reached("desire")
    assert {"__init__.py", "papers/__init__.py", "papers/snip/__init__.py", "sparsity.py"} <= snip
    assert {"data/trajectories/sets.py", "forecasting.py", "papers/desire/model.py"} <= desire
    for other in ("data/trajectories/sets.py", "papers/desire/model.py", "forecasting.py"):
        assert other not in snip
    for other in (
        "sparsity.py",
        "data/images.py",
        "models/__init__.py",
        "papers/snip/__init__.py",
    ):
        assert other not in desire
    for stem in chapters.stems():  # what publishes a run changes none of its numbers
        assert not [
            file for file in reached(stem) if file.startswith(("runs/", "book/", "__main"))
        ]


# ---------------------------------------------------------------- how earlier code stands


@pytest.fixture
def refreshed(library, tmp_path):
    """Writes library and notebook, changed or not, with the outputs that a run gave: what
    `refresh` does, without a kernel. Gives the notebook's path and the code's fingerprint.
    alike: other codes that gave the same.
    """

    def write(*change, alike=()):
        path = tmp_path / "tiny.ipynb"
        before = chapters.read(path) if path.exists() else {"cells": [], "metadata": {}}
        notebook = chapters.read(library(*change))
        stamp = fingerprint.stamp(notebook, path.name, before)
        stamp["alike"] = [*stamp["alike"], *alike]
        notebook["metadata"]["companion"] = stamp
        path.write_text(json.dumps(notebook))
        return path, stamp["fingerprint"]

    return write


FASTER, FASTER_STILL = ("other.py", "x = 1", "x = 2 - 1"), ("other.py", "x = 1", "x = 3 - 2")


def test_code_is_earlier_if_it_was_found_alike_until_the_code_changes(refreshed, library):
    path, first = refreshed()
    path, second = refreshed(*FASTER)
    assert fingerprint.standing(path)(first) == "stale"  # nobody has compared them
    refreshed(*FASTER, alike=[first])
    for _ in range(2):  # another run of the same code, on another machine, say, forgets nothing
        stands = fingerprint.standing(path)
        assert [stands(code) for code in (first, second)] == ["earlier", "current"]
        assert stands("0" * 64) == stands("") == "stale"
        refreshed(*FASTER)
    notebook = path.read_text()
    library(*FASTER_STILL)
    path.write_text(notebook)  # until it is run again
    stands = fingerprint.standing(path)
    assert stands(first) == stands(second) == "stale"
    path, third = refreshed(*FASTER_STILL)
    stands = fingerprint.standing(path)
    assert [stands(code) for code in (first, second, third)] == ["stale", "stale", "current"]


def test_a_build_asks_once_for_the_code_of_a_chapter_and_nobody_after_it(refreshed, library):
    path, first = refreshed()
    fingerprint.assume_unchanged(True)
    try:
        assert fingerprint.standing(path)(first) == "current"
        _, second = refreshed(*FASTER)
        assert (
            fingerprint.standing(path)(first) == "current"
        )  # of the state that the build began with
    finally:
        fingerprint.assume_unchanged(False)
    assert fingerprint.standing(path)(first) == "stale"
    fingerprint.assume_unchanged(True)  # another build
    try:
        assert fingerprint.standing(path)(second) == "current"
    finally:
        fingerprint.assume_unchanged(False)


# ---------------------------------------------------------------- the memory


@pytest.fixture
def checkout(library, tmp_path):
    """As `library`, in a checkout, which has a memory; gives a function that begins anew."""
    (tmp_path / "pyproject.toml").touch()

    def anew(*change):
        fingerprint._memory.cache_clear()
        return fingerprint.fingerprint(library(*change))

    return anew


def test_the_memory_changes_no_fingerprint_and_saves_the_work(checkout, tmp_path, monkeypatch):
    file = tmp_path / "_build" / "fingerprints.json"
    changed = [checkout(*change) for change in CHANGES]
    assert file.is_file()
    file.unlink()
    assert [checkout(*change) for change in CHANGES] == changed
    monkeypatch.setattr(fingerprint, "_tokens", None)  # nothing is read again
    assert [checkout(*change) for change in CHANGES] == changed


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: b"",
        lambda text: text[:-20],
        lambda text: b"\xff" + text,
        lambda text: text.split(b"\n", 1)[0] + b"\n{}",
        lambda text: text.replace(b'", [', b'0", [', 1),
        lambda text: b"0" * 64 + text[64:],
    ],
)
def test_a_memory_that_is_damaged_is_not_taken(checkout, tmp_path, damage):
    whole = checkout()
    file = tmp_path / "_build" / "fingerprints.json"
    text = file.read_bytes()
    assert damage(text) != text
    file.write_bytes(damage(text))
    assert checkout() == whole
    assert file.read_bytes() == text  # written anew


def test_where_no_memory_can_be_written_there_is_none(checkout, tmp_path, library):
    (tmp_path / "_build").write_text("no folder")
    whole = checkout()
    (tmp_path / "_build").unlink()
    assert checkout() == whole
    (tmp_path / "pyproject.toml").unlink()  # an installed library
    (tmp_path / "_build" / "fingerprints.json").unlink()
    assert checkout() == whole
    assert not list((tmp_path / "_build").iterdir())
