"""Devices, determinism, provenance, and files that are whole."""

import json
import math
import os
import random
import re
import stat
import threading

import numpy as np
import pytest
import torch

from companion import runtime
from companion.runtime import (
    Progress,
    deterministic,
    peak_memory,
    pick_device,
    provenance,
    seed_everything,
    to_json,
    write_whole,
)

# ---------------------------------------------------------------- devices


def pretend(monkeypatch, cuda=0, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, True, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch, cuda, mps, expected):
    pretend(monkeypatch, cuda, mps)
    assert pick_device() == torch.device(expected)
    assert pick_device("cpu") == torch.device("cpu")


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


# ---------------------------------------------------------------- seeds and determinism


def test_one_seed_gives_the_same_draws_everywhere():
    def draws():
        own = seed_everything(3)
        return random.random(), torch.rand(2).tolist(), torch.rand(2, generator=own).tolist()

    first = draws()
    torch.rand(5)
    assert draws() == first


@pytest.mark.parametrize("before", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("fails", [False, True])
def test_deterministic_restores_what_it_changed(before, fails):
    flag, warn_only = before
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(flag, warn_only=warn_only)
    torch.set_num_threads(2)
    try:
        try:
            with deterministic():
                assert torch.get_num_threads() == 1
                assert torch.are_deterministic_algorithms_enabled()
                assert not torch.backends.cuda.matmul.allow_tf32
                assert not torch.backends.cudnn.allow_tf32
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled() is flag
        assert torch.is_deterministic_algorithms_warn_only_enabled() is warn_only
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == tf32
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


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
    assert set(found["packages"].values()) == {"absent"}


def test_peak_memory_is_in_megabytes():
    # a Python with torch takes more than 50 MB and this one less than 64 GB
    assert 50 < peak_memory()["process_mb"] < 64_000


def test_progress_ends_in_a_line_that_is_the_same_every_time():
    with Progress(3, "steps", show=False) as bar:
        for _ in range(2):
            bar.update()
        assert re.fullmatch(r"\[#{16}\.{8}\] 2/3 steps, \d+ s left", repr(bar))
        bar.update()
    assert repr(bar) == "3 steps"


# ---------------------------------------------------------------- files


def test_a_file_is_written_whole_in_new_folders_and_readable_by_all(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_whole(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_whole(str(path), b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(path.parent) == ["b.json"]


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
