"""Effects of data parallelism and sparsity on training (arXiv 2003.11316).

`trials` draws metaparameters, `stacked` trains many networks side by side, `search` measures
steps to the result, `scaling` fits and derives the law, `distributed` computes one update with
several processes, `networks` has the two convolutional networks.
"""

from companion.papers.data_parallelism.distributed import (
    Update,
    WorkerError,
    largest_difference,
    run_group,
    split,
    train_shard,
    update_in_processes,
)
from companion.papers.data_parallelism.networks import (
    MODELS,
    build_network,
    resnet8,
    simple_cnn,
)
from companion.papers.data_parallelism.scaling import (
    bootstrap_k_star,
    fit_scaling,
    k_star_interval,
    lipschitz_along,
    quadratic_second_moment,
    quadratic_steps,
    slope,
    tuned_steps,
)
from companion.papers.data_parallelism.search import (
    COMPLETE,
    INCOMPLETE,
    INFEASIBLE,
    STATUS,
    STOPPED,
    Networks,
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
from companion.papers.data_parallelism.stacked import (
    Training,
    dense_outputs,
    errors_up_to,
    joint_gradients,
    pick_way,
    row,
    stacked_gradients,
    stacked_outputs,
    train_batched,
)
from companion.papers.data_parallelism.trials import (
    OPTIMIZERS,
    search_space,
    sobol_points,
    sobol_trials,
)
from companion.stacked import stack

__all__ = [
    "COMPLETE",
    "INCOMPLETE",
    "INFEASIBLE",
    "MODELS",
    "OPTIMIZERS",
    "STATUS",
    "STOPPED",
    "Networks",
    "StepsToResult",
    "Training",
    "Update",
    "WorkerError",
    "Workload",
    "bootstrap_k_star",
    "build_network",
    "connection_sensitivity",
    "dense_outputs",
    "errors_up_to",
    "fit_scaling",
    "initial_networks",
    "joint_gradients",
    "k_star_interval",
    "largest_difference",
    "lipschitz_along",
    "load_workload",
    "pick_way",
    "quadratic_second_moment",
    "quadratic_steps",
    "resnet8",
    "row",
    "run_group",
    "search",
    "search_space",
    "simple_cnn",
    "slope",
    "sobol_points",
    "sobol_trials",
    "split",
    "stack",
    "stacked_gradients",
    "stacked_outputs",
    "steps_to_result",
    "topk_mask",
    "train_batched",
    "train_shard",
    "trials_for",
    "tuned_steps",
    "update_in_processes",
]
