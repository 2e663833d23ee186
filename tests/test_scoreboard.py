"""What the scoreboard and the start page say of claims and runs, apart from how it looks."""

import base64
import io
import json
import math
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from companion.notebook.checking import (
    LARGEST,
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    Verdict,
    measured_lines,
)
from companion.notebook.claims import parse_claims
from companion.runs.record import EARLIER, STALE, Held, Run, Sweep

bs4 = pytest.importorskip("bs4", reason="comes with the book's dependencies")
evidence = pytest.importorskip("companion.book.evidence", reason="needs the book's dependencies")
charts = pytest.importorskip("companion.book.charts")
start = pytest.importorskip("companion.book.start")
html = pytest.importorskip("companion.book.html")
scoreboard = pytest.importorskip("companion.book.scoreboard")

PAPER = {"stem": "snip", "title": "SNIP: a title", "venue": "A 2019", "arxiv": "1"}
STATED = """
C1:
  says: The error <is> small & positive.
  kind: paper
  where: §1
  reported:
    - {what: error, value: 2, unit: "%", at: Table 1, certainty: read, quantity: error}
    - {what: error elsewhere, value: 4 to 6, unit: "%", at: Table 1, certainty: read, quantity: error}
    - {what: what we do not measure, value: 99, at: Fig. 1, certainty: read}
  quantities:
    error: {is: our error, unit: "%", within: {mnist: "<= 9", else: "<= 3"}}
  settled: {on: 2026-01-01, before_looking: true}
C2:
  says: It is exact.
  kind: derivation
  where: §2
  quantities:
    exact: {is: exactly so, within: "== true"}
  settled: {on: 2026-01-01, before_looking: false, why: it was seen}
C10:
  says: Nobody ran this.
  kind: control
  where: §3
  quantities:
    error: {is: our error, within: "<= 3"}
  settled: {on: 2026-01-01, before_looking: true}
"""


@pytest.fixture
def chapter(monkeypatch):
    """A chapter of three claims with the runs that a test gives it."""
    monkeypatch.setattr(evidence, "load_claims", lambda paper: parse_claims(STATED))
    return lambda *runs: evidence.chapter_of(PAPER, runs)


def run(name, outcome, error=None, *, asserted=True, profile="quick", **other):
    measured = {} if error is None else {"error": error}
    verdict = Verdict("C1", outcome, asserted, profile, measured)
    return Run("snip", name, profile=profile, claims={"C1": verdict}, **other)


def sweep(held, of, measured=(), profile="quick"):
    found = {"C1": Held(held, of, {"error": list(measured)}, [profile] * of)}
    return Sweep("snip", "seeds", "companion sweep snip -f mine.yaml", "", of, 7, found, {}, "")


def parsed(text):
    return bs4.BeautifulSoup(text, "html.parser")


def parts():
    return html.environment.get_template("scoreboard.html").module


# ---------------------------------------------------------------- how a claim stands


OUTCOMES = st.lists(st.sampled_from([REPRODUCED, NOT_REPRODUCED, evidence.SOME, NOT_RUN]))


@given(OUTCOMES)
def test_one_failure_keeps_a_claim_from_counting_as_reproduced(outcomes):
    standing = evidence.stands(outcomes)
    assert (standing == NOT_RUN) is (set(outcomes) <= {NOT_RUN})
    assert (standing == REPRODUCED) is (set(outcomes) - {NOT_RUN} == {REPRODUCED})
    assert (standing == NOT_REPRODUCED) is (set(outcomes) - {NOT_RUN} == {NOT_REPRODUCED})
    assert evidence.stands([*outcomes, NOT_RUN][::-1]) == standing


@pytest.mark.parametrize(
    ("runs", "standing"),
    [
        ([run("stored", REPRODUCED, 2.0)], REPRODUCED),
        ([run("stored", REPRODUCED, 2.0), run("x", NOT_REPRODUCED, 4.0)], evidence.SOME),
        # a failure is one whether the run asserted the claim or not
        ([run("stored", NOT_REPRODUCED, 4.0, asserted=False)], NOT_REPRODUCED),
        ([run("stored", REPRODUCED, 2.0), sweep(4, 5)], evidence.SOME),
        ([run("stored", REPRODUCED, 2.0), sweep(5, 5)], REPRODUCED),
        ([sweep(0, 5)], NOT_REPRODUCED),
        # what did not finish is no evidence, either way
        ([run("stored", NOT_RUN), run("x", REPRODUCED, 2.0, status="failed")], NOT_RUN),
        ([run("stored", REPRODUCED, 2.0), run("x", NOT_REPRODUCED, 4.0, status="failed")], REPRODUCED),
    ],
)  # fmt: skip
def test_a_claim_stands_by_all_its_runs(chapter, runs, standing):
    assert chapter(*runs).rows[0].standing == standing


def test_claims_of_the_paper_are_counted_apart_and_failures_first(chapter):
    made = chapter(run("stored", NOT_REPRODUCED, 4.0))
    assert next(iter(made.counts(paper=True).items())) == (NOT_REPRODUCED, 1)
    assert sum(made.counts(paper=True).values()) == 1
    assert made.counts(paper=False) == {
        NOT_REPRODUCED: 0, evidence.SOME: 0, REPRODUCED: 0, NOT_RUN: 2,
    }  # fmt: skip
    assert scoreboard.totals([made, made])["ours"][NOT_RUN] == 4
    assert scoreboard.widest([made]) == 2


def test_a_reported_value_may_be_a_range_or_no_number():
    first, second, _ = parse_claims(STATED)["C1"].reported
    assert evidence.reported_range(first) == (2, 2)
    assert evidence.reported_range(second) == (4, 6)
    from dataclasses import replace

    assert evidence.reported_range(replace(first, plus_minus=0.5)) == (1.5, 2.5)
    assert evidence.reported_range(replace(first, value="on four systems")) is None


# ---------------------------------------------------------------- numbers on one axis


NUMBERS = st.lists(
    st.floats(-1e9, 1e9, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9), min_size=1
)


@given(NUMBERS)
@example([1e9, 999999999.9999999])
def test_an_axis_shows_every_number_in_order_and_none_at_its_edge(numbers):
    axis = charts.Axis.over(numbers)
    places = [axis.at(number) for number in sorted(numbers)]
    assert places == sorted(places)
    assert places[0] > 0
    assert places[-1] < 100
    assert axis.at(-math.inf) == 0
    assert axis.at(math.inf) == 100


def test_an_axis_is_logarithmic_only_for_positive_numbers_far_apart():
    assert charts.Axis.over([1e-9, 1e-6]).log
    assert not charts.Axis.over([-1, 1e6]).log
    assert not charts.Axis.over([1, 50]).log
    axis = charts.Axis.over([1e-8, 1e-2])
    assert axis.at(1e-5) == pytest.approx(50)
    assert axis.at(0.0) == 0  # no logarithm, so at the edge
    with pytest.raises(ValueError, match="expected finite"):
        charts.Axis.over([1, math.nan])


@given(NUMBERS)
def test_ticks_lie_on_the_axis_and_where_their_number_is(numbers):
    axis = charts.Axis.over(numbers)
    ticks = axis.ticks()
    assert len(ticks) <= 7
    assert all(0 <= place <= 100 for place, _ in ticks)
    if axis.log:
        assert all("·10" in text or float(text.replace(",", "")) > 0 for _, text in ticks)


def test_a_strip_has_the_bounds_the_paper_and_every_run_with_its_spread(chapter):
    made = chapter(
        run("stored", REPRODUCED, [1.0, 2.0]),
        sweep(1, 3, [[1.0, 2.0], [4.0, 5.0], 9.5], "mnist"),
        run("mnist", NOT_REPRODUCED, 10.0, profile="mnist"),
        run("odd", NOT_REPRODUCED, None),
    )
    quick, swept, mnist = (cell.measured[0].bounds for cell in made.rows[0].cells[:3])
    assert swept == mnist != quick
    (strip,) = charts.strips(made.rows[0])
    at = strip.axis.at
    low, wide = strip.marks[:2]
    assert (low.kind, low.left, low.left + low.width) == ("band high", 0, at(3))
    assert wide.left + wide.width == pytest.approx(at(9))
    one, two = strip.marks[2:4]
    assert (one.kind, one.dots) == ("paper", (at(2),))
    assert (two.left, two.left + two.width, two.dots) == (at(4), pytest.approx(at(6)), ())
    assert [mark.kind for mark in strip.marks[4:]] == [
        "default holds", "sweep some", "recorded fails",
    ]  # fmt: skip
    assert strip.marks[5].dots == (at(1), at(2), at(4), at(5), at(9.5))
    assert strip.marks[5].left == at(1)
    assert strip.marks[5].left + strip.marks[5].width == pytest.approx(at(9.5))
    for part in (
        "bound: at most 3 %",
        "bound: at most 9 %",
        "error: 2 %",
        "default: 1 to 2 %",
        "mnist: 10 %",
    ):
        assert part in strip.words, part


def test_what_is_no_number_makes_no_strip_and_moves_no_axis(chapter):
    made = chapter(run("stored", NOT_REPRODUCED, [2.0, LARGEST, None]))
    (strip,) = charts.strips(made.rows[0])
    assert strip.marks[-1].dots == (strip.axis.at(2),)
    assert strip.axis.high < 10
    assert "not a number" in strip.words
    assert charts.strips(made.rows[1]) == []  # a truth
    assert charts.strips(made.rows[2]) == []  # not measured


# ---------------------------------------------------------------- the pages


def test_the_matrix_has_a_cell_a_run_solid_where_asserted_and_an_address_a_claim(chapter):
    made = chapter(
        run("stored", REPRODUCED, 2.0),
        sweep(3, 5),
        run("mnist", NOT_REPRODUCED, 10.0, asserted=False, code=STALE),
        run("older", REPRODUCED, 2.0, code=EARLIER),
    )
    strips = {row.claim.id: charts.strips(row) for row in made.rows}
    page = parsed(parts().matrix(made, strips))
    head = [" ".join(th.get_text().split()) for th in page.select(".matrix > thead th")]
    assert head == ["Claim", "default", "seeds × 5", "mnist (stale)", "older"]
    first, *_, last = page.select(".matrix > tbody > tr")
    assert [cell["class"] for cell in first.select("td .outcome")] == [
        ["outcome", "holds", "asserted"], ["outcome", "some"], ["outcome", "fails"],
        ["outcome", "holds", "asserted"],
    ]  # fmt: skip
    assert [cell.get_text() for cell in last.select("td .outcome")] == ["–"] * 4
    assert "reproduced in 3 of 5 runs" in first.get_text()
    assert "The error <is> small & positive." in first.get_text()
    assert [tag["id"] for tag in page.select(".claim")] == ["snip-C1", "snip-C2", "snip-C10"]
    assert "after a result was seen: it was seen" in page.get_text()
    assert (first["data-outcome"], first["data-kind"]) == ("some", "paper")


def test_a_bar_has_a_segment_a_standing_and_its_number_in_words():
    counts = {NOT_REPRODUCED: 2, evidence.SOME: 0, REPRODUCED: 3, NOT_RUN: 1}
    bar = html.environment.get_template("macros.html").module.bar
    page = parsed(bar(counts))
    segments = page.select(".bar > span")
    assert [segment["class"][0] for segment in segments] == ["fails", "holds", "open"]
    assert page.get_text() == "2 not reproduced, 3 reproduced, 1 not run"
    assert "--scale: 6" in page.find(class_="bar")["style"]
    links = parsed(bar(counts, 9, "?kind=paper&")).select("a")
    assert links[0]["href"] == "?kind=paper&outcome=fails#claims"


def paper(stem, *givers):
    takes = [{"from": giver, "what": "an idea"} for giver in givers]
    return {"stem": stem, "title": stem} | ({"takes": takes} if takes else {})


def test_the_map_puts_each_paper_right_of_what_it_takes_from_and_no_two_in_one_place():
    about = [paper("a"), paper("b", "a"), paper("c", "a"), paper("d", "c", "e"), paper("e")]
    places = start.layout(about)
    assert places == {"a": (0, 0), "b": (1, 0), "c": (1, 1), "d": (2, 1), "e": (0, 2)}
    with pytest.raises(ValueError, match="b lead to no first paper"):
        start.layout([paper("a"), paper("b", "gone")])
    with pytest.raises(ValueError, match="a, b lead"):
        start.layout([paper("a", "b"), paper("b", "a")])


def test_the_map_of_the_papers_says_each_arrow_in_words_too():
    drawn = parsed(start.borrowings({"notebooks/snip"}, lambda page: f"{page}.html").astext())
    taken = [takes for about in start.papers() for takes in about.get("takes", [])]
    assert len(drawn.select("path.arrow")) == len(drawn.select("li")) == len(taken) > 0
    assert {a["href"] for a in drawn.select("a")} == {"notebooks/snip.html"}
    for about in start.papers():
        assert about["short"] in drawn.find("svg").get_text()


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """A notebook with one figure, left half red and right half blue."""
    from PIL import Image

    picture = Image.new("RGB", (200, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    file = io.BytesIO()
    picture.save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    cell = {
        "cell_type": "code",
        "metadata": {"mystnb": {"figure": {"name": "fig-a"}}},
        "outputs": [{"data": {"image/png": data}}],
    }
    path = tmp_path / "snip.ipynb"
    path.write_text(json.dumps({"cells": [{"metadata": {}}, cell]}))
    monkeypatch.setattr(start, "find", lambda stem: path)


def test_a_card_shows_the_named_parts_of_the_notebooks_figure(drawn):
    from PIL import Image

    boxes = [[0.5, 0, 1, 0.5], [0, 0, 0.5, 0.2]]
    figure = {"name": "fig-a", "boxes": boxes, "alt": "Blue above red"}
    made = evidence.Chapter("snip", PAPER | {"figure": figure}, (), ())
    kind, _, data = start.thumbnail(made).partition(",")
    assert kind == "data:image/webp;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
    assert picture.size == (100, 50 + 2 + 20)
    assert picture.getpixel((50, 20))[2] > 200
    assert picture.getpixel((50, 65))[0] > 200
    with pytest.raises(ValueError, match="has no figure 'fig-b'"):
        start.stored_figure("snip", "fig-b")
    assert start.thumbnail(evidence.Chapter("snip", PAPER, (), ())) == ""


def test_the_start_page_has_a_card_a_chapter_and_names_papers_without_one():
    found = {f"notebooks/{about['stem']}" for about in start.papers()[1:]}
    text = start.cards(found)
    assert text.count("{grid-item-card}") == len(start.papers())
    assert text.count(":link: ") == text.count(":img-alt: ") - 1 == len(found)
    assert f"[{start.papers()[0]['title']}]" in text


def test_the_pages_are_made_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from companion.book import start, scoreboard, evidence\n"
        "evidence.read_chapters(); start.headline(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_readme_shows_a_picture_that_is_there():
    import re

    from companion.files import ROOT

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[(.+?)\]\((\S+?)\)", text.partition("## ")[0])
    assert pictures
    assert all((ROOT / file).is_file() for _, file in pictures)


def test_a_long_logarithmic_axis_has_powers_of_ten_only():
    assert [text for _, text in charts.Axis.over([1, 500], log=True).ticks()] == ["1", "10", "100"]


@pytest.mark.parametrize(
    ("measured", "shown"),
    [
        (None, "not a number"),
        ([1.0, None], "not a number"),
        (LARGEST, "∞ %"),
        ([-LARGEST, 1.0], "−∞"),
        (2.0, "2 %"),
    ],
)
def test_every_page_shows_what_was_measured_infinite_or_not_a_number_too(chapter, measured, shown):
    compare = pytest.importorskip("companion.book.compare")
    claim = parse_claims(STATED)["C1"]
    verdict = Verdict("C1", NOT_REPRODUCED, True, "quick", {"error": measured})
    one = replace(run("x", NOT_REPRODUCED), claims={"C1": verdict})
    cell = chapter(one).rows[0].cells[0].measured[0].shown
    compared = compare._measured(claim.quantities["error"], one.claims["C1"])
    (line,) = measured_lines(claim, one.claims["C1"])
    for said in (cell, compared, line):
        assert shown in said
        assert "10³⁰⁰" not in said


def test_a_sweep_over_profiles_is_shown_with_the_bounds_of_all(chapter):
    mixed = replace(
        sweep(2, 2), claims={"C1": Held(2, 2, {"error": [1.0, 8.0]}, ["quick", "mnist"])}
    )
    found = chapter(mixed)
    assert found.rows[0].cells[0].measured[0].wanted == "at most 3 or at most 9"
    (strip,) = charts.strips(found.rows[0])
    assert strip.bounds == ("at most 3 %", "at most 9 %")
