"""Claims as data: what a file may state, and every way in which a claim can come out."""

import copy
import json
import math
import os
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from companion.__main__ import main
from companion.book import runs as published
from companion.notebook import checking, claims, recording
from companion.notebook.bounds import Bound, number
from companion.notebook.checking import (
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    Badge,
    ClaimError,
    Claims,
    Table,
    Verdict,
    judge,
    margin,
)
from companion.notebook.claims import load_claims, papers, parse_claims, what_decides
from companion.notebook.parameters import Settings
from companion.notebook.recording import Recorded, record
from companion.runs import chapters

STATED = {
    "C2": {
        "says": "The error falls.",
        "kind": "paper",
        "where": "§4",
        "reported": [
            {"what": "error", "value": 1.60, "unit": "%", "at": "Table 1", "certainty": "read", "quantity": "fall"},
            {"what": "error", "value": 2, "at": "Fig. 2", "certainty": "figure", "plus_minus": 0.5},
            {"what": "error", "value": 3, "at": "Table 9", "certainty": "quoted", "by": "Others (2020)"},
        ],
        "quantities": {
            "fall": {"is": "fall of the error", "unit": "points", "within": {"quick": ">= 2", "else": ">= 1"}},
            "all_fell": {"is": "runs that fell", "within": "== true"},
        },
        "asserted": ["quick", "mnist"],
        "needs": {"sizes": [8, 16]},
        "settled": {"on": "2026-11-22", "before_looking": True},
    },
    "C10": {
        "says": "Nothing is lost.",
        "kind": "derivation",
        "where": "algebra",
        "quantities": {"gap": {"is": "gap", "within": "<= 1e-6"}},
        "depends": ["rate"],
        "expected": False,
        "settled": {"on": "2026-11-22", "before_looking": False, "why": "a first run had shown it"},
    },
}  # fmt: skip


def text(stated=STATED):
    return yaml.safe_dump(stated, allow_unicode=True, sort_keys=False).replace(
        "'2026-11-22'", "2026-11-22"
    )


def changed(*road, to=None, id="C2"):
    """STATED with one entry set, or removed."""
    stated = copy.deepcopy(STATED)
    place = stated[id]
    for key in road[:-1]:
        place = place[key]
    if to is None:
        del place[road[-1]]
    else:
        place[road[-1]] = to
    return text(stated)


def settings(profile="quick", **given):
    defaults = {
        "profile": profile, "sizes": [8, 16, 32], "rate": 0.1, "seed": 0, "device": "auto", "data_root": "",
    }  # fmt: skip
    return Settings(defaults | given, defaults, profile)


def chapter(profile="quick", **given):
    return Claims("demo", settings(profile, **given), parse_claims(text()))


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch):
    monkeypatch.delenv("COMPANION_RECORD", raising=False)
    monkeypatch.setattr(checking, "display", lambda shown: False)


@pytest.fixture
def target(monkeypatch, tmp_path):
    """A file that a recorded run writes."""
    path = tmp_path / "run.part.json"
    path.write_text('{"paper": "demo"}')
    monkeypatch.setenv("COMPANION_RECORD", str(path))
    return path


# ---------------------------------------------------------------- bounds

FINITE = st.floats(-1e6, 1e6).map(lambda value: float(f"{value:.6g}"))


@given(FINITE, FINITE, st.sampled_from("[("), st.sampled_from("])"), FINITE)
def test_an_interval_holds_what_python_says(a, b, left, right, value):
    low, high = sorted((a, b))
    if low == high:
        return
    bound = Bound.parse(f"{left}{low!r}, {high!r}{right}")
    inside = (low <= value if left == "[" else low < value) and (
        value <= high if right == "]" else value < high
    )
    assert bound.holds(value) is inside
    assert (bound.margin(value) >= 0) is (low <= value <= high)


@given(st.sampled_from(["<=", "<", ">=", ">", "=="]), FINITE, FINITE)
def test_a_comparison_holds_what_python_says(sign, limit, value):
    wanted = eval(f"value {sign} limit", {"value": value, "limit": limit})
    assert Bound.parse(f"{sign} {limit!r}").holds(value) is wanted
    assert Bound.parse(f"{sign} {limit!r}").holds(math.nan) is False


@pytest.mark.parametrize(
    ("stated", "words", "good", "bad"),
    [
        ("<= 2.0", "at most 2", [2, -9], [2.001]),
        ("< 1e-6", "below 1·10⁻⁶", [0], [1e-6]),
        (">= 1500", "at least 1,500", [1500], [1499]),
        ("> -0.5", "above −0.5", [0], [-0.5]),
        ("> −0.5", "above −0.5", [0], [-0.5]),
        ("== 42", "exactly 42", [42, 42.0], [42.1]),
        ("0.7 ± 0.2", "0.5 to 0.9", [0.5, 0.9], [0.4999, 0.9001]),
        ("(0, 1]", "above 0 and at most 1", [1], [0]),
        ("[0, 1)", "at least 0 and below 1", [0], [1, math.inf, -math.inf]),
        ("<= 0.01234567", "at most 0.01234567", [0.01234567], [0.0123457, -math.inf]),
        (">= 2", "at least 2", [2], [math.inf]),
        ("== 1234567", "exactly 1,234,567", [1234567], [1234568]),
        ("== true", "yes", [True], [False, 1, math.nan]),
        ("== false", "no", [False], [True, 0]),
    ],
)
def test_bounds_are_read_and_told(stated, words, good, bad):
    bound = Bound.parse(stated)
    assert str(bound) == words
    assert all(bound.holds(value) for value in good)
    assert not any(bound.holds(value) for value in bad)


@pytest.mark.parametrize(
    "stated", ["", "2", "<= ", "=> 2", "[1, 0]", "[1, 1]", "[0, 1", "<= nan", "< inf", "<= 1e400", "[0, 1e400]", "-1e400 ± 1", "5 ± 0", "5 ± -1", "== yes", None, 3, "> 1 or < 0", "<= 2; x"]
)  # fmt: skip
def test_what_is_no_bound_is_refused(stated):
    with pytest.raises(ValueError, match=r"within = .*expected such as"):
        Bound.parse(stated)


def test_numbers_are_told_as_readers_write_them():
    told = [
        number(v) for v in (3, 3.0, -1.25, 0.000123, 12345.6, 4.4e-16, True, math.nan, -math.inf)
    ]
    assert told == [
        "3",
        "3",
        "−1.25",
        "1.2·10⁻⁴",
        "12,346",
        "4.4·10⁻¹⁶",
        "yes",
        "not a number",
        "−∞",
    ]


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize(
    ("value", "told"), [(999.4, "999"), (999.5, "1,000"), (-999.9, "−1,000"), (1000.2, "1,000")]
)
def test_a_number_just_below_a_thousand_is_not_written_with_an_exponent(value, told):
    assert number(value) == told


def test_a_file_is_read_in_the_order_of_its_numbers():
    found = parse_claims(text(dict(reversed(STATED.items()))))
    assert list(found) == ["C2", "C10"]
    claim = found["C2"]
    assert (claim.kind, claim.asserted, claim.depends) == ("paper", ("quick", "mnist"), None)
    assert claim.quantities["fall"].wanted("quick") == "at least 2 points"
    assert claim.quantities["fall"].wanted("paper") == "at least 1 point"
    assert [str(reported) for reported in claim.reported] == [
        "error: 1.6 % (Table 1)",
        "error: 2 (Fig. 2; read off the figure, ± 0.5)",
        "error: 3 (Table 9; quoted by Others (2020))",
    ]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        (changed("says"), "C2: lacks says"),
        (changed("says", to=" "), "C2: says = ' ': expected a text"),
        (changed("kind", to="ours"), "C2: kind = 'ours': expected one of paper, control, derivation"),
        (changed("quantities", to={}), "C2: quantities: expected at least one, or the claim cannot fail"),
        (changed("quantities", to=[1]), "C2: quantities: expected keys and values, got [1]"),
        (changed("quantities", "self", to={"is": "x", "within": "<= 2", "unit": ""}), "C2: self: unit = ''"),
        (changed("quantities", "class", to={"is": "x", "within": "<= 2"}), "C2: class: expected a name"),
        (changed("quantities", "id", to={"is": "x", "within": "<= 2"}), "C2: id: expected a name"),
        (changed("reported", to=[]), "C2: reported = []: expected a list of at least one"),
        (text().replace("  reported:\n", "  reported:\n  expected: true\n").split("  - what")[0] + "  quantities" + text().split("  quantities")[1], "C2: reported = None: expected a list"),
        (changed("reported", 0, "value", to=[1]), "C2: reported: value = [1]: expected a text"),
        (changed("reported", 0, "value", to=True), "C2: reported: value = True: expected a text"),
        (changed("reported", 0, "value", to=" "), "C2: reported: value = ' ': expected a text"),
        (changed("reported", 0, "at", to=5), "C2: reported: at = 5: expected a text"),
        (changed("reported", 1, "plus_minus", to="0.5"), "plus_minus = '0.5': expected a number above 0"),
        (changed("reported", 1, "plus_minus", to=0), "plus_minus = 0: expected a number above 0"),
        (changed("settled", to=[]), "C2: settled = []: expected a list of at least one"),
        (changed("needs", to={"sizes": ">= two"}), "C2: needs: sizes: within = '>= two': expected such as"),
        (text({"C02": STATED["C2"]}), "C02: expected an id such as C4 or C9b"),
        (changed("quantities", "fall", "within"), "C2: fall: lacks within"),
        (changed("quantities", "fall", "within", to="about 2"), "C2: fall: within = 'about 2': expected such as"),
        (changed("quantities", "fall", "within", to={"quick": ">= 2"}), "C2: fall: within: expected a bound for 'else'"),
        (changed("quantities", "fall", "within", to={"quick": ">= 2", "else": "== true"}), "bounds of one kind"),
        (changed("quantities", "fall", "bound", to="<= 2"), "C2: fall: unknown bound"),
        (changed("reported", 0, "certainty", to="sure"), "C2: reported: certainty = 'sure': expected one of read, figure"),
        (changed("reported", 0, "quantity", to="rise"), "C2: reported: 'rise' is no quantity of this claim"),
        (changed("reported", 2, "by"), "'by' names who quotes it"),
        (changed("asserted", to="quick"), "C2: asserted = 'quick': expected a list of names"),
        (changed("settled", "before_looking", to=False), "C2: settled: after looking: expected why"),
        (changed("settled", "on", to="soon"), "C2: settled: on = 'soon': expected a date"),
        (changed("expected", to="no"), "C2: expected = 'no': expected true or false"),
        (changed("tolerance", to=3), "C2: unknown tolerance"),
        (text({"4": STATED["C2"]}), "4: expected an id such as C4 or C9b"),
        (text() + "C2: {}\n", "C2 is given twice"),
        ("- C1", "claims: expected keys and values"),
        ("C1: [", "while parsing"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_refused_by_name(stated, told):
    with pytest.raises(ValueError) as caught:
        parse_claims(stated)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_such_as_on_and_no_are_words():
    found = parse_claims(text().replace("'on'", "on").replace("fall of the error", "no"))
    assert found["C2"].quantities["fall"].means == "no"


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("2.5E+2", 250.0), ("-.5", -0.5), ("17", 17), ("017", "017"), ("1:30", "1:30"), ("0x1F", "0x1F")],
)  # fmt: skip
def test_numbers_are_those_of_today(written, value):
    found = parse_claims(text().replace("value: 1.6", f"value: {written}"))
    assert found["C2"].reported[0].value == value
    assert type(found["C2"].reported[0].value) is type(value)


def test_whatever_decides_a_verdict_is_seen_in_what_decides():
    """Each change of a bound, and no sentence."""

    def decides(within, says="The error falls."):
        return what_decides(
            parse_claims(changed("quantities", "fall", "within", to=within).replace("The error falls.", says))
        )  # fmt: skip

    bounds = ["<= 2", "< 2", ">= 2", "<= 2.0001", "<= 2.0000001", "[0, 2]", "(0, 2]", "== 2", {"quick": "<= 2", "else": "<= 3"}]  # fmt: skip
    found = [json.dumps(decides(within)) for within in bounds]
    assert len(set(found)) == len(bounds)
    assert decides("<= 2") == decides("<= 2.0", "Errors fall.")


@pytest.mark.parametrize("paper", papers())
def test_every_paper_states_claims_that_its_chapter_can_check(paper):
    """Profiles, needed and guarding parameters exist; nobody asserts what can never be run."""
    path = chapters.find(paper)
    profiles, known = chapters.presets(path), chapters.defaults(path)
    for id, claim in load_claims(paper).items():
        assert set(claim.asserted or ()) <= profiles.keys(), id
        assert (claim.needs or {}).keys() <= known.keys(), id
        assert set(claim.depends or ()) <= known.keys(), id
        for quantity in claim.quantities.values():
            assert quantity.bounds.keys() <= profiles.keys() | {claims.ELSE}, id
        for profile in profiles if claim.asserted is None else claim.asserted:
            assert not claim.missing(known | profiles[profile] | {"profile": profile}), (
                id,
                profile,
            )


def test_every_chapter_has_a_file_of_claims():
    assert papers() == chapters.stems()
    with pytest.raises(ValueError, match=r"paper = 'nosuch': expected one of .*snip"):
        load_claims("nosuch")


# ---------------------------------------------------------------- in a run


def test_numbers_in_verdict_out(capsys):
    found = chapter()
    found.check("C2", fall=2.5, all_fell=[True, True])
    assert capsys.readouterr().out == "C2 reproduced: The error falls.\n"
    verdict = found.verdicts["C2"]
    assert verdict == Verdict(
        "C2", REPRODUCED, True, "quick", {"fall": 2.5, "all_fell": [True, True]}
    )
    assert margin(found.stated["C2"], verdict) == 0.25
    shown = Badge(found.stated["C2"], verdict)._repr_html_()
    assert (
        "fall of the error: 2.5 points (at least 2 points); runs that fell: 2 of 2 (yes)" in shown
    )
    assert "reproduced; 25 % inside the bound" in shown
    assert "2.5" not in repr(Badge(found.stated["C2"], verdict))


@pytest.mark.parametrize(
    ("profile", "given", "fall", "outcome", "asserted"),
    [
        ("quick", {}, 1.5, NOT_REPRODUCED, True),
        ("mnist", {}, 1.5, REPRODUCED, True),
        ("paper", {}, 0.5, NOT_REPRODUCED, False),
        ("quick", {"rate": 0.2}, 1.5, NOT_REPRODUCED, False),
        ("quick", {"device": "cpu", "data_root": "x"}, 2.5, REPRODUCED, True),
        ("quick", {}, math.nan, NOT_REPRODUCED, True),
        ("quick", {}, [2.5, math.nan], NOT_REPRODUCED, True),
        ("quick", {}, [2.5, 1.9], NOT_REPRODUCED, True),
        ("quick", {}, math.inf, NOT_REPRODUCED, True),
        ("quick", {}, 10**400, NOT_REPRODUCED, True),
        ("quick", {}, Fraction(5, 2), REPRODUCED, True),
        ("quick", {}, sympy.Rational(3, 2), NOT_REPRODUCED, True),
        ("quick", {}, sympy.Float(2.5), REPRODUCED, True),
        ("quick", {}, np.array([[2.5, 3.0], [2.0, 1.9]]), NOT_REPRODUCED, True),
        ("quick", {}, torch.tensor([[2.5, 3.0]]), REPRODUCED, True),
        ("quick", {}, np.float32(2.5), REPRODUCED, True),
        ("quick", {}, torch.tensor([2.5, 3.0]), REPRODUCED, True),
        ("quick", {}, 3, REPRODUCED, True),
    ],
)
def test_the_bound_of_the_profile_decides(profile, given, fall, outcome, asserted):
    found = chapter(profile, **given)
    found.check("C2", fall=fall, all_fell=np.bool_(True))
    assert (found.verdicts["C2"].outcome, found.verdicts["C2"].asserted) == (outcome, asserted)


def test_a_claim_of_its_own_parameters_is_guarded_by_these_only():
    for other, asserted in (({"seed": 3}, True), ({"rate": 0.2}, False)):
        found = chapter(**other)
        found.check("C10", gap=1.0)
        assert found.verdicts["C10"].asserted is asserted


def test_what_a_claim_needs_decides_whether_it_is_due():
    found = chapter(sizes=[8])
    assert not found.due("C2")
    found.check("C2", fall=None, all_fell=None)  # not looked at
    assert found.verdicts["C2"].outcome == NOT_RUN
    assert found.verdicts["C2"].words(found.stated["C2"]) == "not run here: needs sizes"
    assert chapter(sizes=[16, 8]).due("C2")


@pytest.mark.parametrize(
    ("needs", "given", "due"),
    [
        ({"profile": ["paper", "mnist"]}, {"profile": "mnist"}, True),
        ({"profile": "paper"}, {"profile": "mnist"}, False),
        ({"rate": ">= 0.1"}, {"rate": 0.1}, True),
        ({"rate": "(0.1, 1)"}, {"rate": 0.1}, False),
        ({"sizes": 8}, {"sizes": [8]}, True),
        ({"sizes": [8, 9]}, {"sizes": [8]}, False),
        ({"sizes": ">= 2"}, {"sizes": [8]}, False),
        ({"sizes": ">= 2"}, {"sizes": [8, 9]}, True),
    ],
)
def test_needs_are_values_lists_and_bounds(needs, given, due):
    found = Claims("demo", settings(**given), parse_claims(changed("needs", to=needs)))
    assert found.due("C2") is due


@pytest.mark.parametrize(
    ("id", "measured", "told"),
    [
        ("C3", {"fall": 1}, "id = 'C3': demo states no such claim"),
        ("C22", {"fall": 1}, "(did you mean 'C2'?)"),
        ("C2", {"fall": 1}, "C2: all_fell was not measured"),
        (
            "C2",
            {"fall": 1, "all_fell": True, "rise": 2},
            "C2 has no quantity rise: fall, all_fell",
        ),
        ("C2", {"fall": None, "all_fell": True}, "C2: fall = None: expected a number"),
        ("C2", {"fall": "2", "all_fell": True}, "C2: fall = '2': expected a number"),
        ("C2", {"fall": [], "all_fell": True}, "C2: fall = []: expected a number"),
        ("C2", {"fall": True, "all_fell": True}, "C2: fall = True: expected a number"),
        ("C2", {"fall": 2, "all_fell": 1}, "C2: all_fell = 1: expected a truth value"),
    ],
)
def test_what_is_not_the_claims_is_refused(id, measured, told):
    with pytest.raises(ValueError) as caught:
        chapter().check(id, **measured)
    assert told in str(caught.value)


def test_what_the_claim_does_not_state_is_listed_in_order():
    with pytest.raises(ValueError, match="C2 has no quantity climb, drop, rise, speed: fall, all"):
        chapter().check("C2", fall=1, all_fell=True, speed=1, rise=2, climb=3, drop=4)


@pytest.mark.parametrize(
    ("gap", "kept", "told"),
    [
        (-math.inf, -1e300, "gap: −∞ (at most 1·10⁻⁶)"),
        (-(10**400), -1e300, "gap: −∞ (at most 1·10⁻⁶)"),
        (math.inf, 1e300, "gap: ∞ (at most 1·10⁻⁶)"),
        ((2, 3.5), [2, 3.5], None),
        (2**30 + 1, 2**30 + 1, None),
    ],
)
def test_a_measured_number_keeps_its_sign_and_whole_numbers_their_digits(gap, kept, told):
    found = chapter()
    found.check("C10", gap=gap)
    assert found.verdicts["C10"].measured == {"gap": kept}
    if told:
        assert checking.measured_lines(found.stated["C10"], found.verdicts["C10"]) == [told]


def test_a_claim_is_checked_once_and_each_that_is_due_is_checked(target):
    found = chapter()
    found.check("C10", gap=1)
    with pytest.raises(ValueError, match="'C10': this claim was checked before"):
        found.check("C10", gap=1)
    with pytest.raises(ValueError, match="'C10': this claim was checked before"):
        found.skip("C10", "no time")
    with pytest.raises(ValueError, match="not checked: C2"):
        found.settle()
    kept = json.loads(target.read_text())["values"]["demo.claims"]
    assert [verdict["outcome"] for verdict in kept] == [NOT_RUN, NOT_REPRODUCED]
    assert kept[0]["why"] == "no cell checked it"


def test_a_claim_that_this_machine_cannot_measure_says_why(target):
    found = chapter()
    found.skip("C2", "OpenCV is not installed")
    found.check("C10", gap=1)
    found.settle()
    assert "not run here: OpenCV is not installed" in repr(found.table())


def test_a_miss_raises_after_it_was_recorded(target, capsys):
    found = chapter()
    found.check("C2", fall=1.9, all_fell=True)
    found.check("C10", gap=1.0)
    with pytest.raises(ClaimError) as caught:
        found.settle()
    assert str(caught.value) == (
        "C2: The error falls. fall = 1.9 points, allowed at least 2 points, all_fell = yes, allowed yes"
    )
    kept = json.loads(target.read_text())["values"]
    assert kept["demo.claims"][0]["outcome"] == NOT_REPRODUCED
    assert Verdict(**kept["demo.claims"][0]) == found.verdicts["C2"]
    assert "data_root" not in kept["demo.settings"]


def test_a_claim_that_is_known_to_miss_must_miss(target, capsys):
    found = chapter()
    found.check("C2", fall=2, all_fell=True)
    found.check("C10", gap=1.0)
    found.settle()
    assert "C10 not reproduced, as known" in capsys.readouterr().out
    better = chapter()
    better.check("C2", fall=2, all_fell=True)
    better.check("C10", gap=0.0)
    with pytest.raises(ClaimError, match=r"known not to reproduce, but does"):
        better.settle()


def test_what_is_not_asserted_says_the_same_on_every_machine(capsys):
    for fall in (0.0, 5.0):
        chapter("paper").check("C2", fall=fall, all_fell=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first == second == "C2 measured, not asserted in this run: The error falls."


@given(st.floats(allow_nan=True, allow_infinity=True), st.booleans())
def test_what_is_shown_is_what_was_judged(fall, fell):
    """Six digits are kept: the verdict is that of the kept number, whatever was measured."""
    found = chapter()
    found.check("C2", fall=fall, all_fell=fell)
    verdict = found.verdicts["C2"]
    kept = json.loads(json.dumps(verdict.measured))
    assert judge(found.stated["C2"], kept, "quick") == verdict.outcome
    assert len(Table(found.stated, [verdict]).rows()) == 1


def test_margins_are_shares_of_the_bound():
    stated = parse_claims(text())
    claim = stated["C10"]
    for gap, share in ((0.0, 1.0), (5e-7, 0.5), (1e-6, 0.0), (2e-6, -1.0)):
        verdict = Verdict("C10", REPRODUCED, True, "quick", {"gap": gap})
        assert margin(claim, verdict) == pytest.approx(share)
    interval = parse_claims(changed("quantities", "fall", "within", to="[2, 6]"))["C2"]
    for fall, share in ((4, 1.0), (2, 0.0), ([4, 5], 0.5), (7, -0.5)):
        verdict = Verdict("C2", REPRODUCED, True, "quick", {"fall": fall, "all_fell": True})
        assert margin(interval, verdict) == pytest.approx(share)
    at_zero = parse_claims(changed("quantities", "fall", "within", to="> 0"))["C2"]
    assert math.isnan(margin(at_zero, Verdict("C2", REPRODUCED, True, "quick", {"fall": 1})))
    assert math.isnan(margin(claim, Verdict("C10", NOT_RUN, False)))
    assert math.isnan(margin(claim, Verdict("C10", NOT_REPRODUCED, True, "", {"gap": None})))


def test_a_margin_is_told_with_its_side_and_none_where_a_value_is_no_number():
    claim = parse_claims(text())["C2"]
    miss = Verdict("C2", NOT_REPRODUCED, True, "quick", {"fall": 1.5})
    assert checking.margin_text(claim, miss) == "25 % outside the bound"
    assert math.isnan(margin(claim, Verdict("C2", NOT_REPRODUCED, True, "", {"fall": [3, None]})))


@pytest.mark.parametrize(
    ("id", "outcome", "asserted", "words"),
    [
        ("C2", REPRODUCED, True, "reproduced"),
        ("C2", REPRODUCED, False, "reproduced (not asserted in this run)"),
        ("C2", NOT_REPRODUCED, True, "not reproduced, against expectation"),
        ("C2", NOT_REPRODUCED, False, "not reproduced (not asserted in this run)"),
        ("C10", REPRODUCED, True, "reproduced, against expectation"),
        ("C10", REPRODUCED, False, "reproduced (not asserted in this run)"),
        ("C10", NOT_REPRODUCED, True, "not reproduced, as known"),
        ("C10", NOT_REPRODUCED, False, "not reproduced, as known (not asserted in this run)"),
    ],
)
def test_a_verdict_says_what_is_known_and_what_was_not_asserted(id, outcome, asserted, words):
    claim, verdict = parse_claims(text())[id], Verdict(id, outcome, asserted)
    assert verdict.words(claim) == words
    assert ("as known" in repr(Badge(claim, verdict))) is (words == "not reproduced, as known")


def test_what_is_not_due_need_not_be_checked(target):
    found = chapter(sizes=[8])
    found.check("C10", gap=1)
    found.settle()
    assert json.loads(target.read_text())["values"]["demo.claims"][0]["why"] == "needs sizes"


def test_a_table_says_whose_each_claim_is_and_what_was_measured():
    control = parse_claims(changed("kind", to="control"))["C2"]
    derived = parse_claims(text())["C10"]
    met = Verdict("C2", REPRODUCED, True, "quick", {"all_fell": True})
    assert checking.table_row(control, met)[1] == "The error falls. (§4; our control)"
    assert checking.measured_lines(control, met) == [
        "fall of the error (at least 2 points)",
        "runs that fell: yes",
    ]
    row = checking.table_row(derived, Verdict("C10", NOT_RUN, False, said="a gap of 2"))
    assert row[1:4] == ("Nothing is lost. (algebra; derived)", "no value", "a gap of 2")
    assert Table({"C10": derived}, [met]).rows() == []  # of a claim that is gone


def test_tables_escape_what_they_show():
    stated = parse_claims(changed("says", to="<b> & co"))
    verdict = Verdict("C2", NOT_RUN, False, why="<i>")
    for shown in (Table(stated, [verdict]), Badge(stated["C2"], verdict)):
        assert "<b> &" not in shown._repr_html_()
        assert "&lt;b&gt; &amp; co" in shown._repr_html_()
        assert "<i>:" not in shown._repr_html_().replace("<i>not", "")
        assert "not run here: &lt;i&gt;" in shown._repr_html_()


# ---------------------------------------------------------------- recording


def test_a_recorded_value_is_a_glue_output(monkeypatch):
    shown = []
    monkeypatch.setattr(recording, "display", lambda output: shown.append(output) or True)
    record("gap", 0.25)
    record("curve", {"x": [1, 2]})
    (gap, gap_metadata), (curve, _) = (output._repr_mimebundle_() for output in shown)
    assert gap == {"text/plain": "0.25"}
    assert gap_metadata == {"scrapbook": {"name": "gap", "mime_prefix": ""}}
    assert curve == {"application/json": {"x": [1, 2]}, "text/plain": "curve"}


def test_a_bool_is_recorded_as_text():
    assert Recorded("ok", True)._repr_mimebundle_()[0] == {"text/plain": "True"}


def test_records_are_added_to_the_file_and_nothing_is_displayed(target, monkeypatch):
    monkeypatch.setattr(recording, "display", None)
    record("a", 1)
    record("b", [1.5, float("nan")])
    record("a", 2)
    assert json.loads(target.read_text()) == {
        "paper": "demo",
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


# ---------------------------------------------------------------- as others read them


def test_the_command_tells_what_a_reviewer_asks_and_runs_nothing(capsys):
    assert main(["claims", "snip"]) == 0
    told = capsys.readouterr().out
    for part in (
        "C5 ", "at least 10 points (profile quick)", "at least 0.3 points (profile else)",
        "needs: sparsities [0.98]", "asserted in: quick, mnist", "LeNet-300-100 at 95 %: 1.6 % error (Table 1)",
        "settled: 2026-11-22, before a result was seen", "after a result was seen: the factor",
    ):  # fmt: skip
        assert part in told, part
    assert main(["claims"]) == 0
    assert all(f"{paper}\n" in capsys.readouterr().out for paper in papers()[:1])
    assert main(["claims", "nosuch"]) == 2
    assert "paper = 'nosuch': expected one of" in capsys.readouterr().err


def test_outputs_that_were_edited_are_not_believed_by_the_list(tmp_path, monkeypatch, capsys):
    text = chapters.find("snip").read_text(encoding="utf-8")
    assert '"not reproduced"' in text
    (tmp_path / "snip.ipynb").write_text(text.replace('"not reproduced"', '"reproduced"'))
    monkeypatch.setattr(chapters, "FOLDER", tmp_path)
    assert main(["list"]) == 0
    assert "outputs edited: make notebooks NB=snip" in capsys.readouterr().out


def test_the_list_shows_a_claim_that_is_gone_and_a_notebook_of_ones_own(
    tmp_path, monkeypatch, capsys
):
    text = chapters.find("snip").read_text(encoding="utf-8")
    (tmp_path / "snip.ipynb").write_text(text.replace('"C11"', '"C99"'))
    (tmp_path / "mine.ipynb").write_text(text.replace("snip.", "mine."))
    monkeypatch.setattr(chapters, "FOLDER", tmp_path)
    assert main(["list"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.count("reproduced") > 1
    assert "mine" in told.out


def test_other_tools_get_bounds_as_numbers():
    stated = published._statement(load_claims("snip")["C5"])
    assert stated["quantities"]["over_shuffled"]["within"]["quick"] == {
        "low": 10, "high": None, "open_low": False, "open_high": False,
    }  # fmt: skip
    assert stated["needs"]["sparsities"] == [0.98]
    assert published._ends(Bound.parse("== true")) == {"truth": True}
    json.dumps(published._statement(load_claims("masked_kd")["C2"]), allow_nan=False)


@pytest.mark.parametrize(
    ("key", "to"),
    [
        ("asserted", ["quick"]),
        ("needs", {"sizes": [8]}),
        ("depends", ["rate"]),
        ("expected", False),
    ],
)
def test_what_guards_a_verdict_is_seen_in_what_decides(key, to):
    assert what_decides(parse_claims(changed(key, to=to))) != what_decides(parse_claims(text()))


def test_a_margin_of_one_per_cent_is_told_without_digits():
    claim = parse_claims(changed("quantities", "gap", "within", to="[0, 200]", id="C10"))["C10"]
    verdict = Verdict("C10", REPRODUCED, True, measured={"gap": 1})
    assert checking.margin_text(claim, verdict) == "1 % inside the bound"


def test_a_number_beyond_all_digits_of_a_float_is_no_whole_one():
    made = chapter()
    made.check("C10", gap=2.0**70)
    assert type(made.verdicts["C10"].measured["gap"]) is float
    assert number(2e15) == "2·10¹⁵"


def test_a_run_from_before_a_parameter_that_a_claim_needs_keeps_its_verdict():
    from companion.runs.record import _judged

    verdict = Verdict("C2", REPRODUCED, True, "quick", {"fall": 3, "all_fell": True})
    assert _judged(parse_claims(text())["C2"], verdict, {}) == verdict
