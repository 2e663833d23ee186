"""The files of a sweep: what is finished, its table, and what is kept of it for the book.

    OUT/runs/<id>.ipynb   the executed notebook
    OUT/runs/<id>.json    parameters, recorded values, claims, seconds, device
    OUT/failed/<id>.json  the same of a run that failed, with its error; tried again next time
    OUT/table.parquet, OUT/table.csv, OUT/index.html

A run is finished when its JSON lies under its name: it is written last, and whole or not at all.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from companion.files import BusyError, locked, sweep_up, write_whole
from companion.notebook.checking import NOT_RUN, REPRODUCED
from companion.runs import chapters
from companion.runs.fingerprint import standing
from companion.runs.grid import Point
from companion.runs.record import DONE, Run, Sweep, held, load, save
from companion.runs.worker import Result

LOCK = ".lock"
TABLES = ("table.parquet", "table.csv", "index.html")


class SweepError(RuntimeError):
    """Raised when a sweep cannot go on; what was finished is kept."""


def keep_result(result: Result, runs_dir: Path, failed_dir: Path) -> Run:
    """Write a result, its JSON last; a failed run never looks like a finished one."""
    run = result.run
    folder = runs_dir if run.status == DONE else failed_dir
    path = folder / f"{run.name}.json"
    with disk(folder.parent):
        if result.notebook:
            write_whole(path.with_suffix(".ipynb"), result.notebook)
        save(run, path)
        if run.status == DONE:  # an earlier try may have failed
            for file in failed_dir.glob(f"{run.name}.*"):
                file.unlink()
    return load(path, checked=False)


def finished(runs_dir: Path, point: Point, fingerprint: str) -> Run | None:
    """The run of a point that is done by the code as it is now."""
    try:
        run = load(runs_dir / f"{point.id}.json", checked=False)
    except (OSError, ValueError):
        return None
    current = (run.name, run.status, run.fingerprint) == (point.id, DONE, fingerprint)
    return run if current else None


def without_outputs(path: Path) -> str:
    """The notebook as text, its outputs dropped: they need not travel."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(notebook)


def not_in_the_way(out: Path) -> None:
    """Refuse a folder in which a sweep would write over files that no sweep has written."""
    ours = any(
        re.fullmatch("[0-9a-f]{16}", file.stem)
        for folder in ("runs", "failed")
        for file in (out / folder).glob("*.json")
    )
    theirs = [name for name in TABLES if not ours and (out / name).exists()]
    if theirs:
        raise SweepError(
            f"--out {out}: {', '.join(theirs)} there is of no sweep; take another folder"
        )


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold the folder."""
    busy = f"--out {out}: {{holder}} is sweeping into it; wait for it or take another folder"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out / LOCK, busy))
        except BusyError as error:
            raise SweepError(str(error)) from error
        except FileExistsError as error:
            raise SweepError(
                f"--out {out}: {LOCK} there is of no sweep; take another folder"
            ) from error
        except OSError as error:
            raise SweepError(f"--out {out}: {error.strerror or error}") from error
        yield


def clear(out: Path) -> None:
    """Remove what an interrupted writer left, and nothing that is not ours."""
    for folder in (out, out / "runs", out / "failed"):
        sweep_up(folder)


@contextlib.contextmanager
def disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SweepError(
            f"cannot write to {out}: {error.strerror or error}; what was finished is kept: "
            "make room and start the same sweep again"
        ) from error


def keep(
    name: str,
    path: Path,
    runs: list[Run],
    command: str,
    folder: Path | None = None,
    values: Sequence[str] = (),
) -> Path:
    """Keep a sweep for the book: a small table, and how often each claim held.

    Writes <name>.csv and <name>.json to `folder`, by default book/recorded/<stem>/sweeps. The
    table has a row a run: parameters, seconds, device, recorded numbers, and whether each
    claim was reproduced, with its quantities. Of recorded lists and mappings it has those whose name matches one of `values`
    (shell patterns), a column a number: `name.key` or `name.index`.
    Raises ValueError for a bad name, a pattern that matches no list or mapping, or a table of
    more than 100 kB, SweepError if a run failed.
    """
    from companion.runs.provenance import provenance
    from companion.runs.records import FOLDER, LIMIT

    check_name(name)
    failed = sum(run.status != DONE for run in runs)
    if failed:
        raise SweepError(f"--keep {name}: {failed} of {len(runs)} runs failed, so it is not kept")
    text = _small_table(runs, values)
    size = len(text.encode())
    if size > LIMIT:
        raise ValueError(f"--keep {name}: the table has {size} bytes, more than {LIMIT}")
    about = Sweep(
        paper=path.stem,
        name=name,
        command=command,
        fingerprint=runs[0].fingerprint,
        runs=len(runs),
        seconds=round(sum(run.seconds or 0 for run in runs)),
        claims=held(runs),
        provenance=provenance()
        | {"device": ", ".join(sorted({run.provenance["device"] for run in runs}))},
        table=hashlib.sha256(text.encode()).hexdigest(),
    )
    folder = folder or FOLDER / path.stem / "sweeps"
    with disk(folder):
        write_whole(folder / f"{name}.csv", text)
        save(about, folder / f"{name}.json")
    return folder / f"{name}.csv"


def check_name(name: str) -> None:
    """Raise ValueError if a sweep cannot be kept under this name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        shown = name if isinstance(name, str) and name.isprintable() and name else repr(name)
        raise ValueError(f"--keep {shown}: expected letters, digits, '-' and '_', 80 at most")


def _small_table(runs: list[Run], patterns: Sequence[str]) -> str:
    """The table that is kept, as CSV."""
    nested = {
        name
        for run in runs
        for name, value in run.values.items()
        if isinstance(value, (list, dict))
    }
    for pattern in patterns:
        if not fnmatch.filter(nested, pattern):
            raise ValueError(
                f"--values {pattern}: matches no recorded list or mapping; "
                f"there are {', '.join(sorted(nested)) or 'none'}"
            )
    wanted = {name for pattern in patterns for name in fnmatch.filter(nested, pattern)}
    lines = []
    for run in runs:
        line: dict[tuple[str, ...], Any]
        line = {("parameter", name): _scalar(value) for name, value in run.given.items()}
        line["run", "seconds"] = run.seconds
        line["run", "ran_on"] = run.provenance["device"]
        for name, value in run.values.items():
            if name in wanted:
                line |= {("recorded", *road): number for road, number in _numbers_in(name, value)}
            elif isinstance(value, (bool, int, float, str)):
                line["recorded", name] = value
        lines.append(line | _claims(run))
    return _csv(_named(lines), float_format="%.6g")


def _claims(run: Run) -> dict[tuple[str, ...], object]:
    """Whether each claim that was measured was reproduced, and its quantities."""
    cells: dict[tuple[str, ...], object] = {}
    for id, verdict in run.claims.items():
        cells["claim", id] = None if verdict.outcome == NOT_RUN else verdict.outcome == REPRODUCED
        for name, value in verdict.measured.items():
            cells["claim", f"{id}.{name}"] = _scalar(value)
    return cells


def _named(lines: list[dict[tuple[str, ...], object]]) -> list[dict[str, Any]]:
    """The lines of a table with the names of its columns, no two the same.

    A cell is keyed by what it is (parameter, run, recorded, claim) and its name, or the road to
    it. Where two things have one name, the parameter keeps it and what the others are goes before theirs.
    """
    kinds = ("parameter", "run", "recorded", "claim")
    keys = dict.fromkeys(key for line in lines for key in line)
    names: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for key in sorted(keys, key=lambda key: (kinds.index(key[0]), len(key))):
        name = ".".join(key[1:])
        while name in taken:
            name = f"{key[0]} {name}"
        taken.add(name)
        names[key] = name
    # a table has its columns in the order in which they first come
    return [{names[key]: value for key, value in line.items()} for line in lines]


def _csv(lines: list[dict[str, Any]], **options) -> str:
    """The lines as CSV whose text no spreadsheet takes for a formula."""
    safe = [{_defused(name): _defused(cell) for name, cell in line.items()} for line in lines]
    return _frame(safe).to_csv(index=False, **options)


def _frame(lines: Sequence[Mapping[Any, Any]]):
    """A data frame of the lines; whole numbers stay whole where some line has none."""
    import pandas

    frame = pandas.DataFrame(lines)
    for name in frame.columns:
        cells = [line.get(name) for line in lines]
        given = [cell for cell in cells if not _missing(cell)]
        if 0 < len(given) < len(cells) and all(type(c) is int and _is_short(c) for c in given):
            whole = [None if _missing(cell) else cell for cell in cells]
            frame[name] = pandas.array(whole, dtype="Int64")
    return frame


def _defused(cell: object) -> object:
    """Text with an apostrophe before it if a spreadsheet could take it for a formula.

    See OWASP's page on CSV injection. Numbers stay as they are.
    """
    if not isinstance(cell, str):
        return cell
    # a bare carriage return would not be quoted, and begin a new line
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\n", *"＝＋－＠")) else cell


def _numbers_in(*nested: Any) -> Iterator[tuple[tuple[str, ...], float]]:
    """The numbers in lists and mappings, the last of `nested`, each with the road to it."""
    *road, value = nested
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _numbers_in(*road, str(key), item)
    elif isinstance(value, (bool, int, float)):
        yield tuple(road), value


def kept(stem: str) -> list[Sweep]:
    """The kept sweeps of a chapter by name, each with how its code stands.

    Raises ValueError for a sweep, or its table, that was changed by hand.
    """
    from companion.runs.records import FOLDER, sha256

    code_of = standing(chapters.find(stem))
    sweeps = []
    for path in sorted((FOLDER / stem / "sweeps").glob("*.json")):
        sweep = load(path, Sweep)
        if sha256(path.with_suffix(".csv")) != sweep.table:
            raise ValueError(f"{path.with_suffix('.csv')}: not as it was written: sweep again")
        sweeps.append(replace(sweep, code=code_of(sweep.fingerprint)))
    return sweeps


def write_table(runs: list[Run], out: Path) -> None:
    """Write table.parquet, table.csv and index.html of the runs."""
    from companion.runs.report import page

    buffer = io.BytesIO()
    table(runs).to_parquet(buffer, index=False)
    write_whole(out / "table.parquet", buffer.getvalue())
    write_whole(out / "table.csv", _csv(_lines(runs)))
    write_whole(out / "index.html", page(runs))


def table(runs: list[Run]):
    """One row a run as a data frame: status, parameters, where it ran, recorded values, claims.

    Lists and mappings become JSON text, and whole numbers of more than 64 bits text as well.
    `seconds` and `ran_on` tell how long the run took, and where. A claim gives a column `C1`
    (whether it was reproduced; none where it was not measured) and one for each quantity,
    `C1.error`. A parameter's column has its name; where another column would have the same one, it
    says what it is: `recorded x`, `claim C1`, `run seconds`.
    """
    frame = _frame(_lines(runs))
    # a column of one kind: parquet takes no mixture, and no whole number of more than 64 bits
    for name in frame.columns:
        given = frame[name].dropna().tolist()
        kinds = {type(value) for value in given}
        mixed = len(kinds) > 1 and not kinds <= {int, float}
        if mixed or not all(_is_short(value) for value in given if type(value) is int):
            frame[name] = [None if _missing(v) else str(v) for v in frame[name]]
    return frame


def _lines(runs: list[Run]) -> list[dict[str, Any]]:
    """The cells of the table by column, a mapping a run."""
    lines = []
    for run in runs:  # what was not given is the notebook's default
        status = "done" if run.status == DONE else run.status
        where = " of ".join(run.provenance.get(key, "") for key in ("device", "hardware"))
        line: dict[tuple[str, ...], Any]
        line = {("run", "id"): run.name, ("run", "status"): status, ("run", "error"): run.error}
        line |= {("parameter", name): _scalar(value) for name, value in run.given.items()}
        line |= {("run", "seconds"): run.seconds, ("run", "ran_on"): where}
        line |= {("recorded", name): _scalar(value) for name, value in run.values.items()}
        lines.append(line | _claims(run))
    return _named(lines)


def _scalar(value: object) -> object:
    return (
        value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)
    )


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _is_short(number: int) -> bool:
    """Whether 64 bits hold it."""
    return -(2**63) <= number < 2**63
