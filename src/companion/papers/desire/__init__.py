"""DESIRE: distant future prediction in dynamic scenes with interacting agents (arXiv 1704.04394).

Paths are (..., steps, 2). A scene has agents, some of whom may not be there (`mask`), and each
agent has samples of a future; sample k of all agents is one joint future.

On your own work::

    import torch
    from companion.data.trajectories import cut_windows, read_tracks, write_trajnetpp
    from companion.papers import desire

    windows = cut_windows(read_tracks("tracks.csv", fps=25))  # frame, id, x, y; metres
    # 8 steps of 0.4 s are seen, 12 are to come
    sampler, g = desire.SampleGenerator(12, centred=True), torch.Generator().manual_seed(0)
    desire.train_generator(sampler, windows, epochs=10, generator=g, augment=True)
    model = desire.Desire(sampler, desire.RankRefine(12, social=True))
    desire.train_ranker(model, windows, epochs=2, generator=g, rank_samples="prior")
    samples = model.predict(windows, 20, n_refine=1, generator=g).samples[-1]
    write_trajnetpp("forecast.ndjson", windows, samples)
"""

from companion.data.trajectories import TrajectoryWindows
from companion.forecasting import ade, collision_rate, fde, miss_rate
from companion.forecasting import min_ade as min_ade_k
from companion.forecasting import min_fde as min_fde_k
from companion.papers.desire.generator import Regressor, SampleGenerator, kl_divergence
from companion.papers.desire.junction import simulate_tjunction
from companion.papers.desire.model import (
    Desire,
    Forecast,
    oracle_error,
    train_generator,
    train_ranker,
    train_regressor,
)
from companion.papers.desire.ranking import (
    RankRefine,
    SceneContextFusion,
    log_polar_pool,
    ranking_loss,
    target_distribution,
)
from companion.papers.desire.scenes import load_eth_ucy, load_sdd, load_trajnet

__all__ = [
    "Desire",
    "Forecast",
    "RankRefine",
    "Regressor",
    "SampleGenerator",
    "SceneContextFusion",
    "TrajectoryWindows",
    "ade",
    "collision_rate",
    "fde",
    "kl_divergence",
    "load_eth_ucy",
    "load_sdd",
    "load_trajnet",
    "log_polar_pool",
    "min_ade_k",
    "min_fde_k",
    "miss_rate",
    "oracle_error",
    "ranking_loss",
    "simulate_tjunction",
    "target_distribution",
    "train_generator",
    "train_ranker",
    "train_regressor",
]
