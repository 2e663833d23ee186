"""Structure of the chapters: cheap checks that come before any kernel is started."""

import ast
import base64
import json
import re
import shlex
import struct

import pytest
import yaml

from companion import notebooks
from companion.__main__ import _parameters, _parser
from companion.claims import CERTAINTY, FAILS, HOLDS, Claim, Table, natural
from companion.runtime import ROOT

ALL = [notebooks.find(stem) for stem in notebooks.stems()]
SHARED = {
    "profile": "str", "dataset": "str", "data_root": "str", "seed": "int", "n_seeds": "int", "device": "str",
}  # fmt: skip


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def chapter(request):
    return request.param, notebooks.read(request.param)


def outputs(notebook):
    return [output for cell in notebooks.code_cells(notebook) for output in cell["outputs"]]


def test_cells_ran_in_order_without_error_or_stderr(chapter):
    path, notebook = chapter
    counts = [cell["execution_count"] for cell in notebooks.code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"make notebooks NB={path.stem}"
    assert not [o for o in outputs(notebook) if o["output_type"] == "error"]
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]


def test_outputs_belong_to_the_code_as_it_is(chapter):
    path, _ = chapter
    assert notebooks.is_current(path), f"the code changed since: make notebooks NB={path.stem}"


def test_outputs_are_as_they_were_stored(chapter):
    path, _ = chapter
    assert notebooks.is_untouched(path), f"its outputs were edited: make notebooks NB={path.stem}"


def test_the_claims_table_shows_what_was_recorded(chapter):
    path, notebook = chapter
    claims = [Claim(**c) for c in notebooks.recorded_values(notebook)[f"{path.stem}.claims"]]
    shown = [
        html
        for output in outputs(notebook)
        if (html := "".join(output.get("data", {}).get("text/html", ""))).startswith(
            '<table class="claims">'
        )
    ]
    assert shown == [Table(sorted(claims, key=lambda c: natural(c.id)))._repr_html_()]


def test_checked_cells_say_something_exact(chapter):
    _, notebook = chapter
    checked = [
        c for c in notebooks.code_cells(notebook) if "nbval-check-output" in notebooks.tags(c)
    ]
    assert checked
    for cell in checked:
        said = "".join("".join(o.get("text", "")) for o in cell["outputs"])
        assert said, f"a checked cell without output passes vacuously: {cell['source'][:80]}"
        assert not re.search(r"\d\.\d{2}", said), f"a measured float is compared as text: {said}"
        assert all(o["output_type"] == "stream" for o in cell["outputs"])


def test_every_claim_is_checked_by_nbval(chapter):
    path, notebook = chapter
    claims = notebooks.recorded_values(notebook)[f"{path.stem}.claims"]
    checked = [
        c for c in notebooks.code_cells(notebook) if "nbval-check-output" in notebooks.tags(c)
    ]
    said = "".join("".join(o.get("text", "")) for c in checked for o in c["outputs"])
    for claim in claims:
        assert f"{claim['id']} {claim['verdict']}: {claim['sentence']}\n" in said
        assert claim["certainty"] in CERTAINTY
        assert not claim["asserted"] or claim["holds"] is claim["expected"]
        assert (claim["verdict"] in (HOLDS, FAILS)) is claim["asserted"]
        assert claim["verdict"] != HOLDS or claim["holds"]


def test_tags_are_known(chapter):
    _, notebook = chapter
    used = {tag for cell in notebook["cells"] for tag in notebooks.tags(cell)}
    assert used <= notebooks.TAGS


def test_parameters_are_annotated_documented_and_named_as_everywhere(chapter):
    path, notebook = chapter
    first, second = notebooks.code_cells(notebook)[:2]
    assert notebooks.tags(first) == ["parameters"]
    assert "remove-input" in notebooks.tags(second)
    assert "check_parameters(" in second["source"]
    names = {}
    for line, statement in zip(
        first["source"].splitlines(), ast.parse(first["source"]).body, strict=True
    ):
        assert isinstance(statement, ast.AnnAssign), f"{path.name}: {line}"
        assert re.search(r"\s# \S", line), f"{path.name}: no comment: {line}"
        assert "#" not in ast.unparse(statement), f"papermill cuts strings at #: {line}"
        ast.literal_eval(statement.value)
        names[statement.target.id] = ast.unparse(statement.annotation)
    for name, kind in SHARED.items():
        assert names.get(name, kind) == kind
    for name in ("profile", "dataset", "data_root", "seed", "device"):
        assert name in names, f"{path.name} has no parameter {name}"


def test_defaults_are_those_of_the_first_profile(chapter):
    path, _ = chapter
    values = notebooks.validate(path, {})
    assert values["profile"] == "quick"
    assert values == notebooks.validate(path, {"profile": "quick"})
    stored = notebooks.recorded_values(notebooks.read(path))[f"{path.stem}.settings"]
    assert stored == {k: v for k, v in values.items() if k != "data_root"}
    first = next(iter(notebooks.presets(path).values()))
    cell = ast.parse(notebooks.code_cells(notebooks.read(path))[0]["source"]).body
    stated = {s.target.id: ast.literal_eval(s.value) for s in cell}
    assert first.items() <= stated.items()  # else every claim would count as changed


def test_it_has_the_parts_that_readers_expect(chapter):
    _, notebook = chapter
    prose = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert prose[0].startswith("# ")
    assert "https://arxiv.org/abs/" in prose[0]
    for heading in (
        "## Results",
        "## At the paper's scale",
        "## Departures from the paper",
        "## Try",
        "## Sources",
    ):
        assert any(heading in text.splitlines() for text in prose), heading


def test_the_commands_it_shows_are_taken(chapter):
    """Every `companion ...` in the prose parses, and its parameters pass the check cell."""
    _, notebook = chapter
    prose = "\n".join(c["source"] for c in notebook["cells"] if c["cell_type"] == "markdown")
    shown = re.findall(r"(?:^|`)(companion [^`\n#]+)", prose, re.MULTILINE)
    assert shown
    for line in shown:
        options = _parser().parse_args(shlex.split(line)[1:])
        if hasattr(options, "p"):
            notebooks.validate(notebooks.find(options.notebook), _parameters(options))


def test_figures_have_names_captions_and_alternative_text(chapter):
    path, notebook = chapter
    named = []
    for cell in notebooks.code_cells(notebook):
        pictures = [
            o["data"]["image/png"] for o in cell["outputs"] if "image/png" in o.get("data", {})
        ]
        assert len(pictures) <= 1
        if pictures:
            meta = cell["metadata"]["mystnb"]
            assert meta["figure"]["name"].startswith(f"fig-{path.stem.replace('_', '-')}-")
            assert meta["figure"]["caption"]
            assert len(meta["image"]["alt"]) > 20
            raw = base64.b64decode("".join(pictures[0]))
            assert len(raw) < 60_000, f"{meta['figure']['name']}: {len(raw)} bytes"
            width, _ = struct.unpack(">II", raw[16:24])
            assert width <= 1600
            named.append(meta["figure"]["name"])
    assert named, "a chapter opens with a figure"
    assert len(set(named)) == len(named)


def test_no_path_warning_or_traceback_is_stored(chapter):
    _, notebook = chapter
    stored = json.dumps([o for o in outputs(notebook) if "image/png" not in o.get("data", {})])
    for sign in (str(ROOT), "/root/", "/home/", "/tmp/", "Traceback", "Warning"):
        assert sign not in stored


def test_it_is_in_the_table_of_contents_and_the_bibliography(chapter):
    path, notebook = chapter
    contents = (ROOT / "_toc.yml").read_text()
    assert f"notebooks/{path.stem}" in contents
    cited = re.findall(r"\{cite:[pt]\}`([^`]+)`", "".join(c["source"] for c in notebook["cells"]))
    keys = re.findall(r"@\w+\{([^,]+),", (ROOT / "book" / "references.bib").read_text())
    assert cited
    assert set(cited) <= set(keys)


def test_preset_files_say_what_the_presets_say(chapter):
    path, _ = chapter
    for name, preset in list(notebooks.presets(path).items())[1:]:
        file = ROOT / "notebooks" / "params" / f"{path.stem}-{name.replace('_', '-')}.yaml"
        stated = yaml.safe_load(file.read_text())
        assert stated == {"profile": name} | preset, f"make notebooks NB={path.stem}"
        assert stated.items() <= notebooks.validate(path, stated).items()


def tiny_notebook(folder, code):
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for number, source in enumerate(code)
    ]
    path = folder / "tiny.ipynb"
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def test_fingerprint_follows_code_and_library_but_not_prose(tmp_path, monkeypatch):
    path = tiny_notebook(tmp_path, ["from companion.runtime import pick_device"])
    before = notebooks.fingerprint(path)
    notebook = json.loads(path.read_text())
    notebook["cells"].append({"cell_type": "markdown", "metadata": {}, "source": "words"})
    path.write_text(json.dumps(notebook))
    assert notebooks.fingerprint(path) == before
    notebook["cells"][0]["source"] += "\n# a comment\n"
    path.write_text(json.dumps(notebook))
    assert notebooks.fingerprint(path) == before
    notebook["cells"][0]["source"] += "x = 1\n"
    path.write_text(json.dumps(notebook))
    assert notebooks.fingerprint(path) != before

    package = tmp_path / "companion"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "room.py").write_text("from companion.other import x\n")
    (package / "other.py").write_text("x = 1\n")
    (package / "unused.py").write_text("")
    monkeypatch.setattr(notebooks, "__file__", str(package / "notebooks.py"))
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    found = notebooks.library_files(["from companion.room import f"])
    assert [file.name for file in found] == ["__init__.py", "other.py", "room.py"]
    path = tiny_notebook(tmp_path, ["import companion.room"])
    before = notebooks.fingerprint(path)
    (package / "unused.py").write_text("y = 1\n")
    assert notebooks.fingerprint(path) == before
    (package / "other.py").write_text('"""What x is."""\n\nx = 1\n')
    assert notebooks.fingerprint(path) == before
    (package / "other.py").write_text("x = 2\n")
    assert notebooks.fingerprint(path) != before


def test_refresh_gives_the_same_bytes_twice_and_refuses_stderr(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    path = tiny_notebook(tmp_path, ["x = 2", "print(x); x + 1"])
    notebooks.refresh(path)
    first = path.read_bytes()
    notebooks.refresh(path)
    assert path.read_bytes() == first
    stored = notebooks.read(path)
    assert [c["execution_count"] for c in notebooks.code_cells(stored)] == [1, 2]
    assert [c["id"] for c in stored["cells"]] == ["tiny-00", "tiny-01"]

    notebook = json.loads(first)
    notebook["cells"][0]["source"] = "import sys; x = 2; print('oh', file=sys.stderr)"
    path.write_text(json.dumps(notebook))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="cell 0 wrote to stderr"):
        notebooks.refresh(path)
    assert path.read_bytes() == before


def test_outputs_that_were_edited_are_noticed(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPANION_RECORD", raising=False)
    draw = "import matplotlib.pyplot as plt; plt.plot([{}]); plt.show()"
    show = "from companion.claims import record; record('x', 0.25); print('ours: 3 %')"
    path = tiny_notebook(tmp_path, ["x = 2", draw.format("1, 2"), draw.format("2, 1"), show])
    notebooks.refresh(path)
    assert notebooks.is_untouched(path)
    text = path.read_text()

    def edited(change=None, old="", new=""):
        notebook = json.loads(text.replace(old, new) if old else text)
        if change:
            change(*notebook["cells"])
        path.write_text(json.dumps(notebook, indent=1))
        return not notebooks.is_untouched(path)

    def strip(_, first, second, last):
        first["outputs"] = []

    def swap(_, first, second, last):
        first["outputs"], second["outputs"] = second["outputs"], first["outputs"]

    assert not edited(lambda *_: None)  # written in another way, and the same
    assert edited(strip)
    assert edited(swap)
    assert edited(old='"0.25"', new='"0.24"')
    assert edited(old="3 %\\n", new="2 %\\n")


def test_figures_are_stored_whatever_backend_is_set_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = tiny_notebook(
        tmp_path, ["x = 2", "import matplotlib.pyplot as plt; plt.plot([x]); plt.show()"]
    )
    notebooks.refresh(path)
    assert "image/png" in outputs(notebooks.read(path))[0]["data"]


def test_unknown_chapters_are_named_with_what_there_is():
    with pytest.raises(ValueError, match=r"notebook = 'snp': expected one of .*snip"):
        notebooks.find("snp")
