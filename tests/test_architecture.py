"""The rooms import each other only in the allowed direction."""

import dataclasses
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import companion
from companion.files import ROOT

LINT = Path(sys.executable).with_name("lint-imports")
TINY = {
    "__init__.py": "",
    "sparsity.py": "",
    "models/__init__.py": "",
    "models/nets.py": "from companion import sparsity",
    "book/__init__.py": "",
    "book/d.py": "from companion.runs import b",
    "runs/__init__.py": "",
    "runs/b.py": "from companion.notebook import c",
    "notebook/__init__.py": "",
    "notebook/c.py": "from companion import sparsity",
    "papers/__init__.py": "",
    "papers/one.py": "from companion.models import nets",
    "papers/two/__init__.py": "from companion.papers.two.parts import x",
    "papers/two/parts.py": "x = 1",
}


def lint(folder):
    return subprocess.run(
        [str(LINT), "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60
    )


def tiny(folder, **changes):
    """A package of the library's name with a few rooms, held by the library's contracts."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name, source in (TINY | changes).items():
        path = folder / "companion" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n")
    return lint(folder)


def test_the_library_keeps_its_contracts():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout
    assert "Contracts: 3 kept, 0 broken." in done.stdout


def test_a_library_without_faults_passes(tmp_path):
    done = tiny(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("room", "source", "contract"),
    [
        ("papers/one.py", "from companion.papers.two import x", "A paper never imports a paper"),
        ("papers/two/parts.py", "import companion.papers.one", "A paper never imports a paper"),
        ("runs/a.py", "def f():\n    import companion.papers.one", "Nothing of the library"),
        ("sparsity.py", "from companion.runs import b", "Command line, book, runs"),
        (
            "models/nets.py",
            "def f():\n    import companion.notebook.c",
            "Command line, book, runs",
        ),
        ("papers/one.py", "from companion.notebook import c", "Command line, book, runs"),
        ("papers/two/parts.py", "import companion.runs.b", "Command line, book, runs"),
        ("notebook/c.py", "from companion.runs import b", "Command line, book, runs"),
        ("runs/b.py", "from companion.book import d", "Command line, book, runs"),
        ("extra.py", "x = 1", "Command line, book, runs"),
    ],
)
def test_a_planted_fault_is_caught(tmp_path, room, source, contract):
    done = tiny(tmp_path, **{room: source})
    assert done.returncode != 0
    (broken,) = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert broken.startswith(contract)


def test_what_holds_tensors_is_compared_by_identity():
    # tensors have no one truth: comparing field by field raises where a field has many entries
    held = {"Tensor", "ndarray", "Params", "Masks"}
    kinds = {}
    for module in pkgutil.walk_packages(companion.__path__, "companion."):
        if module.name.endswith(("__main__", "kernels", "build_bodies")):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if dataclasses.is_dataclass(value) and value.__module__ == module.name:
                words = " ".join(str(f.type) for f in dataclasses.fields(value))
                words = re.sub(r"Callable\[.*\]", "", words)
                kinds[value] = set(re.findall(r"\w+", words))
    assert len(kinds) > 50
    while True:  # and what holds one of those
        names = held | {kind.__name__ for kind, words in kinds.items() if words & held} - {
            "Run",
            "Case",
        }
        if names == held:
            break
        held = names
    wrong = [
        kind.__qualname__
        for kind, words in kinds.items()
        if words & held and kind.__dataclass_params__.eq
    ]
    assert not wrong


HEAVY = {"torch", "numpy", "pandas", "scipy", "matplotlib", "dask", "distributed", "nbformat", "nbclient", "jupyter_client", "IPython", "papermill", "yaml"}  # fmt: skip


def loaded_by(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_the_command_line_and_runs_need_the_standard_library_only():
    modules = [name for name in ROOT.glob("src/companion/runs/*.py") if name.stem != "kernels"]
    names = [f"companion.runs.{file.stem}" for file in modules if file.stem != "__init__"]
    names += ["companion.__main__", "companion.notebook", "companion.book"]
    assert not loaded_by(f"import {', '.join(names)}") & HEAVY


def test_listing_the_chapters_imports_nothing_heavy():
    assert not loaded_by("from companion.__main__ import main; main(['list'])") & (
        HEAVY - {"yaml"}
    )
