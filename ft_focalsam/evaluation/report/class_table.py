"""The table of all classes."""

from collections.abc import Mapping, Sequence

from ..multi_label_result import Result
from .blocks import Table
from .formats import Cell, count_cell

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
    names, counts = result.predictions.class_names, result.class_counts
    shown: dict[str, Sequence[Cell]] = {"class": names, **columns}
    if counts is not None:
        group_of = {int(label): group for group, members in result.groups.items() for label in members}
        shown["group"] = [group_of[label] for label in range(len(names))]
        shown["training images"] = [count_cell(int(count)) for count in counts]
    shown["test images"] = [count_cell(int(count)) for count in result.test_counts]
    rows = list(zip(*shown.values(), strict=True))
    rows = rows if order is None else [rows[label] for label in order]
    return Table(list(shown), rows, fold=fold, is_sortable=True)
