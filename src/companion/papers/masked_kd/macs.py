"""What a vision transformer costs, by formula and by count."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from companion.papers.masked_kd.tokens import check_keep
from companion.training import evaluation_mode


def vit_macs(
    dim: int,
    depth: int,
    *,
    patches: int = 196,
    keep: int | None = None,
    patch: int = 16,
    channels: int = 3,
    mlp_ratio: float = 4.0,
    classes: int = 1000,
    prefix: int = 1,
) -> int:
    """Multiply-accumulates of one forward pass on one image.

    All `patches` are embedded; `keep` of them (None: all) and `prefix` further tokens go
    through `depth` blocks of width `dim`; one token is classified. Normalisation, softmax,
    activations and additions are not counted, as is usual.

    Args:
        dim: width.
        depth: blocks.
        patches: of an image.
        keep: patches that go through the blocks; None: all.
        patch: side of a patch, pixels.
        channels: of the images.
        mlp_ratio: hidden units of an MLP over dim.
        classes: outputs.
        prefix: tokens that are no patches.

    Raises:
        ValueError: for a keep count outside 1 to `patches`.

    >>> vit_macs(384, 12, keep=98) / vit_macs(384, 12)  # half of DeiT-S's patches
    0.489...
    """
    keep = patches if keep is None else keep
    check_keep(keep, patches)
    n = keep + prefix  # eq. (6.3)
    block = (4 + 2 * mlp_ratio) * n * dim**2
    block += 2 * n**2 * dim
    embed = patches * channels * patch**2 * dim
    return round(depth * block + embed + dim * classes)


def training_saving(student: float, teacher: float, masked: float) -> float:
    """Fraction of a step's cost that masking saves, backward = 2 x forward of the student.

    Args:
        student, teacher: costs of a forward pass, in any unit.
        masked: cost of the masked teacher's.

    References:
        Son et al. (2024), section 4.
    """
    return (teacher - masked) / (3 * student + teacher)


def count_macs(model: nn.Module, images: Tensor) -> int:
    """Count the multiply-accumulates of one forward pass, divided by the number of images.

    Attention runs under the plain backend and without `nn.MultiheadAttention`'s fast path:
    PyTorch's counter does not see into fused kernels. Works on the meta device, where nothing is
    computed, and inside `torch.no_grad` too.
    """
    counter = FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        # without gradients the counter fails on modules that are given a parameter, as by CaiT
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            evaluation_mode(model) if isinstance(model, nn.Module) else nullcontext(),
            counter,
            sdpa_kernel(SDPBackend.MATH),
        ):
            # what was made in inference mode cannot be saved for a backward pass
            model(images.clone() if images.is_inference() else images)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2 // len(images)
