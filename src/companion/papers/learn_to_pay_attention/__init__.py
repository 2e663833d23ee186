"""Learn to Pay Attention (arXiv 1804.02391): classification from attended local features only.

Images are (batch, channels, height, width) in [0, 1]. Local features of a level are maps
(batch, channels, height, width), the global vector g is (batch, features), and attention is
(batch, height, width), adding up to 1 in every image. `networks` has the paper's networks and
their controls, `training` the loop.

On your own work::

    import torch
    from torchvision import datasets, models, transforms as tf

    from companion.papers import learn_to_pay_attention as att

    data = datasets.ImageFolder(folder, tf.Compose([tf.Resize((64, 64)), tf.ToTensor()]))
    x, y = torch.utils.data.default_collate(list(data))  # (images, 3, 64, 64), classes
    backbone = models.shufflenet_v2_x0_5(num_classes=128)  # its output is the global vector
    model = att.AttentionClassifier(backbone, ["stage2", "stage3"], 1 + int(y.max()), "dp")
    generator = torch.Generator().manual_seed(0)
    att.fit(model, x, y, steps=100, lr=2e-3, batch_size=16, generator=generator)
    maps = att.attention_maps(model, x)  # layer -> (images, height, width)

References:
    Jetley, Lord, Lee and Torr (2018), Learn to pay attention, ICLR.
"""

from companion.papers.learn_to_pay_attention.attacks import fgsm, pgd
from companion.papers.learn_to_pay_attention.attention import (
    AttentionClassifier,
    AttentionHead,
    SpatialAttention,
    captured,
)
from companion.papers.learn_to_pay_attention.maps import (
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
    GapClassifier,
    ProgressiveAttention,
    resnet_att,
    small_att,
    vgg_att,
)
from companion.papers.learn_to_pay_attention.training import fit

__all__ = [
    "AttentionClassifier",
    "AttentionHead",
    "GapClassifier",
    "ProgressiveAttention",
    "SpatialAttention",
    "attention_maps",
    "binarised",
    "cam_maps",
    "captured",
    "energy_in_box",
    "fgsm",
    "fit",
    "global_vectors",
    "mask_iou",
    "otsu_threshold",
    "perturbation_curve",
    "pgd",
    "pointing_game",
    "resized",
    "resnet_att",
    "small_att",
    "vgg_att",
]
