"""A tiny notebook, and waiting: what several tests share."""

import functools
import json
import os
import time
import traceback

from companion.runs import chapters


def outputs(notebook):
    return [output for cell in chapters.code_cells(notebook) for output in cell["outputs"]]


def tiny_notebook(folder, code):
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
