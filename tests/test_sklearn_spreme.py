"""SharedSINDy under scikit-learn's own checks of an estimator, as far as they apply."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator

from companion.papers.spreme import Library, SharedSINDy


class OneTable(SharedSINDy):
    """Scikit-learn hands over a table (samples, features) and targets, or none.

    We read the table as one trajectory with a step of 1, as `fit` does, and leave the targets:
    `fit` has the times in their place.
    """

    def fit(self, X, y=None):
        return super().fit(X, 1.0)

    def score(self, X, y=None):
        return super().score(X, 1.0)


NOT_APPLICABLE = {
    "check_fit2d_predict1d": "one state (n,) is as good as many (..., n) to predict",
    "check_fit_idempotent": "compares NumPy types, and what we predict are tensors (see below)",
    "check_array_api_input": "skipped by scikit-learn itself unless SCIPY_ARRAY_API is set",
}


def name_of(check):
    return getattr(check, "func", check).__name__


MODEL = OneTable(2, "group_stlsq", derivative="fd")  # the check's tables have a few samples
CHECKS = [
    check for _, check in estimator_checks_generator(MODEL) if name_of(check) not in NOT_APPLICABLE
]


@pytest.mark.filterwarnings("ignore")  # that the model diverges on noise
@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_scikit_learns_check_passes(check):
    check(MODEL)


def test_most_checks_apply():
    assert len(CHECKS) >= 35


def test_a_second_fit_gives_the_same():
    x = np.random.default_rng(0).normal(size=(30, 3))
    model = SharedSINDy(2, "group_stlsq", derivative="fd")
    first = model.fit(x, 1.0).predict(x)
    assert np.array_equal(first, model.fit(x, 1.0).predict(x))


def test_parameters_go_through_clone_and_a_search():
    model = SharedSINDy(Library(2, 2), window=11)
    twin = clone(model).set_params(max_terms=2)
    assert (twin.window, twin.max_terms, model.max_terms) == (11, 2, 3)
    assert twin.library.p == model.library.p
