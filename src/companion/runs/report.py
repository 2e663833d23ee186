"""The page of a sweep: how often each claim held, figures over the grid, and all runs.

One HTML file that needs nothing else: figures are inside it.
"""

from __future__ import annotations

import base64
import html
import json
from collections import defaultdict

from companion.claims import natural
from companion.runs.curves import Points, draw

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


def claim_counts(rows: list[dict]) -> dict[str, dict[str, object]]:
    """For each claim, its sentence and in how many of the runs that computed it it held."""
    counts: dict[str, dict[str, object]] = {}
    for row in rows:
        for claim in row.get("values", {}).get(f"{row['stem']}.claims", []):
            if claim["holds"] is None:
                continue
            count = counts.setdefault(
                claim["id"], {"sentence": claim["sentence"], "held": 0, "of": 0}
            )
            count["held"] += bool(claim["holds"])
            count["of"] += 1
    return dict(sorted(counts.items(), key=lambda item: natural(item[0])))


def swept(rows: list[dict]) -> dict[str, list]:
    """The parameters that differ between runs, with their values in order."""
    values: dict[str, list] = defaultdict(list)
    for row in rows:
        for name, value in row["given"].items():
            if value not in values[name]:
                values[name].append(value)
    return {name: each for name, each in values.items() if len(each) > 1}


def page(rows: list[dict]) -> str:
    """The whole page as HTML."""
    done = [row for row in rows if row["status"] == "done"]
    title = html.escape(f"Sweep of {rows[0]['stem']}")
    seconds = sum(row["seconds"] for row in rows)
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>",
        f"<p>{len(done)} runs done, {len(rows) - len(done)} failed, "
        f"{seconds:.0f} seconds of runs in all.</p>",
    ]
    counts = claim_counts(done)
    if counts:
        parts.append("<h2>Claims</h2>")
        held = [
            [id, about["sentence"], f"{about['held']} of {about['of']} runs"]
            for id, about in counts.items()
        ]
        parts.append(_table(["", "Claim", "Held in"], held))
    figures = _figures(done)
    if figures:
        parts += ["<h2>Over the grid</h2>", *figures]
    axes = swept(rows)
    lines = []
    for row in rows:
        values = [json.dumps(row["given"].get(name)) for name in axes]
        lines.append([*values, row["status"], f"{row['seconds']:.1f}", row["error"]])
    parts += ["<h2>Runs</h2>", _table([*axes, "status", "seconds", "error"], lines)]
    return "\n".join([*parts, "</body></html>\n"])


def _table(head: list[str], rows: list[list[object]]) -> str:
    def cells(row: list[object], tag: str) -> str:
        return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)

    body = "".join(
        f"<tr{' class=failed' if 'failed' in row else ''}>{cells(row, 'td')}</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def _figures(rows: list[dict]) -> list[str]:
    """A figure for each recorded number that varies, against the first axis that is no seed."""
    axes = swept(rows)
    if not axes:
        return []
    across = next((name for name in axes if name != "seed"), "seed")
    lines = next((name for name in axes if name not in (across, "seed")), None)
    figures = []
    for name in _numbers(rows)[:MOST_FIGURES]:
        curves: dict[str, Points] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            value, place = row["values"].get(name), row["given"].get(across)
            if value is not None:
                label = "" if lines is None else f"{lines} = {json.dumps(row['given'].get(lines))}"
                number = isinstance(place, (int, float)) and not isinstance(place, bool)
                at = float(place) if number else json.dumps(place)
                curves[label][at].append(float(value))
        data = base64.b64encode(draw(curves, across, name)).decode()
        alt = html.escape(f"{name} against {across}: mean of the runs, and their range")
        figures.append(f'<figure><img src="data:image/png;base64,{data}" alt="{alt}"></figure>')
    return figures


def _numbers(rows: list[dict]) -> list[str]:
    """Names of recorded numbers that are not the same in all runs."""
    seen: dict[str, set] = defaultdict(set)
    for row in rows:
        for name, value in row["values"].items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                seen[name].add(value)
    return [name for name, values in seen.items() if len(values) > 1]
