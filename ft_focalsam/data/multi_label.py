"""Labels of several classes per image: a list of classes in a column, a row of 0 and 1 per image in memory."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor


def holds_lists(feature) -> bool:
    """Whether a column of this feature holds a list per image."""
    return isinstance(feature, (datasets.List, datasets.LargeList))


def class_label_of(feature):
    """The feature of a class: of a column of lists, that of their entries."""
    return feature.feature if holds_lists(feature) else feature


def flatten(column: pa.Array) -> pa.Array:
    """The entries of all lists, one after the other; any other column as it is."""
    return column.flatten() if is_nested(column) else column


def is_nested(column: pa.Array) -> bool:
    return pa.types.is_list(column.type) or pa.types.is_large_list(column.type)


def rows_of_entries(column: pa.Array) -> np.ndarray:
    """Row of each entry of [`flatten`], int64."""
    if not is_nested(column):
        return np.arange(len(column))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return np.repeat(np.arange(len(column)), lengths)


def regroup(column: pa.Array, entries: pa.Array) -> pa.Array:
    """Lists as long as those of `column`, of other entries."""
    lengths = pc.list_value_length(column).to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), entries)


def multi_hot(rows: np.ndarray, classes: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """A 1 for each class of each image.

    Args:
        rows, classes (`np.ndarray`): Image and class of each label, of equal length.
        size (`tuple[int, int]`): (N, C).

    Returns:
        `np.ndarray`: uint8 of shape (N, C).
    """
    result = np.zeros(size, dtype=np.uint8)
    result[rows, classes] = 1
    return result


def multi_hot_rows(lists: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """[`multi_hot`] of a list of classes per image."""
    rows = np.repeat(np.arange(len(lists)), [len(each) for each in lists])
    classes = np.array([index for each in lists for index in each], dtype=np.int64)
    return multi_hot(rows, classes, size=(len(lists), num_classes))


def as_label_tensor(labels: np.ndarray) -> Tensor:
    """Labels as batches have them: int64 of shape (N,), or float32 of shape (N, C) for several classes per image."""
    return torch.as_tensor(labels, dtype=torch.float32 if labels.ndim == 2 else torch.int64)


def stratified_split_of_sets(labels: np.ndarray, *, test_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images of several classes each into train and test, so that each class is split alike.

    Iterative stratification (Sechidis et al., 2011, https://doi.org/10.1007/978-3-642-23808-6_10) in a fixed order:
    class by class, the rarest first, images that have not been given yet go to the test side until it has its share of
    the class; at last the images without a class. A class that would have no training image gets one back.

    Args:
        labels (`np.ndarray`): 0 and 1, of shape (N, C).
        test_fraction (`float`): Share of each class, inside (0, 1), rounded.
        seed (`int`): Seed of the draw.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Sorted indices, int64, disjoint, together all of 0..N-1.
    """
    has = np.concatenate([labels, labels.sum(axis=1, keepdims=True) == 0], axis=1).astype(bool)
    counts, num_classes = has.sum(axis=0), labels.shape[1]
    wanted = np.clip(np.rint(test_fraction * counts).astype(np.int64), 0, np.maximum(counts - 1, 0))
    is_test, is_given = np.zeros(len(labels), dtype=bool), np.zeros(len(labels), dtype=bool)
    for index in [*np.argsort(counts[:num_classes], kind="stable"), num_classes]:
        open_rows = np.flatnonzero(has[:, index] & ~is_given)
        left = max(0, wanted[index] - int((has[:, index] & is_test).sum()))
        drawn = np.random.RandomState([seed, index]).permutation(open_rows)
        is_test[drawn[:left]] = True
        is_given[open_rows] = True
    for index in np.flatnonzero(counts[:num_classes]):
        if is_test[has[:, index]].all():
            is_test[np.flatnonzero(has[:, index])[0]] = False
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def refuse_repeated(column: pa.Array, *, split: str) -> None:
    """Raise a `ValueError` where a list names a class twice, as a row of 0 and 1 does."""
    rows, classes = rows_of_entries(column), column.flatten().to_numpy()
    order = np.lexsort((classes, rows))
    same = (np.diff(rows[order]) == 0) & (np.diff(classes[order]) == 0)
    if same.any():
        found = order[np.flatnonzero(same)[0]]
        raise ValueError(
            f"Row {rows[found]} of split '{split}' names the class {classes[found]} twice; list each class of an "
            "image once, by its name or number, not as a row of 0 and 1."
        )
