"""Forecasting pedestrians with fictitious play (Ma, Huang, Lee, Kitani, CVPR 2017).

There is no published code, and most details here are a reconstruction. Every pedestrian plans
on a grid, softly, towards a known goal, and minds where the others are expected to be; the
expectations are found by fictitious play. Shapes: T steps, N agents, H rows (y), W columns (x);
cells are (row, column), places (x, y) in metres, times in seconds, rewards in nats.
"""

from companion.forecasting import ade, collision_rate, fde, modified_hausdorff
from companion.papers.fictitious_play.appearance import SPEEDS_MPS, SpeedClassifier, sprites
from companion.papers.fictitious_play.crowd import (
    SIGMAS_M,
    Crowd,
    Weights,
    head_on,
    self_play_crowd,
)
from companion.papers.fictitious_play.grid import Grid, goal_distance, speed_errors, speed_kernel
from companion.papers.fictitious_play.judging import (
    Score,
    clearance,
    nll_per_step,
    score,
    straight_lines,
)
from companion.papers.fictitious_play.learning import (
    Fit,
    MaxEntIOC,
    expected_features,
    feasible,
    log_partition,
    path_features,
)
from companion.papers.fictitious_play.planning import (
    Policy,
    occupancy,
    path_log_prob,
    plan,
    soft_value_iteration,
    start_value,
)
from companion.papers.fictitious_play.play import (
    FictitiousPlay,
    Forecast,
    exploitability,
    respond,
    social_reward,
)
from companion.papers.fictitious_play.scenes import (
    Observed,
    circle_crossing,
    filmed,
    log_occupancy,
    observe,
    self_play,
)
from companion.papers.fictitious_play.social import (
    at_cells,
    expected_others,
    smooth,
    social_cost,
    social_features,
)
from companion.papers.fictitious_play.yielding import equilibria, play_give_way, soft_response

__all__ = [
    "SIGMAS_M",
    "SPEEDS_MPS",
    "Crowd",
    "FictitiousPlay",
    "Fit",
    "Forecast",
    "Grid",
    "MaxEntIOC",
    "Observed",
    "Policy",
    "Score",
    "SpeedClassifier",
    "Weights",
    "ade",
    "at_cells",
    "circle_crossing",
    "clearance",
    "collision_rate",
    "equilibria",
    "expected_features",
    "expected_others",
    "exploitability",
    "fde",
    "feasible",
    "filmed",
    "goal_distance",
    "head_on",
    "log_occupancy",
    "log_partition",
    "modified_hausdorff",
    "nll_per_step",
    "observe",
    "occupancy",
    "path_features",
    "path_log_prob",
    "plan",
    "play_give_way",
    "respond",
    "score",
    "self_play",
    "self_play_crowd",
    "smooth",
    "social_cost",
    "social_features",
    "social_reward",
    "soft_response",
    "soft_value_iteration",
    "speed_errors",
    "speed_kernel",
    "sprites",
    "start_value",
    "straight_lines",
]
