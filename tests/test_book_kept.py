"""Numbers of recorded runs in prose."""

import pytest

from companion.book import kept
from companion.notebook.checking import REPRODUCED, Verdict
from companion.runs.record import Held, Run


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    claim = Verdict(
        "C7", REPRODUCED, asserted=True, profile="p", measured={"ratio": [0.5, 2.0], "exact": True}
    )
    values = {
        "e.dense": 1.386, "e.dense.seeds": [1.472, 1.352], "shift": [-0.5, 0.25],
        "by.size": {"100 at 90 %": 0.5},
        "times": {"step, Ti from S": {"98": {"ms": 43.2}}, "a/b": 3, "a": {"b": 4}, "l": [5, 6]}, "missing": None, "word": "many", "e.nan": float("nan"),
    }  # fmt: skip
    found = {"gpu-run": Run("snip", "gpu-run", values=values, claims={"C7": claim})}
    rows = [
        {"seed": "0", "decay": "0.0", "e.dense": "1.9"},
        {"seed": "1", "decay": "0.0", "e.dense": "1.8"},
        {"seed": "0", "decay": "0.0005", "e.dense": "1.4"},
        {"seed": "1", "decay": "0.0005", "e.dense": ""},
    ]
    monkeypatch.setattr(kept, "_runs", lambda paper: found)
    monkeypatch.setattr(kept, "_sweeps", lambda paper: {"decays": rows})


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("e.dense:.2f", "1.39"),
        ("e.dense", "1.386"),
        ("e.dense.seeds:.2f", "1.35–1.47"),
        ("e.dense.seeds[0]:.1f", "1.5"),
        ("shift:+.1f", "−0.5 to +0.2"),
        ("by.size[100 at 90 %]*100:.0f", "50"),
        ("times[step, Ti from S/98/ms]:.1f", "43.2"),
        ("times[a/b]:.0f", "3"),
        ("times[l/1]:.0f", "6"),
        ("C7.ratio:.1f", "0.5–2.0"),
    ],
)
def test_a_number_of_a_record_stands_in_prose(said, number):
    said = f"gpu-run {said}"
    assert kept.filled(f"an error of {{kept}}`{said}` %.", "snip") == (f"an error of {number} %.")


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("e.dense[decay=0]:.1f", "1.8–1.9"),
        ("e.dense[seed=0]:.1f", "1.4–1.9"),
        ("seed:.0f", "0–1"),
    ],
)
def test_a_number_of_a_sweep_stands_in_prose(said, number):
    assert kept.filled(f"{{kept}}`decays {said}`", "snip") == number


def test_a_claims_count_over_a_sweep_stands_in_prose(monkeypatch):
    monkeypatch.setattr(kept, "_held", lambda paper, name: {"C7": Held(4, 10)})
    said = "{kept}`decays C7.held` of {kept}`decays C7.of`"
    assert kept.filled(said, "snip") == "4 of 10"
    with pytest.raises(ValueError, match="no number of this name, but None"):
        kept.filled("{kept}`decays C8.held`", "snip")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("other e.dense", "no record 'other', but gpu-run, decays"),
        ("decays e.dense[decay=1]", "no number"),
        ("decays e.sparse", "no such column; it has seed, decay, e.dense"),
        ("decays e.dense[rate=0]", "no such column"),
        ("decays e.dense[rate=]", "no such column"),
        ("decays e.dense[decay]", "no such column"),
        ("decays e.dense", "could not convert"),  # a run that lacks it
        ("gpu-run C7.exact", "no number of this name, but True"),
        ("gpu-run e.nan", "no number"),
        ("gpu-run e.dense:.2q", "Unknown format code"),
        ("gpu-run e.dense*1.0.0", "could not convert"),
        ("gpu-run e.sparse", "no number of this name, but None"),
        ("gpu-run missing", "no number"),
        ("gpu-run word", "no number of this name, but 'many'"),
        ("gpu-run by.size", "no number"),
        ("gpu-run by.size[7]", "no number"),
        ("gpu-run e.dense.seeds[2]", "no number"),
        ("gpu-run", "expected {kept}`RUN NAME:FORMAT`"),
    ],
)
def test_what_no_record_holds_is_refused(said, why):
    with pytest.raises(ValueError, match=r"^snip: ") as refused:
        kept.filled(f"an error of {{kept}}`{said}` %.", "snip")
    assert why in str(refused.value)


def test_other_prose_stays():
    text = "{glue:text}`snip.error:.2f` and `kept`"
    assert kept.filled(text, "snip") is text


@pytest.mark.parametrize("place", ["0/1", "1/0"])
def test_lines_and_numbers_that_were_printed_are_counted_from_1(monkeypatch, place):
    answer = Run("snip", "exercise-1", values={"printed": ["2 of -3.5"]})
    monkeypatch.setattr(kept, "_runs", lambda paper: {"exercise-1": answer})
    assert kept.filled("{kept}`exercise-1 printed[1/2]`", "snip") == "−3.5"
    with pytest.raises(ValueError, match="counted from 1"):
        kept.filled(f"{{kept}}`exercise-1 printed[{place}]`", "snip")
