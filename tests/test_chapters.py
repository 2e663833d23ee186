"""Chapters that are found, read and named."""

import json
import re

import pytest
from tiny import tiny_notebook

from companion.__main__ import main
from companion.runs import chapters


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "3", "{", "\udc80", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{}]}',
        '{"cells": [{"cell_type": "code", "source": "", "metadata": {}}]}',
        '{"cells": [{"cell_type": "markdown", "source": [1], "metadata": {}}]}',
        '{"worksheets": []}',
    ],
)  # fmt: skip
def test_a_damaged_notebook_is_named_in_one_line(tmp_path, monkeypatch, capsys, text):
    (tmp_path / "bad.ipynb").write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.setattr(chapters, "FOLDER", tmp_path)
    for command in (["list"], ["refresh"], ["refresh", "bad"], ["run", "bad"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"companion: {tmp_path / 'bad.ipynb'}: not a notebook")
        assert len(err.splitlines()) == 1


def test_outside_a_checkout_commands_say_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chapters, "FOLDER", tmp_path / "notebooks")
    for command in (["list"], ["refresh"], ["run", "snip"], ["record", "snip", "--name", "x"]):
        assert main(command) == 2
        assert re.fullmatch(
            r"companion: .* no such folder; .* checkout.*\n", capsys.readouterr().err
        )


@pytest.mark.parametrize(
    "code",
    [
        ["%matplotlib inline", "x = 1"],
        ["x: int = 1  # x", "1 / 0"],
        ["x: int = 1  # x", "raise SystemExit(3)"],
        ["x: Foo = 1  # x", "y = 1"],
        ["x: int  # x\ny: int  # y", "z = 1"],
        ["import types; f = types.SimpleNamespace(); f.y: int = 2", "y = 1"],
    ],
)
def test_a_notebook_that_is_no_chapter_is_one_line(tmp_path, capsys, code):
    path = tiny_notebook(tmp_path, code)
    status = main(["run", str(path), "-o", str(tmp_path / "out.ipynb"), "-p", "x", "1"])
    said = capsys.readouterr().err
    assert status == 2
    assert len(said.splitlines()) == 1
    assert said.startswith("companion: ")


def test_unknown_chapters_are_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"notebook = 'snp': expected one of .*snip"):
        chapters.find("snp")


def sets(folder, *code):
    """A notebook as papermill takes it, its cell of parameters tagged and the last one."""
    path = tiny_notebook(folder, [*code, "1 + 1"])
    notebook = json.loads(path.read_text())
    notebook["cells"][len(code) - 1]["metadata"]["tags"] = ["parameters"]
    path.write_text(json.dumps(notebook))
    return str(path)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (["seed = 0"], "it is assigned without an annotation, expected seed: int = 0"),
        (
            ["seed = rate = 0.5"],
            "it is assigned without an annotation, expected seed: float = 0.5",
        ),
        (["seed = 'a'"], "it is assigned without an annotation, expected seed: str = 'a'"),
        (["seed = 60 * 5"], "it is assigned without an annotation, expected seed: int = 60 * 5"),
        (
            ["import os", "seed = 0"],
            "it is assigned without an annotation, expected seed: int = 0",
        ),
        (
            ["import os", "seed: int = 0"],
            "it is assigned in a later cell, expected in the first cell of code",
        ),
    ],
)
def test_why_a_name_that_a_notebook_sets_is_no_parameter_is_told(tmp_path, capsys, code, why):
    path = sets(tmp_path, *code)
    assert main(["run", path, "-p", "seed", "3"]) == 2
    assert capsys.readouterr().err == f"companion: unknown parameter 'seed': {why}\n"
    assert main(["sweep", path, "-g", "seed", "[1, 2]"]) == 2
    assert capsys.readouterr().err == f"companion: 'seed' is no parameter of tiny.ipynb: {why}\n"


def test_a_notebook_without_parameters_is_said_to_have_none(tmp_path, capsys):
    path = sets(tmp_path, "import os")
    assert main(["run", path, "-p", "seed", "3"]) == 2
    assert capsys.readouterr().err == "companion: unknown parameter 'seed'\n"
    assert main(["sweep", path, "-g", "seed", "[1, 2]"]) == 2
    assert capsys.readouterr().err == (
        "companion: 'seed' is no parameter of tiny.ipynb; it has none\n"
    )
