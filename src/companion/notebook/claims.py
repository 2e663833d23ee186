"""What a paper claims, stated before it is measured: ``papers/<paper>/claims.yaml``, such as ::

    C4:
      says: At 90 and 95 % sparsity the error is near that of the dense network.
      kind: paper
      where: Table 1
      reported:
        - {what: LeNet-300-100 at 95 %, value: 1.6, unit: "% error", at: Table 1, certainty: read}
      quantities:
        rise_90: {is: error at 90 % minus dense, unit: points, within: "<= 2.0"}
      asserted: [quick]
      needs: {sparsities: [0.9]}
      settled: {on: 2026-11-22, before_looking: true}

`load_claims` reads such a file and refuses what cannot be checked.
"""

from __future__ import annotations

import datetime
import functools
import keyword
import math
import re
from collections.abc import Mapping, Set
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeGuard

from companion.notebook.bounds import Bound, number

FOLDER = Path(__file__).parents[1] / "papers"
KINDS = ("paper", "control", "derivation")
CERTAINTY = {  # of a reported value -> how it is told
    "read": "",
    "figure": "read off the figure",
    "quoted": "quoted by",
    "author-code": "from the authors' code, not confirmed as printed",
    "memory": "unverified",
}
ELSE = "else"  # the bound in every other profile
EVERYWHERE = "all"


@dataclass(frozen=True)
class Reported:
    """A value that the paper reports.

    what: of which the value is. at: its place in the paper. certainty: a key of CERTAINTY.
    by: who quotes it. plus_minus: how exactly a figure could be read. quantity: the one of ours
    to compare it with.
    """

    what: str
    value: float | str
    at: str
    certainty: str
    unit: str = ""
    by: str = ""
    plus_minus: float | None = None
    quantity: str = ""

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:,.10g}"
        told = f"{self.what}: {value.replace('-', '−')}" + _with_unit(self.unit)
        source = " ".join(filter(None, [CERTAINTY[self.certainty], self.by]))
        if self.plus_minus is not None:
            source += f", ± {number(self.plus_minus)}"
        return f"{told} ({'; '.join(filter(None, [self.at, source]))})"


@dataclass(frozen=True)
class Quantity:
    """What a run measures for a claim, and what it must keep: one bound, or one a profile.

    A list of values keeps a bound if each of them does.
    """

    name: str
    means: str
    bounds: Mapping[str, Bound]
    unit: str = ""

    def bound(self, profile: str) -> Bound:
        return self.bounds.get(profile) or self.bounds[ELSE]

    @property
    def is_truth(self) -> bool:
        return self.bounds[ELSE].truth is not None

    def shown(self, value: Any) -> str:
        """A measured value, or the range of several, with its unit."""
        values = value if isinstance(value, list) else [value]
        if self.is_truth:
            return number(values[0]) if len(values) == 1 else f"{sum(values)} of {len(values)}"
        if not all(item == item for item in values):
            return number(math.nan)
        low, high = min(values), max(values)
        told = number(low) if number(low) == number(high) else f"{number(low)} to {number(high)}"
        return told + _with_unit(self.unit, told)

    def wanted(self, profile: str) -> str:
        """The bound in words, with the unit."""
        bound = self.bound(profile)
        return str(bound) + (_with_unit(self.unit, str(bound)) if bound.truth is None else "")


@dataclass(frozen=True)
class Claim:
    """One sentence, and what decides whether a run reproduces it.

    says: the sentence. kind: whether the paper says it, it is a control of ours, or a derivation.
    where: its place. reported: what the paper measured. quantities: what we measure.
    asserted: profiles in which a miss is an error; None for all, empty for none.
    needs: parameter -> what it must hold for a run to measure the claim at all.
    depends: parameters whose change leaves the claim measured but no longer asserted; None: all
      but the device and the data root.
    expected: False for a claim that is known not to reproduce.
    settled: when the bounds were fixed, and whether that was before a result was seen.
    """

    id: str
    says: str
    kind: str
    where: str
    quantities: Mapping[str, Quantity]
    reported: tuple[Reported, ...] = ()
    asserted: tuple[str, ...] | None = None
    needs: Mapping[str, Any] | None = None
    depends: tuple[str, ...] | None = None
    expected: bool = True
    settled: tuple[Settled, ...] = ()

    def missing(self, settings: Mapping[str, Any]) -> list[str]:
        """Which needs these parameter values do not meet."""
        return [
            name for name, wanted in (self.needs or {}).items() if not _met(settings, name, wanted)
        ]


@dataclass(frozen=True)
class Settled:
    """When a bound was fixed or changed, whether before a result was seen, and why."""

    on: datetime.date
    before_looking: bool
    why: str = ""


def papers() -> list[str]:
    """The papers that have a file of claims."""
    return sorted(path.parent.name for path in FOLDER.glob("*/claims.yaml"))


@functools.cache
def load_claims(paper: str) -> dict[str, Claim]:
    """The claims of a paper by id, in the order C1, C2, ..., C10.

    Raises:
        ValueError: naming the file, the claim and the key, for whatever cannot be checked.
    """
    path = FOLDER / paper / "claims.yaml"
    if not re.fullmatch(r"\w+", paper) or not path.is_file():
        raise ValueError(f"paper = {paper!r}: expected one of {', '.join(papers())}")
    return read_claims(path)


def read_claims(path: Path) -> dict[str, Claim]:
    """The claims in a file; as `load_claims`."""
    try:
        return parse_claims(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.parent.name}/{path.name}: {error}") from None


def parse_claims(text: str) -> dict[str, Claim]:
    """The claims that a YAML text states; as `load_claims`."""
    import yaml

    try:
        stated = _mapping("claims", yaml.load(text, Loader=_loader()))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    claims = {str(id): _claim(str(id), fields) for id, fields in stated.items()}
    return dict(sorted(claims.items(), key=lambda item: natural(item[0])))


PLAIN = {  # of YAML 1.2: how a plain word of each kind is written, and how it begins
    "bool": ("^(true|false)$", ["t", "f"]),
    "int": (r"^[-+]?(0|[1-9]\d*)$", list("-+0123456789")),
    "float": (r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$", list("-+.0123456789")),
}


@functools.cache
def _loader() -> type:
    """PyYAML's safe loader with the words and numbers of YAML 1.2, in which no key comes twice.

    To YAML 1.1 `on` and `no` are truth values, 1:30 and 017 whole numbers, 1e-3 a word.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: ClassVar = {
            first: [pair for pair in pairs if pair[0].rpartition(":")[2] not in PLAIN]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            if twice := next((key for key in keys if keys.count(key) > 1), None):
                raise ValueError(f"{twice} is given twice")
            return super().construct_mapping(node, deep)

    for kind, (form, first) in PLAIN.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(form), first)
    return Loader


def what_decides(claims: Mapping[str, Claim]) -> dict[str, Any]:
    """Of claims what a verdict depends on: no sentence, no value of the paper, no date."""
    return {
        id: {
            "bounds": {
                name: {profile: astuple(bound) for profile, bound in quantity.bounds.items()}
                for name, quantity in claim.quantities.items()
            },
            "asserted": claim.asserted,
            "needs": claim.needs,
            "depends": claim.depends,
            "expected": claim.expected,
        }
        for id, claim in claims.items()
    }


def natural(id: str) -> list:
    """Sort key by which C2 comes before C10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", id)]


def _claim(id: str, fields: object) -> Claim:
    if not re.fullmatch(r"C[1-9]\d*[a-z]?", id):
        raise ValueError(f"{id}: expected an id such as C4 or C9b")
    given = _mapping(
        id,
        fields,
        must={"says", "kind", "where", "quantities", "settled"},
        may={"reported", "asserted", "needs", "depends", "expected"},
    )
    if given["kind"] not in KINDS:
        raise ValueError(f"{id}: kind = {given['kind']!r}: expected one of {', '.join(KINDS)}")
    if not _mapping(f"{id}: quantities", given["quantities"]):
        raise ValueError(f"{id}: quantities: expected at least one, or the claim cannot fail")
    quantities = {
        name: _quantity(f"{id}: {name}", name, about)
        for name, about in given["quantities"].items()
    }
    reported = tuple(
        _reported(f"{id}: reported", about, quantities)
        for about in _several(id, "reported", given.get("reported", ()))
    )
    settled = given["settled"]
    asserted = given.get("asserted", EVERYWHERE)
    return Claim(
        id=id,
        says=_text(id, "says", given["says"]),
        kind=given["kind"],
        where=_text(id, "where", given["where"]),
        quantities=quantities,
        reported=reported,
        asserted=None if asserted == EVERYWHERE else _names(id, "asserted", asserted),
        needs=_needs(id, given.get("needs", {})),
        depends=_names(id, "depends", given["depends"]) if "depends" in given else None,
        expected=_flag(id, "expected", given.get("expected", True)),
        settled=tuple(
            _settled(f"{id}: settled", about)
            for about in (
                [settled] if isinstance(settled, dict) else _several(id, "settled", settled)
            )
        ),
    )


def _quantity(place: str, name: object, about: object) -> Quantity:
    if not str(name).isidentifier() or keyword.iskeyword(str(name)) or name == "id":
        raise ValueError(f"{place}: expected a name that `check` can take")
    given = _mapping(place, about, must={"is", "within"}, may={"unit"})
    within = given["within"]
    stated = within if isinstance(within, dict) else {ELSE: within}
    if ELSE not in stated:
        raise ValueError(f"{place}: within: expected a bound for {ELSE!r}")
    try:
        bounds = {str(profile): Bound.parse(text) for profile, text in stated.items()}
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    if len({bound.truth is None for bound in bounds.values()}) > 1:
        raise ValueError(f"{place}: within: expected bounds of one kind")
    unit = _text(place, "unit", given["unit"]) if "unit" in given else ""
    return Quantity(str(name), _text(place, "is", given["is"]), bounds, unit)


def _reported(place: str, about: object, quantities: Mapping[str, Quantity]) -> Reported:
    given = _mapping(
        place,
        about,
        must={"what", "value", "at", "certainty"},
        may={"unit", "by", "plus_minus", "quantity"},
    )
    texts = {
        key: _text(place, key, value)
        for key, value in given.items()
        if key not in ("value", "plus_minus")
    }
    value, plus_minus = given["value"], given.get("plus_minus")
    if not _is_number(value):
        value = _text(place, "value", value)
    if "plus_minus" in given and not (_is_number(plus_minus) and plus_minus > 0):
        raise ValueError(f"{place}: plus_minus = {plus_minus!r}: expected a number above 0")
    if texts["certainty"] not in CERTAINTY:
        raise ValueError(
            f"{place}: certainty = {texts['certainty']!r}: expected one of {', '.join(CERTAINTY)}"
        )
    if (texts["certainty"] == "quoted") != ("by" in texts):
        raise ValueError(f"{place}: 'by' names who quotes it, for what is quoted only")
    if texts.get("quantity") not in (None, *quantities):
        raise ValueError(f"{place}: {texts['quantity']!r} is no quantity of this claim")
    return Reported(**texts, value=value, plus_minus=plus_minus)


def _settled(place: str, about: object) -> Settled:
    given = _mapping(place, about, must={"on", "before_looking"}, may={"why"})
    if not isinstance(given["on"], datetime.date):
        raise ValueError(f"{place}: on = {given['on']!r}: expected a date")
    _flag(place, "before_looking", given["before_looking"])
    if not given["before_looking"] and "why" not in given:
        raise ValueError(f"{place}: after looking: expected why")
    why = _text(place, "why", given["why"]) if "why" in given else ""
    return Settled(given["on"], given["before_looking"], why)


def _needs(id: str, value: object) -> dict[str, Any]:
    needs = _mapping(f"{id}: needs", value)
    for name, wanted in needs.items():
        if _is_bound(wanted):
            try:
                Bound.parse(wanted)
            except ValueError as error:
                raise ValueError(f"{id}: needs: {name}: {error}") from None
    return needs


def _several(place: str, key: str, value: object) -> list | tuple:
    if value != () and (not isinstance(value, list) or not value):
        raise ValueError(f"{place}: {key} = {value!r}: expected a list of at least one")
    return value


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_bound(wanted: object) -> bool:
    """Whether a need is a bound, not a value."""
    return isinstance(wanted, str) and re.match("[<>=[(]", wanted) is not None


def _mapping(
    place: str, value: object, must: Set[str] = frozenset(), may: Set[str] | None = None
) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected keys and values, got {value!r}")
    if missing := must - value.keys():
        raise ValueError(f"{place}: lacks {', '.join(sorted(missing))}")
    if may is not None and (more := value.keys() - must - may):
        raise ValueError(f"{place}: unknown {', '.join(sorted(map(str, more)))}")
    return value


def _text(place: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {key} = {value!r}: expected a text")
    return " ".join(value.split())


def _names(place: str, key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{place}: {key} = {value!r}: expected a list of names")
    return tuple(value)


def _flag(place: str, key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{place}: {key} = {value!r}: expected true or false")
    return value


def _met(settings: Mapping[str, Any], name: str, wanted: object) -> bool:
    """Whether a parameter is what a claim needs: holds all of a list, is one of several values,
    is a value, or keeps a bound, of a list its length."""
    if name not in settings:
        raise ValueError(f"needs {name!r}, which is no parameter")
    value = settings[name]
    if _is_bound(wanted):
        return Bound.parse(wanted).holds(len(value) if isinstance(value, list) else value)
    if isinstance(value, list):
        return set(wanted if isinstance(wanted, list) else [wanted]) <= set(value)
    return value in wanted if isinstance(wanted, list) else value == wanted


def _with_unit(unit: str, value: str = "") -> str:
    """A unit after a value: 1 point, 2 points."""
    first, *rest = unit.split() or [""]
    if value.split(" ")[-1:] == ["1"] and re.fullmatch("[a-z]{2,}s", first):
        first = first.removesuffix("s")
    return f" {' '.join([first, *rest])}" if unit else ""
