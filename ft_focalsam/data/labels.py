"""The labels of any training set a Trainer takes, read without decoding images where that is possible, and counted."""

import logging
from collections.abc import Mapping

import datasets
import numpy as np
from torch.utils.data import Dataset, IterableDataset, Subset
from tqdm.auto import tqdm

from .columns import label_array

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that losses of PyTorch leave out
LABEL_KEYS = ("labels", "label")
NUM_COMPARED = 50  # classes of which an item is read, to see that it has the label it is counted with


def dataset_labels(dataset: Dataset, *, keys: tuple[str, ...] = LABEL_KEYS) -> np.ndarray:
    """Class labels of a data set with a length.

    Read from the column "labels" or "label" of a `datasets.Dataset`, the attribute `targets` of a torchvision one, the
    set behind a `Subset`, or else from the items themselves.

    Args:
        dataset (`Dataset`): Items are mappings with "labels" or "label".
        keys (tuple of `str`): What the label may be called; the first that is there counts.

    Returns:
        `np.ndarray`: int64 of shape (N,).

    Raises:
        ValueError: If it is a stream, no label is found, or labels are no classes (numbers with a fraction, several
            classes per image).
    """
    if isinstance(dataset, (IterableDataset, datasets.IterableDataset)):
        raise ValueError("The training set is a stream, whose classes cannot be counted; give class_counts.")
    if isinstance(dataset, Subset):
        return dataset_labels(dataset.dataset, keys=keys)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, datasets.Dataset):
        return _column_labels(dataset, keys)
    if hasattr(dataset, "targets"):
        targets = dataset.targets
        if getattr(dataset, "target_transform", None) is not None:
            targets = [dataset.target_transform(target) for target in targets]
        return as_classes(targets, where="its targets")
    items = tqdm(
        (dataset[index] for index in range(len(dataset))), total=len(dataset), desc="Counting classes", disable=None
    )
    return as_classes([_label_of(item, keys) for item in items], where="its items")


def count_classes(dataset: Dataset, *, num_classes: int | None, keys: tuple[str, ...] = LABEL_KEYS) -> np.ndarray:
    """Training samples per class; those with the label -100 are left out, and the log says how many these are.

    Args:
        dataset (`Dataset`), keys: As for `dataset_labels`.
        num_classes (`int`, *optional*): C; by default one more than the highest label.

    Returns:
        `np.ndarray`: int64 of shape (C,).

    Raises:
        ValueError: As `dataset_labels`, and if a label is outside 0..C-1, or items have other labels than the column
            or `targets` that they are counted by.
    """
    labels = dataset_labels(dataset, keys=keys)
    if _may_change_labels(dataset):
        _compare_items(dataset, labels, keys)
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
    return np.bincount(labels[~is_ignored], minlength=num_classes)


def as_classes(values, *, where: str) -> np.ndarray:
    """Labels as int64, if they are classes.

    Args:
        values (sequence): Numbers.
        where (`str`): Where they are from, for the error.

    Raises:
        ValueError: If they are not whole numbers of shape (N,).
    """
    try:
        labels = np.asarray(values)
    except ValueError as error:  # rows of several lengths
        raise ValueError(_several(where)) from error
    if labels.ndim != 1:
        raise ValueError(_several(where))
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


def _several(where: str) -> str:
    return (
        f"The labels of the training set, of {where}, are lists of classes; give each image one class (multi-label "
        "training is not supported), or give class_counts for class probabilities."
    )


def _column_labels(dataset: datasets.Dataset, keys: tuple[str, ...]) -> np.ndarray:
    column = next((key for key in keys if key in dataset.column_names), None)
    if column is None:
        raise ValueError(
            f"The training set has the columns {dataset.column_names} and no '{keys[0]}'; rename the one with the "
            "classes."
        )
    where, feature = f"the column '{column}'", dataset.features[column]
    if not isinstance(feature, (datasets.ClassLabel, datasets.Value)):
        raise ValueError(_several(where))
    if isinstance(feature, datasets.Value) and not feature.dtype.startswith(("int", "uint")):
        return as_classes(dataset.select_columns([column]).with_format("numpy")[column][:], where=where)
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
    _, rows = np.unique(labels, return_index=True)
    for row in rows[:NUM_COMPARED]:
        item = dataset[int(row)]
        label = _label_of(item, keys) if isinstance(item, Mapping) else item[1]
        if label != labels[row]:
            raise ValueError(
                f"Row {row} of the training set has the label {labels[row]} in its column or targets and {label} in "
                "the item, so a transform changes labels; give FocalSAMTrainer class_counts of the changed ones."
            )


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
