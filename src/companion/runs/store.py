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
from collections.abc import Iterator, Sequence
from pathlib import Path

from companion.files import BusyError, locked, seal, sweep_up, to_json, write_whole
from companion.runs import chapters
from companion.runs.fingerprint import fingerprint
from companion.runs.grid import Point
from companion.runs.worker import Result

LOCK = ".lock"
TABLES = ("table.parquet", "table.csv", "index.html")


class SweepError(RuntimeError):
    """Raised when a sweep cannot go on; what was finished is kept."""


def keep_result(result: Result, runs_dir: Path, failed_dir: Path) -> dict:
    """Write a result, its JSON last; a failed run never looks like a finished one."""
    folder = runs_dir if result.status == "done" else failed_dir
    row = result.row()
    with disk(folder.parent):
        if result.notebook:
            write_whole(folder / f"{result.point.id}.ipynb", result.notebook)
        write_whole(folder / f"{result.point.id}.json", to_json(row))
        if result.status == "done":  # an earlier try may have failed
            for file in failed_dir.glob(f"{result.point.id}.*"):
                file.unlink()
    return json.loads(to_json(row))


def finished(runs_dir: Path, run: Point, fingerprint: str) -> dict | None:
    """The row of a run that is done by the code as it is now."""
    try:
        row = json.loads((runs_dir / f"{run.id}.json").read_text(encoding="utf-8"))
        current = row["fingerprint"] == fingerprint and row["status"] == "done"
        current = current and row["id"] == run.id and isinstance(row["values"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return row if current else None


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
    rows: list[dict],
    command: str,
    folder: Path | None = None,
    values: Sequence[str] = (),
) -> Path:
    """Keep a sweep for the book: a small table, and how often each claim held.

    Writes <name>.csv and <name>.json to `folder`, by default book/recorded/<stem>/sweeps. The
    table has a row a run: parameters, seconds, device, recorded numbers, and whether each claim
    held. Of recorded lists and mappings it has those whose name matches one of `values`
    (shell patterns), a column a number: `name.key` or `name.index`.
    Raises ValueError for a bad name, a pattern that matches no list or mapping, or a table of
    more than 100 kB, SweepError if a run failed.
    """
    from companion.runs.provenance import provenance
    from companion.runs.records import FOLDER, LIMIT
    from companion.runs.report import claim_counts

    check_name(name)
    failed = sum(row["status"] != "done" for row in rows)
    if failed:
        raise SweepError(f"--keep {name}: {failed} of {len(rows)} runs failed, so it is not kept")
    text = _small_table(rows, values)
    if len(text) > LIMIT:
        raise ValueError(f"--keep {name}: the table has {len(text)} bytes, more than {LIMIT}")
    about = {
        "stem": path.stem,
        "name": name,
        "command": command,
        "fingerprint": rows[0]["fingerprint"],
        "runs": len(rows),
        "seconds": round(sum(row["seconds"] for row in rows)),
        "claims": claim_counts(rows),
        "provenance": provenance(),
        "table": hashlib.sha256(text.encode()).hexdigest(),
    }
    about["seal"] = seal(about)
    folder = folder or FOLDER / path.stem / "sweeps"
    with disk(folder):
        write_whole(folder / f"{name}.csv", text)
        write_whole(folder / f"{name}.json", to_json(about))
    return folder / f"{name}.csv"


def check_name(name: str) -> None:
    """Raise ValueError if a sweep cannot be kept under this name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        shown = name if isinstance(name, str) and name.isprintable() and name else repr(name)
        raise ValueError(f"--keep {shown}: expected letters, digits, '-' and '_', 80 at most")


def _small_table(rows: list[dict], patterns: Sequence[str]) -> str:
    """The table that is kept, as CSV."""
    nested = {
        name
        for row in rows
        for name, value in row["values"].items()
        if isinstance(value, (list, dict)) and not name.endswith((".claims", ".settings"))
    }
    for pattern in patterns:
        if not fnmatch.filter(nested, pattern):
            raise ValueError(
                f"--values {pattern}: matches no recorded list or mapping; "
                f"there are {', '.join(sorted(nested)) or 'none'}"
            )
    wanted = {name for pattern in patterns for name in fnmatch.filter(nested, pattern)}
    lines = []
    for row in rows:
        line = {("parameter", name): _scalar(value) for name, value in row["given"].items()}
        line["run", "seconds"] = row["seconds"]
        line["run", "ran_on"] = row["device"].partition(" of ")[0]
        for name, value in row["values"].items():
            if name in wanted:
                line |= {("recorded", *road): number for road, number in _numbers_in(name, value)}
            elif isinstance(value, (bool, int, float, str)):
                line["recorded", name] = value
        claims = row["values"].get(f"{row['stem']}.claims", [])
        lines.append(line | {("claim", claim["id"]): claim["holds"] for claim in claims})
    return _csv(_named(lines), float_format="%.6g")


def _named(lines: list[dict[tuple[str, ...], object]]) -> list[dict[str, object]]:
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


def _csv(lines: list[dict[str, object]], **options) -> str:
    """The lines as CSV whose text no spreadsheet takes for a formula."""
    import pandas

    safe = [{_defused(name): _defused(cell) for name, cell in line.items()} for line in lines]
    return pandas.DataFrame(safe).to_csv(index=False, **options)


def _defused(cell: object) -> object:
    """Text with an apostrophe before it if a spreadsheet could take it for a formula.

    See OWASP's page on CSV injection. Numbers stay as they are.
    """
    if not isinstance(cell, str):
        return cell
    # a bare carriage return would not be quoted, and begin a new line
    cell = cell.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\n", *"＝＋－＠")) else cell


def _numbers_in(*road: object) -> Iterator[tuple[tuple[str, ...], float]]:
    """The numbers in nested lists and mappings, the last of `road`, each with the road to it."""
    *road, value = road
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _numbers_in(*road, str(key), item)
    elif isinstance(value, (bool, int, float)):
        yield tuple(road), value


def kept(stem: str) -> list[dict]:
    """The kept sweeps of a chapter by name, each with `stale` added, as records have it."""
    from companion.runs.records import FOLDER

    current = fingerprint(chapters.find(stem))
    sweeps = []
    for file in sorted((FOLDER / stem / "sweeps").glob("*.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        table = hashlib.sha256(file.with_suffix(".csv").read_bytes()).hexdigest()
        if about.get("seal") != seal(about) or about.get("table") != table:
            raise SweepError(f"{file} or its table is not as it was written: sweep again")
        sweeps.append(about)
    return [about | {"stale": about["fingerprint"] != current} for about in sweeps]


def write_table(rows: list[dict], out: Path) -> None:
    """Write table.parquet, table.csv and index.html of the rows."""
    from companion.runs.report import page

    buffer = io.BytesIO()
    table(rows).to_parquet(buffer, index=False)
    write_whole(out / "table.parquet", buffer.getvalue())
    write_whole(out / "table.csv", _csv(_lines(rows)))
    write_whole(out / "index.html", page(rows))


def table(rows: list[dict]):
    """One row a run as a data frame: status, parameters, where it ran, recorded values, claims.

    Lists and mappings become JSON text. `seconds` and `ran_on` tell how long the run took, and
    where. A claim gives three columns: `C1` (whether it held; none where it was not computed),
    `C1 verdict` and `C1 ours`. A parameter's column has its name; where another column would
    have the same one, it says what it is: `recorded x`, `claim C1`, `run seconds`.
    """
    import pandas

    frame = pandas.DataFrame(_lines(rows))
    # a column of one kind: parquet takes no mixture
    for name in frame.columns:
        kinds = {type(value) for value in frame[name] if not _missing(value)}
        if len(kinds) > 1 and not kinds <= {int, float}:
            frame[name] = [None if _missing(v) else str(v) for v in frame[name]]
    return frame


def _lines(rows: list[dict]) -> list[dict[str, object]]:
    """The cells of the table by column, a mapping a run."""
    lines = []
    for row in rows:
        values = dict(row.get("values", {}))
        claims = values.pop(f"{row['stem']}.claims", [])
        values.pop(f"{row['stem']}.settings", None)  # what was not given is the notebook's default
        line = {("run", name): row[name] for name in ("id", "status", "error")}
        line |= {("parameter", name): _scalar(value) for name, value in row["given"].items()}
        line |= {("run", "seconds"): row["seconds"], ("run", "ran_on"): row["device"]}
        line |= {("recorded", name): _scalar(value) for name, value in values.items()}
        for claim in claims:
            line["claim", claim["id"]] = claim["holds"]
            line["claim", f"{claim['id']} verdict"] = claim["verdict"]
            line["claim", f"{claim['id']} ours"] = claim["ours"]
        lines.append(line)
    return _named(lines)


def _scalar(value: object) -> object:
    return (
        value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)
    )


def _missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and value != value)
