"""What the book knows of each run of each chapter: read, never written."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field

import yaml

from companion.files import ROOT, seal
from companion.runs import chapters
from companion.runs.fingerprint import fingerprint
from companion.runs.gpu_jobs import COSTS, jobs_of
from companion.runs.records import load_records
from companion.runs.store import kept

RECORDED = "book/recorded"  # below ROOT, as Sphinx names files


@dataclass(frozen=True)
class Run:
    """One run of a chapter, stored in its notebook or recorded, as the book shows it.

    name: its column in the scoreboard. claims: fields of `companion.claims.Claim`, by id.
    seconds: None where it is not known. record: the whole record; empty for the stored run.
    stale: whether the chapter's code has changed since. data: sha256 by data set.
    held: of a sweep instead of claims: in how many of its runs each claim held.
    """

    name: str
    profile: str
    claims: dict[str, dict]
    command: str
    seconds: float | None
    stale: bool
    machine: str = ""
    device: str = ""
    date: str = ""
    status: str = "complete"
    data: dict[str, str] = field(default_factory=dict)
    record: dict = field(default_factory=dict, repr=False)
    held: dict[str, dict] = field(default_factory=dict)


def papers() -> list[dict]:
    """The ten papers of book/papers.yml, in order."""
    return yaml.safe_load((ROOT / "book" / "papers.yml").read_text(encoding="utf-8"))


def stored_run(stem: str) -> Run:
    """The run whose outputs the chapter's notebook holds."""
    path = chapters.find(stem)
    notebook = chapters.read(path)
    values = chapters.recorded_values(notebook)
    about = notebook["metadata"].get("companion", {})
    return Run(
        name="stored",
        profile=str(values.get(f"{stem}.settings", {}).get("profile", "")),
        claims=_by_id(values.get(f"{stem}.claims", [])),
        command=f"companion run {stem}",
        seconds=about.get("seconds"),
        stale=about.get("fingerprint") != fingerprint(path),
        machine="a CPU",
        device="cpu",
    )


def recorded_runs(stem: str) -> list[Run]:
    """Every recorded run of a chapter, oldest first."""
    runs = []
    for record in load_records(stem):
        where, values = record.get("provenance", {}), record.get("values", {})
        runs.append(
            Run(
                name=record["name"],
                profile=str(record.get("profile", "")),
                claims=_by_id(values.get(f"{stem}.claims", [])),
                command=record.get("command", ""),
                seconds=record.get("seconds"),
                stale=record["stale"],
                machine=where.get("hardware", ""),
                device=where.get("device", ""),
                date=where.get("date", ""),
                status=record.get("status", "unfinished"),
                data=record.get("data") or values.get(f"{stem}.data", {}),
                record=record,
            )
        )
    return runs


def kept_sweeps(stem: str) -> list[Run]:
    """Every kept sweep of a chapter, by name."""
    return [
        Run(
            name=about["name"],
            profile="",
            claims={},
            command=about["command"],
            seconds=about["seconds"],
            stale=about["stale"],
            machine=about["provenance"].get("hardware", ""),
            device=about["provenance"].get("device", ""),
            date=about["provenance"].get("date", ""),
            status=f"{about['runs']} runs",
            held=about["claims"],
        )
        for about in kept(stem)
    ]


def _by_id(claims: list[dict]) -> dict[str, dict]:
    return {claim["id"]: claim for claim in claims}


def verdict_counts(run: Run) -> Counter:
    """How many claims of a run have each verdict."""
    return Counter(claim["verdict"] for claim in run.claims.values())


def is_unexpected(claim: dict) -> bool:
    """Whether an asserted claim came out otherwise than specified (as `Claim.failed`)."""
    return claim["asserted"] and claim["holds"] is not claim["expected"]


def gpu_command(stem: str) -> str:
    """The command that makes the records of a chapter that a GPU machine should show."""
    return f"companion gpu --only {' '.join(job.name for job in jobs_of(stem))}"


def costs(stem: str, runs: list[Run]) -> list[tuple[str, str, str, str]]:
    """Each profile of a chapter: its name, its data set, its time on a CPU and on a GPU.

    runs: of the chapter; the shortest that took a profile whole gives its time. Others are
    estimates, and say so.
    """
    presets = chapters.presets(chapters.find(stem))
    usual = chapters.defaults(chapters.find(stem)).get("dataset", "made")
    rows = []
    for profile, preset in presets.items():
        times = []
        for device, estimate in zip(("cpu", "cuda"), COSTS[stem][profile], strict=True):
            measured = [
                run.seconds
                for run in runs
                if (run.profile, run.device, run.status) == (profile, device, "complete")
                and run.seconds is not None
            ]
            shown = shown_time(min(measured, default=estimate))
            times.append(shown if measured else f"about {shown}, estimated")
        rows.append((profile, str(preset.get("dataset", usual)), *times))
    return rows


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
    path = ROOT / RECORDED / "benchmarks.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for stem, result in found.items():
        if result.get("seal") != seal(result):
            raise ValueError(f"{path}: the results of {stem} are not as they were written")
    return found
