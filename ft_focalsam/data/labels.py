"""The labels of any training set a Trainer takes, read without decoding images where that is possible, and counted."""

import logging
from collections.abc import Mapping, Sized
from dataclasses import dataclass

import datasets
import numpy as np
from torch.utils.data import Dataset, IterableDataset, Subset
from tqdm.auto import tqdm

from .columns import label_array
from .multi_label import class_label_of, holds_lists

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that losses of PyTorch leave out
LABEL_KEYS = ("labels", "label")
NUM_COMPARED = 50  # classes of which an item is read, to see that it has the label it is counted with


@dataclass(frozen=True)
class LabelCounts:
    """What is counted of the labels of a training set.

    Args:
        counts (`np.ndarray`): Training samples of each class, int64 of shape (C,).
        num_samples (`int`): N, those with a label.
        is_multi_label (`bool`): Whether a sample may have several classes, or none.
    """

    counts: np.ndarray
    num_samples: int
    is_multi_label: bool


def dataset_labels(dataset: Dataset, *, keys: tuple[str, ...] = LABEL_KEYS) -> np.ndarray:
    """Class labels of a data set with a length.

    Several classes per image are a list of class numbers, or a row of 0 and 1.

    Read from the column "labels" or "label" of a `datasets.Dataset`, the attribute `targets` of a torchvision one, the
    set behind a `Subset`, or else from the items themselves.

    Args:
        dataset (`Dataset`): Items are mappings with "labels" or "label".
        keys (tuple of `str`): What the label may be called; the first that is there counts.

    Returns:
        `np.ndarray`: int64 of shape (N,), or, for several classes per image, 0 and 1 in uint8 of shape (N, C).

    Raises:
        ValueError: If it is a stream or has no length, no label is found, or labels are no classes (numbers with a
            fraction, class probabilities).
    """
    if isinstance(dataset, (IterableDataset, datasets.IterableDataset)):
        raise ValueError("The training set is a stream, whose classes cannot be counted; give class_counts.")
    if isinstance(dataset, Subset):
        return dataset_labels(dataset.dataset, keys=keys)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, datasets.Dataset):
        return _column_labels(dataset, keys)
    if hasattr(dataset, "targets"):
        targets = dataset.targets
        transform = getattr(dataset, "target_transform", None)
        if transform is not None:
            targets = [transform(target) for target in targets]
        return as_classes(targets, where="its targets")
    if not isinstance(dataset, Sized):
        raise ValueError(
            f"The training set is a {type(dataset).__name__} without length, whose classes cannot be counted; give it "
            "`__len__`, or give class_counts."
        )
    items = tqdm(
        (dataset[index] for index in range(len(dataset))), total=len(dataset), desc="Counting classes", disable=None
    )
    return as_classes([_label_of(item, keys) for item in items], where="its items")


def count_classes(dataset: Dataset, *, num_classes: int | None, keys: tuple[str, ...] = LABEL_KEYS) -> np.ndarray:
    """Training samples per class, int64 of shape (C,); see [`count_labels`]."""
    return count_labels(dataset, num_classes=num_classes, keys=keys).counts


def count_labels(dataset: Dataset, *, num_classes: int | None, keys: tuple[str, ...] = LABEL_KEYS) -> LabelCounts:
    """Training samples per class; those with the label -100 are left out, and the log says how many these are.

    Args:
        dataset (`Dataset`), keys: As for `dataset_labels`.
        num_classes (`int`, *optional*): C; by default one more than the highest label.

    Raises:
        ValueError: As `dataset_labels`, and if a label is outside 0..C-1, or items have other labels than the column
            or `targets` that they are counted by.
    """
    labels = dataset_labels(dataset, keys=keys)
    if _may_change_labels(dataset):
        _compare_items(dataset, labels, keys)
    if labels.ndim == 2:
        return _count_sets(labels, num_classes)
    is_ignored = labels == IGNORED
    if is_ignored.all():
        raise ValueError(f"All {len(labels):,} training samples have the label {IGNORED}; give them classes.")
    if is_ignored.any():
        logger.warning(
            "%d of %d training samples have the label %d and are left out.", is_ignored.sum(), len(labels), IGNORED
        )
    num_classes = num_classes or int(labels.max()) + 1
    outside = np.flatnonzero(((labels < 0) | (labels >= num_classes)) & ~is_ignored)
    if outside.size:
        raise ValueError(
            f"Row {outside[0]} of the training set has the label {labels[outside[0]]}, outside 0..{num_classes - 1} "
            f"for the model's {num_classes} classes; correct it, or set the model's num_labels."
        )
    counts = np.bincount(labels[~is_ignored], minlength=num_classes)
    return LabelCounts(counts, int(counts.sum()), is_multi_label=False)


def _count_sets(labels: np.ndarray, num_classes: int | None) -> LabelCounts:
    if num_classes is not None and labels.shape[1] > num_classes:
        raise ValueError(
            f"The training set has labels of {labels.shape[1]} classes and the model {num_classes}; correct them, or "
            "set the model's num_labels."
        )
    counts = labels.sum(axis=0, dtype=np.int64)
    missing = 0 if num_classes is None else num_classes - len(counts)  # classes above the highest that an image has
    return LabelCounts(np.pad(counts, (0, missing)), len(labels), is_multi_label=True)


def as_classes(values, *, where: str) -> np.ndarray:
    """Labels as int64, or, for several classes per image, 0 and 1 in uint8, if they are classes.

    Args:
        values (sequence): Numbers, or rows of 0 and 1.
        where (`str`): Where they are from, for the error.

    Raises:
        ValueError: If they are not whole numbers of shape (N,), nor 0 and 1 of shape (N, C).
    """
    try:
        labels = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise ValueError(_no_classes(where)) from error
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        return labels.astype(np.uint8)
    if labels.ndim != 1:
        raise ValueError(_no_classes(where))
    if labels.dtype.kind == "f":
        raise ValueError(
            f"The labels of the training set, of {where}, are {labels.dtype} (the first is {labels[0]}), and classes "
            "are whole numbers; cast them to integers. Regression is not supported."
        )
    if labels.dtype.kind not in "iub":
        raise ValueError(
            f"The labels of the training set, of {where}, are of type {labels.dtype}; make them integers 0..C-1."
        )
    return labels.astype(np.int64)


def _no_classes(where: str) -> str:
    return (
        f"The labels of the training set, of {where}, are lists that are no rows of 0 and 1; give each image one "
        "class number, or a 1 for each of its classes, or give class_counts for class probabilities."
    )


def _column_labels(dataset: datasets.Dataset, keys: tuple[str, ...]) -> np.ndarray:
    column = next((key for key in keys if key in dataset.column_names), None)
    if column is None:
        raise ValueError(
            f"The training set has the columns {dataset.column_names} and no '{keys[0]}'; rename the one with the "
            "classes."
        )
    where, feature = f"the column '{column}'", dataset.features[column]
    if holds_lists(feature) and str(class_label_of(feature).dtype).startswith(("int", "uint")):
        return _list_labels(dataset, column)
    if not isinstance(feature, (datasets.ClassLabel, datasets.Value)):
        return as_classes(_plain_column(dataset, column), where=where)
    if isinstance(feature, datasets.Value) and not feature.dtype.startswith(("int", "uint")):
        return as_classes(dataset.select_columns([column]).with_format("numpy")[column][:], where=where)
    return label_array(dataset, column)


def _plain_column(dataset: datasets.Dataset, column: str) -> list:
    return dataset.select_columns([column]).with_format(None)[column][:]


def _list_labels(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """Lists of class numbers, or rows of 0 and 1: those that repeat one of the two, which no list of classes does."""
    lists = _plain_column(dataset, column)
    is_row = len({len(each) for each in lists}) == 1 and any(len(set(each)) < len(each) for each in lists)
    if is_row and all(value in (0, 1) for each in lists for value in each):
        return np.array(lists, dtype=np.uint8)
    return label_array(dataset, column)


def _may_change_labels(dataset: Dataset) -> bool:
    """Whether items may have other labels than `dataset_labels` says, which reads no item where it need not."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, datasets.Dataset):
        return dataset.format["type"] == "custom"  # it has a transform
    return hasattr(dataset, "targets") and not getattr(dataset, "items_have_targets", False)


def _compare_items(dataset: Dataset, labels: np.ndarray, keys: tuple[str, ...]) -> None:
    """Raise a `ValueError` where an item has another label than it is counted with; one of each class is read."""
    _, rows = np.unique(labels, return_index=True, axis=0)
    for row in rows[:NUM_COMPARED]:
        item = dataset[int(row)]
        label = _label_of(item, keys) if isinstance(item, Mapping) else item[1]
        if not _is_same(label, labels[row]):
            raise ValueError(
                f"Row {row} of the training set has the label {labels[row]} in its column or targets and {label} in "
                "the item, so a transform changes labels; give FocalSAMTrainer class_counts of the changed ones."
            )


def _is_same(label, counted: np.ndarray) -> bool:
    """Whether the label of an item is what it is counted with; several classes may be numbers or a row."""
    if counted.ndim == 0:
        return bool(label == counted)
    label = np.asarray(label)
    if label.shape == counted.shape and np.isin(label, (0, 1)).all():
        return bool((label == counted).all())
    return sorted(label.tolist()) == np.flatnonzero(counted).tolist()


def _label_of(item, keys: tuple[str, ...]):
    if not isinstance(item, Mapping):
        raise ValueError(
            f"An item of the training set is a {type(item).__name__}; make it a mapping with '{keys[0]}'."
        )
    for key in keys:
        if key in item:
            label = item[key]
            return label.tolist() if hasattr(label, "tolist") else label
    raise ValueError(
        f"An item of the training set has the keys {sorted(item)} and no '{keys[0]}'; add the class to it."
    )
