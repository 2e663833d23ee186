"""Claims of a paper that a run checks, shows and records.

A chapter makes one `Claims`, calls `check` once a claim, and ends with `table` and `settle`:

>>> claims = Claims("demo", Settings({"steps": 5}, {"steps": 5}))
>>> claim = claims.check(
...     "C1", "The error falls.", source="§4", ours=0.1, tolerance="below 0.2", holds=0.1 < 0.2
... )
C1 holds: The error falls.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from companion.files import to_json, write_whole
from companion.notebook.parameters import PLACES, Settings

HOLDS = "holds"
FAILS = "does not hold"
REPORTED = "reported"
NEEDS_PAPER = "needs the paper profile"
CERTAINTY = ("sure", "unverified", "none")  # of the paper's figure


class ClaimError(AssertionError):
    """Raised at the end of a chapter in which an asserted claim turned out otherwise."""


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper, what we measured, and the verdict.

    holds:    what the check computed; None where it was not computed.
    expected: what the specification says will come out; False for a claim of the paper that
              is known not to reproduce, which the book then says.
    asserted: whether this run had the settings that the claim was specified for.
    """

    id: str
    sentence: str
    source: str
    paper: str
    certainty: str
    ours: str
    tolerance: str
    holds: bool | None
    expected: bool
    asserted: bool
    verdict: str

    @property
    def failed(self) -> bool:
        return self.asserted and self.holds is not self.expected


class Claims:
    """The claims of one chapter in one run.

    stem: the chapter's stem; prefixes what is recorded.
    settings: what `check_parameters` returned; decides which claims are asserted.
    """

    def __init__(self, stem: str, settings: Settings) -> None:
        self.stem = stem
        self.settings = settings
        self.items: list[Claim] = []

    def check(
        self,
        id: str,
        sentence: str,
        *,
        source: str,
        paper: object = "",
        certainty: str = "none",
        ours: object = "",
        tolerance: str = "exact",
        holds: object = None,
        expected: bool = True,
        profiles: Iterable[str] | None = None,
        depends: Iterable[str] | None = None,
        report: bool = False,
    ) -> Claim:
        """Give a claim its verdict, keep it, and print one line that is stable across machines.

        source: where the paper says it. paper: its figure, with certainty "sure", "unverified"
          or "none" (no figure is known).
        ours, tolerance: what was measured and what would still count.
        holds: the computed check, a bool; None if this run could not compute it.
        expected: False for a claim that is specified not to reproduce.
        profiles: where the claim is asserted; None: everywhere.
        depends: parameters whose change turns the claim into *reported*; None: every one but
          the device and the data root. Give an empty list for what holds at any setting.
        report: never assert.

        Raises ValueError for an unknown certainty, an id used twice, or a check that is no bool.
        """
        if certainty not in CERTAINTY:
            raise ValueError(f"certainty = {certainty!r}: expected one of {CERTAINTY}")
        if any(claim.id == id for claim in self.items):
            raise ValueError(f"id = {id!r}: this claim was checked before")
        if holds is not None:
            if type(holds).__name__ not in ("bool", "bool_"):
                raise ValueError(
                    f"holds = {holds!r}: expected a bool, so that the check is explicit"
                )
            holds = bool(holds)
        profiles = None if profiles is None else tuple(profiles)
        here = profiles is None or self.settings.profile in profiles
        guarded = (
            self.settings.changed - PLACES
            if depends is None
            else self.settings.changed & set(depends)
        )
        asserted = here and not guarded and not report
        if asserted and holds is None:
            raise ValueError(f"claim {id} is asserted under these settings, but was not computed")
        only_paper = bool(profiles) and all(name.startswith("paper") for name in profiles)
        if asserted:
            verdict = HOLDS if holds else FAILS
        else:
            verdict = NEEDS_PAPER if holds is None and only_paper else REPORTED
        claim = Claim(
            id, sentence, source, _shown(paper), certainty, _shown(ours), tolerance,
            holds, expected, asserted, verdict,
        )  # fmt: skip
        self.items.append(claim)
        # a reported claim may come out either way on another machine: only its state is stable
        print(f"{id} {verdict}: {sentence}")
        return claim

    def table(self) -> Table:
        """All claims by number as a table: paper, ours, tolerance, verdict. Displays itself."""
        return Table(sorted(self.items, key=lambda claim: natural(claim.id)))

    def settle(self) -> None:
        """Record the claims, then raise ClaimError if an asserted one came out otherwise."""
        record(f"{self.stem}.claims", [asdict(claim) for claim in self.items])
        # a record is published: where the reader keeps data sets is nobody's business
        settings = {k: v for k, v in self.settings.values.items() if k != "data_root"}
        record(f"{self.stem}.settings", settings)
        failed = [claim for claim in self.items if claim.failed]
        if failed:
            lines = [
                f"{c.id}: {c.sentence} measured {c.ours}, allowed {c.tolerance}"
                + ("" if c.expected else " (specified not to hold, but does)")
                for c in failed
            ]
            raise ClaimError("; ".join(lines))
        asserted = sum(claim.asserted for claim in self.items)
        print(f"{asserted} of {len(self.items)} claims asserted; all came out as specified")


class Table:
    """Claims as an HTML table in a notebook and as plain text in a terminal."""

    COLUMNS = ("", "Claim", "Paper", "Ours", "Tolerance", "Verdict")

    def __init__(self, claims: Iterable[Claim]) -> None:
        self.claims = list(claims)

    def rows(self) -> list[tuple[str, ...]]:
        return [
            (
                claim.id,
                f"{claim.sentence} ({claim.source})",
                paper_figure(claim.paper, claim.certainty),
                claim.ours,
                claim.tolerance,
                verdict_text(claim.verdict, claim.holds),
            )
            for claim in self.claims
        ]

    def __repr__(self) -> str:
        return "\n".join(" | ".join(row) for row in [self.COLUMNS, *self.rows()])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in self.COLUMNS)
        body = ""
        for claim, row in zip(self.claims, self.rows(), strict=True):
            cells = "".join(f"<td>{html.escape(text)}</td>" for text in row[:-1])
            kind = verdict_class(claim.verdict)
            body += f'<tr>{cells}<td><span class="verdict {kind}">{html.escape(row[-1])}</span></td></tr>'
        return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def natural(id: str) -> list:
    """Sort key by which C2 comes before C10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", id)]


def verdict_class(verdict: str) -> str:
    """CSS class of a verdict."""
    return {HOLDS: "holds", FAILS: "fails", REPORTED: "reported", NEEDS_PAPER: "open"}[verdict]


def verdict_text(verdict: str, holds: bool | None) -> str:
    """A verdict in words; a reported claim says how the check came out."""
    if verdict == REPORTED and holds is not None:
        return f"reported: {HOLDS if holds else FAILS}"
    return verdict


def paper_figure(paper: str, certainty: str) -> str:
    """The paper's figure with its flag, as it is printed everywhere."""
    if not paper:
        return "no figure"
    return f"{paper} (unverified)" if certainty == "unverified" else paper


class Recorded:
    """A named value as a notebook output that ``{glue:text}`` can show in prose."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value

    def _repr_mimebundle_(self, include=None, exclude=None):
        # MyST-NB's glue format: prose shows the plain text, our tools read the JSON
        data = {"text/plain": repr(self.value)}
        if not isinstance(self.value, (str, int, float)):
            data = {"application/json": json.loads(to_json(self.value)), "text/plain": self.name}
        return data, {"scrapbook": {"name": self.name, "mime_prefix": ""}}


def record(name: str, value: object) -> None:
    """Record a value under a name: for prose, for the scoreboard, for sweeps.

    In a notebook it becomes an output of the cell (tag the cell ``remove-cell``). In a run
    started by ``companion record`` it goes into the record's file at once, so that a run that
    is cut off keeps what it had.
    """
    value = json.loads(to_json(value))
    target = os.environ.get("COMPANION_RECORD")
    if target:
        path = Path(target)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept.setdefault("values", {})[name] = value
        write_whole(path, to_json(kept))
        return
    try:
        from IPython.display import display
    except ImportError:  # a machine without Jupyter
        print(f"{name} = {value!r}")
    else:
        display(Recorded(name, value))


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if math.isfinite(value) else str(value)
    return str(value)
