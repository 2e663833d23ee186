"""How far a long loop is."""

import re
import sys

from companion.progress import Progress


def test_progress_needs_no_tqdm(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # as where it is not installed
    with Progress(2, "steps") as bar:
        bar.update(2)
    assert repr(bar) == "2 steps"
    assert capsys.readouterr().err == ""


def test_progress_ends_in_a_line_that_is_the_same_every_time():
    with Progress(3, "steps", show=False) as bar:
        for _ in range(2):
            bar.update()
        assert re.fullmatch(r"\[#{16}\.{8}\] 2/3 steps, \d+ s left", repr(bar))
        bar.update()
    assert repr(bar) == "3 steps"
