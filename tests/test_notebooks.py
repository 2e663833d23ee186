"""Structure of the chapters: cheap checks that come before any kernel is started."""

import ast
import base64
import json
import re
import shlex
import struct

import pytest
import yaml
from tiny import outputs

from companion.__main__ import _parameters, _parser
from companion.files import ROOT
from companion.notebook.checking import NOT_RUN, Badge, Table, Verdict, judge
from companion.notebook.claims import load_claims
from companion.runs import chapters, exercises, fingerprint, records

ALL = [chapters.find(stem) for stem in chapters.stems()]
SHARED = {
    "profile": "str", "dataset": "str", "data_root": "str", "seed": "int", "n_seeds": "int", "device": "str",
}  # fmt: skip


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def chapter(request):
    return request.param, chapters.read(request.param)


def test_cells_ran_in_order_without_error_or_stderr(chapter):
    path, notebook = chapter
    counts = [cell["execution_count"] for cell in chapters.code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"make notebooks NB={path.stem}"
    assert not [o for o in outputs(notebook) if o["output_type"] == "error"]
    assert not [o for o in outputs(notebook) if o.get("name") == "stderr"]


def test_outputs_belong_to_the_code_as_it_is(chapter):
    path, _ = chapter
    assert fingerprint.is_current(path), f"the code changed since: make notebooks NB={path.stem}"


def test_outputs_are_as_they_were_stored(chapter):
    path, _ = chapter
    assert fingerprint.is_untouched(path), (
        f"its outputs were edited: make notebooks NB={path.stem}"
    )


def verdicts(path, notebook):
    found = chapters.recorded_values(notebook)[f"{path.stem}.claims"]
    return [Verdict(**fields) for fields in found]


def test_the_claims_table_shows_what_was_recorded(chapter):
    path, notebook = chapter
    shown = [
        html
        for output in outputs(notebook)
        if (html := "".join(output.get("data", {}).get("text/html", ""))).startswith(
            '<table class="claims">'
        )
    ]
    assert shown == [Table(load_claims(path.stem), verdicts(path, notebook))._repr_html_()]


def test_checked_cells_say_something_exact(chapter):
    """Numbers stand in the HTML, which `nbval.cfg` leaves out of the comparison."""
    path, notebook = chapter
    checked = [
        c for c in chapters.code_cells(notebook) if "nbval-check-output" in chapters.tags(c)
    ]
    assert checked
    idle = {verdict.id for verdict in verdicts(path, notebook) if verdict.outcome == NOT_RUN}
    for cell in checked:
        claimed = set(re.findall(r'claims\.\w+\(\s*"(C\d+[a-z]?)"', cell["source"]))
        assert cell["outputs"] or (claimed and claimed <= idle), (
            f"a checked cell without output passes vacuously: {cell['source'][:80]}"
        )
        for output in cell["outputs"]:
            said = "".join(output.get("text", output.get("data", {}).get("text/plain", "")))
            assert said
            assert not re.search(r"\d\.\d{2}", said), (
                f"a measured float is compared as text: {said}"
            )
            assert output["output_type"] == "stream" or "claim-badge" in "".join(
                output["data"]["text/html"]
            )


def test_every_claim_of_the_file_is_settled_and_checked_by_nbval(chapter):
    path, notebook = chapter
    stated, found = load_claims(path.stem), verdicts(path, notebook)
    checked = [
        c for c in chapters.code_cells(notebook) if "nbval-check-output" in chapters.tags(c)
    ]
    said = [
        "".join(o.get("data", {}).get("text/plain", "")) for c in checked for o in c["outputs"]
    ]
    assert [verdict.id for verdict in found] == list(stated)
    for verdict in found:
        claim = stated[verdict.id]
        assert not verdict.failed(claim)
        if verdict.measured:
            assert repr(Badge(claim, verdict)) in said
            assert judge(claim, verdict.measured, verdict.profile) == verdict.outcome


def test_every_claim_of_the_file_is_checked_somewhere(chapter):
    """One that is due in a long profile only would end that run, after its hours."""
    path, notebook = chapter
    code = "\n".join(cell["source"] for cell in chapters.code_cells(notebook))
    named = set(re.findall(r'"(C\d+[a-z]?)"', code))
    missing = load_claims(path.stem).keys() - named
    numbered = re.search(r'f"C\{', code)  # a loop over claims of one kind
    assert not missing or numbered, missing


def test_tags_are_known(chapter):
    _, notebook = chapter
    used = {tag for cell in notebook["cells"] for tag in chapters.tags(cell)}
    assert used <= chapters.TAGS


def test_parameters_are_annotated_documented_and_named_as_everywhere(chapter):
    path, notebook = chapter
    first, second = chapters.code_cells(notebook)[:2]
    assert chapters.tags(first) == ["parameters"]
    assert "remove-input" in chapters.tags(second)
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
    values = chapters.validate(path, {})
    assert values["profile"] == "quick"
    assert values == chapters.validate(path, {"profile": "quick"})
    stored = chapters.recorded_values(chapters.read(path))[f"{path.stem}.settings"]
    assert stored == {k: v for k, v in values.items() if k != "data_root"}
    usual = chapters.defaults(path)
    (name, first), *others = chapters.presets(path).items()
    assert (name, first) == ("quick", {})
    for name, preset in others:
        assert not {key for key, value in preset.items() if value == usual[key]}, name


def test_it_has_the_parts_that_readers_expect(chapter):
    _, notebook = chapter
    prose = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert prose[0].startswith("# ")
    assert "https://arxiv.org/abs/" in prose[0]
    lines = {line for text in prose for line in text.splitlines()}
    for headings in (
        {"## Results"},
        {"## At the paper's size", "## At the paper's scale"},
        {"## Departures from the paper"},
        {"## Exercises", "## Try"},
        {"## Sources"},
    ):
        assert headings & lines, headings


def test_the_commands_it_shows_are_taken(chapter):
    """Every `companion ...` in the prose parses, and its parameters pass the check cell."""
    _, notebook = chapter
    prose = "\n".join(c["source"] for c in notebook["cells"] if c["cell_type"] == "markdown")
    prose = prose.replace("\\\n", "")  # a command over several lines
    shown = re.findall(r"(?:^|`)(companion [^`\n#]+)", prose, re.MULTILINE)
    assert shown
    for line in shown:
        options = _parser().parse_args(shlex.split(line)[1:])
        if hasattr(options, "p"):
            chapters.validate(chapters.find(options.notebook), _parameters(options))


def test_no_line_of_code_scrolls_sideways_in_a_chapter_of_the_new_frame(chapter):
    _, notebook = chapter
    if not any("opening" in chapters.tags(cell) for cell in notebook["cells"]):
        pytest.skip("not yet in the frame")
    lines = [line for c in chapters.code_cells(notebook) for line in c["source"].splitlines()]
    assert [line for line in lines if len(line) > 88] == []


def test_figures_have_names_captions_and_alternative_text(chapter):
    path, notebook = chapter
    named = []
    for cell in chapters.code_cells(notebook):
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
    for name, preset in list(chapters.presets(path).items())[1:]:
        file = ROOT / "notebooks" / "params" / f"{path.stem}-{name.replace('_', '-')}.yaml"
        stated = yaml.safe_load(file.read_text())
        assert stated == {"profile": name} | preset, f"make notebooks NB={path.stem}"
        assert stated.items() <= chapters.validate(path, stated).items()


# answers that no run stands behind: one needs images of the reader's own, the others are recorded
# runs of the chapter or change nothing that the answer states
UNKEPT = {("masked_kd", "6"), ("sparse_inr", "2"), ("sparse_inr", "3")}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_what_an_answer_runs_is_kept(path):
    """Of these very parameters and this very code; a run the book does not have is listed."""
    kept = {run.name.removeprefix("exercise-"): run for run in records.load_answers(path.stem)}
    found = exercises.answers(path)
    assert found.keys() - kept.keys() == {label for stem, label in UNKEPT if stem == path.stem}
    assert not kept.keys() - found.keys()
    for label, run in kept.items():
        answer = found[label]
        assert run.values.get("code", "") == (answer.said if answer.code else "")
        assert answer.given.items() <= run.settings.items()
        assert max(map(len, answer.code.split("\n"))) <= 86, label  # it stands in a box


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_an_answer_that_runs_something_has_no_typed_result(path):
    """A decimal fraction outside of code and formulas comes from a run."""
    runs = {re.match(r"\d+", label)[0] for label in exercises.answers(path)}
    for number, text in exercises.texts(path).items():
        if number in runs:
            prose = re.sub(
                r"```.*?```|\$[^$]*\$|(?:\{[\w:]+\})?`[^`]*`", "", text, flags=re.DOTALL
            )
            assert not re.findall(r"\d+\.\d+", prose), number
