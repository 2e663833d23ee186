"""Figures of sweeps and of runs beside each other: the mean, and the range."""

from __future__ import annotations

import csv
import io
import itertools
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PLACE = "{x}"  # in the name of a column: where on the horizontal axis it stands
Points = dict[float | str, list[float]]  # by place, a number a run


def read_curves(table: Path, wanted: dict[str, str], across: str = "") -> dict[str, Points]:
    """What the runs of a kept table gave, by the curve's label.

    wanted: label -> column. In a column such as `snip.error.random.{x}`, x runs over all columns
    of such a name; a column without {x} is drawn across the parameter `across`, or, without one,
    at the place "". A * stands for any text: the values of all such columns are put together.
    Raises ValueError, naming what there is, if the table lacks a column.
    """
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    if across and across not in columns:
        raise ValueError(f"{across!r} is no column of {table.name}; it has {', '.join(columns)}")
    curves = {}
    for label, pattern in wanted.items():
        form = re.escape(pattern).replace(r"\*", ".+").replace(re.escape(PLACE), "(?P<x>.+)")
        matches = {name: re.fullmatch(form, name) for name in columns}
        found = {name: match.groupdict().get("x", "") for name, match in matches.items() if match}
        if not found:
            raise ValueError(
                f"{pattern!r} matches no column of {table.name}; it has {', '.join(columns)}"
            )
        points: Points = defaultdict(list)
        for row in rows:
            for name, place in found.items():
                if row[name]:
                    at = place or (row[across] if across else "")
                    points[_number(at)].append(float(row[name]))
        curves[label] = dict(points)
    return curves


def draw(
    curves: dict[str, Points],
    xlabel: str,
    ylabel: str,
    log: Sequence[str] = (),
    mark: str = "",
    chosen: Mapping[str, str] | None = None,
) -> bytes:
    """A picture (PNG) of the curves; a row of dots for each if they have one place only.

    log: of "x" and "y", the axes with a logarithmic scale. mark: "label: value" of a dotted line.
    chosen: colours by label, those that a chapter gives its methods; others follow in order.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from companion.figures import COLOURS, WIDTH, use_style

    colours = colours_of(curves, chosen)
    with mpl.rc_context():
        use_style()
        single = all(len(points) == 1 for points in curves.values())
        height = 0.9 + 0.36 * len(curves) if single else 3.2
        figure = Figure(figsize=(WIDTH, height))
        ax = figure.subplots()
        if single:
            _dots(ax, curves, colours)
            ax.set_xlabel(ylabel)
        else:
            _lines(ax, curves, colours)
            ax.set(xlabel=xlabel, ylabel=ylabel)
            if any(curves):  # one without a name needs no legend
                ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        for axis in log:
            getattr(ax, f"set_{axis}scale")("log")
        if mark:
            label, _, value = mark.rpartition(":")
            rule, place = (ax.axvline, "x") if single else (ax.axhline, "y")
            rule(float(value), color=COLOURS["grey"], linestyle=":")
            along = {"x": (float(value), 1.0), "y": (1.0, float(value))}[place]
            ax.annotate(
                label, along, xycoords=("data", "axes fraction") if single else ("axes fraction", "data"),
                xytext=(-3, 3), textcoords="offset points", ha="right", color=COLOURS["grey"],
            )  # fmt: skip
        return _png(figure)


def draw_runs(
    methods: dict[str, dict[str, Points]],
    xlabel: str,
    ylabel: str,
    log: Sequence[str] = (),
    reported: Mapping[str, Points] | None = None,
    chosen: Mapping[str, str] | None = None,
) -> bytes:
    """A picture (PNG) of several runs of the same measurement: a panel a method, a line a run.

    methods: label -> run -> its curve. reported: the paper's values by label, as diamonds.
    chosen: colours by label.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from companion.figures import WIDTH, use_style

    colours, reported = colours_of(methods, chosen), reported or {}
    runs = list(dict.fromkeys(run for lines in methods.values() for run in lines))
    styles = dict(zip(runs, itertools.cycle(LINES), strict=False))
    columns = min(2, len(methods))
    rows = -(-len(methods) // columns)
    with mpl.rc_context():
        use_style()
        figure = Figure(figsize=(WIDTH, 0.9 + 2.1 * rows))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for ax in axes.flat[len(methods) :]:
            ax.set_axis_off()
        handles = {}
        for ax, (method, lines), colour in zip(axes.flat, methods.items(), colours, strict=False):
            for run, points in lines.items():
                (line, marker) = styles[run]
                x = sorted(points)
                handles[run] = ax.plot(
                    x, [statistics.fmean(points[at]) for at in x],
                    linestyle=line, marker=marker, ms=5, color=colour, label=run,
                )[0]  # fmt: skip
                for at in x:
                    ax.plot([at] * 2, [min(points[at]), max(points[at])], color=colour, lw=1)
            if paper := reported.get(method):
                handles["the paper"] = ax.plot(
                    sorted(paper), [paper[at][0] for at in sorted(paper)], "D", color="black",
                    ms=7, mfc="none", label="the paper",
                )[0]  # fmt: skip
            ax.set_title(method)
            ax.label_outer()
        for axis in log:
            getattr(axes[0, 0], f"set_{axis}scale")("log")
            if axis == "y":
                axes[0, 0].yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:g}"))
        for ax in axes[-1]:
            ax.set_xlabel(xlabel)
        for ax in axes[:, 0]:
            ax.set_ylabel(ylabel)
        # as many beside each other as are not wider than the panels
        for columns in range(max(1, len(handles)), 0, -1):
            legend = figure.legend(
                handles.values(), handles.keys(), loc="outside upper left", ncols=columns
            )
            if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
                break
            legend.remove()
        for handle in legend.get_lines():
            handle.set_color("black")  # what tells runs apart is the line, not the method's colour
        return _png(figure)


LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "v"), ((0, (1, 1)), "P"), ((0, (5, 1)), "X"))


def colours_of(labels: Iterable[str], chosen: Mapping[str, str] | None) -> list[str]:
    """A colour a label: the chosen one, a name of the palette's, or the next that is free."""
    from companion.figures import COLOURS

    chosen = {label: COLOURS.get(name, name) for label, name in (chosen or {}).items()}
    free = itertools.cycle([c for c in COLOURS.values() if c not in chosen.values()] or ["black"])
    return [chosen.get(label) or next(free) for label in labels]


def _png(figure) -> bytes:
    """At twice the size at which a page shows it, in 256 colours, with a tight box."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, bbox_inches="tight", metadata={"Software": None})
    with Image.open(buffer) as picture:
        reduced = picture.convert("RGB").quantize(256)
    buffer = io.BytesIO()
    reduced.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _dots(ax, curves: dict[str, Points], colours: list[str]) -> None:
    for place, (points, colour) in enumerate(
        zip(curves.values(), itertools.cycle(colours), strict=False)
    ):
        values = next(iter(points.values()))
        ax.plot(values, [place] * len(values), "o", color=colour, alpha=0.55, markersize=7)
        ax.plot([statistics.fmean(values)], [place], "|", color=colour, markersize=22, mew=2.5)
    ax.set_yticks(range(len(curves)), list(curves))
    ax.set_ylim(len(curves) - 0.5, -0.5)


def _lines(ax, curves: dict[str, Points], colours: list[str]) -> None:
    places = list(dict.fromkeys(at for points in curves.values() for at in points))
    numeric = all(isinstance(at, float) for at in places)
    where = {at: at if numeric else n for n, at in enumerate(places)}
    for (label, points), colour in zip(curves.items(), itertools.cycle(colours), strict=False):
        line = sorted((where[at], values) for at, values in points.items())
        x = [at for at, _ in line]
        ax.plot(x, [statistics.fmean(v) for _, v in line], "o-", ms=4, color=colour, label=label)
        low, high = ([pick(v) for _, v in line] for pick in (min, max))
        ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if not numeric:
        ax.set_xticks(range(len(places)), places)
    elif all(float(at).is_integer() for at in places):
        ax.locator_params("x", integer=True)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
