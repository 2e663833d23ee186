"""Every chapter on a pretend GPU (`pretend_gpu.py`): it ends, it checks its claims, it seldom waits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pretend_gpu
import pytest
import torch

from companion.files import ROOT
from companion.runs import chapters as notebooks
from companion.runs import executor
from companion.runs.gpu_jobs import TINY

pytestmark = pytest.mark.skipif(
    not pretend_gpu.AVAILABLE, reason="this torch lacks what the pretend GPU is made of"
)

SMALL = {stem: TINY.get(stem, {}) for stem in notebooks.stems()}

# On a device without float64: the chapters whose tensors of double precision may meet it. The
# others keep theirs on the CPU anyway (and cost as much again).
WITHOUT_FLOAT64 = {
    stem: TINY[stem] for stem in ("desire", "masked_kd", "snip", "sparse_inr", "visual_compiler")
} | {"fictitious_play": TINY["fictitious_play"] | {"dtype": "float32"}}

# Functions in which a chapter may wait between two steps of an optimiser, and why.
WAITS = {
    # who is there and who is near whom decides how much there is to compute
    "desire": {"train_ranker"},
    # the monitor of a run, at a few chosen steps; the guard decides from what it sees
    "masked_kd": {"watch", "_look"},
    # the baseline that prunes once within a fit
    "sparse_inr": {"_prune_each"},
    # pictures and labels are kept on the CPU: a batch of them follows the network
    "visual_compiler": {"batch"},
}
OTHERWISE = 0.01  # waits a step: one in a hundred

# What the pretend GPU does with single operators: name -> (code, what it raises).
RAISES = {
    "two devices": ("torch.ones(3).to(gpu) + torch.ones(3)", "on the same device"),
    "a model on the CPU": ("torch.nn.Linear(3, 2)(torch.ones(1, 3).to(gpu))", "same device"),
    "an input on the CPU": ("torch.nn.Linear(3, 2).to(gpu)(torch.ones(1, 3))", "same device"),
    "cat": ("torch.cat([torch.ones(3, device=gpu), torch.ones(3)])", "same device"),
    "stack": ("torch.stack([torch.ones((), device=gpu), torch.ones(())])", "on the CPU"),
    "in place": ("torch.ones(()).add_(torch.ones((), device=gpu))", "on the CPU"),
    "generator": ("torch.rand(3, generator=torch.Generator(), device=gpu)", "'cpu'"),
    "randperm": ("torch.randperm(3, generator=torch.Generator(), device=gpu)", "'cpu'"),
    "numpy": ("torch.ones(3, device=gpu).numpy()", "TypeError: can't convert cuda:0"),
    "asarray": ("np.asarray(torch.ones(3, device=gpu))", "TypeError: can't convert cuda:0"),
    "index on the GPU": ("torch.arange(3)[torch.tensor([0], device=gpu)]", "indices should be"),
    "mask on the GPU": ("torch.arange(3)[torch.ones(3, device=gpu) > 0]", "indices should be"),
    "value on the CPU": ("x = torch.ones(3, device=gpu); x[x > 0] = torch.ones(3)", "on the CPU"),
}
# code -> how many waits and uploads it takes
COSTS = {
    "x + 1": (0, 0),
    "x * torch.tensor(2.0)": (0, 0),
    "x + x.mean()": (0, 0),
    "torch.zeros(3, device=gpu) + torch.arange(3, device=gpu)": (0, 0),
    "torch.rand(3, generator=torch.Generator(gpu).manual_seed(0), device=gpu)": (0, 0),
    "x[1], x[1:], x[None]": (0, 0),
    "x[x.argsort()]": (0, 0),
    "x[x > 0] = 0": (0, 0),
    "torch.where(x > 0, x, 0)": (0, 0),
    "x.item()": (1, 0),
    "float(x.sum())": (1, 0),
    "bool((x > 0).any())": (1, 0),
    "x.tolist()": (1, 0),
    "x.cpu()": (1, 0),
    "np.asarray(x.cpu())": (1, 0),
    "(x > 0).nonzero()": (1, 0),
    "x[x > 0]": (1, 0),
    "x[x > 0] = x.clone()": (1, 0),
    "torch.equal(x, x)": (1, 0),
    "x.unique()": (1, 0),
    "x.long().bincount()": (1, 0),
    "torch.ones(3).copy_(x)": (1, 0),
    "torch.ones(3).to(gpu)": (0, 1),
    "torch.ones(3).to(gpu, non_blocking=True)": (0, 0),
    "torch.tensor([1.0], device=gpu)": (0, 1),
    "x[torch.tensor([0])]": (0, 1),
}
HEAD = """
import numpy as np, torch
import pretend_gpu as pg
from companion.device import pick_device
gpu = pick_device("cuda")
"""
TRAINING = """
def train(place, each_step):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten(), torch.nn.Linear(8, 3)
    )
    first = model[0].weight
    model.to(place)
    assert model[0].weight is first and first.device == place
    x, y = torch.randn(6, 1, 4, 4).to(place), torch.arange(6).remainder(3).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, fused=True)
    for _ in range(5):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        each_step(loss)
    return [p.detach().cpu() for p in model.parameters()]

cpu = torch.device("cpu")
for ours, theirs in zip(train(gpu, id), train(cpu, id), strict=True):
    assert torch.equal(ours, theirs)
assert (pg.counts.steps, sum(pg.counts.training.values())) == (8, 0), pg.counts.report()
train(gpu, torch.Tensor.item)
assert sum(pg.counts.training.values()) == 4, pg.counts.report()
"""
RECURRENT = """
torch.manual_seed(0)
layer = torch.nn.GRU(3, 4, batch_first=True)
x = torch.randn(2, 5, 3, requires_grad=True)
states, last = layer(x)
states.square().sum().backward()
other = x.detach().to(gpu).requires_grad_()
found, end = layer.to(gpu)(other)
found.square().sum().backward()
assert torch.allclose(found.cpu(), states, atol=1e-6) and torch.allclose(end.cpu(), last, atol=1e-6)
assert torch.allclose(other.grad.cpu(), x.grad, atol=1e-5)
"""


# Loops without an optimiser of torch.optim: code whose waits and uploads do not grow with steps.
LOOPS = """
from companion.data.images import load_images
from companion.models import lenet_300_100, lenet_5_caffe
from companion.papers import data_parallelism as dp, signal_propagation as sp
from companion.stacked import group_size, train_together

def stacked(steps):
    workload = dp.load_workload("digits", device=gpu)
    first = dp.initial_networks(workload, [0.0, 0.9], 2)
    flat = [{n: t.flatten(0, 1) for n, t in part.items()} for part in (first.params, first.masks)]
    dp.train_batched(workload.model, *flat, 0.1, 0.9, workload.batches(16), steps=steps)

def isometry(steps):
    sp.enforce_isometry(lenet_300_100(64, 10).to(gpu), {}, steps=steps)

def together(steps):
    for make, size in ((lambda: lenet_300_100(256), (1, 16, 16)), (lambda: lenet_5_caffe(1, 16), (1, 16, 16))):
        models, x = [make().to(gpu) for _ in range(3)], torch.randn(20, *size).to(gpu)
        masks = [{}, *({n: p > 0 for n, p in m.named_parameters()} for m in models[1:])]
        assert group_size(models[0], x, 4) > 3
        train_together(
            models, x, torch.arange(20, device=gpu) % 10, seeds=[0, 1, 1], masks=masks, steps=steps,
            batch_size=4, lr=1e-3,
        )
        for model, mask in zip(models, masks):
            assert not any((model.get_parameter(n)[~kept] != 0).any() for n, kept in mask.items())

for run, per_hundred in ((stacked, 2), (isometry, 0), (together, 2)):
    totals = []
    for steps in (100, 300):
        pg.counts.waits.clear(), pg.counts.uploads.clear()
        run(steps)
        totals.append(sum((pg.counts.waits + pg.counts.uploads).values()))
    assert totals[1] - totals[0] <= 2 * per_hundred, (run, totals, pg.counts.report())
"""

# What tests/gpu/growth.py times, once each at its smallest size.
GROWTH = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("gpu_growth", {str(ROOT / "tests/gpu/growth.py")!r})
growth = sys.modules["gpu_growth"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(growth)
for method in growth.METHODS:
    before = pg.counts.launches
    method.make(gpu, method.first)()
    assert pg.counts.launches > before + 10, f"{{method.stem}} ran somewhere else"
assert not growth.is_lost(gpu)
"""


def small_scripts():
    """Name -> script, of everything but the chapters."""
    scripts = {f"raises {name}": code for name, (code, _) in RAISES.items()}
    for number, code in enumerate(COSTS):
        scripts[f"costs {number}"] = (
            f"x = torch.ones(1 if '.item()' in {code!r} else 3).to(gpu)\n"
            f"pg.counts.waits.clear(), pg.counts.uploads.clear()\n{code}"
        )
    return scripts | {
        "training": TRAINING,
        "recurrent": RECURRENT,
        "loops": LOOPS,
        "growth": GROWTH,
    }


def run(folder: Path, scripts: dict[str, str], *flags: str) -> dict[str, dict]:
    """Reports by name, with what was recorded as `values`."""
    paths = {name: folder / f"{name}.py" for name in scripts}
    for name, path in paths.items():
        path.write_text(scripts[name], encoding="utf-8")
    command = [sys.executable, pretend_gpu.__file__, *flags, "--out", str(folder / "out.json")]
    environment = {k: v for k, v in os.environ.items() if k != "COMPANION_DATA"}
    done = subprocess.run(
        [*command, *map(str, paths.values())], env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (folder / "out.json").exists(), done.stderr
    reports = dict(zip(paths, json.loads((folder / "out.json").read_text()), strict=True))
    for name, report in reports.items():
        record = paths[name].with_suffix(".json")
        report["values"] = json.loads(record.read_text())["values"] if record.exists() else {}
    return reports


def chapters(given: dict[str, dict], device: str) -> dict[str, str]:
    return {
        stem: executor.script(notebooks.find(stem), values | {"device": device})
        for stem, values in given.items()
    }


@pytest.fixture(scope="module")
def on_cuda(tmp_path_factory):
    small = {name: HEAD + code for name, code in small_scripts().items()}
    return run(tmp_path_factory.mktemp("cuda"), small | chapters(SMALL, "cuda"))


@pytest.fixture(scope="module")
def on_mps(tmp_path_factory):
    small = {
        "float64": HEAD + "torch.ones(3, dtype=torch.float64).to(gpu)",
        "double": HEAD + "torch.ones(3, device=gpu).double()",
        "on the CPU": HEAD + "torch.ones(3, device=gpu).cpu().double()",
    }
    scripts = small | chapters(WITHOUT_FLOAT64, "mps")
    return run(tmp_path_factory.mktemp("mps"), scripts, "--no-float64")


def check_chapter(report: dict, stem: str) -> None:
    """It ended (claims of so small a run may come out otherwise), with all its claims."""
    error = report["error"]
    assert not error or error.startswith("companion.notebook.checking.ClaimError"), (
        error,
        report["where"],
    )
    stored = notebooks.recorded_values(notebooks.read(notebooks.find(stem)))[f"{stem}.claims"]
    found = {claim["id"] for claim in report["values"][f"{stem}.claims"]}
    assert found == {claim["id"] for claim in stored}


@pytest.mark.parametrize("stem", SMALL)
def test_a_chapter_runs_on_a_gpu_and_seldom_waits_for_it(stem, on_cuda):
    report = on_cuda[stem]
    check_chapter(report, stem)
    assert report["launches"] > (1000 if stem in TINY else 0), "it ran somewhere else"
    allowed = WAITS.get(stem, set())
    waits = [entry for entry in report["training"] if not allowed & set(entry[0].split())]
    count = sum(number for *_, number in waits)
    assert count <= OTHERWISE * report["training_steps"], waits


@pytest.mark.parametrize("stem", WITHOUT_FLOAT64)
def test_a_chapter_runs_on_a_gpu_without_double_precision(stem, on_mps):
    check_chapter(on_mps[stem], stem)


@pytest.mark.parametrize("name", RAISES)
def test_it_raises_where_a_gpu_does(name, on_cuda):
    assert RAISES[name][1] in on_cuda[f"raises {name}"]["error"]


@pytest.mark.parametrize("number", range(len(COSTS)), ids=list(COSTS))
def test_it_counts_what_has_to_be_waited_for(number, on_cuda):
    report = on_cuda[f"costs {number}"]
    assert not report["error"]
    found = [sum(n for *_, n in report[kind]) for kind in ("waits", "uploads")]
    assert tuple(found) == list(COSTS.values())[number], (report["waits"], report["uploads"])


@pytest.mark.parametrize("name", ["training", "recurrent"])
def test_it_computes_what_the_cpu_computes(name, on_cuda):
    assert not on_cuda[name]["error"], on_cuda[name]


def test_loops_without_an_optimiser_of_torchs_seldom_wait_either(on_cuda):
    assert not on_cuda["loops"]["error"], on_cuda["loops"]


def test_what_grows_is_on_the_gpu(on_cuda):
    assert not on_cuda["growth"]["error"], on_cuda["growth"]


def test_it_refuses_double_precision_where_there_is_none(on_mps):
    for name in ("float64", "double"):
        assert "TypeError: Cannot convert a MPS Tensor to float64" in on_mps[name]["error"]
    assert not on_mps["on the CPU"]["error"]


# ---------------------------------------------------------------- what it cannot see


def test_a_step_of_each_network_of_the_paper_in_bf16():
    """Autocast is off on the pretend GPU; the CPU has it."""
    from companion.papers import learn_to_pay_attention as lpa
    from companion.papers import masked_kd as mkd

    images, labels = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    network = lpa.vgg_att((2, 3))
    options = {"steps": 1, "lr": 0.01, "batch_size": 2, "recipe": "sgd", "amp": "bf16"}
    lpa.fit(network, images, labels, generator=torch.Generator().manual_seed(0), **options)
    student, teacher = (mkd.ViT(32, 8, dim=8, depth=1) for _ in range(2))
    with mkd.MaskedDistiller(student, teacher, 8, amp=torch.bfloat16) as distiller:
        step = distiller(torch.rand(2, 1, 32, 32), labels)
    step.loss.backward()
    assert step.loss.dtype == torch.float32
    for model in (network, student):
        assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


def test_timing_on_cuda_waits_for_the_gpu_and_reads_its_memory(monkeypatch):
    from companion.papers.masked_kd.timing import timed_in_turns

    asked = []
    for name, answer in (
        ("synchronize", 0),
        ("reset_peak_memory_stats", 0),
        ("max_memory_allocated", 5e6),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, n=name, a=answer: asked.append(n) or a)
    found = timed_in_turns({"call": lambda: asked.append("call")}, torch.device("cuda"), rounds=1)
    turn = [
        "synchronize",
        "reset_peak_memory_stats",
        "call",
        "synchronize",
        "max_memory_allocated",
    ]
    assert asked == 2 * turn
    assert found["call"]["MB"] == 5
