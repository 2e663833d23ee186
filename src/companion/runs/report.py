"""The page of a sweep: how often each claim held, figures over the grid, and all runs.

One HTML file that needs nothing else: figures are inside it.
"""

from __future__ import annotations

import base64
import html
import json
from collections import defaultdict
from typing import Any

from companion.notebook.claims import load_claims, papers
from companion.runs.curves import Points, draw
from companion.runs.record import DONE, Run, held

MOST_FIGURES = 24
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .7rem; border-bottom: 1px solid #ddd; }
figure { display: inline-block; margin: .5rem .5rem 0 0; vertical-align: top; }
figure img { max-width: 100%; }
.failed { color: #a03c00; }
"""


def swept(runs: list[Run]) -> dict[str, list]:
    """The parameters that differ between runs, with their values in order."""
    values: dict[str, list] = defaultdict(list)
    for run in runs:
        for name, value in run.given.items():
            if value not in values[name]:
                values[name].append(value)
    return {name: each for name, each in values.items() if len(each) > 1}


def page(runs: list[Run]) -> str:
    """The whole page as HTML."""
    done = [run for run in runs if run.status == DONE]
    paper = runs[0].paper
    title = html.escape(f"Sweep of {paper}")
    seconds = sum(run.seconds or 0 for run in runs)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{len(done)} runs done, {len(runs) - len(done)} failed, "
        f"{seconds:.0f} seconds of runs in all.</p>",
    ]
    if counts := held(done):
        stated = load_claims(paper) if paper in papers() else {}
        lines = [
            [id, stated[id].says if id in stated else "", f"{claim.held} of {claim.of} runs"]
            for id, claim in counts.items()
        ]
        parts += ["<h2>Claims</h2>", _table(["", "Claim", "Reproduced in"], lines)]
    figures = _figures(done)
    if figures:
        parts += ["<h2>Over the grid</h2>", *figures]
    axes = swept(runs)
    lines = []
    for run in runs:
        values = [json.dumps(run.given.get(name)) for name in axes]
        status = "done" if run.status == DONE else run.status
        lines.append([*values, status, f"{run.seconds:.1f}", run.error])
    parts += ["<h2>Runs</h2>", _table([*axes, "status", "seconds", "error"], lines)]
    return "\n".join([*parts, "</body></html>\n"])


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def cells(row: list[Any], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)

    body = "".join(
        f"<tr{' class=failed' if 'failed' in row else ''}>{cells(row, 'td')}</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _figures(runs: list[Run]) -> list[str]:
    """A figure for each number that varies, against the first axis that is no seed."""
    axes = swept(runs)
    if not axes:
        return []
    across = next((name for name in axes if name != "seed"), "seed")
    lines = next((name for name in axes if name not in (across, "seed")), None)
    figures = []
    for name in _varying(runs)[:MOST_FIGURES]:
        curves: dict[str, Points] = defaultdict(lambda: defaultdict(list))
        for run in runs:
            value, place = run.numbers().get(name), run.given.get(across)
            if value is not None:
                label = "" if lines is None else f"{lines} = {json.dumps(run.given.get(lines))}"
                number = isinstance(place, (int, float)) and not isinstance(place, bool)
                at = float(place) if number else json.dumps(place)  # type: ignore[arg-type]
                curves[label][at].append(float(value))
        data = base64.b64encode(draw(curves, across, name)).decode()
        alt = html.escape(f"{name} against {across}: mean of the runs, and their range")
        figures.append(f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"></figure>')
    return figures


def _varying(runs: list[Run]) -> list[str]:
    """Names of numbers that are not the same in all runs."""
    seen: dict[str, set] = defaultdict(set)
    for run in runs:
        for name, value in run.numbers().items():
            seen[name].add(value)
    return [name for name, values in seen.items() if len(values) > 1]
