"""The page of performance: how long the library takes beside another way to do the same."""

from __future__ import annotations

import re
from dataclasses import dataclass

from docutils import nodes

from companion.book import tables
from companion.book.charts import Axis, Mark
from companion.book.evidence import short_name
from companion.book.fold import folded
from companion.book.html import raw, render
from companion.book.runs import benchmarks, growth_on_gpu, on_gpu, papers, shown_seconds
from companion.notebook.bounds import number, raised
from companion.runs.records import load_records

HEAD = ["What", "Against", "Ratio", "Aim", "Note"]
# an aim of a record that has no number of it
IN_WORDS = re.compile(r"(?:at most|below|the share of operations,) ([\d.]+)")


@dataclass(frozen=True)
class Ratios:
    """A chapter's ratios on the axis that all chapters share: a dot each, left of 1 is faster."""

    stem: str
    name: str
    axis: Axis
    marks: tuple[Mark, ...]

    @property
    def words(self) -> str:
        return "; ".join(mark.text for mark in self.marks[1:])


def ratios() -> list[Ratios]:
    """The ratios of every chapter that has some, on a CPU and on a GPU."""
    where = {"default": ("CPU", benchmarks()), "recorded": ("GPU", on_gpu()[1])}
    values = [
        row["ratio"]
        for _, found in where.values()
        for about in papers()
        for row in found.get(about["stem"], {}).get("rows", [])
    ]
    if not values:
        return []
    axis = Axis.over([*values, 1.0])
    faster = Mark("band", 0.0, axis.at(1.0), "below 1: ours takes less")
    found = []
    for about in papers():
        dots = []
        for kind, (machine, results) in where.items():
            for row in results.get(about["stem"], {}).get("rows", []):
                text = (
                    f"{number(row['ratio'])}: {row['what']} against {row['against']} ({machine})"
                )
                state = "holds" if row["ratio"] <= 1 else "fails"
                place = axis.at(row["ratio"])
                dots.append(Mark(f"{kind} {state}", place, 0.0, text, (place,)))
        if dots:
            found.append(Ratios(about["stem"], short_name(about), axis, (faster, *dots)))
    return found


@dataclass(frozen=True)
class Comparison:
    """A row on its chapter's axis: the ratio, the spread of its turns, the aim and the limit."""

    what: str
    against: str
    axis: Axis
    marks: tuple[Mark, ...]
    shown: str  # the ratio and how it stands to its aim, in words
    state: str  # CSS class: holds where ours takes less
    missed: bool
    reason: str  # why it misses its aim, where known

    @property
    def words(self) -> str:
        return "; ".join(mark.text for mark in self.marks)


def comparisons(rows: list[dict]) -> list[Comparison]:
    """The rows of a chapter on one logarithmic axis. Rows of older records have fewer marks."""
    shown = ("ratio", "low", "high", "aim_at", "limit")
    axis = Axis.over([1.0, *(row[key] for row in rows for key in shown if key in row)], log=True)
    return [_comparison(row, axis) for row in rows]


def _comparison(row: dict, axis: Axis) -> Comparison:
    ratio, aim, least = row["ratio"], row.get("aim_at"), row.get("at_least", False)
    rounded, missed = float(f"{ratio:.3g}"), _missed(row)
    state = "holds" if (rounded >= 1 if least else rounded <= 1) else "fails"
    one = axis.at(1.0)
    marks = [Mark("one", one, 0.0, "1: both take the same")]
    if "low" in row:
        left, right = axis.at(row["low"]), axis.at(row["high"])
        text = f"half of the turns lie between {number(row['low'])} and {number(row['high'])}"
        marks.append(Mark(f"spread {state}", left, round(right - left, 2), text))
    if "limit" in row:
        text = f"limit: {number(row['limit'])}"
        marks.append(Mark("limit", axis.at(row["limit"]), 0.0, text))
    if aim is not None:
        marks.append(
            Mark("aim missed" if missed else "aim", axis.at(aim), 0.0, f"aim: {row['aim']}")
        )
    marks.append(Mark(f"ratio {state}", axis.at(ratio), 0.0, f"ratio: {number(ratio)}"))
    said = "" if aim is None else f"{'misses its ' * missed}aim: {row['aim']}"
    if aim is None and row["aim"]:  # of an older record
        said = f"aim: {row['aim']}"
    shown = ", ".join(filter(None, [number(ratio), said]))
    return Comparison(
        row["what"], _against(row), axis, tuple(marks), shown, state, missed, row.get("reason", "")
    )


@dataclass(frozen=True)
class Curve:
    """Time against size, both axes logarithmic: points in per cent of a picture, (0, 0) top left."""

    what: str
    of: str
    points: tuple[tuple[float, float], ...]
    x: Axis
    y: Axis
    words: str
    power: str
    unit: str
    ended: str = ""  # a sentence: why there is no larger size

    @property
    def sizes(self) -> list[tuple[float, str]]:
        """The ticks of the sizes whose numbers have room: a digit takes 2.5 % of the width."""
        kept: list[tuple[float, str]] = []
        ticks = self.x.ticks()
        if any(len(text) > 10 for _, text in ticks):  # the last would reach out of the picture
            ticks = [(place, _as_power(text)) for place, text in ticks]
        for place, text in ticks:
            if not kept or place - kept[-1][0] >= 2.5 * len(text) + 2:
                kept.append((place, text))
        return kept


def curves(growth: list[dict], unit: str = "CPU-seconds") -> list[Curve]:
    """The measured curves of a chapter. unit: of those that do not say theirs."""
    found, usual = [], unit
    for one in growth:
        unit = one.get("unit", usual)
        short = unit.replace("seconds", "s")
        x, y = (Axis.over(one[key], log=True) for key in ("sizes", "seconds"))
        pairs = list(zip(one["sizes"], one["seconds"], strict=True))
        words = "; ".join(f"{number(n)}: {number(s)} {short}" for n, s in pairs)
        places = tuple((x.at(n), round(100 - y.at(s), 2)) for n, s in pairs)
        power = f"{one['exponent']:.2f}"
        found.append(
            Curve(one["what"], one["of"], places, x, y, words, power, unit, _how_it_ended(one))
        )
    return found


def _how_it_ended(one: dict) -> str:
    """Why a curve on a GPU has no larger size, as a sentence; "" where that is not known."""
    ended, of, largest = one.get("ended", {}), one["of"], _large(one["sizes"][-1])
    after = _large(ended.get("at", 0))
    if ended.get("why") == "memory":
        peak = f" ({one['peak_gb'][-1]:.0f} GB at the former)" if one.get("peak_gb") else ""
        return f"Memory ended between {largest} and {after} {of}{peak}."
    return {
        "time": f"Stopped at {number(one['seconds'][-1])} s a call.",
        "share": f"Stopped at {largest} {of}: {after} would have taken too long to measure.",
        "error": f"Stopped at {largest} {of}: {after} raised an error.",
    }.get(ended.get("why", ""), "")


def _as_power(text: str) -> str:
    """A whole number as readers write it, in powers of ten: 10⁸ for 100,000,000."""
    digits = text.replace(",", "").rstrip("0")
    power = f"10{raised(len(text.replace(',', '')) - len(digits))}"
    return power if digits == "1" else f"{digits}·{power}"


def _large(size: float) -> str:
    """A size in words from a million on."""
    for name, unit in (("billion", 1e9), ("million", 1e6)):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return number(size)


def benchmarks_section(env) -> list[nodes.Node]:
    """The chart, and a folded table a chapter."""
    found = benchmarks()
    if not found:
        return [tables.marked("No benchmark results are stored yet. `make bench` makes them.")]
    names = {paper["stem"]: short_name(paper) for paper in papers()} | {"sweep": "Sweeps"}
    folds: list[nodes.Node] = []
    for stem in sorted(found, key=list(names).index):
        result = found[stem]
        where = result.get("provenance", {})
        table = tables.table(HEAD, [_row(row) for row in result["rows"]], "benchmarks")
        machine = tables.paragraph(
            f"{where.get('hardware', 'machine not known')}, {where.get('date', 'no date')}, commit ",
            tables.code(where.get("commit") or "not known"),
        )
        said = map(tables.paragraph, result.get("conclusions", []))
        grown = curves(result.get("growth", []))
        count = f"All {len(result['rows'])} as a table"
        fold = folded(
            [names.get(stem, stem), f" ({_tally(result['rows'])})"],
            *said,
            raw(render("comparisons.html", comparisons=comparisons(result["rows"]), curves=grown)),
            folded(count, table),
            machine,
            tables.shell(result["command"]),
        )
        fold["ids"] = [f"performance-{stem}"]
        folds.append(fold)
    return [
        raw(render("performance.html", chapters=ratios())),
        tables.section("The comparisons", "comparisons", *folds),
    ]


def gpu_section(env) -> list[nodes.Node]:
    """The card and its limits, the comparisons on it, the recorded runs, and the checks."""
    limits, found, checks = on_gpu()
    if not found:
        return [tables.marked("No run on a GPU is stored yet. `make gpu` makes them.")]
    names = {about["stem"]: short_name(about) for about in papers()}

    def link(stem: str) -> nodes.Node | str:
        return tables.chapter_link(env, names[stem], stem) or names[stem]

    where = next(iter(found.values()))["provenance"]
    speed = ", ".join(f"{value / 1e12:.3g}·10¹² {kind}" for kind, value in limits.items())
    rows = [(stem, row) for stem in names for row in found.get(stem, {}).get("rows", [])]
    lines = [[link(stem), *_row(row)] for stem, row in rows]
    tally = _tally([row for _, row in rows])
    made = [
        [link(stem), run.name, shown_seconds(run.seconds), f"{run.peak_memory['gpu_mb']:,} MB"]
        for stem in names
        for run in load_records(stem)
        if "gpu_mb" in run.peak_memory
    ]
    tried = [
        [name.replace("_", " "), "passed" if found["passed"] else "failed", found["said"]]
        for name, found in checks.items()
    ]
    return [
        tables.paragraph(
            f"{where['hardware']}, {where['date']}, torch {where['packages']['torch']}. Measured "
            f"limits per second, of plain copies and plain products of matrices: {speed}."
        ),
        tables.table(["Chapter", "Recorded run", "Time", "GPU memory"], made, "runs"),
        folded(
            f"The comparisons on it ({tally})",
            tables.table(["Chapter", *HEAD], lines, "benchmarks"),
        ),
        *_growth_folds(names),
        folded(
            "What it computes, compared with the CPU",
            tables.table(["Check", "Outcome", "Measured"], tried, "checks"),
            tables.paragraph(
                "The last check trains three small networks for sixty steps twice, stacked and one by "
                "one, in double precision: in single precision, rounding that moves one maximum of a "
                "pooling layer is enough to make them differ."
            ),
        ),
        tables.shell("companion gpu --budget 900 --out runs/gpu"),
    ]


def _growth_folds(names: dict[str, str]) -> list[nodes.Node]:
    """The curves of all chapters on a GPU in one fold; nothing where they are not recorded."""
    found = growth_on_gpu()
    if not found:
        return []
    grown = [
        one | {"what": f"{names[stem]}: {one['what']}"}
        for stem in names
        for one in found.get(stem, {}).get("growth", [])
    ]
    about = next(iter(found.values()))
    where = about["provenance"]
    lacking = [name for stem, name in names.items() if stem not in found]
    return [
        folded(
            "How time grows with size, up to the memory limit",
            tables.paragraph(
                f"{where['hardware']}, {where['date']}, commit {where['commit'] or 'not known'}"
                f"{' and changes after it' if where.get('changed_since_commit') else ''}. "
                "Sizes double until the next does not fit, or a call takes too long."
                + (f" Not measured: {', '.join(lacking)}." if lacking else "")
            ),
            raw(render("curves.html", curves=curves(grown, "seconds"))),
            tables.shell(about["command"]),
        )
    ]


def _tally(rows: list[dict]) -> str:
    """How many comparisons there are, and how many of their aims are missed."""
    missed = sum(map(_missed, rows))
    return (
        f"{len(rows)}, {missed} {'misses its' if missed == 1 else 'miss their'} aim"
        if missed
        else f"{len(rows)}"
    )


def _missed(row: dict) -> bool:
    """Whether the ratio, as it is shown, misses its aim."""
    aim = row.get("aim_at")
    if aim is None and (words := IN_WORDS.match(row["aim"])):
        aim = float(words[1])
    if aim is None:
        return False
    ratio, aim = (float(f"{value:.3g}") for value in (row["ratio"], aim))
    return ratio < aim if row.get("at_least", False) else ratio > aim


def _against(row: dict) -> str:
    """What ours is compared with, and which version of it."""
    versions = ", ".join(f"{name} {version}" for name, version in row.get("versions", {}).items())
    return f"{row['against']} ({versions})" if versions else row["against"]


def _row(row: dict) -> list[str]:
    spread = f" ({row['low']:.3g}–{row['high']:.3g})" if "low" in row else ""
    aim = f"{row['aim']} (missed)" if _missed(row) else row["aim"]
    if "limit" in row:
        aim = "; ".join(filter(None, [aim, f"limit {row['limit']:.3g}"]))
    note = "; ".join(filter(None, [row.get(key) for key in ("agreement", "reason", "note")]))
    return [row["what"], _against(row), f"{row['ratio']:.3g}{spread}", aim, note]
