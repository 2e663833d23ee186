"""How each claim came out over all runs of a chapter: what the start page and the scoreboard show.

A claim stands as *reproduced* if every run that measured it reproduced it, as *not reproduced* if
none did. Rows of a sweep count as runs; a run that did not finish is no evidence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from companion.book.runs import papers, stored_run
from companion.notebook.bounds import Bound
from companion.notebook.checking import (
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    as_measured,
)
from companion.notebook.claims import Claim, Quantity, Reported, load_claims
from companion.runs import chapters
from companion.runs.record import DONE, EARLIER, STALE, Run, Sweep
from companion.runs.records import load_records
from companion.runs.store import kept

SOME = "in some runs only"
STANDINGS = {NOT_REPRODUCED: "fails", SOME: "some", REPRODUCED: "holds", NOT_RUN: "open"}
LABELS = dict(zip(STANDINGS, ["not reproduced", SOME, "reproduced", "not run"], strict=True))
SIGNS = {NOT_REPRODUCED: "✗", SOME: "≈", REPRODUCED: "✓", NOT_RUN: "–"}
OLDER = {EARLIER: "earlier code", STALE: "stale"}
SINCE = {
    EARLIER: "The library below the chapter has changed since; the chapter's default run gives the "
    "same results with both; what this run did besides was not tried again.",
    STALE: "The chapter's code or the library below it has changed since.",
}
KINDS = {"paper": "claim of the paper", "control": "our control", "derivation": "derivation"}


@dataclass(frozen=True)
class Measured:
    """A quantity under one run: every finite value, in words too, and the bounds that judged it:
    several where the runs of a sweep have several profiles."""

    quantity: Quantity
    values: tuple[float, ...]
    shown: str
    bounds: tuple[Bound, ...]

    @property
    def wanted(self) -> str:
        return " or ".join(map(str, self.bounds))


@dataclass(frozen=True)
class Cell:
    """A claim under one run.

    lane: "default", "sweep" or "recorded". words: the outcome, and what makes it surprising or not.
    """

    run: str
    lane: str
    outcome: str
    asserted: bool
    words: str
    measured: tuple[Measured, ...] = ()

    @property
    def css(self) -> str:
        return STANDINGS[self.outcome] + (" asserted" if self.asserted else "")

    @property
    def sign(self) -> str:
        return SIGNS[self.outcome]


@dataclass(frozen=True)
class Row:
    """A claim under every run of its chapter."""

    claim: Claim
    cells: tuple[Cell, ...]

    @property
    def standing(self) -> str:
        return stands(cell.outcome for cell in self.cells)


@dataclass(frozen=True)
class Chapter:
    """A paper of book/papers.yml with its runs: the default one, its sweeps, recorded ones."""

    stem: str
    about: dict
    runs: tuple[Run | Sweep, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return short_name(self.about)

    def counts(self, *, paper: bool) -> dict[str, int]:
        """Standings, failures first, of the paper's claims or of our own checks."""
        rows = [row for row in self.rows if (row.claim.kind == "paper") is paper]
        return count(rows)


def short_name(about: dict) -> str:
    """What the book calls a paper where its title is too long."""
    return about.get("short") or about["title"].partition(":")[0]


def stands(outcomes: Iterable[str]) -> str:
    """The standing of a claim from its outcomes under all runs."""
    found = set(outcomes) - {NOT_RUN}
    return found.pop() if len(found) == 1 else SOME if found else NOT_RUN


def count(rows: Iterable[Row]) -> dict[str, int]:
    """How many claims stand in each way, failures first."""
    found = Counter(row.standing for row in rows)
    return {standing: found[standing] for standing in STANDINGS}


def read_chapters() -> list[Chapter]:
    """The chapters that there are, in the order of the papers."""
    there = set(chapters.stems())
    return [
        chapter_of(paper, [stored_run(stem), *kept(stem), *load_records(stem)])
        for paper in papers()
        if (stem := paper["stem"]) in there
    ]


def chapter_of(about: dict, runs: Iterable[Run | Sweep]) -> Chapter:
    """A chapter with every claim under each of its runs."""
    runs = tuple(runs)
    rows = tuple(
        Row(claim, tuple(_cell(claim, run) for run in runs))
        for claim in load_claims(about["stem"]).values()
    )
    return Chapter(about["stem"], about, runs, rows)


def label(run: Run | Sweep) -> str:
    """What a column calls a run."""
    if isinstance(run, Sweep):
        return f"{run.name} × {run.runs}"
    return "default" if lane(run) == "default" else run.name


def lane(run: Run | Sweep) -> str:
    """Which kind of run it is."""
    if isinstance(run, Sweep):
        return "sweep"
    return "default" if run.name == "stored" else "recorded"


def _cell(claim: Claim, run: Run | Sweep) -> Cell:
    of = (label(run), lane(run))
    if isinstance(run, Sweep):
        held = run.claims.get(claim.id)
        if held is None:
            return Cell(*of, NOT_RUN, False, NOT_RUN)
        outcome = {0: NOT_REPRODUCED, held.of: REPRODUCED}.get(held.held, SOME)
        words = f"reproduced in {held.held} of {held.of} runs"
        by_name = held.measured
        asserted, profiles = False, held.profiles or ["quick"]
    else:
        found = run.claims.get(claim.id)
        if found is None or found.outcome == NOT_RUN or run.status != DONE:
            words = found.words(claim) if found and run.status == DONE else NOT_RUN
            return Cell(*of, NOT_RUN, False, words)
        outcome, words = found.outcome, found.words(claim)
        by_name = found.measured
        asserted, profiles = found.asserted, [found.profile]
    measured = []
    for name, quantity in claim.quantities.items():
        if name in by_name:
            value = as_measured(by_name[name])
            values = value if isinstance(value, list) else [value]
            shown = quantity.shown(values) if values else "–"
            finite = tuple(v for v in values if not isinstance(v, bool) and math.isfinite(v))
            bounds = tuple(dict.fromkeys(map(quantity.bound, profiles)))
            measured.append(Measured(quantity, finite, shown, bounds))
    return Cell(*of, outcome, asserted, words, tuple(measured))


def reported_range(reported: Reported) -> tuple[float, float] | None:
    """A reported value as numbers: "2 to 4" as both, a number with what it may be off."""
    if isinstance(reported.value, str):
        ends = re.fullmatch(r"([\d.]+) to ([\d.]+)", reported.value)
        return (float(ends[1]), float(ends[2])) if ends else None
    off = reported.plus_minus or 0.0
    return reported.value - off, reported.value + off
