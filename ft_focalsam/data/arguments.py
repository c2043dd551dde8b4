"""Which images a run is about, as users write it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from ..base.errors import unknown
from ..base.ranges import SEED, Range, check_numbers
from .long_tail import PROFILES
from .transforms import AUGMENTATIONS

ON_BAD_IMAGE = ("fail", "skip", "unchecked")


@dataclass
class DataArguments:
    """Which images, how unbalanced, and how they are augmented.

    Args:
        dataset (`str`): "digits", a Hub name, a folder (parquet, Arrow, images by class, binary CIFAR), a file (.txt
            with `path label` lines, .csv, .tsv, .jsonl, iNaturalist's .json, .npz), or torchvision:cifar10 or
            torchvision:cifar100.
        test_dataset (`str`, *optional*): File to test on, where the data set is a file.
        image_root (`str`, *optional*): Folder that the paths in a file start from; by default the file's own.
        class_names (`str`, *optional*): File of class names in index order: one a line, or a JSON list.
        dataset_config (`str`, *optional*): Configuration of a Hub data set that has several.
        image_column, label_column (`str`, *optional*): By default found by their types and usual names.
        label_separator (`str`, *optional*): What separates the classes of an image in a cell of a table, as "|" in
            "cat|dog"; lists in .jsonl, .parquet and data sets of the Hub need none.
        train_split, test_split (`str`): Splits to train and to test on; the test split is found by default.
        test_fraction (`float`, *optional*): Cut the test set from the training split instead.
        validation_split (`str`, *optional*): Split to evaluate on while training and to choose by, where the data set
            has one beside the test split.
        validation_fraction (`float`, *optional*): Put this share of each class of the training split aside, before any
            long-tail cut, to evaluate on while training and to choose by.
        imbalance_factor (`float`, >= 1, *optional*): Cut the training set to a long-tail profile with this ratio of
            the most frequent to the rarest class; by default it is used as it is.
        imbalance_profile (`str`): Shape of that profile: exponential, step or pareto.
        max_train_per_class (`int`, *optional*): Images of the most frequent class.
        max_test_per_class (`int`, *optional*): Test images a class.
        long_tail_seed (`int`): Which images the cut takes.
        max_imbalance (`float`, >= 1, *optional*): Cut classes, after that, to at most this many times the training
            images of the rarest one; 1 balances them.
        max_imbalance_seed (`int`): Which images that takes.
        augmentation (`str`): none, crop, crop_flip, randaugment, imagenet, cifar or minimalist.
        augmentation_views (`int`, >= 1, *optional*): Draw so many augmented views of each image and repeat them, epoch
            by epoch; by default each epoch draws anew.
        cache_features (`bool`): Compute the backbone's features of all images once, keep them in the cache of
            `datasets` (HF_DATASETS_CACHE), and train and evaluate on these; for ways to tune that leave the backbone
            as it is, with augmentation none or augmentation_views.
        image_size (`int`, *optional*): Side of the images in pixels; by default the backbone's own.
        on_bad_image (`str`): What to do about images that cannot be read, found before training: fail, skip or
            unchecked (not looked for; the run stops at the first one).
        fast_decode (`bool`): Decode JPEGs for training at 1/2, 1/4 or 1/8 where the crop stays as large as what the
            model sees. Test images are always decoded in full.
        cache_resized (`str`, *optional*): Folder that keeps smaller copies of the training images (JPEG), made once.
        cache_resized_side (`int`, >= 16): Shorter side of these copies in pixels; no smaller than image_size.
        on_device (`bool`): Keep all images on the device that trains, as bytes, and augment them there, a batch at a
            time (augmentation none or cifar); for small images that fit its memory.
        streaming (`bool`): Read the training images as a stream, for data sets too large for the disk; needs
            max_steps.
        class_counts (`str`, *optional*): JSON file of a stream's class counts (name: images), written if missing.
        shuffle_buffer (`int`, >= 0): Images of a stream among which the next one is drawn.
    """

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, a Hub name, a folder (parquet, Arrow, images by class, binary CIFAR), a file (.txt with "
            "`path label` lines, .csv, .tsv, .jsonl, iNaturalist's .json, .npz), or torchvision:cifar10 or "
            "torchvision:cifar100."
        },
    )
    test_dataset: str | None = field(default=None, metadata={"help": "File to test on, where the data set is a file."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that the paths in a file start from; the file's own by default."}
    )
    class_names: str | None = field(
        default=None, metadata={"help": "File of class names in index order: one a line, or a JSON list."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set that has several."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by default."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; found by default."})
    label_separator: str | None = field(
        default=None,
        metadata={
            "help": 'What separates the classes of an image in a cell of a table, as "|" in "cat|dog"; lists in '
            ".jsonl, .parquet and data sets of the Hub need none."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Split to test on; found by default."})
    test_fraction: Annotated[float | None, Range(0, 1, open_low=True, open_high=True)] = field(
        default=None,
        metadata={"help": "Cut this share of each class from the training split to test on."},
    )
    validation_split: str | None = field(
        default=None,
        metadata={
            "help": "Split to evaluate on while training and to choose by, where the data set has one beside the test "
            "split."
        },
    )
    validation_fraction: Annotated[float | None, Range(0, 1, open_low=True, open_high=True)] = field(
        default=None,
        metadata={
            "help": "Put this share of each class of the training split aside, before any long-tail cut, to evaluate "
            "on while training and to choose by."
        },
    )
    imbalance_factor: Annotated[float | None, Range(1)] = field(
        default=None,
        metadata={
            "help": "Cut the training set to a long-tail profile with this ratio of the most frequent to the rarest "
            "class; by default it is used as it is."
        },
    )
    imbalance_profile: str = field(
        default="exponential", metadata={"help": "Shape of that profile: exponential, step or pareto."}
    )
    max_train_per_class: Annotated[int | None, Range(1)] = field(
        default=None, metadata={"help": "Training images of the most frequent class."}
    )
    max_test_per_class: Annotated[int | None, Range(1)] = field(
        default=None, metadata={"help": "Test images a class."}
    )
    long_tail_seed: Annotated[int, SEED] = field(default=0, metadata={"help": "Seed of the long-tail cut."})
    max_imbalance: Annotated[float | None, Range(1)] = field(
        default=None,
        metadata={
            "help": "After the long-tail cut, limit each class to this many times the training images of the rarest "
            "one; 1 balances them."
        },
    )
    max_imbalance_seed: Annotated[int, SEED] = field(default=0, metadata={"help": "Seed of that cut."})
    augmentation: str = field(
        default="crop_flip",
        metadata={"help": "Training augmentation: none, crop, crop_flip, randaugment, imagenet, cifar or minimalist."},
    )
    augmentation_views: Annotated[int | None, Range(1)] = field(
        default=None,
        metadata={
            "help": "Draw this many augmented views of each image and repeat them, epoch by epoch; by default each "
            "epoch draws new ones."
        },
    )
    cache_features: bool = field(
        default=False,
        metadata={
            "help": "Compute the backbone's features of all images once, keep them in the cache of datasets "
            "(HF_DATASETS_CACHE), and train and evaluate on these; for ways to tune that leave the backbone as it is, "
            "with augmentation none or augmentation_views."
        },
    )
    image_size: Annotated[int | None, Range(1)] = field(
        default=None, metadata={"help": "Side of the images in pixels; the backbone's own by default."}
    )
    on_bad_image: str = field(
        default="fail",
        metadata={
            "help": "What to do about images that cannot be read, found before training: fail, skip or unchecked; "
            "unchecked does not look for them and stops at the first one."
        },
    )
    fast_decode: bool = field(
        default=True,
        metadata={
            "help": "Decode JPEGs for training at 1/2, 1/4 or 1/8 of their size where the crop stays at least as "
            "large as the model's input. Test images are always decoded in full."
        },
    )
    cache_resized: str | None = field(
        default=None, metadata={"help": "Folder that keeps smaller copies of the training images (JPEG), made once."}
    )
    cache_resized_side: Annotated[int, Range(16)] = field(
        default=256, metadata={"help": "Shorter side of these copies in pixels; no smaller than image_size."}
    )
    on_device: bool = field(
        default=False,
        metadata={
            "help": "Keep all images on the device that trains, as bytes, and augment them there, a batch at a time "
            "(augmentation none or cifar); for small images that fit its memory."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training images as a stream, for data sets too large for the disk; needs max_steps."
        },
    )
    class_counts: str | None = field(
        default=None, metadata={"help": "JSON file of a stream's class counts (name: images), written if missing."}
    )
    shuffle_buffer: Annotated[int, Range(0)] = field(
        default=1000, metadata={"help": "Shuffle buffer of a stream, in images."}
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        choices: dict[str, Iterable[str]] = {
            "augmentation": AUGMENTATIONS,
            "imbalance_profile": PROFILES,
            "on_bad_image": ON_BAD_IMAGE,
        }
        for name, known in choices.items():
            if getattr(self, name) not in list(known):
                raise ValueError(unknown(name, str(getattr(self, name)), known))
        if None not in (self.validation_split, self.validation_fraction):
            raise ValueError(
                f"validation_split is {self.validation_split!r} and validation_fraction {self.validation_fraction:g}; "
                "set one of them alone."
            )
        if self.label_separator == "":
            raise ValueError(
                "label_separator is empty; set it to what separates the classes of an image, or leave it out."
            )
        if self.cache_features:
            self._check_cache_features()

    @property
    def has_validation(self) -> bool:
        """Whether there are images to evaluate on while training that are neither trained on nor tested on."""
        return self.validation_split is not None or self.validation_fraction is not None

    @property
    def num_views(self) -> int | None:
        """Fixed views of each training image; None where each epoch draws anew, or there is nothing to draw."""
        return None if self.augmentation == "none" else self.augmentation_views

    def _check_cache_features(self) -> None:
        for name in ("streaming", "on_device"):
            if getattr(self, name):
                raise ValueError(
                    f"cache_features keeps the features of stored images, which {name} does not give; set {name} or "
                    "cache_features to false."
                )
        if self.augmentation != "none" and self.augmentation_views is None:
            raise ValueError(
                f"cache_features keeps the features of each image, and the augmentation {self.augmentation!r} draws "
                "anew in every epoch; set augmentation_views to a number of views to keep (4, say), or augmentation "
                "to none."
            )
