"""Meta-learning sparse implicit neural representations (Meta-SparseINR, arXiv 2110.14678).

A network is a dictionary of tensors: weights and biases by name, and ``omega_0``, the frequency
that is fixed when the network is drawn and that nothing trains. Masks are boolean tensors under
the same names (all true for biases, which are never pruned). Signals are (pictures, points,
channels), values in [0, 1]; mean squared errors are over points and channels.
"""

from companion.papers.sparse_inr.fitting import (
    FitResult,
    fit,
    held_out_psnr,
    mean_psnr,
    psnr,
    render,
)
from companion.papers.sparse_inr.masks import (
    apply_mask,
    bits_per_pixel,
    compact,
    count_params,
    dense_count,
    full_masks,
    magnitude_prune,
    mask_bits,
    matched_width,
    random_prune,
    survivor_chain,
    survivors,
)
from companion.papers.sparse_inr.meta import (
    Checkpoint,
    maml_loss,
    meta_learn,
    meta_prune,
    meta_train,
    signal_loss,
)
from companion.papers.sparse_inr.network import (
    Siren,
    as_images,
    as_targets,
    pixel_grid,
    siren,
    siren_params,
    strict_float32,
)

__all__ = [
    "Checkpoint",
    "FitResult",
    "Siren",
    "apply_mask",
    "as_images",
    "as_targets",
    "bits_per_pixel",
    "compact",
    "count_params",
    "dense_count",
    "fit",
    "full_masks",
    "held_out_psnr",
    "magnitude_prune",
    "maml_loss",
    "mask_bits",
    "matched_width",
    "mean_psnr",
    "meta_learn",
    "meta_prune",
    "meta_train",
    "pixel_grid",
    "psnr",
    "random_prune",
    "render",
    "signal_loss",
    "siren",
    "siren_params",
    "strict_float32",
    "survivor_chain",
    "survivors",
]
