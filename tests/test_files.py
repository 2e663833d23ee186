"""Files that are whole, locks, what is left over, JSON."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from companion.files import BusyError, locked, scratch, sweep_up, to_json, unpack, write_whole
from companion.runs.processes import python_path


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


HOLD = """
import os, sys, time
from companion.files import locked, scratch, write_whole
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


def test_a_scratch_folder_that_another_sweeps_up_before_it_is_held_is_made_again(
    tmp_path, monkeypatch
):
    make, made = tempfile.mkdtemp, []

    def swept_up(**where):
        made.append(make(**where))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_up)
    with scratch(str(tmp_path)) as folder:
        assert folder == Path(made[1])
        assert folder.is_dir()
    with pytest.raises(FileNotFoundError), scratch(str(tmp_path / "nowhere")):
        pass


def test_many_have_a_scratch_folder_each(tmp_path):
    wrong = []

    def work():
        for _ in range(100):
            try:
                with scratch(str(tmp_path)) as folder:
                    (folder / "file").write_text("mine")
                    time.sleep(0)
                    assert (folder / "file").read_text() == "mine"
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert list(tmp_path.iterdir()) == []


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


def test_who_waits_for_a_lock_gets_it_in_turn(tmp_path):
    inside, got = 0, []

    def work():
        nonlocal inside
        for _ in range(50):
            with locked(tmp_path / ".lock", wait=True):
                inside += 1
                got.append(inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [1] * 200
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


@pytest.mark.parametrize("old", [False, True], ids=["this Python", "3.11.0 to 3.11.3"])
def test_an_archive_is_unpacked_into_its_folder_or_refused(tmp_path, monkeypatch, old):
    if old and sys.version_info >= (3, 14):
        pytest.skip("this Python's tarfile cannot do without what those lack")
    if old:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)

    def packed(*members):
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, kind in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname, member.size = kind, "..", 0
                tar.addfile(member)
        return tmp_path / "a.tar"

    unpack(packed(("b", tarfile.DIRTYPE), ("b/c", tarfile.REGTYPE)), tmp_path / "good")
    assert (tmp_path / "good" / "b" / "c").is_file()
    for bad in (
        ("../out", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ):
        with pytest.raises(tarfile.TarError):
            unpack(packed(("b", tarfile.REGTYPE), bad), tmp_path / "bad")
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "bad" / bad[0]).exists()
