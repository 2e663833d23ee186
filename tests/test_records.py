"""Runs without Jupyter, their records, and the command line."""

import json
import os
import subprocess
import sys

import pytest

from companion import notebooks, records
from companion.__main__ import main
from companion.parameters import ParameterError
from companion.runtime import ROOT

META = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PARAMETERS = """profile: str = "quick"  # preset
steps: int = 3  # number of steps, 1 to 9
sizes: list[int] = [1, 2]  # sizes
device: str = "cpu"  # device"""
CHECK = """from companion.parameters import check_parameters
settings = check_parameters(profiles={"quick": {"steps": 3}, "long": {"steps": 5}}, steps=(1, 9))"""
BODY = """from companion.claims import Claims, record
claims = Claims("tiny", settings)
record("tiny.first", steps * sum(sizes))"""
FIGURE = """import matplotlib.pyplot as plt
plt.plot([0, 1]); plt.show()"""
END = """claims.check("C1", "Steps are few.", source="-", ours=steps, tolerance="below 4", holds=steps < 4, depends=[])
claims.settle()"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A chapter of five cells in a folder of its own; returns a function that writes it."""
    folder, kept = tmp_path / "notebooks", tmp_path / "recorded"
    folder.mkdir()
    monkeypatch.setattr(notebooks, "FOLDER", folder)
    monkeypatch.setattr(records, "FOLDER", kept)

    def write(body=BODY):
        tagged = {
            2: {
                "mystnb": {
                    "figure": {"name": "fig-tiny", "caption": "A line."},
                    "image": {"alt": "Line"},
                }
            }
        }
        sources = [PARAMETERS, CHECK, FIGURE, body, END]
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
        return kept / "tiny"

    return write


def test_a_record_keeps_parameters_claims_values_figures_and_provenance(tiny):
    folder = tiny()
    result = records.record_run("one", "tiny", {"sizes": [2, 3]})
    stored = json.loads((folder / "one.json").read_text())
    assert stored == json.loads(json.dumps(result))
    assert stored["status"] == "complete"
    assert stored["values"]["tiny.first"] == 15
    assert stored["parameters"] == {
        "profile": "quick",
        "steps": 3,
        "sizes": [2, 3],
        "device": "cpu",
    }
    assert stored["values"]["tiny.claims"][0]["verdict"] == "holds"
    assert stored["command"] == "companion record tiny --name one -p sizes '[2, 3]'"
    assert stored["fingerprint"] == notebooks.fingerprint(notebooks.find("tiny"))
    assert {"commit", "packages", "device", "hardware", "python", "date"} <= stored[
        "provenance"
    ].keys()
    (figure,) = stored["figures"]
    assert (folder / figure["file"]).read_bytes().startswith(b"\x89PNG")
    assert not [name for name in os.listdir(folder) if "part" in name]
    assert records.load_records("tiny")[0]["stale"] is False


def test_a_profile_and_a_value_set_by_hand_reach_the_script(tiny):
    tiny()
    values = records.record_run("one", "tiny", {"profile": "long", "steps": 3})["values"]
    assert values["tiny.settings"]["steps"] == 3  # by hand, though equal to the quick default


def test_a_claim_that_fails_is_kept_as_a_result(tiny, capsys):
    folder = tiny()
    records.record_run("long", "tiny", {"profile": "long"})
    stored = json.loads((folder / "long.json").read_text())
    assert stored["status"] == "complete"
    assert stored["values"]["tiny.claims"][0]["verdict"] == "does not hold"
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


def test_a_failed_run_does_not_touch_the_record_of_that_name(tiny):
    folder = tiny()
    records.record_run("one", "tiny", {})
    before = (folder / "one.json").read_bytes()
    tiny("raise RuntimeError('no')")
    with pytest.raises(records.RecordError):
        records.record_run("one", "tiny", {})
    assert (folder / "one.json").read_bytes() == before
    assert records.load_records("tiny")[0]["stale"] is True


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
    assert notebooks.recorded_values(notebooks.read(out))["tiny.first"] == 12
    assert "C1    holds" in capsys.readouterr().out
    tiny("raise RuntimeError('out of luck')")
    assert main(["run", "tiny", "-o", str(out)]) == 1
    assert "out of luck" in capsys.readouterr().err
    assert not list(out.parent.glob("*.part*"))


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
        assert stored["stem"] == path.parent.name
        assert stored["name"] == path.stem
        for figure in stored.get("figures", []):
            assert (path.parent / figure["file"]).stat().st_size <= records.FIGURE_LIMIT
        assert str(ROOT) not in text


def test_the_script_form_runs_without_ipython(tiny):
    tiny()
    code = notebooks.script(notebooks.find("tiny"), {"steps": 2})
    blocked = "import sys; sys.modules['IPython'] = None\n" + code
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny.first = 6" in done.stdout
    assert "C1 holds" in done.stdout


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
    assert sorted(p.name for p in tmp_path.glob("*.png")) == ["run-full.png"]


def test_a_figure_too_large_for_the_book_loses_colours_only(tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    smooth = (
        np.kron(rng.random((20, 30, 3)), np.ones((16, 16, 1))) + rng.random((320, 480, 3)) / 50
    )
    file = tmp_path / "large.png"
    Image.fromarray((255 * smooth.clip(0, 1)).astype("uint8")).save(file)
    assert file.stat().st_size > records.FIGURE_LIMIT
    records._shrink(file)
    assert file.stat().st_size <= records.FIGURE_LIMIT
    shrunk = np.asarray(Image.open(file).convert("RGB"), dtype=float) / 255
    assert shrunk.shape == smooth.shape
    assert abs(shrunk - smooth).mean() < 0.1
