"""The book's build and its computed tables."""

import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image

from companion import book
from companion.book import assets, pages, performance, runs
from companion.book.building import ROOT
from companion.book.charts import Axis
from companion.book.docstrings import tidy_docstring
from companion.book.html import render
from companion.files import BusyError, locked, seal, to_json
from companion.notebook import claims
from companion.notebook.bounds import Bound
from companion.notebook.checking import NOT_REPRODUCED, NOT_RUN, REPRODUCED, Table, Verdict
from companion.runs import chapters, curves, fingerprint, gpu, record, records
from companion.runs.gpu_jobs import BUDGET, COSTS, jobs_of
from companion.runs.record import Held, Run, Sweep

tables = pytest.importorskip("companion.book.tables", reason="needs the book's dependencies")
extension = pytest.importorskip("companion.book.extension")
compare = pytest.importorskip("companion.book.compare")
result = pytest.importorskip("companion.book.result")
evidence = pytest.importorskip("companion.book.evidence")
nodes = tables.nodes


REAL_PYTHON = sys.executable
WORKING = """#!/bin/sh
echo "$@" >> {0}/calls
cat {0}/says 2>/dev/null
[ -e {0}/says ] && exit 1
mkdir -p {0}/_build/html && echo page > {0}/_build/html/index.html
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A book of two files and a jupyter-book of our own that notes that it was called."""
    for name in ("_config.yml", "_toc.yml", "index.md"):
        (tmp_path / name).write_text("one")
    for name in ("book", "notebooks", "src/companion"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "src" / "companion" / "a.py").write_text("a = 1")
    script = tmp_path / "bin" / "jupyter-book"
    script.parent.mkdir()
    script.write_text(WORKING.format(tmp_path))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.parent / "python"))
    return tmp_path


def calls(root):
    path = root / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_build_is_strict_and_says_where_to_open_the_book(root, capsys):
    assert book.build(root=root) == 0
    assert calls(root) == [f"build {root} -W -n --keep-going --builder html"]
    assert (root / "_build" / "html" / "index.html").as_uri() in capsys.readouterr().out


def test_the_book_is_printed_from_a_single_page(root, monkeypatch):
    script = root / "bin" / "jupyter-book"
    script.write_text(WORKING.replace("_build/html", "_build/singlehtml").format(root))
    browser = root / "bin" / "chromium"
    browser.write_text(
        '#!/bin/sh\nfor o; do case $o in --print-to-pdf=*) echo "$o" > "${o#*=}"; esac; done\n'
    )
    browser.chmod(0o755)
    monkeypatch.setenv("PATH", f"{browser.parent}:/usr/bin:/bin")
    pdf = book.print_book(root)
    assert pdf == root / "_build" / "paper-companion.pdf"
    assert pdf.is_file()
    assert calls(root) == [f"build {root} -W -n --keep-going --builder singlehtml"]
    (root / "says").write_text("WARNING: a link that leads nowhere")
    with pytest.raises(book.BuildError, match="leads nowhere"):
        book.print_book(root)


def test_nothing_is_built_again_unless_something_changed_or_it_is_forced(root, capsys):
    book.build(root=root)
    book.build(root=root)
    assert len(calls(root)) == 1
    assert "up to date" in capsys.readouterr().out
    book.build(root=root, force=True)
    assert len(calls(root)) == 2
    (root / "src" / "companion" / "a.py").write_text("a = 2")
    book.build(root=root)
    assert len(calls(root)) == 3


def test_a_warning_is_an_error_and_the_next_call_builds_again(root):
    book.build(root=root)
    (root / "says").write_text("reading\nindex.md:3: WARNING: unknown document: 'gone'\n")
    (root / "index.md").write_text("two")
    with pytest.raises(book.BuildError, match="unknown document: 'gone'"):
        book.build(root=root)
    assert not (root / "_build" / "html").exists()  # no old site is left to be taken for the new
    (root / "says").unlink()
    book.build(root=root)
    assert len(calls(root)) == 3


def test_a_build_starts_from_a_clean_folder(root):
    left = root / "_build" / "html" / "of-yesterday.html"
    left.parent.mkdir(parents=True)
    left.write_text("")
    book.build(root=root)
    assert not left.exists()


def test_two_builds_at_once_are_refused(root):
    (root / "_build").mkdir()
    with locked(root / "_build" / ".lock", "busy"), pytest.raises(BusyError, match="is building"):
        book.build(root=root)
    assert not calls(root)
    book.build(root=root)
    assert set(os.listdir(root / "_build")) == {"html", "build.log", "built-from"}


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_build_that_is_stopped_takes_its_child_with_it(root, is_alive, sign):
    """Killed outright it cannot; then the child holds the lock as long as it writes."""
    begun, script = root / "begun", root / "bin" / "jupyter-book"
    script.write_text(
        f"#!/bin/sh\nsleep 100 &\necho $$ $! > {begun}.new\nmv {begun}.new {begun}\nwait\n"
    )
    code = (
        "import sys; from pathlib import Path; from companion import book\n"
        f"import companion.__main__ as m; sys.executable = {str(root / 'bin' / 'python')!r}\n"
        f"m._build = lambda _: book.build(root=Path({str(root)!r}))\n"
        "sys.exit(m.main(['build']))"
    )
    process = subprocess.Popen(
        [REAL_PYTHON, "-c", code], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    end = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    pids = [int(pid) for pid in begun.read_text().split()]
    process.send_signal(sign)
    said = process.communicate()[1]
    if sign == signal.SIGKILL:
        with pytest.raises(BusyError, match=f"process {process.pid}"):
            book.build(root=root)
        os.killpg(pids[0], signal.SIGKILL)
    else:
        assert process.returncode == 128 + sign
        assert re.fullmatch("companion: (interrupted|terminated); .*\n", said)
    end = time.monotonic() + 60
    while any(map(is_alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.05)
    script.write_text(WORKING.format(root))
    assert book.build(root=root) == 0


def test_outside_a_checkout_there_is_nothing_to_build(tmp_path):
    with pytest.raises(book.BuildError, match="no checkout of the project, it lacks"):
        book.build(root=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["_toc.yml", "book/new.md", "notebooks/a.ipynb", "src/companion/b/c.py"]
)
def test_the_hash_sees_every_file_that_the_book_reads(root, name):
    before = book.content_hash(root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("new")
    assert book.content_hash(root) != before


@pytest.mark.parametrize(
    "name",
    ["src/companion/__pycache__/a.pyc", "book/x.json.part", "book/x.part.json", "README.md"],
)
def test_the_hash_passes_over_what_the_book_does_not_read(root, name):
    before = book.content_hash(root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("new")
    assert book.content_hash(root) == before


def test_the_hash_sees_a_file_that_was_renamed(root):
    before = book.content_hash(root)
    (root / "src" / "companion" / "a.py").rename(root / "src" / "companion" / "b.py")
    assert book.content_hash(root) != before


def test_without_jupyter_book_the_message_says_what_to_install(root):
    (root / "bin" / "jupyter-book").unlink()
    with pytest.raises(book.BuildError, match="install"):
        book.build(root=root)


# ---------------------------------------------------------------- tables


STATED = """
C1:
  says: Sentence of C1.
  kind: paper
  where: §1
  reported:
    - {what: error, value: 2, unit: "%", at: "memory", certainty: memory}
  quantities:
    error: {is: our error, unit: "%", within: "<= 3"}
  settled: {on: 2026-01-01, before_looking: true}
"""


@pytest.fixture
def stated(monkeypatch):
    """The claims of every paper are C1, C2 and C10."""
    found = claims.parse_claims("".join(STATED.replace("C1", id) for id in ("C1", "C2", "C10")))
    for module in (compare, result, pages, runs, evidence):
        monkeypatch.setattr(module, "load_claims", lambda paper: found)
    monkeypatch.setattr(record, "load_claims", lambda paper: found)
    monkeypatch.setattr(record, "papers", lambda: ["a", "snip", "tiny"])
    return found


def verdict(id, error=3.0, **other):
    outcome = NOT_RUN if error is None else REPRODUCED if error <= 3 else NOT_REPRODUCED
    measured = {} if error is None else {"error": error}
    return Verdict(
        id, outcome, **({"asserted": True, "profile": "quick", "measured": measured} | other)
    )


def run(name, *verdicts, device="cpu", **other):
    fields = {
        "profile": "quick", "claims": {v.id: v for v in verdicts}, "command": f"run {name}", "seconds": 7,
        "provenance": {"device": device},
    }  # fmt: skip
    return Run("snip", name, **(fields | other))


def sweep(name, **held):
    counts = {id: Held(*count) for id, count in held.items()}
    return Sweep("snip", name, f"sweep {name}", "", 4, 7, counts, {}, "")


def cells(table):
    return [
        [entry.astext() for entry in row.findall(nodes.entry)] for row in table.findall(nodes.row)
    ]


def sentences(rows):
    """The claims whose sentences have the width of the table."""
    return [row[0].partition(" ")[0] for row in rows if len(row) == 1]


def compared(kept):
    """The one table of runs beside each other."""
    (table,) = [t for node in compare.comparisons("snip", kept) for t in node.findall(nodes.table)]
    return table


def test_a_sweep_tells_which_claims_did_not_hold_in_every_run():
    held = {"C1": Held(5, 5), "C2": Held(3, 5)}
    assert tables.held_sentence(held) == "Reproduced in every run: C1; C2 in 3 of 5."
    assert "All 1 claims" in tables.held_sentence({"C1": held["C1"]})
    assert tables.held_sentence({"C2": held["C2"]}) == "Reproduced: C2 in 3 of 5."


@pytest.fixture
def kept(tmp_path):
    path = tmp_path / "seeds.csv"
    path.write_text(
        "seed,depth,e.a.90,e.a.95,e.b.90,e.b.95,e.c.low,all\n"
        "0,3,1,2,5,6,7,10\n"
        "1,3,3,4,5,,8,20\n"
        "1,7,3,4,5,8,9,60\n"
    )
    return path


def test_a_curve_takes_its_places_from_the_columns_or_from_a_parameter(kept):
    found = curves.read_curves(kept, {"a": "e.a.{x}", "b": "e.b.{x}", "named": "e.c.{x}"})
    assert found["a"] == {90.0: [1, 3, 3], 95.0: [2, 4, 4]}
    assert found["b"] == {90.0: [5, 5, 5], 95.0: [6, 8]}
    assert found["named"] == {"low": [7, 8, 9]}
    assert curves.read_curves(kept, {"all": "all"}, across="depth")["all"] == {
        3.0: [10, 20],
        7.0: [60],
    }
    assert curves.read_curves(kept, {"all": "all"})["all"] == {"": [10, 20, 60]}
    assert curves.read_curves(kept, {"both": "e.*.95"}, "depth")["both"] == {
        3.0: [2, 6, 4],
        7.0: [4, 8],
    }


@pytest.mark.parametrize(
    ("wanted", "across", "message"),
    [
        ({"a": "e.d.{x}"}, "", "'e.d.{x}' matches no column of seeds.csv"),
        ({"a": "e.a.9"}, "", "'e.a.9' matches no column"),
        ({"a": "all"}, "width", "'width' is no column of seeds.csv"),
    ],
)
def test_a_curve_that_is_not_in_the_table_is_named(kept, wanted, across, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        curves.read_curves(kept, wanted, across)


def test_curves_are_drawn_at_their_means_and_over_their_range(monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "_png", drawn.append)
    curves.draw({"a": {2.0: [1, 3], 1.0: [5, 5]}}, "x", "y", ["y"], "chance: 4")
    curves.draw({"a": {"": [1, 3]}, "b": {"": [2]}}, "", "score")
    ax = drawn[0].axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[1, 5], [2, 2]]
    box = ax.collections[0].get_paths()[0].get_extents()
    assert (box.ymin, box.ymax) == (1, 5)
    assert ax.lines[1].get_ydata() == [4, 4]
    assert ax.get_yscale() == "log"
    dots = drawn[1].axes[0]
    assert [list(line.get_xdata()) for line in dots.lines[:2]] == [[1, 3], [2]]
    assert [label.get_text() for label in dots.get_yticklabels()] == ["a", "b"]


def test_a_time_is_shown_in_the_unit_that_suits_it():
    times = {45: "45 s", 150: "2.5 min", 7200: "2 h", 200 * 86400: "200 days"}
    assert {seconds: runs.shown_time(seconds) for seconds in times} == times


def test_recorded_measures_become_a_table():
    measures = {"eth": {"ADE": [0.678149, 1.34425], "missed": 0.04}, "hotel": {"ADE": [0.5, 1]}}
    assert cells(compare.measures("a", [run("x", values={"a.measures": measures})])[0]) == [
        ["Run", "", "ADE", "missed"],
        ["x", "eth", "0.678 / 1.34", "0.04"],
        ["x", "hotel", "0.5 / 1", "–"],
    ]
    assert compare.measures("a", [run("x")]) == []


@pytest.mark.parametrize(("code", "shown"), [("stale", "stale"), ("earlier", "earlier code")])
def test_a_run_of_other_code_is_marked_and_in_the_text_if_it_is_stale(stated, code, shown):
    def pills(node):
        return {n.astext() for n in node.findall(nodes.inline) if "verdict" in n["classes"]}

    old = run("old", verdict("C1"), code=code)
    both = [run("stored", verdict("C1")), old]
    _, stored, marked = cells(tables.runs_table(both))
    assert (stored[4], marked[4]) == ("complete", f"complete\n\n{shown}")
    assert pills(compare.provenance("snip", old)[0]) == {shown}
    assert pills(compare.provenance("snip", both[0])) == set()
    assert "has changed since" in compare.provenance("snip", old).astext()
    in_text = {"stale"} if code == "stale" else set()
    assert ("stale" in cells(compare.comparison(stated.values(), both))[0][2]) == bool(in_text)
    (group,) = compare.provenances("snip", both)
    assert pills(group[0]) == in_text
    kept = replace(sweep("seeds", C1=(3, 3)), code=code)
    _, told, fold = tables.sweep_nodes(kept, b"", "Caption.", "Text.")
    assert pills(told) == in_text
    assert ("default run gives the same results" in fold.astext()) == (code == "earlier")


@pytest.mark.parametrize(
    ("device", "status", "said"),
    [("cuda", "complete", False), ("cuda", "failed", True), ("cpu", "complete", True)],
)
def test_only_a_finished_run_on_a_gpu_counts_as_one(device, status, said):
    told = tables.gpu_note("snip", [run("paper", device=device, status=status)])
    assert bool(told) is said
    assert not said or told[1].astext() == runs.gpu_command("snip")
    cost = runs.shown_time(sum(job.seconds for job in jobs_of("snip")))
    text = f"about {cost} on an H100, estimated; it needs the data sets"
    assert not said or text in told[0].astext()


@pytest.mark.parametrize("stem", [*filter(jobs_of, chapters.stems())])
def test_the_command_for_a_gpu_can_work_within_its_budget(stem):
    said, _, budget = runs.gpu_command(stem).partition(" --budget ")
    program, command, only, *names = said.split()
    assert (program, command, only) == ("companion", "gpu", "--only")
    jobs = gpu.chosen(names)
    assert [job.name for job in jobs] == names
    assert all(job.stem == stem and job.folder == "recorded" for job in jobs)
    needed = sum(job.seconds for job in jobs) + gpu.CLOSING + 20  # a start
    assert needed < int(budget or BUDGET)


@pytest.mark.parametrize("stem", chapters.stems())
def test_every_profile_has_its_cost(stem):
    presets = chapters.presets(chapters.find(stem))
    assert COSTS.get(stem, presets).keys() == presets.keys()
    for job in jobs_of(stem):
        if list(job.given) in ([], ["profile"]):
            assert COSTS[stem][job.given.get("profile", "quick")][1] == job.seconds


def test_a_measured_time_takes_the_place_of_an_estimate():
    mine = [
        run("a", profile="quick", seconds=80.0, device="cpu"),
        run("b", profile="quick", seconds=70.0, device="cpu"),
        run("c", profile="quick", seconds=9.0, device="cpu", status="failed"),
        run("d", profile="mnist", seconds=500.0, device="cuda"),
    ]
    rows = {profile: more for profile, *more in runs.costs("snip", mine)}
    assert rows["quick"] == ["digits", "70 s", "about 30 s, estimated"]
    assert rows["mnist"] == ["mnist", "about 20 min, estimated", "8.3 min"]
    assert rows["paper_vgg_d"][1:] == ["about 14 days, estimated", "about 60 min, estimated"]


def test_a_claim_that_is_known_not_to_reproduce_is_told_from_a_surprise(stated):
    def told(**other):
        both = [run("stored"), run("a", verdict("C1", **other))]
        return cells(compared(both))[2][2].partition("\n")[0]

    assert told(error=4.0) == "✗ not reproduced, against expectation"
    stated["C1"] = replace(stated["C1"], expected=False)
    assert told(error=4.0) == "✗ not reproduced, as known"
    assert told(error=1.5) == "✓ reproduced, against expectation"
    assert told(error=2.985, asserted=False) == "✓ reproduced (not asserted in this run)"


def test_every_paper_has_its_entry_in_the_bibliography():
    entries = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    papers = runs.papers()
    assert len({paper["stem"] for paper in papers}) == len(papers)
    for paper in papers:
        _, _, entry = entries.partition("{" + paper["cite"] + ",")
        assert paper["arxiv"] in entry.partition("\n}")[0], paper["stem"]


def test_every_chapter_is_a_known_paper_and_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = {chapter["file"] for part in toc["parts"] for chapter in part["chapters"]}
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert stems <= {paper["stem"] for paper in runs.papers()}
    assert {f"notebooks/{stem}" for stem in stems} <= listed


@pytest.fixture
def chapter(tmp_path, monkeypatch, stated):
    """A chapter and its folder of records, apart from the real ones."""
    from companion.runs import chapters

    cells = [
        {"cell_type": "code", "source": "a: int = 1", "outputs": [], "metadata": {}},
    ]
    path = tmp_path / "tiny.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {}}))
    monkeypatch.setattr(chapters, "FOLDER", tmp_path)
    monkeypatch.setattr(records, "FOLDER", tmp_path / "recorded")
    folder = tmp_path / "recorded" / "tiny"
    folder.mkdir(parents=True)

    def keep(name, **other):
        (folder / "f.png").write_bytes(b"a picture")
        figure = {"file": "f.png", "name": f"fig-{name}", "caption": "A.", "alt": "B."}
        figure["sha256"] = hashlib.sha256(b"a picture").hexdigest()
        fields = {
            "profile": "quick", "fingerprint": fingerprint.fingerprint(path), "seconds": 5, "figures": [figure],
            "command": f"companion record tiny --name {name}", "peak_memory": {"process_mb": 1234},
            "provenance": {"device": "cpu", "hardware": "Some CPU", "date": "2026-01-02", "commit": "abc"},
            "claims": {"C1": verdict("C1")}, "data": {"digits": "f" * 64},
        }  # fmt: skip
        record.save(Run("tiny", name, **(fields | other)), folder / f"{name}.json")

    return keep


def shown(name):
    from docutils.utils import new_document

    document = new_document("page")
    document += [
        node
        for run in records.load_records(name)
        for node in [
            *compare.unfinished(run),
            *compare.comparisons(name, [Run(name, "stored"), run]),
            *compare.figures(name, [run]),
            compare.provenance(name, run),
        ]
    ]
    return document


def test_a_record_is_shown_with_all_that_a_reader_needs_to_judge_it(chapter):
    chapter("mnist")
    page = shown("tiny")
    text = page.astext()
    for part in ("mnist", "Some CPU (cpu)", "2026-01-02", "5 s", "1,234 MB", "abc", "f" * 64,
                 "companion record tiny --name mnist", "Sentence of C1."):  # fmt: skip
        assert part in text, part
    assert "stale" not in text.lower()
    (image,) = page.findall(nodes.image)
    assert image["uri"] == "/book/recorded/tiny/f.png"
    # not the caption of the record, which may tell what another run shows
    assert image["alt"].startswith("Fig, drawn by the run mnist")
    assert "A." not in image["alt"]
    assert image["loading"] == "lazy"
    assert "fig-mnist" in image.parent["ids"]


def drawn(name, shas):
    figures = [
        {"name": figure, "file": f"{name}-{figure}.png", "sha256": sha, "caption": "", "alt": "A."}
        for figure, sha in shas.items()
    ]
    return Run("snip", name, figures=figures, seconds=1.0)


def test_a_chapter_chooses_which_figures_of_its_runs_are_shown():
    runs = [
        drawn("a", {"fig-snip-law-a": "1", "fig-snip-errors-a": "2", "fig-snip-batch-a": "3"}),
        drawn("b", {"fig-snip-law-b": "4"}),
    ]
    (fold,) = compare.figures("snip", runs, ["errors", "law"])
    assert [image["uri"].rpartition("/")[2] for image in fold.findall(nodes.image)] == [
        "a-fig-snip-errors-a.png", "a-fig-snip-law-a.png", "b-fig-snip-law-b.png",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no run of snip recorded lwa; there are law, errors"):
        compare.figures("snip", runs, ["lwa"])
    assert compare.figures("snip", [], ["law"]) == []


def test_a_figure_that_several_runs_share_is_not_shown_again():
    runs = [
        drawn("a", {"fig-law": "1" * 64, "fig-errors": "2" * 64}),
        drawn("b", {"fig-law": "1" * 64, "fig-errors": "3" * 64}),
        drawn("c", {"fig-law": "4" * 64}),
    ]
    (fold,) = compare.figures("snip", runs)
    assert [image["uri"].rpartition("/")[2] for image in fold.findall(nodes.image)] == [
        "a-fig-law.png", "c-fig-law.png", "a-fig-errors.png", "b-fig-errors.png",
    ]  # fmt: skip
    assert "Fig law, a, b" in fold.astext()
    assert (
        compare.figures("snip", [drawn("a", {"fig-law": "1"}), drawn("b", {"fig-law": "1"})]) == []
    )


@pytest.mark.parametrize(
    ("known", "shown_as", "not_shown"),
    [
        (
            {"commit": "abc", "changed_since_commit": None},
            "changed since is not known",
            "with changes",
        ),
        ({"commit": "abc"}, "changed since is not known", "with changes"),
        ({"commit": "abc", "changed_since_commit": True}, "with changes that were", "not known"),
        ({"commit": "abc", "changed_since_commit": False}, "commit abc", "change"),
        ({"commit": "", "changed_since_commit": False}, "commit not known", "change"),
    ],
)
def test_code_of_unknown_state_is_never_shown_as_unchanged(chapter, known, shown_as, not_shown):
    where = {"device": "cpu", "hardware": "Some CPU", "date": "2026-01-02"}

    def told():
        (row,) = [r.astext() for r in shown("tiny").findall(nodes.row) if "commit" in r.astext()]
        return row

    chapter("mnist", provenance=where | known, fingerprint="0" * 64)
    assert shown_as in told()
    assert not_shown not in told()
    chapter("mnist", provenance=where | known)
    marked = known["commit"] and known.get("changed_since_commit") is not False
    assert ("were those of this book" in told()) == bool(marked)
    assert "not known" not in told().replace("commit not known", "")


def test_a_record_of_other_code_is_shown_and_called_stale(chapter):
    chapter("old", fingerprint="0" * 64)
    assert "stale" in shown("tiny").astext()
    assert "Sentence of C1." in shown("tiny").astext()


@pytest.mark.parametrize("where", ["measured", "seconds", "caption", "picture", "no picture"])
def test_a_record_that_was_edited_is_not_shown(chapter, tmp_path, where):
    chapter("mnist")
    file = tmp_path / "recorded" / "tiny" / "mnist.json"
    kept = json.loads(file.read_text())
    if where == "measured":
        kept["claims"][0]["measured"]["error"] = 2
    elif where == "seconds":
        kept["seconds"] = 4
    elif where == "caption":
        kept["figures"][0]["caption"] = "B."
    elif where == "picture":
        file.with_name("f.png").write_bytes(b"another")
    else:
        file.with_name("f.png").unlink()
    file.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=r"(mnist\.json|f\.png): not as"):
        shown("tiny")


def test_a_claims_table_is_made_from_what_the_run_recorded(stated):
    items = [verdict("C2"), verdict("C1", 3.5)]
    recorded = {
        "data": {"application/json": [asdict(item) for item in items]},
        "metadata": {"scrapbook": {"name": "a.claims"}},
    }
    edited = {"data": {"text/html": ['<table class="claims">', "2 %</table>"]}}
    other = {"data": {"text/html": "<table>another</table>"}}
    cells = [
        {"cell_type": "code", "source": "", "outputs": found}
        for found in ([edited, other], [recorded])
    ]
    first, second = pages.derive({"cells": cells}, "a")["cells"][0]["outputs"]
    shown = first["data"]["text/html"]
    page = BeautifulSoup(shown.replace("<br>", "\n"), "html.parser")
    groups = page.select("tbody")
    assert [group["id"] for group in groups] == ["claim-C1", "claim-C2"]
    assert [group.a["href"].partition("#")[2] for group in groups] == ["a-C1", "a-C2"]
    for group, (id, says, _, ours, outcome) in zip(
        groups, Table(stated, reversed(items)).rows(), strict=True
    ):
        (number, sentence, verdict_), values = (
            [cell.get_text() for cell in row.find_all(["th", "td"])] for row in group("tr")
        )
        assert (number, sentence) == (id, says)
        assert verdict_ == pages.MARGIN.sub(pages._in_words, outcome)
        reported = "\n".join(map(str, stated[id].reported))
        assert values == ([reported, ours] if reported else [f"Ours: {ours}"])
    assert second == other

    stated["C2"] = replace(stated["C2"], kind="control", reported=())
    shown = pages.derive({"cells": cells}, "a")["cells"][0]["outputs"][0]["data"]["text/html"]
    mine, fold = shown.split('<details class="fold">')
    assert 'id="claim-C1"' in mine
    assert "C2" not in mine
    assert fold.startswith("<summary>Our own checks: 1 reproduced</summary>")
    assert 'id="claim-C2"' in fold
    assert fold.endswith("</table></details>")

    value = claims.Reported("R", 2.0, "Table 1", "read")
    for second, expected in [
        (value, "R: 2<br>R: 2<br>all from Table 1"), (replace(value, at="Fig. 2"), "R: 2 (Table 1)<br>R: 2 (Fig. 2)"),
    ]:  # fmt: skip
        stated["C1"] = replace(stated["C1"], reported=(value, second))
        made = pages.derive({"cells": cells}, "a")["cells"][0]["outputs"][0]["data"]["text/html"]
        assert f"<td>{expected}</td>" in made


# ---------------------------------------------------------------- the page of a chapter


def code(source, *tags, outputs=(), **metadata):
    return {
        "cell_type": "code", "source": source, "outputs": list(outputs), "metadata": {"tags": list(tags)} | metadata,
    }  # fmt: skip


def prose(source):
    return {"cell_type": "markdown", "source": source, "metadata": {}}


def html_output(text):
    return {"output_type": "display_data", "data": {"text/html": text}, "metadata": {}}


FIGURE = {"mystnb": {"figure": {"name": "fig-a-first", "caption": "C."}}}
BADGE = '<div class="claim-badge holds"><b>✓ C1</b> old text</div>'
PROGRESS = {"output_type": "display_data", "data": {"text/plain": "3 networks"}, "metadata": {}}


@pytest.fixture
def paged(stated):
    record = {
        "output_type": "display_data",
        "data": {"application/json": [asdict(verdict("C1"))], "text/plain": "x"},
        "metadata": {"scrapbook": {"name": "a.claims"}},
    }
    said = {"output_type": "stream", "name": "stdout", "text": "classes: 10"}
    cells = [
        prose("# A"), prose("Three sentences."), prose("Takes 3 s."),
        code("x: int = 1  # x", "parameters"), code("check_parameters()", "remove-input"), code("import a"),
        prose("## One"),
        code("draw()", "opening", outputs=[PROGRESS, html_output("<svg>")], **FIGURE),
        code('claims.check("C1", error=2)', outputs=[html_output(BADGE), said]),
        code("show_source(a.b)", outputs=[html_output("code")]),
        code("a = b", outputs=[said, PROGRESS]),
        code("claims.settle()", "remove-cell", outputs=[record]),
    ]  # fmt: skip
    return json.loads(pages.page(json.dumps({"cells": cells, "metadata": {}}), "a"))["cells"]


def test_a_page_opens_with_its_figure_its_result_and_how_to_run_it(paged):
    head = [cell["source"].partition("\n")[0] for cell in paged[:9]]
    assert head == [
        "# A", "Three sentences.", "# opens the page", "```{result} a", "```{runit} a", "Takes 3 s.",
        "x: int = 1  # x", "check_parameters()", "import a",
    ]  # fmt: skip
    assert [o["data"] for o in paged[2]["outputs"]] == [{"text/html": "<svg>"}]
    assert paged[2]["metadata"]["mystnb"]["figure"]["name"] == "fig-a-first"
    assert "remove-cell" in paged[6]["metadata"]["tags"]  # a table shows the parameters


def test_links_to_related_chapters_stand_before_the_sources_once():
    for source in ("## Sources\n\nA.", "## See also\n\n```{related} a\n```\n\n## Sources\n\nA."):
        cells = [prose("# A"), prose(source)]
        pages._relate(cells, "a")
        assert cells[1]["source"] == "## See also\n\n```{related} a\n```\n\n## Sources\n\nA."


def test_the_opening_figure_stands_once_and_its_code_where_it_was_run(paged):
    (left,) = [cell for cell in paged if cell["source"] == "draw()"]
    assert left["outputs"] == []
    assert "figure" not in left["metadata"]["mystnb"]
    assert "hide-input" in left["metadata"]["tags"]


def test_code_of_checks_and_of_sources_is_folded_or_left_out(paged):
    by = {cell["source"]: cell for cell in paged}
    check = by['claims.check("C1", error=2)']
    assert "hide-input" in check["metadata"]["tags"]
    assert check["metadata"]["mystnb"]["code_prompt_show"] == "Code of the check"
    assert "remove-input" in by["show_source(a.b)"]["metadata"]["tags"]
    for shown, figure, said in [
        ({"text/markdown": "| a |"}, {}, "Table and its code"),
        ({"image/png": "a"}, {"figure": {}}, "Figure and its code"),
        ({"text/plain": "a"}, {}, "Code"),
    ]:
        folded = code("a", "hide-cell", outputs=[{"data": shown}], mystnb=figure)
        pages._fold(folded)
        assert folded["metadata"]["mystnb"]["code_prompt_show"] == said
    assert by["a = b"]["metadata"]["tags"] == []  # the method stays open


def test_residue_is_left_out_of_a_page_and_results_are_not(paged):
    by = {cell["source"]: cell for cell in paged}
    (badge,) = by['claims.check("C1", error=2)']["outputs"]  # not what the check printed
    assert [o["output_type"] for o in by["a = b"]["outputs"]] == ["stream"]
    assert badge["data"]["text/html"].endswith(' <a href="#claim-C1">details of C1</a></div>')
    assert "old text" not in badge["data"]["text/html"]


def test_a_badge_of_a_claim_that_was_not_run_leaves_its_bounds_to_the_table(stated):
    def badge(found):
        record = html_output("") | {
            "data": {"application/json": [asdict(found)], "text/plain": "x"},
            "metadata": {"scrapbook": {"name": "a.claims"}},
        }
        cells = [code("claims.check()", outputs=[html_output(BADGE)]), code("b", outputs=[record])]
        pages.derive({"cells": cells, "metadata": {}}, "a")
        return cells[0]["outputs"][0]["data"]["text/html"]

    assert "(at most 3 %)" in badge(verdict("C1"))
    open_ = badge(Verdict("C1", NOT_RUN, asserted=False, why="needs data"))
    assert "needs data" in open_
    assert "at most" not in open_
    assert open_.endswith(' <a href="#claim-C1">details of C1</a></div>')


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("0.47 % outside", "just outside"), ("5 % inside", "5 % inside"),
        ("99 % inside", "99 % inside"), ("1,080 % inside", "far inside"),
    ],
)  # fmt: skip
def test_a_margin_whose_number_says_little_is_in_words(said, shown):
    text = pages.MARGIN.sub(pages._in_words, f"reproduced; {said} the bound</i>")
    assert text == f"reproduced; {shown} the bound</i>"


def test_numbers_of_a_table_are_set_as_in_prose():
    table = "| a-1 | b 2% |\n| --- | ---: |\n| -632 | 87% | -inf | inf | 1,000 |"
    assert pages.NUMBER.sub(pages._typeset, table) == (
        "| a-1 | b 2% |\n| --- | ---: |\n| −632 | 87 % | −∞ | ∞ | 1,000 |"
    )


def test_an_aside_is_folded_up_to_the_next_heading():
    cells = [
        prose("## A\n\n### Why a < b\n<!-- aside -->\n\nFirst."), code("## no heading"),
        prose("Last.\n\n### C\n<!-- aside -->\nSecond.\n\n## D\n\n### E"),
    ]  # fmt: skip
    pages._fold_asides(cells)
    fold = '<details class="fold aside"><summary>{}</summary>\n\n'
    first = fold.format("Why a &lt; b")
    assert cells[0]["source"] == f"## A\n\n{first}\nFirst."
    assert cells[1]["source"] == "## no heading"
    second = fold.format("C")
    assert cells[2]["source"] == (
        f"Last.\n\n</details>\n\n{second}Second.\n\n</details>\n\n## D\n\n### E"
    )


def test_an_aside_without_an_end_is_refused():
    with pytest.raises(ValueError, match="aside"):
        pages._fold_asides([prose("### A\n<!-- aside -->\n\nText."), code("a")])


def test_a_notebook_without_parameters_is_read_as_it_is():
    cells = [prose("# A"), code("x = 1")]
    with pytest.raises(ValueError, match="paper = 'none'"):
        pages.page(json.dumps({"cells": cells}), "none")


def test_parameters_are_read_with_their_defaults_and_meaning():
    source = 'a: list[float] = [0.9, 1]  # removed, in [0, 1)\nb: str = ""  # x = y'
    assert pages.parameter_rows(source) == [
        ("a", "[0.9, 1]", "removed, in [0, 1)"), ("b", '""', "x = y"),
    ]  # fmt: skip


@pytest.mark.parametrize("stem", chapters.stems())
def test_every_parameter_of_a_chapter_is_in_its_table(stem):
    path = chapters.find(stem)
    rows = pages.parameter_rows(chapters.code_cells(chapters.read(path))[0]["source"])
    assert [name for name, *_ in rows] == list(chapters.declared(path))


def test_the_result_box_counts_the_papers_claims_and_links_those_that_were_not(stated):
    both = [run("stored", verdict("C1"), verdict("C2", 4)), run("b", verdict("C2"))]
    box = result.result_box(None, "other", both, [])
    assert box.astext().startswith("1 of 3 claims of the paper reproduced")
    assert [(link.astext(), link["refuri"]) for link in box.findall(nodes.reference)] == [
        ("C2", "#claim-C2"), ("C10", "#claim-C10"),
    ]  # fmt: skip
    assert 'aria-label="1 in some runs only, 1 not run yet, 1 reproduced"' in box.astext()


def test_a_main_number_names_its_source_and_the_runs_that_measured_it():
    main = runs.about()["visual_compiler"]["main"]
    settings = {"dataset": "procedural", "width": 160, "n_train": 1200}
    both = [
        Run(
            "visual_compiler", name, settings=settings,
            values={main["value"]: value, "visual_compiler.scene": 0.9},
        )
        for name, value in (("stored", 0.5), ("pets", None))
    ]  # fmt: skip
    _, *rows = cells(result._main_number("visual_compiler", main, both))
    assert [row[:2] for row in rows] == [["the author's code", "0.735"], ["default run", "0.5"]]


@pytest.fixture
def ratio_of_2(monkeypatch):
    """A main number, of which the paper reports 2."""
    value = claims.Reported("R", 2.0, "§1", "read")
    claim = replace(claims.load_claims("snip")["C10"], reported=(value,))
    monkeypatch.setattr(result, "load_claims", lambda paper: {"C1": claim})
    reported = {"claim": "C1", "what": "R", "setting": "MNIST"}
    return {"what": "ratio", "unit": "", "value": "ratio", "reported": reported}


def test_the_main_number_leaves_out_a_run_or_a_value_that_has_none(ratio_of_2):
    main = ratio_of_2 | {"beside": {"half": "half"}}
    kept = [run("stored", values={"ratio": 3.0, "half": None}), run("b", values={"ratio": None})]
    text = result._main_number("snip", main, kept).astext()
    assert "default run" in text
    assert "run b" not in text
    assert "half" not in text


def test_a_main_number_that_runs_share_stands_once_with_its_setting_in_the_singular(ratio_of_2):
    main = ratio_of_2 | {"settings": {"steps": "{} steps"}}

    def named(name, ratio, steps=1):
        kept = run(name, values={"ratio": ratio, "ratio.seeds": [ratio]})
        return replace(kept, settings={"steps": steps})

    def rows(*runs):
        return cells(result._main_number("snip", main, list(runs)))[2:]

    three = [named("stored", 3.0), named("a", 3.0), named("b", 3.0)]
    assert rows(*three) == [["default run", "3", "1 step; 1 seed"]]
    assert rows(*three[:2]) == [["default run", "3", "1 step; 1 seed"]]
    several = rows(*three, named("c", 4.0), named("d", 3.0, 21))
    assert [row[0] for row in several] == ["run a, run b, default run", "run c", "run d"]
    assert several[2][2].startswith("21 steps")


def test_runs_are_columns_and_claims_that_only_the_default_run_has_are_left_out(stated):
    kept_runs = [
        run("stored", verdict("C1"), verdict("C2")),
        run("mnist", verdict("C1", 3.5, asserted=False)),
        replace(sweep("seeds", C10=(3, 4)), claims={"C10": Held(3, 4, {"error": [1.0, [2.0, 5.0]]})}),
    ]  # fmt: skip
    head, *rows = cells(compared(kept_runs))
    assert [cell.partition("\n")[0] for cell in head] == [
        "Value (bound)", "default run", "mnist", "sweep seeds",
    ]  # fmt: skip
    assert sentences(rows) == ["C1", "C10"]
    _, error, _, other = rows
    assert "(at most 3 %)" in error[0]
    assert error[1].endswith("3 %")
    assert "✗" in error[2]
    assert error[2].endswith("3.5 %")
    assert error[3].startswith("–")
    assert "3 of 4" in other[3]
    assert "1 to 5 %" in other[3]


def test_our_own_checks_are_folded_below_the_papers_claims_and_counted(stated):
    for id, kind in (("C2", "control"), ("C10", "derivation")):
        stated[id] = replace(stated[id], kind=kind)
    ids = ("C1", "C2", "C10")
    kept = [
        run("stored", *map(verdict, ids)),
        run("mnist", verdict("C1", 4.0), verdict("C2", 4.0), verdict("C10")),
        replace(sweep("seeds"), claims={"C10": Held(5, 5, {"error": [1.0]})}),
    ]
    table, fold = compare.comparisons("snip", kept)
    assert sentences(cells(table)) == ["C1"]
    line, own = fold.children
    assert line.astext() == "Our own checks: 1 of 2 reproduced in all runs that have them"
    assert sentences(cells(own)) == ["C2", "C10"]
    kept[2].claims["C10"] = Held(4, 5, {"error": [1.0]})
    assert "0 of 2" in compare.comparisons("snip", kept)[1].astext()
    stated["C1"] = replace(stated["C1"], kind="control")
    (fold,) = compare.comparisons("snip", kept)
    assert "0 of 3" in fold.astext()


def test_values_of_a_claim_that_has_several_are_folded_below_its_verdicts(stated):
    (error,) = stated["C1"].quantities.values()
    second = replace(error, name="spread", means="spread of errors")
    stated["C1"] = replace(stated["C1"], quantities={"error": error, "spread": second})
    both = [
        replace(verdict("C1", value), measured={"error": value, "spread": value + 0.25})
        for value in (3.0, 3.5)
    ]
    table, fold = compare.comparisons("snip", [run("stored", both[0]), run("mnist", both[1])])
    _, row = cells(table)[1:]
    assert row[0] == "2 values"
    assert "3.5 %" not in " ".join(row)
    assert "✗" in row[-1]
    line, every = fold.children
    assert line.astext() == "Each value of C1"
    _, verdicts, _, spread = cells(every)[1:]
    assert verdicts[-1] == row[-1]
    assert spread[0].startswith("spread of errors")
    assert spread[-1].endswith("3.75 %")


def test_a_bound_of_its_own_stands_beside_the_value(stated):
    quantity = replace(
        stated["C1"].quantities["error"],
        bounds={"mnist": Bound.parse("<= 4"), "else": Bound.parse("<= 3")},
    )
    stated["C1"] = replace(stated["C1"], quantities={"error": quantity}, reported=())
    kept = [
        run("stored", verdict("C1")),
        run("mnist", replace(verdict("C1", 3.5), profile="mnist")),
    ]
    head, _, row = cells(compared(kept))
    assert [cell.partition("\n")[0] for cell in head] == ["Value (bound)", "default run", "mnist"]
    assert "at most" not in row[0]
    assert row[1].endswith("3 % (at most 3 %)")
    assert row[2].endswith("3.5 % (at most 4 %)")


def test_the_bound_of_a_sweep_is_that_of_its_runs(stated):
    quantity = replace(
        stated["C1"].quantities["error"],
        bounds={"paper": Bound.parse("<= 4"), "else": Bound.parse("<= 3")},
    )
    stated["C1"] = replace(stated["C1"], quantities={"error": quantity})
    found = Held(1, 2, {"error": [2.0, 5.0]}, profiles=["paper"])
    kept = [run("stored", verdict("C1")), replace(sweep("seeds"), claims={"C1": found})]
    _, row = cells(compared(kept))[1:]
    assert row[-2].endswith("3 % (at most 3 %)")
    assert row[-1].endswith("2 to 5 % (at most 4 %)")


def test_values_of_the_paper_beside_none_of_ours_stand_where_each_value_has_a_line(stated):
    value = claims.Reported("R", 2.0, "Table 1", "read")
    stated["C1"] = replace(stated["C1"], reported=(value, value))
    kept = [run("stored", verdict("C1")), run("mnist", verdict("C1", 3.5))]
    for parts, said in [(True, f"{value}; {value}"), (False, "")]:
        table = compare.comparison([stated["C1"]], kept, parts=parts)
        assert next(table.findall(nodes.tbody))[0][0]["morecols"] == 2
        sentence, _ = cells(table)[1:]
        assert sentence[0].partition(" Paper: ")[2] == said


def test_a_run_and_a_sweep_of_one_name_are_refused():
    compare.check_names("snip", [run("stored"), run("a")], [sweep("b")])
    with pytest.raises(ValueError, match="snip: a names two runs or sweeps"):
        compare.check_names("snip", [run("stored"), run("a")], [sweep("a")])


def test_a_line_a_run_is_read_from_what_the_runs_recorded(stated, monkeypatch):
    values = {"e.snip.90": 2.0, "e.snip.90.seeds": [1.0, 3.0], "e.snip.95": 4.0, "e.snip.x": 9.0}
    found = compare.read_points("snip", [run("stored", values=values), run("b")], "e.snip.{x}")
    assert found == {"default run": {90.0: [1.0, 3.0], 95.0: [4.0]}}
    assert compare.paper_points("snip", "error{x}", run("stored")) == {}


def test_values_in_mappings_are_read_by_the_road_to_them_and_so_is_the_papers_curve(stated):
    values = {
        "k": {"0": {"2": 8.0, "4": 5.0}, "90": {"2": None}},
        "sigma": {"linear, 0.5": [0.6, 1.0], "linear, 0.9": [0.04, math.nan]},
        "snip.reported": {"dense": {"2": 9.0, "16384": 1.0}},
    }
    kept = run("stored", values=values)
    assert compare.read_points("snip", [kept], "k.0.{x}") == {
        "default run": {2.0: [8.0], 4.0: [5.0]}
    }
    assert compare.read_points("snip", [kept], "k.90.{x}") == {}
    assert compare.read_points("snip", [kept], "sigma.linear, {x}.1") == {
        "default run": {0.5: [1.0]}
    }
    assert compare.paper_points("snip", "snip.reported.dense.{x}", kept) == {
        2.0: [9.0], 16384.0: [1.0]
    }  # fmt: skip
    assert compare.paper_points("snip", "snip.reported.other.{x}", kept) == {}


def test_a_panel_has_a_line_a_run_in_the_colour_of_its_method(monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "_png", drawn.append)
    lines = {"default run": {1.0: [2, 4], 2.0: [5]}, "paper": {1.0: [3]}}
    methods = {"SNIP": lines, "random": lines, "other": lines}
    chosen = {"SNIP": "vermilion", "random": "blue"}
    curves.draw_runs(methods, "x", "y", ["y"], {"SNIP": {1.0: [2.5]}}, chosen)
    first, second, third, empty = drawn[0].axes
    assert [ax.get_title(loc="left") for ax in (first, second, third)] == list(methods)
    assert not empty.axison
    assert first.lines[0].get_xydata().tolist() == [[1, 3], [2, 5]]
    from companion.figures import COLOURS

    assert first.lines[0].get_color() == COLOURS["vermilion"]
    assert second.lines[0].get_color() == COLOURS["blue"]
    assert third.lines[0].get_color() not in (COLOURS["vermilion"], COLOURS["blue"])
    assert [line.get_marker() for line in first.lines].count("D") == 1
    other = next(line for line in first.lines if line.get_label() == "paper")
    assert first.lines[0].get_linestyle() != other.get_linestyle()


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_names_of_many_runs_leave_the_panels_their_width(count):
    runs = {f"a-recorded-run-{n}": {1.0: [2.0], 2.0: [3.0]} for n in range(count)}
    with Image.open(io.BytesIO(curves.draw_runs({"SNIP": runs, "b": runs}, "x", "y"))) as picture:
        wide = np.asarray(picture.convert("L"))[-picture.height // 3 :]
    inked = (wide < 250).any(0).nonzero()[0]
    assert wide.shape[1] - inked[-1] < 0.05 * wide.shape[1]


def test_drawn_pictures_are_the_same_bytes_every_time():
    points = {"SNIP": {"default run": {1.0: [2.0], 2.0: [5.0]}}}
    assert curves.draw_runs(points, "x", "y") == curves.draw_runs(points, "x", "y")
    assert curves.draw(points["SNIP"], "x", "y") == curves.draw(points["SNIP"], "x", "y")


def test_icons_that_no_page_names_are_left_out():
    script = 'var a={house:[576,512,[127968,"home"],"f015","M1"],"user-x":[4,5,[],"f0","M2"],bug:[1,2,[],"f1","M3"]};f(a)'
    assert assets.trimmed(script, {"home"}) == (
        'var a={house:[576,512,[127968,"home"],"f015","M1"],};f(a)'
    )
    assert assets.trimmed(script, set()) == "var a={};f(a)"
    assert assets.trimmed(script, {"house", "user-x", "bug"}) == script


def test_buttons_are_named_by_what_they_show(tmp_path):
    (tmp_path / "a.html").write_text(
        '<button class="btn search-button-field x" title="Search" aria-label="Search">Search K</button>'
        '<button aria-label="Color mode"><i class="theme-switch fa-sun" data-mode="light" title="Light"></i></button>'
        '<summary aria-label="Toggle hidden content">'
    )
    assets.name_buttons(tmp_path)
    assert (tmp_path / "a.html").read_text() == (
        '<button class="btn search-button-field x" title="Search">Search K</button>'
        '<button aria-label="Color mode"><i class="theme-switch fa-sun" data-mode="light" aria-hidden="true"></i></button>'
        "<summary>"
    )


def test_images_that_are_loaded_late_have_their_size(tmp_path):
    from PIL import Image

    (tmp_path / "_images").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "_images" / "a b.png")
    late = '<img alt="A" loading="lazy" src="../_images/a%20b.png" style="width: 15px;" />'
    others = '<img src="../_images/a%20b.png" /><img loading="lazy" src="x.svg" />'
    page = tmp_path / "notebooks" / "a.html"
    page.parent.mkdir()
    page.write_text(late + others)
    for _ in range(2):  # a second time changes nothing
        assets.size_images(tmp_path)
        (tag, *rest) = BeautifulSoup(page.read_text(), "html.parser")("img")
        assert (tag["width"], tag["height"], tag["alt"]) == ("30", "20", "A")
        assert "".join(map(str, rest)) == others.replace(" />", "/>")


@pytest.mark.parametrize(("width", "boxes"), [(assets.WIDE - 1, 0), (assets.WIDE, 1)])
def test_wide_figures_have_a_box_that_may_scroll(tmp_path, width, boxes):
    from PIL import Image

    (tmp_path / "_images").mkdir()
    Image.new("RGB", (width, 20)).save(tmp_path / "_images" / "a.png")
    page = tmp_path / "a.html"
    page.write_text(
        '<figure id="x">\n<img src="_images/a.png" /><figcaption>A</figcaption></figure>'
    )
    for _ in range(2):
        assets.size_images(tmp_path)
        figure = BeautifulSoup(page.read_text(), "html.parser").figure
        assert len(figure.select("figure > .figure-box > img")) == boxes
        assert len(figure("img")) == len(figure("figcaption")) == 1


def test_what_is_said_of_chapters_is_of_chapters_that_are_there():
    about, stems = runs.about(), set(chapters.stems())
    assert about.keys() <= {paper["stem"] for paper in runs.papers()}
    for paper, said in about.items():
        assert said["topics"]
        assert said["see"].keys() <= stems - {paper}
        for value in (
            [said["main"]["value"], *said["main"].get("beside", {}).values()]
            if "main" in said
            else []
        ):
            assert value in runs.stored_run(paper).values


def test_a_record_is_judged_by_the_bounds_as_they_are_now(stated):
    """Text and verdict on a page cannot disagree, whenever the bound was changed."""
    kept = run("old", verdict("C1", 2.0), verdict("C2", None)).as_json()
    assert Run.of_json(kept).claims["C1"].outcome == REPRODUCED
    stated["C1"] = replace(
        stated["C1"],
        quantities={
            "error": replace(
                stated["C1"].quantities["error"], bounds={"else": Bound.parse("<= 1")}
            )
        },
    )
    assert Run.of_json(kept).claims["C1"].outcome == NOT_REPRODUCED
    assert Run.of_json(kept).claims["C2"].outcome == NOT_RUN


def test_a_record_is_judged_by_what_a_claim_needs_now(stated):
    """A shortened run does not count against a claim about the paper's size."""
    kept = run("old", verdict("C1", 2.0), settings={"steps": 50}).as_json()
    for needs, outcome in [
        ({"steps": ">= 50"}, REPRODUCED),
        ({"steps": ">= 51"}, NOT_RUN),
        ({"added since": 3}, REPRODUCED),
    ]:
        stated["C1"] = replace(stated["C1"], needs=needs)
        found = Run.of_json(kept).claims["C1"]
        assert found.outcome == outcome, needs
        assert found.why == ("needs steps" if outcome == NOT_RUN else "")


def test_a_sweep_keeps_what_each_run_measured(stated):
    runs_ = [run("a", verdict("C1", 2.0)), run("b", verdict("C1", 4.0), verdict("C2", None))]
    assert record.held(runs_) == {"C1": Held(1, 2, {"error": [2.0, 4.0]}, ["quick"] * 2)}


def test_a_sweep_is_judged_by_the_bounds_as_they_are_now(stated):
    kept = {"paper": "snip", "name": "seeds", "command": "", "fingerprint": "", "runs": 3,
            "seconds": 1, "provenance": {}, "table": ""}  # fmt: skip
    found = record.held(
        [
            run(name, verdict("C1", error))
            for name, error in (("a", 2.0), ("b", 3.5), ("c", math.nan))
        ]
    )
    sweep = record.Sweep(**kept, claims=found)
    stored = json.loads(to_json(sweep.as_json()))
    assert Sweep.of_json(stored).claims["C1"].held == 1
    bounds = {"quick": Bound.parse("<= 4"), "else": Bound.parse("<= 1")}
    error = replace(stated["C1"].quantities["error"], bounds=bounds)
    stated["C1"] = replace(stated["C1"], quantities={"error": error})
    assert Sweep.of_json(stored).claims["C1"].held == 2
    stored["claims"]["C1"]["profiles"] = ["quick", "paper", "paper"]
    assert Sweep.of_json(stored).claims["C1"].held == 1


@pytest.mark.parametrize(
    "wrong", [{"seconds": -1}, {"status": "done"}, {"fingerprint": "x"}, {"claims": {"C1": Verdict("C1", "so so", True)}}]
)  # fmt: skip
def test_what_the_schema_does_not_allow_is_not_kept(tmp_path, stated, wrong):
    with pytest.raises((ValueError, TypeError)):
        record.save(run("a", **wrong), tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_a_record_that_did_not_finish_says_so(chapter):
    chapter("broken", status="failed", error="ValueError: no")
    assert "The run broken is failed: ValueError: no" in shown("tiny").astext()


def test_what_a_broken_run_left_behind_is_no_record(chapter):
    chapter("mnist.part")
    assert records.load_records("tiny") == []


def test_benchmarks_are_read_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.benchmarks() == {}
    (tmp_path / runs.RECORDED).mkdir(parents=True)
    result = {"rows": []}
    result["seal"] = seal(result)
    file = tmp_path / runs.RECORDED / "benchmarks.json"
    file.write_text(json.dumps({"snip": result}))
    assert runs.benchmarks() == {"snip": result}
    file.write_text(json.dumps({"snip": result | {"rows": [{"ratio": 0.5}]}}))
    with pytest.raises(ValueError, match="snip are not as they were written"):
        runs.benchmarks()


def test_figures_get_a_palette_where_nobody_sees_it():
    import numpy as np
    from PIL import Image

    def png(pixels):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format="png")
        return out.getvalue()

    def pixels(data):
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=float)

    rng = np.random.default_rng(0)
    few = rng.integers(0, 5, (60, 80, 1)).astype(np.uint8) * np.array([50, 40, 30], np.uint8)
    lighter = assets.with_palette(png(few))
    assert len(lighter) < len(png(few))
    assert (pixels(lighter) == few).all()
    assert assets.with_palette(lighter) is lighter  # a sweep's figure has been through it
    noise = rng.integers(0, 256, (60, 80, 3)).astype(np.uint8)
    assert assets.with_palette(png(noise)) == png(noise)
    clear = np.dstack([few, np.full((60, 80), 128, np.uint8)])
    assert assets.with_palette(png(clear)) == png(clear)


def test_what_a_gpu_showed_is_read_and_cannot_be_edited(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.on_gpu() == ({}, {}, {})
    (tmp_path / runs.RECORDED).mkdir(parents=True)
    part = {"rows": [{"ratio": 0.5}]}
    part["seal"] = seal(part)
    kept = {"limits": {"bytes": 3e12}, "chapters": {"snip": part}}
    file = tmp_path / runs.RECORDED / "benchmarks-gpu.json"
    file.write_text(json.dumps(kept))
    assert runs.on_gpu() == ({"bytes": 3e12}, {"snip": part}, {})
    part["rows"][0]["ratio"] = 0.4
    file.write_text(json.dumps(kept))
    with pytest.raises(ValueError, match="snip are not as they were written"):
        runs.on_gpu()


def test_ratios_stand_on_one_axis_with_those_above_one_outside_the_band(monkeypatch):
    def results(**ratios):
        rows = {
            s: [{"ratio": r, "what": "w", "against": "a"} for r in rs] for s, rs in ratios.items()
        }
        return {stem: {"rows": found} for stem, found in rows.items()}

    monkeypatch.setattr(performance, "benchmarks", lambda: results(snip=[0.01, 1.0, 4.0]))
    monkeypatch.setattr(performance, "on_gpu", lambda: ({}, results(snip=[2.0], desire=[0.5]), {}))
    snip, desire = performance.ratios()
    assert (snip.stem, desire.stem) == ("snip", "desire")
    assert snip.axis == desire.axis
    assert [mark.kind for mark in snip.marks] == [
        "band", "default holds", "default holds", "default fails", "recorded fails",
    ]  # fmt: skip
    places = [mark.left for mark in snip.marks[1:]]
    band = snip.marks[0].width
    assert places[1] == band
    assert [place <= band for place in places] == [True, True, False, False]
    assert "4: w against a (CPU)" in snip.words
    monkeypatch.setattr(performance, "benchmarks", dict)
    monkeypatch.setattr(performance, "on_gpu", lambda: ({}, {}, {}))
    assert performance.ratios() == []


def test_a_row_that_misses_its_aim_is_shown_so_and_older_rows_are_read():
    row = {"what": "w", "against": "a", "note": "n", "aim": "at most 0.5", "aim_at": 0.5}
    old = {"what": "w", "against": "a", "note": "n", "aim": "below 1", "ratio": 3.0}
    met = row | {
        "ratio": 0.4,
        "low": 0.3,
        "high": 0.45,
        "limit": 0.25,
        "versions": {"timm": "1.0"},
    }
    missed = row | {"ratio": 0.8, "reason": "a small net"}
    runs_a_second = row | {"ratio": 1.7, "aim": "at least 1.8", "aim_at": 1.8, "at_least": True}
    chart = performance.comparisons([met, missed, old, runs_a_second])
    assert [one.missed for one in chart] == [False, True, True, True]
    assert [one.state for one in chart] == ["holds", "holds", "fails", "holds"]
    assert [mark.kind for mark in chart[0].marks] == [
        "one", "spread holds", "limit", "aim", "ratio holds",
    ]  # fmt: skip
    assert [mark.kind for mark in chart[2].marks] == ["one", "ratio fails"]
    left = {mark.kind.split()[0]: mark.left for mark in chart[0].marks}
    assert left["limit"] < left["spread"] < left["ratio"] < left["aim"] < left["one"]
    assert chart[0].against == "a (timm 1.0)"
    assert "half of the turns lie between 0.3 and 0.45" in chart[0].words
    html = render("comparisons.html", comparisons=chart, curves=[])
    for aim in ("at most 0.5", "at least 1.8"):
        assert html.count(f"misses its aim: {aim}") == 1
    assert "a small net" in html
    assert html.count('class="aim missed"') == 2
    assert "aim: below 1" in html
    rows = [met, missed, old, runs_a_second]
    assert performance._tally(rows) == "4, 3 miss their aim"
    assert [performance._row(row)[3] for row in rows] == [
        "at most 0.5; limit 0.25", "at most 0.5 (missed)", "below 1 (missed)", "at least 1.8 (missed)",
    ]  # fmt: skip


def test_a_curve_of_time_against_size_rises_to_the_right():
    one = {"what": "w", "of": "cells", "sizes": [10, 100, 1000], "seconds": [0.1, 1.0, 10.0]}
    (curve,) = performance.curves([one | {"exponent": 1.0}])
    across, down = zip(*curve.points, strict=True)
    assert list(across) == sorted(across)
    assert list(down) == sorted(down, reverse=True)
    assert across[1] == down[1] == 50
    (wide,) = performance.curves([one | {"sizes": [4800, 19200, 307200], "exponent": 1.0}])
    assert len(wide.sizes) < len(wide.x.ticks())  # 5,000 and 10,000 would overlap
    (huge,) = performance.curves([one | {"sizes": [2**16, 2**23, 2**30], "exponent": 1.0}])
    assert huge.sizes[-1][1] in ("10⁸", "10⁹")
    html = render("comparisons.html", comparisons=[], curves=[curve])
    assert "size to the power 1.00" in html
    assert "1,000: 10 CPU-s" in html


def test_growth_on_a_gpu_is_shown_where_it_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    assert runs.growth_on_gpu() == {}
    names = {"desire": "DESIRE", "snip": "SNIP"}
    assert performance._growth_folds(names) == []
    where = {
        "hardware": "H100",
        "date": "2026-11-27",
        "commit": "abc",
        "changed_since_commit": True,
    }
    curve = {
        "what": "score", "of": "weights", "sizes": [2**22, 2**23], "seconds": [0.1, 0.2],
        "peak_gb": [35.4, 70.8], "exponent": 1.0,
        "ended": {"why": "memory", "at": 2**24, "said": "OutOfMemoryError"},
    }  # fmt: skip
    part = {"command": "companion gpu", "provenance": where, "growth": [curve]}
    part["seal"] = seal(part)
    file = tmp_path / runs.RECORDED / "growth-gpu.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"chapters": {"snip": part}}))
    (fold,) = performance._growth_folds(names)
    html = " ".join(node.astext() for node in fold.findall(nodes.raw))
    assert (
        "SNIP: score: seconds. Over the last three points the time grows as size to the power 1.00."
        in html
    )
    said = "Memory ended between 8.39 million and 16.8 million weights (71 GB at the former)."
    assert said in html
    assert "commit abc and changes after it." in fold.astext()
    assert "Not measured: DESIRE." in fold.astext()
    assert "8,388,608: 0.2 s" in html
    assert "CPU" not in html
    part["growth"][0]["seconds"][1] = 0.15
    file.write_text(json.dumps({"chapters": {"snip": part}}))
    with pytest.raises(ValueError, match="snip are not as they were written"):
        runs.growth_on_gpu()


@pytest.mark.parametrize("ends", [(0.6, 1.3), (0.95, 1.02), (0.04, 1.2), (1e-4, 30.0)])
def test_a_logarithmic_axis_has_two_to_five_ticks_in_their_order(ends):
    ticks = Axis.over(ends, log=True).ticks()
    assert 2 <= len(ticks) <= 6
    assert ticks == sorted(ticks)


def test_zero_has_no_place_on_a_logarithmic_axis():
    with pytest.raises(ValueError, match="expected ones above 0"):
        Axis.over([0.0, 1.0], log=True)


def test_a_profile_costs_what_a_run_took_that_changed_nothing_of_it():
    path = chapters.find("snip")
    preset = chapters.presets(path)["paper"]
    taken = chapters.defaults(path) | preset | {"profile": "paper", "device": "cuda"}
    whole = run("whole", profile="paper", device="cuda", settings=taken, seconds=300)
    short = replace(whole, settings=taken | {"train_iterations": 50}, seconds=7)
    of = lambda *kept: {row[0]: row[3] for row in runs.costs("snip", list(kept))}["paper"]  # noqa: E731
    assert of(whole, short) == "5 min"
    assert of(short).endswith("estimated")


# ---------------------------------------------------------------- docstrings


def test_arguments_in_a_docstring_become_a_list():
    text = [
        "Do it.",
        "",
        "seed: first seed,",
        "  above 0.",
        "x, y: (n, 2).",
        "",
        "Returns |x| * y.",
    ]
    assert tidy_docstring(text) == [
        "Do it.", "", "- ``seed``: first seed,", "  above 0.", "- ``x``, ``y``: (n, 2).",
        "", r"Returns \|x\| \* y.",
    ]  # fmt: skip


def test_code_and_directives_in_a_docstring_stay_as_they_are():
    text = [
        "Of your own::", "", "    f(*args)", "", "    g_ = 1", "", "Then a * b.", ".. attribute:: c_",
    ]  # fmt: skip
    assert tidy_docstring(text) == [*text[:6], r"Then a \* b.", text[7]]


def test_words_between_stars_stay_emphasis_and_products_do_not():
    text = [
        "The *sum*, the *whole length*; `a` *not* b.",
        "a*b*c, x *y* 2*z, f(*args, **rest) * n*",
    ]
    assert tidy_docstring(text) == [
        text[0], r"a\*b\*c, x *y* 2\*z, f(\*args, \*\*rest) \* n\*",
    ]  # fmt: skip


def test_signs_inside_backticks_and_examples_stay_as_they_are():
    text = ["Keep `a*b`, ``c|d`` and name_ here.", "", ">>> f(*args)", "a * b"]
    assert tidy_docstring(text) == [
        r"Keep `a*b`, ``c|d`` and name\_ here.", "", ">>> f(*args)", "a * b",
    ]  # fmt: skip


def test_a_ratio_at_its_aim_does_not_miss_it():
    performance = pytest.importorskip("companion.book.performance")
    for least in (False, True):
        row = {"ratio": 2.001, "aim": "2", "aim_at": 2.0, "at_least": least}
        assert not performance._missed(row)
