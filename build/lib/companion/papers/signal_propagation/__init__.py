"""A signal-propagation perspective for pruning at initialisation (arXiv 1906.06307).

Scores, masks and masked training live in `companion.sparsity`, which other chapters share; this
room has initialisers, Jacobian spectra, approximate isometry and scoring without labels.
"""

from companion.models import mlp, parameter_counts
from companion.papers.signal_propagation.experiment import (
    CRITERIA,
    SCORING_LOSSES,
    SCORINGS,
    VARIANTS,
    Case,
    NoSignalError,
    Run,
    Spectrum,
    check_sizes,
    criterion_scores,
    full_set,
    repair,
    score,
    scoring_loss,
    spectra_by_sparsity,
    train_cases,
)
from companion.papers.signal_propagation.initialisers import (
    INITS,
    init_weights,
    orthogonal_kernel,
)
from companion.papers.signal_propagation.isometry import (
    enforce_isometry,
    isometry_gradient,
    isometry_residual,
    rescale_layers,
    residual_floor,
)
from companion.papers.signal_propagation.networks import (
    ARCHITECTURES,
    build_model,
    check_network,
    resnet,
)
from companion.papers.signal_propagation.spectra import (
    jacobian,
    jacobian_singular_values,
    layer_singular_values,
    masked_parameters,
    structural_rank,
    summary,
)
from companion.sparsity import (
    connection_sensitivity,
    global_topk_mask,
    kept_count,
    mask_overlap,
    mask_report,
    prunable_parameters,
    random_scores,
)

__all__ = [
    "ARCHITECTURES",
    "CRITERIA",
    "INITS",
    "SCORINGS",
    "SCORING_LOSSES",
    "VARIANTS",
    "Case",
    "NoSignalError",
    "Run",
    "Spectrum",
    "build_model",
    "check_network",
    "check_sizes",
    "connection_sensitivity",
    "criterion_scores",
    "enforce_isometry",
    "full_set",
    "global_topk_mask",
    "init_weights",
    "isometry_gradient",
    "isometry_residual",
    "jacobian",
    "jacobian_singular_values",
    "kept_count",
    "layer_singular_values",
    "mask_overlap",
    "mask_report",
    "masked_parameters",
    "mlp",
    "orthogonal_kernel",
    "parameter_counts",
    "prunable_parameters",
    "random_scores",
    "repair",
    "rescale_layers",
    "residual_floor",
    "resnet",
    "score",
    "scoring_loss",
    "spectra_by_sparsity",
    "structural_rank",
    "summary",
    "train_cases",
]
