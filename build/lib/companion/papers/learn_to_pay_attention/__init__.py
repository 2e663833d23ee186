"""Learn to Pay Attention (arXiv 1804.02391): classification from attended local features only.

Images are (batch, channels, height, width) in [0, 1]. Local features of a level are maps
(batch, channels, height, width), the global vector g is (batch, features), and attention is
(batch, height, width), adding up to 1 in every image.
"""

from companion.papers.learn_to_pay_attention.attacks import fgsm, pgd
from companion.papers.learn_to_pay_attention.attention import (
    COMPATS,
    HEADS,
    SCALES,
    AttentionClassifier,
    AttentionHead,
    SpatialAttention,
    captured,
)
from companion.papers.learn_to_pay_attention.maps import (
    THRESHOLDS,
    attention_maps,
    binarised,
    cam_maps,
    energy_in_box,
    global_vectors,
    mask_iou,
    otsu_threshold,
    perturbation_curve,
    pointing_game,
    resized,
)
from companion.papers.learn_to_pay_attention.networks import (
    NETWORKS,
    GapClassifier,
    PlainClassifier,
    ProgressiveAttention,
    build_network,
    multiply_adds,
    parameter_count,
    receptive_fields,
    resnet_att,
    resnet_trunk,
    small_att,
    small_trunk,
    vgg,
    vgg_att,
    vgg_trunk,
)
from companion.papers.learn_to_pay_attention.training import fit, flip

__all__ = [
    "COMPATS",
    "HEADS",
    "NETWORKS",
    "SCALES",
    "THRESHOLDS",
    "AttentionClassifier",
    "AttentionHead",
    "GapClassifier",
    "PlainClassifier",
    "ProgressiveAttention",
    "SpatialAttention",
    "attention_maps",
    "binarised",
    "build_network",
    "cam_maps",
    "captured",
    "energy_in_box",
    "fgsm",
    "fit",
    "flip",
    "global_vectors",
    "mask_iou",
    "multiply_adds",
    "otsu_threshold",
    "parameter_count",
    "perturbation_curve",
    "pgd",
    "pointing_game",
    "receptive_fields",
    "resized",
    "resnet_att",
    "resnet_trunk",
    "small_att",
    "small_trunk",
    "vgg",
    "vgg_att",
    "vgg_trunk",
]
