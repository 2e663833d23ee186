"""Data sets as tensors, with their place, licence and checksum."""

from companion.data.images import (
    IMAGE_SETS,
    ImageSet,
    crop_pad_flip,
    hold_out,
    load_image_folder,
    load_images,
    standardise,
)
from companion.data.root import (
    CorruptDataError,
    IncompleteDataError,
    MissingDataError,
    data_root,
)

__all__ = [
    "IMAGE_SETS",
    "CorruptDataError",
    "ImageSet",
    "IncompleteDataError",
    "MissingDataError",
    "crop_pad_flip",
    "data_root",
    "hold_out",
    "load_image_folder",
    "load_images",
    "standardise",
]
