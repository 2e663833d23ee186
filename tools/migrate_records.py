"""Bring the records and sweeps of before claims were data to the typed form, numbers untouched."""

import json
from pathlib import Path

from companion.notebook.checking import NOT_REPRODUCED, NOT_RUN, REPRODUCED, Verdict
from companion.runs.record import Held, Run, Sweep, load, save

OUTCOME = {True: REPRODUCED, False: NOT_REPRODUCED, None: NOT_RUN}


def verdict(old, profile):
    ours = "" if old["holds"] is None else old["ours"]
    return Verdict(old["id"], OUTCOME[old["holds"]], old["asserted"], profile, said=ours)


def run(path):
    old = json.loads(path.read_text(encoding="utf-8"))
    stem, values = old["stem"], old["values"]
    claims = values.pop(f"{stem}.claims")
    settings = values.pop(f"{stem}.settings")
    assert settings == {k: v for k, v in old["parameters"].items() if k in settings}, path
    return Run(
        stem,
        old["name"],
        old["status"],
        old["profile"],
        old["parameters"],
        {claim["id"]: verdict(claim, old["profile"]) for claim in claims},
        data=values.pop(f"{stem}.data", {}),
        values=values,
        seconds=old["seconds"],
        command=old["command"],
        fingerprint=old["fingerprint"],
        provenance=old["provenance"],
        peak_memory=old["peak_memory"],
        figures=old["figures"],
    )


def sweep(path):
    old = json.loads(path.read_text(encoding="utf-8"))
    claims = {id: Held(c["held"], c["of"]) for id, c in old["claims"].items()}
    return Sweep(
        old["stem"],
        old["name"],
        old["command"],
        old["fingerprint"],
        old["runs"],
        old["seconds"],
        claims,
        old["provenance"],
        old["table"],
    )


for path in sorted(Path("book/recorded").glob("*/*.json")):
    kept = run(path)
    save(kept, path)
    assert load(path).values == kept.values
for path in sorted(Path("book/recorded").glob("*/sweeps/*.json")):
    save(sweep(path), path)
    load(path, Sweep)
