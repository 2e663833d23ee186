"""A signal-propagation perspective for pruning at initialisation (arXiv 1906.06307).

Scores, masks and masked training live in `companion.sparsity`, which other chapters share; this
room has initialisers, Jacobian spectra, approximate isometry and scoring without labels.

On your own work::

    from companion.papers import signal_propagation as signals
    from companion.sparsity import apply_masks, mask_report
    loss = signals.scoring_loss("uniform")  # looks at no label
    scores = signals.connection_sensitivity(model, loss, [(images, labels)])
    masks = signals.global_topk_mask(scores, sparsity=0.9)
    residuals = signals.enforce_isometry(model, masks, steps=20)  # no data either
    for layer in mask_report(masks, ranks=False):
        print(layer.name, f"{layer.density:.1%} kept, {residuals[layer.name][-1]:.2f}")
    spectrum = signals.jacobian_singular_values(model, images[:2], masks=masks)
    apply_masks(model, masks)  # from here on any optimiser keeps to them
"""

from companion.papers.signal_propagation.experiment import (
    CRITERIA,
    SCORINGS,
    Case,
    CaseRun,
    NoSignalError,
    connection_scores,
    criterion_scores,
    full_set,
    scoring_loss,
    spectra_by_sparsity,
    train_cases,
)
from companion.papers.signal_propagation.initialisers import INITS, init_weights
from companion.papers.signal_propagation.isometry import (
    enforce_isometry,
    isometry_residual,
    rescale_layers,
    residual_floor,
)
from companion.papers.signal_propagation.networks import untrained_network
from companion.papers.signal_propagation.spectra import (
    jacobian_singular_values,
    layer_singular_values,
    structural_rank,
)
from companion.sparsity import connection_sensitivity, global_topk_mask

__all__ = [
    "CRITERIA",
    "INITS",
    "SCORINGS",
    "Case",
    "CaseRun",
    "NoSignalError",
    "connection_scores",
    "connection_sensitivity",
    "criterion_scores",
    "enforce_isometry",
    "full_set",
    "global_topk_mask",
    "init_weights",
    "isometry_residual",
    "jacobian_singular_values",
    "layer_singular_values",
    "rescale_layers",
    "residual_floor",
    "scoring_loss",
    "spectra_by_sparsity",
    "structural_rank",
    "train_cases",
    "untrained_network",
]
