"""Effects of data parallelism and sparsity on training (arXiv 2003.11316).

`trials` draws metaparameters, `stacked` trains many networks side by side, `workloads` measures
steps to the result, `scaling` fits and derives the law, `distributed` computes one update with
several processes, `networks` has the two convolutional networks.

On your own work::

    from companion.papers import data_parallelism as dp
    train_set, valid_set = (images[:n], labels[:n]), (images[n:], labels[n:])
    work = dp.Workload(*train_set, *valid_set, model, goal_error=0.3, max_steps=200)
    sizes, trials = [4, 16, 64], dp.trials_for(work, 6, lr_range=(0.01, 1.0))
    found = dp.search(work, sizes, [0.0, 0.5], trials, store="search.json")
    steps = [found[0, size].k_star(0) for size in sizes]  # of the dense network
    c1, c2, r2 = dp.fit_scaling(sizes, steps)
    print(f"K = {c1:.0f} / B + {c2:.0f}, R² = {r2:.2f}; bend at B = {c1 / c2:.0f}")
    bound = dp.scaling_constants(gap, lipschitz, variance, goal)  # Δ, L, β, ε; μ = 1
    print(f"by the bound: bend at B = {bound.c1 / bound.c2:.0f}")
"""

from companion.papers.data_parallelism.distributed import (
    Update,
    train_shard,
    update_in_processes,
)
from companion.papers.data_parallelism.networks import resnet8, simple_cnn
from companion.papers.data_parallelism.scaling import (
    bootstrap_k_star,
    fit_scaling,
    k_star_interval,
    lipschitz_along,
    scaling_constants,
    tuned_steps,
)
from companion.papers.data_parallelism.stacked import train_batched
from companion.papers.data_parallelism.trials import search_space, sobol_trials
from companion.papers.data_parallelism.workloads import (
    STATUS,
    StepsToResult,
    Workload,
    connection_sensitivity,
    initial_networks,
    load_workload,
    search,
    steps_to_result,
    topk_mask,
    trials_for,
)

__all__ = [
    "STATUS",
    "StepsToResult",
    "Update",
    "Workload",
    "bootstrap_k_star",
    "connection_sensitivity",
    "fit_scaling",
    "initial_networks",
    "k_star_interval",
    "lipschitz_along",
    "load_workload",
    "resnet8",
    "scaling_constants",
    "search",
    "search_space",
    "simple_cnn",
    "sobol_trials",
    "steps_to_result",
    "topk_mask",
    "train_batched",
    "train_shard",
    "trials_for",
    "tuned_steps",
    "update_in_processes",
]
