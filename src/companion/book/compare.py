"""The runs of a chapter beside each other: a column a run, the paper's values as one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from docutils import nodes

from companion.book import tables
from companion.book.evidence import SINCE
from companion.book.fold import folded
from companion.book.runs import RECORDED, shown_seconds
from companion.notebook.bounds import number
from companion.notebook.checking import NOT_RUN, REPRODUCED, SIGNS, Verdict, as_measured, css
from companion.notebook.claims import Claim, Quantity, load_claims
from companion.runs.curves import PLACE, Points
from companion.runs.record import CURRENT, DONE, STALE, Held, Run, Sweep
from companion.runs.records import FOLDER

DEFAULT = "default run"


def check_names(paper: str, runs: list[Run], sweeps: list[Sweep]) -> None:
    """Raise ValueError for a run and a sweep of one chapter with the same name."""
    names = [run.name for run in runs] + [sweep.name for sweep in sweeps]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{paper}: {', '.join(twice)} names two runs or sweeps: rename one")


SHORT = 8  # lines of a table that is not folded


def title_of(kept: Run | Sweep) -> str:
    """What a run or a sweep is called at the head of its column."""
    if isinstance(kept, Sweep):
        return f"sweep {kept.name}"
    return DEFAULT if kept.name == "stored" else kept.name


def comparisons(paper: str, kept: list[Run | Sweep]) -> list[nodes.Node]:
    """The paper's claims in one table, and two more that are folded: the values of claims that
    have several, and our own checks."""
    mine, own = (
        [
            claim
            for claim in load_claims(paper).values()
            if (claim.kind == "paper") == papers
            and any(_was_measured(claim, run) for run in kept[1:])
        ]
        for papers in (True, False)
    )
    out: list[nodes.Node] = [comparison(mine, kept, parts=False)] if mine else []
    if several := [claim for claim in mine if len(claim.quantities) > 1]:
        said = f"Each value of {', '.join(claim.id for claim in several)}"
        out.append(folded(said, comparison(several, kept)))
    if own:
        held = [
            all(_held(claim, run) for run in kept if _was_measured(claim, run)) for claim in own
        ]
        said = f"Our own checks: {sum(held)} of {len(own)} reproduced in all runs that have them"
        out.append(folded(said, comparison(own, kept)))
    return out


def comparison(
    claims: Iterable[Claim], kept: list[Run | Sweep], *, parts: bool = True
) -> nodes.table:
    """Claims: what the paper reports, and what each run measured, with its bound.

    The paper's values stand behind the claim's sentence, which has the width of the table; a bound
    that is the same for all runs stands once. parts: a line for each value of a claim that has
    several; without, the verdicts only.
    """
    head: list = ["Value (bound)"]
    for run in kept:
        under = f"{run.runs} runs" if isinstance(run, Sweep) else _setting(run)
        head.append([tables.strong(title_of(run)), under, *tables.stale(run)])
    rows: list[list] = []
    for claim in claims:
        verdicts = [_verdict(claim, run) for run in kept]
        several = list(claim.quantities.values())
        rows.append([_sentence(claim, one=several[0] if len(several) == 1 else None, parts=parts)])
        if len(several) == 1:  # one line for the verdict and the quantity
            means, measured = _line(claim, several[0], kept)
            beside = [[v, value] for v, value in zip(verdicts, measured, strict=True)]
            rows.append([means, *beside])
            continue
        rows.append([f"{len(several)} values" if several else "", *verdicts])
        for quantity in several if parts else ():
            means, measured = _line(claim, quantity, kept)
            reported = "; ".join(_reported(claim, quantity))
            rows.append([f"{means}; paper: {reported}" if reported else means, *measured])
    made = tables.table(head, rows, "comparison")
    for line, row in zip(list(made.findall(nodes.row))[1:], rows, strict=True):
        if len(row) == 1:  # the sentence of a claim
            line["classes"].append("claim")
            line[0]["morecols"] = len(head) - 1
    return made


def _sentence(claim: Claim, one: Quantity | None, *, parts: bool) -> nodes.paragraph:
    """A claim, and what the paper reports of it but for what stands beside a quantity.

    one: the claim's only quantity. parts: with the values that belong to none of ours, which
    the table of claims has too.
    """
    values = _reported(claim, one) if one else []
    if parts:
        values += [str(reported) for reported in claim.reported if not reported.quantity]
    said = nodes.paragraph("", "", tables.strong(claim.id), nodes.Text(f" {claim.says}"))
    if values:
        said += nodes.inline("", f" Paper: {'; '.join(values)}", classes=["of-paper"])
    return said


def _setting(run: Run) -> str:
    said = str(run.settings.get("dataset", ""))
    return "" if said == run.name else said


def _was_measured(claim: Claim, run: Run | Sweep) -> bool:
    found = run.claims.get(claim.id)
    return found is not None and (isinstance(found, Held) or found.outcome != NOT_RUN)


def _held(claim: Claim, run: Run | Sweep) -> bool:
    """Whether a claim that was measured was reproduced, by a sweep in each of its runs."""
    found = run.claims[claim.id]
    if isinstance(found, Held):
        return found.held == found.of
    return found.outcome == REPRODUCED


def _verdict(claim: Claim, run: Run | Sweep) -> nodes.Node | str:
    found = run.claims.get(claim.id)
    if isinstance(found, Held):
        kind = "holds" if found.held == found.of else "fails" if not found.held else "mixed"
        return tables.pill(f"{found.held} of {found.of}", kind)
    if found is None or found.outcome == NOT_RUN:
        return "–"
    kind = css(found.outcome) + ("" if found.asserted else " hollow")
    pill = nodes.inline("", SIGNS[found.outcome], classes=["verdict", *kind.split()])
    pill += nodes.inline("", f" {found.words(claim)}", classes=["words"])
    return pill


def _line(claim: Claim, quantity: Quantity, kept: list[Run | Sweep]) -> tuple[str, list[str]]:
    """What a quantity means and each run's value, with the bound where all have the same one."""
    found = [run.claims.get(claim.id) for run in kept]
    values = [_measured(quantity, one) for one in found]
    bounds = [_bound(quantity, one) for one in found]
    said = {bound for bound in bounds if bound}
    if quantity.is_truth or not said:
        return quantity.means, values
    if len(said) == 1:
        return f"{quantity.means} ({said.pop()})", values
    return quantity.means, [
        f"{value} ({bound})" if bound else value
        for value, bound in zip(values, bounds, strict=True)
    ]


def _bound(quantity: Quantity, found: Verdict | Held | None) -> str:
    """The bound that judged a run, or those of a sweep's runs; "" for what it did not measure."""
    if found is None or quantity.name not in found.measured:
        return ""
    profiles = [found.profile] if isinstance(found, Verdict) else found.profiles or [""]
    return " or ".join(dict.fromkeys(map(quantity.wanted, profiles)))


def _measured(quantity: Quantity, found: Verdict | Held | None) -> str:
    """A measured value, or the range of several."""
    if found is None or (isinstance(found, Verdict) and found.outcome == NOT_RUN):
        return ""
    if quantity.name not in found.measured:
        return "–"
    shown = as_measured(found.measured[quantity.name])
    if isinstance(shown, list) and len(shown) < 2:
        return quantity.shown(shown[0]) if shown else "–"
    return quantity.shown(shown)


def _reported(claim: Claim, quantity: Quantity) -> list[str]:
    return [
        f"{number(r.value) if not isinstance(r.value, str) else r.value}"
        f"{'' if r.unit == '%' else ' '}{r.unit} ({r.at})"
        for r in claim.reported
        if r.quantity == quantity.name
    ]


def provenances(paper: str, runs: list[Run]) -> list[nodes.Element]:
    """Where the recorded runs come from, in one fold if there are several."""
    each = [provenance(paper, run) for run in runs]
    if len(each) < 2:
        return each
    line: list = [f"Machine, code and command of the {len(runs)} recorded runs"]
    line += [" ", *tables.stale(*runs)]
    return [folded(line, *each)]


def provenance(paper: str, run: Run) -> nodes.Element:
    """Where a recorded run comes from, folded."""
    at = run.provenance
    commit, packages = at.get("commit", ""), at.get("packages", {})
    facts: list = [
        ["Machine", f"{at.get('hardware', '')} ({at.get('device', '')})"],
        ["Date", at.get("date", "")],
        ["Time", shown_seconds(run.seconds)],
        ["Peak memory", _shown_memory(run.peak_memory)],
        ["Code", [
            tables.paragraph("commit ", tables.code(commit)) if commit else "commit not known",
            _shown_changes(run) if commit else "",
        ]],
        ["Packages", ", ".join(f"{name} {version}" for name, version in packages.items())],
        ["Data", [
            tables.paragraph(f"{name}: sha256 ", _checksum(checksum))
            for name, checksum in run.data.items()
        ] or "made or bundled"],
        ["Command", tables.code(run.command)],
    ]  # fmt: skip
    line: list = [
        tables.strong(run.name),
        f" – {shown_seconds(run.seconds)} on {at.get('hardware', '')}, {at.get('date', '')}",
    ]
    content: list[nodes.Node] = []
    if run.code != CURRENT:
        line += [" ", *tables.older(run)]
        content.append(tables.paragraph(f"{SINCE[run.code]} The command repeats the run."))
    return folded(
        line, *content, tables.table(["Run", run.name], facts, "facts"), classes="provenance"
    )


def unfinished(run: Run) -> list[nodes.Node]:
    """A warning for a run that is no evidence."""
    if run.status == DONE:
        return []
    why = f": {run.error}" if run.error else ""
    return [
        nodes.warning(
            "", tables.paragraph(f"The run {run.name} is {run.status}{why}. It is no evidence.")
        )
    ]


def measures(paper: str, runs: list[Run]) -> list[nodes.Node]:
    """What runs recorded as their `measures`: a line each, of all runs in one table."""
    found = {
        title_of(run): values for run in runs if (values := run.values.get(f"{paper}.measures"))
    }
    if not found:
        return []
    lines = [line for values in found.values() for line in values.values()]
    columns = list(dict.fromkeys(name for line in lines for name in line))
    rows = [
        [tables.strong(name), line, *(_shown_measure(values.get(column)) for column in columns)]
        for name, several in found.items()
        for line, values in several.items()
    ]
    made = tables.table(["Run", "", *columns], rows, "measures")
    if len(rows) <= SHORT:
        return [made]
    return [folded(f"Each measured case of {', '.join(found)}", made)]


def _shown_measure(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(map(_shown_measure, value))
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def figures(paper: str, runs: list[Run], wanted: Sequence[str] = ()) -> list[nodes.Node]:
    """The figures of recorded runs in one fold, those of a figure below each other.

    A picture that several runs share stands once. If all have it, it does not depend on the data:
    the page has it already.
    wanted: names without "fig-" and the paper's, in the order of the page; none: all.
    Raises ValueError for one that no run has.
    """
    prefix = f"fig-{paper.replace('_', '-')}-"
    several: dict[str, dict[str, dict]] = {}
    for run in runs:
        for about in run.figures:
            name = about["name"].removesuffix(f"-{run.name}").removeprefix(prefix)
            several.setdefault(name, {})[run.name] = about
    if not several:
        return []
    if unknown := set(wanted) - several.keys():
        raise ValueError(
            f"figures: no run of {paper} recorded {', '.join(sorted(unknown))}; there are "
            + ", ".join(several)
        )
    shown: list[nodes.Node] = []
    for name in wanted or several:
        found = several[name]
        pictures: dict[str, list[str]] = {}
        for sharing, about in found.items():
            pictures.setdefault(about["sha256"], []).append(sharing)
        if len(found) > 1 and len(pictures) == 1:
            continue
        title = name.replace("-", " ").capitalize()
        shown += [
            _image(paper, title, ", ".join(names), found[names[0]]) for names in pictures.values()
        ]
    drawn = ", ".join(run.name for run in runs if run.figures)
    return (
        [folded(f"The page's figures under the recorded runs: {drawn}", *shown)] if shown else []
    )


def _image(paper: str, title: str, run: str, about: Mapping[str, str]) -> nodes.container:
    image = nodes.image(
        uri=f"/{RECORDED}/{paper}/{about['file']}",
        # not the record's caption, which tells what was seen in the default run
        alt=f"{title}, drawn by the run {run}: described with the figure of this name above",
        loading="lazy",
    )
    if width := _shown_width(FOLDER / paper / about["file"]):
        image["width"] = f"{width}px"
    box = nodes.container(
        "", tables.paragraph(tables.strong(title), f", {run}"), image, classes=["recorded"]
    )
    box["ids"].append(nodes.make_id(about["name"]))
    return box


def _shown_width(file: Path) -> int:
    """Pixels at which a page shows a picture: a hundred to its inch; 0 if it has no size."""
    from PIL import Image

    with suppress(OSError), Image.open(file) as picture:
        density = picture.info.get("dpi", (100, 100))[0]
        return round(picture.width * min(1.0, 100 / density))
    return 0


def read_points(paper: str, runs: list[Run], pattern: str) -> dict[str, Points]:
    """By run, the values that it recorded under names such as `snip.error.snip.{x}`.

    A list beside it, `NAME.seeds`, gives the values that a mean is of. What is in a mapping has
    its name behind a dot, as in the columns of a sweep: `NAME.KEY`, and `NAME.KEY.0` in a list.
    """
    form = re.compile(re.escape(pattern).replace(re.escape(PLACE), r"(?P<x>[-\d.]+)"))
    found: dict[str, Points] = {}
    for run in runs:
        points: Points = {}
        for name, value in _flat(run.values).items():
            match = form.fullmatch(name)
            if match and isinstance(value, (int, float)) and math.isfinite(value):
                points[float(match["x"])] = list(run.values.get(f"{name}.seeds") or [value])
        if points:
            found[title_of(run)] = points
    return found


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, and those in mappings by the road to them."""
    found: dict[str, Any] = dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            for key, item in _flat(value).items():
                found[f"{name}.{key}"] = item
                if isinstance(item, list):
                    found |= {f"{name}.{key}.{place}": one for place, one in enumerate(item)}
    return found


def paper_points(paper: str, pattern: str, stored: Run) -> Points:
    """The paper's values by x: its curve that the default run recorded under names such as
    `snip.reported.{x}`, or the values whose text is such as `LeNet-300-100 at {x} %`."""
    if pattern.startswith(f"{paper}."):
        return read_points(paper, [stored], pattern).get(title_of(stored), {})
    form = re.compile(re.escape(pattern).replace(re.escape(PLACE), r"(?P<x>[-\d.]+)"))
    return {
        float(match["x"]): [float(reported.value)]
        for claim in load_claims(paper).values()
        for reported in claim.reported
        if (match := form.fullmatch(reported.what))
    }


def _checksum(text: str) -> nodes.literal:
    return nodes.literal(text, text, classes=["checksum"])


def _shown_changes(run: Run) -> str:
    """What is known of changes after the commit; a run of current code had this book's."""
    changed = run.provenance.get("changed_since_commit")
    if changed is not False and run.code != STALE:
        when = "" if run.code == CURRENT else "an earlier commit of "
        return f"the chapter's code and the library below it were those of {when}this book"
    if changed is None:
        return "whether it was changed since is not known"
    return "with changes that were not committed" if changed else ""


def _shown_memory(peak: dict[str, float]) -> str:
    kinds = {"process_mb": "of the process", "gpu_mb": "on the GPU"}
    told = [f"{peak[key]:,.0f} MB {kind}" for key, kind in kinds.items() if key in peak]
    return ", ".join(told) or "not known"
