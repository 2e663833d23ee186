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
from typing import Any

from companion.files import to_json
from companion.notebook.bounds import Bound
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
    measured: dict[str, Any] = field(default_factory=dict)
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


def judge(claim: Claim, measured: Mapping[str, Any], profile: str) -> str:
    """Whether measured quantities keep the bounds of a claim in a profile."""
    kept = (
        claim.quantities[name].bound(profile).holds(_number(value))
        for name, values in measured.items()
        for value in (values if isinstance(values, list) else [values])
    )
    return REPRODUCED if all(kept) else NOT_REPRODUCED


def margin(claim: Claim, verdict: Verdict) -> float:
    """How far the tightest quantity of a verdict is from its bound, as a share of a scale.

    The scale is half the width of an interval, or the size of a single end. Negative for a miss.
    NaN where nothing has a scale: truth values, exact numbers, bounds at 0, what is no number.
    """
    shares = [
        bound.margin(_number(value)) / scale
        for name, values in verdict.measured.items()
        if (scale := _scale(bound := claim.quantities[name].bound(verdict.profile)))
        for value in (values if isinstance(values, list) else [values])
    ]
    return min(shares) if shares and all(map(math.isfinite, shares)) else math.nan


def _scale(bound: Bound) -> float:
    if bound.truth is not None:
        return 0.0
    ends = [end for end in (bound.low, bound.high) if math.isfinite(end)]
    return (bound.high - bound.low) / 2 if len(ends) == 2 else abs(ends[0])


def margin_text(claim: Claim, verdict: Verdict) -> str:
    """The margin in words: "36 % inside the bound"; empty where there is none."""
    share = margin(claim, verdict)
    if math.isnan(share):
        return ""
    side = "outside" if verdict.outcome == NOT_REPRODUCED else "inside"
    return f"{100 * abs(share):,.{0 if abs(share) >= 0.01 else 2}f} % {side} the bound"


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

    def asserted(self, id: str) -> bool:
        """Whether a miss of this claim is an error in this run."""
        claim = self._claim(id)
        here = claim.asserted is None or self.settings.profile in claim.asserted
        changed = self.settings.changed
        guarded = changed - PLACES if claim.depends is None else changed & set(claim.depends)
        return here and not guarded

    def check(self, id: str, /, **measured: object) -> None:
        """Give a claim its verdict from the measured quantities, keep it and show it.

        Args:
            id: of the claim.
            measured: a number, a truth value, or a list or array of these, for each quantity
                that the claim states. Where the claim is not due they are not looked at.

        Raises:
            ValueError: for an unknown id, one that was checked before, or quantities that are
                not those of the claim.
        """
        claim = self._unchecked(id)
        if more := measured.keys() - claim.quantities.keys():
            raise ValueError(f"{id} has no quantity {_listed(more)}: {_listed(claim.quantities)}")
        if not self.due(id):
            return self._keep(claim, self._not_run(id))
        if lacking := claim.quantities.keys() - measured.keys():
            raise ValueError(f"{id}: {_listed(lacking)} was not measured")
        values = {
            name: _plain(id, quantity, measured[name])
            for name, quantity in claim.quantities.items()
        }
        profile = self.settings.profile
        outcome = judge(claim, values, profile)
        return self._keep(claim, Verdict(id, outcome, self.asserted(id), profile, values))

    def skip(self, id: str, why: str) -> None:
        """Say that a claim cannot be measured on this machine, and why.

        Raises:
            ValueError: for an unknown id, or one that was checked before.
        """
        self._keep(self._unchecked(id), Verdict(id, NOT_RUN, False, why=why))

    def table(self) -> Table:
        """All claims by number as a table: paper, ours, bound, verdict. Displays itself."""
        return Table(self.stated, self._all())

    def settle(self) -> None:
        """Record the verdicts, then raise if an asserted claim came out otherwise.

        Raises:
            ClaimError: naming each such claim, what was measured and what was allowed.
            ValueError: for a claim that this run should have checked, and has not.
        """
        verdicts = self._all()
        record(f"{self.paper}.claims", [asdict(verdict) for verdict in verdicts])
        # a record is published: where the reader keeps data sets is nobody's business
        settings = {k: v for k, v in self.settings.values.items() if k != "data_root"}
        record(f"{self.paper}.settings", settings)
        left = [id for id in self.stated if id not in self.verdicts and self.due(id)]
        if left:
            raise ValueError(f"not checked: {_listed(left)}")
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

    def _unchecked(self, id: str) -> Claim:
        claim = self._claim(id)
        if id in self.verdicts:
            raise ValueError(f"id = {id!r}: this claim was checked before")
        return claim

    def _keep(self, claim: Claim, verdict: Verdict) -> None:
        self.verdicts[claim.id] = verdict
        badge = Badge(claim, verdict)
        if not display(badge):
            print(badge)

    def _all(self) -> list[Verdict]:
        """Those of all claims; what is not due, or was forgotten, was not run."""
        return [self.verdicts.get(id) or self._not_run(id) for id in self.stated]

    def _not_run(self, id: str) -> Verdict:
        missing = self.stated[id].missing(self.settings.values)
        why = f"needs {_listed(missing)}" if missing else "no cell checked it"
        return Verdict(id, NOT_RUN, False, why=why)

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
        words = verdict_text(self.claim, self.verdict)
        return (
            f'<div class="claim-badge {css(self.verdict.outcome)}">'
            f"<b>{SIGNS[self.verdict.outcome]} {self.claim.id}</b> {html.escape(self.claim.says)} "
            f"<i>{html.escape(words)}</i> <small>{html.escape(ours)}</small></div>"
        )


class Table:
    """Verdicts of one run as an HTML table in a notebook and as plain text in a terminal."""

    COLUMNS = ("", "Claim", "Paper", "Ours (bound)", "Verdict")

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
        "\n".join(measured_lines(claim, verdict)),
        f"{SIGNS[verdict.outcome]} {verdict_text(claim, verdict)}",
    )


def verdict_text(claim: Claim, verdict: Verdict) -> str:
    """The outcome, and how far the run is from the other one."""
    return "; ".join(filter(None, [verdict.words(claim), margin_text(claim, verdict)]))


def measured_lines(claim: Claim, verdict: Verdict) -> list[str]:
    """Each quantity in words, with its bound in brackets; without a value where it has none."""

    def line(quantity: Quantity) -> str:
        wanted = quantity.wanted(verdict.profile)
        if quantity.name not in verdict.measured:
            return f"{quantity.means} ({wanted})"
        value = quantity.shown(as_measured(verdict.measured[quantity.name]))
        # of a truth value the bound adds nothing where it is met
        return f"{quantity.means}: {value}" + f" ({wanted})" * (value != wanted)

    return [verdict.said] if verdict.said else list(map(line, claim.quantities.values()))


def css(outcome: str) -> str:
    """CSS class of an outcome."""
    return {REPRODUCED: "holds", NOT_REPRODUCED: "fails", NOT_RUN: "open"}[outcome]


def _plain(id: str, quantity: Quantity, value: object) -> object:
    """A measured value as JSON will hold it: judged as it is recorded and shown."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)) and value:
        items = [_plain(id, quantity, item) for item in value]
        return [part for item in items for part in (item if isinstance(item, list) else [item])]
    kind, expected = (bool, "a truth value") if quantity.is_truth else (Real, "a number")
    if not isinstance(value, kind) or isinstance(value, bool) is not quantity.is_truth:
        raise ValueError(
            f"{id}: {quantity.name} = {value!r:.100}: expected {expected}, or several in a list"
        )
    if quantity.is_truth:
        return value
    try:
        real = float(value)
    except OverflowError:
        real = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isinf(real):
        return math.copysign(LARGEST, real)
    if real.is_integer() and abs(real) < 2**53:
        return int(real)  # exact: a float keeps six digits
    return json.loads(to_json(real))  # NaN becomes None, which keeps no bound


def _number(value: Any) -> float | bool:
    """As it was measured: NaN and infinity again, of which neither keeps a bound."""
    if value is None:
        return math.nan
    if not isinstance(value, bool) and abs(value) >= LARGEST:
        return math.copysign(math.inf, value)
    return value


def as_measured(value: object) -> Any:
    """A stored value, or the list of several, with NaN and infinity again."""
    if not isinstance(value, list):
        return _number(value)
    parts = (item if isinstance(item, list) else [item] for item in value)  # a sweep's are nested
    return [_number(part) for run in parts for part in run]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names) if isinstance(names, set) else names)
