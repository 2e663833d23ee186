"""Devices, seeds, memory."""

import random
import re

import pytest
import torch

from companion.device import has_float64, peak_memory, pick_device, seed_everything


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


def test_one_seed_gives_the_same_draws_everywhere():
    def draws():
        own = seed_everything(3)
        return random.random(), torch.rand(2).tolist(), torch.rand(2, generator=own).tolist()

    first = draws()
    torch.rand(5)
    assert draws() == first


def test_peak_memory_is_in_megabytes():
    # a Python with torch takes more than 50 MB and this one less than 64 GB
    assert 50 < peak_memory()["process_mb"] < 64_000


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
