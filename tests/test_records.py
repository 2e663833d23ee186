"""Runs without Jupyter, their records, and the command line."""

import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from companion.__main__ import main
from companion.book import kept
from companion.files import ROOT, BusyError, to_json
from companion.notebook import ParameterError
from companion.runs import chapters, executor, exercises, fingerprint, record, records

META = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PARAMETERS = """profile: str = "quick"  # preset
steps: int = 3  # number of steps, 1 to 9
sizes: list[int] = [1, 2]  # sizes
device: str = "cpu"  # device"""
CHECK = """from companion.notebook import check_parameters
settings = check_parameters(globals(), profiles={"quick": {}, "long": {"steps": 5}}, steps=(1, 9))"""
STATED = """
C1:
  says: Steps are few.
  kind: control
  where: here
  quantities: {steps: {is: steps, within: "< 4"}}
  depends: []
  settled: {on: 2026-01-01, before_looking: true}
"""
BODY = f"""from companion.notebook import Claims, record
from companion.notebook.claims import parse_claims
claims = Claims("tiny", settings, parse_claims({STATED!r}))
record("tiny.first", steps * sum(sizes))"""
FIGURE = """import matplotlib.pyplot as plt
plt.plot([0, 1]); plt.show()"""
END = """claims.check("C1", steps=steps)
claims.settle()"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A chapter of five cells in a folder of its own; returns a function that writes it."""
    kept._runs.cache_clear()
    folder, kept_in = tmp_path / "notebooks", tmp_path / "recorded"
    folder.mkdir()
    monkeypatch.setattr(chapters, "FOLDER", folder)
    monkeypatch.setattr(records, "FOLDER", kept_in)

    def write(body=BODY, figure=FIGURE):
        tagged = {
            2: {
                "mystnb": {
                    "figure": {"name": "fig-tiny", "caption": "A line."},
                    "image": {"alt": "Line"},
                }
            }
        }
        sources = [PARAMETERS, CHECK, figure, body, END]
        cells = [
            {
                "cell_type": "code",
                "id": f"cell-{i}",
                "metadata": tagged.get(i, {}),
                "source": s,
                "outputs": [],
                "execution_count": None,
            }
            for i, s in enumerate(sources)
        ]
        cells[0]["metadata"] = {"tags": ["parameters"]}
        document = {"cells": cells, "metadata": META, "nbformat": 4, "nbformat_minor": 5}
        (folder / "tiny.ipynb").write_text(json.dumps(document))
        return kept_in / "tiny"

    return write


def test_a_record_keeps_parameters_claims_values_figures_and_provenance(tiny):
    folder = tiny()
    result = records.record_run("one", "tiny", {"sizes": [2, 3]})
    stored = json.loads((folder / "one.json").read_text())
    assert stored == json.loads(to_json(result.as_json()))
    assert record.load(folder / "one.json") == result
    assert stored["status"] == "complete"
    assert stored["values"]["tiny.first"] == 15
    assert stored["settings"] == {
        "profile": "quick",
        "steps": 3,
        "sizes": [2, 3],
        "device": "cpu",
    }
    assert stored["claims"][0]["outcome"] == "reproduced"
    assert stored["command"] == "companion record tiny --name one -p sizes '[2, 3]'"
    assert stored["fingerprint"] == fingerprint.fingerprint(chapters.find("tiny"))
    assert {"commit", "packages", "device", "hardware", "python", "date"} <= stored[
        "provenance"
    ].keys()
    (figure,) = stored["figures"]
    assert (folder / figure["file"]).read_bytes().startswith(b"\x89PNG")
    assert not [name for name in os.listdir(folder) if "part" in name]
    assert records.load_records("tiny")[0].code == record.CURRENT


def test_a_profile_and_a_value_set_by_hand_reach_the_script(tiny):
    tiny()
    run = records.record_run("one", "tiny", {"profile": "long", "steps": 3})
    assert run.settings["steps"] == 3  # by hand, though equal to the quick default


EXERCISES = """## Exercises

**1. Run.** A question with `companion run tiny -p steps 1`.

<details><summary>Hint</summary>

`companion run tiny -p steps 9`

</details>
<details><summary>Answer</summary>

`companion run tiny -p steps 4 -p sizes '[2, 3]'` and `companion run tiny -p steps 5`, not
`companion run other -p steps 6`.

</details>

**2. Derive.** No code.

<details><summary>Answer</summary>

None.

</details>

**3. Change the code.** A block.

<details><summary>Answer</summary>

```python
for n in sizes:
    print("twice", 2 * n, -0.5e-3)
```

</details>

## Sources

`companion run tiny -p steps 2`
"""


def with_exercises(tiny, text=EXERCISES):
    folder = tiny()
    path = chapters.find("tiny")
    document = json.loads(path.read_text())
    prose = {"cell_type": "markdown", "id": "prose", "metadata": {}, "source": text}
    path.write_text(json.dumps(document | {"cells": [*document["cells"], prose]}))
    return folder / "exercises"


def test_the_command_of_a_notebook_elsewhere_has_its_path(tiny, tmp_path, monkeypatch):
    folder = tiny()
    shutil.copy(chapters.find("tiny"), tmp_path / "my run.ipynb")
    monkeypatch.chdir(tmp_path)
    result = records.record_run("one", "my run.ipynb", {}, folder)
    assert result.command == "companion record 'my run.ipynb' --name one"


def test_the_runs_of_answers_are_found_and_kept_without_figures(tiny, capsys):
    folder = with_exercises(tiny)
    found = exercises.answers(chapters.find("tiny"))
    assert [(label, answer.given) for label, answer in found.items()] == [
        ("1", {"steps": 4, "sizes": [2, 3]}), ("1b", {"steps": 5}), ("3", {})
    ]  # fmt: skip
    assert main(["record", "tiny", "--exercise", "1"]) == 0
    run = record.load(folder / "exercise-1.json")
    assert run.values == {"tiny.first": 20}
    assert run.settings["steps"] == 4
    assert set(run.claims) == {"C1"}
    assert run.command == "companion record tiny --exercise 1"
    assert main(["record", "tiny", "--exercise", "3"]) == 0
    run = record.load(folder / "exercise-3.json")
    assert run.values["printed"] == ["twice 2 -0.0005", "twice 4 -0.0005"]
    assert not run.claims
    assert set(files(folder)) == {"exercise-1.json", "exercise-3.json"}
    assert [run.name for run in records.load_answers("tiny")] == ["exercise-1", "exercise-3"]
    assert not records.load_records("tiny")
    told = capsys.readouterr().out
    assert "exercise-3.json" in told
    for label, wrong in (("2", "expected one of 1, 1b, 3"), ("x", "expected one of")):
        assert main(["record", "tiny", "--exercise", label]) == 2
        assert wrong in capsys.readouterr().err
    for more in (["-p", "steps", "3"], ["--script"]):
        assert main(["record", "tiny", "--exercise", "1", *more]) == 2
        assert "leave -p, -f and --script out" in capsys.readouterr().err


def test_a_page_shows_what_an_answer_printed_and_refuses_another_code(tiny):
    with_exercises(tiny)
    records.record_answer("tiny", "3")
    said = kept.printed(EXERCISES, "tiny")
    assert said.count("It prints:\n\n```text\ntwice 2 -0.0005\ntwice 4 -0.0005\n```") == 1
    assert said.index("It prints") > said.index("print(")
    number = "{kept}`exercise-3 printed[2/%d]:g`"
    assert kept.filled(number % 1 + " " + number % 2, "tiny") == "4 −0.0005"
    for wrong in (
        "{kept}`exercise-3 printed[0/1]`",
        "{kept}`exercise-3 printed[3/1]`",
        number % 3,
        "{kept}`exercise-3 printed[x]`",
    ):
        with pytest.raises(ValueError, match=r"tiny: .*exercise-3"):
            kept.filled(wrong, "tiny")
    other = EXERCISES.replace("2 * n", "3 * n")
    with_exercises(tiny, other)
    with pytest.raises(ValueError, match="exercise 3 has changed: companion record tiny --exer"):
        kept.printed(other, "tiny")


def test_code_after_a_claim_that_failed_is_no_answer(tiny, monkeypatch):
    folder = with_exercises(tiny)
    answer = exercises.Answer({"profile": "long"}, "print(1)")
    monkeypatch.setattr(exercises, "answers", lambda path: {"3": answer})
    with pytest.raises(records.RecordError, match="C1"):
        records.record_answer("tiny", "3")
    assert not (folder / "exercise-3.json").exists()


def test_an_answer_that_fails_is_one_line(tiny):
    folder = with_exercises(tiny, EXERCISES.replace("for n in sizes", "for n in size"))
    with pytest.raises(records.RecordError, match="NameError: name 'size'"):
        records.record_answer("tiny", "3")
    assert not (folder / "exercise-3.json").exists()


def test_a_claim_that_fails_is_kept_as_a_result(tiny, capsys):
    folder = tiny()
    records.record_run("long", "tiny", {"profile": "long"})
    stored = json.loads((folder / "long.json").read_text())
    assert stored["status"] == "complete"
    assert stored["claims"][0]["outcome"] == "not reproduced"
    assert "not every claim came out" in capsys.readouterr().out


def test_a_run_that_dies_leaves_what_it_had_and_no_whole_record(tiny):
    folder = tiny(BODY + "\nraise RuntimeError('out of luck')")
    with pytest.raises(records.RecordError, match="out of luck"):
        records.record_run("one", "tiny", {})
    assert not (folder / "one.json").exists()
    part = json.loads((folder / "one.part.json").read_text())
    assert part["status"] == "failed"
    assert part["values"] == {"tiny.first": 9}


def test_a_killed_run_is_no_record(tiny):
    folder = tiny(BODY + "\nimport os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(records.RecordError, match="-9"):
        records.record_run("one", "tiny", {})
    assert not (folder / "one.json").exists()
    assert json.loads((folder / "one.part.json").read_text())["values"] == {"tiny.first": 9}


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_failed_run_does_not_touch_the_record_of_that_name_nor_its_figures(tiny):
    folder = tiny()
    records.record_run("one", "tiny", {})
    before = files(folder)
    assert set(before) == {"one.json", "one-fig-tiny.png"}
    tiny("raise RuntimeError('no')", figure=FIGURE.replace("[0, 1]", "[1, 0]"))
    with pytest.raises(records.RecordError):
        records.record_run("one", "tiny", {})
    after = files(folder)
    assert before.items() <= after.items()
    assert set(after) - set(before) == {"one.part.json", "one-fig-tiny.part.png"}
    assert records.load_records("tiny")[0].code == record.STALE

    # the next one sweeps up, and figures that the new record lacks go with the old record
    tiny(figure="")
    records.record_run("one", "tiny", {})
    assert set(files(folder)) == {"one.json"}


@pytest.mark.parametrize("step", ["start", "end"])
def test_a_full_disk_is_one_line_and_leaves_the_record_as_it_was(tiny, monkeypatch, capsys, step):
    folder = tiny()
    records.record_run("one", "tiny", {})
    before = files(folder)
    written = []

    def full(_):
        written.append(1)
        if step == "start" or len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["record", "tiny", "--name", "one"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"companion: .*one\.part\.json: No space left on device\n", said)
    assert before.items() <= files(folder).items()
    assert not list(folder.glob(".*"))


def test_a_disk_that_fills_during_the_run_is_one_line(tiny, capfd):
    """The script's own writes fail: here by a limit on the size of a file."""
    folder = tiny("from companion.notebook import Claims, record\nrecord('a', list(range(9000)))")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limit[1]))
    try:
        assert main(["record", "tiny", "--name", "one"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = capfd.readouterr().err
    assert re.fullmatch(r"companion: tiny did not finish: OSError: .*File too large.*\n", said)
    assert not (folder / "one.json").exists()


def test_two_records_of_one_name_are_not_made_at_once_whatever_the_chapters(tiny, tmp_path):
    tiny()
    begun, go = tmp_path / "begun", tmp_path / "go"
    wait = (
        f"import os, time\nopen({str(begun)!r}, 'w').close()\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.05)\n"
    )
    source = chapters.FOLDER / "tiny.ipynb"
    tiny(wait + BODY)
    shutil.copy(source, source.with_name("other.ipynb"))
    tiny()
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(records.record_run, "one", "other", {}, out)
        try:
            until(begun.exists)
            with pytest.raises(BusyError, match=r"^name = 'one': process \d+ on .* is writing"):
                records.record_run("one", "tiny", {}, out)
            records.record_run("two", "tiny", {}, out)  # another name is free
        finally:
            go.touch()
        assert first.result().paper == "other"
    assert sorted(files(out)) == ["one-fig-tiny.png", "one.json", "two-fig-tiny.png", "two.json"]
    assert json.loads((out / "one.json").read_text())["paper"] == "other"


BUSY = """import os, subprocess, sys, time
below = subprocess.Popen(["sleep", "100"])
open("{0}.new", "w").write(f"{{os.getpid()}} {{below.pid}} {{sys.argv[0]}}")
os.rename("{0}.new", "{0}")
while True: pass"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_record_that_is_stopped_ends_its_script_and_all_that_this_started(
    tiny, tmp_path, is_alive, monkeypatch, sign
):
    begun, out, temporary = tmp_path / "begun", tmp_path / "out", tmp_path / "tmp"
    temporary.mkdir()
    tiny(BODY + "\n" + BUSY.format(begun))
    process = subprocess.Popen(
        [sys.executable, "-m", "companion", "record", str(chapters.FOLDER / "tiny.ipynb"),
         "--name", "one", "--out", str(out)],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    until(begun.exists)
    script, below, code = begun.read_text().split()
    assert code.startswith(str(temporary))
    assert is_alive(int(script))
    process.send_signal(sign)
    said = process.communicate(timeout=60)[1]
    until(lambda: not is_alive(int(script)) and not is_alive(int(below)))
    part = json.loads((out / "one.part.json").read_text())
    assert part["status"] == "unfinished"
    assert part["values"] == {"tiny.first": 9}
    assert not (out / "one.json").exists()
    if sign != signal.SIGKILL:
        assert process.returncode == 128 + sign
        assert re.fullmatch("companion: (interrupted|terminated); .*\n", said)
        assert set(files(out)) == {"one.part.json", "one-fig-tiny.part.png"}
        assert not list(temporary.iterdir())
    tiny()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    records.record_run("one", "tiny", {}, out)
    assert set(files(out)) == {"one.json", "one-fig-tiny.png"}
    assert not list(temporary.iterdir())


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_bad_values_are_refused_before_anything_is_written(tiny):
    folder = tiny()
    with pytest.raises(ParameterError, match=r"steps = 12: expected a value in \[1, 9\]"):
        records.record_run("one", "tiny", {"steps": 12})
    with pytest.raises(
        ParameterError, match=r"unknown parameter 'step' \(did you mean 'steps'\?\)"
    ):
        records.record_run("one", "tiny", {"step": 2})
    with pytest.raises(ValueError, match=r"name = .\.\./one"):
        records.record_run("../one", "tiny", {})
    assert not folder.exists()


def test_a_record_too_large_is_refused(tiny):
    folder = tiny(BODY + "\nrecord('tiny.big', list(range(30_000)))")
    with pytest.raises(records.RecordError, match="record less"):
        records.record_run("one", "tiny", {})
    assert not (folder / "one.json").exists()


def test_commands_answer_bad_input_with_one_line(tiny, capsys):
    tiny()
    assert main(["record", "tiny", "--name", "x", "-p", "steps", "0.5"]) == 2
    assert main(["run", "tiny", "-p", "sizes", "3"]) == 2
    assert main(["run", "tinny"]) == 2
    assert main(["data", "--fetch", "imagenet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "steps = 0.5: expected int, got float" in lines[0]
    assert "sizes = 3: expected a list" in lines[1]
    assert "expected one of tiny" in lines[2]
    assert "digits, mnist" in lines[3]


def test_papermill_runs_a_chapter_and_shows_its_claims(tiny, tmp_path, capsys):
    tiny()
    out = tmp_path / "deep" / "out.ipynb"
    assert main(["run", "tiny", "-p", "sizes", "[4]", "-o", str(out)]) == 0
    assert chapters.recorded_values(chapters.read(out))["tiny.first"] == 12
    assert "C1    reproduced" in capsys.readouterr().out
    tiny("raise RuntimeError('out of luck')")
    assert main(["run", "tiny", "-o", str(out)]) == 1
    assert "out of luck" in capsys.readouterr().err
    assert os.listdir(out.parent) == ["out.ipynb"]
    cells = chapters.code_cells(chapters.read(out))
    assert (
        cells[-2]["outputs"][-1]["ename"] == "RuntimeError"
    )  # the failing cell and all before it
    tiny("import os; os._exit(1)")
    assert main(["run", "tiny", "-o", str(out)]) == 1
    assert "companion: the kernel died" in capsys.readouterr().err

    # an output can be run again, with other values instead of those it holds
    again = out.with_name("again.ipynb")
    tiny()
    assert main(["run", "tiny", "-p", "sizes", "[4]", "-o", str(out)]) == 0
    notebook = executor.prepared(chapters.read(out), {"sizes": [5]})
    assert [c.source for c in notebook.cells if "sizes = " in c.source] == [
        "# Parameters\nsizes = [5]\n"
    ]
    assert not again.exists()


def test_an_output_that_cannot_be_is_refused_before_the_run(tiny, tmp_path, monkeypatch, capsys):
    tiny()
    chapter = chapters.FOLDER / "tiny.ipynb"
    other = chapters.FOLDER / "other.ipynb"
    shutil.copy(chapter, other)
    before = files(chapters.FOLDER)
    (tmp_path / "link.ipynb").symlink_to(chapter)
    os.link(chapter, tmp_path / "hard.ipynb")
    (tmp_path / "folder.ipynb").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(executor, "run", None)  # nothing is run
    monkeypatch.chdir(chapters.FOLDER)
    for output, said in [
        (chapter, "is a chapter itself"),
        ("tiny.ipynb", "is a chapter itself"),
        (other, "is a chapter itself"),
        (tmp_path / "link.ipynb", "is a chapter itself"),
        (tmp_path / "hard.ipynb", "is a chapter itself"),
        (tmp_path / "folder.ipynb", "expected a file that ends in .ipynb"),
        (tmp_path, "expected a file that ends in .ipynb"),
        (tmp_path / "out", "expected a file that ends in .ipynb"),
        (tmp_path / "out.json", "expected a file that ends in .ipynb"),
        (tmp_path / "file" / "out.ipynb", "cannot be written: "),
        ("/proc/none/out.ipynb", "cannot be written: "),
    ]:
        assert main(["run", str(chapter), "-o", str(output)]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"companion: -o {output}: {said}")
        assert len(err.splitlines()) == 1
    assert files(chapters.FOLDER) == before


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), 1, "/a/b: Permission denied"),
        (OSError(30, "Read-only file system", "/a"), 1, "/a: Read-only file system"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            2,
            "x: No such file or directory",
        ),
        (FileNotFoundError("mnist is not here"), 2, "mnist is not here"),
        (ModuleNotFoundError("No module named 'nbformat'"), 1, "No module named 'nbformat'"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished before is as it was"),
    ],
)
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, error, status, said):
    def stems():
        raise error

    monkeypatch.setattr(chapters, "stems", stems)
    assert main(["list"]) == status
    assert capsys.readouterr().err == f"companion: {said}\n"


@pytest.mark.parametrize("command", ["run", "record", "refresh"])
def test_a_folder_that_is_read_only_is_one_line(tiny, tmp_path, monkeypatch, capsys, command):
    """As on a read-only mount: every attempt to make a file fails."""
    tiny()
    before = files(chapters.FOLDER)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path))

    more = ["--name", "one"] if command == "record" else []
    with monkeypatch.context() as patch:
        for module, name in ((tempfile, "mkstemp"), (tempfile, "TemporaryFile"), (Path, "mkdir")):
            patch.setattr(module, name, refuse)
        assert main([command, "tiny", *more]) in (1, 2)
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert len(said.splitlines()) == 1
    assert files(chapters.FOLDER) == before


def test_a_pipe_that_nobody_reads_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -c 'import time; time.sleep(0.5)' | true; "
        f"{sys.executable} -m companion data | true", shell=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert done.stderr == ""


def test_data_command_says_what_is_missing_and_where_it_goes(tmp_path, capsys):
    assert main(["data", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path) in said
    assert "digits         there" in said
    assert "mnist          missing" in said
    assert "MNIST/raw" in said


def test_list_names_the_chapters(capsys):
    assert main(["list"]) == 0
    assert "snip" in capsys.readouterr().out


def test_committed_records_are_whole_small_and_say_where_they_ran():
    for path in (ROOT / "book" / "recorded").glob("*/*.json"):
        text = path.read_text()
        stored = json.loads(text)
        assert stored["status"] == "complete"
        assert len(text) < records.LIMIT
        assert stored["paper"] == path.parent.name
        assert stored["name"] == path.stem
        for figure in stored.get("figures", []):
            assert (path.parent / figure["file"]).stat().st_size <= records.FIGURE_LIMIT
        assert str(ROOT) not in text


def test_the_script_form_runs_without_ipython(tiny):
    tiny()
    code = executor.script(chapters.find("tiny"), {"steps": 2})
    blocked = "import sys; sys.modules['IPython'] = None\n" + code
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny.first = 6" in done.stdout
    assert "C1 reproduced: Steps are few." in done.stdout


def test_a_figure_that_shows_nothing_is_not_kept(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    part = tmp_path / "run.part.json"
    part.write_text("{}")
    monkeypatch.setenv(records.TARGET, str(part))
    for name, values in (("empty", None), ("no points", []), ("full", [0, 1])):
        _, ax = plt.subplots()
        if values is not None:
            ax.plot(values)
        ax.set(title="a title is no content")
        records.keep_figure(name, "caption", "alt")
    assert not plt.get_fignums()
    kept = json.loads(part.read_text())["figures"]
    assert [figure["file"] for figure in kept] == ["run-full.png"]
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["run-full.part.png"]


def test_a_crowded_figure_keeps_its_colours_and_the_width_at_which_it_is_shown(tmp_path):
    import numpy as np
    from PIL import Image

    from companion.book.compare import _shown_width

    crowded = np.random.default_rng(0).integers(90, 170, (400, 600, 3), dtype=np.uint8)
    crowded[:, :100] = (213, 94, 0)
    before, after = tmp_path / "before.png", tmp_path / "after.png"
    Image.fromarray(crowded).save(before, "png", dpi=(records.DENSITY, records.DENSITY))
    after.write_bytes(records._shrink(before.read_bytes()))
    assert len(after.read_bytes()) <= records.FIGURE_LIMIT
    assert _shown_width(after) == pytest.approx(_shown_width(before), abs=1)
    colour = np.asarray(Image.open(after).convert("RGB"), dtype=float)[100, 20]
    assert abs(colour - (213, 94, 0)).max() < 12


def test_a_figure_too_large_for_the_book_loses_colours_only():
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = (
        np.kron(rng.random((20, 30, 3)), np.ones((16, 16, 1))) + rng.random((320, 480, 3)) / 50
    )
    file = io.BytesIO()
    Image.fromarray((255 * smooth.clip(0, 1)).astype("uint8")).save(file, "png")
    assert len(file.getvalue()) > records.FIGURE_LIMIT
    small = records._shrink(file.getvalue())
    assert len(small) <= records.FIGURE_LIMIT
    assert records._shrink(small) == small
    shrunk = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), dtype=float) / 255
    assert shrunk.shape == smooth.shape
    assert abs(shrunk - smooth).mean() < 0.1


def test_records_come_oldest_first_whatever_their_names(tiny):
    folder = tiny()
    at = records.provenance()
    for name, date in (("a", "2026-02-01"), ("b", "2026-01-01")):
        run = record.Run("tiny", name, provenance=at | {"date": date}, fingerprint="f" * 64)
        record.save(run, folder / f"{name}.json")
    assert [run.name for run in records.load_records("tiny")] == ["b", "a"]


def test_a_figure_drawn_again_takes_the_place_of_the_first_and_one_of_nan_none(
    tmp_path, monkeypatch
):
    import matplotlib.pyplot as plt

    part = tmp_path / "run.part.json"
    part.write_text("{}")
    monkeypatch.setenv("COMPANION_RECORD", str(part))
    for name, points in (("fig-a", [0, 1]), ("fig-a", [1, 0]), ("fig-b", [float("nan")] * 2)):
        plt.figure()
        plt.plot(points)
        records.keep_figure(name, "caption", "alt")
    (figure,) = json.loads(part.read_text())["figures"]
    assert figure["file"] == "run-fig-a.png"
    assert figure["sha256"] == records.sha256(tmp_path / "run-fig-a.part.png")
