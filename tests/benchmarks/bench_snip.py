"""What SNIP's scoring, selection and training cost beside the least they could cost, and peers."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import conv2d, cross_entropy, linear
from torch.nn.utils import prune

from companion.data.images import load_images
from companion.models import lenet_5_caffe, lenet_300_100, mlp, truncated_variance_scaling_, vgg
from companion.sparsity import (
    apply_masks,
    connection_gradients,
    connection_sensitivity,
    global_topk_mask,
    prunable_parameters,
)
from companion.stacked import group_size, train_together
from companion.training import train

# name -> (make, input, batch, rounds); a pass over VGG-D takes seconds
NETS = {
    "LeNet-300-100": (lenet_300_100, (1, 28, 28), 100, 100),
    "LeNet-5-Caffe": (lenet_5_caffe, (1, 28, 28), 100, 30),
    "VGG-D": (vgg, (3, 32, 32), 128, 5),
}
SMALL = list(NETS)[:2]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def setting(name):
    make, shape, size, rounds = NETS[name]
    model = make()
    truncated_variance_scaling_(model, generator=generator())
    x = torch.randn((size, *shape), generator=generator(1))
    return model, x, torch.randint(10, (size,), generator=generator(2)), rounds


def one_pass(model, x, y):
    """The least that scoring can cost: a forward and a backward pass.

    In inference mode, where a fresh batch normalisation is what identity mode computes.
    """
    model.eval()
    return torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))


def patched_copy_scores(model, x, y):
    """SNIP as public ports write it, in our words: copy the net, give every layer a mask
    parameter, patch its forward pass, and read the gradients of the masks. Weights only."""
    net = copy.deepcopy(model)

    def masked_linear(self, z):
        return linear(z, self.weight * self.weight_mask, self.bias)

    def masked_conv(self, z):
        return conv2d(z, self.weight * self.weight_mask, self.bias, self.stride, self.padding)

    layers = [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    for layer in layers:
        layer.weight_mask = nn.Parameter(torch.ones_like(layer.weight))
        layer.weight.requires_grad_(False)
        patched = masked_linear if isinstance(layer, nn.Linear) else masked_conv
        layer.forward = types.MethodType(patched, layer)
    cross_entropy(net(x), y).backward()
    return [layer.weight_mask.grad.abs() for layer in layers]


@pytest.mark.parametrize("name", NETS)
def test_scoring_against_one_pass(name, compare):
    model, x, y, rounds = setting(name)
    compare(
        f"scoring {name}, batch {len(x)}",
        lambda: connection_sensitivity(model, cross_entropy, [(x, y)]),
        "one forward and one backward pass",
        lambda: one_pass(model, x, y),
        rounds=rounds,
        aim=1.1,
        limit=1.0,
        agreement="the gradients come from the same pass",
        reason="bookkeeping of a fixed length shows on a net this small",
    )


@pytest.mark.parametrize("name", SMALL)
def test_scoring_against_patched_copies(name, compare):
    model, x, y, rounds = setting(name)
    weights = list(prunable_parameters(model, biases=False))

    def ours():
        return connection_sensitivity(model, cross_entropy, [(x, y)], params=weights)

    for a, b in zip(ours().values(), patched_copy_scores(model, x, y), strict=True):
        torch.testing.assert_close(a, b)
    compare(
        f"scoring the weights of {name}",
        ours,
        "a copied net with patched layers and mask parameters (our rendering of public ports)",
        lambda: patched_copy_scores(model, x, y),
        rounds=rounds,
        aim=1.0,
        agreement="equal to rounding",
    )


SPARSITY = 0.95
AIMS = {"LeNet-300-100": 2.0, "LeNet-5-Caffe": 1.15, "VGG-D": 1.3}  # passes for score and mask


def snip_mask(model, x, y):
    """The whole job: what a user of the library calls."""
    scores = connection_sensitivity(model, cross_entropy, [(x, y)])
    return global_topk_mask(scores, sparsity=SPARSITY)


def saliency(model, x, y):
    """Scores by name from one pass, as a user computes them who has a tool for the masks."""
    model.eval()
    weights = prunable_parameters(model)
    slopes = torch.autograd.grad(cross_entropy(model(x), y), list(weights.values()))
    return {n: (w * g).detach().abs() for (n, w), g in zip(weights.items(), slopes, strict=True)}


def torch_prune_mask(model, x, y):
    """torch's own pruning, which works in place, on a copy, by these scores."""
    net = copy.deepcopy(model)
    places = {
        n: (net.get_submodule(n.rpartition(".")[0]), n.rpartition(".")[2])
        for n in prunable_parameters(net)
    }
    scores = {places[n]: s for n, s in saliency(net, x, y).items()}
    prune.global_unstructured(
        list(places.values()), prune.L1Unstructured, importance_scores=scores, amount=SPARSITY
    )
    return {n: getattr(module, f"{kind}_mask").bool() for n, (module, kind) in places.items()}


def torch_func_mask(model, x, y):
    """The gradient at masks of ones by torch.func, as the paper's formula is written, and topk."""
    model.eval()
    rest = {n: t.detach() for n, t in (*model.named_parameters(), *model.named_buffers())}
    weights = {n: w.detach() for n, w in prunable_parameters(model).items()}

    def loss(masks):
        masked = {n: w * masks[n] for n, w in weights.items()}
        return cross_entropy(functional_call(model, rest | masked, (x,)), y)

    slopes = grad(loss)({n: torch.ones_like(w) for n, w in weights.items()})
    flat = torch.cat([g.abs().flatten() for g in slopes.values()])
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[flat.topk(round(len(flat) * (1 - SPARSITY))).indices] = True
    parts = kept.split([w.numel() for w in weights.values()])
    return {n: part.view(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}


@pytest.mark.parametrize("name", NETS)
def test_score_and_mask_against_one_pass(name, compare):
    model, x, y, rounds = setting(name)
    compare(
        f"score and mask of {name} at 95 %, batch {len(x)}",
        lambda: snip_mask(model, x, y),
        "one forward and one backward pass",
        lambda: one_pass(model, x, y),
        rounds=rounds,
        aim=AIMS[name],
        limit=1.0,
        reason="finding the k-th score comes on top of the pass",
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("peer", [torch_prune_mask, torch_func_mask])
def test_score_and_mask_against_torch(name, peer, compare):
    model, x, y, rounds = setting(name)
    ours, theirs = snip_mask(model, x, y), peer(model, x, y)
    same = sum((ours[n] == theirs[n]).sum().item() for n in ours) / sum(
        map(torch.numel, ours.values())
    )
    assert same > 0.9999
    against = {
        torch_prune_mask: "scores by autograd, torch.nn.utils.prune.global_unstructured on a copy",
        torch_func_mask: "torch.func's gradient at masks of ones, torch.topk",
    }
    compare(
        f"score and mask of {name} at 95 %, batch {len(x)}",
        lambda: snip_mask(model, x, y),
        against[peer],
        lambda: peer(model, x, y),
        rounds=min(rounds, 30) if rounds > 5 else 3,
        aim=1.0,
        peers=["torch"],
        agreement=f"{100 * same:.4g} % of the masks' entries agree",
    )


def peak_bytes(work):
    """Most bytes of tensors alive at once during `work`, beyond those alive before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = work()
        del result
    steps = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    alive = peak = 0
    for _, size in steps:
        alive += size
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("name", NETS)
def test_peak_memory_of_scoring(name, benchmark, add_row):
    model, x, y, _ = setting(name)
    one_pass(model, x, y)
    plain = peak_bytes(lambda: one_pass(model, x, y))
    data = [(x, y)]
    peak = benchmark.pedantic(
        lambda: peak_bytes(lambda: connection_sensitivity(model, cross_entropy, data)), rounds=1
    )
    ported = peak_bytes(lambda: patched_copy_scores(model, x, y))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    note = (
        f"{peak / 1e6:.3g} MB against {plain / 1e6:.3g} MB: {(peak - plain) / weights:.2f} copies "
        f"of the weights more; patched copies need {(ported - plain) / weights:.2f}"
    )
    add_row(
        f"peak memory of scoring {name}, batch {len(x)}",
        "one forward and one backward pass",
        peak / plain,
        aim=1 + 2 * weights / plain,
        aim_is="two copies of the weights more",
        limit=1.0,
        note=note,
    )


def test_selection_against_a_stable_sort(compare):
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in prunable_parameters(vgg()).items()}
    g = generator()
    scores = {name: torch.randn(shape, generator=g).abs() for name, shape in shapes.items()}
    total = sum(s.numel() for s in scores.values())

    def by_sorting():
        flat = torch.cat([s.flatten() for s in scores.values()])
        chosen = torch.zeros(total, dtype=torch.bool)
        order = torch.sort(flat, descending=True, stable=True).indices
        chosen[order[: round(total * (1.0 - 0.95))]] = True
        return chosen

    ours = torch.cat([m.flatten() for m in global_topk_mask(scores, sparsity=0.95).values()])
    assert torch.equal(ours, by_sorting())
    compare(
        f"masks from {total:,} scores",
        lambda: global_topk_mask(scores, sparsity=0.95),
        "a full stable sort",
        by_sorting,
        rounds=5,
        aim=0.25,
        peers=["torch"],
        agreement="identical masks",
    )


def test_vmap_over_seeds_against_a_loop(compare):
    data = load_images("digits")
    x, y = data.train_x[:100], data.train_y[:100]
    nets = [lenet_300_100(64).requires_grad_() for _ in range(20)]
    for seed, net in enumerate(nets):
        truncated_variance_scaling_(net, generator=generator(seed))
    stacked, _ = stack_module_state(nets)
    skeleton = lenet_300_100(64)

    def loss(theta):
        return cross_entropy(functional_call(skeleton, theta, (x,)), y)

    def together():
        slopes = vmap(grad(loss))(stacked)
        return {name: (stacked[name].detach() * g) for name, g in slopes.items()}

    def one_by_one():
        return [connection_gradients(net, cross_entropy, [(x, y)]) for net in nets]

    same = all(
        torch.equal(alone[name], joint[seed])
        for seed, alone in enumerate(one_by_one())
        for name, joint in together().items()
    )
    compare(
        "20 LeNets on digits scored together by vmap",
        together,
        "a loop over the nets",
        one_by_one,
        rounds=30,
        aim=1.0,
        peers=["torch"],
        agreement="bit-identical scores" if same else "scores differ in the last bits",
    )


# name -> (make, image, networks, steps, rounds): what SNIP's quick and paper profiles train, and
# signal propagation's quick one
TOGETHER = {
    "LeNet-300-100 on 8x8": (lambda: lenet_300_100(64), (1, 8, 8), 13, 40, 5),
    "LeNet-300-100 on 28x28": (lenet_300_100, (1, 28, 28), 4, 20, 5),
    "LeNet-5-Caffe": (lenet_5_caffe, (1, 28, 28), 2, 5, 5),
    "MLP 64-100x6-10": (lambda: mlp(64, [100] * 6, activation="tanh"), (1, 8, 8), 12, 40, 5),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_networks_together_against_one_after_another(name, compare):
    make, shape, number, steps, rounds = TOGETHER[name]
    x = torch.randn((1000, *shape), generator=generator(1))
    y = torch.randint(10, (1000,), generator=generator(2))
    models, masks = [], []
    for seed in range(number):
        torch.manual_seed(seed)
        models.append(make())
        drawn = {n: torch.rand(p.shape) < 0.1 for n, p in models[-1].named_parameters()}
        masks.append(drawn if seed else {})
    options = {"steps": steps, "batch_size": 100, "lr": 0.01, "weight_decay": 5e-4}
    seeds = [3] * number
    size = group_size(models[0], x, 100)

    def together():
        found = copy.deepcopy(models)
        for i in range(0, number, size):
            part = slice(i, i + size)
            train_together(found[part], x, y, seeds=seeds[part], masks=masks[part], **options)
        return found

    def one_by_one():
        found = copy.deepcopy(models)
        for model, mask, seed in zip(found, masks, seeds, strict=True):
            with apply_masks(model, mask):
                train(model, x, y, generator=generator(seed), **options)
        return found

    same = True
    for ours, theirs in zip(together(), one_by_one(), strict=True):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)
            same &= torch.equal(p, q)
    compare(
        f"{steps} steps of {number} x {name}, batch {100}, masked",
        together,
        "one after another by companion.training",
        one_by_one,
        rounds=rounds,
        aim=1.0,
        agreement="the same weights" if same else "equal to rounding",
        note=f"{min(size, number)} at a time",
    )


def test_growth_with_the_weights(grow):
    def make(weights):
        width = round(weights**0.5)
        model = mlp(width, [width], 10, activation="relu")
        x, y = torch.randn(100, width), torch.arange(100) % 10

        def prune():
            scores = connection_sensitivity(model, cross_entropy, [(x, y)])
            return global_topk_mask(scores, sparsity=0.95)

        return prune

    sizes = [10_000, 100_000, 1_000_000, 4_000_000, 16_000_000]
    grow("score and mask of a square layer, batch 100", "weights", sizes, make)
