"""The house style, and the kinds of figure that several chapters draw."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from typing import cast

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.rcsetup import cycler

# Okabe and Ito's palette, without its yellow (too faint on white): safe for the colour-blind.
COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
    "grey": "#767676",
}
WIDTH = 7.2  # inches: the text width of a page


def use_style() -> None:
    """Set size, fonts, colours, a white background and PNGs without a version stamp.

    Call it once in a notebook, after the imports.
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=list(COLOURS.values())),
            "axes.grid": True,
            "grid.alpha": 0.25,
            "image.cmap": "cividis",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
        }
    )
    try:
        from IPython import get_ipython
    except ImportError:  # a GPU box without Jupyter
        return
    if (shell := get_ipython()) is not None and hasattr(shell, "kernel"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png", metadata={"Software": None})


def label_lines(
    ax: Axes, labels: Mapping[str, tuple[float, float, str]], gap: float = 0.055
) -> None:
    """Write each line's name beside its end instead of in a legend.

    labels: name -> (x, y, colour) of the line's end, in data coordinates.
    gap: least distance between two names, as a fraction of the axes' height.
    """
    ax.get_xlim()  # lines just drawn move the limits only when somebody asks for them
    to_axes = ax.transData + ax.transAxes.inverted()
    placed = sorted((to_axes.transform((x, y))[1], name) for name, (x, y, _) in labels.items())
    heights: list[float] = []
    for height, _ in placed:
        heights.append(max(height, heights[-1] + gap) if heights else height)
    for (_, name), height in zip(placed, heights, strict=True):
        x, _, colour = labels[name]
        right = to_axes.transform((x, 0))[0]
        ax.text(
            right + 0.015,
            height,
            name,
            color=colour,
            transform=ax.transAxes,
            va="center",
            clip_on=False,
        )


def image_grid(
    rows: Mapping[str, Sequence[np.ndarray]],
    *,
    titles: Sequence[str] = (),
    cmaps: Mapping[str, str] | None = None,
    cell: float = 0.68,
):
    """Rows of small pictures with a name before each row.

    rows: name -> pictures (height, width) or (height, width, 3). titles: one a column.
    cmaps: colour map by row name. cell: inches a picture.
    Returns the figure.
    """
    columns = max(len(pictures) for pictures in rows.values())
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(cell * columns + 0.9, cell * len(rows) + 0.3), squeeze=False
    )
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for ax in line:
            ax.set_axis_off()
        for ax, picture in zip(line, pictures, strict=False):
            ax.imshow(picture, cmap=(cmaps or {}).get(name), interpolation="nearest")
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center")
    for ax, title in zip(axes[0], titles, strict=False):
        ax.set_title(title, loc="center")
    return figure


def show_source(function, first: str = "", last: str = ""):
    """A function's source without its docstring, as highlighted Markdown, so it cannot drift.

    Args:
        function: of the library.
        first, last: show only the lines from the first one that contains `first` to the next one
            that contains `last`; without them, the whole function.

    Raises:
        ValueError: where no such line is there.
    """
    source = textwrap.dedent(inspect.getsource(function))
    lines = source.splitlines()
    definition = cast(ast.FunctionDef | ast.ClassDef, ast.parse(source).body[0])
    if ast.get_docstring(definition) is not None:
        text = definition.body[0]
        del lines[text.lineno - 1 : text.end_lineno]
    if first or last:
        start = _line_with(first, lines, 0, function)
        lines = lines[start : _line_with(last, lines, start, function) + 1]
    return _markdown("```python\n" + textwrap.dedent("\n".join(lines)) + "\n```")


def _line_with(text: str, lines: Sequence[str], start: int, function) -> int:
    for number, line in enumerate(lines[start:], start):
        if text in line:
            return number
    raise ValueError(f"{text!r} is in no line of {function.__name__}")


def show_table(rows: Mapping[str, Mapping[str, object]], corner: str = ""):
    """A small table as Markdown: row name -> {column name: value}; floats to one decimal."""
    columns = list(next(iter(rows.values())))
    lines = [[corner, *columns], ["---", *["---:"] * len(columns)]]
    for name, row in rows.items():
        cells = [f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append([name, *cells])
    return _markdown("\n".join("| " + " | ".join(line) + " |" for line in lines))


def _markdown(text: str):
    try:
        from IPython.display import Markdown
    except ImportError:  # a GPU box without Jupyter
        return text
    return Markdown(text)
