"""SNIP's own room; scores and masks are tested in test_sparsity."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from companion.book.kept import filled
from companion.data.images import ImageSet, load_images, standardise
from companion.papers import snip
from companion.papers.snip import experiment
from companion.papers.snip.experiment import check_sizes, class_scoring_batch, logit_sum
from companion.runs import chapters
from companion.runs.records import load_records
from companion.sparsity import prunable_parameters
from companion.training import error_rate


@pytest.fixture(scope="module")
def digits():
    return standardise(load_images("digits"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(size, channels=1, count=40):
    x = torch.randn(count, channels, size, size, generator=seeded())
    y = torch.arange(count) % 10
    return ImageSet("made", x, y, x, y, tuple("0123456789"), "")


@pytest.mark.parametrize("arch", ["lenet300", "lenet5", "conv2", "alexnet_s"])
def test_networks_fit_their_images(arch):
    data = pictures(32, 3)
    assert snip.build_model(arch, data, seeded())(data.train_x).shape == (40, 10)


def test_same_generator_same_weights(digits):
    a, b = (snip.build_model("lenet300", digits, seeded(3)) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert all(not p.any() for n, p in a.named_parameters() if n.endswith("bias"))


def test_unknown_and_unfitting_networks_are_refused(digits):
    with pytest.raises(ValueError, match=r"arch = 'lenet': expected one of lenet300"):
        snip.build_model("lenet", digits, seeded())
    with pytest.raises(
        ValueError, match=r"arch = 'vgg_d': needs images of 32 pixels a side, 'digits' has 8"
    ):
        snip.build_model("vgg_d", digits, seeded())
    for arch, height, width in (
        ("vgg_d", 64, 64), ("alexnet_s", 33, 33), ("lenet300", 8, 9), ("lenet5", 28, 32),
    ):  # fmt: skip
        x = torch.zeros(4, 1, height, width)
        oblong = digits.replace(train_x=x, train_y=torch.zeros(4).long())
        with pytest.raises(ValueError, match=f"is not made for images of {height} by {width} pix"):
            snip.build_model(arch, oblong, seeded())


def test_batches_larger_than_the_set_are_refused_at_once(digits):
    check_sizes("lenet300", digits, batch_size=1347, scoring_examples=1347)
    with pytest.raises(
        ValueError, match=r"batch_size = 1348: 'digits' has 1347 training examples"
    ):
        check_sizes("lenet300", digits, batch_size=1348, scoring_examples=100)


def test_scoring_batches_are_disjoint_and_not_larger_than_the_set(digits):
    batches = snip.scoring_batches(digits, 100, seeded(), number=3)
    rows = torch.cat([x for x, _ in batches]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(
        torch.unique(digits.train_x.flatten(1), dim=0)[:300]
    )
    with pytest.raises(ValueError, match=r"^batch_size \* number = 1400: 'digits' has 1347"):
        snip.scoring_batches(digits, 700, seeded(), number=2)
    for size, number, complaint in ((0, 1, "batch_size = 0"), (10, 0, "number = 0")):
        with pytest.raises(ValueError, match=f"^{complaint}"):
            snip.scoring_batches(digits, size, seeded(), number=number)
    options = {"criteria": ["snip"], "sparsities": [0.9], "seeds": [0], "steps": 1}
    with pytest.raises(ValueError, match=r"^prune_batch_size \* n_prune_batches = 1400"):
        snip.compare_criteria(
            "lenet300", digits, prune_batch_size=700, n_prune_batches=2, **options
        )
    with pytest.raises(ValueError, match="n_prune_batches = 0"):
        snip.compare_criteria("lenet300", digits, n_prune_batches=0, **options)


def test_a_class_batch_holds_one_class(digits):
    ((x, y),) = class_scoring_batch(digits, 7, 50, seeded())
    assert len(x) == 50
    assert y.tolist() == [7] * 50


def test_every_criterion_scores_the_same_entries(digits):
    model = snip.build_model("lenet300", digits, seeded())
    batch = snip.scoring_batches(digits, 50, seeded())
    shapes = {n: p.shape for n, p in prunable_parameters(model).items()}
    for criterion in snip.CRITERIA:
        found = snip.criterion_scores(criterion, model, batch, seeded())
        assert {n: s.shape for n, s in found.items()} == shapes
        assert list(found) == list(shapes)
    plain, shuffled = (
        snip.criterion_scores(c, model, batch, seeded()) for c in ("snip", "snip_shuffled")
    )
    for name in plain:
        assert torch.equal(
            plain[name].flatten().sort().values, shuffled[name].flatten().sort().values
        )
    with pytest.raises(ValueError, match="criterion = 'fisher'"):
        snip.criterion_scores("fisher", model, batch, seeded())


def test_pixel_maps_count_the_connections_that_leave_each_pixel(digits):
    model = snip.build_model("lenet300", digits, seeded())
    maps = snip.class_pixel_maps(model, digits, 0.9, size=30, generator=seeded(1))
    assert maps.shape == (10, 8, 8)
    generator = seeded(1)
    for label in range(10):  # by hand: the mask of the same batch, column by column
        batch = class_scoring_batch(digits, label, 30, generator)
        scores = snip.connection_sensitivity(model, cross_entropy, batch)
        first = snip.global_topk_mask(scores, 0.9)["1.weight"]
        assert [int(first[:, pixel].sum()) for pixel in range(64)] == maps[
            label
        ].flatten().tolist()
    several = snip.class_pixel_maps(model, digits, [0.5, 0.9], size=30, generator=seeded(1))
    assert several.shape == (2, 10, 8, 8)
    assert torch.equal(several[1], maps)
    assert several[0].sum() > several[1].sum()


def test_maps_that_are_the_class_means_match_and_permuted_ones_do_not(digits):
    means = torch.stack([digits.train_x[digits.train_y == k].mean((0, 1)) for k in range(10)])
    assert snip.matched_classes(means, digits) == 10
    assert snip.matched_classes(means.roll(1, 0), digits) == 0


def test_maps_without_a_pattern_match_no_class_and_others_are_refused(digits):
    means = torch.stack([digits.train_x[digits.train_y == k].mean((0, 1)) for k in range(10)])
    means[0] = 0.0  # its correlation with anything is undefined
    assert snip.matched_classes(means, digits) == 9
    assert snip.matched_classes(torch.zeros(10, 8, 8, dtype=torch.long), digits) == 0
    with pytest.raises(ValueError, match=r"maps: shape \(3, 8, 8\), expected \(10, 8, 8\)"):
        snip.matched_classes(means[:3], digits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_maps_may_lie_elsewhere_than_the_images(digits):
    means = torch.stack([digits.train_x[digits.train_y == k].mean((0, 1)) for k in range(10)])
    assert snip.matched_classes(means.cuda(), digits) == 10


def test_a_class_without_examples_is_named(digits):
    few = digits.replace(train_y=digits.train_y.clamp(max=8))
    with pytest.raises(ValueError, match="label = 9: 'digits' has no training example"):
        class_scoring_batch(few, 9, 5, seeded())


def test_removal_effects_do_not_depend_on_the_layout_of_memory():
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)
    ).double()
    x = torch.randn(16, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    y = torch.arange(16) % 3
    plain = snip.removal_effects(made, (x, y), 30, seeded())
    last = made.to(memory_format=torch.channels_last)
    moved = snip.removal_effects(last, (x, y), 30, seeded())
    for a, b in zip(plain, moved, strict=True):
        torch.testing.assert_close(a, b)


def test_removal_effects_equal_losses_of_networks_without_the_weight(digits):
    model = snip.build_model("lenet300", digits, seeded())
    batch = snip.scoring_batches(digits, 50, seeded())[0]
    before = [p.clone() for p in model.parameters()]
    predicted, true = snip.removal_effects(model, batch, 30, seeded())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert len(predicted) == len(true) == 30
    assert torch.corrcoef(torch.stack([predicted, true]))[0, 1] > 0.98

    for number in (1, 2, 10):  # thirds that are not whole
        assert len(snip.removal_effects(model, batch, number, seeded())[0]) == number
    with pytest.raises(ValueError, match="number = 0"):
        snip.removal_effects(model, batch, 0, seeded())

    # a linear softmax-free toy in which first order is exact up to a known second order
    toy = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        toy[1].weight.copy_(torch.tensor([[1e-4, 2e-4], [3e-4, -1e-4]]))
    x, y = torch.tensor([[[1.0, -2.0]]], dtype=torch.float64), torch.tensor([0])
    predicted, true = snip.removal_effects(toy, (x, y), 300, seeded())
    torch.testing.assert_close(predicted, true, rtol=1e-3, atol=0)


def test_critical_sparsity_of_two_layers_is_the_closed_form():
    # fan-ins 100 and 400: the second layer ends at half of the first one's end, where the first
    # still keeps P(|z| > 1) among |z| < 2
    model = nn.Sequential(nn.Linear(100, 40, bias=False), nn.Linear(400, 10, bias=False))
    beyond = (math.erf(math.sqrt(2)) - math.erf(1 / math.sqrt(2))) / math.erf(math.sqrt(2))
    expected = snip.critical_sparsities(model)
    assert expected["1.weight"] == pytest.approx(1 - 4000 * beyond / 8000, abs=1e-12)
    assert expected["0.weight"] == 1.0


def test_magnitude_masks_empty_the_layer_at_the_predicted_sparsity(digits):
    model = snip.build_model("lenet300", digits, seeded())
    predicted = snip.critical_sparsities(model)["3.weight"]
    scores = snip.magnitude_scores(prunable_parameters(model))
    assert snip.global_topk_mask(scores, predicted - 0.01)["3.weight"].any()
    assert not snip.global_topk_mask(scores, predicted + 0.01, warn=False)["3.weight"].any()


def test_comparison_trains_each_setting_from_the_same_start(digits):
    small = digits.limited(200)
    options = {"steps": 20, "lr": 0.1}
    runs = snip.compare_criteria(
        "lenet300",
        small,
        criteria=["snip", "random"],
        sparsities=[0.0, 0.9],
        seeds=[0, 1],
        **options,
    )
    assert [(r.criterion, r.sparsity, r.seed) for r in runs[:5]] == [
        ("dense", 0.0, 0), ("snip", 0.0, 0), ("snip", 0.9, 0), ("random", 0.0, 0), ("random", 0.9, 0),
    ]  # fmt: skip
    by_key = {(r.criterion, r.sparsity, r.seed): r for r in runs}
    # sparsity 0 keeps everything: whatever the criterion, it is the dense network
    for seed in (0, 1):
        dense = by_key["dense", 0.0, seed].error
        assert by_key["snip", 0.0, seed].error == by_key["random", 0.0, seed].error == dense
    assert by_key["snip", 0.9, 0].kept == round(50_610 * 0.1)
    again = snip.compare_criteria(
        "lenet300", small, criteria=["random"], sparsities=[0.9], seeds=[1], dense=False, **options
    )
    assert again == [by_key["random", 0.9, 1]]


@pytest.mark.parametrize("seed", ["1", 1.5, None, True, 2**63])
def test_a_seed_that_is_none_is_named_before_anything_is_drawn(digits, monkeypatch, seed):
    monkeypatch.setattr(experiment, "build_model", lambda *_: pytest.fail("drawn"))
    with pytest.raises(
        ValueError, match=f"^seeds = .*: element {seed!r}: expected a whole number"
    ):
        snip.compare_criteria(
            "lenet300", digits, criteria=["snip"], sparsities=[0.9], seeds=[0, seed], steps=1
        )


def test_a_number_of_steps_is_asked_for_before_anything_is_drawn(digits, monkeypatch):
    monkeypatch.setattr(experiment, "build_model", lambda *_: pytest.fail("drawn"))
    compare = functools.partial(
        snip.compare_criteria, "lenet300", digits, criteria=["snip"], sparsities=[0.9], seeds=[0]
    )
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'steps'"):
        compare(lr=0.1)
    with pytest.raises(ValueError, match=r"^steps = 2\.5: expected a whole number, at least 0"):
        compare(steps=2.5)


def test_seeds_of_numpy_are_seeds(digits):
    options = {"criteria": [], "sparsities": [], "steps": 2}
    small = digits.limited(100)
    runs = snip.compare_criteria("lenet300", small, seeds=np.arange(2), **options)
    assert runs == snip.compare_criteria("lenet300", small, seeds=iter([0, 1]), **options)


def opposed(data):
    """Validation images whose labels are all wrong: their error is lowest before anything is learned."""
    return data.train_x[:100], (data.train_y[:100] + 1) % 10


def test_the_validation_error_selects_the_step_that_is_reported(digits, monkeypatch):
    small = digits.limited(300)
    validation = opposed(small)
    seen = {"validation": [], "test": []}

    def looked(model, x, y):
        value = error_rate(model, x, y)
        seen["validation" if y is validation[1] else "test"].append(value)
        return value

    monkeypatch.setattr(experiment, "error_rate", looked)
    (run,) = snip.compare_criteria(
        "lenet300", small, criteria=["snip"], sparsities=[0.5], seeds=[0], steps=200,
        validation=validation, dense=False,
    )  # fmt: skip
    assert len(seen["validation"]) == 20
    assert len(seen["test"]) == 21  # and once at the end
    best = seen["validation"].index(min(seen["validation"]))
    assert run.selected_error == seen["test"][best]
    assert run.selected_error > min(seen["test"])
    assert run.error == seen["test"][-1]


def test_of_steps_of_equal_validation_error_the_test_error_chooses_none(digits, monkeypatch):
    errors = iter([5.0, 9.0, 5.0, 7.0, 5.0, 8.0] + [6.0] * 100)  # validation, test, ...
    monkeypatch.setattr(experiment, "error_rate", lambda *_: next(errors))
    small = digits.limited(100)
    (run,) = snip.compare_criteria(
        "lenet300", small, criteria=["snip"], sparsities=[0.5], seeds=[0], steps=3,
        validation=opposed(small), dense=False,
    )  # fmt: skip
    assert run.selected_error == 9.0


def test_what_has_no_mask_is_kept(digits):
    dense, biased = snip.compare_criteria(
        "lenet300", digits.limited(100), criteria=["snip"], sparsities=[0.9], seeds=[0], steps=1,
        prune_biases=False,
    )  # fmt: skip
    weights, biases = 64 * 300 + 300 * 100 + 100 * 10, 300 + 100 + 10
    assert dense.kept == weights + biases
    assert biased.kept == weights // 10 + biases


def test_the_best_step_is_reported_where_the_last_ones_wreck_the_network(digits):
    small = digits.limited(300)
    validation = (small.train_x[:100], small.train_y[:100])
    same = small.replace(test_x=validation[0], test_y=validation[1])
    options = {
        "criteria": ["snip"],
        "sparsities": [0.98],
        "seeds": [0],
        "steps": 40,
    }
    (run,) = snip.compare_criteria(
        "lenet300",
        same,
        validation=validation,
        dense=False,
        milestones=[37],
        gamma=300.0,
        **options,
    )
    assert run.selected_error < run.error  # the last steps, at 300 times the rate, wreck it


def test_every_draw_of_a_run_follows_its_seed(digits, monkeypatch):
    """Weights, scoring batches, random scores, fresh weights and the order of batches."""
    seen = {}

    def spy(name, function, draw):
        def wrapped(*args, **options):
            result = function(*args, **options)
            seen.setdefault(name, []).append(draw(result, args, options))
            return result

        monkeypatch.setattr(experiment, name, wrapped)

    def weights(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    spy("build_model", snip.build_model, lambda model, *_: weights(model))
    spy("scoring_batches", snip.scoring_batches, lambda made, *_: made[0][0])
    spy("random_scores", snip.random_scores, lambda made, *_: made["1.weight"])
    spy(
        "truncated_variance_scaling_",
        experiment.truncated_variance_scaling_,
        lambda _, args, __: weights(args[0]),
    )
    plain = experiment.train_together

    def train_together(*args, seeds, **options):
        seen.setdefault("order", []).extend(torch.tensor(seed) for seed in seeds)
        return plain(*args, seeds=seeds, **options)

    monkeypatch.setattr(experiment, "train_together", train_together)
    snip.compare_criteria(
        "lenet300", digits, criteria=["random"], sparsities=[0.9], seeds=[0, 1, 0], steps=1,
        dense=False, reinit_after_pruning=True,
    )  # fmt: skip
    seen["drawn first"] = seen["truncated_variance_scaling_"][::2]
    seen["drawn again"] = seen.pop("truncated_variance_scaling_")[1::2]
    for name, (first, second, third) in seen.items():
        assert torch.equal(first, third), name
        assert not torch.equal(first, second), name
    # and no two draws of a run are one
    assert not torch.equal(seen["drawn first"][0], seen["drawn again"][0])


def test_fresh_weights_under_the_mask_are_other_weights(digits):
    options = {
        "criteria": ["snip"], "sparsities": [0.9], "seeds": [0], "steps": 1, "lr": 1e-6, "dense": False,
    }  # fmt: skip
    (kept,) = snip.compare_criteria("lenet300", digits, **options)
    (fresh,) = snip.compare_criteria("lenet300", digits, reinit_after_pruning=True, **options)
    assert kept.kept == fresh.kept
    assert kept.error != fresh.error


def test_a_dense_network_learns_random_labels_by_heart(digits):
    options = {"examples": 150, "steps": 300, "seed": 0, "shuffled": True}
    assert snip.fit_labels("lenet300", digits, sparsity=0.0, **options) > 99
    assert snip.fit_labels("lenet300", digits, sparsity=0.99, **options) < 60
    few = options | {"examples": 50, "steps": 100}  # less than a batch
    assert snip.fit_labels("lenet300", digits, sparsity=0.5, **few) > 99
    for examples in (0, 9999):
        with pytest.raises(ValueError, match=f"examples = {examples}"):
            snip.fit_labels("lenet300", digits, sparsity=0.5, **options | {"examples": examples})


def test_logit_sum_is_the_derivative_along_a_layer(digits):
    model = snip.build_model("lenet300", digits, seeded()).double()
    x, y = digits.train_x[:20].double(), digits.train_y[:20]
    step, losses = 1e-6, []
    for factor in (1 + step, (1 - step) / (1 + step)):  # scale layer 2 up, then to the other side
        with torch.no_grad():
            model[3].weight.mul_(factor)
        losses.append(cross_entropy(model(x), y).item())
    with torch.no_grad():
        model[3].weight.div_(1 - step)
    slope = (losses[0] - losses[1]) / (2 * step)
    assert logit_sum(model, x, y).item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("name", ["paper-gpu", "paper-lenet5-gpu", "vgg-d-5000-steps-gpu"])
def test_the_chapters_table_at_the_papers_size_is_what_the_runs_recorded(name):
    prose = "\n".join(cell["source"] for cell in chapters.read(chapters.find("snip"))["cells"])
    prose = filled(prose, "snip")
    _, _, dense, *shown, _ = next(
        row for row in prose.splitlines() if row.startswith(f"| `{name}`")
    ).split("|")
    (run,) = (run for run in load_records("snip") if run.name == name)

    def mean(cell):  # its seeds stand in brackets behind it
        return float(cell.split()[0])

    assert mean(dense) == pytest.approx(run.values["snip.error.dense"], abs=0.051)  # 37.9
    for at, cell in zip((90, 95, 98, 99), shown, strict=True):
        if cell.strip():
            value = run.values[f"snip.error.snip.{at}"]
            assert mean(cell) == pytest.approx(value, abs=0.051 if value > 10 else 0.0051)
        else:
            assert f"snip.error.snip.{at}" not in run.values


def test_public_contract_is_importable():
    for name in (
        "connection_sensitivity", "global_topk_mask", "random_scores", "magnitude_scores",
        "shuffle_within_layer", "apply_masks", "mask_report", "mask_overlap",
    ):  # fmt: skip
        assert name in snip.__all__
        assert callable(getattr(snip, name))


def test_mnist_is_learned_from_a_real_file(real_data):
    data = standardise(load_images("mnist", real_data("MNIST/raw"))).limited(2000)
    (run,) = snip.compare_criteria(
        "lenet300",
        data,
        criteria=["snip"],
        sparsities=[0.95],
        seeds=[0],
        steps=150,
        dense=False,
    )
    assert run.kept == 13_331
    assert run.error < 20


def test_errors_of_an_untrained_network_are_near_chance(digits):
    model = snip.build_model("lenet300", digits, seeded())
    assert error_rate(model, digits.test_x, digits.test_y) > 75


@pytest.mark.parametrize("training", [True, False])
def test_removal_is_predicted_and_made_in_one_mode_and_changes_nothing(training):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.2, 3.0)
    model.train(training)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(40, 6), torch.randint(3, (40,))
    drawn = torch.Generator().manual_seed(1)
    predicted, true = snip.removal_effects(model, (x, y), 60, drawn)
    again = snip.removal_effects(model, (x, y), 60, torch.Generator().manual_seed(1))[1]
    assert torch.equal(true, again)
    assert (true - predicted).abs().max() < 0.2 * predicted.abs().max()
    assert model.training is training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
