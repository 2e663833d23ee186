"""Structure of the chapters: cheap checks that come before any kernel is started."""

import ast
import base64
import inspect
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from companion import notebooks
from companion.__main__ import _parameters, _parser, main
from companion.claims import CERTAINTY, FAILS, HOLDS, Claim, Table, natural
from companion.notebook.claims import load_claims, papers
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
    monkeypatch.setattr(notebooks, "__file__", str(package / "notebooks.py"))
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)

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
    assert list(faults(notebooks.fingerprint, library)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for cell in cells]", "for cell in sorted(cells)]"),
        ("for cell in cells]", "for cell in cells[:-1]]"),
        ("for cell in cells]", "for cell in cells[1:]]"),
        ("is_cell=True", "is_cell=False"),
        ("json.dumps(parts)", "json.dumps(sorted(parts, key=str))"),
        ("json.dumps(parts)", "json.dumps([x for part in parts for x in part])"),
        ("json.dumps(parts)", "''.join(str(x) for part in parts for y in part for x in y)"),
        ("files + data_files(files)", "files"),
        ("files + data_files(files)", "data_files(files)"),
        ("files + data_files(files)", "(files + data_files(files))[:-1]"),
        ("files + data_files(files)", "files[:-1] + data_files(files)"),
        ("files + data_files(files)", "files + data_files(files)[1:]"),
        ("file.read_bytes()", "file.name.encode()"),
    ],
)
def test_a_fault_planted_in_the_fingerprint_is_noticed(library, old, new):
    source = inspect.getsource(notebooks.fingerprint)
    assert source.count(old) == 1
    space = dict(vars(notebooks))
    exec("from __future__ import annotations\n" + source.replace(old, new), space)
    assert list(faults(space["fingerprint"], library))


def test_every_data_file_of_the_library_is_in_the_fingerprint_of_what_reaches_it():
    files = notebooks.library_files(["from companion.papers.visual_compiler import bodies"])
    names = {file.name for file in notebooks.data_files(files)}
    assert {"bodies.npz", "growth.csv"} <= names  # the chapter's own, and those of companion.data
    assert not {name for name in names if name.endswith((".py", ".pyc", ".md", ".part"))}


OTHERS = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13)]


@pytest.mark.parametrize("python", OTHERS, ids=["3.11", "3.12", "3.13"])
def test_the_fingerprint_is_the_same_on_every_python(python):
    code = (
        "from companion import notebooks as n\n"
        "print([n.fingerprint(n.find(stem)) for stem in n.stems()])"
    )
    if not python or subprocess.run([python, "-V"], capture_output=True).returncode:
        pytest.skip("this Python is not here")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[notebooks.fingerprint(path) for path in ALL]}\n"


def test_what_is_no_python_is_named(tmp_path):
    path = tiny_notebook(tmp_path, ["x = (1"])
    with pytest.raises(ValueError, match=r"tiny\.ipynb: not Python"):
        notebooks.fingerprint(path)


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
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    for command in (["list"], ["refresh"], ["refresh", "bad"], ["run", "bad"]):
        assert main(command) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"companion: {tmp_path / 'bad.ipynb'}: not a notebook")
        assert len(err.splitlines()) == 1


def test_outside_a_checkout_commands_say_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path / "notebooks")
    for command in (["list"], ["refresh"], ["run", "snip"], ["record", "snip", "--name", "x"]):
        assert main(command) == 2
        assert re.fullmatch(
            r"companion: .* no such folder; .* checkout.*\n", capsys.readouterr().err
        )


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


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """Whatever Jupyter, IPython and Python may find on a machine, set against us."""
    home, data = tmp_path / "home", tmp_path / "jupyter"
    poison = "import builtins; builtins.POISON = True"
    start = home / ".ipython" / "profile_default"
    (start / "startup").mkdir(parents=True)
    (start / "startup" / "00.py").write_text(poison)
    for name in ("ipython_config.py", "ipython_kernel_config.py"):
        (start / name).write_text(f"c.InteractiveShellApp.exec_lines = [{poison!r}]")
    (home / "start.py").write_text(poison)
    (home / ".config" / "matplotlib").mkdir(parents=True)
    (home / ".config" / "matplotlib" / "matplotlibrc").write_text("lines.linewidth: 77")
    # a kernel called python3 and a library called companion, here, there and everywhere
    for folder in (data, home / ".local" / "share" / "jupyter"):
        (folder / "kernels" / "python3").mkdir(parents=True)
        argv = [sys.executable, "-c", "raise SystemExit('poison')", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    for folder in (tmp_path, home / "lib"):
        (folder / "companion").mkdir(parents=True)
        (folder / "companion" / "__init__.py").write_text(poison)
    for name, value in {
        "HOME": home, "JUPYTER_PATH": data, "IPYTHONDIR": home / ".ipython",
        "PYTHONSTARTUP": home / "start.py", "PYTHONPATH": home / "lib",
        "XDG_CONFIG_HOME": home / ".config", "XDG_CACHE_HOME": tmp_path / "cache",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


def test_the_kernel_has_this_interpreter_and_library_whatever_else_there_is(poisoned, tmp_path):
    path = tiny_notebook(tmp_path, SHOW_WHERE)
    before = set(poisoned.rglob("*"))  # matplotlib's cache of fonts lies elsewhere
    notebooks.refresh(path)
    assert main(["run", str(path), "-o", str(tmp_path / "out.ipynb")]) == 0
    expected = f"{sys.executable} {ROOT / 'src' / 'companion'} False 1.5\n"
    for file in (path, tmp_path / "out.ipynb"):
        assert "".join(outputs(notebooks.read(file))[-1]["text"]) == expected
    assert set(poisoned.rglob("*")) == before  # and the home is left alone


SHOW_WHERE = [
    "profile: str = 'quick'  # preset",
    "import builtins, sys\nfrom pathlib import Path",
    "import companion\nfrom matplotlib import rcParams\n"
    "print(sys.executable, Path(companion.__file__).parent, hasattr(builtins, 'POISON'), "
    "rcParams['lines.linewidth'])",
]


def test_a_kernel_with_another_library_does_not_start(tmp_path, monkeypatch, capfd):
    from companion import kernels

    other = kernels.START.replace(
        f"serve({str(kernels.LIBRARY)!r})", "serve('/another/companion')"
    )
    assert other != kernels.START
    monkeypatch.setattr(kernels, "START", other)
    path = tiny_notebook(tmp_path, ["1"])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="Kernel died"):
        notebooks.refresh(path)
    assert "not that in /another/companion" in capfd.readouterr().err
    assert path.read_bytes() == before


BUSY = """import os, subprocess, time
child = subprocess.Popen(["sleep", "100"])
text = f"{os.getpid()} {child.pid} {os.environ['IPYTHONDIR']}"
open("begun.tmp", "w").write(text); os.rename("begun.tmp", "begun")
while True: pass"""


@pytest.mark.parametrize("command", ["refresh", "run"])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_kernels_end_with_a_command_that_is_stopped(tmp_path, is_alive, command, sign):
    path = tiny_notebook(tmp_path, ["seed: int = 0  # seed", "x = 1", BUSY])
    before = path.read_bytes()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    options = ["-o", str(tmp_path / "out.ipynb")] if command == "run" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "companion", command, str(path), *options],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)}, cwd=tmp_path,
    )  # fmt: skip
    wait(lambda: (tmp_path / "begun").exists())
    kernel, child, folder = (tmp_path / "begun").read_text().split()
    assert is_alive(int(kernel))
    assert Path(folder).is_relative_to(temporary)
    process.send_signal(sign)
    said = process.communicate(timeout=60)[1]
    wait(lambda: not is_alive(int(kernel)) and not is_alive(int(child)))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["begun", "tiny.ipynb", "tmp"]
    if sign == signal.SIGKILL:
        assert process.returncode == -sign
        return
    assert process.returncode == 128 + sign
    line = said.splitlines()[-1]
    assert "Traceback" not in said
    assert command == "run" or said == f"{line}\n"  # a run shows its progress before
    assert re.match("companion: (interrupted|terminated);", line)
    assert list(temporary.iterdir()) == []


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_figures_are_stored_whatever_backend_is_set_outside_and_without_a_home(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setenv("HOME", "/dev/null/home")  # where nothing can be made, as if read-only
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = tiny_notebook(
        tmp_path, ["x = 2", "import matplotlib.pyplot as plt; plt.plot([x]); plt.show()"]
    )
    notebooks.refresh(path)
    assert "image/png" in outputs(notebooks.read(path))[0]["data"]


def test_a_path_among_the_parameters_is_the_callers(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    code = ["name: str = ''  # a file", "x = 1", "open(name, 'w').close()"]
    path = tiny_notebook(tmp_path / "notebooks", code)
    monkeypatch.chdir(tmp_path)
    _, failure = notebooks.run(path, {"name": "mine"}, show=False)
    assert not failure
    assert (tmp_path / "mine").is_file()


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
        notebooks.find("snp")


@pytest.mark.parametrize("paper", papers())
def test_a_claim_can_be_measured_in_every_profile_that_asserts_it(paper, capsys):
    path = notebooks.find(paper)
    asserting = {name for claim in load_claims(paper).values() for name in claim.asserted or ()}
    values = {name: notebooks.validate(path, {"profile": name}) for name in asserting}
    missing = [
        (claim.id, name, claim.missing(values[name]))
        for claim in load_claims(paper).values()
        for name in claim.asserted or ()
        if claim.missing(values[name])
    ]
    assert missing == []
