"""Recorded runs: one small JSON each under book/recorded, with provenance."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from companion.device import pick_device
from companion.files import ROOT, locked, sweep_up, to_json, write_whole
from companion.notebook.claims import natural
from companion.runs import chapters, exercises
from companion.runs.executor import TARGET, as_script
from companion.runs.fingerprint import fingerprint, standing
from companion.runs.provenance import provenance
from companion.runs.record import DONE, FAILED, UNFINISHED, Run, load, save

FOLDER = ROOT / "book" / "recorded"
EXERCISES = "exercises"  # below a chapter's folder
LIMIT = 100_000  # bytes of a record
FIGURE_LIMIT = 60_000  # bytes of one of its figures
DENSITY = 200  # dots an inch: twice what a page shows, for sharp screens


class RecordError(RuntimeError):
    """Raised when a run that was to be recorded did not finish."""


def load_records(stem: str) -> list[Run]:
    """The recorded runs of a chapter, oldest first, each with how its code stands.

    Raises:
        ValueError: for a record, or a figure of one, that was changed by hand.
    """
    return _load(FOLDER / stem, stem)


def load_answers(stem: str) -> list[Run]:
    """The kept answers to a chapter's exercises, in their order (`companion.runs.exercises`)."""
    return sorted(_load(FOLDER / stem / EXERCISES, stem), key=lambda run: natural(run.name))


def _load(folder: Path, stem: str) -> list[Run]:
    code_of = standing(chapters.find(stem))
    runs = []
    for path in folder.glob("*.json"):
        if path.name.endswith(".part.json"):  # of a run that broke off, or goes on
            continue
        run = load(path)
        for figure in run.figures:
            if sha256(folder / figure["file"]) != figure["sha256"]:
                raise ValueError(f"{folder / figure['file']}: not as it was written: record again")
        runs.append(replace(run, code=code_of(run.fingerprint)))
    return sorted(runs, key=lambda run: (run.provenance.get("date", ""), run.name))


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def record_run(name: str, stem: str, given: dict[str, Any], folder: Path | None = None) -> Run:
    """Run a chapter's code cells in a Python of their own and keep the result.

    name: of the record, such as "mnist". given: parameter values. folder: where to put it
      instead of book/recorded/<stem>.

    The file appears under its name only when the run has finished; until then, and if it
    fails, what was recorded so far lies beside it as <name>.part.json. A claim that did not
    hold is a result: it is kept.

    Raises ParameterError for bad values before anything starts, ValueError for a bad name,
    BusyError if this record is being made, by whichever chapter, and RecordError for a run that
    did not finish.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name):
        raise ValueError(f"name = {name!r}: expected letters, digits, '-' and '_', 80 at most")
    path = chapters.find(stem)
    asked = shlex.quote(chapters.called(path, stem))
    command = " ".join(["companion record", asked, "--name", name, *_as_options(given)])
    return _checked(name, path, given, folder or FOLDER / path.stem, command)


def record_answer(stem: str, label: str, folder: Path | None = None) -> Run:
    """Run what the answer to an exercise runs and keep its result, without figures.

    label: the exercise's number, with a letter from an answer's second run on, such as "4" or
    "1b". Of code that follows the chapter's cells, what it prints is kept, as the value `printed`.

    Raises ValueError for an exercise whose answer runs nothing; otherwise as `record_run`.
    """
    path = chapters.find(stem)
    found = exercises.answers(path)
    if label not in found:
        raise ValueError(f"exercise = {label!r}: expected one of {', '.join(found) or 'none'}")
    command = f"companion record {shlex.quote(chapters.called(path, stem))} --exercise {label}"
    folder = folder or FOLDER / path.stem / EXERCISES
    answer = found[label]
    return _checked(f"exercise-{label}", path, answer.given, folder, command, answer)


def _checked(
    name: str,
    path: Path,
    given: dict[str, Any],
    folder: Path,
    command: str,
    answer: exercises.Answer | None = None,
) -> Run:
    """Make a record, of an answer without its figures, once its parameters have been checked."""
    values = chapters.validate(path, given, here=True)
    device = pick_device(str(values.get("device", "cpu")))
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"name = {name!r}: {{holder}} is writing this record; wait, or take another name"
    with locked(folder / f".{name}.lock", busy):
        sweep_up(folder)
        return _record(folder / f"{name}.json", path, given, device, command, answer)


def _as_options(given: dict[str, Any]) -> list[str]:
    """Parameters as options of a command, but for the place of the data."""
    return [
        f"-p {key} {shlex.quote(_option(value))}"
        for key, value in given.items()
        if key != "data_root"
    ]


def _record(
    whole: Path,
    path: Path,
    given: dict[str, Any],
    device: Any,
    command: str,
    answer: exercises.Answer | None,
) -> Run:
    """Make the record `whole`, of which this process holds the lock."""
    part = whole.with_suffix(".part.json")
    head = {
        "paper": path.stem,
        "name": whole.stem,
        "status": UNFINISHED,
        "command": command,
        "fingerprint": fingerprint(path),
        "provenance": provenance(device),
    }
    _drop_figures(part, [])  # of a run that broke off
    write_whole(part, to_json(head))
    start = time.perf_counter()
    outcome = as_script(path, given, part, answer.code if answer else "")
    result = json.loads(part.read_text(encoding="utf-8"))
    result["seconds"] = round(time.perf_counter() - start)
    if outcome.missed and not (answer and answer.code):  # such code follows the last cell
        told = outcome.error.partition(": ")[2]
        print(f"kept, though not every claim came out as expected: {told}")
    elif outcome.error:
        said = {"status": FAILED, "error": outcome.error, "said": outcome.told.splitlines()}
        with suppress(OSError):  # a full disk may be what it failed of
            write_whole(part, to_json(result | said))
        raise RecordError(f"{path.stem} did not finish: {outcome.error}. What it had is in {part}")
    recorded = result.pop("values", {})
    if answer:
        _drop_figures(part, [])
        result.pop("figures", None)
        recorded = answer.kept(path.stem, recorded)
    run = Run.of_values(
        result.pop("paper"), result.pop("name"), recorded, **(result | {"status": DONE})
    )
    save(run, part)
    size = part.stat().st_size
    if size > LIMIT:
        raise RecordError(
            f"the record has {size} bytes, more than {LIMIT}: record less in {path.name} ({part})"
        )
    # from here on only names change: that needs no room on the disk
    for figure in run.figures:
        _part_of(whole.with_name(figure["file"])).replace(whole.with_name(figure["file"]))
    _drop_figures(whole, run.figures)
    part.replace(whole)
    return run


def _part_of(file: Path) -> Path:
    """The name of a figure while its record is not finished."""
    return file.with_suffix(f".part{file.suffix}")


def _drop_figures(record: Path, new: list[dict[str, str]]) -> None:
    """Remove the figures of the record that is about to be replaced, but for those of the new."""
    name = record.name.removesuffix(".json").removesuffix(".part")
    kept = {figure["file"] for figure in new}
    try:
        old = json.loads(record.read_text(encoding="utf-8")).get("figures", [])
        files = {figure["file"] for figure in old} - kept
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return  # there is none, or it is not one of our records
    for file in files:
        if re.fullmatch(rf"{name}-[\w-]+\.png", str(file)):
            path = record.with_name(file)
            path = _part_of(path) if record.name.endswith(".part.json") else path
            path.unlink(missing_ok=True)


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
        picture = io.BytesIO()
        plt.savefig(
            picture, format="png", dpi=DENSITY, bbox_inches="tight", metadata={"Software": None}
        )
        small = _shrink(picture.getvalue())
        write_whole(_part_of(file), small)
        kept = json.loads(part.read_text(encoding="utf-8"))
        figure = {"file": file.name, "name": f"{name}-{run}", "caption": caption, "alt": alt}
        figure["sha256"] = hashlib.sha256(small).hexdigest()
        kept["figures"] = [f for f in kept.get("figures", []) if f["file"] != file.name] + [figure]
        write_whole(part, to_json(kept))
    plt.close("all")


def _shows_something(ax) -> bool:
    # Axes.has_data() is true for a line without a point
    lines = (line.get_ydata() for line in ax.lines)
    drawn = any(y == y for ys in lines for y in map(float, ys))
    return drawn or bool(ax.images or ax.collections or ax.patches)


def _shrink(png: bytes) -> bytes:
    """Reduce a picture that is too large for the book to fewer colours, or to fewer pixels.

    Below 64 colours those of the curves would go, so that pixels go first.
    """
    from PIL import Image

    original = png
    for colours, share in ((256, 1), (64, 1), (64, 0.7), (64, 0.5), (16, 0.5)):
        if len(png) <= FIGURE_LIMIT:
            break
        with Image.open(io.BytesIO(original)) as picture:
            width, height = (round(share * side) for side in picture.size)
            reduced = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        density = share * DENSITY
        reduced.quantize(colours).save(file, "png", optimize=True, dpi=(density, density))
        png = file.getvalue()
    return png


def _option(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
