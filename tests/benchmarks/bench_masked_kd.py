"""What a masked teacher costs beside the whole one, and what choosing its patches costs."""

import pytest
import torch

from companion.papers import masked_kd as mkd

KEEPS = (147, 98, 49)
BATCH = 4


@pytest.fixture(scope="module")
def small():
    """A ViT-S of timm with random weights, and pictures for it."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224").eval()
    return model, torch.randn(BATCH, 3, 224, 224, generator=torch.Generator().manual_seed(1))


def share(keep):
    size = mkd.SIZES["S"]
    return mkd.vit_macs(size.dim, size.depth, keep=keep) / mkd.vit_macs(size.dim, size.depth)


def chosen(keep):
    return mkd.select_tokens(
        torch.rand(BATCH, 196, generator=torch.Generator().manual_seed(2)), keep
    )


@pytest.mark.parametrize("keep", KEEPS)
def test_masked_teacher_against_the_whole_one(keep, small, compare):
    model, x = small
    with torch.inference_mode(), mkd.token_drop(model) as masked:
        compare(
            f"teacher's forward pass, ViT-S, {keep} of 196 patches, batch {BATCH}",
            lambda: masked(x, chosen(keep)),
            "the same on all patches",
            lambda: model(x),
            rounds=7,
            aim=share(keep),
            aim_is="the share of operations",
        )


@pytest.mark.parametrize("keep", KEEPS)
def test_masked_teacher_against_patch_dropout(keep, small, compare):
    """timm's PatchDropout drops as many patches, at random, and only in training mode."""
    from timm.layers import PatchDropout

    model, x = small
    dropout = PatchDropout(1 - (keep + 0.5) / 196).train()
    assert dropout(torch.zeros(1, 197, 2)).shape[1] == 1 + keep
    ours = {"keep": chosen(keep)}

    def peer():
        was, model.patch_drop = model.patch_drop, dropout
        try:
            return model(x)
        finally:
            model.patch_drop = was

    with torch.inference_mode():

        def masked_once():
            with mkd.token_drop(model) as masked:
                return masked(x, ours["keep"])

        compare(
            f"teacher's forward pass on chosen patches, ViT-S, {keep} of 196, batch {BATCH}",
            masked_once,
            "timm's PatchDropout (random patches)",
            peer,
            rounds=7,
            aim=1.05,
            peers=["timm"],
            agreement="as many patches, not the same ones",
        )


def test_selection_against_the_students_step(compare, small):
    """Hook, row, average, sort: everything that the student does for the mask."""
    timm = pytest.importorskip("timm")
    student, (_, x) = timm.create_model("vit_tiny_patch16_224"), small

    def step():
        student.zero_grad()
        student(x).square().mean().backward()

    def selecting():
        with mkd.cls_attention(student) as attention:
            student.zero_grad()
            loss = student(x).square().mean()
            mkd.select_tokens(attention.scores, 98)
            loss.backward()

    compare(
        f"ViT-Ti forward and backward with selection, batch {BATCH}",
        selecting,
        "the same without",
        step,
        rounds=15,
        aim=1.02,
        limit=1.0,
    )


def test_reading_attention_against_attention_extract(compare, small):
    """timm's AttentionExtract turns fused attention off and returns whole maps."""
    from timm.utils import AttentionExtract

    timm = pytest.importorskip("timm")
    _, x = small
    torch.manual_seed(3)
    ours = timm.create_model("vit_tiny_patch16_224").eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.layers.config._USE_FUSED_ATTN", 0)
        explicit = timm.create_model("vit_tiny_patch16_224").eval()
    explicit.load_state_dict(ours.state_dict())
    peer = AttentionExtract(explicit, names=["blocks.11.attn.attn_drop"], method="hook")

    with torch.inference_mode():

        def read():
            with mkd.cls_attention(ours) as attention:
                ours(x)
                return attention.scores

        def extract():
            (maps,) = peer(x).values()
            return maps[:, :, 0, 1:].mean(1)

        torch.testing.assert_close(read(), extract(), rtol=1e-3, atol=1e-5)
        compare(
            f"attention of CLS to the patches, ViT-Ti, batch {BATCH}",
            read,
            "timm's AttentionExtract (whole maps of the last block)",
            extract,
            rounds=15,
            aim=1.0,
            peers=["timm"],
            agreement="the same attention to rounding",
        )


def test_a_distillation_step_against_the_full_teacher(compare, small):
    timm = pytest.importorskip("timm")
    teacher, x = small
    student = timm.create_model("vit_tiny_patch16_224")
    y = torch.arange(BATCH)

    def step(selector):
        def run():
            student.zero_grad()
            with mkd.MaskedDistiller(student, teacher, 98, selector=selector) as distiller:
                distiller(x, y).loss.backward()

        return run

    size = {name: mkd.SIZES[name] for name in ("Ti", "S")}
    cost = {name: mkd.vit_macs(s.dim, s.depth) for name, s in size.items()}
    half = mkd.vit_macs(size["S"].dim, size["S"].depth, keep=98)
    bound = 1 - mkd.training_saving(cost["Ti"], cost["S"], half)
    compare(
        f"step of a ViT-Ti from a ViT-S, 98 of 196 patches, batch {BATCH}",
        step("student"),
        "full-teacher distillation",
        step("full"),
        rounds=7,
        aim=bound,
        aim_is="the share of operations",
    )


def test_growth_with_the_tokens(grow):
    timm = pytest.importorskip("timm")

    def make(patches):
        side = 16 * round(patches**0.5)
        student, teacher = (
            timm.create_model("vit_tiny_patch16_224", img_size=side) for _ in range(2)
        )
        x, y = torch.randn(1, 3, side, side), torch.zeros(1, dtype=torch.long)

        def step():
            with mkd.MaskedDistiller(student, teacher, patches // 2) as distiller:
                distiller(x, y).loss.backward()

        return step

    grow(
        "a distillation step, ViT-Ti, half of the teacher's patches",
        "patches",
        [64, 144, 256, 576, 1024],
        make,
    )
