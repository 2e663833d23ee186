"""Networks that more than one chapter uses."""

from companion.models.classifiers import (
    alexnet,
    lenet_5_caffe,
    lenet_300_100,
    mlp,
    parameter_counts,
    recurrent,
    vgg,
    wide_resnet,
)
from companion.models.initialisers import truncated_variance_scaling_

__all__ = [
    "alexnet",
    "lenet_5_caffe",
    "lenet_300_100",
    "mlp",
    "parameter_counts",
    "recurrent",
    "truncated_variance_scaling_",
    "vgg",
    "wide_resnet",
]
