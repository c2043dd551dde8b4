"""From the data section of a run's description to the images it trains and tests on."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import datasets
import numpy as np

from .arguments import DataArguments
from .columns import label_array
from .image_data import ImageData
from .images import BadImageError, StoredImage, undecoded
from .long_tail import class_counts
from .resized_cache import resize_into_cache
from .scan import find_broken
from .sources import load_image_data

SPLITS = {"train": "training", "test": "test", "validation": "validation"}  # attribute of ImageData -> in sentences
SAMPLE = 64  # images that stand for a data set
_LISTED = 10


def prepare_images(args: DataArguments, *, say: Callable[[str], object] = print) -> ImageData:
    """Load the images, put those for validation aside, cut the others to the long tail that is asked for, see that all
    of them can be read, and, if asked for, train on smaller copies of them.

    With `on_bad_image="skip"` broken images leave before the cut, so that the class counts are those of the profile.

    Args:
        args (`DataArguments`): Of the run.
        say (`Callable`, defaults to `print`): Takes the list of the images that are skipped, and of the classes of
            which no image is left to test on or to validate on.

    Raises:
        FileNotFoundError, ValueError: As in [`load_image_data`] and [`ImageData.cut`].
        BadImageError: If an image is broken, and broken ones are not to be skipped.
    """
    data = load_image_data(
        args.dataset,
        test_dataset=args.test_dataset,
        image_root=args.image_root,
        class_names=args.class_names,
        image_column=args.image_column,
        label_column=args.label_column,
        label_separator=args.label_separator,
        train_split=args.train_split,
        test_split=args.test_split,
        test_fraction=args.test_fraction,
        validation_split=args.validation_split,
        config_name=args.dataset_config,
    )
    if args.on_bad_image == "skip":
        data = drop_broken(data, say=say)
    refuse_untrained_classes(data)
    if args.validation_fraction is not None:
        data = _hold_out(data, args.validation_fraction)
    for split, fraction in (("test", args.test_fraction), ("validation", args.validation_fraction)):
        if fraction is not None and fraction < 1:
            _name_missing_classes(data, split, fraction, say=say)
    data = data.cut(
        imbalance_factor=args.imbalance_factor,
        profile=args.imbalance_profile,
        max_train_per_class=args.max_train_per_class,
        max_test_per_class=args.max_test_per_class,
        seed=args.long_tail_seed,
    )
    if args.max_imbalance is not None:
        data = data.limit_imbalance(args.max_imbalance, seed=args.max_imbalance_seed)
    if args.on_bad_image == "fail":
        refuse_broken(data)
    if args.cache_resized is not None:
        data = replace(data, train=resize_into_cache(data.train, args.cache_resized, side=args.cache_resized_side))
    return data


def _hold_out(data: ImageData, fraction: float) -> ImageData:
    """[`ImageData.hold_out`], with the name of the key in what is raised."""
    try:
        return data.hold_out(fraction)
    except ValueError as error:
        raise ValueError(str(error).replace("test_fraction=", "validation_fraction=", 1)) from error


def content_digest(dataset: datasets.Dataset) -> str:
    """What tells a data set from another one wherever its files are: a SHA-256 of all labels and of some images.

    Args:
        dataset (`datasets.Dataset`): As in [`ImageData`].
    """
    found = hashlib.sha256(label_array(dataset).tobytes())
    stored = undecoded(dataset)
    for row in np.unique(np.linspace(0, len(stored) - 1, num=min(SAMPLE, len(stored)), dtype=int)):
        try:
            found.update(StoredImage.read(stored[int(row)]["image"], row=int(row)).content)
        except BadImageError:  # which a run may leave unchecked
            found.update(b"broken")
    return found.hexdigest()


def _name_missing_classes(data: ImageData, split: str, fraction: float, *, say: Callable[[str], object]) -> None:
    """Say which classes have images to train on and none to test or to validate on."""
    train, held = (class_counts(label_array(data.parts[name]), data.num_classes) for name in ("train", split))
    missing = np.flatnonzero((held == 0) & (train > 0))
    if missing.size:
        first = ", ".join(f"'{data.class_names[i]}' ({train[i]})" for i in missing[:_LISTED])
        others = f" and {missing.size - _LISTED:,} others" if missing.size > _LISTED else ""
        say(
            f"The {split} set has no image of {missing.size:,} of {data.num_classes:,} classes, too small to give "
            f"{fraction:g} of their images, which all go to training: {first}{others}."
        )


def refuse_untrained_classes(data: ImageData) -> None:
    """Raise a `ValueError` where the test set or the validation set has a class of which there is no training image;
    names the classes."""
    counts = {split: class_counts(label_array(part), data.num_classes) for split, part in data.parts.items()}
    train = counts.pop("train")
    for split, held in counts.items():
        missing = [data.class_names[index] for index in np.flatnonzero((train == 0) & (held > 0))]
        if missing:
            without = [data.class_names[index] for index in np.flatnonzero((train > 0) & (held == 0))]
            listed = ", ".join(f"'{name}'" for name in missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
            other = f"; of '{without[0]}' there are training images and no {split} images" if without else ""
            raise ValueError(
                f"The {split} set has {len(missing):,} of {data.num_classes:,} classes without a training image "
                f"({listed}){other}; give both sets the same class names, or take these images out of the {split} set."
            )


def refuse_broken(data: ImageData) -> None:
    """Decode every image once (the result is cached).

    Raises:
        BadImageError: Names the first one that is broken, and says how many are.
    """
    for split, dataset in data.parts.items():
        what = SPLITS[split]
        broken = find_broken(dataset, desc=f"Checking the {what} images")
        if broken:
            first = next(iter(broken.values()))
            others = "" if len(broken) == 1 else f" ({len(broken):,} of {len(dataset):,} {what} images are broken)"
            raise BadImageError(first.removesuffix(".") + others + ".")


def drop_broken(data: ImageData, *, say: Callable[[str], object] = print) -> ImageData:
    """The same data without the images that cannot be read, which are counted and listed.

    Raises:
        ValueError: If no image of a split is left.
    """
    parts = data.parts
    for split, dataset in data.parts.items():
        what = SPLITS[split]
        broken = find_broken(dataset, desc=f"Checking the {what} images")
        if broken:
            say(f"{len(broken):,} of {len(dataset):,} {what} images cannot be read and are skipped:")
            for error in list(broken.values())[:_LISTED]:
                say(f"  {error.partition('; replace')[0].partition('; shrink')[0]}")
            if len(broken) > _LISTED:
                say(f"  and {len(broken) - _LISTED:,} others, which ft-focalsam inspect lists.")
            if len(broken) == len(dataset):
                raise ValueError(f"None of the {len(dataset):,} {what} images can be read; check the data set.")
            parts[split] = dataset.select([row for row in range(len(dataset)) if row not in broken])
    return replace(data, **parts)
