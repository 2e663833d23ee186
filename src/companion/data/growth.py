"""Growth curves of a plate reader: optical density of many wells over half a day.

The bundled table was made from `Tecan_210115.csv` of the package curveball (see its header),
by `table_from_curveball`. Every well is an environment: one culture, one growth curve.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
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

    Args:
        density: float64 tensor of shape (wells, readings), optical density above the blanks'
            mean.
        hours: shape (readings,), ascending.
        wells: a name each, in the order of density.
        strains: likewise; "" where the table does not tell.
        blank: mean reading of the wells without cells, 0 where there are none.
        checksum: sha256 of the table's text.
    """

    density: Tensor
    hours: Tensor
    wells: tuple[str, ...]
    strains: tuple[str, ...]
    blank: float
    checksum: str


def load_growth(root: str | os.PathLike = "", *, blanks: Sequence[str] | None = None) -> Growth:
    """Load the bundled plate, or one of your own.

    A table has comment lines that start with #, a line "hours" with the wells' names, a line
    "strain" with "0" for wells without cells, then a line a reading: the hour, and a density for
    each well. All are separated by commas. Without a line "strain" `blanks` has to say which
    wells have no cells.

    Args:
        root: a table, or the folder of one that is called "growth.csv"; empty: the bundled plate.
        blanks: names of the wells without cells, whose mean is subtracted; () for none. None
            reads them in the line "strain".

    Raises:
        ValueError: for a name in `blanks` that the table lacks.
        MissingDataError: if there is no such table.
        CorruptDataError: if it is not laid out like this.

    >>> plate = load_growth()
    >>> plate.density.shape, plate.wells[0], plate.strains[0]
    (torch.Size([94, 52]), 'A1', 'G')
    """
    if not root:
        bundled = files("companion.data").joinpath(BUNDLED).read_text(encoding="utf-8")
        return parse_table(bundled, blanks=blanks)
    path = Path(root).expanduser()
    path = path if path.is_file() else data_root(root) / BUNDLED
    if not path.is_file():
        raise MissingDataError(
            f"{root}: neither a file nor a folder with a {BUNDLED}; expected a plate's table, laid "
            'out as the bundled one, or "" for that one'
        )
    return parse_table(read_text(path), str(path), blanks=blanks)


def parse_table(
    text: str, name: str = "growth table", *, blanks: Sequence[str] | None = None
) -> Growth:
    """Parse a plate's table into curves above its blanks.

    Args:
        text: as `load_growth` describes it.
        name: what errors call it.
        blanks: as in `load_growth`.

    Raises:
        ValueError: for a name in `blanks` that the table lacks.
        CorruptDataError: for what is no such table, or one without blanks or cultures.
    """
    lines = {
        number: line
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.startswith("#")
    }
    try:
        rows = [[entry.strip() for entry in row] for row in csv.reader(lines.values())]
    except csv.Error as error:
        raise CorruptDataError(f"{name}: {error}") from error
    if not rows or rows[0][0] != "hours":
        found = f'"{next(iter(lines.values()))[:40]}"' if rows else "nothing"
        raise CorruptDataError(
            f'{name}: expected a line "hours" with the wells\' names first, such as "hours,A1,A2", '
            f"separated by commas; found {found}"
        )
    named = len(rows) > 1 and rows[1][0] == "strain"
    if not named and blanks is None:
        raise CorruptDataError(
            f'{name}: expected a line "hours", a line "strain" and readings; without strains, '
            "`blanks` has to name the wells without cells"
        )
    if len(rows) < 4 + named:
        raise CorruptDataError(f"{name}: expected three readings at least")
    if len({len(row) for row in rows}) != 1:
        raise CorruptDataError(f"{name}: the lines differ in their number of entries")
    try:
        numbers = np.array(rows[1 + named :], dtype=np.float64)
    except ValueError as error:
        raise CorruptDataError(f"{name}{_no_number(rows, list(lines), named)}: {error}") from error
    if not np.isfinite(numbers).all() or not (np.diff(numbers[:, 0]) > 0).all():
        raise CorruptDataError(f"{name}: expected finite readings and ascending hours")
    names = np.array(rows[0][1:])
    if len(set(names.tolist())) < len(names):
        raise CorruptDataError(f"{name}: two wells have one name")
    strains = np.array(rows[1][1:] if named else [""] * len(names))
    if isinstance(blanks, str):
        raise ValueError(f"blanks = {blanks!r}: expected a list of names of wells")
    if blanks is None:
        cells = strains != BLANK
        if cells.all():
            raise CorruptDataError(f'{name}: expected cultures, and blanks (strain "0")')
    else:
        unknown = sorted(set(blanks) - set(names.tolist()))
        if unknown:
            raise ValueError(f"blanks = {unknown}: {name} has no such wells")
        cells = ~np.isin(names, list(blanks))
    if not cells.any():
        raise CorruptDataError(f'{name}: expected cultures, and blanks (strain "0")')
    density = numbers[:, 1:].T
    blank = density[~cells].mean() if not cells.all() else 0.0
    return Growth(
        torch.from_numpy(density[cells] - blank),
        torch.from_numpy(numbers[:, 0].copy()),
        tuple(names[cells].tolist()),
        tuple(strains[cells].tolist()),
        float(blank),
        hashlib.sha256(text.encode()).hexdigest(),
    )


def _no_number(rows: list[list[str]], lines: list[int], named: bool) -> str:
    """Where the first entry stands that is no number: its line in the file, and its well."""
    if len(lines) == len(rows):  # no quoted line break
        for line, row in list(zip(lines, rows, strict=True))[1 + named :]:
            for well, entry in zip(rows[0], row, strict=True):
                try:
                    float(entry)
                except ValueError:
                    return f", line {line}, {well}"
    return ""


def table_from_curveball(lines: Iterable[str], header: str = "") -> str:
    """Make the compact table from the lines of curveball's Tecan_210115.csv.

    Args:
        lines: of that file.
        header: put before the table, each line after a "# ".

    Returns:
        Wells in the order A1, A2, ..., H12; hours to 5 decimals, densities to the reader's 4.
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
