"""What the book knows of each run of each chapter: read, never written."""

from __future__ import annotations

import copy
import functools
import json
import math

import yaml

from companion.files import ROOT, seal
from companion.notebook.bounds import Bound
from companion.notebook.checking import margin
from companion.notebook.claims import Claim, load_claims
from companion.notebook.parameters import PLACES
from companion.runs import chapters
from companion.runs.fingerprint import standing
from companion.runs.gpu_jobs import BUDGET, COSTS, jobs_of
from companion.runs.record import DONE, STALE, Run, Sweep
from companion.runs.records import load_records
from companion.runs.store import kept

RECORDED = "book/recorded"  # below ROOT, as Sphinx names files


def papers() -> list[dict]:
    """The papers of book/papers.yml, in order."""
    return _stated("papers.yml")


def about() -> dict[str, dict]:
    """What book/chapters.yml says of each chapter."""
    return _stated("chapters.yml")


def _stated(name: str):
    return copy.deepcopy(_parsed((ROOT / "book" / name).read_text(encoding="utf-8")))


_parsed = functools.lru_cache(maxsize=4)(yaml.safe_load)  # the book asks some fifty times


def stored_run(stem: str) -> Run:
    """The run whose outputs the chapter's notebook holds."""
    path = chapters.find(stem)
    notebook = chapters.read(path)
    about = notebook["metadata"].get("companion", {})
    return Run.of_values(
        stem,
        "stored",
        chapters.recorded_values(notebook),
        command=f"companion run {stem}",
        seconds=about.get("seconds"),
        fingerprint=about.get("fingerprint", ""),
        provenance={"hardware": "a CPU", "device": "cpu"},
        code=standing(path)(about.get("fingerprint", "")),
    )


def everything() -> dict[str, object]:
    """All claims, runs and sweeps of the book as JSON, for other people's tools."""
    return {
        stem: {
            "claims": {id: _statement(claim) for id, claim in load_claims(stem).items()},
            "runs": [
                _public(run) | _standing(run) | {"margins": _margins(run)}
                for run in [stored_run(stem), *load_records(stem)]
            ],
            "sweeps": [_public(sweep) | _standing(sweep) for sweep in kept(stem)],
        }
        for stem in chapters.stems()
    }


def _public(kept: Run | Sweep) -> dict[str, object]:
    return {k: v for k, v in kept.as_json().items() if k not in ("values", "figures", "seal")}


def _standing(kept: Run | Sweep) -> dict[str, object]:
    return {"code": kept.code, "stale": kept.code == STALE}


def _margins(run: Run) -> dict[str, float]:
    """How far each claim is from its bound, as `checking.margin`, where it has one."""
    stated = load_claims(run.paper)
    found = {id: margin(stated[id], verdict) for id, verdict in run.claims.items() if id in stated}
    return {id: share for id, share in found.items() if math.isfinite(share)}


def _ends(bound: Bound) -> dict[str, object]:
    """A bound as numbers: its ends, None where it has none, and which of them are outside."""
    if bound.truth is not None:
        return {"truth": bound.truth}
    finite = {name: getattr(bound, name) for name in ("low", "high")}
    return {name: end if math.isfinite(end) else None for name, end in finite.items()} | {
        "open_low": bound.open_low,
        "open_high": bound.open_high,
    }


def _statement(claim: Claim) -> dict[str, object]:
    return {
        "says": claim.says,
        "kind": claim.kind,
        "where": claim.where,
        "expected": claim.expected,
        "reported": [
            {key: value for key, value in vars(reported).items() if value not in ("", None)}
            for reported in claim.reported
        ],
        "quantities": {
            name: {
                "is": quantity.means,
                "unit": quantity.unit,
                "within": {profile: _ends(bound) for profile, bound in quantity.bounds.items()},
            }
            for name, quantity in claim.quantities.items()
        },
        "asserted": "all" if claim.asserted is None else list(claim.asserted),
        "needs": dict(claim.needs or {}),
        "depends": "all" if claim.depends is None else list(claim.depends),
        "settled": [
            {"on": str(settled.on), "before_looking": settled.before_looking, "why": settled.why}
            for settled in claim.settled
        ],
    }


def gpu_command(stem: str) -> str:
    """The command that makes the records of a chapter that a GPU machine should show.

    Its budget is enough for all of them one after the other.
    """
    jobs = jobs_of(stem)
    budget = 60 * math.ceil(sum(job.seconds for job in jobs) / 60) + 60
    longer = f" --budget {budget}" if budget > BUDGET else ""
    return f"companion gpu --only {' '.join(job.name for job in jobs)}{longer}"


def costs(stem: str, runs: list[Run]) -> list[tuple[str, str, str, str]]:
    """Each profile of a chapter: its name, its data set, its time on a CPU and on a GPU.

    runs: of the chapter; the shortest that took a profile whole gives its time. Others are
    estimates, and say so.
    """
    presets, defaults = (of(chapters.find(stem)) for of in (chapters.presets, chapters.defaults))
    usual = defaults.get("dataset", "made")
    rows = []
    for profile, preset in presets.items():
        times = []
        estimates = COSTS.get(stem, {}).get(profile, (None, None))
        for device, estimate in zip(("cpu", "cuda"), estimates, strict=True):
            measured = [
                run.seconds
                for run in runs
                if (run.profile, run.provenance.get("device"), run.status)
                == (profile, device, DONE)
                and run.seconds is not None
                and _is_whole(run, defaults | preset)
            ]
            if measured:
                times.append(shown_time(min(measured)))
            else:
                times.append(
                    (estimate and f"about {shown_time(estimate)}, estimated") or "not known"
                )
        cpu, gpu = times
        rows.append((profile, str(preset.get("dataset", usual)), cpu, gpu))
    return rows


def _is_whole(run: Run, profile: dict) -> bool:
    """Whether a run took a profile's values as they are, wherever it ran."""
    apart = PLACES | {"profile"}
    return all(
        run.settings.get(name, value) == value
        for name, value in profile.items()
        if name not in apart
    )


def shown_time(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            count = seconds / size
            return f"{count:,.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"
    return f"{seconds:.0f} s"


def shown_seconds(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds:,.0f} s"


def benchmarks() -> dict[str, dict]:
    """The committed benchmark results by stem; empty where there are none."""
    return _sealed_parts(_recorded("benchmarks"), "benchmarks")


def on_gpu() -> tuple[dict, dict[str, dict], dict[str, dict]]:
    """Of the last `companion gpu`: the card's limits, benchmark results by stem, checks by name."""
    found = _recorded("benchmarks-gpu")
    rows = _sealed_parts(found.get("chapters", {}), "benchmarks-gpu")
    return found.get("limits", {}), rows, _recorded("checks-gpu").get("checks", {})


def growth_on_gpu() -> dict[str, dict]:
    """Of the last `companion gpu`: how time grows with size, by stem; empty where not recorded."""
    return _sealed_parts(_recorded("growth-gpu").get("chapters", {}), "growth-gpu")


def _recorded(name: str) -> dict:
    path = ROOT / RECORDED / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _sealed_parts(found: dict[str, dict], name: str) -> dict[str, dict]:
    for stem, result in found.items():
        if result.get("seal") != seal(result):
            raise ValueError(f"{name}.json: the results of {stem} are not as they were written")
    return found
