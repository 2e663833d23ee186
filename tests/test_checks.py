"""Bad arguments, arrays of NumPy among them: each function says what it expects, in one line."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from companion import checks
from companion.papers import data_parallelism as dp
from companion.papers import learn_to_pay_attention as att
from companion.papers import masked_kd as mkd
from companion.papers import signal_propagation as sp
from companion.papers import sparse_inr as inr
from companion.papers import spreme
from companion.papers import visual_compiler as vc
from companion.training import error_rate, predict, train

NOTHING_KNOWN = ("a", "1", None, [], [1.0], {}, 1j, object(), math, np.zeros(3), torch.ones(2))
HELPERS = {
    "whole": (lambda **v: checks.whole(0, **v), (*NOTHING_KNOWN, 1.0, True, -1, math.nan)),
    "seeds": (
        checks.seeds,
        ("a", 1, None, [1.0], [0, "1"], [True], {"a"}, np.zeros(3), torch.ones(2)),
    ),
    "at_least": (lambda **v: checks.at_least(0, **v), (*NOTHING_KNOWN, -1, math.nan, 10**400)),
    "above": (lambda **v: checks.above(0, **v), (*NOTHING_KNOWN, 0, math.inf, np.str_("1"))),
    "fraction": (checks.fraction, (*NOTHING_KNOWN, 1, -0.1, math.nan)),
    "one_of": (lambda **v: checks.one_of(("b", "c"), **v), NOTHING_KNOWN),
    "one_of, keys": (lambda **v: checks.one_of({"b": 0}, **v), NOTHING_KNOWN),
    "random_source": (checks.random_source, (*NOTHING_KNOWN, 0)),
    "generators": (checks.generators, [v for v in NOTHING_KNOWN if v is not None]),
    "tensors": (checks.tensors, [v for v in NOTHING_KNOWN if not torch.is_tensor(v)]),
    "tensor_of_labels": (
        checks.tensor_of_labels,
        [v for v in NOTHING_KNOWN if not torch.is_tensor(v)],
    ),
    "one_dtype": (
        lambda **v: checks.one_dtype(**v, tensors=torch.ones(1)),
        [v for v in NOTHING_KNOWN if not torch.is_tensor(v)],
    ),
    "boolean": (checks.boolean, NOTHING_KNOWN),
    "images": (checks.images, NOTHING_KNOWN),
}


@pytest.mark.parametrize("helper", HELPERS)
def test_every_check_names_the_argument_whatever_type_its_value_has(helper):
    check, values = HELPERS[helper]
    for value in values:
        with pytest.raises(ValueError, match=r"^given\b.*expected "):
            check(given=value)


def test_numbers_of_numpy_and_of_pytorch_are_numbers():
    for value in (1, 0.5, np.float32(0.5), torch.tensor(0.5), Fraction(1, 2)):
        checks.at_least(0.5, value=value)
        checks.above(0, value=value)
    checks.whole(1, value=np.int64(1))
    checks.seeds(values=np.arange(3), one=[-1], most=[2**63 - 1])


def test_a_number_of_the_wrong_type_is_named_by_whatever_takes_it():
    model = nn.Linear(4, 3)
    for call, told in (
        (lambda: spreme.SharedSINDy(2, epsilon="a").fit([np.ones((9, 2))], 0.1), "epsilon = 'a'"),
        (lambda: spreme.SharedSINDy(2, threshold=None).fit([np.ones((9, 2))], 0.1), "threshold = None"),
        (lambda: inr.fit(inr.siren_params(2, 8, 2, 1, 20.0), torch.ones(4, 2), torch.ones(4, 1), lr="0.1", steps=1), "lr = '0.1'"),
        (lambda: sp.enforce_isometry(model, {}, lr="a"), "lr = 'a'"),
        (lambda: sp.init_weights(model, "he", gain=None), "gain = None"),
        (lambda: sp.global_topk_mask({"w": torch.ones(3)}, "0.9"), "sparsity = '0.9'"),
        (lambda: dp.scaling_constants("a", 1, 1, 1), "gap = 'a'"),
        (lambda: dp.load_workload("digits", goal_error=None), "goal_error = None"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{told}: expected "):
            call()


PICTURES = np.zeros((4, 3, 32, 32), np.float32)
ROWS = np.zeros((4, 6), np.float32)
CLASSES = torch.tensor([0, 1, 0, 1])


def attention():
    backbone = torchvision.models.resnet18(num_classes=8)
    return att.AttentionClassifier(backbone, ["layer3"], 2, "dp")


def fit(x):
    generator = torch.Generator().manual_seed(0)
    return att.fit(attention(), x, CLASSES, steps=1, lr=1e-3, batch_size=2, generator=generator)


def encode(image):
    start = inr.siren_params(2, 8, 2, 1, 20.0)
    return inr.encode(inr.Checkpoint(start, inr.full_masks(start), 0, {}, ()), image, steps=0)


def meta_learn(tasks):
    return inr.meta_learn(inr.siren_params(2, 8, 2, 1, 20.0), tasks, 0)


def distil(images, teacher_images=None):
    student, teacher = (mkd.ViT(24, 4, dim=16) for _ in range(2))
    with mkd.MaskedDistiller(student, teacher, keep=9, alpha=1.0) as distiller:
        return distiller(images, teacher_images=teacher_images)


DIGITS = np.zeros((2, 1, 24, 24), np.float32)
CALLS = {
    "train": ("inputs", lambda x: train(nn.Linear(6, 2), x, CLASSES, steps=0, batch_size=2), ROWS),
    "predict": ("inputs", lambda x: predict(nn.Linear(6, 2), x), ROWS),
    "error_rate": ("inputs", lambda x: error_rate(nn.Linear(6, 2), x, CLASSES), ROWS),
    "fit": ("x", fit, PICTURES),
    "attention_maps": ("x", lambda x: att.attention_maps(attention(), x), PICTURES),
    "fgsm": ("x", lambda x: att.fgsm(attention(), x, CLASSES, 0.1), PICTURES),
    "jacobian_singular_values": (
        "x",
        lambda x: sp.jacobian_singular_values(nn.Linear(6, 2), x),
        ROWS,
    ),
    "Workload": (
        "train_x",
        lambda x: dp.Workload(x, CLASSES, torch.zeros(4, 6), CLASSES, nn.Linear(6, 2)),
        ROWS,
    ),
    "Workload, validation": (
        "valid_x",
        lambda x: dp.Workload(torch.zeros(4, 6), CLASSES, x, CLASSES, nn.Linear(6, 2)),
        ROWS,
    ),
    "detect": (
        "images",
        lambda x: vc.detect(vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 4), x),
        PICTURES,
    ),
    "encode": ("image", encode, np.zeros((1, 8, 8), np.float32)),
    "meta_learn": ("tasks", meta_learn, np.zeros((2, 16, 1), np.float32)),
    "as_targets": ("images", inr.as_targets, PICTURES),
    "MaskedDistiller": ("images", distil, DIGITS),
    "MaskedDistiller, teacher's": (
        "teacher_images",
        lambda x: distil(torch.from_numpy(DIGITS), x),
        DIGITS,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_array_in_place_of_a_tensor_is_named_and_a_tensor_works(name):
    argument, call, array = CALLS[name]
    call(torch.from_numpy(array))
    with pytest.raises(ValueError) as caught:
        call(array)
    assert str(caught.value) == (
        f"{argument}: ndarray, expected a tensor: torch.from_numpy({argument})"
    )
