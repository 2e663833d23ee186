"""Simulated walkers: closed forms, symmetries and the order of accuracy."""

import math

import pytest
import torch

from companion.data.crowds import Repulsion, simulate_crossing, social_force
from companion.forecasting import nearest_distance

NOBODY = Repulsion(strength=0.0, reach_m=0.6, decay_m=0.45)
GENTLE = Repulsion(strength=3.0, reach_m=0.5, decay_m=0.35, behind=0.3)


def far_goal(start, heading):
    return (start + 1e3 * torch.tensor(heading, dtype=torch.float64))[..., None, :]


def head_on(gap=6.0, shift=0.0):
    start = torch.tensor([[-gap / 2, shift], [gap / 2, -shift]], dtype=torch.float64)
    goal = -start[:, None] * 10
    return start, goal, torch.full((2,), 1.2, dtype=torch.float64)


def test_alone_a_walker_keeps_speed_on_a_straight_line():
    start = torch.zeros(1, 2, dtype=torch.float64)
    path = social_force(
        start, far_goal(start, (3 / 5, 4 / 5)), torch.tensor([1.5]).double(), NOBODY, steps=10
    )
    expected = 1.5 * 0.4 * torch.arange(11).double()
    torch.testing.assert_close(path[:, 0].norm(dim=1), expected, rtol=1e-9, atol=1e-9)


def test_a_turn_relaxes_with_the_time_constant():
    # a way point behind the walker: v(t) = −1 + 2 exp(−t / τ) once it turns back
    start = torch.zeros(1, 2, dtype=torch.float64)
    points = torch.tensor([[[0.0, 0.01], [0.0, -1e3]]], dtype=torch.float64)
    path = social_force(
        start, points, torch.ones(1).double(), NOBODY, steps=4, dt_s=0.5, substep_s=1e-3
    )
    time = 0.5 * torch.arange(5).double()
    expected = -time + 2 * 0.5 * (1 - (-time / 0.5).exp())
    torch.testing.assert_close(path[:, 0, 1], expected, rtol=0, atol=5e-3)


def test_the_last_goal_is_reached_and_hardly_overshot():
    start = torch.zeros(1, 2, dtype=torch.float64)
    goal = torch.tensor([[[4.0, 0.0]]], dtype=torch.float64)
    path = social_force(start, goal, torch.ones(1).double(), NOBODY, steps=30)[:, 0, 0]
    assert abs(path[-1] - 4) < 1e-3
    assert path.max() < 4.2


def test_way_points_are_passed_in_turn():
    start = torch.zeros(1, 2, dtype=torch.float64)
    points = torch.tensor([[[4.0, 0.0], [4.0, 5.0]]], dtype=torch.float64)
    path = social_force(start, points, torch.tensor([1.3]).double(), NOBODY, steps=30)[:, 0]
    assert (path - points[0, 0]).norm(dim=1).min() < 0.9
    assert (path[-1] - points[0, 1]).norm() < 0.05


def test_two_who_meet_head_on_stay_mirror_images_and_keep_apart():
    start, goal, speed = head_on(shift=0.05)
    free = social_force(start, goal, speed, NOBODY, steps=15)
    path = social_force(start, goal, speed, GENTLE, steps=15)
    torch.testing.assert_close(path[:, 0], -path[:, 1], rtol=0, atol=1e-9)
    apart = [nearest_distance(p.transpose(0, 1), between_steps=True)[0, 1] for p in (free, path)]
    assert apart[0] < 1e-9  # through each other
    assert apart[1] > 0.3


def test_a_sidestep_goes_to_the_right():
    start, goal, speed = head_on(shift=0.0)
    aside = Repulsion(strength=6.0, reach_m=0.6, decay_m=0.45, sidestep=0.4)
    path = social_force(start, goal, speed, aside, steps=6)
    assert path[-1, 0, 1] < -0.1  # the one who walks to +x has -y on the right
    assert path[-1, 1, 1] > 0.1


def test_somebody_behind_is_felt_less_than_somebody_ahead():
    start = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    goal, speed = far_goal(start, (1.0, 0.0)), torch.ones(2).double()
    path = social_force(start, goal, speed, GENTLE, steps=1, dt_s=0.01, substep_s=0.01)
    change = (path[1] - path[0])[:, 0] - 0.01
    push = 3 * math.exp((0.5 - 1) / 0.35)
    assert change[0] == pytest.approx(-push * 1e-4, rel=1e-6)  # the other is straight ahead
    assert change[1] == pytest.approx(0.3 * push * 1e-4, rel=1e-6)  # straight behind


def test_scenes_and_agents_are_independent_of_their_order():
    paths, goals, _ = simulate_crossing(5, n_agents=4, steps=8, seed=4)
    start, speed = paths[:, 0], torch.full((5, 4), 1.2).double()
    order, scenes = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 1])
    whole = social_force(start, goals[..., None, :], speed, GENTLE, steps=8)
    part = social_force(
        start[scenes][:, order], goals[scenes][:, order][..., None, :], speed[:2], GENTLE, steps=8
    )
    torch.testing.assert_close(part, whole[scenes][:, :, order], rtol=0, atol=1e-12)


def test_smaller_substeps_converge():
    start, goal, speed = head_on(shift=0.4)

    def end(substep):
        return social_force(start, goal, speed, GENTLE, steps=10, substep_s=substep)[-1]

    exact = end(0.001)
    errors = [(end(substep) - exact).norm() for substep in (0.1, 0.05, 0.025)]
    assert errors[1] < 0.75 * errors[0]
    assert errors[2] < 0.75 * errors[1]


def test_the_crossing_starts_on_the_circle_and_heads_for_the_other_side():
    paths, goals, kind = simulate_crossing(50, seed=1)
    assert paths.shape == (50, 16, 4, 2)
    torch.testing.assert_close(
        paths[:, 0].norm(dim=-1), torch.full((50, 4), 3.2, dtype=torch.float64), rtol=1e-12, atol=0
    )
    assert torch.equal(goals, -paths[:, 0])
    assert set(kind.flatten().tolist()) == {0, 1, 2}
    first = (paths[:, 1] - paths[:, 0]).norm(dim=-1) / 0.4
    speeds = torch.tensor([0.8, 1.2, 1.6]).double()[kind]
    assert ((first - speeds).abs() < 0.25).all()
    again, _, _ = simulate_crossing(50, seed=1)
    assert torch.equal(paths, again)


def test_the_crossing_keeps_people_apart_who_would_meet():
    paths, goals, kind = simulate_crossing(50, seed=1)
    speed = torch.tensor([0.8, 1.2, 1.6]).double()[kind]
    free = social_force(paths[:, 0], goals[..., None, :], speed, NOBODY, steps=15)
    close = [
        (nearest_distance(p.transpose(1, 2)).flatten(1).amin(1) < 0.45).double().mean()
        for p in (free, paths)
    ]
    assert close[0] > 0.5
    assert close[1] < 0.1


def test_what_does_not_fit_is_named():
    start, goal, speed = head_on()
    with pytest.raises(ValueError, match=r"start, waypoints, speed = \(2, 2\)"):
        social_force(start, goal[:1], speed, NOBODY, steps=3)
    with pytest.raises(ValueError, match="steps = 0"):
        social_force(start, goal, speed, NOBODY, steps=0)
    with pytest.raises(ValueError, match=r"steps = 2\.5: expected a whole number, at least 1"):
        social_force(start, goal, speed, NOBODY, steps=2.5)
    with pytest.raises(ValueError, match=r"start, waypoints: torch.int64, torch.int64, expected"):
        social_force(start.long(), goal.long(), speed, NOBODY, steps=3)
    with pytest.raises(ValueError, match="n_agents = 0"):
        simulate_crossing(3, n_agents=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dt_s": 1e9}, r"dt_s = 1000000000.0: expected at most 100 s"),
        ({"dt_s": float("inf")}, "dt_s = inf"),
        ({"dt_s": float("nan")}, "dt_s = nan"),
        ({"steps": 0}, "steps = 0"),
        ({"radius_m": 0.0}, "radius_m = 0.0"),
        ({"radius_m": float("nan")}, "radius_m = nan"),
        ({"speeds_mps": ()}, r"speeds_mps = \(\)"),
        ({"speeds_mps": (1.0, -1.0)}, "speeds_mps = "),
        ({"n_scenes": 0}, "n_scenes = 0"),
    ],
)
def test_a_simulation_that_cannot_be_is_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_crossing(**({"n_scenes": 1} | options))
