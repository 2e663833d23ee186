"""What a GPU computes, held against the CPU. For machines without pytest: a plain script.

    python tests/gpu/checks.py --device cuda --out checks-gpu.json

Every check is a function of a device that raises AssertionError, or says what it found. The
file is written anew after each of them.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from companion import stacked
from companion.data.images import load_images
from companion.device import has_float64, pick_device
from companion.models import lenet_5_caffe, lenet_300_100, mlp, truncated_variance_scaling_, vgg
from companion.papers import data_parallelism as dp
from companion.papers import masked_kd as mkd
from companion.papers import signal_propagation as sp
from companion.papers import sparse_inr as inr
from companion.papers import visual_compiler as vc
from companion.papers.learn_to_pay_attention import networks
from companion.papers.visual_compiler import raster
from companion.runs import gpu
from companion.sparsity import (
    apply_masks,
    connection_sensitivity,
    full_precision,
    global_topk_mask,
    mask_overlap,
)
from companion.stacked import train_together
from companion.training import train

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gap(a, b):
    """Largest difference of two tensors, relative to the largest entry."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return ((a - b).abs().max() / b.abs().max()).item()


def below(found, limit, what):
    assert found <= limit, f"{what}: {found:.2g}, expected at most {limit:g}"
    return f"{what} {found:.1g}"


def same_masks_for_convolutions(device):
    told = []
    for make, shape in ((lenet_5_caffe, (1, 28, 28)), (lambda: vgg("D"), (3, 32, 32))):
        model = make()
        truncated_variance_scaling_(model, generator=generator())
        x = torch.randn(32, *shape, generator=generator(1))
        y = torch.randint(10, (32,), generator=generator(2))
        there = copy.deepcopy(model).to(device)
        first, again = (
            connection_sensitivity(there, cross_entropy, [(x.to(device), y.to(device))])
            for _ in range(2)
        )
        repeated = max(gap(first[name], again[name]) for name in first)
        told.append(below(repeated, 1e-5, "twice"))
        ours = {name: value.cpu() for name, value in first.items()}
        theirs = connection_sensitivity(model, cross_entropy, [(x, y)])
        overlap = mask_overlap(*(global_topk_mask(s, sparsity=0.95) for s in (ours, theirs)))
        told.append(below(1 - overlap, 1e-3, "masks apart"))
    return ", ".join(told)


def same_selection(device):
    scores = {"w": torch.randint(50, (300, 400), generator=generator()).float()}
    there = global_topk_mask({"w": scores["w"].to(device)}, sparsity=0.93)
    assert torch.equal(there["w"].cpu(), global_topk_mask(scores, sparsity=0.93)["w"])
    return "ties as on the CPU"


def same_spectra(device):
    model = mlp(64, [100] * 4, 10, activation="tanh")
    sp.init_weights(model, "orthogonal", generator=generator())
    x = torch.randn(8, 64, generator=generator(1))
    theirs = sp.jacobian_singular_values(model, x)
    ours = sp.jacobian_singular_values(copy.deepcopy(model).to(device), x.to(device))
    return below(gap(ours, theirs), 1e-4, "singular values apart")


def same_isometry(device):
    mask = torch.rand(80, 60, generator=generator()) > 0.7
    weight = torch.randn(80, 60, generator=generator(1)) * mask
    residuals = []
    for place in (device, CPU):
        model = torch.nn.Sequential(torch.nn.Linear(60, 80)).to(place)
        with torch.no_grad():
            model[0].weight.copy_(weight)
        sp.enforce_isometry(model, {"0.weight": mask.to(place)}, steps=100)
        residuals.append(sp.isometry_residual(model[0].weight, mask.to(place)))
    return below(abs(residuals[0] / residuals[1] - 1), 1e-3, "residuals apart")


def same_search(device):
    """Trials that train together: the steps to the goal, within one look at the error."""
    found = []
    for place in (device, CPU):
        workload = dp.load_workload("digits", device=place, max_steps=300, check_every=10)
        trials = dp.trials_for(workload, 8, [0.01, 1.0])
        found.append(dp.steps_to_result(workload, 64, [0.0, 0.9], trials, race=False))
    here, there = (torch.as_tensor(result.steps).cpu() for result in reversed(found))
    alike = (here - there).abs() <= 10
    apart = 1 - alike.double().mean().item()
    for i in range(2):
        best = [result.k_star(i) for result in found]
        assert abs(best[0] - best[1]) <= 10, f"K* {best}"
    return below(apart, 0.2, "share of trials apart")


def same_picture(device):
    bank = vc.BodyBank.load()
    people, width, height = 12, 160, 120
    mesh = bank.vertices[torch.randint(len(bank), (people,), generator=generator())]
    z = 4 + 4 * torch.rand(people, 1, generator=generator(1)) + mesh[..., 1]
    at = torch.rand(people, 1, 2, generator=generator(2)) * torch.tensor([160.0, 120.0])
    uv = torch.stack([mesh[..., 0], -mesh[..., 2]], -1) * height / z[..., None] + at
    image, static = torch.arange(people) % 3, torch.full((height, width), torch.inf)
    ours, theirs = (
        raster.rasterise(
            uv.to(place), z.to(place), bank.faces.to(place), image.to(place), static.to(place), 3,
            backend="torch",
        )
        for place in (device, CPU)
    )  # fmt: skip
    assert torch.equal(ours.cover.cpu(), theirs.cover), "coverage differs"
    apart = (ours.person.cpu() != theirs.person).double().mean().item()
    return below(apart, 1e-4, "share of samples that show somebody else")


def same_masked_teacher(device):
    torch.manual_seed(0)
    model = mkd.ViT(64, 16, dim=96, depth=3, channels=3).eval()
    x = torch.randn(4, 3, 64, 64, generator=generator(1))
    keep = mkd.select_tokens(torch.rand(4, 16, generator=generator(2)), 7)
    answers = []
    for place in (device, CPU):
        net = copy.deepcopy(model).to(place)
        with torch.inference_mode(), mkd.token_drop(net) as masked:
            answers.append(masked(x.to(place), keep.to(place)))
    return below(gap(*answers), 1e-3, "outputs apart")


def same_meta_gradient(device):
    params = inr.siren_params(2, 32, 4, 1, 30.0, generator=generator())
    coords = 2 * torch.rand((256, 2), generator=generator(1)) - 1
    targets = torch.rand((4, 256, 1), generator=generator(2))
    slopes = []
    for place in (device, CPU):
        here = {name: w.detach().to(place) for name, w in params.items()}
        theta = {n: w.clone().requires_grad_() for n, w in here.items() if n != "omega_0"}
        loss = inr.maml_loss(
            theta | {"omega_0": here["omega_0"]}, inr.full_masks(here), coords.to(place),
            targets.to(place), 1e-2, 2,
        )  # fmt: skip
        slopes.append(torch.autograd.grad(loss, list(theta.values())))
    return below(max(map(gap, *slopes)), 1e-3, "gradients apart")


def training_is_repeated(device):
    """The same seed gives the same dense network to the last bit, and near that of the CPU."""
    data = load_images("digits")
    weights = []
    for place in (device, device, CPU):
        model = lenet_300_100(64)
        truncated_variance_scaling_(model, generator=generator())
        model.to(place)
        here = data.to(place)
        train(
            model, here.train_x, here.train_y, steps=20, batch_size=100, lr=0.1,
            generator=generator(3),
        )  # fmt: skip
        weights.append(next(model.parameters()).detach().cpu())
    assert torch.equal(weights[0], weights[1]), f"twice apart by {gap(weights[0], weights[1]):.1g}"
    return below(gap(weights[0], weights[2]), 1e-2, "from the CPU's")


def a_step_in_bf16_is_finite(device):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = networks.build_network("att", arch="vgg", levels=(2, 3), in_channels=3).to(device)
    x = torch.rand((4, 3, 32, 32), generator=generator()).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with torch.autocast(device.type, torch.bfloat16):
        loss = cross_entropy(model.train()(x), torch.arange(4, device=device))
    loss.backward()
    optimizer.step()
    assert loss.isfinite(), "the loss is not finite"
    assert all(p.isfinite().all() for p in model.parameters()), "a weight is not finite"
    return f"loss {loss.item():.3g}"


def a_graph_of_a_step_equals_the_step(device):
    """Where there are CUDA graphs."""
    if device.type != "cuda":
        return "not on this device"
    model = mlp(64, (64, 64)).to(device)
    x = torch.randn(32, 64, generator=generator()).to(device)
    expected = model(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        model(x)
    torch.cuda.current_stream().wait_stream(side)
    with torch.no_grad(), torch.cuda.graph(graph):
        found = model(x)
    graph.replay()
    return below(gap(found, expected), 1e-5, "outputs apart")


def networks_together_equal_each_alone(device):
    """Stacked and, on CUDA, as graphs: dense and convolutional networks with masks.

    In double precision where there is one: in single, rounding that moves one maximum of a
    pooling can part the networks by tens of per cent in sixty steps.
    """
    said = []
    dtype = torch.float64 if has_float64(device) else torch.float32
    for name, make, batch in (
        ("LeNet-300-100", lambda: lenet_300_100(256), 50),
        ("LeNet-5", lambda: lenet_5_caffe(1, 16), 20),
    ):
        x = torch.randn((200, 1, 16, 16), generator=generator(1)).to(device, dtype)
        y = torch.randint(10, (200,), generator=generator(2)).to(device)
        models, masks = [], []
        for seed in range(3):
            models.append(make())
            truncated_variance_scaling_(models[-1], generator=generator(seed))
            models[-1].to(device, dtype)
            kept = {
                n: (torch.rand(p.shape, generator=generator(seed)) < 0.5).to(device)
                for n, p in models[-1].named_parameters()
            }
            masks.append(kept if seed else {})
        options = {
            "steps": 60, "batch_size": batch, "lr": 0.01, "weight_decay": 5e-4, "milestones": [25, 45]
        }  # fmt: skip
        twins = copy.deepcopy(models)
        fallen = stacked.Graphed.failures
        with full_precision():
            for twin, mask, seed in zip(twins, masks, (5, 6, 6), strict=True):
                with apply_masks(twin, mask):
                    train(twin, x, y, generator=generator(seed), **options)
            train_together(models, x, y, seeds=[5, 6, 6], masks=masks, **options)
        assert stacked.Graphed.failures == fallen, "a step could not be recorded as a CUDA graph"
        for model, mask in zip(models, masks, strict=True):
            for n, kept in mask.items():
                assert not (model.get_parameter(n)[~kept] != 0).any(), f"{n} left its mask"
        apart = max(
            gap(p.detach(), q.detach())
            for model, twin in zip(models, twins, strict=True)
            for p, q in zip(model.parameters(), twin.parameters(), strict=True)
        )
        limit = 1e-6 if dtype == torch.float64 else 1e-2
        said.append(below(apart, limit, f"{name} from each alone"))
    return "; ".join(said)


CHECKS = (
    same_masks_for_convolutions,
    same_selection,
    same_spectra,
    same_isometry,
    same_search,
    same_picture,
    same_masked_teacher,
    same_meta_gradient,
    training_is_repeated,
    a_step_in_bf16_is_finite,
    a_graph_of_a_step_equals_the_step,
    networks_together_equal_each_alone,
)


def run(device, checks=CHECKS, keep=lambda found: None):
    """Name -> what a check found, after each of them given to `keep`."""
    found = {}
    for check in checks:
        start = time.perf_counter()
        try:
            entry = {"passed": True, "said": check(device)}
        except Exception as error:  # the others go on
            traceback.print_exc()
            entry = {"passed": False, "said": f"{type(error).__name__}: {error}"[:500]}
        found[check.__name__] = entry | {"seconds": round(time.perf_counter() - start, 2)}
        print(check.__name__, entry, flush=True)
        keep(found)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    def keep(found, status="unfinished"):
        gpu.keep_result(options.out, "tests/gpu/checks.py", options.device, {"checks": found}, status)  # fmt: skip

    found = run(pick_device(options.device), keep=keep)
    failed = [name for name, entry in found.items() if not entry["passed"]]
    keep(found, "failed" if failed else "complete")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
