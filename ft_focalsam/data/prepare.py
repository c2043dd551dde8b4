"""From the data section of a run's description to the images it trains and tests on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .arguments import DataArguments
from .columns import label_array
from .images import BadImageError
from .resized_cache import resize_into_cache
from .scan import find_broken
from .sources import ImageData, load_image_data

_LISTED = 10


def prepare_images(args: DataArguments, *, say: Callable[[str], object] = print) -> ImageData:
    """Load the images, cut them to the long tail that is asked for, see that all of them can be read, and, if asked
    for, train on smaller copies of them.

    With `on_bad_image="skip"` broken pictures leave before the cut, so that the class counts are those of the profile.

    Args:
        args (`DataArguments`): Of the run.
        say (`Callable`, defaults to `print`): Takes the list of the pictures that are skipped.

    Raises:
        FileNotFoundError, ValueError: As in [`load_image_data`] and [`ImageData.cut`].
        BadImageError: If a picture is broken, and broken ones are not to be skipped.
    """
    data = load_image_data(
        args.dataset,
        test_dataset=args.test_dataset,
        image_root=args.image_root,
        class_names=args.class_names,
        image_column=args.image_column,
        label_column=args.label_column,
        train_split=args.train_split,
        test_split=args.test_split,
        test_fraction=args.test_fraction,
        config_name=args.dataset_config,
    )
    if args.on_bad_image == "skip":
        data = drop_broken(data, say=say)
    refuse_untrained_classes(data)
    data = data.cut(
        imbalance_factor=args.imbalance_factor,
        profile=args.imbalance_profile,
        max_train_per_class=args.max_train_per_class,
        max_test_per_class=args.max_test_per_class,
        seed=args.long_tail_seed,
    )
    if args.on_bad_image == "fail":
        refuse_broken(data)
    if args.cache_resized is not None:
        data = replace(data, train=resize_into_cache(data.train, args.cache_resized, side=args.cache_resized_side))
    return data


def refuse_untrained_classes(data: ImageData) -> None:
    """Raise a `ValueError` where the test set has a class of which there is no training image; names the classes."""
    train, test = (np.bincount(label_array(part), minlength=data.num_classes) for part in (data.train, data.test))
    missing = [data.class_names[index] for index in np.flatnonzero((train == 0) & (test > 0))]
    if missing:
        untested = [data.class_names[index] for index in np.flatnonzero((train > 0) & (test == 0))]
        listed = ", ".join(f"'{name}'" for name in missing[:_LISTED]) + (", ..." if len(missing) > _LISTED else "")
        other = f"; of '{untested[0]}' there are training images and no test images" if untested else ""
        raise ValueError(
            f"The test set has {len(missing):,} of {data.num_classes:,} classes without a training image ({listed})"
            f"{other}; give both sets the same class names, or take these images out of the test set."
        )


def refuse_broken(data: ImageData) -> None:
    """Decode every picture once (the result is cached).

    Raises:
        BadImageError: Names the first one that is broken, and says how many are.
    """
    for split, dataset in (("training", data.train), ("test", data.test)):
        broken = find_broken(dataset, desc=f"Checking the {split} images")
        if broken:
            first = next(iter(broken.values()))
            others = "" if len(broken) == 1 else f" ({len(broken):,} of {len(dataset):,} {split} images are broken)"
            raise BadImageError(first.removesuffix(".") + others + ".")


def drop_broken(data: ImageData, *, say: Callable[[str], object] = print) -> ImageData:
    """The same data without the pictures that cannot be read, which are counted and listed.

    Raises:
        ValueError: If no picture of a split is left.
    """
    parts = {"training": data.train, "test": data.test}
    for split, dataset in parts.items():
        broken = find_broken(dataset, desc=f"Checking the {split} images")
        if broken:
            say(f"{len(broken):,} of {len(dataset):,} {split} images cannot be read and are skipped:")
            for error in list(broken.values())[:_LISTED]:
                say(f"  {error.partition('; replace')[0].partition('; shrink')[0]}")
            if len(broken) > _LISTED:
                say(f"  and {len(broken) - _LISTED:,} others, which recipes/inspect_data.py lists.")
            if len(broken) == len(dataset):
                raise ValueError(f"None of the {len(dataset):,} {split} images can be read; check the data set.")
            parts[split] = dataset.select([row for row in range(len(dataset)) if row not in broken])
    return replace(data, train=parts["training"], test=parts["test"])
