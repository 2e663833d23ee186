"""DESIRE: distant future prediction in dynamic scenes with interacting agents (arXiv 1704.04394).

Paths are (..., steps, 2). A scene has agents, some of whom may not be there (`mask`), and each
agent has samples of his future; sample k of all agents is one joint future.
"""

from companion.data.trajectories import TrajectoryWindows
from companion.forecasting import ade, collision_rate, fde, miss_rate
from companion.forecasting import min_ade as min_ade_k
from companion.forecasting import min_fde as min_fde_k
from companion.papers.desire.generator import Regressor, SampleGenerator, kl_divergence
from companion.papers.desire.junction import (
    ARMS,
    Junction,
    arm_of,
    off_walkway_rate,
    simulate_tjunction,
    walkway,
)
from companion.papers.desire.model import (
    Calibration,
    Desire,
    Forecast,
    Trace,
    calibration,
    draw,
    oracle_error,
    pick,
    symmetric,
    train_generator,
    train_ranker,
    train_regressor,
)
from companion.papers.desire.ranking import (
    FeatureMap,
    Neighbours,
    RankRefine,
    SceneContextFusion,
    largest_distance,
    log_polar_bins,
    log_polar_pool,
    ranking_loss,
    refinement_loss,
    target_distribution,
)
from companion.papers.desire.scenes import (
    SDD_TEST,
    UNIT,
    Fold,
    ground_picture,
    load_eth_ucy,
    load_folds,
    load_sdd,
    load_trajnet,
    sdd_videos,
)

__all__ = [
    "ARMS",
    "SDD_TEST",
    "UNIT",
    "Calibration",
    "Desire",
    "FeatureMap",
    "Fold",
    "Forecast",
    "Junction",
    "Neighbours",
    "RankRefine",
    "Regressor",
    "SampleGenerator",
    "SceneContextFusion",
    "Trace",
    "TrajectoryWindows",
    "ade",
    "arm_of",
    "calibration",
    "collision_rate",
    "draw",
    "fde",
    "ground_picture",
    "kl_divergence",
    "largest_distance",
    "load_eth_ucy",
    "load_folds",
    "load_sdd",
    "load_trajnet",
    "log_polar_bins",
    "log_polar_pool",
    "min_ade_k",
    "min_fde_k",
    "miss_rate",
    "off_walkway_rate",
    "oracle_error",
    "pick",
    "ranking_loss",
    "refinement_loss",
    "sdd_videos",
    "simulate_tjunction",
    "symmetric",
    "target_distribution",
    "train_generator",
    "train_ranker",
    "train_regressor",
    "walkway",
]
