"""Networks trained as one stack against each of them trained alone."""

import contextlib
import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from companion import stacked, training
from companion.models import lenet_5_caffe, mlp, vgg
from companion.sparsity import apply_masks
from companion.stacked import group_size, groups, outputs, stack, stackable, train_together
from companion.training import DivergenceError, train


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def padded():
    """Strides, padding, overlapping pools, a layer without biases, one module used twice."""
    relu = nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)), relu, nn.AvgPool2d(2, 1),
        nn.Conv2d(4, 3, 2, bias=False), relu, nn.Flatten(),
        nn.Sequential(nn.Linear(3 * 7, 8, bias=False), nn.Tanh()), nn.Linear(8, 10),
    )  # fmt: skip


# name -> (maker, shape of an input)
NETS = {
    "mlp": (lambda: mlp(64, (30, 20), 10), (1, 8, 8)),
    "tanh": (lambda: mlp(12, (10,) * 6, 10, activation="tanh"), (12,)),
    "lenet5": (lambda: lenet_5_caffe(1, 16), (1, 16, 16)),
    "padded": (padded, (2, 6, 6)),
}
HARD = {
    "steps": 220, "batch_size": 12, "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-3,
    "milestones": [60, 130, 130], "gamma": 0.5,
}  # fmt: skip
SHORT = HARD | {"steps": 40, "milestones": [10, 25, 25], "batch_size": 8}


def task(shape, n=90, dtype=torch.float64):
    y = torch.randint(10, (n,), generator=seeded(1))
    x = torch.randn((n, *shape), generator=seeded(2), dtype=dtype)
    return x + 0.3 * y.view(-1, *[1] * len(shape)), y


def networks(make, number, dtype=torch.float64):
    """Networks of other weights and other masks: nothing, weights only, or all but a tenth."""
    models, masks = [], []
    for seed in range(number):
        torch.manual_seed(seed)
        models.append(make().to(dtype))
        some = {n: p for n, p in models[-1].named_parameters() if seed % 3 == 2 or p.dim() > 1}
        masks.append(
            {n: torch.rand(p.shape, generator=seeded(seed)) < 0.3 for n, p in some.items()}
            if seed % 3 else {}
        )  # fmt: skip
    return models, masks


def alone(models, masks, seeds, x, y, **options):
    models = copy.deepcopy(models)
    histories = []
    for model, mask, seed in zip(models, masks, seeds, strict=True):
        with apply_masks(model, mask):
            histories.append(train(model, x, y, generator=seeded(seed), **options))
    return models, histories


def check_equal(together, histories, twins, expected, **tolerance):
    for model, twin in zip(together, twins, strict=True):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, **tolerance)
    for found, one in zip(histories, expected, strict=True):
        torch.testing.assert_close(torch.tensor(found.loss), torch.tensor(one.loss), **tolerance)
        assert found.diverged == one.diverged


def check_masks(models, masks):
    assert any(masks)
    for model, mask in zip(models, masks, strict=True):
        for name, kept in mask.items():
            weight = model.get_parameter(name)
            assert (weight[~kept] == 0).all(), name
            assert weight.dim() == 1 or (weight[kept] != 0).any(), name


# ---------------------------------------------------------------- one by one or together


@pytest.mark.parametrize(
    ("seeds", "nesterov"), [([7, 7, 7], False), ([7, 8, 7], True)], ids=["one order", "orders"]
)
@pytest.mark.parametrize("way", ["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("name", NETS)
def test_together_equals_one_after_another(name, way, seeds, nesterov, monkeypatch):
    if way == "as on a GPU":  # convolutions as matrix products
        monkeypatch.setattr(stacked, "_one_after_another", lambda *_: False)
    make, shape = NETS[name]
    x, y = task(shape)
    models, masks = networks(make, 3)
    long = way == "as on a GPU" and name != "padded"
    options = (HARD if long else SHORT) | {"nesterov": nesterov}
    twins, expected = alone(models, masks, seeds, x, y, **options)
    assert all(stackable(model, x) for model in models)
    histories = train_together(models, x, y, seeds=seeds, masks=masks, **options)
    check_equal(models, histories, twins, expected, rtol=1e-7, atol=1e-9)
    check_masks(models, masks)


def test_single_precision_moves_by_roundings_only():
    make, shape = NETS["mlp"]
    x, y = task(shape, dtype=torch.float32)
    models, masks = networks(make, 5, torch.float32)
    seeds = [0, 0, 1, 1, 1]
    twins, expected = alone(models, masks, seeds, x, y, **HARD)
    histories = train_together(models, x, y, seeds=seeds, masks=masks, **HARD)
    check_equal(models, histories, twins, expected, rtol=1e-3, atol=1e-4)
    check_masks(models, masks)


def test_what_a_network_becomes_does_not_depend_on_its_company():
    make, shape = NETS["mlp"]
    x, y = task(shape)
    models, masks = networks(make, 4)
    seeds, once = [1, 2, 3, 4], copy.deepcopy(models[2])
    train_together(models, x, y, seeds=seeds, masks=masks, **HARD)
    train_together([once], x, y, seeds=seeds[2:3], masks=masks[2:3], **HARD)
    for p, q in zip(models[2].parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 10)),
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.2), nn.Linear(5, 10)),
    ],
    ids=["batch normalisation", "dropout"],
)
def test_what_cannot_be_stacked_trains_one_by_one_with_the_same_numbers(make):
    x, y = task((6,))
    models, _ = networks(make, 2)
    masks = [{}, {"0.weight": torch.rand(5, 6, generator=seeded()) < 0.5}]
    torch.manual_seed(3)
    twins, expected = alone(models, masks, [4, 5], x, y, **HARD)
    torch.manual_seed(3)
    once = HARD | {"milestones": iter(HARD["milestones"])}
    histories = train_together(models, x, y, seeds=[4, 5], masks=masks, **once)
    assert [h.loss for h in histories] == [h.loss for h in expected]
    for model, twin in zip(models, twins, strict=True):
        for p, q in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
            assert torch.equal(p, q)


def test_other_architectures_of_the_same_shapes_and_augmented_images_train_one_by_one():
    x, y = task((12,))
    models = [mlp(12, (9,), 10, activation=a).double() for a in ("relu", "tanh")]
    _, expected = alone(models, [{}, {}], [1, 2], x, y, steps=20, batch_size=8)
    found = train_together(models, x, y, seeds=[1, 2], steps=20, batch_size=8)
    assert [h.loss for h in found] == [h.loss for h in expected]
    noisy = {"augment": lambda b, g: b + torch.randn(b.shape, generator=g), "steps": 20}
    _, expected = alone(models, [{}, {}], [1, 2], x, y, **noisy, batch_size=8)
    found = train_together(models, x, y, seeds=[1, 2], **noisy, batch_size=8)
    assert [h.loss for h in found] == [h.loss for h in expected]


# ---------------------------------------------------------------- divergence and monitors


def test_one_that_diverges_stops_alone_and_keeps_to_its_mask():
    make, shape = NETS["mlp"]
    x, y = task(shape)
    models, masks = networks(make, 4)
    with torch.no_grad():
        models[1][1].weight.mul_(1e200)
    options = HARD | {"on_divergence": "stop"}
    twins, expected = alone(models, masks, [1] * 4, x, y, **options)
    histories = train_together(models, x, y, seeds=[1] * 4, masks=masks, **options)
    assert [h.diverged for h in histories] == [False, True, False, False]
    assert len(histories[1].loss) == len(expected[1].loss) == training.LOOK_EVERY
    others = [0, 2, 3]
    check_equal(
        *([group[i] for i in others] for group in (models, histories, twins, expected)),
        rtol=1e-7, atol=1e-9,
    )  # fmt: skip
    for name, kept in masks[1].items():
        assert (models[1].get_parameter(name)[~kept] == 0).all()
    with pytest.raises(DivergenceError, match=r"not finite by step 100: lower lr = 0\.02"):
        train_together(networks(make, 2)[0], x * torch.inf, y, seeds=[1, 2], **HARD)


def test_a_monitor_sees_each_network_as_it_is_at_that_step():
    make, shape = NETS["mlp"]
    x, y = task(shape)
    models, masks = networks(make, 3)
    twins = copy.deepcopy(models)
    options = HARD | {"steps": 130, "monitor_every": 50}

    def size(model):
        return float(sum(p.detach().square().sum() for p in model.parameters()))

    found = train_together(
        models, x, y, seeds=[1, 2, 3], masks=masks, monitor=lambda i: size(models[i]), **options
    )
    for i, twin in enumerate(twins):
        with apply_masks(twin, masks[i]):
            one = train(
                twin, x, y, generator=seeded(i + 1),
                monitor=lambda twin=twin: size(twin), **options,
            )  # fmt: skip
        assert [step for step, _ in found[i].checks] == [50, 100]
        for check, expected in zip(found[i].checks, one.checks, strict=True):
            assert check == pytest.approx(expected, rel=1e-9)


def test_a_monitor_may_switch_its_network_to_inference():
    make, shape = NETS["mlp"]
    x, y = task(shape)
    models, _ = networks(make, 2)
    seen = []

    def look(i):
        seen.append(models[i].training)
        models[i].eval()

    options = SHORT | {"steps": 4, "milestones": []}
    train_together(models, x, y, seeds=[1, 2], monitor=look, monitor_every=2, **options)
    assert seen == [True] * 4
    assert all(model.training for model in models)  # as `train` leaves one


def test_no_steps_only_mask():
    models, masks = networks(NETS["mlp"][0], 3)
    before = copy.deepcopy(models)
    x, y = task((1, 8, 8))
    histories = train_together(models, x, y, seeds=[1] * 3, masks=masks, steps=0, batch_size=4)
    assert [h.loss for h in histories] == [[], [], []]
    for model, old, mask in zip(models, before, masks, strict=True):
        with apply_masks(old, mask):
            assert all(map(torch.equal, model.parameters(), old.parameters()))


# ---------------------------------------------------------------- what stacks, and how many


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(5, 1, 0), ((3, 2), (2, 3), (1, 0)), (1, 2, 2), (4, 4, 1)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_convolutions_as_products(kernel, stride, padding, bias):
    layer = nn.Conv2d(3, 4, kernel, stride, padding, bias=bias).double()
    x = torch.randn(2, 5, 3, 9, 11, generator=seeded(), dtype=torch.float64)
    weight = torch.randn(2, *layer.weight.shape, generator=seeded(1), dtype=torch.float64)
    bias = torch.randn(2, 4, generator=seeded(2), dtype=torch.float64) if bias else None
    found = stacked._convolve(layer, x, weight, bias)
    for r in range(2):
        b = None if bias is None else bias[r]
        expected = conv2d(x[r], weight[r], b, layer.stride, layer.padding)
        torch.testing.assert_close(found[r], expected)


def frozen():
    model = mlp(12, (5,), 10)
    model[1].bias.requires_grad_(False)
    return model


def shared():
    model = mlp(5, (5, 5), 10)
    model[3] = model[1]
    return model


def hooked():
    model = mlp(12, (5,), 10)
    model[1].register_forward_hook(lambda *_: None)
    return model


def listened(to):
    """A network whose backward pass somebody watches: of a parameter, or of a module."""
    model = mlp(12, (5,), 10)
    if to == "parameter":
        model[1].weight.register_hook(lambda g: g)
    elif to == "gradient":
        model[1].weight.register_post_accumulate_grad_hook(lambda _: None)
    elif to == "module":
        model[1].register_full_backward_hook(lambda *_: None)
    else:
        model[1].register_full_backward_pre_hook(lambda *_: None)
    return model


class Chain(nn.Sequential):
    """A chain that computes something else."""

    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (vgg, (3, 32, 32)),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 10), nn.Dropout()), (12,)),
        (lambda: nn.Sequential(nn.Linear(12, 10)), (3, 12)),
        (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(12, 10)), (3, 3, 4)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), (4, 8, 8)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, dilation=2)), (4, 8, 8)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding="same")), (4, 8, 8)),
        (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), (4, 8, 8)),
        (lambda: nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Softmax(1)), (12,)),
        (lambda: Chain(nn.Linear(12, 10)), (12,)),
        (lambda: nn.Sequential(Chain(nn.Linear(12, 10))), (12,)),
        (lambda: nn.Linear(12, 10), (12,)),
        (lambda: nn.Sequential(nn.Flatten()), (12,)),
        (frozen, (12,)),
        (shared, (5,)),
        (hooked, (12,)),
        *((partial(listened, to), (12,)) for to in ("parameter", "gradient", "module", "before")),
    ],
)  # fmt: skip
def test_what_is_no_plain_chain_is_not_stacked(make, shape):
    model, x = make(), torch.zeros(4, *shape)
    assert not stackable(model, x)
    assert group_size(model, x, 2) == 1


def test_how_many_train_together(monkeypatch):
    digits, mnist = torch.zeros(9, 64), torch.zeros(9, 1, 28, 28)
    monkeypatch.setattr(stacked, "CACHE_BYTES", 16e6)
    assert group_size(mlp(64, (300, 100)), digits, 100) == 19  # 50,610 parameters of 16 bytes
    assert group_size(mlp(784, (3000, 100)), mnist, 100) == 2
    assert group_size(lenet_5_caffe(), mnist, 100) == 1


def test_on_a_gpu_a_group_fits_in_memory(monkeypatch):
    model, x = lenet_5_caffe(), torch.zeros(9, 1, 28, 28)
    monkeypatch.setattr(stacked, "_one_after_another", lambda *_: False)
    # unfolded images of both convolutions at least
    assert stacked._bytes_an_example(model, x) > 4 * (25 * 24**2 + 500 * 8**2)
    assert stacked._bytes_an_example(model, x) < 4 * 4 * (25 * 24**2 + 500 * 8**2)


def test_plans_are_made_when_their_turn_comes(monkeypatch):
    monkeypatch.setattr(stacked, "group_size", lambda *_: 3)
    made = []

    def plans():
        for i in range(7):
            made.append(i)
            yield i

    for group in groups(plans(), lambda _: None, torch.zeros(1), 1):
        assert made == list(range(group[-1] + 1))
    assert [len(g) for g in groups(plans(), lambda _: None, torch.zeros(1), 1)] == [3, 3, 1]
    assert [len(g) for g in groups(plans(), lambda _: None, torch.zeros(1), 1, len)] == [1] * 7


def test_outputs_are_those_of_each_network():
    models, _ = networks(padded, 3)
    x = torch.randn(3, 4, 2, 6, 6, generator=seeded(), dtype=torch.float64)
    expected = torch.stack([model(b) for model, b in zip(models, x, strict=True)])
    torch.testing.assert_close(outputs(models[0], stack(models), x), expected)


@pytest.mark.parametrize("seeds", [[1, 1], [1, 2]])
@pytest.mark.parametrize("wide", [False, True])
def test_a_first_layer_that_works_in_place_leaves_the_images_alone(seeds, wide):
    def make():
        own = [nn.Conv2d(1, 144, 8), nn.Flatten(), nn.Linear(144, 10)]  # wide: one by one on a CPU
        rest = own if wide else [nn.Flatten(), nn.Linear(64, 10)]
        return nn.Sequential(nn.ReLU(inplace=True), *rest)

    x, y = task((1, 8, 8))
    before = x.clone()
    models, masks = networks(make, 2)
    twins, expected = alone(models, masks, seeds, x, y, **SHORT)
    histories = train_together(models, x, y, seeds=seeds, masks=masks, **SHORT)
    assert torch.equal(x, before)
    check_equal(models, histories, twins, expected, rtol=1e-9, atol=1e-12)
    outputs(models[0], stack(models), x.expand(2, *x.shape))
    assert torch.equal(x, before)


def test_what_does_not_fit_is_named():
    models, masks = networks(NETS["mlp"][0], 2)
    x, y = task((1, 8, 8))
    options = {"steps": 1, "batch_size": 4}
    with pytest.raises(ValueError, match="seeds: 1, expected one for each of 2 models"):
        train_together(models, x, y, seeds=[1], **options)
    with pytest.raises(ValueError, match="masks: 1, expected one for each of 2 models"):
        train_together(models, x, y, seeds=[1, 2], masks=masks[:1], **options)
    with pytest.raises(ValueError, match=r"the model has no parameter '9\.weight'"):
        train_together(models, x, y, seeds=[1, 2], masks=[{}, {"9.weight": y > 0}], **options)
    with pytest.raises(ValueError, match="batch_size = 91"):
        train_together(models, x, y, seeds=[1, 2], steps=1, batch_size=91)
    with pytest.raises(ValueError, match="steps = -1"):
        train_together(models, x, y, seeds=[1, 2], steps=-1)
    with pytest.raises(ValueError, match="on_divergence = 'go on'"):
        train_together(models, x, y, seeds=[1, 2], steps=1, on_divergence="go on")
    for name in ("progress", "mixed", "stpes"):
        for augment in (None, lambda batch, _: batch):
            with pytest.raises(ValueError, match=f"{name} = 1: expected options among steps"):
                train_together(models, x, y, seeds=[1, 2], augment=augment, **{name: 1})


# ---------------------------------------------------------------- what only CUDA does


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: keep operators while they compute nothing that stays."""

    def __init__(self):
        super().__init__()
        self.operators, self.changed = [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if function._schema.is_mutable:
            tensors = [a for a in tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
            self.changed += [(tensor, tensor.clone()) for tensor in tensors]
        found = function(*args, **kwargs)
        self.operators.append((function, args, kwargs, found))
        return found

    def undo(self):
        for tensor, before in reversed(self.changed):
            tensor.copy_(before)

    def replay(self):
        for function, args, kwargs, found in self.operators:
            for old, new in zip(
                tree_leaves(found), tree_leaves(function(*args, **kwargs)), strict=True
            ):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class PretendGraph:
    made = played = 0

    def __init__(self):
        PretendGraph.made += 1

    def replay(self):
        PretendGraph.played += 1
        with torch.no_grad():
            self.tape.replay()


@contextlib.contextmanager
def capture(graph):
    with Tape() as tape:
        yield
    with torch.no_grad():
        tape.undo()
    graph.tape = tape


@pytest.fixture
def graphs(monkeypatch):
    """CUDA's graphs and streams, pretended."""

    class Stream:
        def wait_stream(self, _):
            pass

    monkeypatch.setattr(stacked, "_draws_graphs", lambda _: True)
    monkeypatch.setattr(stacked, "_one_after_another", lambda *_: False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(stacked.Graphed, "failures", 0)
    PretendGraph.made = PretendGraph.played = 0


@pytest.mark.parametrize("name", NETS)
def test_a_recorded_step_takes_the_same_steps(name, graphs):
    make, shape = NETS[name]
    x, y = task(shape)
    models, masks = networks(make, 3)
    seeds = [1, 1, 2]
    twins, expected = alone(models, masks, seeds, x, y, **SHORT)
    histories = train_together(models, x, y, seeds=seeds, masks=masks, **SHORT)
    check_equal(models, histories, twins, expected, rtol=1e-7, atol=1e-9)
    check_masks(models, masks)
    assert PretendGraph.made == 3  # at three rates
    assert PretendGraph.played == SHORT["steps"] - stacked.WARM_UP


def test_the_pretended_graph_computes_nothing_while_it_records():
    weight, graph = torch.ones(3), PretendGraph()
    with capture(graph):
        double = weight.mul_(2).clone()
    assert weight.tolist() == [1, 1, 1]
    graph.replay(), graph.replay()
    assert weight.tolist() == double.tolist() == [4, 4, 4]
    with pytest.raises(RuntimeError, match="capturing"), capture(PretendGraph()):
        weight.sum().item()


def test_training_goes_on_as_it_is_where_recording_fails(graphs, monkeypatch):
    @contextlib.contextmanager
    def fails(graph):
        with capture(graph):
            yield
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", fails)
    make, shape = NETS["mlp"]
    x, y = task(shape)
    models, masks = networks(make, 3)
    twins, expected = alone(models, masks, [1, 1, 2], x, y, **SHORT)
    histories = train_together(models, x, y, seeds=[1, 1, 2], masks=masks, **SHORT)
    check_equal(models, histories, twins, expected, rtol=1e-7, atol=1e-9)
    assert (PretendGraph.made, PretendGraph.played) == (1, 0)
    assert stacked.Graphed.failures == 1


def test_mixed_precision_keeps_weights_in_full_and_is_for_convolutions(monkeypatch):
    monkeypatch.setattr(training, "MIXED", ("cpu",))
    x, y = task((1, 8, 8), dtype=torch.float32)
    conv = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    masks = {"0.weight": torch.rand(8, 1, 3, 3, generator=seeded()) < 0.5}
    seen = []
    conv[4].register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    options = {"steps": 60, "batch_size": 12, "lr": 0.01}
    _, (plain,) = alone([conv], [masks], [1], x, y, **options)
    (mixed,) = train_together([conv], x, y, seeds=[1], masks=[masks], **options)
    assert set(seen[-60:]) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in conv.parameters())
    assert (conv[0].weight[~masks["0.weight"]] == 0).all()
    assert mixed.loss != plain.loss
    assert mixed.loss == pytest.approx(plain.loss, rel=0.1, abs=0.05)
    dense = mlp(64, (5,), 10)
    _, (plain,) = alone([dense], [{}], [1], x, y, **options)
    again = train(dense, x, y, generator=seeded(1), mixed=True, **options)
    assert again.loss == plain.loss


class Viewing(nn.Module):
    """A stranger's module, which takes the memory's order for granted."""

    def forward(self, x):
        return x.view(len(x), -1)


@pytest.mark.parametrize(
    ("model", "inner"),
    [
        (lenet_5_caffe(), True),
        (nn.Sequential(nn.Conv2d(1, 256, 3), nn.Flatten()), False),  # wide
        (nn.Sequential(nn.Conv2d(1, 4, 3), Viewing()), False),
        (mlp(784, (8,), 10), False),
    ],
)
def test_images_lie_with_the_channels_innermost_where_that_is_faster_and_works(model, inner):
    x = torch.rand(3, 1, 28, 28)
    found = stacked.laid_out(model, x)
    assert torch.equal(found, x)
    assert (found.stride() == (784, 1, 28, 1)) is inner
    torch.testing.assert_close(model(found), model(x))
