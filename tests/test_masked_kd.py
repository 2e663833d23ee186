"""MaskedKD: what the student looks at, what the teacher sees, and what it costs."""

import builtins
import contextlib
import copy
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import apart
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax, scaled_dot_product_attention, softmax

from companion.data.root import MissingDataError
from companion.files import ROOT
from companion.papers import masked_kd as mkd
from companion.papers.masked_kd import attention as attentions
from companion.papers.masked_kd import experiment, timing, vit
from companion.runs import chapters, executor
from companion.training import DivergenceError

TINY = {"embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(count=3, side=32, seed=0, channels=3):
    return torch.randn(count, channels, side, side, generator=generator(seed))


def from_timm(kind):
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    vit, size = timm.models.vision_transformer.VisionTransformer, {"img_size": 32, "patch_size": 8}
    make = {
        "vit": lambda: vit(**size, **TINY),
        "vit qk-norm": lambda: vit(**size, **TINY, qk_norm=True),
        "registers": lambda: vit(**size, **TINY, reg_tokens=4, no_embed_class=True),
        "deit3": lambda: vit(**size, **TINY, no_embed_class=True, init_values=0.1),
        "distilled": lambda: timm.models.deit.VisionTransformerDistilled(**size, **TINY),
        "cait": lambda: timm.models.cait.Cait(**size, **TINY, init_values=0.5),
    }
    return make[kind]()


def from_torchvision():
    from torchvision.models import VisionTransformer

    model = VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # zero as built: every output would be the same
    return model


def ours():
    return mkd.ViT(32, 8, dim=24, depth=2, heads=3, channels=3, classes=5)


PREFIX = {
    "ours": 1,
    "torchvision": 1,
    "vit": 1,
    "vit qk-norm": 1,
    "deit3": 1,
    "distilled": 2,
    "registers": 5,
    "cait": 1,
}
everywhere = pytest.mark.parametrize("kind", PREFIX)


def build(kind, seed=0):
    """A random model with weights large enough that attention is far from uniform."""
    torch.manual_seed(seed)
    made = {"ours": ours, "torchvision": from_torchvision}.get(kind, lambda: from_timm(kind))()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(6 if "token" not in name and "pos" not in name else 20)
    return made.eval()


# --- dropping tokens ------------------------------------------------------------------------


class KeyMask:
    """The full model with some keys hidden from every query in every layer: a brute-force twin.

    Explicit attention over all tokens with -inf where a key is hidden, in the place of the
    fused kernel.
    """

    def __init__(self, hidden, prefix):
        self.hidden, self.prefix = hidden, prefix

    def __call__(self, q, k, v, *_, **__):
        logits = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        shift = k.shape[-2] - self.hidden.shape[1]  # CLS and others stand before the patches
        mask = nn.functional.pad(self.hidden, (shift, 0))
        return softmax(logits.masked_fill(mask[:, None, None], -math.inf), -1) @ v


@pytest.mark.parametrize("kind", [k for k in PREFIX if k not in ("cait", "torchvision")])
def test_dropping_tokens_equals_hiding_their_keys_in_every_layer(kind, monkeypatch):
    model, x = build(kind), images()
    keep = mkd.select_tokens(torch.rand(3, 16, generator=generator(1)), 7)
    with torch.no_grad(), mkd.token_drop(model) as masked:
        dropped = masked(x, keep)
    hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, keep, False)
    twin = KeyMask(hidden, PREFIX[kind])
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", twin)
    monkeypatch.setattr("companion.papers.masked_kd.vit.scaled_dot_product_attention", twin)
    with torch.no_grad():
        expected = model(x)
    assert (dropped - expected).abs().max() < 1e-5 * expected.abs().max()
    # a planted fault: the twin that hides other keys is told apart
    twin.hidden = hidden.flip(1)
    with torch.no_grad():
        assert (dropped - model(x)).abs().max() > 1e-2 * expected.abs().max()


def test_dropping_tokens_of_torchvision_equals_hiding_their_keys():
    model, x = build("torchvision"), images()
    keep = mkd.select_tokens(torch.rand(3, 16, generator=generator(1)), 7)
    with torch.no_grad(), mkd.token_drop(model) as masked:
        dropped = masked(x, keep)
    hidden = torch.ones(3, 17, dtype=torch.bool).scatter(1, keep + 1, False)
    hidden[:, 0] = False
    hide = lambda _, args, kwargs: (args, kwargs | {"key_padding_mask": hidden})  # noqa: E731
    for block in model.encoder.layers:
        block.self_attention.register_forward_pre_hook(hide, with_kwargs=True)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(dropped, expected, rtol=1e-5, atol=1e-5)


def test_dropping_tokens_of_cait_equals_hiding_their_keys(monkeypatch):
    model, x = build("cait"), images()
    keep = mkd.select_tokens(torch.rand(3, 16, generator=generator(1)), 7)
    with torch.no_grad(), mkd.token_drop(model) as masked:
        dropped = masked(x, keep)
    hidden = torch.ones(3, 16, dtype=torch.bool).scatter(1, keep, False)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", KeyMask(hidden, 1))
    block = type(model.blocks[0].attn)

    def talking_heads(self, x):  # its own forward pass, with the logits of hidden keys at -inf
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        logits = self.proj_l((self.scale * q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = logits.masked_fill(hidden[:, None, None], -math.inf).softmax(-1)
        weights = self.proj_w(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # the mixture over heads has a bias, which hidden keys must not get either
        weights = weights.masked_fill(hidden[:, None, None], 0)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    monkeypatch.setattr(block, "forward", talking_heads)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(dropped, expected, rtol=1e-4, atol=1e-5)


def test_dropping_tokens_is_not_painting_their_pixels_black():
    model, x = build("ours"), images()
    keep = mkd.select_tokens(torch.rand(3, 16, generator=generator(1)), 7)
    seen = torch.zeros(3, 16).scatter(1, keep, 1.0).view(3, 1, 4, 4)
    black = x * seen.repeat_interleave(8, 2).repeat_interleave(8, 3)
    with torch.no_grad(), mkd.token_drop(model) as masked:
        assert (masked(x, keep) - model(black)).abs().max() > 0.1


@everywhere
def test_keeping_every_token_in_any_order_is_the_plain_forward_pass(kind):
    model, x = build(kind), images()
    order = torch.stack([torch.randperm(16, generator=generator(i)) for i in range(3)])
    with torch.no_grad():
        plain = model(x)
        with mkd.token_drop(model) as masked:
            torch.testing.assert_close(masked(x, order), plain, rtol=1e-4, atol=1e-5)
            assert torch.equal(masked(x, None), plain)
            masked(x, order[:, :4])
            assert torch.equal(model(x), plain)  # a call of its own is never masked


@everywhere
def test_outputs_and_hooks_are_as_before_after_the_context(kind):
    model, x = build(kind), images()
    with torch.no_grad():
        before = model(x)
        with mkd.token_drop(model) as masked, mkd.cls_attention(model):
            masked(x, torch.zeros(3, 1, dtype=torch.long))
            inside = model(x)
        after = model(x)
    assert torch.equal(before, inside)
    assert torch.equal(before, after)
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in model.modules()]
    assert not any(hooks)


@everywhere
def test_a_copy_made_inside_the_context_is_a_plain_model(kind, tmp_path):
    model, x = build(kind).eval(), images()
    with mkd.cls_attention(model) as attention, torch.no_grad():
        before = model(x)
        row = attention.row.clone()
        average = torch.optim.swa_utils.AveragedModel(model)
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        for other in (average, loaded, copy.deepcopy(average)):
            torch.testing.assert_close(other(x[:1]), before[:1])
        assert torch.equal(attention.row, row)  # others' passes are not the student's
        model(x[:1])
        assert len(attention.row) == 1
    torch.save(average, tmp_path / "average.pt")
    with mkd.cls_attention(loaded) as attention, torch.no_grad():
        loaded(x)
    assert torch.equal(attention.row, row)


def test_hooks_are_gone_even_if_the_block_raises():
    model = ours()
    with pytest.raises(KeyError), mkd.token_drop(model), mkd.cls_attention(model):
        raise KeyError
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("kind", "first", "in_place"),
    [
        ("ours", "whole", False),
        ("ours", "masked", False),
        ("ours", "whole", True),
        ("vit", "whole", False),
        ("torchvision", "whole", False),
        ("cait", "whole", True),
    ],
)
@apart
def test_a_compiled_teacher_sees_the_same_patches(kind, first, in_place):
    torch._dynamo.reset()
    model, x = build(kind), images()
    keeps = [
        torch.stack([torch.randperm(16, generator=generator(i))[:k] for i in range(3)])
        for k in (4, 9)
    ]
    with torch.no_grad(), mkd.token_drop(model) as masked:
        whole, expected = model(x), [masked(x, keep) for keep in keeps]
    if in_place:
        model.compile(backend="eager")
    compiled = model if in_place else torch.compile(model, backend="eager")
    with torch.no_grad():
        if first == "whole":
            compiled(x)
        for _ in range(2):  # a second context finds what the first one compiled
            with mkd.token_drop(compiled) as masked:
                for keep, out in zip(keeps, expected, strict=True):
                    torch.testing.assert_close(masked(x, keep), out)
                    torch.testing.assert_close(compiled(x), whole)
    assert not any(type(part).__name__ == "_Kept" for part in model.modules())


@apart
@apart
def test_attention_of_a_compiled_student_is_refused():
    for compiled in (
        lambda m: torch.compile(m, backend="eager"),
        lambda m: (m.compile(backend="eager"), m)[1],
        lambda m: (m.blocks[-1].compile(backend="eager"), m)[1],
    ):
        student = compiled(ours())
        with pytest.raises(mkd.UnsupportedModelError, match="before torch\\.compile"):
            mkd.MaskedDistiller(student, ours(), 4)
    student = ours()
    student.head.compile(backend="eager")  # far from attention
    teacher = torch.compile(ours(), backend="eager")
    with mkd.MaskedDistiller(student, teacher, 4, alpha=1.0) as distiller:
        assert distiller(images()).keep.shape == (3, 4)


@pytest.mark.parametrize("pooling", ["avg", "token"])
def test_attention_of_a_class_token_that_classifies_nothing_is_refused(pooling):
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, **TINY, class_token=True, global_pool=pooling
    )
    if pooling == "token":
        with mkd.cls_attention(model) as attention:
            model(images())
        assert attention.scores.shape == (3, 16)
        return
    with pytest.raises(mkd.UnsupportedModelError, match="global_pool = 'avg'"):
        mkd.MaskedDistiller(model, ours(), 4)
    with mkd.MaskedDistiller(model, ours(), 4, selector="saliency", alpha=1.0) as distiller:
        assert distiller(images()).keep.shape == (3, 4)


def test_a_block_called_twice_has_no_one_attention_and_no_row_outlives_its_pass():
    class Looped(mkd.ViT):
        def forward(self, x):
            again = self.blocks(self.patch_embed(x))
            return self.head(self.norm(self.blocks(again)[:, 0]))

    looped = Looped(32, 8, dim=24, depth=2, heads=3, channels=3, classes=5)
    with (
        mkd.cls_attention(looped),
        pytest.raises(mkd.UnsupportedModelError, match="more than once"),
    ):
        looped(images())
    model = ours()
    with mkd.cls_attention(model) as attention:
        model(images())
        first = attention.scores
        model.blocks = nn.Sequential()  # no attention in this pass
        model(images())
        with pytest.raises(RuntimeError, match="no attention yet"):
            _ = attention.scores
    assert first.shape == (3, 16)


def test_attention_is_read_under_checkpointing():
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, **TINY
    ).train()
    with mkd.cls_attention(model) as attention:
        model(images())
        plain = attention.scores
        model.set_grad_checkpointing(True)
        out = model(images().requires_grad_())
        torch.testing.assert_close(attention.scores, plain)
        out.sum().backward()  # runs every block again
        torch.testing.assert_close(attention.scores, plain)


def test_a_keep_set_of_another_batch_is_refused():
    with mkd.token_drop(ours()) as masked, pytest.raises(ValueError, match="expected \\(3, at"):
        masked(images(), torch.zeros(2, 4, dtype=torch.long))


# --- reading attention ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in PREFIX if k != "torchvision"])
def test_the_hooked_row_is_the_explicit_softmax_row(kind, monkeypatch):
    model, x = build(kind), images()
    rows = []

    def explicit(q, k, v, *_, **__):
        weights = softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
        rows.append(weights[:, :, 0])
        return weights @ v

    with torch.no_grad(), mkd.cls_attention(model) as attention:
        plain = model(x)
        found, scores = attention.row, attention.scores
        monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", explicit)
        monkeypatch.setattr(
            "companion.papers.masked_kd.vit.scaled_dot_product_attention", explicit
        )
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, rows[-1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores, rows[-1][..., PREFIX[kind] :].mean(1), rtol=1e-4, atol=1e-6)
    assert attention.prefix == PREFIX[kind]
    assert scores.shape == (3, 16)
    assert scores.std() > 0.1 * scores.mean()  # far from uniform: the comparison means something


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("layer", [0, -1])
def test_the_row_of_torchvisions_attention_is_the_one_it_would_return(mode, layer):
    model, x = build("torchvision"), images()
    getattr(model, mode)()
    inputs = []
    block = model.encoder.layers[layer].self_attention
    block.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad(), mkd.cls_attention(model, layer) as attention:
        model(x)
    _, weights = block(*[inputs[-1]] * 3, need_weights=True, average_attn_weights=False)
    torch.testing.assert_close(attention.row, weights[:, :, 0], rtol=1e-4, atol=1e-6)
    assert attention.scores.std() > 0.1 * attention.scores.mean()


def test_the_attention_is_that_of_the_layer_asked_for():
    model, x = build("ours"), images()
    with mkd.cls_attention(model, 0) as first, mkd.cls_attention(model, 1) as last:
        model(x)
        assert not torch.allclose(first.row, last.row, atol=1e-3)
    with (
        pytest.raises(ValueError, match="layer = 2: ViT has 2 blocks"),
        mkd.cls_attention(model, 2),
    ):
        pass


def test_reading_attention_leaves_the_students_gradients_alone():
    model, x = build("ours"), images()

    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    with mkd.cls_attention(model) as attention:
        watched = gradients()
        assert not attention.scores.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_the_row_is_before_dropout():
    timm = pytest.importorskip("timm")
    vit = timm.models.vision_transformer.VisionTransformer
    model = vit(img_size=32, patch_size=8, **TINY, attn_drop_rate=0.9).train()
    with mkd.cls_attention(model) as attention:
        model(images())
        # only layer 1's input feels layer 0's dropout; the row itself still sums to 1
        torch.testing.assert_close(attention.row.sum(-1), torch.ones(3, 3))


def test_scores_before_a_forward_pass_are_an_error():
    with (
        mkd.cls_attention(ours()) as attention,
        pytest.raises(RuntimeError, match="call the model"),
    ):
        _ = attention.scores


def test_top_k_under_bf16_autocast_equals_that_in_float32():
    q, k = (
        torch.randn(*shape, generator=generator(3)).bfloat16()
        for shape in ((64, 4, 8), (64, 4, 197, 8))
    )
    plain = attentions.cls_row(q.float(), k.float(), 0.1)[..., 1:].mean(1)
    with torch.autocast("cpu", torch.bfloat16):
        row = attentions.cls_row(q, k, 0.1)
    scores = row[..., 1:].mean(1)
    assert scores.dtype == torch.float32
    assert torch.equal(mkd.select_tokens(scores, 98), mkd.select_tokens(plain, 98))
    # a planted fault: computed in bf16, scores tie, and which of them is kept is chance
    coarse = softmax(0.1 * (k @ q[..., None])[..., 0], -1)[..., 1:].mean(1)
    assert max(len(row) - len(row.unique()) for row in coarse) > 50
    assert not torch.equal(mkd.select_tokens(coarse, 98), mkd.select_tokens(plain, 98))


@pytest.mark.parametrize("kind", ["ours", "vit qk-norm", "torchvision"])
def test_attention_is_read_from_a_model_in_bf16_and_under_autocast(kind):
    model, x = build(kind), images()
    with torch.no_grad(), mkd.cls_attention(model) as attention:
        model(x)
        exact = attention.scores
        with torch.autocast("cpu", torch.bfloat16):
            model(x)
        torch.testing.assert_close(attention.scores, exact, atol=0.02, rtol=0)
        model.to(torch.bfloat16)(x.bfloat16())
        assert attention.scores.dtype == torch.float32
        torch.testing.assert_close(attention.scores, exact, atol=0.05, rtol=0)


def test_saliency_is_gradient_times_input_and_leaves_no_gradient():
    class Linear(nn.Module):
        patch_size = 2

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 1, 4, 4))

        def forward(self, x):
            return torch.einsum("bchw,kchw->bk", x, self.weight)

    model = Linear()
    with torch.no_grad():
        model.weight[0, 0, 2:, :2] = 3.0  # the third of four patches
    x = torch.rand(5, 1, 4, 4, generator=generator()) + 0.1
    saliency = mkd.gradient_saliency(model, x)
    expected = 3 * x[:, 0, 2:, :2].mean((1, 2))
    torch.testing.assert_close(saliency, torch.stack([expected * (i == 2) for i in range(4)], 1))
    assert model.weight.grad is None
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(mkd.gradient_saliency(model, x.clone()), saliency)


# --- choosing tokens ------------------------------------------------------------------------


def test_top_and_bottom_are_complements_and_sorted():
    scores = torch.rand(6, 10, generator=generator())
    top, bottom = mkd.select_tokens(scores, 4), mkd.select_tokens(scores, 6, "bottom")
    assert torch.equal(torch.cat([top, bottom], 1).sort(1).values, torch.arange(10).expand(6, -1))
    assert (top.diff(dim=1) > 0).all()
    worst, best = scores.gather(1, top).amin(1), scores.gather(1, bottom).amax(1)
    assert (worst >= best).all()


def test_equal_scores_go_by_their_place():
    assert mkd.select_tokens(torch.zeros(2, 9), 3).tolist() == [[0, 1, 2]] * 2


def test_random_tokens_are_drawn_evenly_and_the_same_for_a_seed():
    blank = torch.zeros(4000, 6)
    first, again = (mkd.select_tokens(blank, 2, "random", generator(4)) for _ in range(2))
    assert torch.equal(first, again)
    share = first.flatten().bincount(minlength=6) / len(blank)
    # binomial with mean 1/3: five deviations
    assert (share - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / len(blank))
    assert (first[:, 0] < first[:, 1]).all()


@pytest.mark.parametrize("k", [0, 17, -1, 2.0, True])
def test_keep_counts_outside_the_patches_are_refused(k):
    with pytest.raises(ValueError, match="expected a whole number, 1 to 16"):
        mkd.select_tokens(torch.rand(2, 16), k)
    with pytest.raises(ValueError, match="expected a whole number, 1 to 16"):
        mkd.MaskedDistiller(ours(), ours(), k)


def test_counts_of_numpy_are_counts():
    scores = torch.rand(2, 16, generator=generator())
    assert torch.equal(mkd.select_tokens(scores, np.int64(4)), mkd.select_tokens(scores, 4))
    with mkd.MaskedDistiller(ours(), ours(), np.int64(4), alpha=1.0) as distiller:
        assert distiller(images()).keep.shape == (3, 4)


@pytest.mark.parametrize("name", ["Ti", "S", "B", "L"])
def test_a_transformer_of_a_named_size_is_timms(name):
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    long = {"Ti": "tiny", "S": "small", "B": "base", "L": "large"}[name]
    with torch.device("meta"):
        made = mkd.ViT.of(name, 32, classes=7)
        theirs = timm.create_model(f"vit_{long}_patch16_224", img_size=32, num_classes=7)
    shapes = [sorted(tuple(p.shape) for p in m.parameters()) for m in (made, theirs)]
    assert shapes[0] == shapes[1]


def test_the_quality_of_a_mask_is_agreement_and_recall():
    """Beside what the parts give one by one; patches, masks and a teacher of another size."""
    student, teacher, x = build("ours", 1), build("ours", 2), images(12)
    student.train()
    truth = torch.rand(12, 32, 32, generator=generator(3)) > 0.995
    truth[4] = False  # nothing to be found there
    found = mkd.mask_quality(student, teacher, x, 5, truth=truth)
    keep = mkd.select_tokens(mkd.student_scores(student, x), 5)
    with torch.no_grad(), mkd.token_drop(teacher) as masked:
        agree = (masked(x, keep).argmax(1) == teacher(x).argmax(1)).float().mean()
    patches = mkd.patch_truth(truth, 8)
    recall = mkd.mask_recall(keep, patches)
    assert recall[4].isnan()
    assert found["agreement"] == pytest.approx(agree.item())
    assert 0 < found["agreement"] < 1
    assert found["recall"] == pytest.approx(recall[~recall.isnan()].mean().item())
    assert student.training
    assert mkd.mask_quality(student, teacher, x, 5, truth=patches) == found
    assert math.isnan(mkd.mask_quality(student, teacher, x, 5)["recall"])
    whole = mkd.mask_quality(student, teacher, x, 16, truth=truth)
    assert whole == {"agreement": 1.0, "recall": 1.0}
    large = mkd.ViT(48, 6, dim=24, depth=1, heads=3, channels=3, classes=5)
    wide = torch.ones(12, 48, 48, dtype=torch.bool)
    seen = mkd.mask_quality(student, large, x, 16, truth=wide, teacher_images=images(12, 48))
    assert seen["recall"] == pytest.approx(16 / 64)
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


def test_the_truth_lies_on_the_patches_of_a_model_that_fills_images_up():
    """Images of 30 by 20 pixels are 2 by 2 patches of 16, not patches of 15 by 10."""
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    torch.manual_seed(0)
    student, teacher = (
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=1, num_classes=3, dynamic_img_size=True,
            dynamic_img_pad=True,
        ).eval()
        for _ in range(2)
    )  # fmt: skip
    x = torch.rand(2, 3, 30, 20, generator=generator(1))
    truth = torch.zeros(2, 30, 20, dtype=torch.bool)
    truth[:, 15, 15] = True  # in the first patch of each image
    patches = torch.tensor([[True, False, False, False]] * 2)
    for keep in (1, 2, 3):
        expected = mkd.mask_quality(student, teacher, x, keep, truth=patches)
        assert mkd.mask_quality(student, teacher, x, keep, truth=truth) == expected
    kept = mkd.select_tokens(mkd.student_scores(student, x), 3)
    assert expected["recall"] == mkd.mask_recall(kept, patches).mean()


def test_a_teacher_of_any_size_keeps_as_many_patches_as_the_images_have():
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    student, teacher = (
        timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, **TINY, dynamic_img_size=True
        )
        for _ in range(2)
    )
    x = torch.rand(2, 3, 48, 64, generator=generator())  # 48 patches, where 32 x 32 have 16
    with mkd.MaskedDistiller(student, teacher, 24, alpha=1.0) as distiller:
        assert distiller(x).keep.shape == (2, 24)
        with pytest.raises(ValueError, match="keep = 24: expected a whole number, 1 to 16"):
            distiller(images())
        assert distiller.step == 1


def test_models_that_drop_patches_themselves_are_refused_where_that_matters():
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    size = {"img_size": 32, "patch_size": 8, "patch_drop_rate": 0.5}
    student = timm.models.vision_transformer.VisionTransformer(**size, **TINY).train()
    for selector in ("student", "bottom"):
        with mkd.MaskedDistiller(student, ours(), 4, alpha=1.0, selector=selector) as distiller:
            with pytest.raises(mkd.UnsupportedModelError, match=r"patch_drop_rate = 0\.5"):
                distiller(images())
            student.eval()
            assert distiller(images()).keep.shape == (3, 4)
            student.train()
    for pair in ((student, ours(), "random"), (ours(), student, "student")):
        with mkd.MaskedDistiller(*pair[:2], 4, alpha=1.0, selector=pair[2]) as distiller:
            assert distiller(images()).keep.shape == (3, 4)
    eva = timm.models.eva.Eva(**size, **TINY)
    with pytest.raises(mkd.UnsupportedModelError, match="Eva has no known place to drop tokens"):
        mkd.MaskedDistiller(ours(), eva, 4)


def test_a_bar_is_shown_only_where_it_is_asked_for(capsys):
    x, y = images(8), torch.zeros(8).long()
    data = experiment.LabelledImages(x, y, x, y)
    with mkd.MaskedDistiller(ours(), ours(), 4) as distiller:
        for progress in (False, True):
            experiment.train_teacher(
                ours(), data, 2, generator=generator(), batch_size=4, progress=progress
            )
            mkd.distil(distiller, data, 2, generator=generator(), batch_size=4, progress=progress)
            timing.teacher_cost(ours(), x, [16], rounds=1, progress=progress)
            said = "".join(capsys.readouterr())
            for what in ("steps of the teacher", "steps of a student", "timed calls"):
                assert (what in said) is progress


def test_scores_are_ranked_as_precisely_as_they_are_given():
    scores = 1 + 1e-12 * torch.tensor([[0.0, 3.0, 1.0, 2.0]], dtype=torch.float64)
    assert mkd.select_tokens(scores, 2).tolist() == [[1, 3]]
    assert mkd.select_tokens(scores, 2, "bottom").tolist() == [[0, 2]]
    large = 2**40 + torch.tensor([[0, 3, 1, 2]])
    assert mkd.select_tokens(large, 2).tolist() == [[1, 3]]


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        mkd.select_tokens(torch.full((1, 4), math.nan), 2)


def test_resized_scores_keep_their_place():
    scores = torch.zeros(1, 36)
    scores[0, 1 * 6 + 4] = 1.0  # row 1, column 4 of 6 x 6
    assert mkd.resize_scores(scores, (6, 6), (6, 6)) is scores
    larger = mkd.resize_scores(scores, (6, 6), (12, 12)).view(12, 12)
    best = mkd.select_tokens(larger.view(1, -1), 4)[0]
    assert {(i // 12 // 2, i % 12 // 2) for i in best.tolist()} == {(1, 4)}
    smaller = mkd.resize_scores(scores, (6, 6), (3, 3))
    assert smaller.argmax().item() == 0 * 3 + 2
    some = torch.rand(2, 36, generator=generator())
    maps = some.view(2, 1, 6, 6)
    exact = torch.nn.functional.interpolate(maps, (3, 3), mode="bilinear", antialias=True)
    assert torch.equal(mkd.resize_scores(some, (6, 6), (3, 3)), exact.flatten(1))
    constant = mkd.resize_scores(torch.full((2, 36), 0.3), (6, 6), (4, 4))
    torch.testing.assert_close(constant, torch.full((2, 16), 0.3))


def test_grids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="different shapes"):
        mkd.resize_scores(torch.rand(1, 36), (6, 6), (6, 12))
    with pytest.raises(ValueError, match="do not fill a grid of 5 x 5"):
        mkd.resize_scores(torch.rand(1, 36), (5, 5), (6, 6))


def test_recall_counts_patches_that_hold_a_pixel():
    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[0, 0:4, 2:6] = True  # patches 0 and 1 of 2 x 2
    mask[1, 5, 5] = True  # patch 3
    truth = mkd.patch_truth(mask, 4)
    assert truth.tolist() == [[True, True, False, False], [False, False, False, True]]
    keep = torch.tensor([[1, 3], [0, 1]])
    assert mkd.mask_recall(keep, truth).tolist() == [0.5, 0.0]


# --- the loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_the_loss_of_float64_is_float64_and_has_its_gradient(kind):
    torch.manual_seed(0)
    z, t = torch.randn(2, 3, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 3])

    def loss(z):
        return mkd.distillation_loss(z, t, y, kind=kind, alpha=0.5)

    assert loss(z).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, z.requires_grad_())
    assert mkd.distillation_loss(z.half(), t.half(), y, kind=kind).dtype == torch.float32


@pytest.mark.parametrize(("tau", "expected"), [(1.0, 0.13081), (2.0, 0.14536)])
def test_the_loss_of_a_student_that_knows_nothing(tau, expected):
    z, t = torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]])
    loss = mkd.distillation_loss(z, t, alpha=1.0, tau=tau)
    assert loss.item() == pytest.approx(expected, abs=5e-6)


def test_the_loss_is_its_formula_averaged_over_the_batch():
    z, t = (torch.randn(7, 5, generator=generator(i), dtype=torch.float64) for i in (1, 2))
    y = torch.arange(7) % 5
    p, q = softmax(t / 3, 1), log_softmax(z / 3, 1)
    kl = (p * (p.log() - q)).sum() / 7
    expected = 0.3 * cross_entropy(z, y) + 0.7 * 9 * kl
    loss = mkd.distillation_loss(z, t, y, alpha=0.7, tau=3.0)
    torch.testing.assert_close(loss, expected)
    # a planted fault: averaged over classes as well, the teacher's part shrinks by their number
    shrunk = nn.functional.kl_div(q, p, reduction="none").mean()
    torch.testing.assert_close(5 * shrunk, kl)
    twice = mkd.distillation_loss(z.repeat(2, 1), t.repeat(2, 1), y.repeat(2), 0.7, 3.0)
    torch.testing.assert_close(twice, loss)


@pytest.mark.parametrize("theirs", [0.5, -math.inf])
def test_a_class_that_the_teacher_rules_out_adds_nothing(theirs):
    z = torch.tensor([[1.0, 2.0, theirs]], requires_grad=True)
    t = torch.tensor([[1.0, 0.0, -math.inf]])
    p, q = softmax(t, 1), softmax(z.detach(), 1)
    by_hand = (p * (p / q).log())[0, :2].sum()
    loss = mkd.distillation_loss(z, t, alpha=1.0)
    loss.backward()
    torch.testing.assert_close(loss.detach(), by_hand)
    torch.testing.assert_close(z.grad, q - p)
    found = experiment.metrics(z.detach(), torch.tensor([0]), t)
    assert found["KL"] == pytest.approx(by_hand.item())
    assert mkd.distillation_loss(z, torch.full_like(t, -math.inf), alpha=1.0).isnan()


def test_hard_distillation_is_cross_entropy_to_the_teachers_answer():
    z, t = (torch.randn(7, 5, generator=generator(i)) for i in (1, 2))
    loss = mkd.distillation_loss(z, t, None, alpha=1.0, kind="hard")
    torch.testing.assert_close(loss, cross_entropy(z, t.argmax(1)))


def test_labels_may_be_mixed_and_of_any_integer_type():
    z, t = (torch.randn(4, 3, generator=generator(i)) for i in (1, 2))
    y = torch.tensor([0, 1, 2, 0])
    mixed, loss = nn.functional.one_hot(y, 3).float(), mkd.distillation_loss(z, t, y)
    torch.testing.assert_close(loss, mkd.distillation_loss(z, t, mixed))
    for kind in (torch.int32, torch.uint8):
        assert torch.equal(mkd.distillation_loss(z, t, y.to(kind)), loss)
    # of unlabelled images, where no label counts
    assert mkd.distillation_loss(z, t, y - 9, 1.0) == mkd.distillation_loss(z, t, alpha=1.0)


LABELS = {
    "negative": (torch.tensor([-100, 1, 2]), "y: class -100, expected 0 to 4"),
    "all negative": (torch.full((3,), -1), "y: class -1, expected 0 to 4"),
    "too large": (torch.tensor([0, 5, 1]), "y: class 5, expected 0 to 4"),
    "fractions": (torch.zeros(3), r"y: torch\.float32, expected integer class indices"),
    "bool": (torch.zeros(3).bool(), r"y: torch\.bool, expected integer class indices"),
    "one-hot": (torch.eye(5).long()[:3], r"y: torch\.int64, expected floating-point"),
    "list": ([0, 1, 2], "y: list, expected a tensor of labels"),
    "too few": (torch.zeros(2).long(), r"y: shape \(2,\), expected \(3,\) class indices"),
}


@pytest.mark.parametrize(("y", "told"), LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("kind", ["ours", "distilled"])
def test_labels_of_no_class_are_named(kind, y, told):
    student = build(kind).train()
    if kind == "distilled":
        student.set_distilled_training(True)
    with (
        mkd.MaskedDistiller(student, ours(), 4) as distiller,
        pytest.raises(ValueError, match=told),
    ):
        distiller(images(), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, "alpha = 1.5: expected 0 to 1"),
        ({"tau": 0.0}, "tau = 0.0: expected a number above 0"),
        ({"kind": "none"}, "kind = 'none': expected one of 'soft', 'hard'"),
        ({"y": None}, "y: labels are needed with alpha = 0.5"),
        ({"t": torch.zeros(2, 4)}, "must have the same classes"),
    ],
)
def test_what_the_loss_cannot_use_is_named(arguments, message):
    good = {"z": torch.zeros(2, 3), "t": torch.zeros(2, 3), "y": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        mkd.distillation_loss(**(good | arguments))


# --- distilling -----------------------------------------------------------------------------


@everywhere
def test_the_teacher_gets_no_gradient_and_keeps_its_mode(kind):
    student, teacher = build("ours", 1), build(kind).train()
    student.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with mkd.MaskedDistiller(student, teacher, keep=5) as distiller:
        step = distiller(images(), torch.tensor([0, 1, 2]))
        step.loss.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert teacher.training
    assert all(torch.equal(before[name], v) for name, v in teacher.state_dict().items())
    assert step.keep.shape == (3, 5)
    assert not step.teacher_logits.requires_grad


@everywhere
def test_the_teacher_sees_what_the_student_attends_to(kind):
    student, teacher, x = build(kind, 1), build("ours"), images()
    with mkd.MaskedDistiller(student, teacher, keep=5, alpha=1.0) as distiller:
        step = distiller(x)
    keep = mkd.select_tokens(mkd.student_scores(student, x), 5)
    assert torch.equal(step.keep, keep)
    with torch.no_grad(), mkd.token_drop(teacher) as masked:
        torch.testing.assert_close(step.teacher_logits, masked(x, keep))
    expected = mkd.distillation_loss(student(x), step.teacher_logits, alpha=1.0)
    torch.testing.assert_close(step.loss, expected)


def test_every_selector_chooses_what_it_says():
    student, teacher, x = build("ours", 1), build("ours", 2), images()

    def keep(selector, **options):
        options.setdefault("generator", generator(5))
        with mkd.MaskedDistiller(
            student, teacher, 5, alpha=1.0, selector=selector, **options
        ) as d:
            return d(x).keep

    scores = mkd.student_scores(student, x)
    assert keep("full") is None
    assert torch.equal(keep("student"), mkd.select_tokens(scores, 5))
    assert torch.equal(keep("bottom"), mkd.select_tokens(scores, 5, "bottom"))
    by_teacher = mkd.select_tokens(mkd.student_scores(teacher, x), 5)
    assert torch.equal(keep("teacher"), by_teacher)
    by_saliency = mkd.select_tokens(mkd.gradient_saliency(student, x), 5)
    assert torch.equal(keep("saliency"), by_saliency)
    chance = mkd.select_tokens(torch.zeros(3, 16), 5, "random", generator(5))
    assert torch.equal(keep("random"), chance)
    found = {str(keep(s)) for s in ("student", "bottom", "teacher", "saliency", "random")}
    assert len(found) == 5


def test_a_distilled_student_in_training_learns_from_labels_and_teacher_apart():
    student, teacher, x = build("distilled", 1).train(), build("ours"), images()
    student.set_distilled_training(True)
    y = torch.tensor([0, 1, 2])
    with mkd.MaskedDistiller(student, teacher, 5, alpha=0.3) as distiller:
        step = distiller(x, y)
    own, taught = student(x)
    expected = 0.7 * cross_entropy(own, y) + 0.3 * mkd.distillation_loss(
        taught, step.teacher_logits, alpha=1.0
    )
    torch.testing.assert_close(step.loss, expected)
    with (
        mkd.MaskedDistiller(student, teacher, 5, alpha=0.3) as distiller,
        pytest.raises(ValueError, match="y: labels are needed with alpha"),
    ):
        distiller(x)


def test_a_teacher_of_higher_resolution_gets_resized_scores_and_its_own_pictures():
    student = build("ours", 1)
    torch.manual_seed(3)
    teacher = mkd.ViT(48, 6, dim=24, depth=1, heads=3, channels=3, classes=5)
    small, large = images(), images(side=48)
    with mkd.MaskedDistiller(student, teacher, keep=20, alpha=1.0) as distiller:
        step = distiller(small, teacher_images=large)
        scores = mkd.student_scores(student, small)
        expected = mkd.select_tokens(mkd.resize_scores(scores, (4, 4), (8, 8)), 20)
        assert torch.equal(step.keep, expected)
        with pytest.raises(ValueError, match="pass them in its own resolution as teacher_images"):
            distiller(small)


def test_unmasked_steps_before_the_mask():
    with mkd.MaskedDistiller(ours(), ours(), 4, alpha=1.0, warmup=2) as distiller:
        masked = [distiller(images()).keep is not None for _ in range(4)]
    assert masked == [False, False, True, True]


@pytest.mark.parametrize(("agree", "masks"), [(7, False), (8, True), (9, True)])
def test_the_guard_holds_agreement_to_its_threshold(agree, masks):
    guard = mkd.CollapseGuard(images(10), threshold=0.8)
    whole = torch.eye(5)[torch.arange(10) % 5]
    part = torch.cat([whole[:agree], whole[agree:].roll(1, 1)])  # another answer to the others
    with mkd.MaskedDistiller(ours(), ours(), 4, guard=guard, alpha=1.0) as distiller:
        distiller._teach = lambda images, keep: whole if keep is None else part
        distiller._look()
        assert distiller.masking is masks
    assert guard.log == [(0, pytest.approx(agree / 10))]


def test_the_guard_masks_only_while_the_masked_teacher_agrees():
    class ByFirstPatch(mkd.ViT):
        """Answers 1 if the sequence's second token is the brightest patch, else 0."""

        def forward(self, x):
            tokens = self.patch_drop(torch.cat([torch.zeros(len(x), 1, 1), x.flatten(2).mT], 1))
            seen = tokens[:, 1:, 0].amax(1)
            return torch.stack([torch.zeros_like(seen), seen - 0.5], 1)

    class Looks(nn.Module):
        """A student of one layer whose attention is set by hand."""

        num_prefix_tokens = 1
        cls_token = torch.zeros(1)
        patch_size = 1

        def __init__(self):
            super().__init__()
            block = nn.Module()
            block.attn = mkd.ViT(4, 1, dim=8, depth=1, heads=1).blocks[0].attn
            self.blocks = nn.Sequential(block)
            self.head = nn.Linear(1, 2)
            self.at = 0

        def forward(self, x):
            tokens = torch.zeros(len(x), 17, 8)
            with torch.no_grad():
                attention = self.blocks[0].attn
                attention.qkv.weight.zero_(), attention.qkv.bias.zero_()
                attention.qkv.bias[0] = 1.0  # the query
                attention.qkv.weight[8, 0] = 50.0  # the key
            tokens[:, 1 + self.at, 0] = 1.0
            self.blocks[0].attn(tokens)
            return self.head(x.mean((1, 2, 3))[:, None])

    probe = torch.zeros(10, 1, 4, 4)
    probe[:, 0, 0, 0] = 1.0  # what matters is the first patch
    student, teacher = Looks(), ByFirstPatch(4, 1, dim=8, depth=1, classes=2)
    student.at = 7
    guard = mkd.CollapseGuard(probe, threshold=0.8, every=3)
    masked = []
    with mkd.MaskedDistiller(student, teacher, 1, alpha=1.0, guard=guard) as distiller:
        for step in range(9):
            if step == 4:  # seen at the next look, before step 6
                student.at = 0
            masked.append(distiller(probe).keep is not None)
    assert guard.log == [(0, 0.0), (3, 0.0), (6, 1.0)]
    assert masked == [False] * 6 + [True] * 3


def test_the_guard_shows_a_teacher_of_higher_resolution_its_own_pictures():
    student = build("ours", 1)
    torch.manual_seed(3)
    teacher = mkd.ViT(48, 6, dim=24, depth=1, heads=3, channels=3, classes=5)
    small, large = images(8), images(8, 48)
    guard = mkd.CollapseGuard(small, teacher_images=large)
    with mkd.MaskedDistiller(student, teacher, 20, alpha=1.0, guard=guard) as distiller:
        distiller(small, teacher_images=large)
    quality = mkd.mask_quality(student, teacher, small, 20, teacher_images=large)
    assert guard.log == [(0, quality["agreement"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selector": "best"}, "selector = 'best': expected one of 'full', 'student'"),
        ({"warmup": -1}, "warmup = -1: expected a whole number, at least 0"),
        (
            {"selector": "full", "guard": mkd.CollapseGuard(images())},
            "guard: expected None with selector = 'full'",
        ),
        ({"alpha": -0.1}, "alpha = -0.1: expected 0 to 1"),
        ({"amp": "bf16"}, "amp = 'bf16': expected one of None, torch.bfloat16, torch.float16"),
        ({"amp": True}, "amp = True: expected one of None"),
        ({"teacher": nn.Linear(2, 2)}, "Linear has no known place to drop tokens"),
        ({"student": nn.Linear(2, 2)}, "Linear has no known attention blocks"),
    ],
)
def test_a_distiller_refuses_what_it_cannot_use_at_once(arguments, message):
    good = {"student": ours(), "teacher": ours(), "keep": 4}
    with pytest.raises(ValueError, match=message):
        mkd.MaskedDistiller(**(good | arguments))


def test_an_outer_autocast_stays_on_without_one_of_its_own():
    student, teacher, x = build("ours", 1), build("ours"), images()
    seen = []
    student.head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    teacher.head.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    for amp in (None, torch.float16):
        with (
            torch.autocast("cpu", torch.bfloat16),
            mkd.MaskedDistiller(
                student, teacher, 4, amp=amp, alpha=1.0, guard=mkd.CollapseGuard(x)
            ) as distiller,
        ):
            step = distiller(x)
        step.loss.backward()
        assert set(seen) == {amp or torch.bfloat16}
        assert step.loss.dtype == torch.float32
        assert all(p.grad is not None for p in student.parameters())
        seen.clear()


def test_steps_under_one_outer_autocast_learn_as_those_under_an_own_one():
    first, teacher, x = build("ours", 1), build("ours"), images()

    def learnt(outer, amp):
        student = copy.deepcopy(first)
        optimizer = torch.optim.SGD(student.parameters(), 0.5)
        with outer, mkd.MaskedDistiller(student, teacher, 4, amp=amp, alpha=1.0) as distiller:
            for _ in range(3):
                optimizer.zero_grad()
                distiller(x).loss.backward()
                optimizer.step()
        return student

    ours = learnt(torch.autocast("cpu", torch.bfloat16), None)
    theirs = learnt(contextlib.nullcontext(), torch.bfloat16)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fields", [{"threshold": 1.2}, {"every": 0}])
def test_a_guard_refuses_what_it_cannot_use(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        mkd.CollapseGuard(images(), **fields)


def test_a_model_without_cls_is_told_of_saliency():
    timm = pytest.importorskip("timm")
    vit = timm.models.vision_transformer.VisionTransformer
    model = vit(img_size=32, patch_size=8, **TINY, class_token=False, global_pool="avg")
    with pytest.raises(mkd.UnsupportedModelError, match=r'no CLS token.*selector="saliency"'):
        mkd.MaskedDistiller(model, ours(), 4)
    with mkd.MaskedDistiller(model, ours(), 4, alpha=1.0, selector="saliency") as distiller:
        assert distiller(images()).keep.shape == (3, 4)


def test_attention_with_relative_positions_is_refused():
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_relpos_small_patch16_224", img_size=32, depth=1, class_token=True
    )
    with pytest.raises(mkd.UnsupportedModelError), mkd.cls_attention(model):
        pass


def test_the_room_does_not_import_timm(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "timm":
            raise ImportError("no timm here")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with mkd.MaskedDistiller(ours(), ours(), 4, alpha=1.0) as distiller:
        distiller(images())


# --- cost -----------------------------------------------------------------------------------

TABLE = {  # GMAC at 196, 147, 98 and 49 patches
    "Ti": (1.2537, 0.9157, 0.5998, 0.3060),
    "S": (4.5989, 3.4026, 2.2506, 1.1429),
    "B": (17.5638, 13.0904, 8.7056, 4.4092),
}


def paper_size(name, **changes):
    size = mkd.SIZES[name]
    fields = {"dim": size.dim, "depth": size.depth, "heads": size.heads} | changes
    with torch.device("meta"):
        return mkd.ViT(224, 16, channels=3, classes=1000, mlp_ratio=size.mlp_ratio, **fields)


@pytest.mark.parametrize("name", TABLE)
def test_the_formula_gives_the_tables_costs(name):
    size = mkd.SIZES[name]
    for keep, expected in zip((196, 147, 98, 49), TABLE[name], strict=True):
        assert mkd.vit_macs(size.dim, size.depth, keep=keep) == pytest.approx(
            1e9 * expected, abs=5e4 + 1
        )


@pytest.mark.parametrize("keep", [196, 49])
@pytest.mark.parametrize("name", TABLE)
def test_counting_agrees_with_the_formula_exactly(name, keep):
    model, size = paper_size(name), mkd.SIZES[name]
    x = torch.empty(2, 3, 224, 224, device="meta")
    chosen = torch.zeros(2, keep, dtype=torch.long, device="meta")
    with mkd.token_drop(model) as masked:
        counted = mkd.count_macs(lambda images: masked(images, chosen), x)
    assert counted == mkd.vit_macs(size.dim, size.depth, keep=keep)


def test_counting_agrees_on_timms_model():
    model, x = build("vit"), images(2)
    expected = mkd.vit_macs(24, 2, patches=16, patch=8, classes=5)
    assert mkd.count_macs(model, x) == expected


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", ["torchvision", "cait"])
def test_counting_is_the_same_without_gradients(kind, frozen):
    from torchvision.models import VisionTransformer

    if kind == "cait":
        model = build(kind)
        expected = mkd.count_macs(model, images(2))
    else:  # an even number of heads: PyTorch has a fast path for it
        model = VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10).eval()
        expected = mkd.vit_macs(64, 2, patches=16, patch=8, mlp_ratio=2, classes=10)
    model.requires_grad_(not frozen)
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            assert mkd.count_macs(model, images(2)) == expected


def test_counting_leaves_statistics_and_the_mode_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5))
    assert mkd.count_macs(model, images(2)) > 0
    assert model.training
    assert not model[1].running_mean.any()
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize("before", [False, True])
def test_counting_leaves_the_fast_path_as_it_was(before):
    switch = torch.backends.mha
    kept = switch.get_fastpath_enabled()

    def broken(_):
        assert not switch.get_fastpath_enabled()
        raise ZeroDivisionError

    try:
        switch.set_fastpath_enabled(before)
        mkd.count_macs(from_torchvision(), images(1))
        assert switch.get_fastpath_enabled() is before
        with pytest.raises(ZeroDivisionError):
            mkd.count_macs(broken, images(1))
        assert switch.get_fastpath_enabled() is before
    finally:
        switch.set_fastpath_enabled(kept)


def test_a_counter_beside_the_fused_kernel_misses_attention():
    from torch.utils.flop_counter import FlopCounterMode

    model, x = ours(), images(2)
    with FlopCounterMode(display=False) as counter:
        model(x)
    attention = 2 * 2 * 17**2 * 24  # blocks x (scores and their use)
    missed = mkd.count_macs(model, x) - counter.get_total_flops() // 4
    assert missed in (0, attention)  # 0 once PyTorch counts its fused CPU kernel
    formula = mkd.vit_macs(24, 2, patches=16, patch=8, classes=5, mlp_ratio=2)
    assert mkd.count_macs(model, x) == formula


def test_half_the_tokens_of_b_save_a_small_student_28_percent():
    def cost(name, keep=196):
        return mkd.vit_macs(mkd.SIZES[name].dim, mkd.SIZES[name].depth, keep=keep)

    for teacher, student, saving in (("S", "Ti", 28.1), ("B", "S", 28.2), ("B", "Ti", 41.5)):
        found = mkd.training_saving(cost(student), cost(teacher), cost(teacher, 98))
        assert 100 * found == pytest.approx(saving, abs=0.05)


# --- the experiment -------------------------------------------------------------------------


def marked(count, seed):
    """Pictures with one bright patch of 4 x 4 among noise; its pattern, not its place, is the class."""
    draw = generator(seed)
    place = torch.randint(9, (count,), generator=draw)
    y = torch.randint(3, (count,), generator=draw)
    patches = 0.2 * torch.rand(count, 9, 16, generator=draw)
    patches[torch.arange(count), place, :15] += torch.eye(3).repeat_interleave(5, 1)[y]
    return patches.view(count, 3, 3, 4, 4).transpose(2, 3).reshape(count, 1, 12, 12), y


def test_a_student_learns_from_a_masked_teacher_without_labels():
    (train_x, train_y), (test_x, test_y) = marked(512, 0), marked(200, 1)
    pictures = experiment.LabelledImages(train_x, train_y, test_x, test_y)
    torch.manual_seed(0)
    teacher = mkd.ViT(12, 4, dim=16, depth=2, heads=2, classes=3)
    experiment.train_teacher(teacher, pictures, 80, generator=generator(), batch_size=64, lr=1e-2)
    taught, labels = experiment.predict(teacher, pictures)
    assert experiment.accuracy(taught, labels) > 0.95
    student = mkd.ViT(12, 4, dim=16, depth=1, heads=2, classes=3)
    with mkd.MaskedDistiller(student, teacher, 5, alpha=1.0, warmup=20) as distiller:
        run = mkd.distil(
            distiller, pictures, 100, generator=generator(1), batch_size=64, lr=1e-2,
            monitor=lambda model: model.training, monitor_every=40,
        )  # fmt: skip
    assert [done for done, _ in run.checks] == [0, 40, 80, 100]
    assert not any(training for _, training in run.checks)
    assert run.masked == [False] * 20 + [True] * 80
    found = experiment.metrics(*experiment.predict(student, pictures), taught)
    assert found["accuracy"] > 0.9
    exact = experiment.metrics(taught, labels, taught)
    assert exact["KL"] == pytest.approx(0, abs=1e-6)
    masked, keep = experiment.predict_masked(teacher, pictures, 9, student=student)
    torch.testing.assert_close(masked, taught, rtol=1e-4, atol=1e-4)
    assert keep.shape == (200, 9)


def test_a_loss_that_is_lost_ends_the_training_within_a_hundred_steps():
    x, y = marked(8, 0)
    pictures, student = experiment.LabelledImages(x * math.nan, y, x, y), mkd.ViT(12, 4, dim=8)
    passes = []
    student.register_forward_hook(lambda *_: passes.append(1))
    options = {"generator": generator(), "batch_size": 2}
    with pytest.raises(DivergenceError, match="teacher is not finite by step 100: lower lr"):
        experiment.train_teacher(student, pictures, 300, **options)
    assert len(passes) == 100
    with (
        mkd.MaskedDistiller(student, mkd.ViT(12, 4, dim=8), 9, selector="full") as distiller,
        pytest.raises(DivergenceError, match="distillation is not finite by step 100: lower lr"),
    ):
        mkd.distil(distiller, pictures, 300, **options)
    assert len(passes) == 200


def write_folder(folder):
    """A few plain pictures of two classes, as torchvision's ImageFolder wants them."""
    from PIL import Image

    for part, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                shade = (40 * i, 200 if name == "cat" else 20, 90)
                Image.new("RGB", (40 + i, 36), shade).save(folder / part / name / f"{i}.png")


def test_a_folder_of_pictures_and_any_two_models_are_enough(tmp_path):
    write_folder(tmp_path)
    folder = experiment.Folder(tmp_path, 32, workers=0)
    assert folder.classes == ["cat", "dog"]
    student, teacher = build("vit"), build("distilled", 1)
    with mkd.MaskedDistiller(student, teacher, 8) as distiller:
        run = mkd.distil(distiller, folder, 3, generator=generator(), batch_size=4)
    assert len(run.loss) == 3
    logits, labels = experiment.predict(student, folder)
    assert logits.shape == (4, 5)
    assert labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="batch_size = 9: there are 8"):
        next(folder.batches(9, generator()))


def test_classes_that_one_part_lacks_are_named(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "cow")
    with pytest.raises(
        ValueError, match=r"data_root = .*: \['cat'\] in train/ only, \['cow'\] in"
    ):
        experiment.Folder(tmp_path)
    shutil.rmtree(tmp_path / "val" / "cow")
    with pytest.raises(ValueError, match=r"\['cat'\] in train/ only, \[\] in val/ only"):
        experiment.Folder(tmp_path)


def test_a_folder_without_pictures_says_what_is_expected(tmp_path):
    with pytest.raises(MissingDataError, match="expected train/ with one subfolder"):
        experiment.Folder(tmp_path)


def test_a_model_of_timm_is_made_by_name():
    pytest.importorskip("timm")
    model = vit.named_model("vit_tiny_patch16_224", 7, 32)
    assert model(images(1)).shape == (1, 7)
    with pytest.raises(
        ValueError, match=r"'vit_tinny_patch16_224': timm has no such model.*vit_tiny"
    ):
        vit.named_model("vit_tinny_patch16_224", 7, 32)


def test_without_timm_a_model_by_name_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="'deit_tiny_patch16_224' is one of timm's: install it"):
        vit.named_model("deit_tiny_patch16_224", 10)


def test_calls_are_timed_in_turns_after_one_that_does_not_count():
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "ab"}
    found = timing.timed_in_turns(calls, torch.device("cpu"), rounds=3)
    assert log == list("ab") * 4
    assert all(set(row) == {"ms"} and row["ms"] >= 0 for row in found.values())


@pytest.mark.parametrize("kind", ["ours", "torchvision"])
def test_random_patches_of_any_teacher(kind):
    teacher, x = build(kind), images(5)
    pictures = experiment.LabelledImages(x, torch.zeros(5).long(), x, torch.zeros(5).long())
    out, keep = experiment.predict_masked(teacher, pictures, 6, "random", generator=generator(3))
    assert keep.shape == (5, 6)
    with torch.no_grad(), mkd.token_drop(teacher) as masked:
        torch.testing.assert_close(out, masked(x, keep))
    with pytest.raises(ValueError, match="student = None: mode = 'top'"):
        experiment.predict_masked(teacher, pictures, 6)


def test_a_student_of_another_grid_chooses_the_teachers_patches():
    student = mkd.ViT(32, 16, dim=24, depth=2, heads=3, channels=3, classes=5)
    x = images(5)
    pictures = experiment.LabelledImages(x, torch.zeros(5).long(), x, torch.zeros(5).long())
    _, keep = experiment.predict_masked(ours(), pictures, 6, student=student)
    scores = mkd.student_scores(student, x)
    assert torch.equal(keep, mkd.select_tokens(mkd.resize_scores(scores, (2, 2), (4, 4)), 6))


def test_scores_found_once_choose_the_same_patches_in_every_batch():
    student = mkd.ViT(32, 16, dim=24, depth=2, heads=3, channels=3, classes=5)
    x = images(501)  # of more than one batch
    pictures = experiment.LabelledImages(x, torch.zeros(501).long(), x, torch.zeros(501).long())
    teacher = ours()
    scores = experiment.scores_of_all(student, teacher, pictures)
    for keep, mode in ((3, "top"), (6, "top"), (6, "bottom")):
        once = experiment.predict_masked(teacher, pictures, keep, mode, scores=scores)
        again = experiment.predict_masked(teacher, pictures, keep, mode, student=student)
        assert all(map(torch.equal, once, again))


def test_an_output_that_is_not_finite_is_a_mistake():
    logits = torch.tensor([[math.inf, 0.0], [math.nan, 0.0], [0.0, -math.inf], [2.0, 1.0]])
    assert logits.argmax(1).tolist() == [0] * 4
    assert experiment.accuracy(logits, torch.zeros(4).long()) == 0.25


def test_the_divergence_is_from_the_teacher_to_the_student():
    student = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    teacher = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    got = experiment.metrics(student.log() + 3, torch.tensor([0, 0]), teacher.log() - 1)
    by_hand = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    by_hand += 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert got["KL"] == pytest.approx(by_hand / 2, rel=1e-5)  # the other way round 0.32, not 0.26
    assert got["NLL"] == pytest.approx(-(math.log(0.5) + math.log(0.25)) / 2, rel=1e-5)
    assert got["accuracy"] == 0.5


def test_updates_of_all_parameters_together_are_those_of_each_alone():
    model, twin = ours(), ours()
    twin.load_state_dict(model.state_dict())
    together, _ = experiment._optimiser(model, 20, 1e-2, 0.05)
    alone = torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=0.05, foreach=False)
    assert together.param_groups[0]["foreach"]
    for name in ("lr", "betas"):  # the schedule sets both
        alone.param_groups[0][name] = together.param_groups[0][name]
    for _ in range(5):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        together.step()
        alone.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_the_cost_of_a_teacher_is_that_of_its_own_patches(monkeypatch):
    lengths = []
    teacher, x = ours().eval(), images(2)
    teacher.blocks.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    timing.teacher_cost(teacher, x, [16, 15, 4], rounds=1)
    assert lengths[:3] == [17, 16, 5]
    student = ours()
    for cost in (
        lambda keeps, **k: timing.teacher_cost(teacher, x, keeps, rounds=1, **k),
        lambda keeps, **k: timing.step_cost(
            student, teacher, x, torch.zeros(2).long(), keeps, rounds=1, **k
        ),
    ):
        for tokens in (15, 17, 196):
            with pytest.raises(ValueError, match=f"tokens = {tokens}: the teacher .* 16"):
                cost([15], tokens=tokens)
        for keeps, message in (([17], "keep = 17"), ([0], "keep = 0"), ([], "keeps = ")):
            with pytest.raises(ValueError, match=message):
                cost(keeps)


def test_costs_are_measured_at_every_keep_count():
    student, teacher, x = build("ours", 1), build("ours"), images(4)
    found = timing.teacher_cost(teacher, x, (16, 8), tokens=16, rounds=1)
    assert list(found) == [16, 8]
    steps = timing.step_cost(
        student, teacher, x, torch.arange(4), (16, 8), tokens=16, rounds=1, amp=torch.bfloat16
    )
    assert list(steps) == [16, 8]
    assert all(p.grad is None for p in student.parameters())
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep_ratio": 0.05}, r"keep_ratio = 0.05: expected a value in \[0.1, 1\]"),
        ({"selectors": ["best"]}, r"selectors = \['best'\]: element 'best'"),
        ({"alpha": 1.5}, "alpha = 1.5"),
        ({"seeds": [1]}, "unknown parameter 'seeds'"),
    ],
)
def test_the_notebook_refuses_bad_parameters_before_it_starts(given, message):
    with pytest.raises(ValueError, match=message):
        chapters.validate(chapters.find("masked_kd"), given)


def run_notebook(folder, **given):
    """Run the notebook's code cells as a script with tiny numbers."""
    tiny = {"teacher_steps": 2, "student_steps": 3, "n_test": 60, "batch_size": 8, "n_seeds": 1,
            "speed_models": [], "warmup_unmasked": 2, "device": "cpu"}  # fmt: skip
    code, kept = folder / "run.py", folder / "record.part.json"
    code.write_text(executor.script(chapters.find("masked_kd"), tiny | given))
    kept.write_text("{}")
    done = subprocess.run(
        [sys.executable, str(code)], env=os.environ | {"COMPANION_RECORD": str(kept)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "all came out as expected" in done.stdout
    return done.stdout


def test_the_times_on_a_gpu_that_the_chapter_shows_are_those_of_the_record():
    record = json.loads((ROOT / "book" / "recorded" / "masked_kd" / "gpu.json").read_text())
    shown = chapters.recorded_values(chapters.read(chapters.find("masked_kd")))
    recorded = record["values"]["masked_kd.times"]
    assert shown["masked_kd.gpu.times"] == recorded, "make notebooks NB=masked_kd"
    assert shown["masked_kd.gpu.batch"] == record["settings"]["speed_batch"]
    step, teacher = (recorded[name] for name in ("step, Ti from S", "ViT-S"))
    for name, times in (("step", step), ("s", teacher), ("b", recorded["ViT-B"])):
        share = 100 * times["98"]["ms"] / times["196"]["ms"]
        assert shown[f"masked_kd.gpu.time.{name}"] == pytest.approx(share, rel=1e-4)
    assert shown["masked_kd.gpu.operations.step"] == pytest.approx(100 - 28.0892, abs=1e-3)
    assert shown["masked_kd.gpu.teacher_share"] == pytest.approx(
        100 * teacher["196"]["ms"] / step["196"]["ms"], rel=1e-4
    )


def test_the_notebook_runs_on_a_folder_with_models_of_timm(tmp_path):
    pytest.importorskip("timm")
    write_folder(tmp_path)
    out = run_notebook(
        tmp_path, dataset="folder", data_root=str(tmp_path), image_size=32, collapse_seeds=1, amp="bf16",
        selectors=["full", "student", "random", "teacher", "saliency"],
        teacher_model="deit_tiny_distilled_patch16_224", student_model="vit_tiny_patch16_224",
        batch_size=4,
    )  # fmt: skip
    assert "the teacher sees 2 of 4 patches" in out


@pytest.mark.parametrize("fields", [{"patch": 5}, {"heads": 3}])
def test_a_transformer_that_does_not_fit_is_refused(fields):
    with pytest.raises(ValueError, match="expected a divisor"):
        mkd.ViT(**fields)


def test_our_transformer_agrees_with_explicit_attention():
    attention = build("ours").blocks[0].attn
    x = torch.randn(2, 5, 24, generator=generator())
    q, k, v = attention.qkv(x).chunk(3, -1)
    heads = [
        scaled_dot_product_attention(*(part[..., 8 * h : 8 * h + 8] for part in (q, k, v)))
        for h in range(3)
    ]
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


def test_more_that_does_not_fit_is_named():
    x, y = images(2), torch.zeros(2).long()
    model = ours()
    pictures = experiment.LabelledImages(x, y, x, y)
    with mkd.token_drop(model) as masked:
        for call, message in {
            lambda: mkd.ViT(patch=0): "patch = 0",
            lambda: mkd.ViT(heads=0): "heads = 0",
            lambda: mkd.ViT(depth=0): "depth = 0",
            lambda: mkd.ViT(classes=0): "classes = 0",
            lambda: mkd.ViT(mlp_ratio=0.0): "mlp_ratio = 0.0",
            lambda: mkd.token_grid(model, images(1, 36)): "images of 36 x 36: patches of 8 x 8",
            lambda: mkd.MaskedDistiller(model, ours(), 4)(
                x[:0], y[:0]
            ): r"images: shape \(0, 3, 32, 32\)",
            lambda: mkd.MaskedDistiller(model, ours(), 4, tau=float("nan")): "tau = nan",
            lambda: mkd.CollapseGuard(x[:0]): "images",
            lambda: experiment.LabelledImages(
                x, y[:1], x, y
            ): "train_x, train_y: 2 images and 1 labels",
            lambda: experiment.LabelledImages(x, y, x, y.numpy()): "test_y: ndarray, expected a",
            lambda: experiment.LabelledImages(x, y, x[:0], y[:0]): "test_x, test_y: 0 images",
            lambda: next(pictures.batches(3, generator())): "batch_size = 3",
            lambda: experiment.train_teacher(
                ours(), pictures, -1, generator=generator()
            ): "steps = -1",
            lambda: mkd.patch_truth(torch.zeros(1, 32, 32).bool(), 5): "patch = 5",
            lambda: masked(x, torch.zeros(2, 3)): "keep: torch.float32",
            lambda: masked(x, torch.zeros(3).long()): "keep: torch.int64",
            lambda: masked(x, torch.zeros(2, 0).long()): "keep: torch.int64",
        }.items():
            with pytest.raises(ValueError, match=message):
                call()
    keep, truth = torch.tensor([[0, 5], [1, 2]]), torch.ones(2, 16, dtype=torch.bool)
    y = torch.tensor([0, 1])
    batch = experiment.LabelledImages(x, y, x, y)
    with mkd.token_drop(model) as masked:
        for call, message in {
            # one image is no batch, a seed no generator
            lambda: mkd.MaskedDistiller(model, ours(), 4)(x[0], y[:1]): "one image is x\\[None\\]",
            lambda: mkd.gradient_saliency(model, x[0]): r"images: shape \(3, 32, 32\)",
            lambda: mkd.student_scores(model, x[0]): r"images: shape \(3, 32, 32\)",
            lambda: mkd.mask_quality(model, ours(), x[0], 4): r"images: shape \(3, 32, 32\)",
            lambda: mkd.select_tokens(torch.rand(16), 4): r"scores: shape \(16,\)",
            lambda: mkd.select_tokens(
                torch.rand(2, 16), 4, "random", 0
            ): "generator = 0: expected a",
            lambda: mkd.MaskedDistiller(
                model, ours(), 4, generator=0
            ): "generator = 0: expected a",
            lambda: experiment.train_teacher(ours(), batch, 1, generator=0): "generator = 0",
            # indices that no patch has
            lambda: masked(x, keep + 11): "keep: indices 11 to 16, expected 0 to 15",
            lambda: masked(x, keep - 1): "keep: indices -1 to 4, expected 0 to 15",
            lambda: mkd.mask_recall(keep + 11, truth): "keep: indices 11 to 16",
            # masks of another dtype or shape
            lambda: mkd.mask_recall(keep, truth.float()): "truth: torch.float32",
            lambda: mkd.mask_recall(keep[:1], truth): r"keep: torch.int64 \(1, 2\)",
            lambda: mkd.mask_recall(keep.float(), truth): "keep: torch.float32",
            lambda: mkd.patch_truth(torch.zeros(1, 32, 32), 8): "mask: torch.float32",
            lambda: mkd.patch_truth(torch.zeros(32, 32).bool(), 8): r"mask: torch.bool \(32, 32\)",
            lambda: mkd.mask_quality(
                model, ours(), x, 4, truth=truth[:, :4]
            ): r"truth: shape \(2, 4\)",
            lambda: mkd.mask_quality(
                model, ours(), x, 4, truth=torch.ones(2, 16, 16).bool()
            ): r"truth: shape \(2, 16, 16\)",
            # of as many patches, and of more
            lambda: mkd.ViT(32)(torch.rand(1, 1, 16, 64)): "images of 16 x 64: expected 32 x 32",
            lambda: mkd.ViT(64)(torch.rand(1, 1, 64, 96)): "images of 64 x 96: expected 64 x 64",
            lambda: mkd.ViT.of("XL"): "size = 'XL': expected one of 'Ti', 'S', 'B', 'L'",
            lambda: mkd.ViT.of("Ti", 100): "patch = 16: expected a divisor of image_size = 100",
        }.items():
            with pytest.raises(ValueError, match=message):
                call()
    with pytest.raises(DivergenceError, match="lower lr = 1e\\+30"):
        experiment.train_teacher(ours(), pictures, 3, generator=generator(), lr=1e30, batch_size=2)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("deit_tiny_patch16", 32, "model 'deit_tiny_patch16': timm has no such model; close: "),
        ("resnet10t", 32, "no vision transformer, it takes no img_size"),
        ("vit_tiny_patch16_224", 40, "image_size = 40: expected a multiple of .* 16"),
    ],
)
def test_a_model_of_timm_that_cannot_be_is_named(name, size, message):
    pytest.importorskip("timm", reason="timm is in the extra `test`")
    with pytest.raises(ValueError, match=message):
        vit.named_model(name, 5, size)
