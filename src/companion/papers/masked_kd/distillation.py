"""Distillation from a teacher that sees what the student looks at."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, pad

from companion.checks import generators, one_of, tensor_of_labels, whole
from companion.checks import images as check_images
from companion.papers.masked_kd.architecture import (
    UnsupportedModelError,
    drop_point,
    patch_count,
    patch_sides,
    token_grid,
)
from companion.papers.masked_kd.attention import cls_attention, gradient_saliency
from companion.papers.masked_kd.tokens import (
    check_keep,
    mask_recall,
    patch_truth,
    resize_scores,
    select_tokens,
    token_drop,
)
from companion.training import LOOK_EVERY, evaluation_mode

KINDS = ("soft", "hard")
SELECTORS = ("full", "student", "random", "bottom", "teacher", "saliency")
AMP = (None, torch.bfloat16, torch.float16)  # dtypes of autocast


def distillation_loss(
    z: Tensor,
    t: Tensor,
    y: Tensor | None = None,
    alpha: float = 0.5,
    tau: float = 1.0,
    kind: str = "soft",
) -> Tensor:
    """Weigh the cross-entropy to the labels, 1 - alpha, and the teacher's part, alpha.

    Args:
        z, t: logits of student and teacher, (B, K); the teacher's may be -inf for a class that
            it rules out.
        y: class indices (B,) or probabilities (B, K) as mixup makes them; needed unless alpha
            is 1, where they are not looked at.
        alpha: weight of the teacher, 0 to 1.
        tau: temperature, above 0.
        kind: "soft", tau² KL(teacher || student) averaged over the batch; "hard", cross-entropy
            to the teacher's answer.

    Raises:
        ValueError: for values out of range, other shapes, missing labels or labels of no class.

    References:
        Son et al. (2024), equation (1); Touvron et al. (2021) for "hard".

    >>> z, t = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    >>> round(distillation_loss(z, t, alpha=1.0).item(), 5)
    0.13081
    """
    one_of(KINDS, kind=kind)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha!r}: expected 0 to 1")
    if not 0 < tau < math.inf:
        raise ValueError(f"tau = {tau!r}: expected a number above 0")
    if z.shape != t.shape:
        raise ValueError(
            f"student logits {tuple(z.shape)} and teacher logits {tuple(t.shape)} differ: both "
            "models must have the same classes"
        )
    if alpha < 1:
        y = _labels(y, z, alpha)
    z, t = (v if v.dtype == torch.float64 else v.float() for v in (z, t))
    if kind == "hard":
        taught = cross_entropy(z, t.argmax(1))
    else:
        taught = tau**2 * kl_from_teacher(z / tau, t / tau)
    if alpha == 1 or y is None:
        return taught  # labels are not touched
    labelled = cross_entropy(z, y)  # eq. (6.2)
    return (1 - alpha) * labelled + alpha * taught


def kl_from_teacher(z: Tensor, t: Tensor) -> Tensor:
    """KL(teacher || student) in nats of logits z and t, (B, K), averaged over the batch.

    A class that the teacher rules out, by a logit of -inf, adds nothing, as 0 log 0 = 0. NaN for a
    teacher that rules out all of them.
    """
    out = t.isneginf() & ~t.isneginf().all(1, keepdim=True)
    return kl_div(
        log_softmax(z, 1).masked_fill(out, 0),
        log_softmax(t, 1).masked_fill(out, torch.finfo(t.dtype).min),  # of which exp is 0
        log_target=True,
        reduction="batchmean",
    )


def _labels(y: Tensor | None, z: Tensor, alpha: float) -> Tensor:
    """Labels as `cross_entropy` takes them.

    Raises:
        ValueError: unless there is a class, or probabilities of all, for each output.
    """
    if y is None:
        raise ValueError(f"y: labels are needed with alpha = {alpha!r}")
    tensor_of_labels(y=y)
    if y.shape not in (z.shape, z.shape[:1]):
        raise ValueError(
            f"y: shape {tuple(y.shape)}, expected {tuple(z.shape[:1])} class indices or "
            f"{tuple(z.shape)} probabilities"
        )
    if y.dim() > 1:
        if not y.is_floating_point():
            raise ValueError(f"y: {y.dtype}, expected floating-point probabilities")
        return y
    if y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"y: {y.dtype}, expected integer class indices")
    y = y.long()
    if y.device.type == "cpu" and len(y):  # a GPU would have to be waited for
        low, high = (int(end) for end in y.aminmax())
        if low < 0 or high >= z.shape[1]:
            raise ValueError(
                f"y: class {low if low < 0 else high}, expected 0 to {z.shape[1] - 1}"
            )
    return y


def autocast(images: Tensor, amp: torch.dtype | None) -> AbstractContextManager:
    """Autocast to a dtype on the device of some images; None leaves an outer one's dtype.

    Not its copies of the weights, which an optimiser may change before the outer one ends.
    """
    kind = images.device.type
    if amp is None:
        outer = torch.is_autocast_enabled(kind)
        return torch.autocast(kind, cache_enabled=False) if outer else nullcontext()
    return torch.autocast(kind, dtype=amp)


@dataclass(eq=False)
class CollapseGuard:
    """Mask the teacher only while it predicts the same classes with the mask as without.

    Early in training a student attends anywhere. If the teacher sees only that, its prediction
    carries no information, the student's attention drifts off, and stays there. So the agreement
    is measured on a probe batch now and then: on which share of its images does the masked
    teacher predict the class that it predicts on the whole image? Below `threshold`, the teacher
    sees everything until the next measurement: a warm-up of the length that is needed.

    Args:
        images: probe batch, in the student's resolution.
        threshold: least agreement, 0 to 1.
        every: steps between two measurements.
        teacher_images: the probe batch in the teacher's resolution, where that differs.
        log: (step, agreement) of every measurement.

    Raises:
        ValueError: for values out of range, or what is no batch of images.
    """

    images: Tensor
    threshold: float = 0.8
    every: int = 20
    teacher_images: Tensor | None = None
    log: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold = {self.threshold!r}: expected 0 to 1")
        whole(1, every=self.every)
        check_images(images=self.images)


@dataclass(frozen=True, eq=False)
class Step:
    """One step's outcome: loss with its graph, logits, and the patches the teacher saw.

    Args:
        keep: (B, k), or None where the teacher saw everything.
    """

    loss: Tensor
    logits: Tensor
    teacher_logits: Tensor
    keep: Tensor | None


class MaskedDistiller:
    """Distil a student from a teacher that sees only some patches of each image.

    Args:
        student, teacher: classifiers, see `cls_attention` and `token_drop`; the teacher runs in
            inference mode without gradients, and no weight or mode of it changes.
        keep: patches that the teacher sees, at most as many as it has positions for; where it takes
            images of any size (timm's dynamic_img_size), as many as these have.
        alpha, tau, kind: as `distillation_loss`.
        selector: "student" (the method); "random"; "bottom", the student's least; "teacher", by
            the teacher's own attention, which costs a whole forward pass of it; "saliency", by
            the student's gradients; "full" for no mask.
        warmup: first steps without a mask.
        guard: a `CollapseGuard`, for as many as are needed; None with "full".
        layer: block of the student whose attention counts.
        amp: dtype of autocast, torch.bfloat16 or torch.float16; None for none of its own: an
            outer autocast stays on. Loss and attention scores stay in float32.
        generator: CPU generator for "random".

    Raises:
        ValueError: for values out of range, at once and not at the first step.
        UnsupportedModelError: for unknown models, at once too.

    References:
        Son et al. (2024), section 3.

    >>> from companion.papers.masked_kd.vit import ViT
    >>> student, teacher = ViT(24, 4, dim=16), ViT(24, 4, depth=3)
    >>> optimizer = torch.optim.SGD(student.parameters(), 0.1)
    >>> with MaskedDistiller(student, teacher, keep=18) as distiller:
    ...     for images, labels in [(torch.rand(5, 1, 24, 24), torch.arange(5))]:
    ...         step = distiller(images, labels)
    ...         step.loss.backward()
    ...         optimizer.step()
    >>> step.keep.shape  # the patches that the teacher saw, of 36
    torch.Size([5, 18])
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        keep: int,
        *,
        alpha: float = 0.5,
        tau: float = 1.0,
        kind: str = "soft",
        selector: str = "student",
        warmup: int = 0,
        guard: CollapseGuard | None = None,
        layer: int = -1,
        amp: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        one_of(SELECTORS, selector=selector)
        one_of(AMP, amp=amp)
        if selector == "full" and guard is not None:
            raise ValueError("guard: expected None with selector = 'full', which masks nothing")
        whole(0, warmup=warmup)
        generators(generator=generator)
        dynamic = getattr(teacher, "dynamic_img_size", False)  # then the images say how many
        check_keep(keep, None if dynamic else patch_count(teacher))
        probe = torch.zeros(1, 2)
        distillation_loss(probe, probe, torch.zeros(1, dtype=torch.long), alpha, tau, kind)
        drop_point(teacher)
        self.student, self.teacher, self.keep = student, teacher, keep
        self.alpha, self.tau, self.kind, self.selector = alpha, tau, kind, selector
        self.warmup, self.guard, self.amp, self.generator = warmup, guard, amp, generator
        self.step = 0
        self.masking = guard is None
        self._stack = ExitStack()
        self._masked_teacher = self._stack.enter_context(token_drop(teacher))
        self._attention = None
        if selector in ("student", "bottom", "teacher"):
            watched = teacher if selector == "teacher" else student
            self._attention = self._stack.enter_context(cls_attention(watched, layer))
        self._probe_answers: Tensor | None = None

    def __enter__(self) -> MaskedDistiller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all hooks from both models."""
        self._stack.close()

    def __call__(
        self, images: Tensor, labels: Tensor | None = None, teacher_images: Tensor | None = None
    ) -> Step:
        """Student on all patches, teacher on the chosen ones, and the loss between them.

        Args:
            images: (B, C, H, W); with mixup the mixed ones.
            labels: as `distillation_loss`'s y; needed unless alpha is 1.
            teacher_images: the same images in the teacher's resolution, where that differs;
                scores are then resized to its grid.

        Raises:
            ValueError: for what is no batch of images, images of a size that the teacher does not
                take or with fewer patches than `keep`, and as `distillation_loss`.
            UnsupportedModelError: for a student in training that drops patches itself (timm's
                patch_drop_rate) where its attention selects.
        """
        self._check_student()
        seen = images if teacher_images is None else teacher_images
        check_images(images=images, teacher_images=seen)
        self._check_resolution(seen)
        if self.guard is not None and self.step % self.guard.every == 0:
            self._look()
        with autocast(images, self.amp):
            logits = self.student(images)
        keep = None
        if self.selector != "full" and self.masking and self.step >= self.warmup:
            keep = self.select(images, seen)
        answers = self._teach(seen, keep)
        # a distilled student in training returns two answers: its own, and one for the teacher
        own, taught = logits if isinstance(logits, tuple) else (logits, logits)
        with torch.autocast(images.device.type, enabled=False):
            loss = self._loss(own, taught, answers, labels)
        self.step += 1
        return Step(loss, own, answers, keep)

    def _loss(self, own: Tensor, taught: Tensor, answers: Tensor, labels: Tensor | None) -> Tensor:
        if own is taught:
            return distillation_loss(own, answers, labels, self.alpha, self.tau, self.kind)
        loss = self.alpha * distillation_loss(taught, answers, None, 1, self.tau, self.kind)
        if self.alpha == 1:
            return loss
        labels = _labels(labels, own, self.alpha)
        return loss + (1 - self.alpha) * cross_entropy(own.float(), labels)

    def select(self, images: Tensor, teacher_images: Tensor) -> Tensor:
        """The patches that the selector keeps of each picture, (B, keep), ascending.

        "student" and "bottom" read the student's latest forward pass, which must have been of
        these images.
        """
        grid_t = token_grid(self.teacher, teacher_images)
        if self.selector == "random":
            blank = torch.zeros(len(images), grid_t[0] * grid_t[1], device=images.device)
            return select_tokens(blank, self.keep, "random", self.generator)
        if self.selector == "teacher":
            self._teach(teacher_images, None)
            assert self._attention is not None
            scores, grid = self._attention.scores, grid_t
        elif self.selector == "saliency":
            scores, grid = (
                gradient_saliency(self.student, images),
                token_grid(self.student, images),
            )
        else:
            assert self._attention is not None
            scores, grid = self._attention.scores, token_grid(self.student, images)
        mode = "bottom" if self.selector == "bottom" else "top"
        # looking at the scores waits for a GPU: there only now and then
        check = images.device.type == "cpu" or self.step % LOOK_EVERY == 0
        return select_tokens(resize_scores(scores, grid, grid_t), self.keep, mode, check=check)

    def _teach(self, images: Tensor, keep: Tensor | None) -> Tensor:
        """The teacher's logits, (B, K), as ordinary tensors without a gradient."""
        with evaluation_mode(self.teacher), torch.inference_mode(), autocast(images, self.amp):
            answers = self._masked_teacher(images, keep)
        return answers.float().clone()

    def _check_student(self) -> None:
        """Raise UnsupportedModelError for a student that drops patches that it should score."""
        drop: Any = getattr(self.student, "patch_drop", None)
        rate = getattr(drop, "prob", 0)
        if self.selector in ("student", "bottom") and rate and drop.training:
            raise UnsupportedModelError(
                f"student: patch_drop_rate = {rate!r} drops patches in training, which then have "
                f"no attention to select by; expected 0 with selector = {self.selector!r}"
            )

    def _check_resolution(self, images: Tensor) -> None:
        """Raise ValueError for pictures that the teacher has no positions for, or of too few patches."""
        try:
            rows, columns = token_grid(self.teacher, images)
        except UnsupportedModelError:
            raise
        except ValueError as error:
            raise ValueError(
                f"{error}: pass them in its own resolution as teacher_images"
            ) from error
        count = patch_count(self.teacher)
        dynamic = getattr(self.teacher, "dynamic_img_size", False)
        if count is not None and rows * columns != count and not dynamic:
            raise ValueError(
                f"the teacher has positions for {count} patches, but pictures of "
                f"{images.shape[-2]} x {images.shape[-1]} have {rows} x {columns}: pass them in "
                "its own resolution as teacher_images"
            )
        if self.selector != "full":
            check_keep(self.keep, rows * columns)

    def _look(self) -> None:
        """Let the guard decide whether the coming steps are masked."""
        guard = self.guard
        assert guard is not None
        seen = guard.images if guard.teacher_images is None else guard.teacher_images
        if self._probe_answers is None:
            self._probe_answers = self._teach(seen, None).argmax(1)
        with evaluation_mode(self.student), torch.no_grad(), autocast(guard.images, self.amp):
            self.student(guard.images)
        answers = self._teach(seen, self.select(guard.images, seen)).argmax(1)
        agreement = (answers == self._probe_answers).float().mean().item()
        guard.log.append((self.step, agreement))
        self.masking = agreement >= guard.threshold


@torch.no_grad()
def mask_quality(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    keep: int,
    *,
    truth: Tensor | None = None,
    teacher_images: Tensor | None = None,
    layer: int = -1,
) -> dict[str, float]:
    """How well a student's mask serves the teacher, in inference mode.

    Args:
        student, teacher: as `MaskedDistiller`.
        images: (B, C, H, W), in the student's resolution.
        keep: patches that the teacher sees.
        truth: where the object is: a mask (B, H, W) bool over the teacher's images, or its
            patches (B, N) bool.
        teacher_images: the same images in the teacher's resolution, where that differs.
        layer: block of the student whose attention counts.

    Returns:
        "agreement", the share of images on which the masked teacher predicts the class that it
        predicts on the whole image; "recall", the mean share of the object's patches that are
        kept, over images in which there is one: NaN where there is none, or no truth.

    Raises:
        ValueError: for what is no batch of images, a keep count out of range, and a truth that
            does not fit.
        UnsupportedModelError: for unknown models.

    >>> from companion.papers.masked_kd.vit import ViT
    >>> images, truth = torch.rand(5, 1, 24, 24), torch.ones(5, 24, 24, dtype=torch.bool)
    >>> mask_quality(ViT(), ViT(depth=3), images, keep=18, truth=truth)["recall"]
    0.5
    """
    with MaskedDistiller(student, teacher, keep, alpha=1.0, layer=layer) as distiller:
        with evaluation_mode(student):
            step = distiller(images, teacher_images=teacher_images)
        seen = images if teacher_images is None else teacher_images
        whole_image = distiller._teach(seen, None).argmax(1)
    agreement = (step.teacher_logits.argmax(1) == whole_image).float().mean().item()
    recall = math.nan
    if truth is not None:
        rows, columns = token_grid(teacher, seen)
        if truth.dim() == 3:
            if truth.shape[1:] != seen.shape[2:]:
                raise ValueError(
                    f"truth: shape {tuple(truth.shape)}, expected masks of the images, "
                    f"{(len(seen), *seen.shape[2:])}, or patches {(len(seen), rows * columns)}"
                )
            height, width = patch_sides(teacher)
            # timm fills the last patches up below and on the right (dynamic_img_pad)
            missing = rows * height - seen.shape[2], columns * width - seen.shape[3]
            truth = patch_truth(pad(truth, (0, missing[1], 0, missing[0])), (height, width))
        if truth.shape != (len(seen), rows * columns):
            raise ValueError(
                f"truth: shape {tuple(truth.shape)}, expected {(len(seen), rows * columns)} "
                "patches, or masks of the images"
            )
        assert step.keep is not None  # there is neither warm-up nor guard
        recall = mask_recall(step.keep, truth).nanmean().item()
    return {"agreement": agreement, "recall": recall}
