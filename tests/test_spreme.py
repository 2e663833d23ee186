"""Shared sparse regression against brute force, pysindy, closed forms and invariances."""

import itertools
import math
import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pysindy
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from sklearn.base import clone
from sympy.parsing.sympy_parser import (
    implicit_application,
    implicit_multiplication,
    parse_expr,
    standard_transformations,
)

from companion.data.growth import (
    bundled_header,
    load_growth,
    parse_table,
    table_from_curveball,
)
from companion.data.root import CorruptDataError, MissingDataError
from companion.papers import spreme
from companion.papers.spreme import mask as loop
from companion.runs import chapters, executor

IMPLICIT = (*standard_transformations, implicit_multiplication, implicit_application)
WINDOWS = {name: s.window for name, s in spreme.SYSTEMS.items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(name, level=0.0, copies=1, *, n_envs=None, n_traj=None, seed=0):
    """Noisy copies of a system's data, the times, and the true coefficients."""
    x, t, parameters = spreme.trajectories(name, n_envs=n_envs, n_traj=n_traj)
    truth = spreme.true_coefficients(name, parameters, spreme.make_library(name))
    return spreme.add_noise(x, level, generator(seed), copies), t, truth


def random_gram(E, n, p, rows=40, seed=0):
    """A regression of random rows, kept beside its products."""
    g = generator(seed)
    A = torch.randn(E, rows, p, generator=g, dtype=torch.float64)
    y = torch.randn(E, rows, n, generator=g, dtype=torch.float64) + A[..., :n] * 2
    gram = spreme.Gram(
        A.mT @ A / rows,
        y.mT @ A / rows,
        y.square().mean(1),
        torch.full((E,), float(rows)).double(),
        4,
    )
    return A, y, gram


def pooled(x):
    """All trajectories as those of one environment."""
    return x.flatten(-4, -3).unsqueeze(-4)


# ---------------------------------------------------------------- systems


def test_draws_are_those_of_the_official_code():
    drawn = {
        "linear": [
            (-0.2111, 1.9258, -1.7422, 0.0073204, -0.4866),
            (-0.1647, 2.1074, -1.9824, -0.1836, -0.4695),
            (0.0133438, 2.1055, -2.2129, -0.2438, -0.2822),
        ],
        "lorenz": [(9.8438, 27.8906, 3.0313), (10.1484, 27.7344, 2.5742), (10.1563, 28.0313, 2.5488)],
        "pendulum": [
            (0.4194, 1.0117), (0.4976, 1.0439), (0.4700, 1.0186), (0.4893, 0.9321),
            (0.5596, 0.9336), (0.5669, 0.8994), (0.3804, 0.9395), (0.4817, 0.9902),
            (0.4861, 1.0508),
        ],
    }  # fmt: skip
    first = {
        "linear": (-0.8047, 0.3210, -0.0255), "lorenz": (-0.8047, 0.3210, -0.0255),
        "lotka": (1.6533, 1.1152), "pendulum": (0.9175, -1.7676),
    }  # fmt: skip
    for name, state in first.items():
        parameters, initial = spreme.systems.draw_environments(name)
        assert np.abs(initial[0] - state).max() < 5e-5, name
        if name in drawn:
            assert (parameters.astype(np.float16) == np.float16(drawn[name])).all(), name
        for n_traj in (2, 16):  # the published numbers come first whatever is asked for
            again, states = spreme.systems.draw_environments(name, n_traj=n_traj)
            assert (again == parameters).all()
            assert len(states) == n_traj
            shared = min(n_traj, len(initial))
            assert (states[:shared] == initial[:shared]).all()
    assert len(spreme.SYSTEMS["lotka"].times) == 34
    assert len(spreme.SYSTEMS["pendulum"].times) == 20


@pytest.mark.parametrize("name", spreme.SYSTEMS)
def test_trajectories_match_another_solver_and_the_true_coefficients(name):
    x, t, parameters = spreme.trajectories(name, n_envs=2, n_traj=2)
    found = spreme.systems.system(name)
    for e, r in itertools.product(range(2), range(2)):
        solved = solve_ivp(
            lambda _, s, p=parameters[e]: np.array(found.rhs(s, p, np.sin)),
            (0, t[-1].item()), x[e, r, 0].numpy(), "LSODA", t.numpy(), rtol=1e-12, atol=1e-12,
        )  # fmt: skip
        assert np.abs(solved.y.T - x[e, r].numpy()).max() < 1e-6
    library = spreme.make_library(name)
    truth = spreme.true_coefficients(name, parameters, library)
    for e in range(2):
        rhs = np.stack(found.rhs(x[e].movedim(-1, 0).numpy(), parameters[e], np.sin), -1)
        assert np.allclose(library(x[e]) @ truth[e].mT, rhs, rtol=1e-12, atol=1e-12)


def test_noise_scales_with_each_state_and_repeats():
    x, _, _ = spreme.trajectories("lorenz", n_traj=4)
    small, large = (spreme.add_noise(x, level, generator(), 3) - x for level in (0.01, 0.1))
    assert torch.allclose(10 * small, large)
    spread = large.flatten(0, -2).std(0) / x.flatten(0, -2).std(0)
    assert torch.allclose(spread, torch.full((3,), 0.1, dtype=torch.float64), rtol=0.05)


# ---------------------------------------------------------------- library


@pytest.mark.parametrize(("n", "degree"), [(1, 3), (2, 5), (3, 5), (4, 2)])
def test_monomials_have_the_order_names_and_values_of_pysindy(n, degree):
    x = torch.randn(7, n, generator=generator(), dtype=torch.float64)
    peer = pysindy.PolynomialLibrary(degree=degree).fit(x.numpy())
    ours = spreme.Library(n, degree)
    assert ours.get_feature_names() == peer.get_feature_names()
    names = list("abcd"[:n])
    assert ours.get_feature_names(names) == peer.get_feature_names(names)
    assert np.allclose(ours(x), peer.transform(x.numpy()), rtol=1e-13)


def test_the_pendulum_has_pysindys_names_and_values_and_its_symbols_agree():
    one = pysindy.CustomLibrary([lambda x: np.sin(x)], [lambda x: f"sin({x})"])
    two = pysindy.CustomLibrary([lambda x, y: np.sin(x + y)], [lambda x, y: f"sin({x}+{y})"])
    x = torch.randn(7, 2, generator=generator(), dtype=torch.float64)
    peer = (pysindy.PolynomialLibrary(degree=5) + one + two).fit(x.numpy())
    ours = spreme.make_library("pendulum")
    assert ours.p == 24
    assert ours.get_feature_names() == peer.get_feature_names(["theta", "omega"])
    assert np.allclose(ours(x), peer.transform(x.numpy()), rtol=1e-13)
    symbols = sympy.lambdify(ours.symbols(), ours.expressions())
    assert np.allclose(symbols(*x[0].tolist()), ours(x[0]), rtol=1e-13)


def test_some_columns_alone_are_those_of_all():
    library = spreme.make_library("pendulum")
    x = torch.randn(3, 4, 2, generator=generator(), dtype=torch.float64)
    for columns in ([0], [1, 2, 21], [5, 20, 22, 23], [21, 23], list(range(24))):
        assert torch.allclose(library.some(columns)(x), library(x)[..., columns], rtol=1e-13)
    with pytest.raises(ValueError, match="ascending"):
        library.some([2, 1])


# ---------------------------------------------------------------- derivatives


def test_weak_rows_differentiate_a_cubic_up_to_quadrature():
    errors = []
    for halvings in range(1, 5):  # the same window in time, sampled ever more finely
        t = np.linspace(0, 2, 60 * 2**halvings + 1)
        V, D = spreme.derivative.operators(t, "weak", 8 * 2**halvings + 1)
        target, rows = D @ t**3, V @ (3 * t**2)
        errors.append(np.abs(target - rows).max() / np.abs(rows).max())
        assert np.abs(D.sum(1)).max() < 1e-12 * np.abs(D).sum(1).max()
    assert errors[0] < 1e-6
    # the first three derivatives of psi' x vanish at both ends of the window but for the third:
    # by Euler and Maclaurin trapezoids are of fourth order
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(16, rel=0.2)


@given(
    st.integers(0, 2**31), st.sampled_from([5, 7, 9, 15, 31]), st.floats(1e-6, 1e6), st.booleans()
)
def test_weak_rows_give_a_line_its_slope(seed, window, scale, equal):
    steps = np.ones(60) if equal else np.random.default_rng(seed).uniform(0.2, 1.8, 60)
    t = scale * (steps.cumsum() + 100)
    V, D = spreme.derivative.operators(t, "weak", window)
    for slope, values in ((0.0, np.ones(60)), (1.0, t)):
        error = np.abs(D @ values - slope * V.sum(1)).max()
        assert error < 1e-12 * (np.abs(D) @ np.abs(values)).max()


def test_a_logistic_curve_is_found_on_unequal_steps_and_after_a_pause():
    def curve(t):
        return 1 / (1 + 19 * np.exp(-0.5 * t))[:, None]

    even = np.linspace(0, 12, 97)
    uneven = np.sort(np.random.default_rng(1).uniform(0, 12, 97))
    cases = ((even, 1e-3), (uneven, 0.01), (even[(even < 4) | (even >= 5)], 2e-3))
    for t, within in cases:
        model = spreme.SharedSINDy(spreme.Library(1, 3), max_terms=2).fit(curve(t), t)
        assert model.coef_[0, 0].numpy() == pytest.approx([0, 0.5, -0.5, 0], rel=within, abs=1e-9)


def test_steps_that_grow_are_no_pause():
    t = np.geomspace(0.01, 100, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        V, D = spreme.derivative.operators(t, "weak", 11)
    assert np.abs(D @ np.log(t) - V @ (1 / t)).max() < 1e-3 * np.abs(V @ (1 / t)).max()


def test_a_window_across_a_pause_warns():
    t = np.arange(60.0)
    spreme.derivative.operators(np.r_[t, 69 + t], "weak", 9)
    late = np.r_[t, 70.5 + t]
    with pytest.warns(UserWarning, match="a step of 11.5 among steps of 1; windows across it"):
        spreme.derivative.operators(late, "weak", 9)
    apart = (
        spreme.derivative.operators(t, "weak", 9),
        spreme.derivative.operators(late[60:], "weak", 9),
    )
    assert np.allclose(apart[0], apart[1])


def test_weak_rows_on_unequal_steps_and_finite_differences_on_a_parabola():
    s = np.linspace(0, 2, 201)
    t = s + 0.1 * np.sin(3 * s)  # steps from 0.7 to 1.3 of the mean
    V, D = spreme.derivative.operators(t, "weak", 31)
    assert np.abs(D @ np.sin(t) - V @ np.cos(t)).max() < 1e-3 * np.abs(V @ np.cos(t)).max()
    assert np.abs(D.sum(1)).max() < 1e-12 * np.abs(D).sum(1).max()
    V, D = spreme.derivative.operators(t, "fd", 0)
    assert np.allclose(D @ t**2, V @ (2 * t), atol=1e-9)
    with pytest.raises(ValueError, match="savgol needs equal steps"):
        spreme.derivative.operators(t, "savgol", 9)
    t = np.linspace(0, 1, 30)
    V, D = spreme.derivative.operators(t, "savgol", 7)
    assert np.allclose(D @ t**3, 3 * t**2)
    assert np.allclose(V @ t**3, t**3)


def test_the_products_are_those_of_the_stacked_rows(monkeypatch):
    x, t, _ = data("lotka", 0.05, 2, n_envs=3)
    library = spreme.make_library("lotka")
    V, D = (torch.from_numpy(m) for m in spreme.derivative.operators(t.numpy(), "weak", 11))
    A = (V @ library(x)).flatten(-3, -2)
    y = (D @ x).flatten(-3, -2)
    for chunk, times in ((2**23, t.numpy()), (100, t)):  # in one go, and trajectory by trajectory
        monkeypatch.setattr("companion.papers.spreme.derivative.CHUNK", chunk)
        gram = spreme.build_gram(library, x, times, "weak", 11)
        assert torch.allclose(gram.G, A.mT @ A / A.shape[-2])
        assert torch.allclose(gram.c, y.mT @ A / A.shape[-2])
        assert torch.allclose(gram.q, y.square().mean(-2))


# ---------------------------------------------------------------- the searches


def brute_force(A, y, max_terms, M, epsilon):
    """The criterion of the specification by a loop over subsets and environments."""
    E, _, n = y.shape
    best = []
    for state in range(n):
        table = {}
        for k in range(max_terms + 1):
            for S in itertools.combinations(range(A.shape[-1]), k):
                total = E * k * np.log(M)
                for e in range(E):
                    part, target = A[e][:, list(S)].numpy(), y[e, :, state].numpy()
                    left = target
                    if k:
                        left = target - part @ np.linalg.lstsq(part, target, rcond=None)[0]
                    q = (target**2).mean()
                    total += M * np.log((left**2).mean() / q + epsilon)
                table[S] = total
        S = min(table, key=table.get)
        best.append((S, table[S], table))
    return best


@pytest.mark.parametrize("p", [4, 8])
def test_the_search_finds_what_a_double_loop_finds(p):
    A, y, gram = random_gram(3, 2, p, seed=p)
    path = spreme.best_subsets(gram, 3)
    support, criterion = spreme.select(path, p)
    for state, (S, value, table) in enumerate(brute_force(A, y, 3, 10.0, 1e-4)):
        assert support[state].nonzero()[:, 0].tolist() == list(S)
        assert criterion[state].item() == pytest.approx(value, rel=1e-9)
        for k, (columns, values) in enumerate(path):  # the best of every size as well
            least = min((v, s) for s, v in table.items() if len(s) == k)
            assert tuple(columns[state].tolist()) == least[1]
            assert values[state].item() == pytest.approx(least[0], rel=1e-9)
    alone, each = spreme.select(spreme.best_subsets(gram, 3, shared=False), p)
    for e in range(3):
        twin = brute_force(A[e : e + 1], y[e : e + 1], 3, 10.0, 1e-4)
        for state, (S, value, _) in enumerate(twin):
            assert alone[e, state].nonzero()[:, 0].tolist() == list(S)
            assert each[e, state].item() == pytest.approx(value, rel=1e-9)


def test_of_one_environment_the_shared_subset_is_its_own():
    _, _, gram = random_gram(1, 3, 9, seed=2)
    own = spreme.best_subsets(gram, 3, shared=False)
    for (a, b), (c, d) in zip(spreme.best_subsets(gram, 3), own, strict=True):
        assert torch.equal(a, c[0])
        assert torch.equal(b, d[0])


@pytest.mark.parametrize("others", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0])
def test_a_small_column_is_no_dependent_one_whatever_is_solved_beside_it(others, size):
    A, y, gram = random_gram(2, 2, 8, seed=3)
    A[1, :, 0] *= size  # in one environment: the other sets the scale
    gram = spreme.Gram(A.mT @ A / 40, y.mT @ A / 40, gram.q, gram.samples, 4)
    support = torch.zeros(2, 8, dtype=torch.bool)
    support[0, 0], support[1, :others] = True, True
    found = spreme.solve(gram, support[None])
    expected = (A[1, :, 0] @ y[1, :, 0]) / A[1, :, 0].square().sum()
    assert found[1, 0, 0].item() == pytest.approx(expected.item(), rel=1e-9)


def test_a_column_that_one_environment_lacks_has_exactly_nothing_there():
    A, y, gram = random_gram(3, 1, 4, seed=1)
    A[2, :, 1] = 0
    gram = spreme.Gram(A.mT @ A / 40, y.mT @ A / 40, gram.q, gram.samples, 4)
    for support in (torch.ones(1, 4), torch.tensor([[0, 1, 0, 0]])):
        assert spreme.solve(gram, support)[2, 0, 1] == 0
        assert spreme.solve(gram, support)[:2, 0, 1].all()


@pytest.mark.parametrize("kept", [1, 4])  # of 4
def test_problems_are_spread_over_supports_and_there_may_be_none(kept):
    _, _, gram = random_gram(2, 1, 4)
    support = (torch.arange(4) < kept).expand(5, 1, 1, 4)
    found = spreme.solve(gram, support)
    assert found.shape == (5, 2, 1, 4)
    assert torch.equal(found, spreme.solve(gram, support[0]).expand_as(found))
    none = spreme.Gram(*(a.expand(0, *a.shape) for a in (gram.G, gram.c, gram.q)), gram.samples, 4)
    assert spreme.solve(none, support[0]).shape == (0, 2, 1, 4)


@pytest.mark.parametrize("cache", [1, 64, 2**19])
def test_of_equal_subsets_the_first_is_chosen_in_pieces_too(cache, monkeypatch):
    monkeypatch.setattr("companion.papers.spreme.l0.CACHE", cache)
    A, y, gram = random_gram(2, 1, 3)
    A = torch.cat([A, A], -1)  # every column twice
    gram = spreme.Gram(A.mT @ A / 40, y.mT @ A / 40, gram.q, gram.samples, 4)
    for shared in (True, False):
        columns = spreme.best_subsets(gram, 1, shared=shared)[1][0]
        assert (columns < 3).all()


def test_values_of_which_a_term_overflows_are_refused():
    t = np.linspace(0, 1, 30)
    x = 1e70 * np.exp(-t)[:, None]
    for method in ("l0", "group_stlsq"):
        model = spreme.SharedSINDy(spreme.Library(1, 5), method, window=7)
        with pytest.raises(ValueError, match=r"x: values up to 1e\+70, .* scale the data"):
            model.fit(x, t)


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 7, 8])  # of 8: small supports are solved apart
def test_least_squares_on_a_support_is_that_of_its_columns(kept):
    A, y, gram = random_gram(3, 2, 8, seed=kept)
    generator = torch.Generator().manual_seed(kept)
    support = torch.stack([torch.randperm(8, generator=generator) < kept for _ in range(6)])
    support = support.reshape(3, 2, 8)
    support[0, 0, :] = False  # sizes differ
    found = spreme.solve(gram, support)
    assert not found[~support].any()
    for e, state in itertools.product(range(3), range(2)):
        S = support[e, state]
        expected = np.linalg.lstsq(A[e][:, S].numpy(), y[e, :, state].numpy(), rcond=None)[0]
        np.testing.assert_allclose(found[e, state, S].numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_a_full_fit_that_is_at_hand_is_not_fitted_again(shared, monkeypatch):
    _, _, gram = random_gram(3, 2, 6, seed=4)
    stlsq = spreme.stlsq
    full = spreme.solve(gram, torch.ones_like(gram.c), 1e-6)
    _, _, path = spreme.group_stlsq(gram, 0.2, 1e-6, shared=shared)
    solve, fits = stlsq.solve, []
    monkeypatch.setattr(stlsq, "solve", lambda *given: fits.append(given[1]) or solve(*given))
    again = stlsq.thresholded(gram, 0.2, 1e-6, shared=shared, full=full)
    assert len(again) == len(path) > 2  # something was dropped
    assert all(torch.equal(a, b) for a, b in zip(again, path, strict=True))
    assert len(fits) == len(path) - 2  # a fit for each round but the first
    assert not any(kept.all() for kept in fits)


@pytest.mark.parametrize("shared", [True, False])
def test_the_search_is_the_same_in_pieces(shared, monkeypatch):
    _, _, gram = random_gram(2, 2, 8, seed=5)
    batch = spreme.Gram(
        *(torch.stack([a, 2 * a]) for a in (gram.G, gram.c, gram.q)), gram.samples, 4
    )
    whole = spreme.best_subsets(batch, 3, shared=shared)
    monkeypatch.setattr("companion.papers.spreme.l0.CACHE", 64)
    pieces = spreme.best_subsets(batch, 3, shared=shared)
    for (a, b), (c, d) in zip(whole, pieces, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)


@pytest.mark.parametrize("seed", range(5))
def test_columns_that_nearly_depend_on_each_other_share_their_coefficient(seed):
    A, y, _ = random_gram(1, 1, 2, seed=seed)
    twin = A[..., :1] + 1e-9 * torch.randn(1, 40, 1, generator=generator(9), dtype=torch.float64)
    A = torch.cat([A, twin], -1)  # a pivot of 1e-9 passes, but is mere round-off in products
    c, q = y.mT @ A / 40, y.square().mean(1)
    gram = spreme.Gram(A.mT @ A / 40, c, q, torch.full((1,), 40.0).double(), 4)
    found = spreme.solve(gram, torch.ones(1, 3, dtype=torch.bool))[0, 0]
    expected = np.linalg.pinv(A[0].numpy(), rcond=1e-6) @ y[0, :, 0].numpy()
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert torch.isclose(found[0], found[2], rtol=1e-5)


@pytest.mark.parametrize("method", spreme.derivative.METHODS)
def test_a_derivative_of_mere_round_off_is_none(method):
    t = np.arange(200) * 1e-3
    x = torch.stack([torch.full((200,), 0.1), 0.1 + 1e-3 * torch.from_numpy(t)], -1)
    gram = spreme.build_gram(spreme.Library(2, 1), x.double()[None, None], t, method, 9)
    assert gram.q[0, 0] == 0
    assert not gram.c[0, 0].any()
    assert gram.q[0, 1] > 0  # slow is not still


def test_there_are_at_least_three_independent_rows():
    samples = torch.tensor([5.0, 27.0, 90.0]).double()
    gram = spreme.Gram(*torch.zeros(3, 3, 1, 1).double().unbind(), samples, 9)
    assert spreme.l0.effective_samples(gram).tolist() == [3, 3, 10]


def test_a_majority_is_more_than_half():
    have = torch.arange(4)[:, None] < torch.tensor([0, 1, 2, 3, 4])  # (E, terms)
    vote = spreme.experiment.majority(have[:, None])
    assert vote.tolist() == [[False, False, False, True, True]]


def test_equal_columns_add_nothing_and_break_nothing():
    A, y, gram = random_gram(2, 1, 3)
    A = torch.cat([A, A[..., :1], torch.zeros_like(A[..., :1])], -1)  # a copy, and nothing
    gram = spreme.Gram(A.mT @ A / 40, y.mT @ A / 40, gram.q, gram.samples, 4)
    left = spreme.l0.residuals(gram, torch.tensor([[0, 3], [0, 4], [3, 4]]))
    alone = spreme.l0.residuals(gram, torch.tensor([[0]]))
    assert torch.allclose(left, alone.expand_as(left), rtol=1e-10)
    support, _ = spreme.select(spreme.best_subsets(gram, 3), 5)
    assert not (support[0, 0] & support[0, 3])
    both = torch.tensor([[True, False, False, True, True]])
    coefficients = spreme.solve(gram, both)
    assert torch.isfinite(coefficients).all()
    assert torch.allclose(coefficients[..., 0], coefficients[..., 3], rtol=1e-6)
    single = spreme.solve(gram, torch.tensor([[True, False, False, False, False]]))
    assert torch.allclose(2 * coefficients[..., 0], single[..., 0], rtol=1e-6)


def test_least_squares_on_a_support_is_that_of_the_rows():
    A, y, gram = random_gram(2, 2, 5)
    support = torch.tensor([[True, False, True, True, False], [False] * 5])
    found = spreme.solve(gram, support)
    for e in range(2):
        expected = torch.linalg.lstsq(A[e][:, support[0]], y[e][:, :1]).solution[:, 0]
        assert torch.allclose(found[e, 0, support[0]], expected, rtol=1e-10)
    assert (found[:, 1] == 0).all()
    assert (found[:, 0, ~support[0]] == 0).all()


@pytest.mark.parametrize("name", ["lotka", "pendulum"])
def test_batched_thresholding_gives_pysindys_supports(name):
    x, t, _ = data(name, 0.02, 4)
    library = spreme.make_library(name)
    gram = spreme.build_gram(library, x, t.numpy(), "weak", WINDOWS[name])
    V, D = (
        torch.from_numpy(m) for m in spreme.derivative.operators(t.numpy(), "weak", WINDOWS[name])
    )
    A, y = (V @ library(x)).flatten(-3, -2).numpy(), (D @ x).flatten(-3, -2).numpy()
    same = total = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pysindy warns where nothing is left
        for threshold in (0.1, 0.2, 0.4):
            support = spreme.group_stlsq(gram, threshold, 1e-12, shared=False)[1].numpy()
            for s, e in itertools.product(range(4), range(9)):
                peer = pysindy.STLSQ(threshold=threshold, alpha=1e-12).fit(A[s, e], y[s, e])
                same += ((peer.coef_ != 0) == support[s, e]).all()
                total += 1
    assert same >= 0.99 * total


def test_thresholding_one_environment_is_the_same_shared_or_not():
    x, t, _ = data("pendulum", 0.01, 1, n_envs=1)
    gram = spreme.build_gram(spreme.make_library("pendulum"), x, t.numpy(), "weak", 9)
    for threshold in (0.05, 0.2):
        shared, alone = (spreme.group_stlsq(gram, threshold, shared=s) for s in (True, False))
        assert torch.equal(shared[1], alone[1][:, 0])
        assert torch.allclose(shared[0], alone[0])


def test_a_group_is_dropped_by_its_root_mean_square():
    # terms that do not depend on each other, so that c holds their coefficients
    c = torch.zeros(4, 1, 4, dtype=torch.float64)
    c[0, 0, 0] = 0.95  # root mean square 0.475: its largest alone is above the threshold
    c[:, 0, 1] = 0.55  # everywhere
    c[0, 0, 2] = 1.05  # 0.525, though its mean is 0.26 and its mean square 0.28
    c[:2, 0, 3] = torch.tensor([0.9, -0.9])  # 0.64, though its mean is zero
    eye = torch.eye(4, dtype=torch.float64).expand(4, 4, 4).clone()
    gram = spreme.Gram(
        eye, c, torch.full((4, 1), 9.0).double(), torch.full((4,), 50.0).double(), 1
    )
    support = spreme.group_stlsq(gram, 0.5)[1]
    assert support.tolist() == [[False, True, True, True]]
    alone = spreme.group_stlsq(gram, 0.5, shared=False)[1]
    assert torch.equal(alone, c.abs() >= 0.5)


# ---------------------------------------------------------------- the estimator


@pytest.mark.parametrize("name", spreme.SYSTEMS)
def test_noise_free_data_gives_the_true_terms(name):
    x, t, truth = data(name)
    model = spreme.SharedSINDy(spreme.make_library(name), window=WINDOWS[name]).fit(x[0], t)
    assert torch.equal(model.support_, (truth != 0).any(0))
    at = truth.abs() > 0.02
    assert ((model.coef_ / truth - 1).abs()[at]).median() < 0.01
    assert model.score(x[0], t) > 0.999


def test_without_epsilon_the_search_fits_quadrature_error():
    x, t, truth = data("lotka")
    library = spreme.make_library("lotka")
    loose = spreme.SharedSINDy(library, window=11, epsilon=1e-14).fit(x[0], t)
    assert loose.support_.sum() == 6
    assert (truth != 0).any(0).sum() == 4


def test_permuting_environments_permutes_the_coefficients():
    x, t, _ = data("pendulum", 0.05)
    order = [3, 0, 8, 1, 2, 7, 6, 5, 4]
    one, other = (
        spreme.SharedSINDy(spreme.make_library("pendulum")).fit(d, t) for d in (x, x[:, order])
    )
    assert torch.equal(one.support_, other.support_)
    assert torch.allclose(one.coef_[:, order], other.coef_, rtol=1e-12)


def test_rescaling_a_state_rescales_coefficients_by_the_exponent():
    x, t, _ = data("lotka", 0.05)
    library = spreme.make_library("lotka")
    scale = torch.tensor([3.0, 0.25], dtype=torch.float64)
    one, other = (spreme.SharedSINDy(library, window=11).fit(d, t) for d in (x, x * scale))
    assert torch.equal(one.support_, other.support_)
    factor = scale[:, None] / (scale ** library.exponents.double()).prod(-1)
    assert torch.allclose(one.coef_ * factor, other.coef_, rtol=1e-8)


def test_duplicating_environments_leaves_the_support():
    x, t, _ = data("pendulum", 0.1, 3)
    for method in ("l0", "group_stlsq"):
        one, two = (
            spreme.SharedSINDy(spreme.make_library("pendulum"), method, threshold=0.3).fit(d, t)
            for d in (x, torch.cat([x, x], 1))
        )
        assert torch.equal(one.support_, two.support_)
        assert torch.allclose(torch.cat([one.coef_, one.coef_], 1), two.coef_, rtol=1e-9)


def test_a_coefficient_that_changes_sign_is_found_shared_and_lost_pooled():
    parameters = np.array([(s, 2.0, -2.0, -s, -0.3) for s in (0.3, -0.3)])
    _, initial = spreme.systems.draw_environments("linear")
    t = spreme.SYSTEMS["linear"].times
    x = torch.from_numpy(spreme.systems.integrate("linear", parameters, initial, t).copy())
    library = spreme.make_library("linear")
    truth = spreme.true_coefficients("linear", parameters, library)
    shared = spreme.SharedSINDy(library, window=21).fit(x, t)
    assert torch.equal(shared.support_, truth[0] != 0)
    assert torch.allclose(shared.coef_, truth, atol=2e-3)
    together = spreme.SharedSINDy(library, window=21).fit(pooled(x), t)
    assert not torch.equal(together.support_, truth[0] != 0)


def test_a_batch_is_fitted_as_its_members_are():
    x, t, _ = data("lotka", 0.1, 3)
    library = spreme.make_library("lotka")
    for options in ({}, {"shared": False}, {"method": "group_stlsq", "derivative": "savgol"}):
        batch = spreme.SharedSINDy(library, window=11, **options).fit(x, t)
        for s in range(3):
            one = spreme.SharedSINDy(library, window=11, **options).fit(x[s], t)
            assert torch.equal(one.support_, batch.support_[s])
            # many terms left by S2 are collinear: what they predict is what is well determined
            slopes = [library(x[s]) @ m[:, None].mT for m in (one.coef_, batch.coef_[s])]
            assert torch.allclose(*slopes, rtol=1e-7)


def test_the_score_of_a_batch_is_the_mean_of_its_members():
    x, t, _ = data("lotka", 0.1, 3)
    x = x.clone()
    x[:, 1, ..., 0] = 1.0  # a state that does not move counts for nothing
    library = spreme.make_library("lotka")
    batch = spreme.SharedSINDy(library, window=11).fit(x, t)
    each = [spreme.SharedSINDy(library, window=11).fit(x[s], t) for s in range(3)]
    own = sum(m.score(x[s], t) for s, m in enumerate(each)) / 3
    assert 0.5 < own < 1
    assert batch.score(x, t) == pytest.approx(own, abs=1e-6)
    same = sum(m.score(x[0], t) for m in each) / 3  # all copies on one data set
    assert batch.score(x[0], t) == pytest.approx(same, abs=1e-6)


def test_states_that_do_not_move_count_for_nothing_in_a_score():
    t = torch.arange(0, 2, 0.05).double()
    moving = torch.exp(-t)[:, None]
    poor = spreme.SharedSINDy.from_coefficients(spreme.Library(1, 1), [[0.0, -0.5]])
    alone = poor.score(moving, t)
    assert 0.7 < alone < 0.8  # half the slope leaves a quarter of the energy
    both = torch.cat([moving, torch.full_like(moving, 3.0)], -1)
    wide = spreme.SharedSINDy.from_coefficients(
        spreme.Library(2, 1), [[0.0, -0.5, 0.0], [0.0, 0.0, 0.0]]
    )
    assert wide.score(both, t) == pytest.approx(alone, rel=1e-9)


def test_a_score_goes_by_the_labels():
    t = torch.arange(0, 2, 0.05).double()
    parts = {
        "a": torch.exp(-t)[:, None],
        "b": torch.exp(0.5 * t)[:, None],
        "c": torch.exp(t)[:, None],
    }
    model = spreme.SharedSINDy(spreme.Library(1, 1), max_terms=1)
    model.fit(list(parts.values()), t, list(parts))
    for some in (["b", "c", "a"], ["c"], ["a", "c", "a"]):
        assert model.score([parts[label] for label in some], t, some) > 0.999
    wrong = model.score([parts["b"], parts["a"]], t, ["a", "b"])
    assert wrong < 0
    assert model.score(torch.stack([*parts.values()])[:, None], t) > 0.999
    with pytest.raises(ValueError, match=r"env = 'd': expected one of \['a', 'b', 'c'\]"):
        model.score([parts["a"]] * 3, t, ["a", "b", "d"])


def test_coefficients_stand_for_their_terms():
    x, t, truth = data("pendulum", 0.01)
    library = spreme.make_library("pendulum")
    terms = (truth != 0).any(0)
    assert spreme.exact(truth, terms).all()
    assert spreme.exact(terms, truth).all()
    assert not spreme.exact(truth, ~terms).any()
    assert torch.equal(spreme.experiment.majority(-5 * truth), terms)
    gram = spreme.build_gram(library, x, t.numpy(), "weak", 9)
    assert torch.equal(spreme.solve(gram, 3 * truth), spreme.solve(gram, truth != 0))


def test_subsets_are_the_callers_own():
    kept = spreme.l0.subsets(6, 2).clone()
    spreme.l0.subsets(6, 2).fill_(0)
    assert torch.equal(spreme.l0.subsets(6, 2), kept)
    gram = random_gram(2, 1, 6)[2]
    assert spreme.best_subsets(gram, 2)[2][0].tolist() != [[0, 0]]


def test_float32_is_upcast():
    x, t, _ = data("linear", 0.01)
    model = spreme.SharedSINDy(spreme.make_library("linear"), window=21).fit(x[0].float(), t)
    exact = spreme.SharedSINDy(spreme.make_library("linear"), window=21).fit(
        x[0].float().double(), t
    )
    assert model.coef_.dtype == torch.float64
    assert torch.equal(model.coef_, exact.coef_)


@pytest.mark.parametrize("method", ["l0", "group_stlsq"])
def test_a_state_that_does_not_move_has_no_terms(method):
    t = torch.arange(0, 4, 0.1, dtype=torch.float64)
    moving = torch.exp(-t[None, None] * torch.tensor([0.5, 0.9])[:, None, None])
    x = torch.stack([moving, torch.full_like(moving, 7.3)], -1)
    model = spreme.SharedSINDy(spreme.Library(2, 2), method, threshold=0.3, max_terms=2).fit(x, t)
    assert not model.support_[1].any()
    assert model.support_[0].any()
    assert torch.isfinite(model.coef_).all()
    assert model.equations(0)[1] == "x1' = 0"
    still = spreme.SharedSINDy(spreme.Library(2, 2), method).fit(torch.ones(2, 1, 20, 2), 0.1)
    assert (still.coef_ == 0).all()


def test_ragged_trajectories_are_fitted_where_they_have_samples():
    x, t, truth = data("lotka", 0.02)
    x = x[0]
    library = spreme.make_library("lotka")
    whole = spreme.SharedSINDy(library, window=11).fit(x, t)
    parts = [x[e, r] for e in range(9) for r in range(4)]
    labels = [f"island {e}" for e in range(9) for _ in range(4)]
    listed = spreme.SharedSINDy(library, window=11).fit(parts, 0.3, labels)
    assert torch.allclose(listed.coef_, whole.coef_, rtol=1e-9)
    assert listed.environments_[2] == "island 2"
    assert listed.equations("island 2") == whole.equations(2)
    # cut some short, and drop one: as if rows were removed
    short = [p[: 34 - i % 9] for i, p in enumerate(parts)][:-1]
    ragged = spreme.SharedSINDy(library, window=11).fit(short, t, labels[:-1])
    assert torch.equal(ragged.support_, (truth != 0)[0])
    first = [p for p, label in zip(short, labels, strict=False) if label == "island 0"]
    V = [spreme.derivative.operators(t.numpy()[: len(p)], "weak", 11) for p in first]
    A = torch.cat([torch.from_numpy(v) @ library(p) for p, (v, _) in zip(first, V, strict=True)])
    y = torch.cat([torch.from_numpy(d) @ p for p, (_, d) in zip(first, V, strict=True)])
    on = ragged.support_[0]
    expected = torch.linalg.lstsq(A[:, on], y[:, :1]).solution[:, 0]
    assert torch.allclose(ragged.coef_[0, 0, on], expected, rtol=1e-9)
    one = spreme.SharedSINDy(library, window=11).fit(parts[:2], 0.3, ["here", "here"])
    assert one.coef_.shape == (1, 2, 21)
    for derivative in ("savgol", "fd"):
        a = spreme.SharedSINDy(library, derivative=derivative, window=7).fit(x, t)
        b = spreme.SharedSINDy(library, derivative=derivative, window=7).fit(parts, 0.3, labels)
        assert torch.allclose(a.coef_, b.coef_, rtol=1e-6, atol=1e-9)


def test_unequal_times_are_used():
    parameters, initial = spreme.systems.draw_environments("pendulum")
    g = np.random.default_rng(0)
    t = np.cumsum(g.uniform(0.05, 0.15, 60))
    x = torch.from_numpy(spreme.systems.integrate("pendulum", parameters, initial, t).copy())
    library = spreme.make_library("pendulum")
    truth = spreme.true_coefficients("pendulum", parameters, library)
    model = spreme.SharedSINDy(library, window=15).fit(x, t)
    assert torch.equal(model.support_, truth[0] != 0)
    assert torch.allclose(model.coef_, truth, atol=0.02)
    wrong = spreme.SharedSINDy(library, window=15).fit(x, 0.1)  # the mean step instead
    assert (wrong.coef_ - truth).abs().max() > 0.02


def test_a_new_environment_is_learned_in_closed_form():
    x, t, _ = data("lotka", 0.02, 1)
    model = spreme.SharedSINDy(spreme.make_library("lotka"), window=11).fit(x[0], t)
    held = np.array([spreme.SYSTEMS["lotka"].held_out])
    new = spreme.systems.integrate(
        "lotka", held, np.array([[1.2, 1.7]]), spreme.SYSTEMS["lotka"].times
    )
    adapted = model.adapt(torch.from_numpy(new[0, 0].copy()), t)
    truth = spreme.true_coefficients("lotka", held, model.library)
    assert torch.equal(adapted.support_, model.support_)
    assert adapted.coef_.shape == (1, 2, 21)
    assert torch.allclose(adapted.coef_, truth, rtol=0.02, atol=1e-12)
    assert model.coef_.shape == (9, 2, 21)  # as it was
    with pytest.raises(ValueError, match="shared=True"):
        spreme.SharedSINDy(model.library, shared=False, window=11).fit(x[0], t).adapt(new[0, 0], t)
    batch = spreme.SharedSINDy(model.library, window=11).fit(x.expand(2, -1, -1, -1, -1), t)
    twice = torch.from_numpy(new[0].copy()).expand(2, 34, 2)
    assert torch.allclose(batch.adapt(twice, t).coef_[1], adapted.coef_, rtol=1e-9)


def test_data_of_several_environments_are_not_adapted_to():
    x, t, _ = data("lotka", 0.02, 2)
    library = spreme.make_library("lotka")
    model, batch = (spreme.SharedSINDy(library, window=11).fit(part, t) for part in (x[0], x))
    for one, wrong, told in (
        (model, x[0], r"\(9, 4, 34, 2\), expected one trajectory \(T, 2\) or several \(R, T, 2\)"),
        (model, x[0, 0, 0, 0], r"x: shape \(2,\)"),
        (batch, x, r"expected one trajectory \(2, T, 2\) or several \(2, R, T, 2\)"),
        (batch, x[0, 0, 0], r"x: shape \(34, 2\), expected one"),
        (batch, x[0, 0], r"x: shape \(4, 34, 2\), expected one"),  # no batch of two
    ):
        with pytest.raises(ValueError, match=told):
            one.adapt(wrong, t)
    assert batch.adapt(x[:, 0], t).coef_.shape == (2, 1, 2, 21)


def test_a_model_of_a_new_environment_simulates_as_far_and_as_finely_as_its_data_ask():
    t = torch.arange(0, 4, 0.05, dtype=torch.float64)
    x = torch.exp(-t)[:, None]
    model = spreme.SharedSINDy(spreme.Library(1, 1), max_terms=1).fit(x, t)
    assert (model.steps_, model.limit_) == ([pytest.approx(0.05)], 1e4)
    coarse, fine = model.adapt(1e3 * x[::4], t[::4]), model.adapt(x[:40], 0.01)
    assert coarse.steps_ == [pytest.approx(0.2)]
    assert coarse.limit_ == pytest.approx(1e5)
    assert (fine.steps_, fine.limit_) == ([pytest.approx(0.01)], model.limit_)
    assert (model.steps_, model.limit_) == ([pytest.approx(0.05)], 1e4)  # as it was


def test_a_fast_environment_is_simulated_as_finely_as_its_own_data_ask():
    def circle(speed, t):
        return np.c_[np.cos(speed * t), -np.sin(speed * t)]

    slow, fast, asked = np.arange(0, 200, 1.0), np.arange(0, 1, 0.01), [0, 0.5, 1.0]
    paths = [circle(0.1, slow), circle(20, fast)]
    library = spreme.Library(2, 2)
    model = spreme.SharedSINDy(library).fit(paths, [slow, fast], env=["slow", "fast"])
    assert model.steps_ == [1.0, pytest.approx(0.01)]
    adapted = spreme.SharedSINDy(library).fit(paths[0], slow).adapt(paths[1], fast)
    for path in (model.simulate([1.0, 0.0], asked, "fast"), adapted.simulate([1.0, 0.0], asked)):
        assert np.abs(path.numpy() - circle(20, np.array(asked))).max() < 1e-2


def test_a_model_adapts_to_trajectories_of_unequal_length_and_times():
    def decay(t):
        return np.exp(-2 * t)[:, None]

    t = np.arange(60) * 0.05
    model = spreme.SharedSINDy(spreme.Library(1, 2), max_terms=1).fit(decay(t) ** 0.5, t)
    one = model.adapt(decay(t), t)
    for times in ([t[:50], t[:40]], [t, t[5:]], [t, 2 * t]):
        several = model.adapt([decay(line) for line in times], times)
        assert torch.allclose(several.coef_, one.coef_, rtol=1e-3)
    assert torch.allclose(
        model.adapt([decay(t[:50]), decay(t[:40])], 0.05).coef_, one.coef_, rtol=1e-3
    )
    for again in (list(t), tuple(t), t.tolist()):  # one array, not one for each
        assert torch.allclose(model.adapt([decay(t), decay(t)], again).coef_, one.coef_)
    with pytest.raises(ValueError, match="trajectory 1 has shape"):
        model.adapt([decay(t), np.ones((30, 2))], 0.05)
    copies = np.stack([decay(t), decay(2 * t)])[:, None, None]
    batch = spreme.SharedSINDy(spreme.Library(1, 2), max_terms=1).fit(copies, t)
    for line, times in (([decay(t), decay(t[:50])], 0.05), ([decay(t), decay(t)], [t, t])):
        with pytest.raises(ValueError, match="a list of trajectories, but the model has 2 copies"):
            batch.adapt(line, times)


def test_a_model_pickled_with_one_step_for_all_environments_still_simulates():
    t = np.arange(0, 5, 0.05)
    model = spreme.SharedSINDy(spreme.Library(1, 1), max_terms=1).fit(np.exp(-t)[:, None], t)
    older = pickle.loads(pickle.dumps(model))
    state = older.__getstate__() | {"step_": model.steps_[0]}
    del state["steps_"]
    older = spreme.SharedSINDy.__new__(spreme.SharedSINDy)
    older.__setstate__(state)
    assert older.steps_ == model.steps_
    assert torch.equal(older.simulate([1.0], [0, 1]), model.simulate([1.0], [0, 1]))


def test_a_fitted_model_with_a_sine_is_pickled():
    t = np.arange(0, 5, 0.05)
    library = spreme.Library(1, 1, [spreme.sine(0)])
    model = spreme.SharedSINDy(library, max_terms=1).fit(np.exp(-t)[:, None], t)
    again = pickle.loads(pickle.dumps(model))
    assert again.equations() == model.equations()
    assert torch.equal(again.simulate([1.0], [0, 1]), model.simulate([1.0], [0, 1]))
    assert again.feature_names_ == ["1", "x0", "sin(x0)"]


def test_coefficients_go_to_pysindy_and_back():
    x, t, _ = data("linear", n_envs=2)
    library = spreme.make_library("linear")
    model = spreme.SharedSINDy(library, window=21).fit(x[0], t)
    peer = pysindy.SINDy(
        optimizer=pysindy.STLSQ(threshold=0.02),
        feature_library=pysindy.PolynomialLibrary(degree=5),
    ).fit(list(x[0, 1].numpy()), t=0.02, feature_names=["x", "y", "z"])
    back = spreme.SharedSINDy.from_coefficients(library, peer.coefficients())
    states = x[0, 1, 0, :5]
    assert np.allclose(back.predict(states), peer.predict(states.numpy()), rtol=1e-10)
    peer.optimizer.coef_ = model.coef_[1].numpy()
    assert np.allclose(model.predict(states, 1), peer.predict(states.numpy()), rtol=1e-10)
    assert peer.get_feature_names() == model.feature_names_
    with pytest.raises(ValueError, match=r"coefficients: shape \(1, 2, 3\)"):
        spreme.SharedSINDy.from_coefficients(library, torch.zeros(1, 2, 3))


def test_a_simulation_follows_the_system_and_flags_divergence():
    x, t, truth = data("pendulum", n_envs=2)
    model = spreme.SharedSINDy.from_coefficients(spreme.make_library("pendulum"), truth)
    states, gone = model.simulate(x[0, 1, :, 0], t, 1, flag=True)
    assert states.shape == (8, 20, 2)
    assert not gone.any()
    assert torch.allclose(states, x[0, 1], atol=1e-5)
    square = spreme.SharedSINDy.from_coefficients(spreme.Library(1, 2), [[0.0, 0.0, 1.0]])
    x0 = torch.tensor([[2.0], [-1.0]])  # x' = x^2 leaves to infinity at t = 1/2, or decays
    states, gone = square.simulate(x0, np.linspace(0, 3, 31), flag=True)
    assert gone.tolist() == [True, False]
    assert torch.isfinite(states).all()
    assert states[1, -1].item() == pytest.approx(-1 / 4, rel=1e-3)
    with pytest.warns(UserWarning, match="1 simulated"):
        square.simulate(x0, np.linspace(0, 3, 31))


def test_a_simulation_goes_as_far_as_its_data_or_as_it_is_told():
    t = torch.linspace(0, 12, 241, dtype=torch.float64)
    most = 5e4  # logistic growth from 100 to this
    x = (most / (1 + (most / 100 - 1) * torch.exp(-t)))[:, None]
    model = spreme.SharedSINDy(spreme.Library(1, 2), max_terms=2).fit(x, t)
    for grown in (model, model.adapt(x, t)):
        states, gone = grown.simulate(x[0], t, flag=True)
        assert not gone
        assert torch.allclose(states, x, rtol=0.03)
    states, gone = model.simulate(x[0], t, flag=True, limit=2e4)
    assert gone
    assert 1.5e4 < states.max() < 2e4
    given = spreme.SharedSINDy.from_coefficients(model.library_, model.coef_)
    with pytest.warns(UserWarning, match=r"1 simulated .* limit = 10000"):
        assert given.simulate(x[0], t).max() < 1e4
    assert torch.allclose(given.simulate(x[0], t, limit=1e6), x, rtol=0.03)
    with pytest.raises(ValueError, match="limit = -1"):
        given.simulate(x[0], t, limit=-1)


def test_a_simulation_far_apart_has_the_steps_of_its_data():
    t = torch.linspace(0, 2, 41)  # float32: its steps are rounded
    x = torch.exp(-t.double())[:, None]
    library = spreme.Library(1, 1)
    model = spreme.SharedSINDy(library, max_terms=1).fit([x, x[:9]], t, [0, 0])
    assert model.steps_ == [pytest.approx(0.05)]
    assert torch.equal(
        model.simulate(x[0], t), spreme.simulate(library, model.coef_[0], x[:1], t)[0][0]
    )
    given = spreme.SharedSINDy.from_coefficients(library, [[0.0, -1.0]], step=0.05)
    for exact in (model, model.adapt(x, t), given):
        fine = exact.simulate([1.0], 0.05 * np.arange(401), flag=True)[0]
        for asked in ([0.0, 20.0], [0.0, 7.0, 20.0]):
            states, gone = exact.simulate([1.0], asked, flag=True)
            assert not gone
            assert states[-1].item() == pytest.approx(fine[-1].item(), rel=1e-6)
        assert fine[-1].item() == pytest.approx(math.exp(20 * exact.coef_[0, 0, 1]), rel=1e-5)
    assert given.simulate([1.0], [0.0, -2.0])[-1].item() == pytest.approx(math.e**2, rel=1e-6)
    for start in (spreme.SharedSINDy.from_coefficients, spreme.simulate):
        more = () if start == spreme.SharedSINDy.from_coefficients else ([[1.0]], [0.0, 1.0])
        with pytest.raises(ValueError, match="step = 0: expected"):
            start(library, [[0.0, -1.0]], *more, step=0)


def test_a_simulation_takes_coefficients_of_any_precision():
    library, coefficients = spreme.Library(1, 1), torch.tensor([[0.0, -0.5]])
    exact, _ = spreme.simulate(library, coefficients.double(), [[1.0]], [0.0, 1.0])
    for values in (coefficients, coefficients.half(), coefficients.numpy()):
        states, _ = spreme.simulate(library, values, [[1.0]], [0.0, 1.0])
        assert torch.equal(states, exact)


@pytest.mark.parametrize("method", ["l0", "mask"])
def test_equal_steps_may_be_rounded(method):
    t = torch.linspace(0, 4, 200)
    x = torch.exp(-t.double())[:, None]
    model = spreme.SharedSINDy(spreme.Library(1, 1), method, derivative="savgol", epochs=1)
    exact = torch.linspace(0, 4, 200, dtype=torch.float64)
    for times in (t, t.numpy()):
        found = clone(model).fit(x, times).coef_
        assert torch.allclose(found, clone(model).fit(x, exact).coef_, rtol=1e-9)
    uneven = t.clone()
    uneven[50] += 0.001
    for times in (uneven, uneven.double(), t.double()):  # of float64 more is asked
        with pytest.raises(ValueError, match="needs equal steps"):
            clone(model).fit(x, times)


def test_what_cannot_be_fitted_is_named():
    library = spreme.Library(2, 2)
    x = torch.randn(2, 3, 30, 2, generator=generator())
    holes = x.clone()
    holes[1, 2, 5, 0] = torch.nan

    def fit(x, t=0.1, env=None, **options):
        return spreme.SharedSINDy(library, **options).fit(x, t, env)

    for call, message in {
        lambda: fit(holes): "x: NaN or infinity at environment 1, trajectory 2, sample 5",
        lambda: fit(x[..., :1]): r"x: shape \(2, 3, 30, 1\), expected",
        lambda: fit(x[:, :0]): "holds nothing",
        lambda: fit(x[:, :, :8]): "a trajectory of 8 samples, expected at least 9",
        lambda: fit(x, window=8): "window = 8: expected an odd number",
        lambda: fit(x, 0.0): "t = 0.0: expected a step above 0",
        lambda: fit(x, np.zeros(30)): "ascending order",
        lambda: fit(x, np.arange(29)): "expected a step or 30 times",
        lambda: fit(x, np.arange(30).astype("M8[h]")): "t: dates or time spans; expected numbers",
        lambda: fit(x, list(np.arange(30).astype("m8[s]"))): "t: dates or time spans",
        lambda: fit(x, np.timedelta64(1, "h")): "t: dates or time spans",
        lambda: fit(np.zeros((30, 2), "m8[s]")): "x: dates or time spans",
        lambda: fit(x, env=[0, 1]): "env: labels belong to a list",
        lambda: fit([x[0, 0]]): "env: none labels for 1 trajectories",
        lambda: fit([], env=[]): "an empty list",
        lambda: fit([x[0, 0, :, :1]], env=[0]): "trajectory 0 has shape",
        lambda: fit([holes[1, 2]], env=[0]): "trajectory 0 has NaN",
        lambda: fit(x, method="stlsq"): "method = 'stlsq'",
        lambda: fit(x, derivative="spline"): "derivative = 'spline'",
        lambda: fit(x, max_terms=-1): "max_terms = -1",
        lambda: fit(x, epsilon=0.0): "epsilon = 0.0",
        lambda: fit(x, method="mask", shared=False): "method = 'mask'",
        lambda: fit(x).predict(x, 7): r"env = 7: expected one of \[0, 1\]",
        lambda: spreme.SharedSINDy(library).predict(x): "not fitted",
        lambda: spreme.l0.subsets(500, 4): "max_terms = 4: 2,573,031,125 subsets",
        lambda: spreme.trajectories("duffing"): "system = 'duffing'",
        lambda: spreme.trajectories("lorenz", n_envs=4): "n_envs = 4: lorenz has 1 to 3",
        lambda: spreme.Library(0): "n = 0",
        lambda: spreme.Library(2.0, 2): "n = 2.0: expected a whole number",
        lambda: spreme.Library(2, 2.0): "degree = 2.0",
        lambda: spreme.Library(2, names=["x"]): "expected 2 names",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


# ---------------------------------------------------------------- the published loop


def test_the_loops_gradients_hold_the_library_constant():
    x, _, _ = data("lotka", n_envs=2)
    x, step = x[0], 0.3
    library = spreme.make_library("lotka")
    start = loop.first_fits(library, x, step, 28)
    frozen = lambda states: library(states.detach())  # noqa: E731
    weights = start.clone().requires_grad_()

    def one_step(values):
        begin, end = x[:, :, :-1].flatten(1, 2), x[:, :, 1:].flatten(1, 2)
        change, _ = loop.stage(values, begin, weights, step)
        error = torch.nn.functional.huber_loss(begin + change, end, reduction="sum")
        return error / (4 * 34 * 2)  # by R T n, T the samples, not the steps

    def rolled(values):
        path, _ = loop.roll_out(values, x[:, :, 0], weights, step, 34)
        return (path - x).square().sum() / (4 * 34 * 2)

    for formula, loss in ((loop.one_step_gradient, one_step), (loop.roll_out_gradient, rolled)):
        value, gradient = formula(library, x, start, step)
        assert value.item() == pytest.approx(loss(library).item(), rel=1e-9)
        (traced,) = torch.autograd.grad(loss(frozen), weights)
        assert torch.allclose(gradient, traced, rtol=1e-8, atol=1e-12 * traced.abs().max())
        (full,) = torch.autograd.grad(loss(library), weights)
        assert (full - traced).norm() > 0.02 * traced.norm()


@pytest.mark.parametrize(
    ("name", "error", "terms"), [("lotka", 1.7255e-4, 42), ("pendulum", 5.394e-7, 13)]
)
def test_the_loop_starts_where_the_official_code_starts(name, error, terms):
    x, _, _ = spreme.trajectories(name)
    found = spreme.SYSTEMS[name]
    result = spreme.learn_mask(spreme.make_library(name), x, found.step, 1, spreme.PUBLISHED[name])
    assert result.first_support.sum() == terms
    assert result.validation[0] == pytest.approx(error, rel=1e-4)  # the digits that are known


def test_first_fits_share_out_columns_that_depend_on_each_other():
    # the first two columns are the same: least norm, which a solver for full rank does not give
    x = torch.randn(40, 3, generator=generator(), dtype=torch.float64)
    A = torch.cat([x[:, :1], x], 1)
    found = loop._ridge(
        A, A @ torch.tensor([0.0, 2.0, 1.0, 0.0]).double(), torch.ones(4).bool(), 0.0
    )
    assert torch.allclose(found, torch.tensor([1.0, 1.0, 1.0, 0.0]).double())


def test_the_first_fits_are_pysindys():
    x, t, _ = spreme.trajectories("linear")
    ours = loop.first_fits(spreme.make_library("linear"), x, 0.02, 200)
    smoothed = pysindy.SmoothedFiniteDifference(
        order=2, smoother_kws={"window_length": 5, "polyorder": 3}, save_smooth=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for e in range(3):
            peer = pysindy.SINDy(
                pysindy.STLSQ(threshold=0.01, alpha=0.05),
                pysindy.PolynomialLibrary(degree=5),
                smoothed,
            ).fit(list(x[e].numpy()), t=t.numpy())
            assert np.allclose(ours[e], peer.coefficients(), rtol=1e-6, atol=1e-9)


def test_a_state_too_far_turns_the_derivative_round():
    library = spreme.Library(1, 1)
    slow = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    for x0, rate in ((4000.0, 2.0), (6000.0, 0.01)):
        x = torch.full((1, 1, 1), x0, dtype=torch.float64)
        change, mean = loop.stage(library, x, slow, 1e-6)
        assert (change / 1e-6 / x0).item() == pytest.approx(rate, rel=1e-4)
        assert torch.allclose(1e-6 * mean @ slow.mT, change if rate == 2.0 else 0 * change)


def test_the_penalty_grows_every_epoch(monkeypatch):
    x, _, _ = data("linear", n_envs=2)
    seen, real = [], loop.Adam.step

    def step(self, gradient):
        if self.rate == 0.25:  # the mask's
            seen.append((self.value.sigmoid(), gradient))
        real(self, gradient)

    monkeypatch.setattr(loop.Adam, "step", step)
    monkeypatch.setattr(loop, "roll_out_gradient", lambda v, x, c, s: (0.0, torch.zeros_like(c)))
    settings = spreme.LoopSettings(rate=1e-9, mask_rate=0.25, penalty=10.0, growth=0.5)
    spreme.learn_mask(spreme.make_library("linear"), x[0], 0.02, 4, settings)
    assert len(seen) == 4
    for epoch, (gate, gradient) in enumerate(seen):
        on = gradient != 0
        assert on.any()
        slope = gradient[on] / (gate * (1 - gate))[on]  # of all environments' penalty
        assert torch.allclose(slope, torch.full_like(slope, 2 * 10 * 1.5**epoch))


def test_the_loop_through_the_estimator_drops_terms_for_good():
    x, t, truth = data("pendulum", n_envs=3)
    model = spreme.SharedSINDy(
        spreme.make_library("pendulum"),
        "mask",
        epochs=30,
        loop=spreme.LoopSettings(0.001, 0.1, 1e3),
    ).fit(x[0], t)
    result = model.path_
    assert result.epoch >= 1
    assert result.validation[result.epoch - 1] == min(result.validation)
    assert all(a >= b for a, b in itertools.pairwise(result.terms))
    assert (result.first_support | ~model.support_).all()
    assert model.coef_.shape == truth.shape
    untouched = spreme.SharedSINDy(spreme.make_library("pendulum"), "mask", epochs=0).fit(x[0], t)
    assert torch.equal(untouched.support_, result.first_support)


# ---------------------------------------------------------------- equations


def test_equations_are_written_and_compared():
    library = spreme.Library(2, 2, names=["x", "y"])
    found = torch.zeros(2, 6, dtype=torch.float64)
    found[0, 1], found[0, 4], found[1, 0], found[1, 5] = 0.5, -1.25, -3, 1e-4
    assert spreme.equations.as_text(library, found) == [
        "x' = 0.5 x - 1.25 x y",
        "y' = -3 + 0.0001 y^2",
    ]
    x, y = library.symbols()
    told = spreme.equations.as_sympy(library, found)
    assert sympy.simplify(told[0] - (0.5 * x - 1.25 * x * y)) == 0
    first, second = spreme.compare(told, [0.5 * x - x * y, y**2 + x])
    assert first.exact
    assert first.errors == {x: 0.0, x * y: pytest.approx(0.25)}
    assert second.missing == (x,)
    assert second.extra == (sympy.Integer(1),)
    assert not second.exact
    plain = [e.xreplace({s: sympy.Symbol(s.name) for s in (x, y)}) for e in told]
    for ours, theirs in ((told, plain), (plain, told), (told, told)):
        assert all(
            state.exact and not any(state.errors.values())
            for state in spreme.compare(ours, theirs)
        )
    assert all(state.exact for state in spreme.compare([0, x], [0, sympy.Symbol("x")]))


# ---------------------------------------------------------------- real plates


def test_the_bundled_plate_is_what_its_header_says():
    plate = load_growth()
    assert plate.density.shape == (94, 52)
    assert plate.density.dtype == torch.float64
    assert (plate.wells[0], plate.wells[-1]) == ("A1", "H11")
    assert [plate.strains.count(s) for s in ("G", "R", "RG")] == [32, 30, 32]
    assert plate.blank == pytest.approx(0.108, abs=0.001)
    assert "Yoav Ram" in bundled_header()
    assert "curveball" in bundled_header()


def test_the_bundled_table_comes_from_curveballs_file(real_data):
    source = real_data("growth") / "growth" / "Tecan_210115.csv"
    with open(source, encoding="utf-8") as file:
        made = table_from_curveball(file, bundled_header())
    plate = parse_table(made)
    assert plate.checksum == load_growth().checksum


def test_a_plate_of_ones_own_is_read_or_refused(tmp_path):
    with pytest.raises(MissingDataError, match="expected a plate's table"):
        load_growth(tmp_path)
    with pytest.raises(MissingDataError, match=r"^nix\.csv: neither a file nor a folder"):
        load_growth("nix.csv")
    good = "# mine\nhours,A1,A2\nstrain,yeast,0\n0,0.2,0.1\n1,0.3,0.1\n2.5,0.4,0.1\n"
    (tmp_path / "growth.csv").write_text(good)
    plate = load_growth(tmp_path)
    assert plate.strains == ("yeast",)
    assert np.allclose(plate.density, [[0.1, 0.2, 0.3]])
    for bad, message in {
        good.replace("2.5", "1"): "ascending hours",
        good.replace("0.3", "?"): r"table, line 5, A1: could not convert .* '\?'",
        good.replace("0.4,0.1", "0.4,"): "table, line 6, A2: could not convert .* ''",
        good.replace("2.5", "OVRFLW"): "table, line 6, hours: could not convert",
        good.replace("yeast", "0"): "expected cultures",
        good.replace("1,0.3,0.1", "1,0.3"): "differ in their number",
        "well,A1\n": 'expected a line "hours" .*; found "well,A1"',
        "": "found nothing",
    }.items():
        with pytest.raises(CorruptDataError, match=message):
            parse_table(bad)


# ---------------------------------------------------------------- what the chapter measures


def test_rates_by_environments_are_those_of_the_search_on_some_of_them(monkeypatch):
    x, t, truth = data("pendulum", 0.1, 3, n_envs=4)
    library = spreme.make_library("pendulum")
    gram = spreme.build_gram(library, x, t.numpy(), "weak", 9)
    true = (truth != 0).any(0)
    found = spreme.experiment.rates_by_environments(gram, true)
    for count in (1, 3, 4):
        right = []
        for first in range(4):
            which = [(first + i) % 4 for i in range(count)]
            path = spreme.best_subsets(gram.environments(which))
            right.append(spreme.exact(spreme.select(path, library.p)[0], true).double())
        assert torch.equal(found[count - 1], torch.stack(right).mean(0))
    monkeypatch.setattr("companion.papers.spreme.experiment.CHUNK", 1)  # copy by copy
    assert torch.equal(spreme.experiment.rates_by_environments(gram, true), found)


def test_the_methods_rates_are_told_the_best_threshold_and_nothing_else():
    x, t, truth = data("lotka", 0.01, 2)
    true = (truth != 0).any(0)
    options = {"window": 11, "smoothing": 7}
    args = spreme.make_library("lotka"), x, t.numpy(), true
    few, gram, _ = spreme.experiment.method_rates(*args, thresholds=[0.5], **options)
    more, _, tuned = spreme.experiment.method_rates(*args, thresholds=[0.5, 0.3, 1e9], **options)
    for name in ("STLSQ", "vote", "S2"):
        assert more[name].mean() >= few[name].mean()
    for name in ("l0", "l0 vote", "S3"):
        assert torch.equal(more[name], few[name])
    assert tuned in (0.5, 0.3)
    weak = spreme.exact(spreme.group_stlsq(gram, tuned, shared=False)[1], true).double().mean()
    assert more["STLSQ"].mean() >= weak
    wrong, _, _ = spreme.experiment.method_rates(*args[:3], ~true, thresholds=[0.3], **options)
    assert all((rate == 0).all() for rate in wrong.values())


def test_each_kind_of_derivative_is_thresholded_by_its_own_fits():
    x, t, truth = data("lotka", 0.02, 2)
    true, library = (truth != 0).any(0), spreme.make_library("lotka")
    options = {"window": 11, "smoothing": 7, "thresholds": [0.3]}
    rates, _, _ = spreme.experiment.method_rates(library, x, t.numpy(), true, **options)

    def direct(kind, width, shared):
        gram = spreme.build_gram(library, x, t.numpy(), kind, width)
        return spreme.exact(spreme.group_stlsq(gram, 0.3, shared=shared)[1], true).double().mean()

    for name, shared in (("STLSQ", False), ("S2", True)):
        weak, smoothed = direct("weak", 11, shared), direct("savgol", 7, shared)
        assert rates[name].mean().item() == pytest.approx(smoothed.item())
        assert smoothed > weak


def test_wilsons_interval_is_scipys():
    from scipy.stats import binomtest

    for k, n in ((0, 20), (13, 20), (20, 20)):
        peer = binomtest(k, n).proportion_ci(method="wilson")
        assert spreme.experiment.wilson(k / n, n) == pytest.approx((peer.low, peer.high), abs=1e-4)


def test_errors_are_relative_and_divergence_is_infinite():
    _, t, truth = data("lotka", n_envs=2)
    found = 1.1 * truth
    assert torch.allclose(spreme.coefficient_error(found, truth), torch.full((2,), 0.1).double())
    library = spreme.make_library("lotka")
    path = spreme.trajectories("lotka", n_envs=2)[0]
    error, states = spreme.experiment.roll_out_error(library, truth, path, t.numpy())
    assert error.max() < 1e-3
    assert states.shape == path.shape
    wild = truth.clone()
    wild[1, 0, 3] = 50.0  # 50 x^2
    error, _ = spreme.experiment.roll_out_error(library, wild, path, t.numpy())
    assert torch.isinf(error[1]).all()
    assert error[0].max() < 1e-3
    still = torch.zeros_like(truth)
    error, _ = spreme.experiment.roll_out_error(library, still, path, t.numpy())
    spread = path.flatten(1, 2).std(1, correction=0)[:, None, None]
    expected = ((path - path[:, :, :1]) / spread).square().mean((-2, -1)).sqrt()
    assert torch.allclose(error, expected)


def test_the_chapter_runs_with_other_parameters(tmp_path):
    tiny = {
        "dataset": "lotka", "n_envs": 3, "n_traj": 2, "degree": 3, "noise_levels": [0.05],
        "max_terms": 2, "thresholds": [0.3], "loop_epochs": 2, "loop_system": "lotka",
        "horizon_factor": 1.0, "n_seeds": 1, "window": 9,
    }  # fmt: skip
    code = tmp_path / "chapter.py"
    code.write_text(executor.script(chapters.find("spreme"), tiny))
    done = subprocess.run(
        [sys.executable, str(code)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "C1 reproduced" in done.stdout
    assert "C2 measured, not asserted" in done.stdout
    assert "C4 not run here" in done.stdout  # no noise of 10 %


def test_more_that_no_fit_can_use_is_named():
    x, t, truth = data("pendulum", n_envs=2)
    x, library = x[0], spreme.make_library("pendulum")
    model = spreme.SharedSINDy.from_coefficients(library, truth)
    fit = lambda **k: spreme.SharedSINDy(library, **{"window": 9} | k).fit(x, t)  # noqa: E731
    nan = float("nan")
    ones = np.ones((1, 2))
    for call, message in {
        lambda: fit(max_terms=1.5): "max_terms = 1.5",
        lambda: fit(window=9.0): "window = 9.0",
        lambda: fit(epsilon=nan): "epsilon = nan",
        lambda: fit(method="group_stlsq", threshold=nan): "threshold = nan",
        lambda: fit(method="group_stlsq", ridge=nan): "ridge = nan",
        lambda: spreme.SharedSINDy(library).fit(x, float("inf")): "t = inf",
        lambda: spreme.SharedSINDy(library).fit(
            x.to(torch.complex128), t
        ): "x: dtype torch.complex128",
        lambda: spreme.learn_mask(library, x, 0.2, -1): "epochs = -1",
        lambda: spreme.learn_mask(library, x, 0.0, 1): "step = 0.0",
        lambda: spreme.learn_mask(library, x.float(), 0.2, 1): "expected float64",
        lambda: model.predict(torch.rand(3, 5)): r"x: shape \(3, 5\)",
        lambda: model.simulate(torch.rand(3, 5), t): r"x0: shape \(3, 5\)",
        lambda: model.simulate(torch.rand(3, 2), []): "at least one finite time",
        lambda: model.simulate(torch.rand(3, 2), [0.0, nan]): "at least one finite time",
        lambda: spreme.simulate(
            library, truth[0], x[0, :, 0], [0.0, 1.0], substeps=0
        ): "substeps = 0",
        lambda: spreme.simulate(
            library, truth[0, :1], x[0, :, 0], [0.0, 1.0]
        ): rf"coefficients: shape \(1, {library.p}\), expected \(\.\.\., 2, {library.p}\)",
        lambda: spreme.simulate(
            spreme.Library(2, 1), truth, x[0, :, 0], [0.0, 1.0]
        ): r"coefficients: .* expected \(\.\.\., 2, 3\)",
        lambda: spreme.build_gram(library, x, t, "foo", 9): "method = 'foo'",
        lambda: spreme.SharedSINDy(library).fit(
            x[..., :1, :], 0.1
        ): "1 samples, expected at least 9",
        lambda: spreme.SharedSINDy(library, method="mask").fit(x[..., :1, :], 0.1): "at least 7",
        lambda: spreme.SharedSINDy.from_coefficients(library, truth * nan): "finite",
        lambda: spreme.Library(6, 100): "degree = 100",
        lambda: library(torch.rand(3, 5)): r"x: shape \(3, 5\)",
        lambda: library.some([500]): r"columns = \[500\]",
        lambda: spreme.systems.integrate("pendulum", ones, ones, np.array([1.0, 0.0])): "times",
        lambda: spreme.systems.integrate(
            "pendulum", ones * nan, ones, np.array([0.0, 1.0])
        ): "parameters",
        lambda: spreme.systems.integrate(
            "pendulum", ones, np.ones((1, 3)), np.array([0.0, 1.0])
        ): "initial",
        lambda: spreme.add_noise(x, -0.1, generator(), 1): "level = -0.1",
        lambda: spreme.add_noise(x, 0.1, generator(), 0): "copies = 0",
        lambda: spreme.experiment.wilson(0.5, 0): "rate, n = 0.5, 0",
        lambda: spreme.l0.subsets(3, -1): "k = -1",
        lambda: spreme.experiment.method_rates(
            library, x[None], t.numpy(), truth, window=9, smoothing=7, thresholds=[]
        ): "thresholds = ",
    }.items():
        with pytest.raises(ValueError, match=message), warnings.catch_warnings(action="error"):
            call()


def test_a_state_of_no_finite_error_is_never_kept(monkeypatch):
    x, _, _ = data("linear", n_envs=2)
    library, real = spreme.make_library("linear"), loop.roll_out
    calls = []

    def broken(values, x0, coefficients, step, count):
        states, sums = real(values, x0, coefficients, step, count)
        if count < 60:  # the roll-out over the validation samples
            calls.append(count)
            return states * (float("nan") if len(calls) in bad else 1.0), sums
        return states, sums

    monkeypatch.setattr(loop, "roll_out", broken)
    bad = {1, 2}
    kept = spreme.learn_mask(library, x[0], 0.02, 5, spreme.PUBLISHED["linear"])
    assert kept.epoch > 2
    calls.clear()
    bad = set(range(1, 4))
    kept = spreme.learn_mask(library, x[0], 0.02, 3, spreme.PUBLISHED["linear"])
    assert kept.epoch == 0
    assert torch.equal(kept.coefficients, loop.first_fits(library, x[0], 0.02, 160))


def test_of_equal_errors_the_later_state_is_kept():
    x, _, _ = data("linear", n_envs=2)
    still = spreme.LoopSettings(rate=0.0, mask_rate=0.0)
    kept = spreme.learn_mask(spreme.make_library("linear"), x[0], 0.02, 3, still)
    assert len(set(kept.validation)) == 1
    assert kept.epoch == 3


def test_a_model_takes_numpy_lists_and_torch_alike():
    x, t, _ = spreme.trajectories("lotka", n_envs=2, n_traj=2)
    options = {"window": 11}
    model = spreme.SharedSINDy(spreme.make_library("lotka"), **options).fit(x, t)
    times = torch.from_numpy(t.numpy()).requires_grad_() if isinstance(t, torch.Tensor) else t
    for other in (
        spreme.SharedSINDy(spreme.make_library("lotka"), **options).fit(x.numpy(), t.numpy()),
        spreme.SharedSINDy(spreme.make_library("lotka"), **options).fit(x.float().double(), times),
        spreme.SharedSINDy(5, **options).fit(
            [path for e in x.numpy() for path in e], t.numpy(), env=torch.tensor([3, 3, 8, 8])
        ),
    ):
        assert torch.allclose(model.coef_, other.coef_, atol=1e-4)
    assert other.environments_ == [3, 8]  # labels, not tensors
    start = x[1, 0, 0]
    one = model.simulate(start.numpy(), t, 1)
    many = model.simulate(start[None].tolist(), t.numpy(), 1)
    assert one.shape == (len(t), 2)
    assert torch.equal(one, many[0])
    single = spreme.SharedSINDy(spreme.make_library("lotka"), **options).fit(x[0, 0], t)
    assert single.coef_.shape == (1, 2, 21)


def test_strange_states_and_terms_are_named():
    library = spreme.Library(2, 1, [spreme.sine(2)])
    for call, message in {
        lambda: library.get_feature_names(): "sine of state 2: there are 2 states",
        lambda: spreme.sine(-1): r"states = \[-1\]: expected indices from 0",
        lambda: spreme.sine(): r"states = \[\]",
        lambda: spreme.SharedSINDy(library="poly").fit(torch.rand(9, 2), 1.0): "library = 'poly'",
        lambda: spreme.SharedSINDy(1).fit(torch.rand(9, 2), "soon"): "t: expected a step or times",
        lambda: spreme.SharedSINDy(1).fit(1j * np.ones((9, 2)), 1.0): "x: dtype torch.complex128",
        lambda: spreme.add_noise(torch.rand(5, 2).double(), 0.1, 3, 2): "generator = 3",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    model = spreme.SharedSINDy(1, derivative="fd").fit(torch.rand(9, 2).double(), 1.0)
    with pytest.raises(ValueError, match="x0: NaN or infinity"):
        model.simulate([torch.nan, 0.0], [0.0, 1.0])


def test_a_plate_without_a_line_of_strains_needs_its_blanks():
    text = "hours,A1,A2,B1\n0,0.1,0.2,0.3\n1,0.2,0.4,0.3\n2,0.3,0.6,0.3\n"
    with pytest.raises(CorruptDataError, match="`blanks` has to name the wells without cells"):
        parse_table(text)
    plate = parse_table(text, blanks=["B1"])
    assert plate.wells == ("A1", "A2")
    assert plate.density[1].tolist() == pytest.approx([-0.1, 0.1, 0.3])
    spaced = parse_table(text.replace(",", ", "), blanks=["B1"])
    assert torch.equal(spaced.density, plate.density)
    assert parse_table(text, blanks=()).density.shape == (3, 3)
    with pytest.raises(ValueError, match="blanks = 'B1': expected a list of names of wells"):
        parse_table(text, blanks="B1")
    with pytest.raises(ValueError, match=r"blanks = \['C9'\]: growth table has no such wells"):
        parse_table(text, blanks=["C9"])
    with pytest.raises(CorruptDataError, match="two wells have one name"):
        parse_table(text.replace("A2", "A1"), blanks=())
    with pytest.raises(CorruptDataError, match=r'"hours,A1,A2", .* found "Time,A1,A2,B1"'):
        parse_table(text.replace("hours", "Time"), blanks=["B1"])


# ---------------------------------------------------------------- the page


def test_the_page_has_the_systems_of_the_code():
    cells = chapters.read(chapters.find("spreme"))["cells"]
    page = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    rows = re.findall(r"^\| *(\S+) \| (\$\\dot.*\$) \| (\d+) \| (\d+) \|$", page, re.M)
    assert [row[0] for row in rows] == ["linear", "Lorenz", "Lotka–Volterra", "pendulum"]

    def word(found):  # \\theta, x, p_0: the names of the code
        return f" {found[1] or found[2] + found[3]} "

    for (_, equations, *counts), (name, system) in zip(rows, spreme.SYSTEMS.items(), strict=True):
        states, given = (sympy.symbols(names) for names in (system.states, system.parameters))
        names = {s.name: s for s in (*states, *given)} | {"sin": sympy.sin}
        plain = re.sub(r"\\([a-z]+)|([a-z])_?(\d?)", word, equations)
        sides = [side.split("=") for side in re.findall(r"\$(.*?)\$", plain)]
        assert [left.split() for left, _ in sides] == [["dot", s] for s in system.states]
        for (_, right), ours in zip(sides, system.rhs(states, given, sympy.sin), strict=True):
            told = parse_expr(right, names, IMPLICIT)
            assert sympy.expand(told - ours) == 0, (name, right)
        assert tuple(map(int, counts)) == (system.n_envs, system.n_traj)


def test_read_only_arrays_are_fitted_without_a_warning():
    x = np.random.default_rng(0).normal(size=(40, 2)).cumsum(0)
    t = np.arange(40.0)
    plain = spreme.SharedSINDy(1).fit(x, t)
    for array in (x, t):
        array.setflags(write=False)
    torch.set_warn_always(True)  # PyTorch's warning comes once a process otherwise
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            frozen = spreme.SharedSINDy(1).fit(x, t)
    finally:
        torch.set_warn_always(False)
    assert torch.equal(plain.coef_, frozen.coef_)
