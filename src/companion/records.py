"""Recorded runs: one small JSON each under book/recorded, with provenance."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from companion import notebooks
from companion.runtime import ROOT, pick_device, provenance, to_json, write_whole

FOLDER = ROOT / "book" / "recorded"
LIMIT = 100_000  # bytes of a record
FIGURE_LIMIT = 60_000  # bytes of one of its figures
TARGET = "COMPANION_RECORD"


class RecordError(RuntimeError):
    """Raised when a run that was to be recorded did not finish."""


def load_records(stem: str) -> list[dict]:
    """The committed records of a chapter, each with `stale` added; oldest first.

    A record is stale if the chapter's code has changed since.
    """
    current = notebooks.fingerprint(notebooks.find(stem))
    records = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((FOLDER / stem).glob("*.json"))
        if not path.name.endswith(".part.json")  # of a run that broke off, or goes on
    ]
    for item in records:
        item["stale"] = item["fingerprint"] != current
    return sorted(records, key=lambda item: (item["provenance"]["date"], item["name"]))


def record_run(name: str, stem: str, given: dict[str, object], folder: Path | None = None) -> dict:
    """Run a chapter's code cells in a Python of their own and keep the result.

    name: of the record, such as "mnist". given: parameter values. folder: where to put it
      instead of book/recorded/<stem>.

    The file appears under its name only when the run has finished; until then, and if it
    fails, what was recorded so far lies beside it as <name>.part.json. A claim that did not
    hold is a result: it is kept.

    Raises ParameterError for bad values before anything starts, ValueError for a bad name, and
    RecordError for a run that did not finish.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"name = {name!r}: expected letters, digits, '-' and '_'")
    path = notebooks.find(stem)
    values = notebooks.validate(path, given, here=True)
    device = pick_device(str(values.get("device", "cpu")))
    folder = folder or FOLDER / stem
    part, whole = folder / f"{name}.part.json", folder / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-p {key} {shlex.quote(_option(value))}"
        for key, value in given.items()
        if key != "data_root"
    ]
    head = {
        "stem": stem,
        "name": name,
        "command": " ".join(["companion record", stem, "--name", name, *options]),
        "profile": values.get("profile", ""),
        "parameters": {key: value for key, value in values.items() if key != "data_root"},
        "fingerprint": notebooks.fingerprint(path),
        "status": "unfinished",
        "provenance": provenance(device),
    }
    write_whole(part, to_json(head))
    code = folder / f".{name}.part.py"
    write_whole(code, notebooks.script(path, given))
    environment = os.environ | {
        TARGET: str(part),
        "PYTHONPATH": _python_path(),
        "MPLBACKEND": "Agg",
    }
    start = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, str(code)], env=environment, stderr=subprocess.PIPE, text=True
        )
    finally:
        code.unlink(missing_ok=True)
    result = json.loads(part.read_text())
    said = done.stderr.strip().splitlines()
    error = (said or [f"exit status {done.returncode}"])[-1] if done.returncode else ""
    missed = error.startswith("companion.claims.ClaimError")
    result |= {"status": "complete", "seconds": round(time.perf_counter() - start)}
    result["peak_memory"] = result["values"].pop("peak_memory", {}) if "values" in result else {}
    if done.returncode and not missed:
        result |= {"status": "failed", "error": error}
        write_whole(part, to_json(result))
        sys.stderr.write(done.stderr)
        raise RecordError(f"{stem} did not finish: {error}. What it had is in {part}")
    if missed:
        print(f"kept, though not every claim came out as specified: {error.partition(': ')[2]}")
    text = to_json(result)
    if len(text) > LIMIT:
        write_whole(part, text)
        raise RecordError(
            f"the record has {len(text)} bytes, more than {LIMIT}: record less in {path.name} ({part})"
        )
    write_whole(whole, text)
    part.unlink()
    return result


def keep_figure(name: str, caption: str, alt: str) -> None:
    """Save the current figure beside the record that is being written, if there is one.

    A figure that shows nothing, because these settings left its experiment out, is not kept.
    """
    import matplotlib.pyplot as plt

    target = os.environ.get(TARGET)
    if target and any(map(_shows_something, plt.gcf().axes)):
        part = Path(target)
        run = part.name.removesuffix(".part.json")
        file = part.with_name(f"{run}-{name}.png")
        plt.savefig(file, dpi=100, metadata={"Software": None})
        _shrink(file)
        kept = json.loads(part.read_text())
        figure = {"file": file.name, "name": f"{name}-{run}", "caption": caption, "alt": alt}
        kept["figures"] = [f for f in kept.get("figures", []) if f["file"] != file.name] + [figure]
        write_whole(part, to_json(kept))
    plt.close("all")


def _shows_something(ax) -> bool:
    # Axes.has_data() is true for a line without a point
    lines = (line.get_ydata() for line in ax.lines)
    drawn = any(y == y for ys in lines for y in map(float, ys))
    return drawn or bool(ax.images or ax.collections or ax.patches)


def _shrink(file: Path) -> None:
    """Reduce a picture that is too large for the book to 256 colours, or to fewer."""
    from PIL import Image

    for colours in (256, 64, 16):
        if file.stat().st_size <= FIGURE_LIMIT:
            return
        with Image.open(file) as picture:
            reduced = picture.convert("RGB").quantize(colours)
        reduced.save(file, optimize=True)


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _python_path() -> str:
    src = str(ROOT / "src")
    return (
        os.pathsep.join([src, os.environ["PYTHONPATH"]]) if os.environ.get("PYTHONPATH") else src
    )
