"""Every way in which a claim can come out."""

import doctest
import json
import os

import numpy as np
import pytest

from companion import claims as room
from companion.claims import (
    FAILS,
    HOLDS,
    NEEDS_PAPER,
    REPORTED,
    ClaimError,
    Claims,
    Recorded,
    paper_figure,
    record,
    verdict_class,
    verdict_text,
)
from companion.notebook.parameters import Settings


def settings(profile="quick", **changed):
    defaults = {"profile": profile, "steps": 300, "seed": 0, "device": "auto", "data_root": ""}
    return Settings(defaults | changed, defaults, profile)


def chapter(profile="quick", **changed):
    return Claims("demo", settings(profile, **changed))


def check(claims, id="C1", **options):
    options = {"source": "§4", "ours": 0.123456789, "holds": True} | options
    return claims.check(id, "The error falls.", **options)


@pytest.fixture
def shown(monkeypatch):
    """What `record` puts into a notebook."""
    outputs = []
    monkeypatch.delenv("COMPANION_RECORD", raising=False)
    monkeypatch.setattr("IPython.display.display", outputs.append)
    return outputs


@pytest.fixture
def target(monkeypatch, tmp_path):
    """A file that a recorded run writes."""
    path = tmp_path / "run.part.json"
    path.write_text('{"stem": "demo"}')
    monkeypatch.setenv("COMPANION_RECORD", str(path))
    return path


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("options", "verdict", "asserted", "failed"),
    [
        ({}, HOLDS, True, False),
        ({"holds": False}, FAILS, True, True),
        ({"holds": False, "expected": False}, FAILS, True, False),
        ({"holds": True, "expected": False}, HOLDS, True, True),
        ({"report": True}, REPORTED, False, False),
        ({"report": True, "holds": False}, REPORTED, False, False),
        ({"report": True, "holds": None}, REPORTED, False, False),
        ({"profiles": ["quick", "mnist"]}, HOLDS, True, False),
        ({"profiles": ["mnist"]}, REPORTED, False, False),
        ({"profiles": ["mnist"], "holds": None}, REPORTED, False, False),
        ({"profiles": ["paper"], "holds": None}, NEEDS_PAPER, False, False),
        ({"profiles": ["paper"], "holds": False}, REPORTED, False, False),
        ({"profiles": ["paper", "paper_vgg"], "holds": None}, NEEDS_PAPER, False, False),
        ({"profiles": ["mnist", "paper"], "holds": None}, REPORTED, False, False),
    ],
)
def test_verdicts(options, verdict, asserted, failed):
    claim = check(chapter(), **options)
    assert (claim.verdict, claim.asserted, claim.failed) == (verdict, asserted, failed)


@pytest.mark.parametrize(
    ("changed", "depends", "asserted"),
    [
        ({}, None, True),
        ({"seed": 4}, None, False),
        ({"device": "cuda", "data_root": "there"}, None, True),
        ({"seed": 4}, ["steps"], True),
        ({"steps": 4}, ["steps"], False),
        ({"seed": 4, "steps": 4}, [], True),
        ({"device": "cuda"}, ["device"], False),
    ],
)
def test_a_claim_is_asserted_only_under_the_settings_it_depends_on(changed, depends, asserted):
    claim = check(chapter(**changed), depends=depends, holds=False)
    assert claim.asserted is asserted
    assert claim.failed is asserted


def test_a_claim_of_another_profile_is_asserted_there():
    assert check(chapter("paper"), profiles=["paper"], holds=False).failed
    assert not check(chapter("quick"), profiles=["paper"], holds=False).failed


def test_an_asserted_claim_must_be_computed():
    with pytest.raises(ValueError, match="C1 is asserted under these settings, but was not"):
        check(chapter(), holds=None)


@pytest.mark.parametrize("holds", [1, 0, "yes", 0.5, np.float64(1)])
def test_a_check_that_is_no_bool_raises(holds):
    with pytest.raises(ValueError, match="expected a bool"):
        check(chapter(), holds=holds)


def test_a_bool_of_numpy_becomes_a_bool():
    assert check(chapter(), holds=np.bool_(True)).holds is True


def test_a_claim_is_checked_once_and_with_a_known_certainty():
    claims = chapter()
    check(claims)
    with pytest.raises(ValueError, match="'C1': this claim was checked before"):
        check(claims)
    with pytest.raises(ValueError, match="certainty = 'maybe'"):
        check(claims, "C2", certainty="maybe")
    assert len(claims.items) == 1


def test_the_printed_line_holds_no_measured_number(capsys):
    check(chapter(), paper="1.6", tolerance="below 0.2")
    check(chapter(), report=True, holds=False)
    assert capsys.readouterr().out == "C1 holds: The error falls.\nC1 reported: The error falls.\n"


# ---------------------------------------------------------------- table


def test_the_table_shows_figures_with_their_certainty_and_three_digits():
    claims = chapter()
    check(claims, "A", paper=1.6, certainty="sure")
    check(claims, "B", paper="about 1.7", certainty="unverified", report=True, holds=False)
    check(claims, "C", holds=None, ours="", profiles=["paper"])
    rows = claims.table().rows()
    assert rows[0] == ("A", "The error falls. (§4)", "1.6", "0.123", "exact", "holds")
    assert rows[1][2] == "about 1.7 (unverified)"
    assert rows[1][5] == "reported: does not hold"
    assert rows[2][2] == "no figure"
    assert rows[2][5] == "needs the paper profile"
    assert repr(claims.table()).splitlines()[1] == " | ".join(rows[0])


def test_the_table_escapes_html():
    claims = chapter()
    claims.check(
        "<i>", "a < b & c", source="<s>", paper="<p>", ours="<o>", tolerance="<t>", holds=True
    )
    page = claims.table()._repr_html_()
    assert "a &lt; b &amp; c (&lt;s&gt;)" in page
    for tag in ("<i>", "<s>", "<p>", "<o>", "<t>"):
        assert tag not in page
    assert page.count("<tr>") == 2


def test_words_and_classes_of_verdicts():
    classes = {verdict_class(v) for v in (HOLDS, FAILS, REPORTED, NEEDS_PAPER)}
    assert len(classes) == 4
    assert verdict_text(REPORTED, True) == "reported: holds"
    assert verdict_text(REPORTED, None) == "reported"
    assert verdict_text(FAILS, False) == "does not hold"
    assert paper_figure("", "none") == "no figure"


# ---------------------------------------------------------------- settling


def test_settling_counts_what_was_asserted(shown, capsys):
    claims = chapter()
    check(claims, "A")
    check(claims, "B", report=True, holds=False)
    check(claims, "C", expected=False, holds=False)
    claims.settle()
    assert capsys.readouterr().out.endswith("2 of 3 claims asserted; all came out as specified\n")


def test_a_failing_claim_raises_after_the_table_and_is_still_recorded(target):
    claims = chapter(data_root="a private place")
    check(claims, "A")
    check(claims, "B", holds=False, tolerance="below 0.1")
    check(claims, "C", holds=True, expected=False)
    table = claims.table()
    with pytest.raises(ClaimError) as caught:
        claims.settle()
    message = str(caught.value)
    assert "B: The error falls. measured 0.123, allowed below 0.1" in message
    assert "C: The error falls. measured 0.123, allowed exact (specified not to hold, but does)" in message  # fmt: skip
    assert "A:" not in message
    assert "does not hold" in repr(table)
    values = json.loads(target.read_text())["values"]
    assert [c["verdict"] for c in values["demo.claims"]] == [HOLDS, FAILS, HOLDS]
    assert values["demo.settings"]["steps"] == 300
    assert "private" not in target.read_text()


def test_what_is_recorded_gives_the_claim_back(target):
    claims = chapter()
    claim = check(claims, paper="2 %", certainty="sure")
    claims.settle()
    (kept,) = json.loads(target.read_text())["values"]["demo.claims"]
    assert room.Claim(**kept) == claim


# ---------------------------------------------------------------- recording


def test_a_recorded_value_is_a_glue_output(shown):
    record("gap", 0.25)
    record("curve", {"x": [1, 2]})
    (gap, gap_metadata), (curve, _) = (output._repr_mimebundle_() for output in shown)
    assert gap == {"text/plain": "0.25"}
    assert gap_metadata == {"scrapbook": {"name": "gap", "mime_prefix": ""}}
    assert curve == {"application/json": {"x": [1, 2]}, "text/plain": "curve"}


def test_a_bool_is_recorded_as_text():
    assert Recorded("ok", True)._repr_mimebundle_()[0] == {"text/plain": "True"}


def test_records_are_added_to_the_file_and_nothing_is_displayed(target, monkeypatch):
    monkeypatch.setattr("IPython.display.display", None)
    record("a", 1)
    record("b", [1.5, float("nan")])
    record("a", 2)
    assert json.loads(target.read_text()) == {
        "stem": "demo",
        "values": {"a": 2, "b": [1.5, None]},
    }


def test_an_interrupted_record_keeps_the_earlier_values(target, monkeypatch):
    record("a", 1)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            record("b", 2)
    assert json.loads(target.read_text())["values"] == {"a": 1}
    assert os.listdir(target.parent) == [target.name]


def test_a_value_that_json_cannot_hold_loses_nothing(target):
    record("a", 1)
    with pytest.raises(TypeError):
        record("b", object())
    assert json.loads(target.read_text())["values"] == {"a": 1}


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(room)
    assert result.attempted > 0
    assert result.failed == 0
