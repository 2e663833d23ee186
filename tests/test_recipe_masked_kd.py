"""The recipe: a transformer taught by one of timm's in a training loop of one's own."""

import pytest
import torch
from recipe import run


def test_the_recipe_teaches_a_student_and_says_how_its_mask_does():
    timm = pytest.importorskip("timm", reason="timm is in the extra `test`")
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(3, (96,), generator=draw)
    x = 0.1 * torch.randn(96, 3, 48, 48, generator=draw)
    x += torch.eye(3)[y][:, :, None, None]  # the class is the colour
    loader = [(x[k : k + 16], y[k : k + 16]) for k in range(0, 96, 16)] * 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=3, depth=2)
        optimizer = torch.optim.AdamW(teacher.parameters(), 1e-3)
        for images, labels in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(teacher(images), labels).backward()
            optimizer.step()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        given = {"teacher": teacher, "side": 48, "classes": 3, "keep": 4, "loader": loader}
        names, printed = run("masked_kd", **given)
    student = names["student"].eval()
    with torch.no_grad():
        assert (student(x).argmax(1) == y).float().mean() > 0.9
    assert "'agreement': 1.0" in printed
    assert all(torch.equal(before[name], v) for name, v in teacher.state_dict().items())
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())
