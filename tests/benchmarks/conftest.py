"""Benchmarks that compare: ours and a peer in one process, turn by turn.

`make bench` runs them, on one thread and by processor time, in which other work on the machine
weighs little. With COMPANION_BENCH_RECORD=1 every module bench_<stem>.py merges its
rows and curves into book/recorded/benchmarks.json, which the performance page reads.
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from companion.files import ROOT, seal, to_json, write_whole
from companion.runs.provenance import provenance

RECORD = ROOT / "book" / "recorded" / "benchmarks.json"
FITTED = 3  # of a curve's largest sizes: below them costs of a fixed length show


def merge_rows(
    stem: str,
    rows: list[dict],
    path: Path = RECORD,
    conclusions: Sequence[str] = (),
    growth: Sequence[dict] = (),
) -> None:
    """Put a chapter's results in the place of its old ones; other chapters keep theirs."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[stem] = {"command": "make bench", "provenance": provenance(), "rows": rows}
    if conclusions:
        kept[stem]["conclusions"] = list(conclusions)
    if growth:
        kept[stem]["growth"] = list(growth)
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
def growth():
    """The curves of this module: time against size."""
    return []


@pytest.fixture(scope="module")
def rows(request, conclusions, growth):
    """The rows of this module; recorded with its curves at its end if asked for."""
    found = []
    yield found
    if found and os.environ.get("COMPANION_BENCH_RECORD") == "1":
        stem = Path(request.path).stem.removeprefix("bench_")
        merge_rows(stem, found, conclusions=conclusions, growth=growth)


@pytest.fixture
def add_row(benchmark, rows):
    """Keep a ratio: in pytest-benchmark's own report and among the rows.

    aim: the ratio to reach, at most, or at_least; aim_is says what that number is. limit: the
    ratio that cannot be beaten, where it is known. spread: quartiles of the turns' ratios.
    peers: the packages compared with, whose versions are kept. agreement: how the results of
    the two compare. reason: why the aim is missed; kept where it is.
    """

    def add(
        what, against, ratio, *, aim=None, at_least=False, aim_is="", limit=None, spread=(),
        peers=(), agreement="", reason="", note="",
    ):  # fmt: skip
        said = "" if aim is None else f"{'at least' if at_least else 'at most'} {aim:.3g}"
        row = {
            "what": what, "against": against, "ratio": ratio,
            "aim": ", ".join(filter(None, [said, aim_is])), "note": note,
        }  # fmt: skip
        low, high = spread or (None, None)
        missed = aim is not None and (ratio < aim if at_least else ratio > aim)
        more = {
            "aim_at": aim, "at_least": at_least or None, "limit": limit, "low": low, "high": high,
            "agreement": agreement or None, "reason": (missed and reason) or None,
            "versions": {package: version(package) for package in peers} or None,
        }  # fmt: skip
        row |= {name: value for name, value in more.items() if value is not None}
        benchmark.extra_info.update(row)
        rows.append(row)
        print(f"\n{what} / {against}: {ratio:.3g} ({note}; aim: {row['aim'] or 'none'})")
        return ratio

    return add


@pytest.fixture
def compare(benchmark, add_row):
    """Time ours against a peer, a turn each: the median of the turns' ratios, and quartiles.

    A peer that works in another process returns the CPU seconds that it took there.
    """

    def run(what, ours, against, peer, *, rounds, note="", **options):
        others = []

        def before_each():  # pytest-benchmark does not time this
            start = time.process_time()
            elsewhere = peer()
            here = time.process_time() - start
            others.append(elsewhere if isinstance(elsewhere, float) else here)

        benchmark.pedantic(ours, setup=before_each, rounds=rounds, warmup_rounds=1)
        mine, others = benchmark.stats.stats.data, others[-rounds:]
        ratios = [a / b for a, b in zip(mine, others, strict=True)]
        low, ratio, high = map(float, np.quantile(ratios, [0.25, 0.5, 0.75]))
        ms, other_ms = (1000 * statistics.median(times) for times in (mine, others))
        measured = f"{_digits(ms)} CPU-ms against {_digits(other_ms)}, medians of {rounds}"
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        note = "; ".join(filter(None, [note, measured, load]))
        return add_row(what, against, ratio, spread=(low, high), note=note, **options)

    return run


@pytest.fixture
def grow(benchmark, rows, growth):
    """Time work of several sizes: the curve, and the power of the size that its end follows.

    make(size) returns what to time, a callable; what it does before is not timed. The least of
    five calls, or of fewer once they took half a second.
    """

    def run(what, of, sizes, make):
        make(sizes[0])()  # what only the first call does
        seconds = []
        for size in sizes:
            work, times = make(size), []
            while sum(times) < 0.5 and len(times) < 5:
                start = time.process_time()
                work()
                times.append(time.process_time() - start)
            seconds.append(min(times))
        benchmark.pedantic(lambda: None, rounds=1)
        ends = np.log(sizes[-FITTED:]), np.log(seconds[-FITTED:])
        exponent = float(np.polyfit(*ends, 1)[0])
        growth.append(
            {
                "what": what,
                "of": of,
                "sizes": list(sizes),
                "seconds": seconds,
                "exponent": exponent,
            }
        )
        print(f"\n{what}: {of}^{exponent:.2f}", dict(zip(sizes, seconds, strict=True)))
        return exponent

    return run


def _digits(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"
