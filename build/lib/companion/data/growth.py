"""Growth curves of a plate reader: optical density of many wells over half a day.

The bundled table was made from `Tecan_210115.csv` of the package curveball (see its header),
by `table_from_curveball`. Every well is an environment: one culture, one growth curve.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.data.files import read_text
from companion.data.root import CorruptDataError, MissingDataError, data_root

BUNDLED = "growth.csv"
BLANK = "0"  # the strain of a well without cells


@dataclass(frozen=True, eq=False)
class Growth:
    """A plate's growth curves.

    density: (wells, readings), optical density above the blanks' mean, float64.
    hours: (readings,), ascending. wells, strains: a name each, in the order of density.
    blank: mean reading of the wells without cells. checksum: sha256 of the table's text.
    """

    density: Tensor
    hours: Tensor
    wells: tuple[str, ...]
    strains: tuple[str, ...]
    blank: float
    checksum: str


def load_growth(root: str | os.PathLike = "") -> Growth:
    """The bundled plate; with a root, the table `growth.csv` in that folder instead.

    A table has comment lines that start with #, a line "hours" with the wells' names, a line
    "strain" with "0" for blanks, then a line a reading: the hour, and a density for each well.

    Raises MissingDataError or CorruptDataError, saying what is expected.
    """
    if root:
        path = data_root(root) / BUNDLED
        if not path.is_file():
            raise MissingDataError(
                f"{path} is not there: expected a plate's table, laid out as the bundled one; "
                "leave data_root empty for that"
            )
        return parse_table(read_text(path), str(path))
    return parse_table(files("companion.data").joinpath(BUNDLED).read_text(encoding="utf-8"))


def parse_table(text: str, name: str = "growth table") -> Growth:
    """A plate's table as curves above its blanks.

    name: what errors call it.
    Raises CorruptDataError for what is no such table, or one without blanks or cultures.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    try:
        rows = list(csv.reader(lines))
    except csv.Error as error:
        raise CorruptDataError(f"{name}: {error}") from error
    if len(rows) < 5 or rows[0][0] != "hours" or rows[1][0] != "strain":
        raise CorruptDataError(f'{name}: expected a line "hours", a line "strain" and readings')
    if len({len(row) for row in rows}) != 1:
        raise CorruptDataError(f"{name}: the lines differ in their number of entries")
    try:
        numbers = np.array(rows[2:], dtype=np.float64)
    except ValueError as error:
        raise CorruptDataError(f"{name}: {error}") from error
    if not np.isfinite(numbers).all() or not (np.diff(numbers[:, 0]) > 0).all():
        raise CorruptDataError(f"{name}: expected finite readings and ascending hours")
    strains = np.array(rows[1][1:])
    cells = strains != BLANK
    if cells.all() or not cells.any():
        raise CorruptDataError(f'{name}: expected cultures, and blanks (strain "0")')
    density = numbers[:, 1:].T
    blank = density[~cells].mean()
    names = np.array(rows[0][1:])
    return Growth(
        torch.from_numpy(density[cells] - blank),
        torch.from_numpy(numbers[:, 0].copy()),
        tuple(names[cells].tolist()),
        tuple(strains[cells].tolist()),
        float(blank),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def table_from_curveball(lines: Iterable[str], header: str = "") -> str:
    """The compact table made from the lines of curveball's Tecan_210115.csv.

    Wells in the order A1, A2, ..., H12; hours to 5 decimals, densities to the reader's 4.
    header: put before it, each line after a "# ".
    """
    readings: dict[str, dict[str, str]] = {}
    strains: dict[str, str] = {}
    for row in csv.DictReader(lines):
        hour = f"{float(row['Time']):.5f}"
        readings.setdefault(hour, {})[row["Well"]] = f"{float(row['OD']):.4f}"
        strains[row["Well"]] = row["Strain"]
    wells = sorted(strains, key=lambda well: (well[0], int(well[1:])))
    out = [f"# {line}".rstrip() for line in header.splitlines()]
    out.append(",".join(["hours", *wells]))
    out.append(",".join(["strain", *(strains[well] for well in wells)]))
    for hour in sorted(readings, key=float):
        out.append(",".join([hour, *(readings[hour][well] for well in wells)]))
    return "\n".join(out) + "\n"


def bundled_header() -> str:
    """The bundled table's comment: where it comes from and its licence."""
    text = files("companion.data").joinpath(BUNDLED).read_text(encoding="utf-8")
    return "\n".join(line[2:] for line in text.splitlines() if line.startswith("#"))


def main(source: str, target: str) -> None:
    """Make the bundled table anew: python -m companion.data.growth Tecan_210115.csv growth.csv"""
    with open(source, encoding="utf-8") as file:
        Path(target).write_text(table_from_curveball(file, bundled_header()), encoding="utf-8")


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
