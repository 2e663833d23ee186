"""SNIP: single-shot network pruning based on connection sensitivity (arXiv 1810.02340).

The method itself lives in `companion.sparsity`, which other chapters share; `experiment` has what
only this paper does with it.

On your own work::

    from torch.nn.functional import cross_entropy
    from companion.papers import snip
    from companion.training import train
    scores = snip.connection_sensitivity(model, cross_entropy, [(images[:64], labels[:64])])
    masks = snip.global_topk_mask(scores, sparsity=0.9)
    for layer in snip.mask_report(masks, ranks=False):
        print(f"{layer.name}: {layer.kept} of {layer.total}")
    snip.apply_masks(model, masks)  # from here on any optimiser keeps to them
    train(model, images, labels, steps=steps, batch_size=32, lr=0.01)
    pruned = snip.export_weights(model, masks, layout="coo")
"""

from companion.papers.snip.experiment import (
    ARCHITECTURES,
    CRITERIA,
    PrunedRun,
    build_model,
    class_pixel_maps,
    compare_criteria,
    criterion_scores,
    critical_sparsities,
    fit_labels,
    matched_classes,
    removal_effects,
    scoring_batches,
)
from companion.sparsity import (
    apply_masks,
    connection_sensitivity,
    export_weights,
    global_topk_mask,
    magnitude_scores,
    mask_overlap,
    mask_report,
    random_scores,
    shuffle_within_layer,
)

__all__ = [
    "ARCHITECTURES",
    "CRITERIA",
    "PrunedRun",
    "apply_masks",
    "build_model",
    "class_pixel_maps",
    "compare_criteria",
    "connection_sensitivity",
    "criterion_scores",
    "critical_sparsities",
    "export_weights",
    "fit_labels",
    "global_topk_mask",
    "magnitude_scores",
    "mask_overlap",
    "mask_report",
    "matched_classes",
    "random_scores",
    "removal_effects",
    "scoring_batches",
    "shuffle_within_layer",
]
