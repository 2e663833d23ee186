"""Forecasting pedestrians with fictitious play (Ma, Huang, Lee, Kitani, CVPR 2017).

There is no published code, and most details here are a reconstruction. Every pedestrian plans
on a grid, softly, towards a known goal, and minds where the others are expected to be; the
expectations are found by fictitious play. Shapes: T steps, N agents, H rows (y), W columns (x);
cells are (row, column), positions (x, y) in metres, times in seconds, rewards in nats. Functions
take the kernel or the policy first, then what it is applied to; only `path_log_prob` begins with
the paths.

On your own work::

    import torch
    from companion.data.trajectories import read_tracks, write_trajnetpp
    from companion.papers.fictitious_play import FictitiousPlay, MaxEntIOC, filmed

    tracks = read_tracks("tracks.csv", fps=25)  # columns frame, id, x, y; metres
    train, test, _ = filmed(tracks, horizon=8, cell_m=0.5)  # first and second half
    weights = MaxEntIOC(rounds=2).fit(train.crowd, train.cells).weights
    forecast = FictitiousPlay(test.crowd, weights, horizon=8).run()
    samples = test.by_window(forecast.sample(20, torch.Generator().manual_seed(0)))
    write_trajnetpp("forecast.ndjson", test.windows, samples)
"""

from companion.forecasting import ade, collision_rate, fde, modified_hausdorff
from companion.papers.fictitious_play.appearance import SpeedClassifier
from companion.papers.fictitious_play.crowd import Crowd, Weights
from companion.papers.fictitious_play.grid import Grid, speed_kernel
from companion.papers.fictitious_play.learning import MaxEntIOC
from companion.papers.fictitious_play.metrics import nll_per_step, straight_lines
from companion.papers.fictitious_play.planning import (
    Policy,
    occupancy,
    path_log_prob,
    plan,
    soft_value_iteration,
)
from companion.papers.fictitious_play.play import (
    FictitiousPlay,
    Forecast,
    exploitability,
    respond,
)
from companion.papers.fictitious_play.scenes import Observed, filmed, observe
from companion.papers.fictitious_play.social import social_features

__all__ = [
    "Crowd",
    "FictitiousPlay",
    "Forecast",
    "Grid",
    "MaxEntIOC",
    "Observed",
    "Policy",
    "SpeedClassifier",
    "Weights",
    "ade",
    "collision_rate",
    "exploitability",
    "fde",
    "filmed",
    "modified_hausdorff",
    "nll_per_step",
    "observe",
    "occupancy",
    "path_log_prob",
    "plan",
    "respond",
    "social_features",
    "soft_value_iteration",
    "speed_kernel",
    "straight_lines",
]
