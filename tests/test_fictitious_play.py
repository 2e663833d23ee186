"""Fictitious play: planning, expectations of others, play, learning, scenes, and their traps."""

import dataclasses
import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from companion.data.trajectories import Tracks
from companion.papers import fictitious_play as fp
from companion.papers.fictitious_play import give_way, planning
from companion.runs import chapters, executor

F64 = torch.float64
TRUE = fp.Weights(2.0, 3.0, (4.0, 1.0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_mdp(agents=2, height=4, width=3, horizon=3, radius=1, seed=0, scale=1.0, dtype=F64):
    g = generator(seed)
    size = 2 * radius + 1
    kernel = scale * torch.randn(agents, size, size, generator=g, dtype=dtype)
    reward = scale * torch.randn(horizon, agents, height, width, generator=g, dtype=dtype)
    terminal = scale * torch.randn(agents, height, width, generator=g, dtype=dtype)
    return kernel, reward, terminal


def paths_from(start, height, width, horizon, radius=1):
    """All feasible paths of one agent, a list of lists of cells."""
    offsets = range(-radius, radius + 1)
    found = [[start]]
    for _ in range(horizon):
        found = [
            [*path, (path[-1][0] + i, path[-1][1] + j)]
            for path in found
            for i in offsets
            for j in offsets
            if 0 <= path[-1][0] + i < height and 0 <= path[-1][1] + j < width
        ]
    return found


def worth(path, kernel, reward, terminal, radius=1):
    """Reward of one path, a step at a time."""
    total = terminal[path[-1]].item()
    for t, (here, there) in enumerate(itertools.pairwise(path)):
        total += kernel[there[0] - here[0] + radius, there[1] - here[1] + radius].item()
        total += reward[(t, *there)].item()
    return total


def crossing_pair(horizon=8, **options):
    """Two people whose ways cross at right angles."""
    grid = fp.Grid(-4, 4, -4, 4, 0.4)
    start = torch.tensor([[-2.0, 0.1], [0.1, -2.0]], dtype=F64)
    goal = torch.tensor([[2.0, 0.1], [0.1, 2.0]], dtype=F64)
    speed = torch.full((2,), 1.2, dtype=F64)
    scene = torch.zeros(2, dtype=torch.long)
    return fp.Crowd(grid, 0.4, grid.to_cell(start), goal, speed, scene, **options)


def take(crowd, *agents):
    return crowd.take(torch.tensor(agents))


# ---------------------------------------------------------------- grid


def test_cells_and_metres_agree():
    grid = fp.Grid(-4, 4, -2, 2, 0.4)
    assert grid.shape == (10, 20)
    assert grid.to_cell(torch.tensor([-3.9, 1.9])).tolist() == [9, 0]  # row is y, column is x
    cells = torch.tensor([[0, 0], [9, 19], [4, 7]])
    assert torch.equal(grid.to_cell(grid.to_metres(cells)), cells)
    assert torch.allclose(
        grid.to_metres(torch.tensor([0, 0])), torch.tensor([-3.8, -1.8], dtype=F64)
    )
    assert torch.equal(
        grid.centres().view(-1, 2)[grid.shape[1]], grid.to_metres(torch.tensor([1, 0]))
    )


def test_points_on_a_border_belong_to_the_upper_cell_whatever_the_rounding():
    grid = fp.Grid(-4, 4, -4, 4, 0.4)
    borders = torch.stack([torch.arange(-3, 4, dtype=F64) * 0.4] * 2, -1)
    assert grid.to_cell(borders)[:, 0].tolist() == [7, 8, 9, 10, 11, 12, 13]


def test_points_off_the_grid_are_told():
    grid = fp.Grid(0, 1, 0, 1, 0.5)
    points = torch.tensor([[0.2, 0.2], [1.2, 0.2], [0.2, -0.1], [0.99, 0.99]])
    assert grid.holds(grid.to_cell(points)).tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    "sides", [(0, 0, 0, 1, 0.5), (0, 1, 2, 1, 0.5), (0, 1, 0, 1, 0.0), (0, 1, 0, 1, math.inf)]
)
def test_an_impossible_grid_is_refused(sides):
    with pytest.raises(ValueError, match="expected"):
        fp.Grid(*sides)


def test_the_speed_kernel_has_its_hand_values():
    grid = fp.Grid(-1, 1, -1, 1, 0.4)
    kernel = fp.speed_kernel(grid, 0.4, torch.tensor([1.0, 2.0], dtype=F64), 3.0)
    assert kernel.shape == (2, 5, 5)
    assert kernel[0, 2, 2].item() == pytest.approx(-3.0)  # standing: (0 - 1)²
    assert kernel[0, 2, 3].item() == pytest.approx(0.0)  # one cell in 0.4 s is 1 m/s
    assert kernel[1, 4, 4].item() == pytest.approx(-3 * (math.sqrt(8) - 2) ** 2)


# ---------------------------------------------------------------- planning


def test_the_backward_pass_equals_the_sum_over_all_paths():
    kernel, reward, terminal = random_mdp(2, 3, 3, 3)
    values = fp.soft_value_iteration(kernel, reward, terminal)
    for agent, start in itertools.product(range(2), itertools.product(range(3), range(3))):
        each = [
            worth(p, kernel[agent], reward[:, agent], terminal[agent])
            for p in paths_from(start, 3, 3, 3)
        ]
        exact = torch.tensor(each, dtype=F64).logsumexp(0)
        assert abs(values[(0, agent, *start)] - exact) < 1e-10


def test_occupancy_and_path_probabilities_equal_those_of_all_paths():
    kernel, reward, terminal = random_mdp(1, 3, 4, 3, seed=2)
    start = torch.tensor([[1, 0]])
    policy, maps = fp.plan(kernel, reward, terminal, start)
    brute = torch.zeros(4, 3, 4, dtype=F64)
    total = 0.0
    for path in paths_from((1, 0), 3, 4, 3):
        chance = policy.log_prob(torch.tensor(path)[:, None]).exp().item()
        total += chance
        for t, cell in enumerate(path):
            brute[(t, *cell)] += chance
    assert total == pytest.approx(1, abs=1e-12)
    assert torch.allclose(maps[:, 0], brute, atol=1e-12)


def test_no_rewards_count_the_paths():
    nothing = torch.zeros(1, 3, 3, dtype=F64), torch.zeros(4, 1, 3, 5, dtype=F64)
    values = fp.soft_value_iteration(*nothing, torch.zeros(1, 3, 5, dtype=F64))
    assert values[0, 0, 1, 2].exp().item() == pytest.approx(len(paths_from((1, 2), 3, 5, 4)))


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_both_forms_agree(radius):
    kernel, reward, terminal = random_mdp(3, 7, 6, 5, radius, seed=radius, scale=3.0)
    start = torch.tensor([[0, 0], [6, 5], [3, 2]])
    forms = ("convolution", "logsumexp")
    values = [fp.soft_value_iteration(kernel, reward, terminal, form=f) for f in forms]
    assert (values[0] - values[1]).abs().max() < 1e-10
    maps = [
        fp.occupancy(kernel, reward, v, start, form=f) for v, f in zip(values, forms, strict=True)
    ]
    assert (maps[0] - maps[1]).abs().max() < 1e-12


def test_both_forms_have_one_gradient_beside_a_building_as_wide_as_a_step():
    kernel, reward, terminal = random_mdp(2, 7, 7, 5, radius=1, seed=6)
    reward[..., 2:5, 2:5] = -math.inf  # from its middle there is nowhere to go
    kernel.requires_grad_()
    slopes = []
    for form in ("convolution", "logsumexp"):
        values = fp.soft_value_iteration(kernel, reward, terminal, form=form)
        slopes += torch.autograd.grad(values[0, :, 0, 0].sum(), kernel)
    assert values[0, :, 3, 3].isneginf().all()
    assert (slopes[0] - slopes[1]).abs().max() < 1e-10


@pytest.mark.parametrize("form", ["convolution", "logsumexp"])
def test_mass_is_conserved_and_stays_on_the_grid(form):
    kernel, reward, terminal = random_mdp(4, 6, 5, 8, 2, seed=4)
    start = torch.tensor([[0, 0], [5, 4], [0, 4], [3, 3]])
    values = fp.soft_value_iteration(kernel, reward, terminal, form=form)
    maps = fp.occupancy(kernel, reward, values, start, form=form)
    assert maps.min() >= 0
    assert (maps.sum((2, 3)) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("form", ["convolution", "logsumexp"])
def test_a_cheap_step_up_moves_mass_up(form):
    """A flipped kernel in either pass would send it down or leave values and maps at odds."""
    kernel = torch.full((1, 3, 3), -8.0, dtype=F64)
    kernel[0, 2, 1] = 0.0  # [R + 1, R]: a row up
    kernel[0, 1, 2] = -1.0  # a column to the right
    reward, terminal = torch.zeros(3, 1, 9, 9, dtype=F64), torch.zeros(1, 9, 9, dtype=F64)
    values = fp.soft_value_iteration(kernel, reward, terminal, form=form)
    maps = fp.occupancy(kernel, reward, values, torch.tensor([[4, 4]]), form=form)
    rows = (maps[:, 0].sum(2) * torch.arange(9)).sum(1) - 4
    columns = (maps[:, 0].sum(1) * torch.arange(9)).sum(1) - 4
    share = 1 / (1 + math.exp(-1))
    assert rows[3].item() == pytest.approx(3 * share, abs=0.02)
    assert columns[3].item() == pytest.approx(3 * (1 - share), abs=0.02)
    # the top border: a step up from there is impossible, so staying below it is worth more
    assert values[0, 0, 8, 4] < values[0, 0, 4, 4]


def test_a_reward_belongs_to_the_step_that_enters_the_cell():
    kernel = torch.zeros(1, 3, 3, dtype=F64)
    reward = torch.zeros(3, 1, 5, 5, dtype=F64)
    reward[1, 0, 2, 3] = 6.0  # worth entering at step 2, and then only
    policy, maps = fp.plan(kernel, reward, torch.zeros(1, 5, 5, dtype=F64), torch.tensor([[2, 1]]))
    assert maps[:, 0, 2, 3].argmax() == 2
    assert maps[2, 0, 2, 3] > 0.9
    assert policy.values[2].std() < policy.values[1].std()


def test_infeasible_steps_have_no_probability():
    kernel, reward, terminal = random_mdp(1, 4, 4, 2)
    values = fp.soft_value_iteration(kernel, reward, terminal)
    fine = torch.tensor([[[0, 0]], [[1, 1]], [[1, 2]]])
    for step, cell in ((1, (2, 0)), (2, (3, 2)), (2, (1, 4)), (1, (-1, 0))):
        bad = fine.clone()
        bad[step, 0] = torch.tensor(cell)
        assert fp.path_log_prob(bad, kernel, reward, values).item() == -math.inf
    assert fp.path_log_prob(fine, kernel, reward, values).isfinite().all()
    each = fp.path_log_prob(fine, kernel, reward, values, each_step=True)
    assert torch.allclose(each.sum(0), fp.path_log_prob(fine, kernel, reward, values))


def test_an_infeasible_path_is_counted_and_not_averaged():
    crowd = crossing_pair()
    policy, _ = fp.respond(crowd, TRUE.alone(), 2)
    path = crowd.start.repeat(3, 1, 1)
    path[2, 1, 0] += 3
    paths = torch.stack([path, crowd.start.repeat(3, 1, 1)])
    found = fp.metrics.likelihood(policy, paths)
    assert (found.paths, found.infeasible) == (4, 1)
    each = fp.nll_per_step(policy, paths)
    assert found.nats_per_step == pytest.approx((each[0, 0] + each[1].sum()).item() / 3)


@pytest.mark.parametrize("depth", [300.0, 900.0])
def test_a_start_far_below_the_best_cell_is_planned_in_log_space(depth):
    """Walking uphill through a deep valley: the convolution form underflows at the start."""
    kernel = torch.zeros(1, 3, 3, dtype=F64)
    reward = torch.full((6, 1, 1, 8), -depth, dtype=F64)
    reward[..., 7] = 0.0
    terminal = torch.zeros(1, 1, 8, dtype=F64)
    start = torch.tensor([[0, 0]])
    policy, maps = fp.plan(kernel, reward, terminal, start)
    exact = fp.soft_value_iteration(kernel, reward, terminal, form="logsumexp")
    assert policy.values[0, 0, 0, 0] == pytest.approx(exact[0, 0, 0, 0].item())
    assert fp.planning.start_value(kernel, reward, terminal, start).item() == pytest.approx(
        exact[0, 0, 0, 0].item()
    )
    assert (maps.sum((2, 3)) - 1).abs().max() < 1e-9
    wrong = fp.soft_value_iteration(kernel, reward, terminal)[0, 0, 0, 0]
    assert abs(wrong - exact[0, 0, 0, 0]) > 100  # so the fallback was needed


def test_single_precision_falls_back_sooner():
    kernel = torch.zeros(1, 3, 3)
    reward = torch.full((4, 1, 1, 5), -30.0)
    reward[..., 4] = 0.0
    terminal, start = torch.zeros(1, 1, 5), torch.tensor([[0, 0]])
    policy, maps = fp.plan(kernel, reward, terminal, start)
    exact = fp.soft_value_iteration(kernel.double(), reward.double(), terminal.double())
    assert policy.values[0, 0, 0, 0].item() == pytest.approx(exact[0, 0, 0, 0].item(), rel=1e-5)
    assert (maps.sum((2, 3)) - 1).abs().max() < 1e-4


def test_nobody_enters_a_blocked_cell_and_a_walled_in_agent_is_refused():
    blocked = torch.zeros(20, 20, dtype=torch.bool)
    blocked[:12, 9] = True  # a wall across the way of the first agent
    crowd = take(crossing_pair(blocked=blocked), 0)
    _, maps = fp.respond(crowd, TRUE.alone(), 14)
    assert maps[:, 0][:, blocked].max() == 0
    assert maps[-1, 0, :, 10:].sum() > 0.5  # it goes round
    row, column = crowd.start[0].tolist()
    shut = torch.zeros(20, 20, dtype=torch.bool)
    shut[row - 2 : row + 3, column - 2 : column + 3] = True
    with pytest.raises(ValueError, match=r"agents \[0\] cannot move"):
        fp.respond(dataclasses.replace(crowd, blocked=shut), TRUE.alone(), 3)


def test_wrong_shapes_and_starts_are_refused():
    kernel, reward, terminal = random_mdp()
    with pytest.raises(ValueError, match="form"):
        fp.soft_value_iteration(kernel, reward, terminal, form="dense")
    with pytest.raises(ValueError, match="expected"):
        fp.soft_value_iteration(kernel, reward[:, :1], terminal)
    with pytest.raises(ValueError, match="odd"):
        fp.soft_value_iteration(kernel[:, :2, :2], reward, terminal)
    with pytest.raises(ValueError, match=r"agents \[1\] are off"):
        fp.plan(kernel, reward, terminal, torch.tensor([[0, 0], [4, 0]]))
    with pytest.raises(ValueError, match="cells"):
        fp.path_log_prob(torch.zeros(2, 2, 2), kernel, reward, terminal)


def test_samples_are_as_frequent_as_the_occupancy_says():
    kernel, reward, terminal = random_mdp(2, 4, 5, 4, seed=7)
    start = torch.tensor([[0, 0], [3, 4]])
    policy, maps = fp.plan(kernel, reward, terminal, start)
    paths = policy.sample(20_000, generator())
    assert paths.shape == (20_000, 5, 2, 2)
    assert torch.isfinite(policy.log_prob(paths[0])).all()
    for t in (1, 4):
        counts = sum(fp.social.at_cells((4, 5), p[t : t + 1], F64)[0] for p in paths[:4000]) / 4000
        # four standard errors of a share of at most 1/2
        assert (counts - maps[t]).abs().max() < 4 * 0.5 / math.sqrt(4000)


# ---------------------------------------------------------------- expectations of others


def test_smoothing_is_a_gaussian_of_peak_one_cut_at_three_sigma():
    point = torch.zeros(21, 21, dtype=F64)
    point[10, 10] = 1
    blurred = fp.social.smooth(point, 0.8, 0.4)
    assert blurred[10, 10] == 1
    assert blurred[10, 12].item() == pytest.approx(math.exp(-0.5))
    assert blurred[12, 12].item() == pytest.approx(math.exp(-1.0))
    assert blurred[10, 16] > 0
    assert blurred[10, 17] == 0  # 7 cells are 3.5 sigma


def test_social_features_equal_a_loop_over_pairs():
    D = torch.rand(4, 3, 6, 5, generator=generator(), dtype=F64)
    mask = torch.tensor([[0, 1, 0], [1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    found = fp.social_features(D, mask, (0.35, 0.9), cell_m=0.4)
    assert found.shape == (3, 3, 2, 6, 5)
    centres = fp.Grid(0, 2, 0, 2.4, 0.4).centres()
    for t, i, m in itertools.product(range(3), range(3), range(2)):
        sigma, expected = (0.35, 0.9)[m], torch.zeros(6, 5, dtype=F64)
        for j in mask[i].nonzero().flatten().tolist():
            for row, column in itertools.product(range(6), range(5)):
                away = (centres - centres[row, column]).abs()
                near = torch.exp(-0.5 * (away / sigma).square().sum(-1))
                near[(away > 3 * sigma + 1e-9).any(-1)] = 0
                expected += near * D[t + 1, j, row, column]
        assert torch.allclose(found[t, i, m], expected, atol=1e-12)


def test_a_passer_by_repels_only_while_there():
    """The neighbour crosses the way at step 2 and has left the grid's middle by step 8."""
    crowd = crossing_pair(horizon=10)
    gone = crowd.start[1].repeat(11, 1)
    gone[2] = torch.tensor([10, 10])
    other = torch.stack([crowd.start[0].repeat(11, 1), gone], 1)
    maps = fp.social.at_cells(crowd.grid.shape, other, F64)
    near = fp.social_features(maps, crowd.pair_mask(), (0.35,), cell_m=0.4)[:, 0, 0]
    assert near[1, 10, 10] == 1  # the step that ends at 2
    assert near[7, 10, 10] == 0  # the step that ends at 8
    assert near[0, 10, 10] == 0
    assert near[2, 10, 10] == 0


def test_members_of_a_group_do_not_mind_each_other():
    base = crossing_pair()
    together = dataclasses.replace(base, group=torch.tensor([3, 3]))
    loners = dataclasses.replace(base, group=torch.tensor([-1, -1]))
    alone = fp.FictitiousPlay(base, TRUE, 8, iterations=0).run().response
    ignoring = fp.FictitiousPlay(together, TRUE, 8, iterations=3).run().response
    minding = fp.FictitiousPlay(loners, TRUE, 8, iterations=3).run().response
    unmasked = fp.FictitiousPlay(together, TRUE, 8, iterations=3, mask_groups=False).run().response
    assert torch.equal(ignoring, alone)
    assert (minding - alone).abs().max() > 0.01
    assert torch.equal(unmasked, minding)


def test_people_of_different_scenes_do_not_meet():
    pair = crossing_pair()
    both = pair.repeat(2)
    assert both.scene.tolist() == [0, 0, 1, 1]
    assert both.pair_mask().sum() == 4
    apart = fp.FictitiousPlay(pair, TRUE, 8, iterations=4).run()
    merged = fp.FictitiousPlay(both, TRUE, 8, iterations=4).run()
    for part in (merged.response[:, :2], merged.response[:, 2:]):
        assert torch.allclose(part, apart.response, atol=1e-13)


@pytest.mark.parametrize("scene", [[-1, 0], [3, 7], [5, -2]])
def test_copies_of_a_crowd_never_meet_whatever_the_scenes_are_called(scene):
    apart = dataclasses.replace(crossing_pair(), scene=torch.tensor(scene))
    assert not apart.repeat(3).pair_mask().any()


# ---------------------------------------------------------------- play


def test_order_of_agents_does_not_matter():
    crowd, _, _ = fp.scenes.self_play(2, TRUE, n_samples=1, iterations=0)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    one = fp.FictitiousPlay(crowd, TRUE, 6, iterations=4).run()
    other = fp.FictitiousPlay(crowd.take(order), TRUE, 6, iterations=4).run()
    assert torch.allclose(one.occupancy[:, order], other.occupancy, atol=1e-12)
    assert torch.allclose(one.gaps[:, order], other.gaps, atol=1e-12)


def test_somebody_beyond_three_sigma_of_every_path_changes_nothing():
    pair = crossing_pair(horizon=3)
    far = fp.Grid(-4, 20, -4, 4, 0.4)
    start = torch.cat([far.to_metres(pair.start), torch.tensor([[16.0, 0.0]], dtype=F64)])
    goal = torch.cat([pair.goal, torch.tensor([[18.0, 0.0]], dtype=F64)])
    speed, scene = torch.full((3,), 1.2, dtype=F64), torch.zeros(3, dtype=torch.long)
    trio = fp.Crowd(far, 0.4, far.to_cell(start), goal, speed, scene)
    duo = take(trio, 0, 1)
    with_far = fp.FictitiousPlay(trio, TRUE, 3, iterations=3).run().response
    without = fp.FictitiousPlay(duo, TRUE, 3, iterations=3).run().response
    assert torch.allclose(with_far[:, :2], without, atol=1e-14)


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_without_social_weights_play_is_the_single_agent_forecast(update):
    crowd = crossing_pair()
    played = fp.FictitiousPlay(crowd, TRUE.alone(), 8, iterations=1, update=update).run()
    _, alone = fp.respond(crowd, TRUE.alone(), 8)
    assert torch.equal(played.occupancy, alone)
    assert played.tv_history == [0.0]


def test_play_lowers_the_overlap_and_converges_to_an_equilibrium():
    crowd = crossing_pair()
    long = fp.FictitiousPlay(crowd, TRUE, 8, iterations=150).run()
    _, alone = fp.respond(crowd, TRUE.alone(), 8)

    def overlap(maps):
        return (maps[:, 0] * maps[:, 1]).sum((1, 2)).max()

    assert overlap(long.response) < 0.7 * overlap(alone)
    assert long.tv_history[-1] < 0.05 * long.tv_history[0]


def test_averaging_is_the_mean_of_all_forecasts():
    seen = []
    crowd = crossing_pair()
    play = fp.FictitiousPlay(crowd, TRUE, 6, iterations=3)
    found = play.run(lambda k, response, expected: seen.append((k, response.clone())))
    assert [k for k, _ in seen] == [0, 1, 2, 3]
    mean = torch.stack([response for _, response in seen]).mean(0)
    assert torch.allclose(found.occupancy, mean, atol=1e-14)
    last = fp.FictitiousPlay(crowd, TRUE, 6, iterations=3, average=False).run()
    assert torch.allclose(last.occupancy, last.response, atol=1e-15)  # beliefs are the last one


def test_the_second_mover_sees_what_the_first_has_changed():
    crowd = crossing_pair()
    after = fp.FictitiousPlay(
        crowd, TRUE, 8, iterations=1, average=False, update="sequential"
    ).run()
    _, alone = fp.respond(crowd, TRUE.alone(), 8)
    mask = crowd.pair_mask()
    _, first = fp.respond(crowd, TRUE, 8, fp.social.expected_others(alone, mask))
    seen = torch.stack([first[:, 0], alone[:, 1]], 1)
    _, second = fp.respond(crowd, TRUE, 8, fp.social.expected_others(seen, mask))
    assert torch.allclose(after.response[:, 0], first[:, 0], atol=1e-14)
    assert torch.allclose(after.response[:, 1], second[:, 1], atol=1e-14)
    assert (second[:, 1] - first[:, 1]).abs().max() > 1e-3
    assert after.policy.start.tolist() == crowd.start.tolist()


def test_sequential_play_keeps_agents_in_their_places():
    crowd = fp.crowd.self_play_crowd(3, generator(1))
    shuffled = crowd.take(torch.tensor([0, 3, 6, 1, 4, 7, 2, 5, 8]))
    play = fp.FictitiousPlay(shuffled, TRUE, 5, iterations=2, update="sequential").run()
    paths = play.sample(1, generator())
    assert torch.equal(paths[0, 0], shuffled.start)
    assert fp.nll_per_step(play.policy, paths[0]).isfinite().all()


def test_play_stops_at_its_tolerance():
    crowd = crossing_pair()
    found = fp.FictitiousPlay(crowd, TRUE, 6, iterations=100, tolerance=0.05).run()
    assert found.tv_history[-1] < 0.05 <= min(found.tv_history[:-1])


def test_choices_of_play_are_checked():
    crowd = crossing_pair()
    with pytest.raises(ValueError, match="update"):
        fp.FictitiousPlay(crowd, TRUE, 5, update="random")
    for iterations in (-1, 2.5):
        with pytest.raises(ValueError, match=f"iterations = {iterations}: expected a whole"):
            fp.FictitiousPlay(crowd, TRUE, 5, iterations=iterations)
    for horizon in (0, 8.0):
        with pytest.raises(ValueError, match=f"horizon = {horizon}: expected a whole"):
            fp.FictitiousPlay(crowd, TRUE, horizon)
    with pytest.raises(ValueError, match="sigmas_m"):
        fp.FictitiousPlay(crowd, TRUE, 5, sigmas_m=(0.5,)).run()


def test_exploitability_is_the_path_divergence_from_the_best_response():
    """Against all paths of two agents on a small grid, enumerated."""
    grid = fp.Grid(0, 1.2, 0, 1.2, 0.4)
    speed, scene = torch.ones(2, dtype=F64), torch.zeros(2, dtype=torch.long)
    start = torch.tensor([[0, 0], [2, 2]])
    crowd = fp.Crowd(grid, 0.4, start, grid.to_metres(start.flip(0)), speed, scene, radius_cells=1)
    weights = fp.Weights(1.0, 1.0, (2.0, 1.0))
    policy, maps = fp.respond(crowd, weights.alone(), 2)
    others = fp.social.expected_others(maps, crowd.pair_mask())
    best, _ = fp.respond(crowd, weights, 2, others)
    found = fp.exploitability(crowd, weights, policy, maps)
    for agent in range(2):
        cells = torch.tensor(paths_from(tuple(start[agent].tolist()), 3, 3, 2))
        every = torch.stack([cells, cells], 2)
        logs = [torch.stack([p.log_prob(c)[agent] for c in every]) for p in (policy, best)]
        divergence = (logs[0].exp() * (logs[0] - logs[1])).sum()
        assert found[agent].item() == pytest.approx(divergence.item(), abs=1e-12)
        assert found[agent] > 0.01


def test_exploitability_vanishes_at_the_equilibrium():
    crowd, weights = fp.crowd.head_on(8)
    best = fp.FictitiousPlay(crowd, weights, 10, iterations=60, average=False).run()
    assert fp.exploitability(crowd, weights, best.policy, best.response).max() < 1e-9
    alone = fp.FictitiousPlay(crowd, weights, 10, iterations=0).run()
    assert fp.exploitability(crowd, weights, alone.policy, alone.response).min() > 0.05


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("weight", [0.0, 8.0, 20.0])
def test_people_head_on_are_images_of_each_other(weight, average):
    crowd, weights = fp.crowd.head_on(weight)
    maps = fp.FictitiousPlay(crowd, weights, 10, iterations=40, average=average).run().occupancy
    assert (maps[:, 0] - maps[:, 1].flip(1, 2)).abs().max() < 1e-12


def test_sequential_updates_break_the_symmetry():
    crowd, weights = fp.crowd.head_on(20.0)
    maps = fp.FictitiousPlay(crowd, weights, 10, iterations=3, update="sequential").run().occupancy
    assert (maps[:, 0] - maps[:, 1].flip(1, 2)).abs().max() > 1e-3


# ---------------------------------------------------------------- learning


def small_crowd():
    crowd = fp.crowd.self_play_crowd(2, generator(3))
    log_map = torch.rand(crowd.grid.shape, generator=generator(4), dtype=F64).log()
    return dataclasses.replace(crowd, log_map=log_map)


def some_social(crowd, horizon):
    _, maps = fp.respond(crowd, TRUE.alone(), horizon)
    return fp.social_features(maps, crowd.pair_mask(), fp.crowd.SIGMAS_M, cell_m=crowd.grid.cell_m)


def test_the_gradient_is_the_difference_of_expected_and_seen_features():
    crowd, horizon = small_crowd(), 5
    social = some_social(crowd, horizon)
    theta = torch.tensor([1.5, 2.0, 3.0, 0.7, 0.4], dtype=F64, requires_grad=True)
    weights = fp.Weights(1.5, 2.0, (3.0, 0.7), 0.4)
    others = fp.social.expected_others(
        fp.respond(crowd, TRUE.alone(), horizon)[1], crowd.pair_mask()
    )
    policy, maps = fp.respond(crowd, weights, horizon, others)
    path = policy.sample(1, generator())[0]
    seen = fp.learning.path_features(crowd, path, social)
    loss = fp.learning.log_partition(crowd, theta, social) - seen @ theta
    assert torch.allclose(-loss.detach(), policy.log_prob(path), atol=1e-9)
    expected = fp.learning.expected_features(crowd, policy, maps, social)
    for agent in range(len(crowd)):
        (slope,) = torch.autograd.grad(loss[agent], theta, retain_graph=True)
        assert (slope - (expected - seen)[agent]).abs().max() < 1e-8


def test_the_gradient_passes_gradcheck():
    crowd, horizon = take(small_crowd(), 0, 1), 2
    social = some_social(crowd, horizon)
    theta = torch.tensor([1.0, 0.5, 2.0, 0.3, 0.2], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: fp.learning.log_partition(crowd, x, social), (theta,)
    )


def test_the_weights_behind_sampled_paths_are_found():
    crowd, paths, _ = fp.scenes.self_play(6, TRUE, n_samples=60, seed=1)
    fit = fp.MaxEntIOC(rounds=3).fit(crowd, paths)
    assert fit.weights.speed == pytest.approx(2, rel=0.06)
    assert fit.weights.goal == pytest.approx(3, rel=0.08)
    cost = fp.social.social_cost(fit.weights.social, fp.crowd.SIGMAS_M)
    assert cost == pytest.approx(fp.social.social_cost(TRUE.social, fp.crowd.SIGMAS_M), rel=0.2)
    assert fit.history[0].social == (0.0, 0.0)
    assert fit.nats_per_step[-1] < fit.nats_per_step[0] - 0.03
    assert (fit.paths, fit.infeasible) == (60 * 18, 0)


@pytest.mark.parametrize("social", ["observed", "none", "forecast"])
def test_infeasible_paths_are_counted_and_do_not_change_the_fit(social):
    crowd, paths, _ = fp.scenes.self_play(2, TRUE, n_samples=3, horizon=5)
    bad = torch.cat([paths, paths[:1]])
    bad[3, 2] += 4  # everybody jumps
    rules = {"rounds": 1, "fp_iterations": 2, "iterations": 10, "social": social}
    clean, dirty = (fp.MaxEntIOC(**rules).fit(crowd, p) for p in (paths, bad))
    assert (clean.infeasible, dirty.infeasible) == (0, 6)
    if social != "observed":
        assert clean.weights.speed == pytest.approx(dirty.weights.speed, rel=1e-6)
    with pytest.raises(ValueError, match="none of 6 paths"):
        fp.MaxEntIOC(**rules).fit(crowd, bad[3])


def test_a_fit_whose_loss_is_no_number_is_refused():
    crowd, paths, _ = fp.scenes.self_play(1, TRUE, n_samples=1, horizon=3)
    log_map = torch.full(crowd.grid.shape, math.nan, dtype=F64)
    with pytest.raises(ValueError, match="crowd: its paths have a loss of nan"):
        fp.MaxEntIOC(social="none").fit(dataclasses.replace(crowd, log_map=log_map), paths)


def test_others_where_they_were_seen_are_learnt_from_their_own_sample():
    """Each sample of a scene has its own neighbours: mixing them up would lose the signal."""
    crowd, paths, _ = fp.scenes.self_play(4, TRUE, n_samples=4, seed=5)
    several = fp.MaxEntIOC(social="observed").fit(crowd, paths)
    flat = crowd.repeat(4)
    merged = fp.MaxEntIOC(social="observed").fit(flat, paths.transpose(0, 1).flatten(1, 2))
    assert several.weights == merged.weights


def test_an_unknown_way_of_learning_is_refused():
    with pytest.raises(ValueError, match="social"):
        fp.MaxEntIOC(social="both")
    crowd = crossing_pair()
    with pytest.raises(ValueError, match="theta"):
        fp.learning.log_partition(crowd, torch.ones(3, dtype=F64), some_social(crowd, 2))


def test_chunks_of_agents_do_not_change_the_fit(monkeypatch):
    from companion.papers.fictitious_play import learning

    crowd, paths, _ = fp.scenes.self_play(2, TRUE, n_samples=3, horizon=5)
    whole = fp.MaxEntIOC(social="none").fit(crowd, paths).weights
    monkeypatch.setattr(learning, "AT_ONCE", 2)
    parts = fp.MaxEntIOC(social="none").fit(crowd, paths).weights
    assert parts.speed == pytest.approx(whole.speed, rel=1e-6)


# ---------------------------------------------------------------- appearance


def test_figures_differ_in_size_and_the_classifier_sees_it():
    g = generator()
    kind = torch.arange(3).repeat(300)
    pictures = fp.appearance.sprites(kind, g)
    assert pictures.shape == (900, 3, 32, 16)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    torch.manual_seed(0)
    model = fp.SpeedClassifier().fit(pictures, kind, g, steps=400)
    seen = model(fp.appearance.sprites(kind, g)).argmax(1)
    assert (seen == kind).float().mean() > 0.5  # a third by chance
    speed = model.speed(pictures)
    assert speed.dtype == F64
    assert (speed > 0.8).all()
    assert (speed < 1.6).all()
    assert speed[kind == 0].mean() + 0.2 < speed[kind == 2].mean()


def test_the_speed_is_the_expectation_over_classes():
    model = fp.SpeedClassifier((1.0, 2.0, 4.0))
    with torch.no_grad():
        model.layers[-1].weight.zero_()
        model.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, 2.0]).log().nan_to_num(neginf=-1e9))
    assert model.speed(torch.rand(2, 3, 32, 16)).tolist() == pytest.approx([4.0, 4.0])
    with torch.no_grad():
        model.layers[-1].bias.copy_(torch.tensor([1.0, 2.0, 1.0]).log())
    assert model.speed(torch.rand(1, 3, 32, 16)).item() == pytest.approx(2.25)


# ---------------------------------------------------------------- the give-way game


def test_the_symmetric_response_has_slope_minus_half_the_cost():
    for cost in (0.5, 2.0, 5.0):
        step = 1e-6
        slope = (
            give_way.soft_response(0.5 + step, cost) - give_way.soft_response(0.5 - step, cost)
        ) / (2 * step)
        assert slope == pytest.approx(-cost / 2, rel=1e-6)
    assert give_way.soft_response(0.5, 7.0) == 0.5


@pytest.mark.parametrize("cost", [0.3, 1.9, 2.0, 2.0001, 2.1, 3.0, 8.0])
def test_yielding_equilibria_appear_at_a_cost_of_two(cost):
    found = give_way.equilibria(cost)
    assert len(found) == (1 if cost <= 2 else 3)
    for p, q in found:
        assert p == pytest.approx(give_way.soft_response(q, cost), abs=1e-9)
        assert q == pytest.approx(give_way.soft_response(p, cost), abs=1e-9)
    if cost > 2:
        assert found[1][0] > 0.5 > found[1][1]


@pytest.mark.parametrize("above", [1e-15, 1e-12, 1e-9, 0.9e-6, 1.1e-6, 1e-5])
def test_near_a_cost_of_two_equilibria_leave_one_half_as_a_square_root(above):
    cost = 2 + above
    high = give_way.equilibria(cost)[1][0] - 0.5
    # a relative error of the order of c - 2, and the rounding of p by 1e-16
    assert high == pytest.approx(math.sqrt(3 * (cost - 2) / 8), rel=1e-5, abs=2e-16)


def test_undamped_play_is_stable_below_two_only():
    quiet = give_way.play_give_way(1.5, (0.7, 0.7), 200, average=False)
    assert abs(quiet[-1] - 0.5).max() < 1e-6
    loud = give_way.play_give_way(4.0, (0.51, 0.51), 200, average=False)
    assert abs(loud[-1] - 0.5).min() > 0.4  # both flip from side to side for ever
    assert (loud[-1] > 0.5).all() != (loud[-2] > 0.5).all()


def test_averaged_play_finds_half_or_one_who_yields():
    symmetric = give_way.play_give_way(4.0, (0.8, 0.8), 4000, average=True)
    assert abs(symmetric[-1] - 0.5).max() < 1e-2
    uneven = give_way.play_give_way(4.0, (0.6, 0.55), 20_000, average=True)
    assert uneven[-1] == pytest.approx(np.array(give_way.equilibria(4.0)[1]), abs=0.02)


# ---------------------------------------------------------------- scenes and judgements


def test_self_play_is_what_it_says():
    crowd, paths, forecast = fp.scenes.self_play(3, TRUE, n_samples=5, seed=2)
    assert len(crowd) == 9
    assert paths.shape == (5, 11, 9, 2)
    place = crowd.grid.to_metres(crowd.start)
    assert (place.norm(dim=1) - 2.2).abs().max() < 0.4
    assert torch.allclose(crowd.goal.norm(dim=1), torch.tensor(2.2 * 1.3, dtype=F64))
    assert set(crowd.speed.tolist()) <= {0.8, 1.2, 1.6}
    assert fp.nll_per_step(forecast.policy, paths).isfinite().all()
    again, same, _ = fp.scenes.self_play(3, TRUE, n_samples=5, seed=2)
    assert torch.equal(paths, same)
    assert torch.equal(crowd.start, again.start)


def test_people_who_cross_are_observed_whole():
    seen = fp.scenes.circle_crossing(5, horizon=6, seed=1)
    assert seen.cells.shape == (7, 20, 2)
    assert seen.counts == {
        "agents": 20, "off_grid": 0, "no_goal": 0, "infeasible": 0, "scenes": 5, "empty_scenes": 0,
    }  # fmt: skip
    assert torch.equal(seen.crowd.speed, torch.tensor([0.8, 1.2, 1.6], dtype=F64)[seen.kind])
    assert (seen.mean_speed() < 1.7).all()
    assert torch.equal(seen.with_speed(seen.mean_speed()).crowd.speed, seen.mean_speed())


def test_what_does_not_fit_the_grid_is_counted():
    grid = fp.Grid(-4, 4, -4, 4, 0.4)
    t = torch.arange(4, dtype=F64)
    walk = torch.stack([0.4 * t, torch.zeros(4, dtype=F64)], -1)
    positions = walk[:, None] + torch.zeros(4, 5, 2, dtype=F64)
    positions[3, 1] = torch.tensor([9.0, 0.0])  # leaves the grid
    positions[2, 2] = torch.nan  # is lost
    positions[3, 4, 1] = 3.0  # jumps
    goal = torch.ones(5, 2, dtype=F64)
    goal[3] = torch.nan
    scene = torch.tensor([0, 1, 1, 2, 0])
    seen = fp.observe(grid, 0.4, positions, goal, torch.ones(5, dtype=F64), scene)
    assert seen.counts == {
        "agents": 5, "off_grid": 2, "no_goal": 1, "infeasible": 1, "scenes": 3, "empty_scenes": 2,
    }  # fmt: skip
    assert len(seen.crowd) == 2
    with pytest.raises(ValueError, match="none of 5 agents"):
        fp.observe(grid, 0.4, positions + 100, goal, torch.ones(5, dtype=F64), scene)


def test_a_crowd_without_goal_or_ground_is_refused():
    good = crossing_pair()
    with pytest.raises(ValueError, match=r"goal: agents \[1\]"):
        dataclasses.replace(good, goal=torch.tensor([[0.0, 0.0], [torch.nan, 0.0]], dtype=F64))
    with pytest.raises(ValueError, match=r"start: agents \[0, 1\]"):
        dataclasses.replace(good, start=good.start + 100)
    with pytest.raises(ValueError, match="scene"):
        dataclasses.replace(good, scene=torch.zeros(3, dtype=torch.long))


def test_straight_lines_stop_at_the_goal():
    crowd = crossing_pair()
    lines = fp.straight_lines(crowd, 20)
    assert lines.shape == (21, 2, 2)
    assert torch.allclose(lines[-1], crowd.goal)
    assert (lines[1] - lines[0]).norm(dim=-1) == pytest.approx([0.48, 0.48])
    there = fp.straight_lines(crowd, 20, at_speed=False)
    assert torch.allclose(there[-1], crowd.goal)
    steps = there.diff(dim=0)
    assert torch.allclose(steps, steps[:1].expand_as(steps))


def test_clearance_counts_only_those_who_matter():
    positions = torch.tensor(
        [[[0.0, 0.0], [3.0, 0.0], [0.1, 0.0]], [[0.0, 0.0], [1.0, 0.0], [0.1, 0.0]]]
    )
    pairs = torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    assert fp.metrics.clearance(positions, pairs).tolist() == [1.0, 1.0, math.inf]
    # a crowd far from the origin, a centimetre apart
    row = torch.arange(40.0)[:, None] * torch.tensor([1 / 128, 0.0]) + 1000
    everybody = ~torch.eye(40, dtype=torch.bool)
    assert (fp.metrics.clearance(row[None], everybody) == 1 / 128).all()


def test_the_modified_hausdorff_distance_has_its_hand_value():
    one = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    # to the other: 0 and 1; back: 0, 3 and 1
    assert fp.modified_hausdorff(one, other).item() == pytest.approx(4 / 3)
    assert fp.modified_hausdorff(other, one) == fp.modified_hausdorff(one, other)
    assert fp.modified_hausdorff(one, one) == 0


def test_busy_cells_have_a_higher_log_occupancy():
    grid = fp.Grid(0, 5, 0, 5, 0.5)
    points = torch.tensor([[2.6, 2.6]] * 50 + [[0.1, 4.9], [9.0, 9.0]])
    found = fp.scenes.log_occupancy(grid, points)
    assert found.max() == 0
    assert found.argmax() == 5 * 10 + 5
    assert found.isfinite().all()
    assert found[9, 0] > found[0, 9]


FRAME = 6  # of ETH's own clock: 15 frames a second, one position in 0.4 s


def write_eth(folder):
    """A scene in ETH's layout: three people walk along x, the third only for a while."""
    place = folder / "trajectories" / "datasets" / "ETH" / "seq_eth"
    place.mkdir(parents=True)
    rows = []
    for step in range(60):
        rows.append((step * FRAME, 1, 0.2 * step, 0.0))
        rows.append((step * FRAME, 2, 12 - 0.2 * step, 1.0))
        if 3 <= step < 9:
            rows.append((step * FRAME, 3, 0.0, -1.0))
    lines = [f"{f} {a} {x} 0 {y} 0.5 0 0" for f, a, x, y in rows]
    (place / "obsmat.txt").write_text("\n".join(lines) + "\n")
    (place / "groups.txt").write_text("1 2\n")
    (place / "H.txt").write_text("1 0 0\n0 1 0\n0 0 1\n")


def test_a_filmed_scene_is_cut_into_windows_with_goals_speeds_and_groups(tmp_path):
    write_eth(tmp_path)
    train, test, _ = fp.filmed("eth", tmp_path, horizon=8)
    assert train.cells.shape[0] == 9
    assert train.counts["partial"] >= 1
    for half in (train, test):
        crowd = half.crowd
        assert half.counts["infeasible"] == half.counts["off_grid"] == half.counts["no_goal"] == 0
        assert crowd.speed.tolist() == pytest.approx([0.5] * len(crowd), abs=1e-5)
        assert set(crowd.group.tolist()) == {0}
        assert not crowd.pair_mask().any()
        assert crowd.pair_mask(False).any()
        ends = {(11.8, 0.0), (0.2, 1.0)}
        assert {(round(x, 1), round(y, 1)) for x, y in crowd.goal.tolist()} == ends
    assert train.crowd.log_map is not None
    assert test.crowd.log_map is train.crowd.log_map or torch.equal(
        test.crowd.log_map, train.crowd.log_map
    )
    # in the first half, whose tracks alone the map is of, the first person gets half of the way
    (row, left), (_, right) = train.crowd.grid.to_cell(torch.tensor([[3.0, 0.0], [9.0, 0.0]]))
    assert train.crowd.log_map[row, left] > train.crowd.log_map[row, right] + 0.5


def test_obstacles_of_a_filmed_scene_hold_for_both_halves(tmp_path):
    write_eth(tmp_path)
    free, _, _ = fp.filmed("eth", tmp_path, horizon=8)
    grid = free.crowd.grid
    wall = torch.zeros(grid.shape, dtype=torch.bool)
    wall[:, grid.to_cell(torch.tensor([6.0, 0.0]))[1]] = True  # across both ways
    train, test, _ = fp.filmed("eth", tmp_path, horizon=8, blocked=wall)
    for half in (train, test):
        assert half.crowd.blocked is wall
        crosses = wall[half.cells[..., 0], half.cells[..., 1]].any(0)
        assert half.counts["infeasible"] == int(crosses.sum())
    assert train.counts["infeasible"] + test.counts["infeasible"] > 0
    with pytest.raises(ValueError, match=r"blocked \(3, 3\): expected the shape"):
        fp.filmed("eth", tmp_path, blocked=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="speed: ndarray, expected a tensor"):
        train.with_speed(train.crowd.speed.numpy())


def test_a_filmed_scene_in_pixels_is_refused(tmp_path):
    place = tmp_path / "trajectories" / "datasets" / "UCY" / "students01"
    place.mkdir(parents=True)
    spline = [f"{x} {x / 2} {frame} 0" for x, frame in ((0, 0), (40, 50), (80, 100))]
    lines = ["1 - the number of splines", "3 - the number of control points", *spline]
    (place / "annotation.vsp").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="pixels"):
        fp.filmed("students01", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon = 0"),
        ({"radius_cells": 0}, "radius_cells = 0"),
        ({"cell_m": 0.0}, "cell_m = 0.0"),
        ({"cell_m": float("nan")}, "cell_m = nan"),
        (
            {"cell_m": 1e-6},
            r"cell_m = 1e-06: \d+ x \d+ m in such cells, expected at most 10,000,000",
        ),
        ({"dt_s": 1e9}, "dt_s = 1000000000.0"),
        ({"horizon": 500}, "no window of"),
    ],
)
def test_a_filmed_scene_that_cannot_be_cut_is_refused_at_once(options, message, tmp_path):
    write_eth(tmp_path)
    with pytest.raises(ValueError, match=message):
        fp.filmed("eth", tmp_path, **options)


def test_the_planned_fault_of_a_late_reward_is_caught(monkeypatch):
    """If others were looked up a step too early, the passer-by test would see it."""
    crowd = crossing_pair(horizon=4)
    maps = fp.respond(crowd, TRUE.alone(), 4)[1]
    right = fp.social_features(maps, crowd.pair_mask(), (0.35,), cell_m=0.4)
    late = torch.stack([fp.social.smooth(maps[t].flip(0), 0.35, 0.4) for t in range(4)])
    assert (right[:, :, 0] - late).abs().max() > 0.1


def test_a_flipped_forward_kernel_would_lose_the_agreement_with_paths(monkeypatch):
    kernel, reward, terminal = random_mdp(1, 3, 4, 3, seed=2)
    start = torch.tensor([[1, 0]])
    _, right = fp.plan(kernel, reward, terminal, start)

    def unflipped(log_kernel, q, value, now):
        shift, top = q.amax((1, 2), keepdim=True), log_kernel.amax((1, 2), keepdim=True)
        arrive = planning._correlate(now * (shift + top - value).exp(), (log_kernel - top).exp())
        return (q - shift).exp() * arrive

    monkeypatch.setattr(planning, "_forward_by_convolution", unflipped)
    values = fp.soft_value_iteration(kernel, reward, terminal)
    wrong = fp.occupancy(kernel, reward, values, start)
    assert (wrong.sum((2, 3)) - 1).abs().max() > 0.05  # mass conservation tells
    assert not torch.allclose(wrong, right)


# ---------------------------------------------------------------- the chapter


def test_the_chapter_runs_with_other_parameters(tmp_path):
    tiny = {"n_scenes": 2, "n_test": 2, "fp_iters": 2, "ioc_iters": 3, "n_samples": 4, "radius_cells": 1, "cell_m": 0.8,
            "horizon": 5, "crossing_horizon": 5, "fp_update": "sequential", "speed_source": "mean"}  # fmt: skip
    code = tmp_path / "chapter.py"
    code.write_text(executor.script(chapters.find("fictitious_play"), tiny))
    done = subprocess.run([sys.executable, str(code)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "C1 reproduced" in done.stdout


def test_a_crowd_goes_to_a_device_in_its_precision_and_a_grid_without_double_precision(
    monkeypatch,
):
    pair, _ = fp.crowd.head_on(1.0)
    pair = dataclasses.replace(pair, log_map=torch.zeros(pair.grid.shape).double())
    moved = pair.to("cpu", torch.float32)
    assert {t.dtype for t in (moved.goal, moved.speed, moved.log_map)} == {torch.float32}
    points = torch.rand(50, 2) * 8 - 4
    cells, places = pair.grid.to_cell(points), pair.grid.to_metres(pair.start)
    monkeypatch.setattr(fp.grid, "has_float64", lambda device: False)
    monkeypatch.setattr(fp.scenes, "has_float64", lambda device: False)
    assert torch.equal(pair.grid.to_cell(points), cells)
    assert pair.grid.to_metres(pair.start).dtype == torch.float32
    assert torch.allclose(pair.grid.to_metres(pair.start).double(), places, atol=1e-6)
    seen = fp.scenes.circle_crossing(2, horizon=5)
    assert seen.positions.dtype == torch.float64
    assert seen.to("cpu", torch.float32).positions.dtype == torch.float32


def test_what_no_crowd_can_be_is_named_at_once():
    pair, weights = fp.crowd.head_on(1.0)
    crowd = lambda **k: dataclasses.replace(pair, **k)  # noqa: E731
    generator = torch.Generator()
    paths = torch.stack([pair.start] * 4)
    for call, message in {
        lambda: fp.scenes.circle_crossing(2, dt_s=1e9): "dt_s = 1000000000.0",
        lambda: fp.scenes.circle_crossing(2, dt_s=math.inf): "dt_s = inf",
        lambda: fp.scenes.circle_crossing(2, speeds=()): "speeds_mps = ",
        lambda: fp.crowd.self_play_crowd(0, generator): "n_scenes = 0",
        lambda: fp.crowd.self_play_crowd(1, generator, n_agents=0): "n_agents = 0",
        lambda: fp.crowd.self_play_crowd(1, generator, speeds=[]): "speeds = ",
        lambda: fp.crowd.self_play_crowd(1, generator, dt_s=0.0): "dt_s = 0.0",
        lambda: fp.crowd.self_play_crowd(1, generator, cell_m=1e-9): "cell_m = 1e-09",
        lambda: fp.Grid(-math.inf, 4, -4, 4, 0.4): "cell_m = 0.4",
        lambda: crowd(radius_cells=0): "radius_cells = 0",
        lambda: crowd(speed=-pair.speed): "speed: the least is -1.2",
        lambda: crowd(speed=pair.speed * math.nan): "speed: the least is nan",
        lambda: crowd(log_map=torch.zeros(3, 3)): r"log_map \(3, 3\)",
        lambda: crowd(blocked=torch.zeros(3, 3).bool()): r"blocked \(3, 3\)",
        lambda: crowd(blocked=torch.zeros(pair.grid.shape)): r"blocked: torch\.float32, expected",
        lambda: crowd(
            speed=pair.speed.numpy()
        ): r"speed: ndarray, expected a tensor: torch\.from_",
        lambda: fp.respond(pair, dataclasses.replace(weights, speed=math.nan), 3): (
            "weights: speed = nan, expected finite numbers"
        ),
        lambda: fp.FictitiousPlay(pair, weights.with_social(math.nan), 3): (
            r"weights: social = \(nan, nan\)"
        ),
        lambda: fp.respond(pair, weights, 0): "horizon = 0",
        lambda: fp.respond(pair.take(torch.zeros(2).bool()), weights, 3): "at least one agent",
        lambda: fp.respond(pair, weights, 3)[0].sample(0, generator): "n = 0",
        lambda: fp.scenes.self_play(1, weights, n_samples=0): "n_samples = 0",
        lambda: fp.FictitiousPlay(pair, weights, 3, tolerance=math.nan): "tolerance = nan",
        lambda: fp.MaxEntIOC([]): "sigmas_m = ",
        lambda: fp.MaxEntIOC([0.4, -1.0]): r"sigmas_m\[1\] = -1.0",
        lambda: fp.MaxEntIOC(update="all"): "update = 'all'",
        lambda: fp.MaxEntIOC(rounds=0): "rounds = 0",
        lambda: fp.MaxEntIOC(iterations=0): "iterations = 0",
        lambda: fp.MaxEntIOC().fit(pair, paths[:1]): "at least one step",
        lambda: fp.MaxEntIOC().fit(pair, paths[:, :1]): "cells",
        lambda: fp.straight_lines(pair, 0): "horizon = 0",
        lambda: fp.metrics.clearance(
            torch.zeros(3, 2, 2), torch.zeros(3, 3).bool()
        ): r"pairs \(3, 3\)",
        lambda: fp.appearance.sprites(torch.tensor([3]), generator): "kind",
        lambda: fp.SpeedClassifier([]): "speeds_mps = ",
        lambda: fp.SpeedClassifier()(torch.rand(2, 3, 16, 16)): "pictures",
        lambda: fp.SpeedClassifier().fit(
            torch.rand(70, 3, 32, 16), torch.full((70,), 3), generator
        ): "kind",
        lambda: fp.SpeedClassifier().fit(
            torch.rand(7, 3, 32, 16), torch.ones(7).long(), generator
        ): "batch_size = 64",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_what_does_not_fit_is_named_and_never_taken():
    kernel, reward, terminal = random_mdp()
    values = fp.soft_value_iteration(kernel, reward, terminal)
    start = torch.tensor([[0, 0], [3, 2]])
    policy, _ = fp.plan(kernel, reward, terminal, start)
    cells = start.expand(4, 2, 2)
    crowd, _ = fp.crowd.head_on(1.0)
    for call, message in {
        lambda: fp.soft_value_iteration(kernel.float(), reward, terminal): (
            "log_kernel, reward, terminal = torch.float32, torch.float64, torch.float64"
        ),
        # a negative index would wrap around, silently
        lambda: fp.occupancy(kernel, reward, values, start - 1): r"start: agents \[0\] are off",
        lambda: fp.occupancy(kernel, reward, values, start.double()): "start: torch.float64 of",
        lambda: fp.occupancy(kernel, reward, values[1:], start): r"values .*expected 4 maps",
        lambda: fp.plan(kernel, reward, terminal, start[:1]): r"start: .*expected whole cells",
        lambda: fp.path_log_prob(cells.double(), kernel, reward, values): "cells: torch.float64",
        lambda: fp.nll_per_step(cells, policy): "policy: a Tensor, expected a Policy",
        lambda: policy.sample(3, 0): "generator = 0: expected a torch.Generator",
        lambda: fp.crowd.self_play_crowd(2, 0): "generator = 0: expected a torch.Generator",
        lambda: dataclasses.replace(crowd, speed=torch.tensor([1, 1])): "speed = torch.int64",
        lambda: dataclasses.replace(crowd, start=crowd.start.double()): "start: torch.float64",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_weights_that_require_a_gradient_are_taken_without_it():
    crowd, plain = fp.crowd.head_on(2.0)
    tensors = (torch.tensor(w, requires_grad=True) for w in (plain.speed, plain.goal))
    social = tuple(torch.tensor(w, requires_grad=True) for w in plain.social)
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            found, expected = (
                fp.FictitiousPlay(crowd, weights, 6, iterations=2).run()
                for weights in (fp.Weights(*tensors, social), plain)
            )
    finally:
        torch.set_warn_always(before)
    assert torch.equal(found.response, expected.response)
    assert not found.policy.reward.requires_grad


def test_counts_may_be_numpys_and_positions_single():
    two = np.int64(2)
    crowd, paths, _ = fp.scenes.self_play(two, TRUE, n_samples=two, horizon=np.int64(4))
    assert paths.shape == (2, 5, 6, 2)
    positions = crowd.grid.to_metres(paths[0])
    rest = (crowd.goal.float(), crowd.speed, crowd.scene)
    seen = fp.observe(crowd.grid, crowd.dt_s, positions.float(), *rest)
    assert torch.equal(seen.cells, paths[0])
    exact = fp.observe(crowd.grid, crowd.dt_s, positions, *rest)
    one, other = (
        fp.MaxEntIOC(social="none").fit(found.crowd, found.cells).weights
        for found in (seen, exact)
    )
    assert one == other


def test_rows_in_any_order_and_gaps_that_are_not_finite_film_the_same_scene():
    step = torch.arange(60).repeat(2)
    agent = torch.arange(2).repeat_interleave(60)
    position = torch.stack([0.2 * step, 1.0 * agent], 1).double()
    tracks = Tracks("mine", step, agent, position, 0.4)
    lost = (step > 50) & (agent == 1)
    order = torch.randperm(120, generator=generator())
    hidden = dataclasses.replace(tracks, position=position.masked_fill(lost[:, None], math.nan))
    for expected, found in (
        (tracks, tracks.rows(order)),
        (tracks.rows(~lost), hidden.rows(order)),
    ):
        for one, other in zip(fp.filmed(expected)[:2], fp.filmed(found)[:2], strict=True):
            assert torch.equal(one.crowd.goal, other.crowd.goal)
            assert torch.equal(one.cells, other.cells)
            assert torch.equal(one.crowd.log_map, other.crowd.log_map)
    with pytest.raises(ValueError, match="scene = 'mine': expected tracks with finite positions"):
        fp.filmed(dataclasses.replace(tracks, position=position * math.nan))


def test_a_scene_in_pixels_or_on_another_clock_is_refused():
    step = torch.arange(60)
    tracks = Tracks("mine", step, 0 * step, torch.rand(60, 2).double(), 0.4, unit="px")
    with pytest.raises(ValueError, match="scene = 'mine': its tracks are in pixels"):
        fp.filmed(tracks)
    with pytest.raises(ValueError, match=r"dt_s = 0.8: mine has steps of 0.4 s"):
        fp.filmed(tracks, dt_s=0.8)
    simulated = fp.scenes.circle_crossing(2, horizon=3)
    with pytest.raises(ValueError, match="was not cut from windows"):
        simulated.by_window(simulated.cells[None])


@pytest.mark.parametrize(("faster", "cells"), [(1, 4), (100, 400)])
def test_paths_that_are_too_fast_for_the_grid_are_told_its_reach(faster, cells):
    grid = fp.Grid(-1, 8 * faster + 3, -1, 3, 0.5)
    t = torch.arange(5, dtype=F64)
    # 2 m a step, which is 5 m/s and four cells; in centimetres 400
    positions = faster * torch.stack([2 * t, 0 * t], 1)[:, None]
    seen = fp.observe(grid, 0.4, positions, positions[-1], torch.ones(1).double(), torch.zeros(1))
    with pytest.raises(ValueError) as caught:
        fp.MaxEntIOC(social="none").fit(seen.crowd, seen.cells)
    assert str(caught.value) == (
        "cells: none of 1 paths can be walked on the grid: a step reaches radius_cells = 2 cells "
        f"of cell_m = 0.5 m in 0.4 s (2.5 m/s), and each path has a step of {cells} cells "
        f"({5 * faster} m/s) or more: take a larger radius_cells or cell_m, or check the unit and "
        "the frames per second"
    )
    if faster == 1:
        wider = dataclasses.replace(seen.crowd, radius_cells=4)
        assert fp.MaxEntIOC(social="none").fit(wider, seen.cells).infeasible == 0
        with pytest.raises(ValueError, match="leave it, cross what is blocked or do not begin"):
            fp.MaxEntIOC(social="none").fit(wider, seen.cells + 1)


def test_what_underflows_on_the_way_only_is_planned_again():
    # at the last step a cell that nobody can reach is worth 2,000 nats
    kernel, terminal = torch.zeros(1, 3, 3, dtype=F64), torch.zeros(1, 1, 9, dtype=F64)
    reward = torch.zeros(3, 1, 1, 9, dtype=F64)
    reward[0, 0, 0, 3:], reward[2, 0, 0, 8] = -torch.inf, 2000
    _, maps = planning.plan(kernel, reward, terminal, torch.tensor([[0, 1]]))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(4, 1, dtype=F64))


def test_play_goes_on_until_the_last_agent_has_settled():
    pair, weights = fp.crowd.head_on(8.0)
    scene = torch.tensor([0, 0, 1, 2, 3, 4])  # the others are alone and settle at once
    crowd = dataclasses.replace(pair.take(torch.tensor([0, 1, 0, 0, 0, 0])), scene=scene)
    first = fp.FictitiousPlay(crowd, weights, 6, iterations=1).run().gaps[0]
    between = float(first.max() + first.mean()) / 2
    play = fp.FictitiousPlay(crowd, weights, 6, iterations=3, tolerance=between)
    assert len(play.run().gaps) > 1
