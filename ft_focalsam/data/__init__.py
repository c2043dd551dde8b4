"""Labelled images: where they come from, how their class counts are shaped, how they become tensors."""

from .arguments import ON_BAD_IMAGE, DataArguments
from .batches import ByteCollator
from .cached_features import CachedFeatures
from .columns import label_array
from .device_images import DEVICE_AUGMENTATIONS, DeviceImages, collate_ready
from .image_folder import find_pictures
from .images import BadImageError, StoredImage
from .inspection import Inspection, inspect_images
from .list_files import FILE_FORMATS, FileOptions, register_file_format
from .long_tail import (
    PROFILES,
    class_counts,
    describe_groups,
    exponential_counts,
    frequency_groups,
    long_tail_indices,
    profile_counts,
    register_profile,
    stratified_split,
    take_per_class,
)
from .mixing import Mixing, MixingCollator
from .prepare import content_digest, prepare_images
from .resized_cache import resize_into_cache
from .samplers import SAMPLERS, ClassSampler, register_sampler
from .scan import ImageFacts, find_broken, scan_images
from .sources import SOURCES, ImageData, MissingSplitError, load_image_data, register_source
from .streaming import StreamedData, read_class_counts, stream_images
from .training_sets import StreamedImages, TransformedImages, training_set
from .transforms import (
    AUGMENTATIONS,
    Preprocessing,
    eval_transform,
    read_preprocessing,
    register_augmentation,
    train_transform,
)
from .workers import choose_num_workers

__all__ = [
    "AUGMENTATIONS",
    "DEVICE_AUGMENTATIONS",
    "FILE_FORMATS",
    "ON_BAD_IMAGE",
    "PROFILES",
    "SAMPLERS",
    "SOURCES",
    "BadImageError",
    "ByteCollator",
    "CachedFeatures",
    "ClassSampler",
    "DataArguments",
    "DeviceImages",
    "FileOptions",
    "ImageData",
    "ImageFacts",
    "Inspection",
    "MissingSplitError",
    "Mixing",
    "MixingCollator",
    "Preprocessing",
    "StoredImage",
    "StreamedData",
    "StreamedImages",
    "TransformedImages",
    "choose_num_workers",
    "class_counts",
    "collate_ready",
    "content_digest",
    "describe_groups",
    "eval_transform",
    "exponential_counts",
    "find_broken",
    "find_pictures",
    "frequency_groups",
    "inspect_images",
    "label_array",
    "load_image_data",
    "long_tail_indices",
    "prepare_images",
    "profile_counts",
    "read_class_counts",
    "read_preprocessing",
    "register_augmentation",
    "register_file_format",
    "register_profile",
    "register_sampler",
    "register_source",
    "resize_into_cache",
    "scan_images",
    "stratified_split",
    "stream_images",
    "take_per_class",
    "train_transform",
    "training_set",
]
