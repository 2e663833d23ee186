"""The page of performance: how long the library takes beside another way to do the same."""

from __future__ import annotations

from dataclasses import dataclass

from docutils import nodes

from companion.book import tables
from companion.book.charts import Axis, Mark
from companion.book.evidence import short_name
from companion.book.fold import folded
from companion.book.html import raw, render
from companion.book.runs import benchmarks, on_gpu, papers, shown_seconds
from companion.notebook.bounds import number
from companion.runs.records import load_records

HEAD = ["What", "Against", "Ratio", "Aim", "Note"]


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
        label = f"{names.get(stem, stem)} ({len(result['rows'])})"
        fold = folded(label, *said, table, machine, tables.shell(result["command"]))
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
    rows = [
        [link(stem), *_row(row)] for stem in names for row in found.get(stem, {}).get("rows", [])
    ]
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
            f"{where['hardware']}, {where['date']}, torch {where['packages']['torch']}. Plain copies "
            f"and plain products of matrices reach, a second: {speed}."
        ),
        tables.table(["Chapter", "Recorded run", "Time", "GPU memory"], made, "runs"),
        folded("The comparisons on it", tables.table(["Chapter", *HEAD], rows, "benchmarks")),
        folded(
            "What it computes, compared with the CPU",
            tables.table(["Check", "Outcome", "Measured"], tried, "checks"),
        ),
        tables.shell("companion gpu --budget 900 --out runs/gpu"),
    ]


def _row(row: dict) -> list[str]:
    return [row["what"], row["against"], f"{row['ratio']:.3g}", row["aim"], row.get("note", "")]
