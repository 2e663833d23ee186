"""Measures of a forecast, against hand values, invariances and slow twins."""

import math

import matplotlib.pyplot as plt
import pytest
import torch

from companion.data.trajectories import Tracks
from companion.forecasting import (
    ade,
    collision_rate,
    constant_velocity,
    fde,
    masked_mean,
    min_ade,
    min_fde,
    miss_rate,
    modified_hausdorff,
    nearest_distance,
    plot_paths,
    plot_tracks,
)


def line(*points):
    return torch.tensor(points, dtype=torch.float64)


def test_errors_by_hand():
    truth = line((0, 0), (1, 0), (2, 0))
    path = line((0, 0), (1, 3), (2, 4))
    assert ade(path, truth) == pytest.approx(7 / 3)
    assert fde(path, truth) == 4
    samples = torch.stack([path, truth + 1])
    assert min_ade(samples, truth) == pytest.approx(math.sqrt(2))
    assert min_fde(samples, truth) == pytest.approx(math.sqrt(2))


def test_the_best_sample_by_mean_and_by_end_may_differ():
    truth = torch.zeros(3, 2)
    samples = torch.stack([line((0, 0), (0, 0), (3, 0)), line((2, 0), (2, 0), (1, 0))])
    assert min_ade(samples, truth) == 1
    assert min_fde(samples, truth) == 1


def test_constant_velocity_goes_on_straight():
    past = line((5, 5), (0, 0), (1, 2)).expand(4, 2, 3, 2)
    ahead = constant_velocity(past, 3)
    assert torch.equal(ahead[0, 0], line((2, 4), (3, 6), (4, 8)))
    assert ahead.shape == (4, 2, 3, 2)
    with pytest.raises(ValueError, match="expected at least 2"):
        constant_velocity(past[..., -1:, :], 3)


def test_a_miss_is_an_end_outside_the_radius_for_all_samples():
    truth = torch.zeros(2, 1, 2)
    samples = line((3, 0), (1.9, 0), (3, 0), (2.1, 0)).view(2, 2, 1, 2)
    assert miss_rate(samples, truth) == 0.5
    assert miss_rate(samples, truth, radius=1.8) == 1


def test_at_the_radius_is_neither_a_miss_nor_a_collision():
    assert miss_rate(line((2, 0)).view(1, 1, 1, 2), torch.zeros(1, 1, 2)) == 0
    assert collision_rate(torch.stack([line((0, 0)), line((0.5, 0))]), 0.5) == 0


def test_collisions_are_of_the_same_time_and_of_agents_who_are_there():
    crossing = torch.stack([line((-1, 0), (0, 0), (1, 0)), line((0, -1), (0, 0), (0, 1))])
    late = torch.stack([crossing[0], line((0, -2), (0, -1), (0, 0))])
    far = crossing + torch.tensor([[[0.0, 0]], [[9.0, 0]]], dtype=torch.float64)
    paths = torch.stack([crossing, late, far])
    assert collision_rate(paths, 0.5) == pytest.approx(1 / 3)
    present = torch.tensor([[True, True], [True, True], [True, True]])
    present[0, 1] = False
    assert collision_rate(paths, 0.5, present) == 0


def test_passing_through_between_two_steps_counts_only_when_asked():
    swap = torch.stack([line((-0.5, 0), (0.5, 0)), line((0.5, 0), (-0.5, 0))])
    assert nearest_distance(swap)[0, 1] == 1
    slow = nearest_distance(swap / 20, between_steps=True)  # a relative step of 0.1
    assert slow[0, 1] == pytest.approx(0, abs=1e-12)
    assert nearest_distance(swap, between_steps=True)[0, 1] == 0
    assert nearest_distance(swap[:, :1])[0, 1] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_people_who_walk_side_by_side_keep_their_distance_in_every_precision(dtype):
    steps = torch.arange(5.0)
    paths = torch.stack([torch.stack([steps, 0 * steps + y], -1) for y in (0.0, 1.0)])
    found = nearest_distance(paths.to(dtype), between_steps=True)
    assert found.tolist() == [[math.inf, 1.0], [1.0, math.inf]]


def test_nearest_distance_between_steps_agrees_with_a_fine_sampling():
    paths = torch.randn(30, 3, 5, 2, generator=torch.Generator().manual_seed(0)).double()
    share = torch.linspace(0, 1, 400, dtype=torch.float64)[:, None]
    pieces = [
        paths[..., step, None, :] * (1 - share) + paths[..., step + 1, None, :] * share
        for step in range(4)
    ]
    fine = nearest_distance(torch.cat(pieces, -2))
    exact = nearest_distance(paths, between_steps=True)
    finite = exact.isfinite()
    assert (exact <= fine + 1e-12)[finite].all()
    torch.testing.assert_close(exact[finite], fine[finite], atol=0.02, rtol=0)


def test_modified_hausdorff_is_symmetric_and_the_larger_of_two_means():
    first, second = line((0, 0), (1, 0)), line((0, 0), (1, 0), (1, 3))
    assert modified_hausdorff(first, second) == modified_hausdorff(second, first) == 1
    assert modified_hausdorff(first, first) == 0
    batch = torch.stack([first, first + 1])
    assert modified_hausdorff(batch, batch).tolist() == [0, 0]
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(0, 2), torch.zeros(2)):
        for pair, name in (((wrong, first), "first"), ((first, wrong), "second")):
            with pytest.raises(ValueError, match=f"{name} .*expected .*points, 2"):
                modified_hausdorff(*pair)


def test_distances_of_many_points_are_as_exact_as_those_of_few():
    near = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) / 100
    first, second = near + 1000, near.roll(1, 0) * 2 + 1000
    apart = (first.double()[:, None] - second.double()).norm(dim=-1)
    exact = max(apart.amin(1).mean(), apart.amin(0).mean())
    assert modified_hausdorff(first, second).item() == pytest.approx(exact.item(), rel=1e-5)
    assert modified_hausdorff(first, first) == 0


def test_what_is_not_forecast_is_neither_a_hit_nor_a_miss():
    truth = torch.zeros(3, 2, 2)
    samples = torch.zeros(3, 4, 2, 2)
    assert miss_rate(samples, truth) == 0
    samples[1, 2, -1] = torch.nan
    for measure in (min_ade, min_fde):
        assert measure(samples, truth).isnan().tolist() == [False, True, False]
    assert miss_rate(samples, truth).isnan()
    assert modified_hausdorff(samples[1, 2], truth[1]).isnan()
    paths = torch.zeros(2, 2, 3, 2)  # two scenes of two people on each other
    assert collision_rate(paths, 0.5) == 1
    paths[0, 1, 1, 0] = torch.nan
    there = torch.tensor([[True, False], [True, True]])
    for between in (False, True):
        assert nearest_distance(paths, between_steps=between)[0, 0, 1].isnan()
        assert collision_rate(paths, 0.5, between_steps=between).isnan()
        assert collision_rate(paths, 0.5, there, between_steps=between) == 0.5


def test_nobody_collides_with_nobody():
    assert collision_rate(torch.zeros(3, 0, 5, 2), 1.0) == 0
    assert collision_rate(torch.zeros(3, 1, 5, 2), 1.0, between_steps=True) == 0
    assert collision_rate(torch.zeros(0, 5, 2), 1.0, torch.ones(0, dtype=torch.bool)) == 0


def test_measures_do_not_depend_on_where_the_scene_is_or_how_it_is_turned():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(6, 12, 2, generator=generator).double()
    samples = truth[:, None] + torch.randn(6, 5, 12, 2, generator=generator).double()
    turn = line((math.cos(0.7), -math.sin(0.7)), (math.sin(0.7), math.cos(0.7)))

    def moved(x):
        return x @ turn.T + torch.tensor([3.0, -8.0]).double()

    for measure in (min_ade, min_fde):
        torch.testing.assert_close(
            measure(moved(samples), moved(truth)), measure(samples, truth), rtol=1e-12, atol=0
        )


def test_a_mean_over_nobody_is_refused():
    values, mask = torch.tensor([[1.0, 5.0]]), torch.tensor([[True, False]])
    assert masked_mean(values, mask) == 1
    with pytest.raises(ValueError, match="True nowhere"):
        masked_mean(values, ~mask & mask)


def test_paths_need_a_colour_each_or_one_for_all():
    figure, axes = plt.subplots()
    plot_paths(axes, torch.zeros(3, 4, 2), colour=["blue", "red", "#00ff00"], alpha=0.5)
    assert len(axes.lines) == 6
    with pytest.raises(ValueError, match="2 for 3 paths"):
        plot_paths(axes, torch.zeros(3, 4, 2), colour=["blue", "red"])
    plt.close(figure)


def test_measures_of_nothing_are_refused():
    for call, message in {
        lambda: miss_rate(torch.zeros(0, 3, 4, 2), torch.zeros(0, 4, 2)): r"samples \(0, 3, 4, 2\): nothing",
        lambda: collision_rate(torch.zeros(0, 3, 4, 2), 0.1): r"paths \(0, 3, 4, 2\): nothing",
        lambda: collision_rate(torch.zeros(2, 3, 0, 2), 0.1): "at least one step",
        lambda: nearest_distance(torch.zeros(3, 2)): r"paths \(3, 2\)",
        lambda: min_ade(torch.zeros(2, 0, 4, 2), torch.zeros(2, 4, 2)): "at least one sample",
        lambda: ade(torch.zeros(2, 0, 2), torch.zeros(2, 0, 2)): r"path \(2, 0, 2\): expected at least",
        lambda: modified_hausdorff(torch.zeros(4, 2), torch.zeros(0, 2)): r"second \(0, 2\)",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_positions_of_integers_alone_are_refused():
    path = torch.tensor([[0, 0], [3, 4]])
    for call, message in {
        lambda: ade(path, path): "path, truth: torch.int64, torch.int64, expected floating-point",
        lambda: min_fde(path[None], path): "path, truth: torch.int64",
        lambda: collision_rate(path[None], 0.1): "paths: torch.int64, expected floating-point",
        lambda: modified_hausdorff(
            path, path
        ): "first, second: torch.int64, torch.int64, expected",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    for zeros in (torch.zeros(2, 2), torch.zeros(2, 2).double()):  # one of them may be
        assert ade(zeros, path).item() == 2.5
        assert modified_hausdorff(zeros, path).item() == 2.5
    assert modified_hausdorff(zeros.float(), zeros + 3).dtype == torch.float64


def test_a_forecast_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="steps = 0"):
        constant_velocity(torch.zeros(3, 2), 0)


def test_a_damaged_reference_picture_is_named(tmp_path):
    (tmp_path / "reference.png").write_bytes(b"no picture")
    one = torch.tensor([0, 1])
    tracks = Tracks("t", one, torch.tensor([1, 1]), torch.rand(2, 2).double(), 0.4,
                    picture=tmp_path / "reference.png", to_pixels=torch.eye(3).double())  # fmt: skip
    with pytest.raises(ValueError, match=r"reference\.png cannot be decoded"):
        plot_tracks(plt.figure().gca(), tracks)
    plt.close("all")


def test_shapes_that_would_broadcast_to_something_else_are_refused():
    samples, truth = torch.zeros(3, 4, 5, 12, 2), torch.zeros(3, 4, 12, 2)
    for call, message in {
        lambda: ade(samples[..., :7, :], truth[:, :, None]): r"path, truth .*as many steps",
        lambda: fde(truth[..., 0], truth[..., 0]): "path, truth",
        lambda: min_ade(truth, truth): r"samples, truth \(3, 4, 12, 2\)",
        lambda: min_fde(samples, truth[:1]): "samples, truth",
        lambda: masked_mean(truth, truth.long()): "mask: torch.int64, expected a boolean mask",
        lambda: nearest_distance(truth, torch.ones(3, 4)): "mask: torch.float32",
        lambda: constant_velocity(torch.zeros(8), 3): r"past \(8,\)",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_agents_of_any_numbers_get_colours_of_their_own():
    step, agent = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 7, 7])
    axes = plt.figure().gca()
    plot_tracks(axes, Tracks("two", step, agent, torch.rand(4, 2).double(), 0.4))
    assert len({line.get_color() for line in axes.lines}) == 2
    plt.close("all")
