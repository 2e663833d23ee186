"""Sparse regression for multi-environment dynamic systems (SpReME, arXiv 2302.05942).

Data are (..., E, R, T, n): environments, trajectories, samples, states, in float64. Supports
are boolean (n, p), coefficients (E, n, p), states per time unit and term, as pysindy has them.
What only the chapter needs is in `companion.papers.spreme.experiment`.

On your own work::

    import torch
    from companion.data.growth import load_growth
    from companion.papers.spreme import Library, SharedSINDy

    plate = load_growth("plate.csv", blanks=["H12"])  # "hours,A1,..,H12", then the readings
    curves = [well[:, None] for well in plate.density]  # an environment each, (T, n)
    model = SharedSINDy(Library(1, 3, names=["x"]), max_terms=2, window=11)
    model.fit(curves, plate.hours, env=plate.wells)
    for well in plate.wells:
        print(well, *model.equations(well))
    path = model.simulate([0.1], torch.linspace(0, 24, 97), plate.wells[0])
"""

from companion.papers.spreme.derivative import Gram, build_gram
from companion.papers.spreme.equations import Comparison, compare
from companion.papers.spreme.estimator import SharedSINDy, simulate
from companion.papers.spreme.experiment import coefficient_error, exact
from companion.papers.spreme.l0 import best_subsets, select
from companion.papers.spreme.library import Library, Term, sine
from companion.papers.spreme.mask import PUBLISHED, LoopSettings, learn_mask
from companion.papers.spreme.stlsq import group_stlsq, solve
from companion.papers.spreme.systems import (
    SYSTEMS,
    System,
    add_noise,
    make_library,
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
    "LoopSettings",
    "SharedSINDy",
    "System",
    "Term",
    "add_noise",
    "best_subsets",
    "build_gram",
    "coefficient_error",
    "compare",
    "exact",
    "group_stlsq",
    "learn_mask",
    "make_library",
    "select",
    "simulate",
    "sine",
    "solve",
    "trajectories",
    "true_coefficients",
    "true_expressions",
]
