"""Benchmarks that compare: ours and a peer in one process, turn by turn.

`make bench` runs them, on one thread and by processor time, in which other work on the machine
weighs little. With COMPANION_BENCH_RECORD=1 every module bench_<stem>.py merges its
rows into book/recorded/benchmarks.json, which the performance page reads.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from companion.files import ROOT, seal, to_json, write_whole
from companion.runs.provenance import provenance

RECORD = ROOT / "book" / "recorded" / "benchmarks.json"


def merge_rows(
    stem: str, rows: list[dict], path: Path = RECORD, conclusions: Sequence[str] = ()
) -> None:
    """Put a chapter's rows in the place of its old ones; other chapters keep theirs."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[stem] = {"command": "make bench", "provenance": provenance(), "rows": rows}
    if conclusions:
        kept[stem]["conclusions"] = list(conclusions)
    kept[stem]["seal"] = seal(kept[stem])
    write_whole(path, to_json(dict(sorted(kept.items()))))


@pytest.fixture(scope="module")
def conclusions():
    """Sentences that stand below the rows of this module."""
    return []


@pytest.fixture
def conclude(conclusions):
    return lambda *sentences: conclusions.extend(sentences)


@pytest.fixture(scope="module")
def rows(request, conclusions):
    """The rows of this module; recorded at its end if asked for."""
    found = []
    yield found
    if found and os.environ.get("COMPANION_BENCH_RECORD") == "1":
        stem = Path(request.path).stem.removeprefix("bench_")
        merge_rows(stem, found, conclusions=conclusions)


@pytest.fixture
def add_row(benchmark, rows):
    """Keep a ratio: in pytest-benchmark's own report and among the rows."""

    def add(what, against, ratio, *, aim="", note=""):
        row = {"what": what, "against": against, "ratio": ratio, "aim": aim, "note": note}
        benchmark.extra_info.update(row)
        rows.append(row)
        print(f"\n{what} / {against}: {ratio:.3g} ({note}; aim: {aim or 'none'})")
        return ratio

    return add


@pytest.fixture
def compare(benchmark, add_row):
    """Time ours against a peer, a turn each, and keep the median of the turns' ratios."""

    def run(what, ours, against, peer, *, rounds, aim="", note=""):
        others = []

        def before_each():  # pytest-benchmark does not time this
            start = time.process_time()
            peer()
            others.append(time.process_time() - start)

        benchmark.pedantic(ours, setup=before_each, rounds=rounds, warmup_rounds=1)
        mine = benchmark.stats.stats.data
        ratio = statistics.median(a / b for a, b in zip(mine, others[-rounds:], strict=True))
        ms, other_ms = (1000 * statistics.median(times) for times in (mine, others[-rounds:]))
        measured = f"{_digits(ms)} CPU-ms against {_digits(other_ms)}, medians of {rounds}"
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        return add_row(
            what, against, ratio, aim=aim, note="; ".join(filter(None, [note, measured, load]))
        )

    return run


def _digits(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
