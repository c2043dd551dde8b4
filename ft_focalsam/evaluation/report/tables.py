"""What a run leaves behind as text: a results table, metrics.json, accuracies per class as CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ...base.errors import printable
from ...data.long_tail import frequency_groups
from ..cells import to_cell
from ..eval_result import EvalResult
from ..intervals import accuracy_interval
from ..multi_label_result import MultiLabelResult, Result, all_of
from .frequency import check_lengths, plot_accuracy_by_frequency

Row = dict[str, str | int | float | None]  # the record of a class

COLUMNS = {
    "accuracy": "top-1",
    "mean_class_accuracy": "mean class",
    "many": "many",
    "medium": "medium",
    "few": "few",
}
MULTI_LABEL_COLUMNS = {"mAP": "mAP", "many": "many", "medium": "medium", "few": "few"}


def format_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Plain text table of results in percent, one row a run.

    Args:
        rows (`Mapping[str, Mapping[str, Any]]`): Name of the run -> metrics as fractions 0..1, named as by
            [`LongTailMetrics`], with or without the Trainer's prefix `eval_`; others are left out. Of the records of a
            [`EvalResult`], numbers of test images stand below the rows that they belong to, and the notes at the end.

    Returns:
        `str`: Columns top-1, mean class, many, medium, few, or, of several classes an image, mAP, many, medium, few,
        with one decimal; `-` where a run has no such value.
    """
    is_multi_label = any({"mAP", "eval_mAP"} & {*row} for row in rows.values())
    columns = MULTI_LABEL_COLUMNS if is_multi_label else COLUMNS
    names = {name: printable(name) for name in rows}
    width = max(len("test images"), *map(len, names.values())) if names else 0
    lines = ["  ".join([f"{'run':<{width}}", *(f"{title:>10}" for title in columns.values())])]
    lines.append("-" * len(lines[0]))
    for counts, group in groupby(rows, key=lambda name: _test_images(rows[name], columns)):
        for name in group:
            values = [rows[name].get(metric, rows[name].get(f"eval_{metric}")) for metric in columns]
            cells = [f"{'-':>10}" if value is None else f"{100 * value:>10.1f}" for value in values]
            lines.append("  ".join([f"{names[name]:<{width}}", *cells]))
        if any(counts):
            cells = [f"{'-':>10}" if count is None else f"{count:>10,}" for count in counts]
            lines.append("  ".join([f"{'test images':<{width}}", *cells]))
    notes = distinct_notes({name: row.get("notes", ()) for name, row in rows.items()})
    return "\n".join([*lines, *map(printable, notes)])


def _test_images(row: Mapping[str, Any], columns: Mapping[str, str]) -> list[int | None]:
    """Test images behind each column, of a result's record; None where it does not say."""
    groups = row.get("group_images", {})
    of_all = ("accuracy", "mean_class_accuracy", "mAP")
    return [groups.get(metric, row.get("images") if metric in of_all else None) for metric in columns]


def distinct_notes(notes: Mapping[str, Sequence[str]]) -> list[str]:
    """Each note once; one that is not of all runs begins with the names of those that it is of."""
    runs: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for text in texts:
            runs.setdefault(text, []).append(name)
    return [text if len(names) == len(notes) else f"{', '.join(names)}: {text}" for text, names in runs.items()]


def write_results(folder: str | Path, records: Mapping[str, Mapping[str, Any]], results: Mapping[str, Result]) -> None:
    """Write metrics.json with the records of all runs, per_class.csv of the last one, and, where the training counts
    are known, of all accuracy_by_frequency.png, or average_precision_by_frequency.png.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        records, results (`Mapping`): Name of a run -> what metrics.json says of it, and its result; all on the same
            images and with the same training counts.

    Raises:
        ValueError: If some results are of one class an image and others of several.
    """
    last = list(results.values())[-1]
    if isinstance(last, EvalResult):
        found = all_of(EvalResult, results.values())
        write_report(
            folder,
            records,
            accuracies={name: result.class_accuracies for name, result in zip(results, found, strict=True)},
            class_names=last.predictions.class_names,
            class_counts=last.class_counts,
            test_counts=last.test_counts,
            many=last.many,
            few=last.few,
        )
        return
    several, folder = all_of(MultiLabelResult, results.values()), Path(folder)
    write_per_class_csv(folder / "per_class.csv", result_rows(last))
    (folder / "metrics.json").write_text(json.dumps(records, indent=2), encoding="utf-8")
    if last.class_counts is None:
        return
    plot_accuracy_by_frequency(
        folder / "average_precision_by_frequency.png",
        last.class_counts,
        accuracies={name: result.class_average_precisions for name, result in zip(results, several, strict=True)},
        class_names=last.predictions.class_names,
        many=last.many,
        few=last.few,
        title="Average precision by class frequency",
        score="average precision",
    )


def write_report(
    folder: str | Path,
    metrics: Mapping[str, Mapping[str, float]],
    *,
    accuracies: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    class_counts: np.ndarray | None,
    test_counts: np.ndarray,
    many: int = 100,
    few: int = 20,
) -> None:
    """Write metrics.json with all runs, per_class.csv of the last one, and, where the training counts are known,
    accuracy_by_frequency.png of all.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        metrics (`Mapping[str, Mapping[str, float]]`): Name of a run -> its metrics.
        accuracies (`Mapping[str, np.ndarray]`): Name of a run -> its accuracy per class, shape (C,).
        class_names, class_counts, test_counts, many, few: As in [`per_class_rows`].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    last = list(accuracies.values())[-1]
    rows = per_class_rows(
        class_names, class_counts, per_class_accuracy=last, test_counts=test_counts, many=many, few=few
    )
    write_per_class_csv(folder / "per_class.csv", rows)
    if class_counts is None:
        return
    plot_accuracy_by_frequency(
        folder / "accuracy_by_frequency.png",
        class_counts,
        accuracies=accuracies,
        class_names=class_names,
        many=many,
        few=few,
        test_counts=test_counts,
    )


def per_class_rows(
    class_names: Sequence[str],
    class_counts: np.ndarray | None,
    *,
    per_class_accuracy: np.ndarray,
    test_counts: np.ndarray,
    many: int = 100,
    few: int = 20,
) -> list[Row]:
    """One record a class.

    Args:
        class_names (`Sequence[str]`): C names in index order.
        class_counts (`np.ndarray`, *optional*): Training images of each class, shape (C,); None where nobody knows.
        per_class_accuracy (`np.ndarray`): Shape (C,), fractions 0..1, NaN without a test image.
        test_counts (`np.ndarray`): Test images of each class, shape (C,).
        many (`int`, defaults to 100): As in [`~ft_focalsam.data.frequency_groups`].
        few (`int`, defaults to 20): As in [`~ft_focalsam.data.frequency_groups`].

    Returns:
        `list[dict]`: Keys class, name, group, train_images, test_images, accuracy, and accuracy_low and accuracy_high,
            the ends of its 95 % interval (these three None where it is NaN); without counts, group and train_images
            are None.

    Raises:
        ValueError: If the arguments do not have the same number of classes.
    """
    known = class_names if class_counts is None else class_counts
    check_lengths(known, names=class_names, accuracies=per_class_accuracy, test_counts=test_counts)
    accuracies = np.stack(
        [per_class_accuracy, *accuracy_interval(np.asarray(per_class_accuracy), test_counts)], axis=1
    )
    scores = [dict(zip(("accuracy", "accuracy_low", "accuracy_high"), row, strict=True)) for row in accuracies]
    return _class_rows(class_names, class_counts, scores, test_counts=test_counts, many=many, few=few)


def _class_rows(
    class_names: Sequence[str],
    class_counts: np.ndarray | None,
    scores: Sequence[Mapping[str, float]],
    *,
    test_counts: np.ndarray,
    many: int,
    few: int,
) -> list[Row]:
    """One record a class, with its scores at the end; None for NaN."""
    group_of: dict[int, str] = {}
    train_images: list[int | None] = [None] * len(class_names)
    if class_counts is not None:
        groups = frequency_groups(class_counts, many=many, few=few)
        group_of = {int(c): group for group, members in groups.items() for c in members}
        train_images = [int(count) for count in class_counts]
    rows: list[Row] = []
    for index, (name, train, test) in enumerate(zip(class_names, train_images, test_counts, strict=True)):
        row: Row = {"class": index, "name": name, "group": group_of.get(index)}
        row |= {"train_images": train, "test_images": int(test)}
        row |= {score: None if np.isnan(value) else float(value) for score, value in scores[index].items()}
        rows.append(row)
    return rows


def result_rows(result: Result) -> list[Row]:
    """The records of [`per_class_rows`] of a result; of several classes an image, average_precision in the place of
    the accuracy and its interval."""
    names, counts = result.predictions.class_names, result.class_counts
    tests, many, few = result.test_counts, result.many, result.few
    if isinstance(result, EvalResult):
        accuracies = result.class_accuracies
        return per_class_rows(names, counts, per_class_accuracy=accuracies, test_counts=tests, many=many, few=few)
    scores = [{"average_precision": value} for value in result.class_average_precisions]
    return _class_rows(names, counts, scores, test_counts=tests, many=many, few=few)


def write_per_class_csv(path: str | Path, rows: Sequence[Mapping[str, str | int | float | None]]) -> None:
    """Write the records of [`per_class_rows`] as CSV in UTF-8.

    An accuracy that does not exist is an empty field. A class name that a spreadsheet would take for a formula begins
    with an apostrophe, see [`to_cell`].

    Args:
        path (`str` or `Path`): File to write; its folder is made where it does not exist.
        rows (`Sequence[Mapping]`): Of [`per_class_rows`].
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "name": to_cell(str(row["name"]))} for row in rows)
