"""Gaps of tracks, filled along straight lines."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from companion.data.trajectories import Tracks, cut_windows, fill_gaps


def tracks(rows, **more):
    """Tracks of rows (step, agent, x, y)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
    step, agent = table[:, :2].long().T
    return Tracks("made", step, agent, table[:, 2:], dt_s=0.4, **more)


def rows_of(found):
    return [
        (s, a, *p)
        for s, a, p in zip(
            found.step.tolist(), found.agent.tolist(), found.position.tolist(), strict=True
        )
    ]


def gaps_of(found):
    """Missing steps between neighbouring rows of one agent."""
    return [
        int(gap) - 1
        for agent in found.agents.tolist()
        for gap in found.of(agent)[0].diff()
        if gap > 1
    ]


@st.composite
def some_tracks(draw):
    """Straight walks with a slope and a start that floats hold exactly, some steps missing."""
    rows, kept = [], []
    for agent in range(draw(st.integers(1, 4))):
        x, y, u, v = draw(st.tuples(*[st.integers(-50, 50)] * 4))
        first, steps = draw(st.integers(-5, 5)), draw(st.integers(1, 15))
        there = draw(st.lists(st.booleans(), min_size=steps, max_size=steps))
        path = [(first + t, agent, x + u * t, y + v * t) for t in range(steps)]
        rows += path
        kept += [row for row, seen in zip(path, there, strict=True) if seen]
    return rows, kept


@given(some_tracks(), st.integers(0, 6))
def test_straight_lines_come_back_and_nothing_else_is_touched(made, longest):
    rows, kept = made
    found = fill_gaps(tracks(kept), longest=longest)
    result = rows_of(found)
    assert set(kept) <= set(result)
    assert {row[:2] for row in result} <= {row[:2] for row in rows}
    truth = {row[:2]: row[2:] for row in rows}
    for *key, x, y in result:  # rounding of share times difference
        assert (x, y) == pytest.approx(truth[tuple(key)], abs=1e-11)
    order = [(agent, step) for step, agent, *_ in result]
    assert order == sorted(order)
    assert int(found.filled.sum()) == len(result) - len(kept)
    assert {row for row, new in zip(result, found.filled.tolist(), strict=True) if not new} == set(
        kept
    )
    # gaps longer than `longest` are those that were there, all others are gone
    before = gaps_of(tracks(kept))
    assert sorted(gaps_of(found)) == sorted(gap for gap in before if gap > longest)


@given(some_tracks(), st.integers(0, 6))
def test_filling_again_changes_nothing(made, longest):
    once = fill_gaps(tracks(made[1]), longest=longest)
    again = fill_gaps(once, longest=longest)
    for name in ("step", "agent", "position", "filled"):
        assert torch.equal(getattr(once, name), getattr(again, name))


def test_a_gap_by_hand_and_one_too_long():
    made = tracks([(0, 7, 0, 0), (4, 7, 2, -4), (0, 9, 1, 1), (5, 9, 9, 9)])
    found = fill_gaps(made, longest=3)
    assert rows_of(found) == [
        *((0.0 + t, 7, t / 2, -1.0 * t) for t in range(5)),
        (0, 9, 1, 1),
        (5, 9, 9, 9),
    ]
    assert found.filled.tolist() == [False, True, True, True, False, False, False]
    assert found.rows(found.agent == 7).filled.tolist() == [False, True, True, True, False]
    assert found.between(2, 4).filled.tolist() == [True, True]
    assert rows_of(fill_gaps(made, longest=2)) == rows_of(made)


def test_positions_that_are_not_finite_are_a_gap():
    made = tracks([(0, 1, 0, 0), (1, 1, float("nan"), 5), (2, 1, 2, 2), (3, 1, float("inf"), 0)])
    assert rows_of(fill_gaps(made, longest=1)) == [(0, 1, 0, 0), (1, 1, 1, 1), (2, 1, 2, 2)]


def test_windows_with_gaps_come_back():
    whole = tracks([(t, a, 0.5 * t, a) for a in range(20) for t in range(60)], first_frame=3)
    generator = torch.Generator().manual_seed(0)
    holed = whole.rows(torch.rand(len(whole.step), generator=generator) > 0.15)
    mended = fill_gaps(holed, longest=3)
    people = [int(cut_windows(some).mask.sum()) for some in (whole, holed, mended)]
    assert people[1] < 0.2 * people[0]
    assert people[2] > 0.8 * people[0]
    assert mended.first_frame == 3


def test_what_cannot_be_filled_is_named():
    with pytest.raises(ValueError, match="longest = -1: expected a whole number, at least 0"):
        fill_gaps(tracks([(0, 1, 0, 0)]), longest=-1)
    with pytest.raises(ValueError, match="made: an agent is at two places at one step"):
        fill_gaps(tracks([(0, 1, 0, 0), (0, 1, 1, 0)]), longest=1)
    assert rows_of(fill_gaps(tracks([]), longest=1)) == []
