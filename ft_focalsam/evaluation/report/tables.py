"""What a run leaves behind as text: a results table, metrics.json, accuracies per class as CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...data.long_tail import frequency_groups
from ..verdict import Verdict
from .frequency import check_lengths, plot_accuracy_by_frequency

COLUMNS = {
    "accuracy": "top-1",
    "mean_class_accuracy": "mean class",
    "many": "many",
    "medium": "medium",
    "few": "few",
}
CSV_FIELDS = ("class", "name", "group", "train_images", "test_images", "accuracy")


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Plain text table of results in percent, one row a run.

    Args:
        rows (`Mapping[str, Mapping[str, float]]`): Name of the run -> metrics as fractions 0..1, named as by
            [`LongTailMetrics`], with or without the Trainer's prefix `eval_`; others are left out.

    Returns:
        `str`: Columns top-1, mean class, many, medium, few with one decimal; `-` where a run has no such value.
    """
    width = max([len("run"), *(len(name) for name in rows)])
    lines = ["  ".join([f"{'run':<{width}}", *(f"{title:>10}" for title in COLUMNS.values())])]
    lines.append("-" * len(lines[0]))
    for name, metrics in rows.items():
        values = [metrics.get(metric, metrics.get(f"eval_{metric}")) for metric in COLUMNS]
        cells = [f"{'-':>10}" if value is None else f"{100 * value:>10.1f}" for value in values]
        lines.append("  ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def write_report(
    folder: str | Path,
    metrics: Mapping[str, Mapping[str, float]],
    *,
    accuracies: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    class_counts: np.ndarray,
    test_counts: np.ndarray,
    many: int = 100,
    few: int = 20,
) -> None:
    """Write metrics.json with all runs, per_class.csv of the last one, and accuracy_by_frequency.png of all.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        metrics (`Mapping[str, Mapping[str, float]]`): Name of a run -> its metrics.
        accuracies (`Mapping[str, np.ndarray]`): Name of a run -> its accuracy per class, shape (C,).
        class_names, class_counts, test_counts, many, few: As in [`per_class_rows`].
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    thresholds = {"many": many, "few": few}
    last = list(accuracies.values())[-1]
    rows = per_class_rows(class_names, class_counts, per_class_accuracy=last, test_counts=test_counts, **thresholds)
    write_per_class_csv(folder / "per_class.csv", rows)
    plot_accuracy_by_frequency(
        folder / "accuracy_by_frequency.png",
        class_counts,
        accuracies=accuracies,
        class_names=class_names,
        **thresholds,
    )


def per_class_rows(
    class_names: Sequence[str],
    class_counts: np.ndarray | None,
    *,
    per_class_accuracy: np.ndarray,
    test_counts: np.ndarray,
    many: int = 100,
    few: int = 20,
) -> list[dict[str, str | int | float | None]]:
    """One record a class.

    Args:
        class_names (`Sequence[str]`): C names in index order.
        class_counts (`np.ndarray`, *optional*): Training images of each class, shape (C,); None where nobody knows.
        per_class_accuracy (`np.ndarray`): Shape (C,), fractions 0..1, NaN without a test image.
        test_counts (`np.ndarray`): Test images of each class, shape (C,).
        many (`int`, defaults to 100): As in [`~ft_focalsam.data.frequency_groups`].
        few (`int`, defaults to 20): As in [`~ft_focalsam.data.frequency_groups`].

    Returns:
        `list[dict]`: Keys class, name, group, train_images, test_images, accuracy (None where it is NaN); without
            counts, group and train_images are None.

    Raises:
        ValueError: If the arguments do not have the same number of classes.
    """
    counts = class_names if class_counts is None else class_counts
    check_lengths(counts, names=class_names, accuracies=per_class_accuracy, test_counts=test_counts)
    group_of, train_images = {}, [None] * len(class_names)
    if class_counts is not None:
        groups = frequency_groups(class_counts, many=many, few=few)
        group_of = {int(c): group for group, members in groups.items() for c in members}
        train_images = [int(count) for count in class_counts]
    rows = []
    for index, (name, train, test, accuracy) in enumerate(
        zip(class_names, train_images, test_counts, per_class_accuracy, strict=True)
    ):
        accuracy = None if np.isnan(accuracy) else float(accuracy)
        values = (index, name, group_of.get(index), train, int(test), accuracy)
        rows.append(dict(zip(CSV_FIELDS, values, strict=True)))
    return rows


def verdict_rows(verdict: Verdict) -> list[dict[str, str | int | float | None]]:
    """The records of [`per_class_rows`] of a verdict."""
    return per_class_rows(
        verdict.predictions.class_names,
        verdict.class_counts,
        per_class_accuracy=verdict.class_accuracies,
        test_counts=verdict.test_counts,
        many=verdict.many,
        few=verdict.few,
    )


def write_per_class_csv(path: str | Path, rows: Sequence[Mapping[str, str | int | float | None]]) -> None:
    """Write the records of [`per_class_rows`] as CSV in UTF-8; an accuracy that does not exist is an empty field.

    Args:
        path (`str` or `Path`): File to write; its folder is made where it does not exist.
        rows (`Sequence[Mapping]`): Of [`per_class_rows`].
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=CSV_FIELDS)
        writer.writeheader()
        writer.writerows(rows)
