"""How the time of each method grows with its size on a GPU, until the memory ends.

    python tests/gpu/growth.py --device cuda --out growth-gpu.json

A curve a method: its sizes double until the memory ends, a call takes longer than LONG, or its
share of the time is spent; on a CPU, the first few sizes. As in `make bench`, the exponent is
that of the last points. With --go-on, the methods that are in the file already are left out.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from companion.device import pick_device
from companion.files import seal
from companion.models import mlp
from companion.papers import data_parallelism as dp
from companion.papers import desire as de
from companion.papers import fictitious_play as fp
from companion.papers import masked_kd as mkd
from companion.papers import sparse_inr as inr
from companion.papers import spreme
from companion.papers import visual_compiler as vc
from companion.papers.learn_to_pay_attention import networks
from companion.papers.signal_propagation.spectra import jacobian
from companion.papers.visual_compiler.raster import rasterise
from companion.runs import gpu
from companion.runs.provenance import provenance
from companion.sparsity import connection_sensitivity, global_topk_mask

SCRIPT = "tests/gpu/growth.py"
COMMAND = "companion gpu --only growth-gpu"
LONG = 2.0  # seconds of a call, after which no larger size is tried
SHARE = 8.0  # seconds of a method
TOTAL = 75.0  # of all methods together
ENOUGH = 0.2  # seconds of repeated calls of one size; five calls at most
ON_CPU = 3  # sizes
FITTED = 3  # of a curve's largest sizes: below them costs of a fixed length show


# ---------------------------------------------------------------- the methods
# Each takes a device and a size and returns what is to be timed; tensors are drawn on the device.


def scored_and_masked(device, weights):
    width = round(weights**0.5)
    with device:
        model = mlp(width, [width])
    x = torch.randn(100, width, device=device)
    y = torch.arange(100, device=device) % 10

    def work():
        scores = connection_sensitivity(model, cross_entropy, [(x, y)])
        return global_topk_mask(scores, sparsity=0.95)

    return work


def jacobians(device, width):
    with device:
        model = mlp(784, [width] * 6, activation="tanh")
    x = torch.randn(64, 784, device=device)
    return lambda: jacobian(model, x)


def networks_together(device, trials):
    model = mlp(64, (64, 64)).to(device)
    params = {n: p.detach().expand(trials, *p.shape) for n, p in model.named_parameters()}
    x, y = torch.randn(16, 64, device=device), torch.arange(16, device=device) % 10
    return lambda: dp.train_batched(
        model, params, None, 0.01, 0.9, itertools.repeat((x, y)), steps=4
    )


def meta_gradient(device, tasks):
    params = inr.siren_params(2, 64, 4, 1, 30.0, generator=torch.Generator().manual_seed(0))
    params = {name: w.detach().to(device) for name, w in params.items()}
    masks = inr.full_masks(params)
    theta = {n: w.requires_grad_() for n, w in params.items() if n != "omega_0"}
    coords = 2 * torch.rand(625, 2, device=device) - 1
    targets = torch.rand(tasks, 625, 1, device=device)

    def work():
        loss = inr.maml_loss(params | theta, masks, coords, targets, 1e-2, 2)
        return torch.autograd.grad(loss, list(theta.values()))

    return work


def attention_gradient(device, images):
    options = {"arch": "vgg", "levels": (2, 3), "in_channels": 3}
    model = networks.build_network("att", **options).to(device).train()
    x = torch.rand(images, 3, 32, 32, device=device)
    y = torch.arange(images, device=device) % 10
    weights = list(model.parameters())
    return lambda: torch.autograd.grad(cross_entropy(model(x), y), weights, allow_unused=True)


def distillation_step(device, patches):
    side = 16 * round(patches**0.5)
    with device:
        student, teacher = (mkd.ViT.of("Ti", side) for _ in range(2))
        x, y = torch.randn(1, 3, side, side), torch.zeros(1, dtype=torch.long)
    amp = torch.bfloat16 if device.type == "cuda" else None
    distiller = mkd.MaskedDistiller(student, teacher, patches // 2, amp=amp)
    return lambda: distiller(x, y).loss.backward()


@functools.cache
def pendulum():
    x, t, _ = spreme.trajectories("pendulum")
    return spreme.add_noise(x, 0.02, torch.Generator().manual_seed(0), 1)[0], t.numpy()


def best_terms(device, environments):
    x, t = pendulum()
    window = spreme.SYSTEMS["pendulum"].window
    model = spreme.SharedSINDy(spreme.make_library("pendulum"), "l0", window=window)
    which = torch.arange(environments, device=device) % len(x)
    many = x.to(device)[which]
    return lambda: model.fit(many, t)


def play(device, people):
    crowd = fp.crowd.self_play_crowd(people // 3, torch.Generator().manual_seed(0)).to(device)
    weights = fp.Weights(2.0, 3.0, (4.0, 1.0))
    return lambda: fp.FictitiousPlay(crowd, weights, 10, iterations=3).run()


def ranking(device, agents):
    scenes, samples, steps = agents // 4, 8, 12
    with device:
        ranker = de.RankRefine(steps, social=True)
        paths = 2 * torch.randn(scenes, 4, samples, steps, 2)
        last, h_x = torch.randn(scenes, 4, 2), torch.randn(scenes, 4, 48)
    weights = list(ranker.parameters())

    def work():
        scores, delta = ranker(paths, last, h_x)
        return torch.autograd.grad(scores.sum() + delta.sum(), weights)

    return work


@functools.cache
def bodies(device):
    return vc.BodyBank.load().to(device)


def drawing(device, people):
    bank, (width, height) = bodies(device), (640, 360)
    mesh = bank.vertices[torch.randint(len(bank), (people,), device=device)]
    z = 4 + 4 * torch.rand(people, 1, device=device) + mesh[..., 1]
    at = torch.rand(people, 1, 2, device=device)
    at = torch.stack([at[..., 0] * width, (at[..., 1] + 0.25) * height], -1)
    uv = torch.stack([mesh[..., 0], -mesh[..., 2]], -1) * height * 1.4 / z[..., None] + at
    image, n_images = torch.arange(people, device=device) // 4, -(-people // 4)
    static = torch.full((height, width), torch.inf, device=device)
    return lambda: rasterise(uv, z, bank.faces, image, static, n_images, backend="torch")


@dataclass(frozen=True)
class Method:
    """What is timed and against what. first: the smallest size. square: sizes are squares."""

    stem: str
    what: str
    of: str
    first: int
    make: Callable[[torch.device, int], Callable[[], object]]
    square: bool = False

    def sizes(self) -> Iterable[int]:
        """Without end, each about twice the one before."""
        for k in itertools.count():
            size = self.first * 2**k
            yield round(size**0.5) ** 2 if self.square else size


METHODS = (
    Method("snip", "score and mask of a square layer, batch 100", "weights", 2**16, scored_and_masked, square=True),
    Method("signal_propagation", "Jacobians of 64 examples, six tanh layers", "units a layer", 32, jacobians),
    Method("data_parallelism", "4 steps of MLPs side by side, batch 16", "trials", 16, networks_together),
    Method("sparse_inr", "second-order MAML, width 64, 625 points", "tasks", 2, meta_gradient),
    Method("learn_to_pay_attention", "gradient of VGG-att2", "images", 2, attention_gradient),
    Method("masked_kd", "a distillation step, ViT-Ti, half of the teacher's patches", "patches", 64, distillation_step, square=True),
    Method("spreme", "pendulum, the best terms among all subsets", "environments", 4, best_terms),
    Method("fictitious_play", "three rounds of play", "people", 12, play),
    Method("desire", "gradient of the ranker with neighbours, 8 samples", "agents", 16, ranking),
    Method("visual_compiler", "z-buffer by torch, 4 people a picture of 640×360", "people", 4, drawing),
)  # fmt: skip


# ---------------------------------------------------------------- timing


def forget(device) -> None:
    """Give back all memory of the card that nothing refers to."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def measure(make, device, size) -> tuple[float, float | None]:
    """Seconds of a call, the least of some, and on CUDA the peak memory in GB."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    clock = time.perf_counter if on_gpu else time.process_time
    work, times = make(device, size), []

    def timed() -> float:
        if on_gpu:
            torch.cuda.synchronize(device)
        start = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        return clock() - start

    first = timed()  # memory is laid out, kernels are chosen
    if first < 2 * LONG:
        while sum(times) < ENOUGH and len(times) < 5:
            times.append(timed())
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else None
    return min([first, *times]), peak


def is_memory(error: Exception) -> bool:
    """Whether memory has ended: some libraries have errors of their own for it."""
    signs = "out of memory", "ALLOC_FAILED", "can't allocate memory"
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or any(
        sign in str(error) for sign in signs
    )


def grow(method: Method, device, sizes: Iterable[int], share: float) -> dict[str, Any]:
    """The curve of a method within a share of seconds, and why it ends.

    ended: why ("memory", "time", "share", "error" or "sizes"), at which size that was not
    measured, if any, and the message of an error.

    Raises:
        RuntimeError: for a curve of fewer than two points.
    """
    end = time.monotonic() + share
    warm_up(method, device)
    found: dict[str, list] = {"sizes": [], "seconds": [], "peak_gb": []}
    took = [0.0]
    ended: dict[str, Any] = {"why": "sizes"}
    for size in sizes:
        begin = time.monotonic()
        ratio = took[-1] / took[-2] if len(took) > 2 else 2
        if begin + took[-1] * min(max(ratio, 2), 8) > end and len(took) > 1:
            ended = {"why": "share", "at": size}
            break
        failed = None
        try:
            seconds, peak = measure(method.make, device, size)
        except Exception as error:  # noted; its frames hold memory until the block ends
            said = f"{type(error).__name__}: {error}"[:300]
            failed = {"why": "memory" if is_memory(error) else "error", "at": size, "said": said}
        if failed:
            ended = failed
            break
        forget(device)
        took.append(time.monotonic() - begin)
        found["sizes"].append(size)
        found["seconds"].append(seconds)
        if peak is not None:
            found["peak_gb"].append(round(peak, 2))
        if seconds > LONG:
            ended = {"why": "time"}
            break
    if len(found["sizes"]) < 2:
        raise RuntimeError(f"{len(found['sizes'])} sizes were measured: {ended}")
    ends = np.log(found["sizes"][-FITTED:]), np.log(found["seconds"][-FITTED:])
    exponent = float(np.polyfit(*ends, 1)[0])
    return {"what": method.what, "of": method.of, **found, "exponent": exponent, "ended": ended}


def warm_up(method: Method, device) -> None:
    """What only the first call of all does; an error comes again where it is noted."""
    try:
        measure(method.make, device, method.first)
    except Exception:
        traceback.print_exc()
    forget(device)


def is_lost(device) -> bool:
    """Whether an error, such as an illegal address, has left CUDA unusable for this process."""
    try:
        forget(device)
        return torch.ones(1, device=device).add_(1).item() != 2
    except Exception:
        return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=SHARE, help="seconds of a method")
    parser.add_argument("--go-on", action="store_true", help="leave out what --out has already")
    options = parser.parse_args()
    start = time.monotonic()
    device = pick_device(options.device)
    where = provenance(device)
    earlier = json.loads(options.out.read_text(encoding="utf-8")) if options.go_on else {}
    chapters, errors = earlier.get("chapters", {}), earlier.get("errors", {})

    def keep(status):
        content = {"errors": errors, "chapters": dict(sorted(chapters.items()))}
        gpu.keep_result(options.out, SCRIPT, options.device, content, status)

    left = [method for method in METHODS if method.stem not in {*chapters, *errors}]
    for i, method in enumerate(left):
        sizes, share = method.sizes(), (TOTAL - (time.monotonic() - start)) / (len(left) - i)
        share = min(share, options.share)
        if device.type != "cuda":
            sizes, share = itertools.islice(sizes, ON_CPU), math.inf
        try:
            curve = grow(method, device, sizes, share)
            print(method.stem, curve, flush=True)
            about = {"command": COMMAND, "provenance": where, "growth": [curve]}
            chapters[method.stem] = about | {"seal": seal(about)}
        except Exception as error:  # the others go on
            traceback.print_exc()
            errors[method.stem] = f"{type(error).__name__}: {error}"[:500]
        keep("unfinished")
        if is_lost(device):  # the others go on in a process that starts anew
            print(f"{device} is lost after {method.stem}: a new start", flush=True)
            again = ["--device", options.device, "--out", str(options.out), "--go-on"]
            os.execv(sys.executable, [sys.executable, __file__, *again])
    keep("failed" if errors else "complete")
    if errors:
        print(f"failed: {', '.join(errors)}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
