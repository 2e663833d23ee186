"""Cluttered digits: the truth about where the digit is."""

import pytest
import torch

from companion.data.clutter import DIGIT, INK, PARTS, cluttered_digits
from companion.data.images import load_images


def sources(part):
    data = load_images("digits")
    return (
        torch.cat([data.train_x, data.test_x])[PARTS[part], 0],
        torch.cat([data.train_y, data.test_y])[PARTS[part]],
    )


@pytest.mark.parametrize(("align", "size"), [(1, 24), (4, 24), (4, 27), (1, 8)])
def test_the_box_lies_on_the_canvas_at_a_multiple_of_align(align, size):
    data = cluttered_digits(400, align=align, size=size, seed=3)
    assert data.images.shape == (400, 1, size, size)
    assert (data.corners % align == 0).all()
    assert (data.box.sum((1, 2)) == DIGIT**2).all()  # clipped nowhere
    expected = range(0, size - DIGIT + 1, align)
    assert set(data.corners.flatten().tolist()) == set(expected)


def test_the_box_holds_one_of_the_digits_untouched_and_the_ink_is_its_own():
    data = cluttered_digits(300, n_clutter=16, seed=1)
    digits, labels = sources("train")
    shown = data.images[:, 0][data.box].view(-1, DIGIT, DIGIT)
    same = (shown[:, None] == digits[None]).flatten(2).all(2)
    assert same.any(1).all()
    assert torch.equal(labels[same.int().argmax(1)], data.labels)
    assert not (data.ink & ~data.box).any()
    assert torch.equal(data.ink[data.box].view_as(shown), shown >= INK)


def test_the_clutter_is_made_of_pieces_of_other_digits():
    one = cluttered_digits(200, n_clutter=1, seed=5)
    digits, _ = sources("train")
    crops = digits.unfold(1, 4, 1).unfold(2, 4, 1).reshape(-1, 4, 4)
    outside = one.images[:, 0] * ~one.box
    for picture, box in zip(outside[:40], one.box, strict=False):
        if (marks := picture.nonzero()).numel() == 0:
            continue
        low, high = marks.amin(0), marks.amax(0)
        assert (high - low < 4).all()
        # some placement of the window shows a crop, wherever the box does not hide it
        found = False
        for row in range(max(0, high[0] - 3), min(low[0], 20) + 1):
            for column in range(max(0, high[1] - 3), min(low[1], 20) + 1):
                window = picture[row : row + 4, column : column + 4]
                seen = ~box[row : row + 4, column : column + 4]
                found |= bool((crops[:, seen] == window[seen]).all(1).any())
        assert found


def test_pieces_meet_by_the_larger_value_and_more_of_them_darken_the_canvas():
    amounts = [cluttered_digits(300, n_clutter=n).images.sum().item() for n in (0, 4, 8, 16)]
    assert amounts == sorted(amounts)
    bare = cluttered_digits(50, n_clutter=0)
    assert not (bare.images[:, 0] * ~bare.box).any()
    full = cluttered_digits(50, n_clutter=200)
    assert full.images.max() <= 1


def test_a_seed_gives_the_same_canvases_and_another_gives_others():
    first, again, other = (cluttered_digits(20, seed=seed) for seed in (7, 7, 8))
    assert first.checksum == again.checksum != other.checksum
    assert torch.equal(first.ink, again.ink)


def test_train_and_test_draw_from_different_digits():
    train, test = sources("train")[0], sources("test")[0]
    assert (len(train), len(test)) == (1297, 500)
    seen = cluttered_digits(1000, part="test", n_clutter=0)
    shown = seen.images[:, 0][seen.box].view(-1, 1, DIGIT * DIGIT)
    assert (shown == test.flatten(1)).all(2).any(1).all()


def test_a_part_of_a_set_keeps_its_masks():
    data = cluttered_digits(10)
    few = data[torch.tensor([3, 1])]
    assert len(few) == 2
    assert torch.equal(few.box[0], data.box[3])
    assert torch.equal(few.ink[1], data.ink[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count = 0: expected a whole number, at least 1"),
        ({"part": "all"}, "part = 'all': expected one of 'train', 'test'"),
        ({"size": 7}, "size = 7: expected a whole number, at least 8"),
        ({"align": 0}, "align = 0: expected a whole number, at least 1"),
        ({"n_clutter": -1}, "n_clutter = -1: expected a whole number, at least 0"),
        ({"count": 2.5}, "count = 2.5: expected a whole number"),
        ({"fragment": 9}, "fragment = 9: expected 1 to 8"),
    ],
)
def test_what_is_out_of_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        cluttered_digits(**{"count": 5, **arguments})
