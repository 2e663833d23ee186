"""Sparse regression for multi-environment dynamic systems (SpReME, arXiv 2302.05942).

Data are (..., E, R, T, n): environments, trajectories, samples, states, in float64. Supports
are boolean (n, p), coefficients (E, n, p), states per time unit and term, as pysindy has them.
"""

from companion.papers.spreme.derivative import Gram, build_gram, operators
from companion.papers.spreme.equations import Comparison, as_sympy, as_text, compare
from companion.papers.spreme.estimator import SharedSINDy, simulate
from companion.papers.spreme.group_stlsq import group_stlsq, solve
from companion.papers.spreme.l0 import best_subsets, residuals, scores, select, subsets
from companion.papers.spreme.library import Library, Term, sine
from companion.papers.spreme.mask import (
    PUBLISHED,
    LoopResult,
    LoopSettings,
    first_fits,
    learn_mask,
    roll_out,
    roll_out_gradient,
)
from companion.papers.spreme.study import (
    coefficient_error,
    exact,
    majority,
    method_rates,
    pool,
    rates_by_environments,
    roll_out_error,
    wilson,
)
from companion.papers.spreme.systems import (
    SYSTEMS,
    System,
    add_noise,
    draw,
    integrate,
    make_library,
    system,
    trajectories,
    true_coefficients,
    true_expressions,
)

__all__ = [
    "PUBLISHED",
    "SYSTEMS",
    "Comparison",
    "Gram",
    "Library",
    "LoopResult",
    "LoopSettings",
    "SharedSINDy",
    "System",
    "Term",
    "add_noise",
    "as_sympy",
    "as_text",
    "best_subsets",
    "build_gram",
    "coefficient_error",
    "compare",
    "draw",
    "exact",
    "first_fits",
    "group_stlsq",
    "integrate",
    "learn_mask",
    "majority",
    "make_library",
    "method_rates",
    "operators",
    "pool",
    "rates_by_environments",
    "residuals",
    "roll_out",
    "roll_out_error",
    "roll_out_gradient",
    "scores",
    "select",
    "simulate",
    "sine",
    "solve",
    "subsets",
    "system",
    "trajectories",
    "true_coefficients",
    "true_expressions",
    "wilson",
]
