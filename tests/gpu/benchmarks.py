"""The methods on a GPU against plain torch, with the limits of the card beside them.

    python tests/gpu/benchmarks.py --device cuda --out benchmarks-gpu.json

Rows as those of book/recorded/benchmarks.json: ratio is our time over the peer's, medians of
turns that alternate. The time is the GPU's (events); on a CPU it is the wall clock's, of smaller
cases. The limit of a row is what its bytes or operations take at the speed that this card
reaches in a plain copy or a plain product of matrices, which are timed first.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import sys
import time
import traceback
from pathlib import Path

import torch
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.functional import cross_entropy

from companion.device import pick_device
from companion.files import seal
from companion.models import mlp, truncated_variance_scaling_, vgg
from companion.papers import data_parallelism as dp
from companion.papers import masked_kd as mkd
from companion.papers import signal_propagation as sp
from companion.papers import sparse_inr as inr
from companion.papers.data_parallelism.stacked import stacked_gradients
from companion.papers.learn_to_pay_attention import networks
from companion.papers.signal_propagation.spectra import jacobian
from companion.papers.sparse_inr.meta import signal_loss
from companion.runs import gpu
from companion.runs.provenance import provenance
from companion.sparsity import connection_sensitivity, global_topk_mask
from companion.stacked import stack

SCRIPT = "tests/gpu/benchmarks.py"
COMMAND = "companion gpu --only benchmarks-gpu"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Bench:
    """A device, its limits, and the rows by chapter."""

    def __init__(self, device):
        self.device, self.on_gpu = device, device.type == "cuda"
        self.rows = {}
        self.limits = self._limits()

    def seconds(self, work):
        """Seconds of one call, until its result is there."""
        if not self.on_gpu:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _limits(self):
        """Bytes and operations a second: the best of a few plain copies and products."""
        big = 2**28 if self.on_gpu else 2**22
        source, target = (torch.empty(big, dtype=torch.float32, device=self.device) for _ in "ab")
        side = 8192 if self.on_gpu else 256
        found = {
            "bytes": 8 * big / min(self.seconds(lambda: target.copy_(source)) for _ in range(5))
        }
        kinds = {"float32": torch.float32, "TF32": torch.float32, "bfloat16": torch.bfloat16}
        for name, dtype in kinds.items():
            torch.backends.cuda.matmul.allow_tf32 = name == "TF32"  # as convolutions do
            a, b = (
                torch.randn(side, side, generator=generator(i)).to(self.device, dtype)
                for i in range(2)
            )
            best = min(self.seconds(lambda a=a, b=b: a @ b) for _ in range(5))
            found[f"operations in {name}"] = 2 * side**3 / best
        torch.backends.cuda.matmul.allow_tf32 = False
        return found

    def compare(self, stem, what, ours, against, peer, *, rounds, aim="", note="", limit=None):
        """A row: both in turns. limit: (kind of `limits`, how many of it ours needs at least)."""
        for work in (ours, peer):
            work(), work()
        pairs = [(self.seconds(ours), self.seconds(peer)) for _ in range(rounds)]
        mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        told = [note] if note else []
        told.append(f"{1e3 * mine:.3g} ms against {1e3 * theirs:.3g}, medians of {rounds}")
        if limit:
            kind, amount = limit
            least = amount / self.limits[kind]
            told.append(
                f"at least {1e3 * least:.3g} ms for {amount:.3g} {kind} "
                f"at {self.limits[kind] / 1e12:.3g}e12 a second"
            )
        row = {"what": what, "against": against, "ratio": mine / theirs, "aim": aim}
        self.rows.setdefault(stem, []).append(row | {"note": "; ".join(told)})
        print(stem, row, told, flush=True)


def scoring(bench):
    device, batch = bench.device, 128 if bench.on_gpu else 4
    model = vgg("D")
    truncated_variance_scaling_(model, generator=generator())
    model.to(device).eval()
    x = torch.randn(batch, 3, 32, 32, generator=generator(1)).to(device)
    y = torch.randint(10, (batch,), generator=generator(2)).to(device)
    parameters = list(model.parameters())
    forward = 2 * mkd.count_macs(model, x[:1]) * batch
    bench.compare(
        "snip", f"scoring VGG-D, batch {batch}",
        lambda: connection_sensitivity(model, cross_entropy, [(x, y)]),
        "one forward and one backward pass",
        lambda: torch.autograd.grad(cross_entropy(model(x), y), parameters),
        rounds=10, aim="at most 1.10", limit=("operations in TF32", 3 * forward),
    )  # fmt: skip
    from torch.nn.utils import prune

    scores = connection_sensitivity(model, cross_entropy, [(x, y)])
    names = dict(model.named_modules())
    layers = [(names[n.rpartition(".")[0]], n.rpartition(".")[2]) for n in scores]
    by_layer = dict(zip(layers, scores.values(), strict=True))

    def peer():
        net = {pair: pair for pair in by_layer}
        prune.global_unstructured(net, prune.L1Unstructured, by_layer, amount=0.95)
        for module, name in net:
            prune.remove(module, name)

    count = sum(score.numel() for score in scores.values())
    state = copy.deepcopy(model.state_dict())
    bench.compare(
        "snip", f"selecting 5 % of {count / 1e6:.1f} million scores",
        lambda: global_topk_mask(scores, sparsity=0.95),
        "torch.nn.utils.prune.global_unstructured with the same scores", peer,
        rounds=10 if bench.on_gpu else 3, limit=("bytes", 5 * count),
    )  # fmt: skip
    model.load_state_dict(state)


def searching(bench):
    device = bench.device
    trials, batch, steps = (256, 64, 20) if bench.on_gpu else (8, 16, 3)
    model = mlp(196, (100, 100))
    truncated_variance_scaling_(model, generator=generator())
    model.to(device)
    params = stack([model] * trials)
    x = torch.randn(batch, 196, generator=generator(1)).to(device)
    data = x, torch.randint(10, (batch,), generator=generator(2)).to(device)

    def ours():
        dp.train_batched(model, params, None, 0.01, 0.9, itertools.repeat(data), steps=steps)

    few = max(1, trials // 16)

    def peer():
        for _ in range(few):
            net = copy.deepcopy(model)
            optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
            for _ in range(steps):
                optimizer.zero_grad()
                cross_entropy(net(data[0]), data[1]).backward()
                optimizer.step()

    size = sum(p.numel() for p in model.parameters())
    bench.compare(
        "data_parallelism", f"{steps} steps of {trials} networks, batch {batch}", ours,
        f"a loop of modules with torch.optim.SGD over {few} of them", peer, rounds=5,
        aim=f"below {trials / few:.0f}: then the loop over all takes longer",
        limit=("bytes", 4 * 7 * size * trials * steps),  # weights, slopes, momentum: read, written
    )  # fmt: skip

    def one_gradient(p, xs, ys):
        return cross_entropy(functional_call(model, p, (xs,)), ys)

    detached = {name: p.detach() for name, p in params.items()}
    together = vmap(grad(one_gradient), in_dims=(0, None, None))
    bench.compare(
        "data_parallelism", f"gradients of {trials} networks, batch {batch}",
        lambda: stacked_gradients(model, detached, *data),
        "torch.func's vmap of grad", lambda: together(detached, *data), rounds=10, aim="at most 1",
        limit=("bytes", 4 * 3 * size * trials),
    )  # fmt: skip


def spectra(bench):
    device, count = bench.device, 64 if bench.on_gpu else 8
    model = mlp(784, [100] * 6, 10, activation="tanh")
    sp.init_weights(model, "orthogonal", generator=generator())
    model.to(device)
    x = torch.randn(count, 784, generator=generator(1)).to(device)
    params = dict(model.named_parameters())
    peer = vmap(jacrev(lambda v: functional_call(model, params, (v[None],))[0]))
    torch.testing.assert_close(jacobian(model, x), peer(x), rtol=1e-3, atol=1e-4)
    bench.compare(
        "signal_propagation", f"Jacobians of {count} examples, 784-100x6-10 tanh",
        lambda: jacobian(model, x), "torch.func's vmap of jacrev", lambda: peer(x),
        rounds=20, aim="at most 1",
    )  # fmt: skip


def teacher(bench):
    device, batch = bench.device, 256 if bench.on_gpu else 1
    size = mkd.SIZES["S" if bench.on_gpu else "Ti"]
    torch.manual_seed(0)
    model = mkd.ViT(
        224, 16, dim=size.dim, depth=size.depth, heads=size.heads, mlp_ratio=4, channels=3,
        classes=1000,
    ).to(device).eval()  # fmt: skip
    x = torch.randn(batch, 3, 224, 224, generator=generator(1)).to(device)
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=bench.on_gpu),
        mkd.token_drop(model) as masked,
    ):
        for keep in (147, 98, 49):
            patches = mkd.select_tokens(torch.rand(batch, 196, generator=generator(2)), keep)
            patches = patches.to(device)
            macs = mkd.vit_macs(size.dim, size.depth, keep=keep)
            share = macs / mkd.vit_macs(size.dim, size.depth)
            bench.compare(
                "masked_kd", f"teacher's forward pass in bf16, {keep} of 196 patches, batch {batch}",
                lambda patches=patches: masked(x, patches), "the same on all patches",
                lambda: model(x), rounds=10 if bench.on_gpu else 2,
                aim=f"the share of operations, {share:.3f}",
                limit=("operations in bfloat16", 2 * macs * batch),
            )  # fmt: skip


def attention(bench):
    device, batch = bench.device, 256 if bench.on_gpu else 2
    x = torch.rand((batch, 3, 32, 32), generator=generator()).to(device)
    options = {"arch": "vgg", "levels": (2, 3), "in_channels": 3}
    torch.manual_seed(0)
    ours, peer = (networks.build_network(n, **options).to(device).eval() for n in ("att", "gap"))
    with torch.inference_mode():
        bench.compare(
            "learn_to_pay_attention", f"forward pass of VGG-att2, {batch} images",
            lambda: ours(x), "average pooling on the same trunk", lambda: peer(x), rounds=10,
            aim="below 1.1", limit=("operations in TF32", 2 * batch * mkd.count_macs(ours, x[:1])),
        )  # fmt: skip


def meta_gradients(bench):
    device, tasks = bench.device, 16 if bench.on_gpu else 2
    params = inr.siren_params(2, 64, 4, 1, 30.0, generator=generator())
    params = {name: w.detach().to(device) for name, w in params.items()}
    masks = inr.full_masks(params)
    coords = (2 * torch.rand((625, 2), generator=generator(1)) - 1).to(device)
    targets = torch.rand((tasks, 625, 1), generator=generator(2)).to(device)
    omega = params["omega_0"]

    def leaves():
        return {n: w.clone().requires_grad_() for n, w in params.items() if n != "omega_0"}

    def ours():
        theta = leaves()
        loss = inr.maml_loss(theta | {"omega_0": omega}, masks, coords, targets, 1e-2, 2)
        return torch.autograd.grad(loss, list(theta.values()))

    def peer():
        theta, total = leaves(), 0.0
        for target in targets:
            fast = theta
            for _ in range(2):
                loss = signal_loss(fast, masks, omega, coords, target)
                slope = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {n: w - 1e-2 * g for (n, w), g in zip(fast.items(), slope, strict=True)}
            total = total + signal_loss(fast, masks, omega, coords, target)
        return torch.autograd.grad(total / tasks, list(theta.values()))

    bench.compare(
        "sparse_inr", f"second-order MAML, width 64, 625 points, {tasks} tasks at once (vmap)", ours,
        "a loop over tasks with create_graph", peer, rounds=10 if bench.on_gpu else 3,
    )  # fmt: skip


BENCHMARKS = (scoring, searching, spectra, teacher, attention, meta_gradients)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = pick_device(options.device)
    bench = Bench(device)
    print(bench.limits, flush=True)
    errors = {}

    def keep(status):
        where = provenance(device)
        chapters = {
            stem: {"command": COMMAND, "provenance": where, "rows": rows}
            for stem, rows in sorted(bench.rows.items())
        }
        chapters = {stem: about | {"seal": seal(about)} for stem, about in chapters.items()}
        content = {"limits": bench.limits, "errors": errors, "chapters": chapters}
        gpu.keep_result(options.out, SCRIPT, options.device, content, status)

    for work in BENCHMARKS:
        try:
            work(bench)
        except Exception as error:  # the others go on
            traceback.print_exc()
            errors[work.__name__] = f"{type(error).__name__}: {error}"[:500]
        keep("unfinished")
    keep("failed" if errors else "complete")
    if errors:
        print(f"failed: {', '.join(errors)}")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
