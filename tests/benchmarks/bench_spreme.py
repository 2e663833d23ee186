"""Finding the terms: ours in one batch against pysindy, environment by environment."""

import warnings

import numpy as np
import pysindy
import pytest
import torch

from companion.papers import spreme

COPIES = {"linear": 2, "lorenz": 2, "lotka": 4, "pendulum": 4}
LEVEL = 0.02
THRESHOLD = {"linear": 0.1, "lorenz": 0.1, "lotka": 0.2, "pendulum": 0.2}


@pytest.fixture(scope="module")
def cases():
    """System -> noisy copies, times, library, the shared true terms."""
    found = {}
    for name, copies in COPIES.items():
        x, t, parameters = spreme.trajectories(name)
        library = spreme.make_library(name)
        truth = spreme.true_coefficients(name, parameters, library)
        noisy = spreme.add_noise(x, LEVEL, torch.Generator().manual_seed(0), copies)
        found[name] = noisy, t.numpy(), library, (truth != 0).any(0)
    return found


def pysindy_library(name):
    polynomials = pysindy.PolynomialLibrary(degree=5)
    if name != "pendulum":
        return polynomials
    one = pysindy.CustomLibrary([lambda x: np.sin(x)], [lambda x: f"sin({x})"])
    two = pysindy.CustomLibrary([lambda x, y: np.sin(x + y)], [lambda x, y: f"sin({x}+{y})"])
    return polynomials + one + two


def pysindy_fits(name, x, t, optimiser, *, pooled=False):
    """One pysindy model per copy and environment (or per copy), each over its trajectories."""
    smoothing = {"window_length": spreme.SYSTEMS[name].smoothing, "polyorder": 3}
    out = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for copy in spreme.experiment.pool(x) if pooled else x:
            for environment in copy:
                model = pysindy.SINDy(
                    optimiser(),
                    pysindy_library(name),
                    pysindy.SmoothedFiniteDifference(smoother_kws=smoothing),
                )
                model.fit(list(environment.numpy()), t=t[1] - t[0])
                out.append(model.coefficients())
    return torch.from_numpy(np.array(out))


def best_rates(name, x, t, truth):
    """Exact supports of pysindy's methods, each at its best setting on this grid."""
    rates = {}
    stlsq = [
        lambda h=h: pysindy.STLSQ(threshold=h, alpha=1e-3) for h in (0.05, 0.1, 0.2, 0.3, 0.4)
    ]
    kappa = [lambda k=k: pysindy.SSR(kappa=k, alpha=1e-6) for k in (1e-4, 1e-3, 1e-2, 1e-1)]
    frols = [lambda k=k: pysindy.FROLS(kappa=k, alpha=1e-6) for k in (1e-4, 1e-3, 1e-2)]
    for label, grid, pooled in (
        ("STLSQ", stlsq, False), ("SSR", kappa, False), ("FROLS", frols, False),
        ("STLSQ, pooled", stlsq, True),
    ):  # fmt: skip
        rates[label] = max(
            spreme.exact(pysindy_fits(name, x, t, o, pooled=pooled) != 0, truth)
            .double()
            .mean()
            .item()
            for o in grid
        )
    return rates


@pytest.mark.parametrize("name", COPIES)
@pytest.mark.parametrize("method", ["l0", "group_stlsq"])
def test_all_environments_at_once(name, method, cases, compare):
    x, t, library, truth = cases[name]
    aims = {
        "l0": {"lotka": 20, "pendulum": 20, "linear": 4, "lorenz": 4},
        "group_stlsq": {"lotka": 60, "pendulum": 60, "linear": 6, "lorenz": 6},
    }[method]
    window = spreme.SYSTEMS[name].window
    model = spreme.SharedSINDy(library, method, threshold=THRESHOLD[name], window=window)
    peer = lambda: pysindy.STLSQ(threshold=THRESHOLD[name], alpha=1e-3)  # noqa: E731
    right = spreme.exact(model.fit(x, t).support_, truth).double().mean().item()
    label = {"l0": "S3, exhaustive", "group_stlsq": f"S2, threshold {THRESHOLD[name]}"}[method]
    note = f"exact {right:.0%} of {len(x)} copies"
    if method == "l0":
        rates = best_rates(name, x[:2], t, truth)
        note += ", pysindy at its best setting on two copies " + ", ".join(
            f"{k} {v:.0%}" for k, v in rates.items()
        )
    fits = x.shape[0] * x.shape[1]
    compare(
        f"{name}, {fits} environments with {LEVEL:.0%} noise: {label}",
        lambda: model.fit(x, t),
        "pysindy's STLSQ, one environment after the other",
        lambda: pysindy_fits(name, x, t, peer),
        rounds=5,
        aim=1 / aims[name],
        peers=["pysindy"],
        note=note,
    )


@pytest.mark.parametrize("name", ["pendulum", "linear"])
def test_searching_all_subsets(name, cases, compare):
    x, t, library, _ = cases[name]
    gram = spreme.build_gram(library, x[:1], t, "weak", spreme.SYSTEMS[name].window)
    chosen = spreme.l0.subsets(library.p, 3)

    def batched_lapack():
        """The same residuals by torch's batched Cholesky of every small matrix."""
        G = gram.G[..., chosen[:, :, None], chosen[:, None, :]]  # (1, E, C, 3, 3)
        c = gram.c[..., chosen].movedim(2, -1)  # (1, E, C, 3, n)
        factor, _ = torch.linalg.cholesky_ex(G)
        solved = torch.linalg.solve_triangular(factor, c, upper=False)
        return 1 - solved.square().sum(-2).movedim(-1, 2) / gram.q[..., None]

    # unscaled columns cost the peer digits
    assert torch.allclose(spreme.l0.residuals(gram, chosen), batched_lapack(), atol=1e-5)
    compare(
        f"{name}: {len(chosen):,} subsets in {x.shape[1]} environments, entry by entry",
        lambda: spreme.l0.residuals(gram, chosen),
        "batched Cholesky of every 3 by 3 matrix",
        batched_lapack,
        rounds=5,
        aim=1.0,
        agreement="the same residuals to 1e-5",
    )


@pytest.mark.parametrize("terms", [24, 56])
def test_best_subset_against_abess(terms, compare):
    """Up to three of the terms, in nine environments; abess takes a polynomial path to the best."""
    abess = pytest.importorskip("abess.linear")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(9, 1000, terms, generator=generator, dtype=torch.float64)
    truth = torch.zeros(terms, dtype=torch.float64)
    truth[[1, 5, 17]] = torch.tensor([1.0, -0.7, 0.5], dtype=torch.float64)
    noise = torch.randn(9, 1000, generator=generator, dtype=torch.float64)
    y = rows @ truth + 0.1 * noise
    A, target = rows.numpy(), y.numpy()

    def ours():
        many = rows.shape[1]
        gram = spreme.Gram(
            rows.mT @ rows / many, (y[:, None] @ rows) / many, y.square().mean(1)[:, None],
            torch.full((9,), many), 1,
        )  # fmt: skip
        columns, _ = spreme.best_subsets(gram, 3, shared=False)[3]
        return columns[:, 0]

    def peer():
        found = []
        for X, one in zip(A, target, strict=True):
            fit = abess.LinearRegression(support_size=[0, 1, 2, 3], fit_intercept=False)
            found.append(np.flatnonzero(fit.fit(X, one).coef_))
        return np.array(found)

    assert (ours().sort().values.numpy() == peer()).all()
    compare(
        f"best subset of up to 3 of {terms} terms, 1,000 rows in each of 9 environments",
        ours,
        "abess' LinearRegression, one environment after the other",
        peer,
        rounds=15,
        aim=1.0,
        peers=["abess"],
        reason="all subsets are tried, where abess takes a path to one",
        agreement="the same subsets; ours are proven best, abess' in probability",
    )


def test_growth_with_the_number_of_environments(cases, grow):
    x, t, library, _ = cases["pendulum"]
    model = spreme.SharedSINDy(library, "l0", window=spreme.SYSTEMS["pendulum"].window)

    def make(environments):
        many = x[:1].repeat(1, -(-environments // x.shape[1]), *[1] * (x.dim() - 2))
        return lambda: model.fit(many[:, :environments], t)

    grow(
        "pendulum, the best terms among all subsets", "environments", [4, 16, 64, 256, 1024], make
    )
