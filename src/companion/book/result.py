"""The first screen of a chapter: its result box, and the fold that says how to run it."""

from __future__ import annotations

import re

from docutils import nodes

from companion.book import tables
from companion.book.evidence import SOME, chapter_of
from companion.book.fold import folded
from companion.book.pages import parameter_rows
from companion.book.runs import about, costs
from companion.notebook.bounds import number
from companion.notebook.checking import NOT_REPRODUCED, NOT_RUN, REPRODUCED
from companion.notebook.claims import load_claims
from companion.runs import chapters
from companion.runs.record import Run, Sweep

# what a claim came to over all runs, worst first: class, how a list of them begins
STATES = {
    NOT_REPRODUCED: ("fails", "not reproduced"),
    SOME: ("mixed", SOME),
    NOT_RUN: ("open", "not run yet"),
    REPRODUCED: ("holds", "reproduced"),
}


def result_box(env, paper: str, runs: list[Run], sweeps: list[Sweep]) -> nodes.container:
    """How many of the paper's claims were reproduced, and its main number beside ours."""
    rows = chapter_of({"stem": paper}, [*runs, *sweeps]).rows
    mine = {row.claim.id: row.standing for row in rows if row.claim.kind == "paper"}
    own = {row.claim.id: row.standing for row in rows if row.claim.kind != "paper"}
    kept = sum(state == REPRODUCED for state in mine.values())
    box = nodes.container("", classes=["result-box"])
    left = nodes.container("", classes=["result-claims"])
    left += nodes.paragraph(
        "", "", tables.strong(f"{kept} of {len(mine)} claims of the paper reproduced")
    )
    left += bar(mine)
    for state, (kind, said) in STATES.items():
        if state != REPRODUCED and (ids := [id for id, s in mine.items() if s == state]):
            left += nodes.paragraph("", f"{said}: ", *_links(ids), classes=["result-list", kind])
    if own:
        fine = sum(state == REPRODUCED for state in own.values())
        rest = [id for id, state in own.items() if state != REPRODUCED]
        line = nodes.paragraph(
            "", f"Our own checks: {fine} of {len(own)} reproduced", classes=["result-list"]
        )
        line += [nodes.Text("; not in all runs: "), *_links(rest)] if rest else []
        left += line
    box += left
    if main := about().get(paper, {}).get("main"):
        box += _main_number(paper, main, runs)
    return box


def bar(states: dict[str, str]) -> nodes.raw:
    """A bar with a part for each state, worst first; its text is the counts."""
    counts = {state: sum(s == state for s in states.values()) for state in STATES}
    said = ", ".join(f"{count} {STATES[state][1]}" for state, count in counts.items() if count)
    parts = "".join(
        f'<span class="{STATES[state][0]}" style="flex-grow:{count}"></span>'
        for state, count in counts.items()
        if count
    )
    text = f'<div class="result-bar" role="img" aria-label="{said}">{parts}</div>'
    return nodes.raw("", text, format="html")


def _links(ids: list[str]) -> list[nodes.Node]:
    """Claims as links to their rows of the page's table."""
    parts: list[nodes.Node] = []
    for id in ids:
        parts += [nodes.Text(", ")] if parts else []
        parts.append(nodes.reference(id, id, refuri=f"#claim-{id}", internal=True))
    return parts


def _singular(said: str) -> str:
    return re.sub(r"^1 (\w+)s\b", r"1 \1", said)


def _main_number(paper: str, main: dict, runs: list[Run]) -> nodes.container:
    """The paper's main number and that of each run, each with its setting."""
    where = main["reported"]
    (reported,) = (
        r for r in load_claims(paper)[where["claim"]].reported if r.what == where["what"]
    )
    source = "the author's code" if reported.certainty == "author-code" else "the paper"
    rows = [[source, f"{number(float(reported.value))}", f"{where['setting']}; {reported.at}"]]
    ours: dict[tuple[str, str], list[str]] = {}
    for run in sorted(runs, key=lambda run: run.name == "stored"):
        if run.values.get(main["value"]) is None:  # not measured there
            continue
        setting = [
            _singular(text.format(run.settings[name]))
            for name, text in main.get("settings", {}).items()
        ]
        seeds = run.values.get(f"{main['value']}.seeds")
        setting += [_singular(f"{len(seeds)} seeds")] if seeds else []
        beside = [
            f"{name} {number(run.values[value])}"
            for name, value in main.get("beside", {}).items()
            if run.values.get(value) is not None
        ]
        name = "default run" if run.name == "stored" else f"run {run.name}"
        value = _with_range(run.values[main["value"]], seeds)
        ours.setdefault((value, "; ".join([*setting, *beside])), []).append(name)
    # what does not depend on a run's data is the same in each of them: it is no confirmation
    rows += [
        ["default run" if len(ours) == 1 and "default run" in names else ", ".join(names), *row]
        for row, names in ours.items()
    ]
    right = nodes.container("", classes=["result-number"])
    right += nodes.paragraph("", "", tables.strong(main["what"]))
    right += tables.table(["", main["unit"], "setting"], rows, "result-main")
    return right


def _with_range(mean: float, seeds: list[float] | None) -> str:
    """A mean, with the range of what it is of."""
    if not seeds or len(seeds) < 2:
        return number(mean)
    return f"{number(mean)} ({number(min(seeds))} to {number(max(seeds))})"


def run_it(env, config, paper: str, runs: list[Run]) -> nodes.Element:
    """The fold with the command, the cost, the launch links and the parameters."""
    path = chapters.find(paper)
    stored = next((run for run in runs if run.name == "stored"), None)
    cost = f"{stored.seconds} s on one core" if stored and stored.seconds else ""
    command = tables.code(f"companion run {paper}")
    line = [tables.strong("Run it"), f" – {cost} – " if cost else " – ", command]
    options = config.html_theme_options
    repository, branch = (
        options.get("repository_url", ""),
        options.get("repository_branch", "main"),
    )
    project = repository.removeprefix("https://github.com/")
    colab = (
        f"https://colab.research.google.com/github/{project}/blob/{branch}/notebooks/{paper}.ipynb"
    )
    binder = (
        f"https://mybinder.org/v2/gh/{project}/{branch}?urlpath=lab/tree/notebooks/{paper}.ipynb"
    )
    launch = tables.paragraph(
        "Without an installation: ", tables.link("Colab", colab), ", ", tables.link("Binder", binder),
        ". Here: ", tables.code("make environment"), ", then ", tables.code(f".venv/bin/companion run {paper}"),
        "; ", tables.code(f"-p {_an_option(path)}"), " sets a parameter, ",
        tables.code(f"companion run {paper} -p profile {_a_profile(path)}"), " takes a profile.",
    )  # fmt: skip
    profiles = [[tables.code(profile), *more] for profile, *more in costs(paper, runs)]
    head = ["Profile", "Data", "On a CPU (one or two cores)", "On a GPU (H100)"]
    source = chapters.code_cells(chapters.read(path))[0]["source"]
    rows = [
        [tables.code(name), tables.code(value), said]
        for name, value, said in parameter_rows(source)
    ]
    return folded(
        line, launch, tables.table(head, profiles, "runs"),
        tables.table(["Parameter", "Default", "Meaning"], rows, "parameters"), classes="run-it",
    )  # fmt: skip


def _an_option(path) -> str:
    values = chapters.defaults(path)
    return f"seed {values['seed'] + 1}" if "seed" in values else next(iter(values))


def _a_profile(path) -> str:
    return ([*chapters.presets(path)][1:] or ["quick"])[0]


def see_also(env, paper: str) -> list[nodes.Node]:
    """Links to related chapters, with what relates them."""
    items = nodes.bullet_list()
    for other, why in about().get(paper, {}).get("see", {}).items():
        if link := tables.chapter_link(env, "", other):
            link["refexplicit"] = False  # takes the chapter's title
            items += nodes.list_item("", tables.paragraph(link, f": {why}."))
    return [items] if len(items) else []
