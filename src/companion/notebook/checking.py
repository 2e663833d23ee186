"""Check the claims of a chapter against what its run measured.

A chapter makes one `Claims`, calls `check` once a claim, and ends with `table` and `settle`:

    claims = Claims("snip", settings)
    claims.check("C4", rise_90=errors[0.9] - dense, rise_95=errors[0.95] - dense)

What is claimed, and what must come out, stands in the paper's `claims.yaml`.
"""

from __future__ import annotations

import difflib
import html
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from numbers import Real

from companion.files import to_json
from companion.notebook.claims import Claim, Quantity, load_claims
from companion.notebook.parameters import PLACES, Settings
from companion.notebook.recording import display, record

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
NOT_RUN = "not run here"
OUTCOMES = (REPRODUCED, NOT_REPRODUCED, NOT_RUN)
SIGNS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", NOT_RUN: "–"}
LARGEST = 1e300  # stands for infinity, which JSON has no number for


class ClaimError(AssertionError):
    """Raised at the end of a chapter in which an asserted claim came out otherwise."""


@dataclass(frozen=True)
class Verdict:
    """What one run found of a claim.

    id: of the claim. outcome: one of OUTCOMES. asserted: whether a miss was an error, because
    the run had the settings that the bounds were fixed for. profile: of the run; the bounds may
    differ. measured: each quantity's value or values. why: it was not run. said: ours in words, of
    runs that were made before quantities were kept.
    """

    id: str
    outcome: str
    asserted: bool
    profile: str = ""
    measured: dict[str, object] = field(default_factory=dict)
    why: str = ""
    said: str = ""

    def failed(self, claim: Claim) -> bool:
        """Whether it was asserted and is not what was expected."""
        return self.asserted and (self.outcome == REPRODUCED) is not claim.expected

    def words(self, claim: Claim) -> str:
        """The outcome, with what makes it surprising or not."""
        if self.outcome == NOT_RUN:
            return f"{NOT_RUN}: {self.why}" if self.why else NOT_RUN
        if self.asserted and (self.outcome == REPRODUCED) is not claim.expected:
            return f"{self.outcome}, against expectation"
        known = not claim.expected and self.outcome == NOT_REPRODUCED
        told = f"{self.outcome}, as known" if known else self.outcome
        return told if self.asserted else f"{told} (not asserted in this run)"


def judge(claim: Claim, measured: Mapping[str, object], profile: str) -> str:
    """Whether measured quantities keep the bounds of a claim."""
    kept = (
        claim.quantities[name].bound(profile).holds(_number(value))
        for name, values in measured.items()
        for value in (values if isinstance(values, list) else [values])
    )
    return REPRODUCED if all(kept) else NOT_REPRODUCED


def margin(claim: Claim, verdict: Verdict) -> float:
    """How far the tightest quantity of a verdict is from its bound, as a share of the bound.

    Negative for a miss; NaN where nothing was measured.
    """
    shares = [math.nan] if not verdict.measured else []
    for name, values in verdict.measured.items():
        bound = claim.quantities[name].bound(verdict.profile)
        ends = [abs(end) for end in (bound.low, bound.high) if math.isfinite(end) and end]
        for value in values if isinstance(values, list) else [values]:
            shares.append(bound.margin(_number(value)) / (min(ends) if ends else 1.0))
    return min(shares, key=lambda share: (share == share, share))


class Claims:
    """The claims of one chapter in one run.

    Args:
        paper: the chapter's stem.
        settings: what `check_parameters` returned; decides which claims are due and asserted.
        stated: what is claimed; None for the paper's own file.
    """

    def __init__(
        self, paper: str, settings: Settings, stated: Mapping[str, Claim] | None = None
    ) -> None:
        self.paper, self.settings = paper, settings
        self.stated = load_claims(paper) if stated is None else stated
        self.verdicts: dict[str, Verdict] = {}

    def due(self, id: str) -> bool:
        """Whether this run has what a claim needs: guards what is costly to measure."""
        return not self._claim(id).missing(self.settings.values)

    def check(self, id: str, **measured: object) -> None:
        """Give a claim its verdict from the measured quantities, keep it and show it.

        Args:
            id: of the claim.
            measured: a number, a truth value, or a list of these, for each quantity that the
                claim states. Where the claim is not due they are not looked at.

        Raises:
            ValueError: for an unknown id, one that was checked before, or quantities that are
                not those of the claim.
        """
        claim = self._claim(id)
        if id in self.verdicts:
            raise ValueError(f"id = {id!r}: this claim was checked before")
        if more := measured.keys() - claim.quantities.keys():
            raise ValueError(f"{id} has no quantity {_listed(more)}: {_listed(claim.quantities)}")
        if missing := claim.missing(self.settings.values):
            return self._keep(claim, Verdict(id, NOT_RUN, False, why=f"needs {_listed(missing)}"))
        if lacking := claim.quantities.keys() - measured.keys():
            raise ValueError(f"{id}: {_listed(lacking)} was not measured")
        values = {
            name: _plain(id, quantity, measured[name])
            for name, quantity in claim.quantities.items()
        }
        profile = self.settings.profile
        outcome = judge(claim, values, profile)
        return self._keep(claim, Verdict(id, outcome, self._asserted(claim), profile, values))

    def skip(self, id: str, why: str) -> None:
        """Say that a claim cannot be measured on this machine, and why."""
        self._keep(self._claim(id), Verdict(id, NOT_RUN, False, why=why))

    def table(self) -> Table:
        """All claims by number as a table: paper, ours, bound, verdict. Displays itself."""
        return Table(self.stated, self._all())

    def settle(self) -> None:
        """Record the verdicts, then raise if an asserted claim came out otherwise.

        Raises:
            ClaimError: naming each such claim, what was measured and what was allowed.
            ValueError: for a claim that this run should have checked, and has not.
        """
        left = [id for id in self.stated if id not in self.verdicts and self.due(id)]
        if left:
            raise ValueError(f"not checked: {_listed(left)}")
        verdicts = self._all()
        record(f"{self.paper}.claims", [asdict(verdict) for verdict in verdicts])
        # a record is published: where the reader keeps data sets is nobody's business
        settings = {k: v for k, v in self.settings.values.items() if k != "data_root"}
        record(f"{self.paper}.settings", settings)
        failed = [verdict for verdict in verdicts if verdict.failed(self.stated[verdict.id])]
        if failed:
            raise ClaimError("; ".join(self._told(verdict) for verdict in failed))
        asserted = sum(verdict.asserted for verdict in verdicts)
        print(f"{asserted} of {len(verdicts)} claims asserted; all came out as expected")

    def _claim(self, id: str) -> Claim:
        if id not in self.stated:
            near = difflib.get_close_matches(id, self.stated, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"id = {id!r}: {self.paper} states no such claim{hint}")
        return self.stated[id]

    def _asserted(self, claim: Claim) -> bool:
        here = claim.asserted is None or self.settings.profile in claim.asserted
        changed = self.settings.changed
        guarded = changed - PLACES if claim.depends is None else changed & set(claim.depends)
        return here and not guarded

    def _keep(self, claim: Claim, verdict: Verdict) -> None:
        self.verdicts[claim.id] = verdict
        badge = Badge(claim, verdict)
        if not display(badge):
            print(badge)

    def _all(self) -> list[Verdict]:
        """Those of all claims; what is not due was not run."""
        return [
            self.verdicts.get(id)
            or Verdict(
                id,
                NOT_RUN,
                False,
                why=f"needs {_listed(claim.missing(self.settings.values))}",
            )
            for id, claim in self.stated.items()
        ]

    def _told(self, verdict: Verdict) -> str:
        claim = self.stated[verdict.id]
        lines = ", ".join(
            f"{name} = {claim.quantities[name].shown(value)}, "
            f"allowed {claim.quantities[name].wanted(verdict.profile)}"
            for name, value in verdict.measured.items()
        )
        return f"{claim.id}: {claim.says} {lines}" + (
            "" if claim.expected else " (known not to reproduce, but does)"
        )


class Badge:
    """One verdict as an output. Its text is the same on every machine: numbers are in the HTML
    only, which the comparison of stored outputs leaves out."""

    def __init__(self, claim: Claim, verdict: Verdict) -> None:
        self.claim, self.verdict = claim, verdict

    def __repr__(self) -> str:
        # a claim that is not asserted may come out either way on another machine
        told = self.verdict.outcome
        if told != NOT_RUN and not self.verdict.asserted:
            told = "measured, not asserted in this run"
        elif told == NOT_REPRODUCED and not self.claim.expected:
            told += ", as known"
        return f"{self.claim.id} {told}: {self.claim.says}"

    def _repr_html_(self) -> str:
        ours = "; ".join(measured_lines(self.claim, self.verdict))
        words = self.verdict.words(self.claim)
        return (
            f'<div class="claim-badge {css(self.verdict.outcome)}">'
            f"<b>{SIGNS[self.verdict.outcome]} {self.claim.id}</b> {html.escape(self.claim.says)} "
            f"<i>{html.escape(words)}</i> <small>{html.escape(ours)}</small></div>"
        )


class Table:
    """Verdicts of one run as an HTML table in a notebook and as plain text in a terminal."""

    COLUMNS = ("", "Claim", "Paper", "Ours", "Bound", "Verdict")

    def __init__(self, stated: Mapping[str, Claim], verdicts: Iterable[Verdict]) -> None:
        self.stated = stated
        self.verdicts = [verdict for verdict in verdicts if verdict.id in stated]

    def rows(self) -> list[tuple[str, ...]]:
        """A line a claim; what has several entries has them on lines of their own."""
        return [table_row(self.stated[verdict.id], verdict) for verdict in self.verdicts]

    def __repr__(self) -> str:
        lines = [self.COLUMNS, *self.rows()]
        return "\n".join(" | ".join(cell.replace("\n", "; ") for cell in line) for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name or 'No.'}</th>" for name in self.COLUMNS)
        body = ""
        for verdict, row in zip(self.verdicts, self.rows(), strict=True):
            cells = [html.escape(text).replace("\n", "<br>") for text in row]
            cells[-1] = f'<span class="verdict {css(verdict.outcome)}">{cells[-1]}</span>'
            body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        return f'<table class="claims"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def table_row(claim: Claim, verdict: Verdict) -> tuple[str, ...]:
    """Number, sentence, the paper's values, ours, the bounds and the verdict."""
    kind = {"paper": "", "control": "our control", "derivation": "derived"}[claim.kind]
    where = "; ".join(filter(None, [claim.where, kind]))
    return (
        claim.id,
        f"{claim.says} ({where})",
        "\n".join(map(str, claim.reported)) or "no value",
        "\n".join(measured_lines(claim, verdict)) or "–",
        "\n".join(bound_lines(claim, verdict.profile)),
        f"{SIGNS[verdict.outcome]} {verdict.words(claim)}",
    )


def measured_lines(claim: Claim, verdict: Verdict) -> list[str]:
    """Each measured quantity in words."""
    return [
        f"{quantity.means}: {quantity.shown(_shown(verdict.measured[name]))}"
        for name, quantity in claim.quantities.items()
        if name in verdict.measured
    ] or [verdict.said] * bool(verdict.said)


def bound_lines(claim: Claim, profile: str) -> list[str]:
    """What each quantity must keep, in words."""
    several = len(claim.quantities) > 1
    return [
        (f"{quantity.means}: " if several or quantity.is_truth else "") + quantity.wanted(profile)
        for quantity in claim.quantities.values()
    ]


def css(outcome: str) -> str:
    """CSS class of an outcome."""
    return {REPRODUCED: "holds", NOT_REPRODUCED: "fails", NOT_RUN: "open"}[outcome]


def _plain(id: str, quantity: Quantity, value: object) -> object:
    """A measured value as JSON will hold it: judged as it is recorded and shown."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value:
        return [_plain(id, quantity, item) for item in value]
    expected = "a truth value" if quantity.is_truth else "a number"
    if not isinstance(value, bool if quantity.is_truth else Real) or (
        isinstance(value, bool) and not quantity.is_truth
    ):
        raise ValueError(
            f"{id}: {quantity.name} = {value!r}: expected {expected}, or several in a list"
        )
    if isinstance(value, float) and math.isinf(value):
        return math.copysign(LARGEST, value)
    return json.loads(to_json(value))  # NaN becomes None, which keeps no bound


def _number(value: object) -> float | bool:
    return math.nan if value is None else value


def _shown(value: object) -> object:
    """NaN and infinity again, for words."""
    if isinstance(value, list):
        return [_shown(item) for item in value]
    if value is None:
        return math.nan
    if not isinstance(value, bool) and abs(value) >= LARGEST:
        return math.copysign(math.inf, value)
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names) if isinstance(names, set) else names)
