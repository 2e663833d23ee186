"""Runs of notebooks: kernels, what is stored of them, and commands that are stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import outputs, tiny_notebook, wait

from companion.__main__ import main
from companion.files import ROOT
from companion.runs import alike, chapters, executor, fingerprint
from companion.runs.processes import LIBRARY
from companion.runs.refresh import refresh


def test_refresh_gives_the_same_bytes_twice_and_refuses_stderr(tmp_path, monkeypatch):
    path = tiny_notebook(tmp_path, ["x = 2", "print(x); x + 1"])
    refresh(path)
    first = path.read_bytes()
    refresh(path)
    assert path.read_bytes() == first
    stored = chapters.read(path)
    assert [c["execution_count"] for c in chapters.code_cells(stored)] == [1, 2]
    assert [c["id"] for c in stored["cells"]] == ["tiny-00", "tiny-01"]

    notebook = json.loads(first)
    notebook["cells"][0]["source"] = "import sys; x = 2; print('oh', file=sys.stderr)"
    path.write_text(json.dumps(notebook))
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="cell 0 wrote to stderr"):
        refresh(path)
    assert path.read_bytes() == before


def test_what_a_kernel_sends_in_pieces_is_stored_in_one(tmp_path):
    pieces = """
import sys
for word in "one", "two":
    print(word, flush=True)
    sys.stdout._flush()
print("three", file=sys.stdout, flush=True)
"""
    path = tiny_notebook(tmp_path, [pieces + "display(1)\nprint('four')"])
    refresh(path)
    kinds = [(out["output_type"], out.get("text")) for out in outputs(chapters.read(path))]
    assert kinds == [
        ("stream", ["one\n", "two\n", "three\n"]), ("display_data", None), ("stream", ["four\n"])
    ]  # fmt: skip


def test_outputs_that_were_edited_are_noticed(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPANION_RECORD", raising=False)
    draw = "import matplotlib.pyplot as plt; plt.plot([{}]); plt.show()"
    show = "from companion.notebook import record; record('x', 0.25); print('ours: 3 %')"
    path = tiny_notebook(tmp_path, ["x = 2", draw.format("1, 2"), draw.format("2, 1"), show])
    refresh(path)
    assert fingerprint.is_untouched(path)
    text = path.read_text()

    def edited(change=None, old="", new=""):
        notebook = json.loads(text.replace(old, new) if old else text)
        if change:
            change(*notebook["cells"])
        path.write_text(json.dumps(notebook, indent=1))
        return not fingerprint.is_untouched(path)

    def strip(_, first, second, last):
        first["outputs"] = []

    def swap(_, first, second, last):
        first["outputs"], second["outputs"] = second["outputs"], first["outputs"]

    assert not edited(lambda *_: None)  # written in another way, and the same
    assert edited(strip)
    assert edited(swap)
    assert edited(old='"0.25"', new='"0.24"')
    assert edited(old="3 %\\n", new="2 %\\n")


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


GIVEN = """\
NUMBER = {0}


def listed():
    return {0}
"""


def test_a_kernel_that_is_slow_to_end_has_nothing_to_say(tmp_path, capfd):
    slow = """
import time
from ipykernel.iostream import IOPubThread
from ipykernel.kernelbase import Kernel

def late(self, status, channel, *rest, publish=Kernel._publish_status, sleep=time.sleep):
    if channel == "control" and status == "idle":
        sleep(0.5)
    publish(self, status, channel, *rest)

def close(self, sleep=time.sleep):
    self.socket.close()
    sleep(1)
    self.socket = None

Kernel._publish_status, IOPubThread.close = late, close
"""
    refresh(tiny_notebook(tmp_path, [slow]))
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_code_that_gives_the_same_is_told_from_code_that_does_not(tmp_path):
    root, package = tmp_path / "project", tmp_path / "project" / "src" / "companion"
    shutil.copytree(LIBRARY, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "given.py").write_text(GIVEN.format("1 + 1"))
    (root / "notebooks").mkdir()
    cells = [
        "from companion.given import NUMBER", "import time; print(NUMBER, 'in', time.time_ns())",
        "from companion.figures import show_source\nimport companion.given\n"
        "show_source(companion.given.listed)",
    ]  # fmt: skip
    path = tiny_notebook(root / "notebooks", cells)
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")

    def against(commit, number, *names):
        (package / "given.py").write_text(GIVEN.format(number))
        done = subprocess.run(
            [sys.executable, "-m", "companion", "refresh", *names, f"--against={commit}"],
            env=os.environ | {"PYTHONPATH": str(package.parent)}, capture_output=True, text=True,
        )  # fmt: skip
        last = (done.stdout + done.stderr).splitlines()[-1]
        assert "Error" not in done.stderr, done.stderr
        return last, chapters.read(path)["metadata"].get("companion", {}).get("alike")

    before = path.read_bytes()
    for commit in ("HEAD~7", f"--output={path}", ""):
        assert f"against = {commit!r}: expected a commit" in against(commit, "2", path)[0]
    assert path.read_bytes() == before  # nothing was run, nothing written
    said, alike = against("HEAD", "3 - 1", path)
    assert said == "tiny.ipynb with the code of HEAD: the same results"
    assert len(alike) == 1
    assert "against: expected the names of notebooks" in against("HEAD", "3 - 1")[0]
    # the time beside it hides nothing
    said, alike = against("HEAD", "3", path)
    assert said == "tiny.ipynb with the code of HEAD: other results in code cells 2"
    assert alike == []
    # where cells changed, what they record counts, not what they show
    record = "from companion.notebook import record\nrecord('tiny.number', NUMBER)\n'{}'"
    tiny_notebook(path.parent, [*cells, record.format("shown")])
    git(root, "add", ".")
    git(root, "commit", "-m", "two")
    tiny_notebook(path.parent, [*cells, record.format("shown otherwise")])
    said, alike = against("HEAD", "4 - 1", path)
    assert said == "tiny.ipynb with the code of HEAD: the same values, by changed cells"
    assert len(alike) == 1
    said, alike = against("HEAD", "4", path)
    assert said == "tiny.ipynb with the code of HEAD: other values: tiny.number"
    assert alike == []


VERDICTS = [{"id": "C1", "measured": {"lead": [1.0, 2.0]}}, {"id": "C2", "measured": {}}]


@pytest.mark.parametrize(
    ("today", "differ"),
    [
        ({}, set()),
        ({"tiny.claims": [VERDICTS[0], {"id": "C1b"}, VERDICTS[1]], "tiny.more": 3}, set()),
        ({"tiny.claims": [VERDICTS[1]]}, {"tiny.claims C1"}),
        ({"tiny.claims": [VERDICTS[0], VERDICTS[1] | {"outcome": "not run"}]}, {"tiny.claims C2"}),
        ({"tiny.curve": [1, 2, 3]}, {"tiny.curve"}),
        ({"tiny.empty": [1]}, {"tiny.empty"}),
        ({"own.claims": 4}, {"own.claims"}),
    ],
)
def test_what_is_recorded_besides_moves_nothing(today, differ):
    def notebook(values):
        outputs = [
            {"data": {"application/json": value}, "metadata": {"scrapbook": {"name": name}}}
            for name, value in values.items()
        ]
        return {"cells": [{"cell_type": "code", "source": "", "outputs": outputs}]}

    old = {"tiny.claims": VERDICTS, "tiny.curve": [1, 2], "tiny.empty": [], "own.claims": 3}
    found, _ = alike._differing([notebook(old)], [notebook(old | today)], alike._recorded)
    assert set(map(alike._place, found)) == differ


def test_where_claims_changed_the_cells_that_show_none_are_compared_as_well():
    def notebook(shown, claim):
        outputs = [{"name": "stdout", "text": [text]} for text in (shown, claim)]
        sources = ("print(loss)", "claims.check('C1', loss=loss)")
        return {
            "cells": [
                {"cell_type": "code", "source": source, "outputs": [output]}
                for source, output in zip(sources, outputs, strict=True)
            ]
        }

    for today, differ in ((("1.0", "in other words"), set()), (("1.5", "as before"), {1})):
        found, _ = alike._differing(
            [notebook("1.0", "as before")], [notebook(*today)], alike._but_claims
        )
        assert set(map(alike._place, found)) == differ


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_repository_around_this_checkout_is_not_asked(tmp_path, monkeypatch):
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "a.txt").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-m", "one")
    monkeypatch.setattr(alike, "ROOT", inner)
    with (
        pytest.raises(ValueError, match="against = 'HEAD': expected a commit of this checkout"),
        alike.tree_of("HEAD"),
    ):
        pass


@pytest.mark.parametrize(
    ("olds", "news", "differ", "undecided"),
    [
        (["1 a"], ["1 a"], [], False),
        (["1 a"], ["2 a"], [1], True),  # perhaps a time
        (["1 a", "1 a"], ["2 a", "2 a"], [1], False),
        (["1 a", "3 a"], ["2 a", "2 a"], [1], False),  # no noise in today's: it was mended
        (["1 a", "3 a"], ["2 a", "4 a"], [], False),
        (["1 a 7", "3 a 7"], ["2 a 8", "4 a 8"], [1], True),  # 7 and 8 may be rounded times
        (["1 a 7", "3 a 8"], ["2 a 8", "4 a 9"], [], False),
        (["1 a", "3 a"], ["2", "4"], [1], True),
        (["1|x", "2|x"], ["3|y", "4|y"], [2], False),  # the time in another cell hides nothing
        (["1 a"], ["1 ;a"], [], False),  # printed in one go and in two
    ],
)
def test_noise_is_what_differs_between_runs_of_either_code(olds, news, differ, undecided):
    def notebook(texts):
        return {
            "cells": [
                {
                    "cell_type": "code",
                    "source": "",
                    "outputs": [{"name": "stdout", "text": [part]} for part in text.split(";")],
                }
                for text in texts.split("|")
            ]
        }

    found, more = alike._differing([*map(notebook, olds)], [*map(notebook, news)], alike._shown)
    assert sorted({cell for cell, *_ in found}) == differ
    assert more is undecided


def test_a_notebook_that_changed_while_it_was_compared_is_not_marked(tmp_path):
    path = tiny_notebook(tmp_path, ["1"])
    refresh(path)
    compared = chapters.read(path)
    alike._note(path, compared, {"0" * 64}, differ=False)
    assert fingerprint.standing(path)("0" * 64) == "earlier"
    alike._note(path, compared, {"0" * 64}, differ=True)
    assert fingerprint.standing(path)("0" * 64) == "stale"
    tiny_notebook(tmp_path, ["2"])
    refresh(path)
    with pytest.raises(RuntimeError, match=r"tiny\.ipynb changed while it was compared"):
        alike._note(path, compared, {"0" * 64}, differ=False)


@pytest.fixture
def poisoned(tmp_path, monkeypatch):
    """Whatever Jupyter, IPython and Python may find on a machine, set against us."""
    home, data = tmp_path / "home", tmp_path / "jupyter"
    poison = "import builtins; builtins.POISON = True"
    start = home / ".ipython" / "profile_default"
    (start / "startup").mkdir(parents=True)
    (start / "startup" / "00.py").write_text(poison)
    for name in ("ipython_config.py", "ipython_kernel_config.py"):
        (start / name).write_text(f"c.InteractiveShellApp.exec_lines = [{poison!r}]")
    (home / "start.py").write_text(poison)
    (home / ".config" / "matplotlib").mkdir(parents=True)
    (home / ".config" / "matplotlib" / "matplotlibrc").write_text("lines.linewidth: 77")
    # a kernel called python3 and a library called companion, here, there and everywhere
    for folder in (data, home / ".local" / "share" / "jupyter"):
        (folder / "kernels" / "python3").mkdir(parents=True)
        argv = [sys.executable, "-c", "raise SystemExit('poison')", "{connection_file}"]
        spec = {"argv": argv, "display_name": "Python 3", "language": "python"}
        (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    for folder in (tmp_path, home / "lib"):
        (folder / "companion").mkdir(parents=True)
        (folder / "companion" / "__init__.py").write_text(poison)
    for name, value in {
        "HOME": home, "JUPYTER_PATH": data, "IPYTHONDIR": home / ".ipython",
        "PYTHONSTARTUP": home / "start.py", "PYTHONPATH": home / "lib",
        "XDG_CONFIG_HOME": home / ".config", "XDG_CACHE_HOME": tmp_path / "cache",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return home


def test_the_kernel_has_this_interpreter_and_library_whatever_else_there_is(poisoned, tmp_path):
    path = tiny_notebook(tmp_path, SHOW_WHERE)
    before = set(poisoned.rglob("*"))  # matplotlib's cache of fonts lies elsewhere
    refresh(path)
    assert main(["run", str(path), "-o", str(tmp_path / "out.ipynb")]) == 0
    expected = f"{sys.executable} {ROOT / 'src' / 'companion'} False 1.5\n"
    for file in (path, tmp_path / "out.ipynb"):
        assert "".join(outputs(chapters.read(file))[-1]["text"]) == expected
    assert set(poisoned.rglob("*")) == before  # and the home is left alone


SHOW_WHERE = [
    "profile: str = 'quick'  # preset",
    "import builtins, sys\nfrom pathlib import Path",
    "import companion\nfrom matplotlib import rcParams\n"
    "print(sys.executable, Path(companion.__file__).parent, hasattr(builtins, 'POISON'), "
    "rcParams['lines.linewidth'])",
]


def test_a_kernel_with_another_library_does_not_start(tmp_path, monkeypatch, capfd):
    from companion.runs import kernels

    other = kernels.START.replace(f"serve({str(LIBRARY)!r})", "serve('/another/companion')")
    assert other != kernels.START
    monkeypatch.setattr(kernels, "START", other)
    path = tiny_notebook(tmp_path, ["1"])
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="Kernel died"):
        refresh(path)
    assert "not that in /another/companion" in capfd.readouterr().err
    assert path.read_bytes() == before


BUSY = """import os, subprocess, time
child = subprocess.Popen(["sleep", "100"])
text = f"{os.getpid()} {child.pid} {os.environ['IPYTHONDIR']}"
open("begun.tmp", "w").write(text); os.rename("begun.tmp", "begun")
while True: pass"""


@pytest.mark.parametrize("command", ["refresh", "run"])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_kernels_end_with_a_command_that_is_stopped(tmp_path, is_alive, command, sign):
    path = tiny_notebook(tmp_path, ["seed: int = 0  # seed", "x = 1", BUSY])
    before = path.read_bytes()
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    options = ["-o", str(tmp_path / "out.ipynb")] if command == "run" else []
    process = subprocess.Popen(
        [sys.executable, "-m", "companion", command, str(path), *options],
        stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(temporary)}, cwd=tmp_path,
    )  # fmt: skip
    wait(lambda: (tmp_path / "begun").exists())
    kernel, child, folder = (tmp_path / "begun").read_text().split()
    assert is_alive(int(kernel))
    assert Path(folder).is_relative_to(temporary)
    process.send_signal(sign)
    said = process.communicate(timeout=60)[1]
    wait(lambda: not is_alive(int(kernel)) and not is_alive(int(child)))
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["begun", "tiny.ipynb", "tmp"]
    if sign == signal.SIGKILL:
        assert process.returncode == -sign
        return
    assert process.returncode == 128 + sign
    line = said.splitlines()[-1]
    assert "Traceback" not in said
    assert command == "run" or said == f"{line}\n"  # a run shows its progress before
    assert re.match("companion: (interrupted|terminated);", line)
    assert list(temporary.iterdir()) == []


def test_figures_are_stored_whatever_backend_is_set_outside_and_without_a_home(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", "/dev/null/home")  # where nothing can be made, as if read-only
    monkeypatch.setenv("MPLBACKEND", "Agg")
    path = tiny_notebook(
        tmp_path, ["x = 2", "import matplotlib.pyplot as plt; plt.plot([x]); plt.show()"]
    )
    refresh(path)
    assert "image/png" in outputs(chapters.read(path))[0]["data"]


def test_a_path_among_the_parameters_is_the_callers(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    code = ["name: str = ''  # a file", "x = 1", "open(name, 'w').close()"]
    path = tiny_notebook(tmp_path / "notebooks", code)
    monkeypatch.chdir(tmp_path)
    outcome = executor.run(path, {"name": "mine"}, tmp_path / "out.ipynb", show=False)
    assert outcome == executor.Outcome()
    assert (tmp_path / "mine").is_file()


@pytest.mark.skipif(os.name != "posix", reason="needs Unix sockets")
@pytest.mark.parametrize(("depth", "transport"), [(1, "ipc"), (60, "tcp")])
def test_a_kernel_is_met_in_a_folder_of_its_own_where_the_name_of_a_socket_fits(
    tmp_path_factory, monkeypatch, depth, transport
):
    folder = tmp_path_factory.mktemp("a")
    temporary = folder / ("t" * depth)
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    show = (
        "from ipykernel.connect import get_connection_info\n"
        "print(get_connection_info(unpack=True)['transport'])"
    )
    path = tiny_notebook(folder, ["x = 1", show])
    assert executor.run(path, {}, folder / "out.ipynb", show=False) == executor.Outcome()
    assert "".join(outputs(chapters.read(folder / "out.ipynb"))[-1]["text"]) == f"{transport}\n"


@pytest.mark.parametrize(
    "last",
    [
        "",
        "atexit.register(lambda: print('bye: bye', file=sys.stderr))",
        "atexit.register(lambda: 1 / 0)",
        "Thread(target=lambda: (time.sleep(0.3), 1 / 0)).start()",
    ],
    ids=["nothing", "a line", "a traceback", "another thread's"],
)
def test_the_error_is_that_of_the_cell_whatever_is_said_later(tmp_path, last):
    code = "import atexit, sys, time\nfrom threading import Thread\nfrom companion.notebook import ClaimError\n"  # fmt: skip
    raises = "try:\n    {}['a']\nfinally:\n    raise ClaimError('C1 did not hold')"
    path = tiny_notebook(tmp_path, [code + last, raises])
    outcome = executor.as_script(path, {}, tmp_path / "run.json")
    assert outcome.error.endswith(".ClaimError: C1 did not hold")
    assert outcome.missed


def test_a_chapter_that_settles_no_claim_is_an_error(tmp_path):
    code = ["profile: str = 'quick'  # preset", "def Claims(paper): return paper", "claims = Claims('x')"]  # fmt: skip
    path = tiny_notebook(tmp_path, code)
    outcome = executor.run(path, {}, tmp_path / "out.ipynb", show=False)
    assert outcome.error == "no cell calls claims.settle(): the claims were not recorded"
    assert executor.as_script(path, {}, tmp_path / "run.json").error == outcome.error
    settled = "from companion.notebook import record\nrecord('x.claims', [])"
    path = tiny_notebook(tmp_path, [*code, settled])
    assert executor.run(path, {}, tmp_path / "out.ipynb", show=False) == executor.Outcome()
    assert executor.as_script(path, {}, tmp_path / "run.json") == executor.Outcome()
