"""What planning on a grid costs: convolutions against sums of exponentials and against tables."""

import pytest
import torch

from companion.papers import fictitious_play as fp


def problem(agents, side, radius, horizon, dtype):
    g = torch.Generator().manual_seed(0)
    size = 2 * radius + 1
    shapes = (agents, size, size), (horizon, agents, side, side), (agents, side, side)
    return [torch.randn(shape, generator=g, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("side", "radius", "dtype", "aim"),
    [
        (32, 1, torch.float64, 0.5),
        (64, 2, torch.float64, 0.3),
        (64, 2, torch.float32, 0.2),
    ],
)
def test_convolution_against_logsumexp(side, radius, dtype, aim, compare):
    case = problem(8, side, radius, 10, dtype)
    forms = [fp.soft_value_iteration(*case, form=form) for form in ("convolution", "logsumexp")]
    torch.testing.assert_close(*forms, rtol=1e-4, atol=1e-4)
    actions = (2 * radius + 1) ** 2
    compare(
        f"soft value iteration by convolution, {side}×{side} cells, {actions} steps, {str(dtype)[6:]}",
        lambda: fp.soft_value_iteration(*case),
        "by shifted logsumexp",
        lambda: fp.soft_value_iteration(*case, form="logsumexp"),
        rounds=9,
        aim=aim,
        agreement="equal to 1e-4",
    )


def table(side, radius):
    """Transitions as a dense (states, actions, states) table, as tabular libraries take them."""
    offsets = range(-radius, radius + 1)
    moves = [(i, j) for i in offsets for j in offsets]
    dense = torch.zeros(side * side, len(moves), side * side, dtype=torch.float64)
    for row in range(side):
        for column in range(side):
            for a, (i, j) in enumerate(moves):
                if 0 <= row + i < side and 0 <= column + j < side:
                    dense[row * side + column, a, (row + i) * side + column + j] = 1
    return dense


def by_table(dense, kernel, reward, terminal):
    """One agent: V = logsumexp over actions of κ + P (r + V); steps off the grid are barred."""
    barred = torch.where(dense.sum(2) > 0, 0.0, -torch.inf)
    values = terminal.flatten()
    for r in reward.flip(0):
        values = (kernel.flatten() + barred + dense @ (r.flatten() + values)).logsumexp(1)
    return values


def test_convolution_against_a_dense_table(compare):
    side, radius = 20, 2
    kernel, reward, terminal = problem(1, side, radius, 10, torch.float64)
    dense = table(side, radius)
    ours = fp.soft_value_iteration(kernel, reward, terminal)[0].flatten()
    torch.testing.assert_close(ours, by_table(dense, kernel[0], reward[:, 0], terminal[0]))
    compare(
        f"soft value iteration by convolution, {side}×{side} cells, 25 steps, one person",
        lambda: fp.soft_value_iteration(kernel, reward, terminal),
        "by a dense table of transitions (states × actions × states)",
        lambda: by_table(dense, kernel[0], reward[:, 0], terminal[0]),
        rounds=9,
        aim=0.1,
        agreement="equal to rounding",
    )


def crowd_of(scenes):
    return fp.crowd.self_play_crowd(scenes, torch.Generator().manual_seed(0))


def play(crowd):
    weights = fp.Weights(2.0, 3.0, (4.0, 1.0))
    return fp.FictitiousPlay(crowd, weights, 10, iterations=3).run()


def test_scenes_merged_into_one_batch(compare):
    crowd = crowd_of(12)
    single = [crowd.take(crowd.scene == s) for s in range(12)]
    merged = play(crowd).response
    torch.testing.assert_close(merged, torch.cat([play(c).response for c in single], 1))
    compare(
        "three rounds of play, 12 scenes of 3 people merged",
        lambda: play(crowd),
        "scene by scene",
        lambda: [play(c) for c in single],
        rounds=5,
        aim=0.8,
        agreement="equal to rounding",
    )


def test_separable_gaussians(compare):
    g = torch.Generator().manual_seed(0)
    maps = torch.rand((160, 1, 40, 40), generator=g, dtype=torch.float64)
    reach = torch.arange(-6, 7, dtype=torch.float64)
    one = torch.where(reach.abs() <= 5, torch.exp(-0.5 * (reach * 0.5 / 0.9) ** 2), 0.0)
    kernel = (one[:, None] * one)[None, None]

    def dense():
        return torch.nn.functional.conv2d(maps, kernel, padding=6)

    torch.testing.assert_close(fp.social.smooth(maps, 0.9, 0.5), dense())
    compare(
        "blurring 160 maps of 40×40 cells a side at a time",
        lambda: fp.social.smooth(maps, 0.9, 0.5),
        "by a 13×13 convolution",
        dense,
        rounds=9,
        aim=0.5,
        agreement="equal to rounding",
    )


def test_growth_with_the_people(grow):
    def make(people):
        crowd = crowd_of(people // 3)
        return lambda: play(crowd)

    grow("three rounds of play", "people", [12, 48, 96, 192, 384], make)


def test_growth_with_the_cells(grow):
    def make(cells):
        case = problem(4, round(cells**0.5), 2, 10, torch.float64)
        return lambda: fp.soft_value_iteration(*case)

    cells = [side**2 for side in (20, 40, 80, 160, 320)]
    grow("soft value iteration, 4 people, 25 steps", "cells", cells, make)
