"""Find, check and normalise the image and the label column of any image-classification data set."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..base.errors import printable
from .multi_label import (
    class_label_of,
    flatten,
    holds_lists,
    is_nested,
    multi_hot,
    refuse_repeated,
    regroup,
    rows_of_entries,
)

LABEL_NAMES = ("labels", "label", "fine_label", "class", "target")


def find_image_column(features: datasets.Features, image_column: str | None = None) -> str:
    """Name of the column that holds the images.

    Args:
        features (`datasets.Features`): Features of the training split.
        image_column (`str`, *optional*): The user's choice; by default the one column with an `Image` feature.

    Raises:
        ValueError: If the chosen column does not exist, or if there is not exactly one column to choose.
    """
    if image_column is not None:
        return _check_exists(features, image_column, option="--image_column")
    found = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    return _the_only(found, features, kind="image", option="--image_column")


def find_label_column(features: datasets.Features, label_column: str | None = None) -> str:
    """Name of the column that holds the class of each image.

    By default the one column of `ClassLabel`s or of lists of them (`fine_label` before `coarse_label`), else the one
    with a usual name: labels, label, fine_label, class or target.

    Args:
        features (`datasets.Features`): Features of the training split.
        label_column (`str`, *optional*): The user's choice.

    Raises:
        ValueError: If the chosen column does not exist, or if there is not exactly one column to choose.
    """
    if label_column is not None:
        return _check_exists(features, label_column, option="--label_column")
    found = [name for name, feature in features.items() if isinstance(class_label_of(feature), datasets.ClassLabel)]
    if "fine_label" in found and "coarse_label" in found:
        found.remove("coarse_label")
    if not found:
        found = [name for name in LABEL_NAMES if name in features]
    return _the_only(found, features, kind="label", option="--label_column")


def normalise(
    splits: datasets.DatasetDict, *, image_column: str, label_column: str, class_names: list[str] | None = None
) -> datasets.DatasetDict:
    """Reduce every split to the columns `"image"` (decoded on access) and `"labels"`, `ClassLabel`s or lists of them.

    Strings become classes in the order of their sorted names; integers without names are named by their number. The
    classes are those of the first split, and no image is decoded or copied. A column of lists stays one: an image has
    several classes.

    Args:
        splits (`datasets.DatasetDict`): The training split first, then the test split where there is one.
        image_column (`str`): Column of the images.
        label_column (`str`): Column of the classes.
        class_names (`list[str]`, *optional*): Names of integer classes that the data set does not name.

    Raises:
        ValueError: If a split lacks a column, or its labels cannot be classes of the first split.
    """
    for split, dataset in splits.items():
        for column, option in ((image_column, "--image_column"), (label_column, "--label_column")):
            _check_exists(dataset.features, column, option=option, where=f" of split '{split}'")
    first_split, first = next(iter(splits.items()))
    names = _class_names(first, label_column, split=first_split, given=class_names)
    result = datasets.DatasetDict()
    for split, dataset in splits.items():
        dataset = _with_class_label(dataset, label_column, names=names, split=split)
        dataset = dataset.select_columns([image_column, label_column])
        if not (isinstance(dataset.features[image_column], datasets.Image) and dataset.features[image_column].decode):
            dataset = dataset.cast_column(image_column, datasets.Image())
        mapping = {old: new for old, new in ((image_column, "image"), (label_column, "labels")) if old != new}
        result[split] = dataset.rename_columns(mapping) if mapping else dataset
    return result


def label_array(dataset: datasets.Dataset, column: str = "labels") -> np.ndarray:
    """One column of class labels, read through Arrow without touching the images.

    Of a column of lists without class names, the number of classes is one more than the highest entry.

    Args:
        dataset (`datasets.Dataset`): Any data set with that column, whatever its format or transform.
        column (`str`, defaults to `"labels"`): Name of the column.

    Returns:
        `np.ndarray`: int64 of shape (N,); of a column of lists, a 1 for each class of an image, uint8 of shape (N, C).
    """
    stored, feature = _arrow_column(dataset, column), class_label_of(dataset.features[column])
    classes = flatten(stored).to_numpy().astype(np.int64)
    if not is_nested(stored):
        return classes
    has_names = isinstance(feature, datasets.ClassLabel)
    if classes.min(initial=0) < 0:
        raise ValueError(f"The column '{column}' has the class {classes.min()} in a list; number classes from 0.")
    num_classes = feature.num_classes if has_names else int(classes.max(initial=-1)) + 1
    return multi_hot(rows_of_entries(stored), classes, size=(len(stored), num_classes))


def check_labels(dataset: datasets.Dataset, num_classes: int, *, split: str) -> None:
    """Check that the column `"labels"` holds nothing but the integers 0..C-1, or lists of them.

    Raises:
        ValueError: With the split, the row (counted from 0), the value and the range.
    """
    column = _arrow_column(dataset, "labels")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
        remedy = "write an empty list" if is_nested(column) else "remove the images without a class"
        raise ValueError(f"Row {row} of split '{split}' has no label; {remedy}.")
    values, rows = flatten(column), rows_of_entries(column)
    if values.null_count:
        row = rows[np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]]
        raise ValueError(f"Row {row} of split '{split}' has a list of classes with an empty entry; remove it.")
    if not pa.types.is_integer(values.type):
        raise ValueError(
            f"The column 'labels' of split '{split}' holds {values.type}, not integers 0..{num_classes - 1}."
        )
    labels = values.to_numpy()
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        first = int(outside[0])
        raise ValueError(
            f"Row {rows[first]} of split '{split}' has the label {labels[first]}, outside 0..{num_classes - 1} for "
            f"the {num_classes} classes; correct or remove the {outside.size} rows of this kind."
        )
    if is_nested(column):
        refuse_repeated(column, split=split)


def check_class_names(names: list[str]) -> list[str]:
    """The names as they are.

    Raises:
        ValueError: If one has control characters, which tables and logs would hand to the terminal.
    """
    for name in names:
        if name != printable(name):
            raise ValueError(
                f"The class name '{printable(name)[:200]}' has control characters; rename the class, or name all of "
                "them by --class_names."
            )
    return names


def _arrow_column(dataset: datasets.Dataset, column: str) -> pa.Array:
    table = dataset.select_columns([column]).with_format("arrow")[:]
    combined = table[column].combine_chunks()
    return combined if isinstance(combined, pa.Array) else combined.chunk(0)


def _check_exists(features: datasets.Features, column: str, *, option: str, where: str = "") -> str:
    if column not in features:
        raise ValueError(
            f"There is no column '{column}'{where}; it has {_listed(features)}: set {option} to one of them."
        )
    return column


def _the_only(found: list[str], features: datasets.Features, *, kind: str, option: str) -> str:
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"The {kind} column is ambiguous: {_listed(found)} could be it; name one with {option}.")
    raise ValueError(f"No {kind} column was found among {_listed(features)}; name it with {option}.")


def _listed(names) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _class_names(dataset: datasets.Dataset, column: str, *, split: str, given: list[str] | None) -> list[str]:
    """Class names in index order, from the feature where it has them, else as given, else from the values."""
    feature = class_label_of(dataset.features[column])
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    values = flatten(_arrow_column(dataset, column)).unique().drop_null()
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return sorted(values.to_pylist())
    if not pa.types.is_integer(values.type):
        raise ValueError(
            f"The label column '{column}' of split '{split}' holds {values.type}, neither integers nor strings; name "
            f"the column of classes with --label_column."
        )
    if given is not None:
        return given
    present = sorted(values.to_pylist())
    if present != list(range(len(present))):
        missing = next(i for i, value in enumerate([*present, None]) if value != i)
        raise ValueError(
            f"The label column '{column}' of split '{split}' holds integers without class names from {present[0]} to "
            f"{present[-1]}, and no {missing}; number the classes from 0 without a gap, or name all of them with "
            f"--class_names."
        )
    return [str(value) for value in present]


def _with_class_label(dataset: datasets.Dataset, column: str, *, names: list[str], split: str) -> datasets.Dataset:
    """The same data set with `column` as a `ClassLabel` of `names`, or as lists of these."""
    feature, is_list = class_label_of(dataset.features[column]), holds_lists(dataset.features[column])
    if isinstance(feature, datasets.ClassLabel):
        if feature.names != names:
            raise ValueError(
                f"Split '{split}' names other classes in column '{column}' than the training split "
                f"({len(feature.names)} against {len(names)}, or in another order); give both the same names."
            )
        return dataset
    stored = _arrow_column(dataset, column)
    if is_list and stored.null_count:
        row = int(np.flatnonzero(stored.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"Row {row} of split '{split}' has no label; write an empty list.")
    values = flatten(stored)
    if pa.types.is_integer(values.type):
        labels = values
    else:
        labels = pc.index_in(values, pa.array(names, values.type))
        unknown = np.flatnonzero(pc.and_(labels.is_null(), values.is_valid()).to_numpy(zero_copy_only=False))
        if unknown.size:
            first = int(unknown[0])
            raise ValueError(
                f"Row {rows_of_entries(stored)[first]} of split '{split}' has the label '{values[first]}', which no "
                "training image has; correct it or remove the row."
            )
    labels, kind = labels.cast(pa.int64()), datasets.ClassLabel(names=names)
    if is_list:
        labels, kind = regroup(stored, labels), datasets.List(kind)
    return dataset.remove_columns(column).add_column(column, labels, feature=kind)
