"""What a GPU machine should show, as data: jobs, most valuable first, and the chapters made tiny.

The chapters are known by name only. Seconds are what an H100 took with eleven other jobs beside;
SpReME's and signal propagation's runs at the paper's size were stopped there after 450 and 510
seconds, and theirs are guesses. The memory is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

# Parameters with which a chapter ends in seconds on any device; its claims need not hold then.
TINY: dict[str, dict[str, Any]] = {
    "data_parallelism": {
        "batch_sizes": [4, 16], "sparsities": [0.0, 0.9], "n_trials": 8, "max_steps": 100,
        "check_every": 10, "n_seeds": 1, "unraced": [16], "lipschitz_seeds": 1,
    },
    "desire": {
        "n_scenes": 100, "hidden": 16, "latent": 4, "n_samples": 5, "epochs_sgm": 1,
        "epochs_rank": 1,
    },
    "fictitious_play": {
        "n_scenes": 2, "n_test": 2, "horizon": 5, "crossing_horizon": 6, "fp_iters": 2,
        "ioc_iters": 2, "ioc_rounds": 1, "n_samples": 2,
    },
    "learn_to_pay_attention": {
        "width": 12, "steps": 4, "batch_size": 8, "train_examples": 64, "test_examples": 50,
    },
    "masked_kd": {
        "teacher_dim": 8, "student_dim": 8, "teacher_steps": 30, "student_steps": 4, "n_test": 60,
        "n_seeds": 1, "speed_models": ["Ti"], "speed_batch": 1,
    },
    "signal_propagation": {
        "depth": 3, "width": 10, "sparsities": [0.0, 0.9], "isometry_steps": 2, "n_seeds": 1,
        "n_jacobian_examples": 4, "train_iterations": 4, "train_examples": 200,
    },
    "snip": {
        "sparsities": [0.9], "n_seeds": 1, "train_iterations": 20, "train_examples": 300,
        "ablations": False,
    },
    "sparse_inr": {
        "n_train": 4, "n_test": 2, "width": 16, "depth": 2, "dense_steps": 2, "round_steps": 1,
        "prune_rounds": 1, "fit_steps": 3, "compare_rounds": [1], "n_seeds": 1,
    },
    "spreme": {
        "noise_levels": [0.0, 0.05], "degree": 3, "max_terms": 2, "loop_epochs": 3, "n_seeds": 1,
        "thresholds": [0.1, 0.3],
    },
    "visual_compiler": {
        "width": 96, "n_train": 50, "n_test": 50, "trunk_width": 4, "head_width": 4, "steps": 10,
        "batch_size": 4, "n_places": 2, "hog_pictures": 2,
    },
}  # fmt: skip


BUDGET = 540  # seconds of `companion gpu`, if not said otherwise


@dataclass(frozen=True)
class Job:
    """One thing to run on a GPU machine, in a process of its own.

    name: as in --only. shows: what its result tells. seconds: it takes on an H100, estimated.
    gpu_gb: of the card's memory, estimated. alone: nothing else may use the card meanwhile.
    data: names of data sets it needs.
    stem, given: a chapter to be recorded and its parameters. script: or a Python file below the
      project's root, which takes --device and --out.
    folder: of the record, below that of the results; what is below "recorded" is for the book.
    """

    name: str
    shows: str
    seconds: float
    gpu_gb: float
    stem: str = ""
    given: dict[str, Any] = field(default_factory=dict)
    script: str = ""
    alone: bool = False
    data: tuple[str, ...] = ()
    folder: str = "recorded"

    @property
    def record(self) -> str:
        """The name of its record: that on a CPU may be called the same without "-gpu"."""
        name = self.name.removeprefix(f"{self.stem}-").replace("_", "-")
        return name if name == "gpu" else f"{name}-gpu"

    @property
    def result(self) -> str:
        """The file of its result, below the folder of the results."""
        if self.stem:
            return f"{self.folder}/{self.stem}/{self.record}.json"
        return f"{self.folder}/{self.name.removesuffix('-gpu')}-gpu.json"


def tiny_jobs() -> Iterable[Job]:
    for stem, given in TINY.items():
        yield Job(
            f"{stem}-tiny", "the chapter ends on this device (tiny: its claims mean nothing)",
            60 if stem == "data_parallelism" else 25, 2, stem, given, folder="tiny",
        )  # fmt: skip


JOBS: tuple[Job, ...] = (
    Job(
        "checks", "what a GPU computes equals what the CPU computes", 30, 4,
        script="tests/gpu/checks.py",
    ),
    *tiny_jobs(),
    Job(
        "masked_kd-gpu", "time and memory of ViT-S and B at 196, 147, 98 and 49 patches in bf16",
        90, 40, "masked_kd", {"profile": "gpu", "n_seeds": 3}, alone=True,
    ),
    Job(
        "benchmarks-gpu", "the methods against plain torch, with the card's limits beside them",
        30, 12, script="tests/gpu/benchmarks.py", alone=True,
    ),
    Job(
        "growth-gpu", "how each method's time grows with its size, to where the memory ends",
        100, 70, script="tests/gpu/growth.py", alone=True,
    ),
    Job(
        "snip-paper",
        "Table 1 and Fig. 1 on MNIST: LeNet-300-100, five seeds, the paper's schedule", 215, 2, "snip",
        {"profile": "paper"}, data=("mnist",),
    ),
    Job(
        "signal_propagation-paper", "Tables 1 and 4 on MNIST: fully connected networks, five seeds",
        900, 2, "signal_propagation", {"profile": "paper"}, data=("mnist",),
    ),
    Job(
        "snip-paper_lenet5", "Table 1 on MNIST: LeNet-5-Caffe, five seeds", 485, 4, "snip",
        {"profile": "paper_lenet5"}, data=("mnist",),
    ),
    Job(
        "data_parallelism-mnist-grid",
        "the paper's grid on MNIST: B to 16,384, 100 trials, four sparsities, one seed",
        430, 8, "data_parallelism",
        {
            "profile": "mnist",
            "batch_sizes": [2**i for i in range(1, 15)],
            "sparsities": [0.0, 0.5, 0.7, 0.9],
            "n_trials": 100,
            "max_steps": 20000,  # two examples a step at 90 % take long
        },
        data=("mnist",),
    ),
    Job(
        "snip-vgg_d-5000-steps",
        "VGG-D dense and at 95 %, 5,000 steps instead of 150,000, JPEGs of CIFAR-10",
        470, 8, "snip",
        {
            "profile": "paper_vgg_d",
            "dataset": "cifar10_jpeg",
            "train_iterations": 5000,
            "lr_milestones": [2500, 3750, 4500],
        },
        data=("cifar10_jpeg",),
    ),
    Job(
        "learn_to_pay_attention-vgg-3000-steps",
        "VGG-att2 against VGG and average pooling at the same resolution, 3,000 steps instead of "
        "117,300, JPEGs of CIFAR-10",
        360, 16, "learn_to_pay_attention",
        {
            "profile": "paper",
            "dataset": "cifar10_jpeg",
            "networks": ["plain", "gap", "att"],
            "steps": 3000,
            "halve_every": 500,
        },
        data=("cifar10_jpeg",),
    ),
    Job(
        "visual_compiler-640-pixels",
        "the paper's network at 640 pixels on a made place, 2,000 pictures and steps, drawn by torch",
        475, 8, "visual_compiler",
        {
            "width": 640,
            "n_train": 2000,
            "n_test": 200,
            "max_people": 16,
            "n_regions": 12,
            "trunk_width": 64,
            "steps": 2000,
            "batch_size": 32,
            "lr": 0.002,
            "rivals": [],
            "hog_pictures": 0,
        },
    ),
    Job(
        "spreme-paper", "200 noisy copies, six levels of noise, 10,000 epochs of the loop",
        900, 4, "spreme", {"profile": "paper"},
    ),
    Job("sparse_inr-quick", "the quick profile on a GPU", 140, 2, "sparse_inr"),
    Job("desire-quick", "the quick profile on a GPU", 230, 2, "desire"),
    Job("fictitious_play-quick", "the quick profile on a GPU", 65, 2, "fictitious_play"),
)  # fmt: skip


def jobs_of(stem: str) -> list[Job]:
    """The jobs whose records are for a chapter's page, most valuable first."""
    return [job for job in JOBS if job.stem == stem and job.folder == "recorded"]


MIN, HOUR, DAY = 60, 3600, 86400
# Chapter -> profile -> seconds on one core of a CPU and on an H100, both estimated. The book
# shows what was measured instead where there is a record.
COSTS: dict[str, dict[str, tuple[float, float]]] = {
    "data_parallelism": {
        "quick": (90, 30), "mnist": (5 * MIN, 60), "cifar10": (140, 30),
        "paper": (DAY, HOUR), "paper_cifar10": (60 * DAY, 10 * HOUR),
    },
    "desire": {
        "quick": (90, 230), "sdd": (6 * MIN, 90), "trajnet": (10 * MIN, 2 * MIN),
        "ethucy": (10 * MIN, 150), "paper": (4 * HOUR, HOUR),
    },
    "fictitious_play": {
        "quick": (40, 65), "real": (5 * MIN, 3 * MIN), "paper": (3 * HOUR, 20 * MIN),
    },
    "learn_to_pay_attention": {
        "quick": (90, 30), "seeds": (5 * MIN, 90), "cifar10": (5 * MIN, 60),
        "paper": (125 * DAY, 70 * MIN),
    },
    "masked_kd": {
        "quick": (100, 60), "seeds": (5 * MIN, 2 * MIN), "cifar10": (5 * MIN, 60),
        "gpu": (2 * HOUR, 90), "paper": (200 * DAY, 30 * HOUR),
    },
    "signal_propagation": {
        "quick": (90, 30), "mnist": (8 * MIN, 60), "cifar10": (4 * MIN, 30),
        "paper": (46 * MIN, 900), "paper_resnet32": (25 * DAY, 4.5 * HOUR),
        "paper_vgg16": (37 * DAY, 5 * HOUR),
    },
    "snip": {
        "quick": (70, 30), "mnist": (20 * MIN, 2 * MIN), "cifar10": (7 * MIN, 30),
        "paper": (70 * MIN, 215), "paper_lenet5": (5.5 * HOUR, 485),
        "paper_vgg_d": (14 * DAY, HOUR),
    },
    "sparse_inr": {
        "quick": (110, 140), "mnist": (3 * MIN, 2 * MIN), "cifar10": (7 * MIN, 2 * MIN),
        "orl_faces": (7 * MIN, 90), "seeds": (11 * MIN, 2 * MIN), "sweep": (17 * MIN, 3 * MIN),
        "paper": (20 * DAY, 1.5 * HOUR),
    },
    "spreme": {"quick": (60, 30), "copies": (4 * MIN, 60), "paper": (32 * MIN, 900)},
    "visual_compiler": {
        "quick": (100, 40), "seeds": (5 * MIN, 60), "pets": (12 * MIN, 2 * MIN),
        "town_centre": (130, 45), "paper": (150 * DAY, 8 * HOUR),
    },
}  # fmt: skip
