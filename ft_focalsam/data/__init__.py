"""Labelled images: where they come from, how their class counts are shaped, how they become tensors."""

from .columns import label_array
from .long_tail import (
    class_counts,
    describe_groups,
    exponential_counts,
    frequency_groups,
    long_tail_indices,
    stratified_split,
    take_per_class,
)
from .mixing import Mixing, MixingCollator
from .samplers import SAMPLERS, ClassSampler, register_sampler
from .sources import SOURCES, ImageData, load_image_data, register_source
from .transforms import (
    AUGMENTATIONS,
    Preprocessing,
    TransformedImages,
    eval_transform,
    register_augmentation,
    train_transform,
)

__all__ = [
    "AUGMENTATIONS",
    "SAMPLERS",
    "SOURCES",
    "ClassSampler",
    "ImageData",
    "Mixing",
    "MixingCollator",
    "Preprocessing",
    "TransformedImages",
    "class_counts",
    "describe_groups",
    "eval_transform",
    "exponential_counts",
    "frequency_groups",
    "label_array",
    "load_image_data",
    "long_tail_indices",
    "register_augmentation",
    "register_sampler",
    "register_source",
    "stratified_split",
    "take_per_class",
    "train_transform",
]
