"""A tiny notebook, the book's example for Slurm, and waiting: what several tests share."""

import functools
import json
import os
import sys
import time
import traceback

from companion.files import ROOT
from companion.runs import chapters


def outputs(notebook):
    return [output for cell in chapters.code_cells(notebook) for output in cell["outputs"]]


def tiny_notebook(folder, code, tags=()):
    """tags: of its first cell."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "source": source,
            "outputs": [],
            "execution_count": None,
        }
        for number, source in enumerate(code)
    ]
    cells[0]["metadata"]["tags"] = list(tags)
    path = folder / "tiny.ipynb"
    path.write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    return path


def wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def apart(test):
    """Run a test in a process of its own: `torch.compile` leaves threads, and no later test
    could fork."""

    @functools.wraps(test)
    def wrapped(*arguments, **named):
        if (child := os.fork()) == 0:
            status = 1
            try:
                test(*arguments, **named)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0, "see the traceback on stderr"

    return wrapped


def slurm_example(notebook, out, tls, jobs, options=()):
    """The book's example for Slurm, with this Python, these files and so many jobs."""
    text = (ROOT / "book" / "sweeps.md").read_text(encoding="utf-8")
    example = next(part for part in text.split("```") if "SLURMCluster" in part)
    ours = {
        "python\n": "",
        "=100": f"={jobs}",
        '"/shared/paper-companion/.venv/bin/python"': repr(sys.executable),
        '"companion",': f"{sys.executable!r}, '-m', 'companion',",
        '"/shared/tls/cert.pem", "/shared/tls/key.pem"': repr([str(file) for file in tls[1:]])[
            1:-1
        ],
        '"snip",': f"*{[str(notebook), '--out', str(out), *options]!r},",
    }
    for theirs, here in ours.items():
        assert theirs in example
        example = example.replace(theirs, here)
    return example
