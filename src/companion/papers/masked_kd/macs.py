"""What a vision transformer costs, by formula and by count."""

from __future__ import annotations

from torch import Tensor, nn

from companion.models.costs import forward_macs
from companion.papers.masked_kd.tokens import check_keep


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

    Attention and recurrent networks run without their fused kernels, into which PyTorch's counter
    does not see. Works on the meta device, where nothing is computed, and inside `torch.no_grad`
    too.
    """
    return forward_macs(model, images) // len(images)
