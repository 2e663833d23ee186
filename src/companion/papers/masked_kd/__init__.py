"""Masked knowledge distillation of vision transformers (MaskedKD, arXiv 2302.10494).

Images are (batch, channels, height, width). Patches are numbered row by row from 0; CLS and
other prefix tokens have no number. Scores are (batch, patches), kept patches (batch, k) in
ascending order. `experiment` has the chapter's data and training loops, `timing` its clock.

On your own work::

    import torch

    from companion.papers import masked_kd as mkd

    student = mkd.ViT.of("Ti", side, classes=classes)
    optimizer = torch.optim.AdamW(student.parameters(), 5e-4, weight_decay=0.05)
    with mkd.MaskedDistiller(student, teacher, keep, alpha=0.5, tau=1.0) as distiller:
        for images, labels in loader:
            optimizer.zero_grad()
            distiller(images, labels).loss.backward()
            optimizer.step()
    print(mkd.mask_quality(student, teacher, images, keep))

References:
    Son, Ryu, Lee and Lee (2024), The role of masking for efficient supervised knowledge
    distillation of vision transformers, ECCV.
"""

from companion.papers.masked_kd.architecture import UnsupportedModelError, token_grid
from companion.papers.masked_kd.attention import cls_attention, gradient_saliency
from companion.papers.masked_kd.distillation import (
    CollapseGuard,
    MaskedDistiller,
    Step,
    distillation_loss,
    mask_quality,
)
from companion.papers.masked_kd.experiment import distil, student_scores
from companion.papers.masked_kd.macs import count_macs, training_saving, vit_macs
from companion.papers.masked_kd.tokens import (
    mask_recall,
    patch_truth,
    resize_scores,
    select_tokens,
    token_drop,
)
from companion.papers.masked_kd.vit import SIZES, ViT

__all__ = [
    "SIZES",
    "CollapseGuard",
    "MaskedDistiller",
    "Step",
    "UnsupportedModelError",
    "ViT",
    "cls_attention",
    "count_macs",
    "distil",
    "distillation_loss",
    "gradient_saliency",
    "mask_quality",
    "mask_recall",
    "patch_truth",
    "resize_scores",
    "select_tokens",
    "student_scores",
    "token_drop",
    "token_grid",
    "training_saving",
    "vit_macs",
]
