"""The labels of any training set a Trainer takes, read without decoding images where that is possible."""

from collections.abc import Mapping

import datasets
import numpy as np
from torch.utils.data import Dataset, IterableDataset, Subset
from tqdm.auto import tqdm

from .columns import label_array

LABEL_KEYS = ("labels", "label")


def dataset_labels(dataset: Dataset) -> np.ndarray:
    """Class labels of a data set with a length.

    Read from the column "labels" or "label" of a `datasets.Dataset`, the attribute `targets` of a torchvision one, the
    set behind a `Subset`, or else from the items themselves.

    Args:
        dataset (`Dataset`): Items are mappings with "labels" or "label".

    Returns:
        `np.ndarray`: int64 of shape (N,).

    Raises:
        ValueError: If it is a stream, or no label is found.
    """
    if isinstance(dataset, (IterableDataset, datasets.IterableDataset)):
        raise ValueError("The training set is a stream, whose classes cannot be counted; give class_counts.")
    if isinstance(dataset, datasets.Dataset):
        column = next((key for key in LABEL_KEYS if key in dataset.column_names), None)
        if column is None:
            raise ValueError(
                f"The training set has the columns {dataset.column_names} and no 'labels'; rename the one with the "
                "classes."
            )
        return label_array(dataset, column)
    if isinstance(dataset, Subset):
        return dataset_labels(dataset.dataset)[np.asarray(dataset.indices, dtype=np.int64)]
    if hasattr(dataset, "targets"):
        return np.asarray(dataset.targets, dtype=np.int64)
    items = tqdm((dataset[index] for index in range(len(dataset))), total=len(dataset), desc="Counting classes")
    return np.array([_label_of(item) for item in items], dtype=np.int64)


def _label_of(item) -> int:
    if not isinstance(item, Mapping):
        raise ValueError(f"An item of the training set is a {type(item).__name__}; make it a mapping with 'labels'.")
    for key in LABEL_KEYS:
        if key in item:
            return int(item[key])
    raise ValueError(f"An item of the training set has the keys {sorted(item)} and no 'labels'; add the class to it.")
