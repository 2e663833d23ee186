"""What is kept of a run and of a sweep: typed, and as JSON that `record.schema.json` describes.

A run is the same thing wherever it comes from: the stored outputs of a chapter, a record, a row
of a sweep.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from companion.files import seal, to_json, write_whole
from companion.notebook.checking import NOT_RUN, REPRODUCED, Verdict, judge
from companion.notebook.claims import Claim, load_claims, natural, papers

DONE, FAILED, UNFINISHED = "complete", "failed", "unfinished"
CURRENT, EARLIER, STALE = "current", "earlier", "stale"  # code, see `fingerprint.standing`
SCHEMA = Path(__file__).with_suffix(".schema.json")


@dataclass(frozen=True)
class Run:
    """One run of a chapter.

    paper, name: the chapter's stem, and what the run is called. status: DONE, FAILED or
    UNFINISHED. settings: every parameter's value. claims: its verdicts by id. values: what else
    it recorded. given: by the sweep that it is a row of. figures: file, name, caption and
    alternative text of each. code: CURRENT, EARLIER or STALE, how the code that made it stands to
    the chapter's as it is now; not kept.
    """

    paper: str
    name: str
    status: str = DONE
    profile: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    claims: dict[str, Verdict] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    command: str = ""
    fingerprint: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    peak_memory: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    figures: list[dict[str, str]] = field(default_factory=list)
    error: str = ""
    code: str = CURRENT

    @classmethod
    def of_values(cls, paper: str, name: str, values: Mapping[str, Any], **rest) -> Run:
        """A run from all that its cells recorded by name."""
        left = dict(values)
        found = left.pop(f"{paper}.claims", [])
        settings = left.pop(f"{paper}.settings", {})
        return cls(
            paper,
            name,
            profile=str(settings.get("profile", "")),
            settings=settings,
            claims=_verdicts(paper, found, settings),
            data=left.pop(f"{paper}.data", {}),
            peak_memory=left.pop("peak_memory", {}),
            values=left,
            **rest,
        )

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Run:
        """A run from what `as_json` gave, its claims judged by the bounds as they are now."""
        fields = {key: value for key, value in stored.items() if key != "seal"}
        fields["claims"] = _verdicts(
            fields["paper"], fields.get("claims", []), fields.get("settings", {})
        )
        return cls(**fields)

    def numbers(self) -> dict[str, float]:
        """What is one number: recorded values, and the claims' quantities as `C4.rise_90`."""
        found = self.values | {
            f"{id}.{name}": value
            for id, verdict in self.claims.items()
            for name, value in verdict.measured.items()
        }
        return {
            name: value
            for name, value in found.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }

    def as_json(self) -> dict[str, Any]:
        """All but what is empty or depends on the code as it is now, with its seal."""
        fields = asdict(self) | {"claims": [asdict(claim) for claim in self.claims.values()]}
        fields["claims"] = [
            _filled(claim, {"id", "outcome", "asserted"}) for claim in fields["claims"]
        ]
        del fields["code"]
        return _sealed(_filled(fields, {"paper", "name", "status"}))


@dataclass(frozen=True)
class Held:
    """How a claim came out over the runs of a sweep that measured it.

    measured: each quantity's value or values, run by run. profiles: of these runs.
    """

    held: int
    of: int
    measured: dict[str, list] = field(default_factory=dict)
    profiles: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Sweep:
    """A sweep that is kept beside its table, a CSV file of the same name."""

    paper: str
    name: str
    command: str
    fingerprint: str
    runs: int
    seconds: float
    claims: dict[str, Held]
    provenance: dict[str, Any]
    table: str  # sha256
    code: str = CURRENT

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Sweep:
        """A sweep from what `as_json` gave, its claims judged by the bounds as they are now."""
        fields = {key: value for key, value in stored.items() if key != "seal"}
        stated = load_claims(fields["paper"]) if fields["paper"] in papers() else {}
        fields["claims"] = {
            id: _judged_again(stated.get(id), Held(**held))
            for id, held in fields["claims"].items()
        }
        return cls(**fields)

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        del fields["code"]
        return _sealed(fields)


Kept = TypeVar("Kept", Run, Sweep)


def held(runs: Iterable[Run]) -> dict[str, Held]:
    """How each claim came out over the runs, in the order of their ids."""
    found: dict[str, list[Verdict]] = {}
    for run in runs:
        for id, verdict in run.claims.items():
            if verdict.outcome != NOT_RUN:
                found.setdefault(id, []).append(verdict)
    return {
        id: Held(
            sum(verdict.outcome == REPRODUCED for verdict in found[id]),
            len(found[id]),
            {
                name: [verdict.measured.get(name) for verdict in found[id]]
                for name in found[id][0].measured
            },
            [verdict.profile for verdict in found[id]],
        )
        for id in sorted(found, key=natural)
    }


def save(kept: Run | Sweep, path: Path) -> None:
    """Write a run or a sweep, whole or not at all.

    Raises:
        ValueError: for what the schema does not allow.
    """
    stored = kept.as_json()
    validate(stored, type(kept))
    write_whole(path, to_json(stored))


_right: set[tuple[type, bytes]] = set()  # kind and sha256 of texts that `load` has checked


def load(path: Path, kind: type[Kept] = Run, *, checked: bool = True) -> Kept:  # type: ignore[assignment]
    """Read what `save` wrote.

    Args:
        checked: also against the schema, which takes longer than reading.

    Raises:
        ValueError: naming the file, for one that was edited or is not as the schema says.
        OSError: for one that cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        stored, known = json.loads(text), (kind, hashlib.sha256(text.encode()).digest())
        if known not in _right:  # the book reads every record some ten times
            if not isinstance(stored, dict) or stored.get("seal") != seal(stored):
                raise ValueError("not as it was written: make it again")
            if checked:
                validate(stored, kind)
                _right.add(known)
        return kind.of_json(stored)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {error}") from None


def validate(stored: Mapping[str, Any], kind: type) -> None:
    """Raise ValueError for what `record.schema.json` does not allow; nothing where jsonschema is
    not installed, as on a GPU machine: the book checks again."""
    try:
        from jsonschema import ValidationError
    except ImportError:
        return
    try:
        _validator(kind.__name__.lower()).validate(stored)
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"{place}: {error.message[:300]}") from None


@functools.cache
def _validator(kind: str):
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return Draft202012Validator(schema | {"$ref": f"#/$defs/{kind}"})


def _verdicts(
    paper: str, found: Iterable[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, Verdict]:
    """Verdicts by id, judged by the claims as they are now: text and outcome cannot disagree."""
    stated = load_claims(paper) if paper in papers() else {}
    verdicts = (Verdict(**fields) for fields in found)
    judged = {v.id: _judged(stated.get(v.id), v, settings) for v in verdicts}
    return dict(sorted(judged.items(), key=lambda item: natural(item[0])))


def _judged(claim: Claim | None, verdict: Verdict, settings: Mapping[str, Any]) -> Verdict:
    if claim is None:
        return verdict  # of an earlier state of the file
    known = {name: wanted for name, wanted in (claim.needs or {}).items() if name in settings}
    missing = replace(claim, needs=known).missing(settings)
    if missing and verdict.outcome != NOT_RUN:
        return Verdict(verdict.id, NOT_RUN, False, why=f"needs {', '.join(missing)}")
    if verdict.measured.keys() != claim.quantities.keys():
        return verdict  # likewise
    return replace(verdict, outcome=judge(claim, verdict.measured, verdict.profile))


def _judged_again(claim: Claim | None, kept: Held) -> Held:
    if claim is None or not kept.measured or kept.measured.keys() != claim.quantities.keys():
        return kept  # of an earlier state of the file
    verdicts = (
        judge(claim, dict(zip(kept.measured, values, strict=True)), profile)
        for profile, *values in zip(kept.profiles, *kept.measured.values(), strict=True)
    )
    return replace(kept, held=sum(verdict == REPRODUCED for verdict in verdicts))


def _filled(fields: dict[str, Any], always: set[str]) -> dict[str, Any]:
    return {
        key: value
        for key, value in fields.items()
        if key in always or value not in ("", None, {}, [])
    }


def _sealed(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"seal": seal(fields)}
