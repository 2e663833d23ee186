"""Devices, seeds, provenance, and files that are whole."""

import errno
import json
import math
import os
import random
import re
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import runtime
from companion.runtime import (
    BusyError,
    Progress,
    has_float64,
    locked,
    peak_memory,
    pick_device,
    provenance,
    python_path,
    scratch,
    seed_everything,
    sweep_up,
    to_json,
    write_whole,
)

# ---------------------------------------------------------------- devices


def pretend(monkeypatch, cuda=0, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, True, "cuda"), (0, True, "cpu"), (0, False, "cpu")]
)
def test_auto_takes_cuda_else_the_cpu_and_mps_only_where_asked(monkeypatch, cuda, mps, expected):
    pretend(monkeypatch, cuda, mps)
    assert pick_device() == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")
    if mps:
        assert pick_device("mps") == torch.device("mps")
        with pytest.raises(ValueError, match=r"this machine has .*mps, cpu"):
            pick_device("xpu")


@pytest.mark.parametrize("name", ["cuda", "mps", "gpu", "", "cuda:x", "cpu:1", "meta"])
def test_a_device_that_is_not_there_raises_and_says_what_is(monkeypatch, name):
    pretend(monkeypatch)
    with pytest.raises(ValueError, match=re.escape(f"device = {name!r}: this machine has cpu")):
        pick_device(name)


def test_one_gpu_of_several_can_be_named(monkeypatch):
    pretend(monkeypatch, cuda=2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match="device = 'cuda:2': this machine has cuda, cpu"):
        pick_device("cuda:2")


def test_cpu_and_cuda_have_float64_even_where_there_is_no_cuda(monkeypatch):
    pretend(monkeypatch)
    for name in ("cpu", "cuda", "cuda:3", torch.device("cuda")):
        assert has_float64(name)


@pytest.mark.parametrize(
    "error", [TypeError("MPS has no float64"), RuntimeError("no such device")]
)
def test_another_device_is_asked_for_float64(monkeypatch, error):
    def refuse(*_, device, **__):
        raise error

    monkeypatch.setattr(torch, "zeros", refuse)
    assert not has_float64("mps")


# ---------------------------------------------------------------- seeds


def test_one_seed_gives_the_same_draws_everywhere():
    def draws():
        own = seed_everything(3)
        return random.random(), torch.rand(2).tolist(), torch.rand(2, generator=own).tolist()

    first = draws()
    torch.rand(5)
    assert draws() == first


# ---------------------------------------------------------------- provenance


def test_provenance_says_what_ran_and_names_no_place():
    found = provenance()
    assert found["device"] == "cpu"
    assert found["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
    assert re.fullmatch(r"([0-9a-f]{12})?", found["commit"])
    text = json.dumps(found)
    assert str(runtime.ROOT) not in text
    assert not re.search(r"(?<![\w)])/\w", text)  # no absolute path; "(R)/" may be in a CPU's name


def test_provenance_does_without_git_and_without_a_package(monkeypatch):
    monkeypatch.setenv("PATH", "")

    def absent(name):
        raise runtime.PackageNotFoundError(name)

    monkeypatch.setattr(runtime, "version", absent)
    found = provenance()
    assert found["commit"] == ""
    assert found["changed_since_commit"] is None
    assert set(found["packages"].values()) == {"absent"}


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)
    return done.stdout.decode().strip()


def test_provenance_knows_changes_from_none_and_from_not_knowing(tmp_path, monkeypatch):
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "src" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(runtime, "ROOT", root)
    monkeypatch.delenv("COMPANION_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runtime._commit() == ("", None)
    monkeypatch.setenv("COMPANION_COMMIT", "0123456789abcdef")
    assert runtime._commit() == ("0123456789ab", None)

    # a repository around an unpacked archive says nothing about the archive
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "around")
    assert runtime._commit() == ("0123456789ab", None)

    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "one")
    head = git(root, "rev-parse", "HEAD")[:12]
    assert runtime._commit() == (head, False)
    (root / "src" / "a.py").write_text("a = 2\n")
    assert runtime._commit() == (head, True)


@pytest.mark.parametrize("given", ["main", "12345", "ABCDEF0", "0123456 "])
def test_a_commit_that_is_none_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.setattr(runtime, "ROOT", tmp_path)
    monkeypatch.setenv("COMPANION_COMMIT", given)
    with pytest.raises(ValueError, match=re.escape(f"COMPANION_COMMIT = {given!r}: expected")):
        provenance()


def test_peak_memory_is_in_megabytes():
    # a Python with torch takes more than 50 MB and this one less than 64 GB
    assert 50 < peak_memory()["process_mb"] < 64_000


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


# ---------------------------------------------------------------- files


def test_a_file_is_written_whole_in_new_folders(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_whole(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_whole(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_written_file_has_the_mode_that_open_would_give_it(tmp_path, mask):
    before = os.umask(mask)
    try:
        for write in (lambda file: file.write_text("plain"), lambda file: write_whole(file, "x")):
            write(file := tmp_path / f"new-{len(os.listdir(tmp_path))}")
            assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask
            for mode in (0o600, 0o664, 0o755):
                file.chmod(mode)
                write(file)
                assert stat.S_IMODE(file.stat().st_mode) == mode
    finally:
        os.umask(before)


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    whole, link, loop = tmp_path / "far" / "whole", tmp_path / "link", tmp_path / "loop"
    link.symlink_to("far/whole")  # not there yet
    loop.symlink_to("loop")
    for text in ("one", "two"):
        write_whole(link, text)
        assert link.is_symlink()
        assert whole.read_text() == text
    with pytest.raises(OSError, match="loop"):
        write_whole(loop, "x")
    assert os.listdir(tmp_path / "far") == ["whole"]
    assert sorted(os.listdir(tmp_path)) == ["far", "link", "loop"]


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("/dev/null")
    for path in (pipe, link, tmp_path):
        with pytest.raises(OSError, match="not an ordinary file") as raised:
            write_whole(path, "x")
        assert raised.value.filename == str(path)
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step, error):
    path = tmp_path / "kept.json"
    write_whole(path, "old")

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(type(error)):
            write_whole(path, "new and longer")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.json"]


def test_readers_never_see_a_part_while_two_writers_write(tmp_path):
    path = tmp_path / "busy.txt"
    size = 200_000
    write_whole(path, "0" * size)
    seen = set()

    def write(letter):
        for _ in range(15):
            write_whole(path, letter * size)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        text = path.read_text()
        seen.add((len(text), len(set(text))))
    assert seen == {(size, 1)}
    assert os.listdir(tmp_path) == ["busy.txt"]


def test_a_write_that_fails_names_its_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(tmp_path / "a.json", "text")
    assert raised.value.filename == str(tmp_path / "a.json")


# ---------------------------------------------------------------- what a killed process leaves

HOLD = """
import os, sys, time
from companion.runtime import locked, scratch, write_whole
with locked(sys.argv[1] + "/.lock", "busy"), scratch() as folder:
    (folder / "file").write_text("x")
    os.fsync = lambda _: (print(folder, flush=True), time.sleep(60))
    write_whole(sys.argv[1] + "/a.txt", "new")
"""


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A process that holds a lock, a scratch folder and a file that it has half written."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    out = tmp_path / "out"
    for folder in (out, tmp_path / "tmp"):
        folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)],
        env=os.environ | {"PYTHONPATH": python_path()}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    left = Path(process.stdout.readline().strip())
    yield process, out, left
    process.kill()
    process.communicate()


def test_what_a_process_holds_stays_until_it_is_killed(held):
    process, out, left = held
    foreign = [out / ".a.part", out / ".b.txt.x.part", left.parent / "companion-scratch"]
    for file in foreign:
        file.write_text("somebody's")
    (out / ".link.companion.part").symlink_to(foreign[0])
    (left.parent / "companion-scratch-link").symlink_to(out)

    def sweep():
        sweep_up(out)
        with scratch() as own:
            assert own.is_dir()
        assert not own.exists()

    sweep()
    (part,) = out.glob(".a.txt.*")
    assert (left / "file").exists()
    with (
        pytest.raises(BusyError, match=f"^process {process.pid} on .* is at it$"),
        locked(out / ".lock", "{holder} is at it"),
    ):
        pass
    process.kill()
    process.wait()
    sweep()
    assert not part.exists()
    assert not left.exists()
    assert all(file.read_text() == "somebody's" for file in foreign)
    assert (out / ".link.companion.part").is_symlink()
    assert out.is_dir()
    with locked(out / ".lock", "busy"):
        pass
    assert not (out / ".lock").exists()


def test_one_of_many_has_the_lock_at_a_time(tmp_path):
    inside, most, got = 0, 0, 0

    def work():
        nonlocal inside, most, got
        for _ in range(200):
            try:
                with locked(tmp_path / ".lock", "busy"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0)
                    got += 1
                    inside -= 1
            except BusyError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert got
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["mine", "process of thought\n", "process 7 on a\nb", "\x00"])
def test_a_lock_that_is_somebody_elses_file_stays(tmp_path, content):
    file, link = tmp_path / ".x.lock", tmp_path / ".y.lock"
    file.write_text(content)
    link.symlink_to(file)
    (tmp_path / ".z.lock").symlink_to("none")
    for lock in (file, link, tmp_path / ".z.lock"):
        with pytest.raises(FileExistsError, match="no lock of ours") as raised, locked(lock, ""):
            pass
        assert raised.value.filename == str(lock)
    assert file.read_text() == content
    assert sorted(os.listdir(tmp_path)) == [".x.lock", ".y.lock", ".z.lock"]


@pytest.mark.parametrize("content", ["", "process 7 on a machine"])
def test_what_a_killed_holder_left_is_taken_over(tmp_path, content):
    file = tmp_path / ".x.lock"
    file.write_text(content)
    with locked(file, "busy"):
        assert file.read_text().startswith(f"process {os.getpid()} on ")
    assert not file.exists()


def test_a_file_put_in_the_place_of_a_lock_stays(tmp_path):
    file = tmp_path / ".x.lock"
    with locked(file, "busy"):
        file.unlink()
        file.write_text("mine")
    assert file.read_text() == "mine"


GROUP = """
import os, subprocess, sys, time
if sys.argv[1:] == ["child"]:
    from companion.runtime import end_with_parent
    end_with_parent()
    assert "COMPANION_PARENT" not in os.environ
    below = subprocess.Popen(["sleep", "60"])
    print(os.getpid(), below.pid, flush=True)
    time.sleep(60)
else:
    subprocess.run([sys.executable, __file__, "child"], start_new_session=True,
                   env=os.environ | {"COMPANION_PARENT": str(os.getpid())})
"""


def test_a_child_and_all_it_started_end_with_a_parent_that_is_killed(tmp_path, is_alive):
    script = tmp_path / "group.py"
    script.write_text(GROUP)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": python_path()}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert all(map(is_alive, pids))
    parent.kill()
    parent.communicate()
    end = time.monotonic() + 20
    while any(map(is_alive, pids)):
        assert time.monotonic() < end, "children outlived their parent"
        time.sleep(0.1)


# ---------------------------------------------------------------- JSON


def test_json_takes_numbers_of_every_library():
    value = {
        "tensor": torch.tensor([[1.0, math.nan], [math.inf, -2.0]], requires_grad=True),
        "mask": torch.tensor([True, False]),
        "scalar": torch.tensor(3),
        "array": np.arange(3),
        "number": np.float32(0.1),
        "flag": np.bool_(True),
        "nan": math.nan,
        "tuple": (1, "ä", None, -math.inf),
        2: {"deep": [np.int64(7)]},
    }
    assert json.loads(to_json(value)) == {
        "tensor": [[1.0, None], [None, -2.0]],
        "mask": [True, False],
        "scalar": 3,
        "array": [0, 1, 2],
        "number": 0.1,
        "flag": True,
        "nan": None,
        "tuple": [1, "ä", None, None],
        "2": {"deep": [7]},
    }


def test_json_keeps_order_letters_and_whole_numbers():
    text = to_json({"z": 1, "a": 123_456_789_012, "ä": True})
    assert list(json.loads(text)) == ["z", "a", "ä"]
    assert "123456789012" in text
    assert "ä" in text
    assert text.endswith("}\n")


def test_json_is_stable_under_noise_in_the_eighth_digit():
    assert to_json([1 / 3]) == to_json([1 / 3 + 1e-9])


def test_json_refuses_what_it_does_not_know():
    with pytest.raises(TypeError):
        to_json({"a": object()})
