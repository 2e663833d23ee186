"""Masked knowledge distillation of vision transformers (MaskedKD, arXiv 2302.10494).

Pictures are (batch, channels, height, width). Patches are numbered row by row from 0; CLS and
other prefix tokens have no number. Scores are (batch, patches), kept patches (batch, k) in
ascending order.
"""

from companion.papers.masked_kd.architecture import (
    DropPoint,
    UnsupportedModelError,
    attention_module,
    drop_point,
    patch_count,
    token_grid,
)
from companion.papers.masked_kd.attention import (
    ClsAttention,
    cls_attention,
    cls_row,
    gradient_saliency,
)
from companion.papers.masked_kd.distillation import (
    KINDS,
    SELECTORS,
    CollapseGuard,
    MaskedDistiller,
    Step,
    distillation_loss,
)
from companion.papers.masked_kd.experiment import (
    Folder,
    Pictures,
    Run,
    accuracy,
    answers,
    distil,
    judge,
    masked_answers,
    student_scores,
    train_teacher,
)
from companion.papers.masked_kd.macs import count_macs, training_saving, vit_macs
from companion.papers.masked_kd.timing import step_cost, teacher_cost, timed_in_turns
from companion.papers.masked_kd.tokens import (
    mask_recall,
    patch_truth,
    resize_scores,
    select_tokens,
    token_drop,
)
from companion.papers.masked_kd.vit import SIZES, Size, ViT, named_model

__all__ = [
    "KINDS",
    "SELECTORS",
    "SIZES",
    "ClsAttention",
    "CollapseGuard",
    "DropPoint",
    "Folder",
    "MaskedDistiller",
    "Pictures",
    "Run",
    "Size",
    "Step",
    "UnsupportedModelError",
    "ViT",
    "accuracy",
    "answers",
    "attention_module",
    "cls_attention",
    "cls_row",
    "count_macs",
    "distil",
    "distillation_loss",
    "drop_point",
    "gradient_saliency",
    "judge",
    "mask_recall",
    "masked_answers",
    "named_model",
    "patch_count",
    "patch_truth",
    "resize_scores",
    "select_tokens",
    "step_cost",
    "student_scores",
    "teacher_cost",
    "timed_in_turns",
    "token_drop",
    "token_grid",
    "train_teacher",
    "training_saving",
    "vit_macs",
]
