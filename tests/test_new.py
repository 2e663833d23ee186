"""A new chapter from one command: what it writes is whole, whatever it is called."""

import ast
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.notebook.claims import read_claims
from companion.runs.new import new_paper
from companion.runs.processes import LIBRARY

BIB = "@misc{old2020,\n  title = {Old},\n  author = {A. B.},\n  year = {2020}\n}\n"
CONTENTS = """\
format: jb-book
root: index
parts:
  - caption: Papers
    chapters:
      - file: notebooks/old
  - caption: Results
    chapters:
      - file: book/scoreboard
"""


@pytest.fixture
def root(tmp_path):
    return empty(tmp_path)


def empty(folder):
    (folder / "book").mkdir(parents=True)
    (folder / "book/references.bib").write_text(BIB)
    (folder / "book/papers.yml").write_text("- stem: old\n  title: Old\n")
    (folder / "_toc.yml").write_text(CONTENTS)
    return folder


def state(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def check(root, paper, title, authors, arxiv):
    ast.parse((root / f"src/companion/papers/{paper}/__init__.py").read_text())
    ast.parse((root / f"tests/test_{paper}.py").read_text())
    assert list(read_claims(root / f"src/companion/papers/{paper}/claims.yaml")) == ["C1"]
    notebook = nbformat.read(root / f"notebooks/{paper}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    assert toc["parts"][0]["chapters"][-1] == {"file": f"notebooks/{paper}"}
    assert toc["parts"][1]["chapters"] == [{"file": "book/scoreboard"}]
    entry = yaml.safe_load((root / "book/papers.yml").read_text())[-1]
    assert (entry["stem"], entry["title"], entry["arxiv"]) == (paper, title, arxiv)
    parser = pytest.importorskip("pybtex.database.input.bibtex")
    found = parser.Parser().parse_file(root / "book/references.bib").entries
    assert list(found) == ["old2020", entry["cite"]]
    assert found[entry["cite"]].fields["title"] == "{" + title + "}"
    assert len(found[entry["cite"]].persons["author"]) == len(authors.split(" and "))


def test_all_that_a_chapter_needs_is_written_and_listed(root):
    written = new_paper("lottery_ticket", "Tickets: it's \u201cone\u201d", "A. Bee and C. Dee", "1803.03635", root=root)  # fmt: skip
    assert len(written) == 8
    assert set(written) <= state(root).keys()
    check(
        root, "lottery_ticket", "Tickets: it's \u201cone\u201d", "A. Bee and C. Dee", "1803.03635"
    )
    assert "year = {2018}" in (root / "book/references.bib").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"paper": "Two Words"}, "paper = 'Two Words': expected a module's name"),
        ({"paper": "class"}, "paper = 'class'"),
        ({"paper": "torch"}, "paper = 'torch'"),
        ({"paper": "seed"}, "paper = 'seed'"),
        ({"paper": "common"}, "paper = 'common': book/api/common.md is there already"),
        ({"paper": "a/../b"}, "paper = 'a/../b'"),
        ({"title": 'A """ b'}, "title = "),
        ({"title": "50 % off"}, "title = "),
        ({"title": "a {b"}, "title = "),
        ({"title": "a\nb"}, "title = "),
        ({"title": " "}, "title = "),
        ({"authors": "A, B, C, D and E"}, "authors = "),
        ({"arxiv": "1803"}, "arxiv = '1803'"),
        ({"arxiv": "１８０３.03635"}, "arxiv = "),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_changes(root, options, told):
    (root / "book/api").mkdir()
    (root / "book/api/common.md").write_text("# API\n")
    before = state(root)
    with pytest.raises(ValueError) as caught:
        new_paper(**({"paper": "toy", "root": root} | options))
    assert str(caught.value).startswith(told)
    assert state(root) == before


def test_the_command_writes_a_chapter_and_runs_it(root):
    library = root / "src" / "companion"
    shutil.copytree(LIBRARY, library, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notebooks").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "companion", "new", "toy"], cwd=root, text=True,
        env=os.environ | {"PYTHONPATH": str(library.parent)}, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    listed = {root / line for line in done.stdout.splitlines()}
    there = list((root / "notebooks/params").iterdir())
    assert [path.name for path in there] == ["toy-long.yaml"]
    assert there[0] in listed
    notebook = nbformat.read(root / "notebooks/toy.ipynb", as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells)
    assert notebook.metadata.companion.fingerprint


def test_a_paper_that_is_there_is_left_alone(root):
    new_paper("toy", root=root)
    before = state(root)
    with pytest.raises(ValueError, match="is there already"):
        new_paper("toy", root=root)
    assert state(root) == before


@settings(max_examples=60)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_title_is_refused_or_arrives_as_it_is(tmp_path_factory, title, authors):
    root = empty(tmp_path_factory.mktemp("root"))
    before = state(root)
    try:
        new_paper("toy", title, authors, root=root)
    except ValueError:
        assert state(root) == before
    else:
        check(root, "toy", title, authors, "0000.00000")
