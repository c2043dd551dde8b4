"""Test sets: the test split of any data set, or all of one that has nothing else."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets

from ..data import SOURCES, ImageData, MissingSplitError, load_image_data
from ..data.multi_label import holds_lists

# Splits that are taken for the whole of a data set without a training split, in this order.
ONLY_SPLITS = ("train", "test", "validation", "val")


@dataclass(frozen=True)
class EvalDataset:
    """Images to test on.

    Args:
        images (`datasets.Dataset`): Columns "image" and "labels", as in [`~ft_focalsam.data.ImageData`].
        class_names (`list[str]`): The K class names, as the data set spells them.
        name (`str`): What the report calls it, a [`short_name`].
        note (`str`): What to know about the choice of images; may be empty.
    """

    __test__ = False  # it is no test of pytest's

    images: datasets.Dataset
    class_names: list[str]
    name: str
    note: str = ""

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return holds_lists(self.images.features["labels"])


def load_eval_dataset(
    name: str,
    *,
    split: str | None = None,
    test_fraction: float | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    config_name: str | None = None,
) -> EvalDataset:
    """Load a test set by what [`~ft_focalsam.data.load_image_data`] takes.

    By default it is the split called test, else validation or val; a data set that has one split and no other, as a
    folder of class folders, is taken whole.

    Args:
        name (`str`): A registered source, a Hub name or a path.
        split (`str`, *optional*): The split to test on; all of it.
        test_fraction (`float`, *optional*): Test on the share of the training split that a run with this
            `test_fraction` had cut off.
        image_column, label_column, label_separator, config_name: As in `load_image_data`.

    Raises:
        FileNotFoundError, ValueError: As `load_image_data`.
    """
    load = partial(
        load_image_data,
        name,
        image_column=image_column,
        label_column=label_column,
        label_separator=label_separator,
        config_name=config_name,
    )
    if split is not None and name in SOURCES:
        raise ValueError(f"The registered source '{name}' has a test split of its own; drop --split {split}.")
    if split is not None:
        try:
            return _whole(load(train_split=split, test_fraction=1), name, split)
        except MissingSplitError as error:
            available = ", ".join(f"'{each}'" for each in error.available)
            raise ValueError(f"'{name}' has no split '{split}'; set --split to one of {available}.") from error
    try:
        return _of(load(test_fraction=test_fraction), name)
    except MissingSplitError:
        if name in SOURCES or test_fraction is not None:
            raise
        for only in ONLY_SPLITS:
            try:
                return _whole(load(train_split=only, test_fraction=1), name, only)
            except MissingSplitError:
                continue
        raise


def short_name(name: str) -> str:
    """What a report calls a data set or a model: the last two parts of a path, any other name as it is."""
    path = Path(name).expanduser()
    return "/".join(path.resolve().parts[-2:]) if path.exists() else name


def title_name(name: str) -> str:
    """What a title calls a data set or a model: the last part of a path, of a checkpoint with its run ("run,
    checkpoint-20"); any other name as it is."""
    path = Path(name).expanduser()
    if not path.exists():
        return name
    path = path.resolve()
    return f"{path.parent.name}, {path.name}" if path.name.startswith("checkpoint-") else path.name


def file_name(name: str, suffix: str = "") -> str:
    """A name as part of a file's: letters and digits of any language, dots, hyphens; the rest as underscores."""
    return re.sub(r"[^\w.-]+", "_", name).lstrip(".") + suffix


def _of(data: ImageData, name: str) -> EvalDataset:
    return EvalDataset(data.test, data.class_names, short_name(name))


def _whole(data: ImageData, name: str, split: str) -> EvalDataset:
    """All images of a split, which are the test part of the data."""
    note = (
        f"All {len(data.test):,} images of the split '{split}' of {short_name(name)} are the test; a model that was "
        "trained on some of them knows these already (--test_fraction gives the part that a run had cut off)."
    )
    return EvalDataset(data.test, data.class_names, short_name(name), note)
