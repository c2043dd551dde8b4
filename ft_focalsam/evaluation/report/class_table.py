"""The table of all classes."""

from collections.abc import Mapping, Sequence

from ..multi_label_result import Result
from .blocks import Table
from .formats import Cell, count_cell
from .tables import result_rows

MOST_UNFOLDED = 20  # rows of the table of all classes that a page shows without being asked


def class_table(
    result: Result,
    columns: Mapping[str, Sequence[Cell]],
    *,
    fold: str | None = None,
    order: Sequence[int] | None = None,
) -> Table:
    """A sortable table of the classes: name, the given columns (title -> a cell per class), group, numbers of images.

    Args:
        result (`Result`): On any of the runs.
        columns (mapping): What is told about the classes.
        fold (`str`, *optional*): As in [`Table`].
        order (sequence of `int`, *optional*): The classes from top to bottom; as they are numbered by default.
    """
    records = result_rows(result)
    shown = {"class": [record["name"] for record in records], **columns}
    if result.class_counts is not None:
        shown["group"] = [record["group"] for record in records]
        shown["training images"] = [count_cell(record["train_images"]) for record in records]
    shown["test images"] = [count_cell(record["test_images"]) for record in records]
    rows = list(zip(*shown.values(), strict=True))
    rows = rows if order is None else [rows[label] for label in order]
    return Table(list(shown), rows, fold=fold, is_sortable=True)
