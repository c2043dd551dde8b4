from .arguments import (
    ON_BAD_IMAGE as ON_BAD_IMAGE,
)
from .arguments import (
    DataArguments as DataArguments,
)
from .batches import (
    ByteCollator as ByteCollator,
)
from .cached_features import (
    CachedFeatures as CachedFeatures,
)
from .columns import (
    label_array as label_array,
)
from .device_images import (
    DEVICE_AUGMENTATIONS as DEVICE_AUGMENTATIONS,
)
from .device_images import (
    DeviceImages as DeviceImages,
)
from .device_images import (
    collate_ready as collate_ready,
)
from .image_data import (
    ImageData as ImageData,
)
from .image_folder import (
    find_images as find_images,
)
from .images import (
    BadImageError as BadImageError,
)
from .images import (
    StoredImage as StoredImage,
)
from .inspection import (
    Inspection as Inspection,
)
from .inspection import (
    inspect_images as inspect_images,
)
from .list_files import (
    FILE_FORMATS as FILE_FORMATS,
)
from .list_files import (
    FileOptions as FileOptions,
)
from .list_files import (
    register_file_format as register_file_format,
)
from .long_tail import (
    PROFILES as PROFILES,
)
from .long_tail import (
    class_counts as class_counts,
)
from .long_tail import (
    describe_groups as describe_groups,
)
from .long_tail import (
    exponential_counts as exponential_counts,
)
from .long_tail import (
    frequency_groups as frequency_groups,
)
from .long_tail import (
    long_tail_indices as long_tail_indices,
)
from .long_tail import (
    profile_counts as profile_counts,
)
from .long_tail import (
    register_profile as register_profile,
)
from .long_tail import (
    stratified_split as stratified_split,
)
from .long_tail import (
    take_per_class as take_per_class,
)
from .mixing import (
    Mixing as Mixing,
)
from .mixing import (
    MixingCollator as MixingCollator,
)
from .prepare import (
    content_digest as content_digest,
)
from .prepare import (
    prepare_images as prepare_images,
)
from .preprocessing import (
    Preprocessing as Preprocessing,
)
from .preprocessing import (
    read_preprocessing as read_preprocessing,
)
from .resized_cache import (
    resize_into_cache as resize_into_cache,
)
from .samplers import (
    SAMPLERS as SAMPLERS,
)
from .samplers import (
    ClassSampler as ClassSampler,
)
from .samplers import (
    register_sampler as register_sampler,
)
from .scan import (
    ImageFacts as ImageFacts,
)
from .scan import (
    find_broken as find_broken,
)
from .scan import (
    scan_images as scan_images,
)
from .sources import (
    SOURCES as SOURCES,
)
from .sources import (
    load_image_data as load_image_data,
)
from .sources import (
    register_source as register_source,
)
from .splits import (
    MissingSplitError as MissingSplitError,
)
from .streaming import (
    StreamedData as StreamedData,
)
from .streaming import (
    read_class_counts as read_class_counts,
)
from .streaming import (
    stream_images as stream_images,
)
from .training_sets import (
    StreamedImages as StreamedImages,
)
from .training_sets import (
    TransformedImages as TransformedImages,
)
from .training_sets import (
    training_set as training_set,
)
from .transforms import (
    AUGMENTATIONS as AUGMENTATIONS,
)
from .transforms import (
    eval_transform as eval_transform,
)
from .transforms import (
    register_augmentation as register_augmentation,
)
from .transforms import (
    train_transform as train_transform,
)
from .workers import (
    choose_num_workers as choose_num_workers,
)
