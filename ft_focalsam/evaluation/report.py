"""What a run leaves behind: a results table, accuracies per class as CSV, a drawing of accuracy by class frequency."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ..data.long_tail import frequency_groups
from .metrics import group_means

COLUMNS = {
    "accuracy": "top-1",
    "mean_class_accuracy": "mean class",
    "many": "many",
    "medium": "medium",
    "few": "few",
}
CSV_FIELDS = ("class", "name", "group", "train_images", "test_images", "accuracy")
GROUP_COLORS = {"many": "#1f6fb4", "medium": "#2a9d6f", "few": "#d1495b"}
RUN_MARKERS = ("o", "s", "^", "D", "v", "P")
MOST_NAMED_CLASSES = 12


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
    class_counts: np.ndarray,
    *,
    per_class_accuracy: np.ndarray,
    test_counts: np.ndarray,
    many: int = 100,
    few: int = 20,
) -> list[dict[str, str | int | float | None]]:
    """One record a class.

    Args:
        class_names (`Sequence[str]`): C names in index order.
        class_counts (`np.ndarray`): Training images of each class, shape (C,).
        per_class_accuracy (`np.ndarray`): Shape (C,), fractions 0..1, NaN without a test image.
        test_counts (`np.ndarray`): Test images of each class, shape (C,).
        many (`int`, defaults to 100): As in [`~ft_focalsam.data.frequency_groups`].
        few (`int`, defaults to 20): As in [`~ft_focalsam.data.frequency_groups`].

    Returns:
        `list[dict]`: Keys class, name, group, train_images, test_images, accuracy (None where it is NaN).

    Raises:
        ValueError: If the arguments do not have the same number of classes.
    """
    _check_lengths(class_counts, names=class_names, accuracies=per_class_accuracy, test_counts=test_counts)
    group_of = {
        int(c): group for group, ids in frequency_groups(class_counts, many=many, few=few).items() for c in ids
    }
    rows = []
    for index, (name, train, test, accuracy) in enumerate(
        zip(class_names, class_counts, test_counts, per_class_accuracy, strict=True)
    ):
        accuracy = None if np.isnan(accuracy) else float(accuracy)
        values = (index, name, group_of[index], int(train), int(test), accuracy)
        rows.append(dict(zip(CSV_FIELDS, values, strict=True)))
    return rows


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


def plot_accuracy_by_frequency(
    path: str | Path,
    class_counts: np.ndarray,
    *,
    accuracies: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    many: int = 100,
    few: int = 20,
    title: str = "Accuracy by class frequency",
) -> None:
    """Draw each class's accuracy over its number of training images, with the mean of each frequency group.

    Several runs are told apart by their markers, the last one filled and the others open, and a line joins what they
    reach on one class. The classes are named when they are few and their frequencies differ.

    Args:
        path (`str` or `Path`): Image file to write (`.png`, `.pdf` or `.svg`); its folder is made where needed.
        class_counts (`np.ndarray`): Training images of each class, shape (C,), each at least 1.
        accuracies (`Mapping[str, np.ndarray]`): Name of a run -> its accuracy per class, shape (C,), fractions 0..1,
            NaN without a test image; e.g. zero-shot first, then fine-tuned; 1 to 6 runs.
        class_names (`Sequence[str]`): C names in index order.
        many (`int`, defaults to 100): As in [`~ft_focalsam.data.frequency_groups`].
        few (`int`, defaults to 20): As in [`~ft_focalsam.data.frequency_groups`].
        title (`str`): Above the drawing.

    Raises:
        ValueError: If the arguments do not have the same number of classes, a class has no training image, or the
            number of runs is not 1 to 6.
    """
    counts = np.asarray(class_counts)
    _check_lengths(counts, names=class_names, **{f"accuracies of {run}": values for run, values in accuracies.items()})
    if not 1 <= len(accuracies) <= len(RUN_MARKERS):
        raise ValueError(f"{len(accuracies)} runs are given, but a drawing shows 1 to {len(RUN_MARKERS)}.")
    if counts.min() < 1:
        raise ValueError(f"Class {int(counts.argmin())} has no training image, so it has no place on a log axis.")
    groups = frequency_groups(counts, many=many, few=few)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.add_subplot()
    _prepare_axes(axes, counts)
    if len(accuracies) > 1:
        stacked = 100 * np.stack(list(accuracies.values()))
        axes.vlines(counts, stacked.min(axis=0), stacked.max(axis=0), color="#b8bec6", linewidth=1, zorder=1)
    for run_index, (marker, accuracy) in enumerate(zip(RUN_MARKERS, accuracies.values(), strict=False)):
        _draw_run(axes, counts, accuracy, groups, marker=marker, filled=run_index == len(accuracies) - 1)
    if len(counts) <= MOST_NAMED_CLASSES:
        _name_classes(axes, counts, class_names)
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=14)
    _add_legend(figure, accuracies, groups)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160)


def _prepare_axes(axes: Axes, counts: np.ndarray) -> None:
    axes.set_xscale("log")
    margin = np.exp(max(0.06 * np.log(counts.max() / counts.min()), 0.05))
    axes.set_xlim(counts.min() / margin, counts.max() * margin)
    axes.set_ylim(-3, 103)
    narrow = counts.max() < 5 * counts.min()
    axes.xaxis.set_major_locator(FixedLocator(np.unique(counts)[[0, -1]]) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("training images of the class (log scale)")
    axes.set_ylabel("test accuracy of the class (%)")
    axes.grid(color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_run(
    axes: Axes,
    counts: np.ndarray,
    accuracy: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    marker: str,
    filled: bool,
) -> None:
    """Points of one run, and its mean in each group as a line across the group's frequencies."""
    means = group_means(np.asarray(accuracy), groups)
    for group, mean in means.items():
        color, members = GROUP_COLORS[group], groups[group]
        face = color if filled else "white"
        axes.scatter(
            counts[members],
            100 * accuracy[members],
            s=44 if len(counts) <= MOST_NAMED_CLASSES else 22,
            marker=marker,
            facecolor=face,
            edgecolor=color,
            linewidth=1.2,
            alpha=0.9,
            zorder=3,
            clip_on=False,
        )
        ends = [counts[members].min() / 1.04, counts[members].max() * 1.04]
        axes.plot(ends, [100 * mean] * 2, color=color, linewidth=2, linestyle="-" if filled else (0, (4, 2)), zorder=2)


def _name_classes(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Names along the upper edge, each above its class, where the frequencies lie far enough apart to read them."""
    places: dict[int, list[str]] = {}
    for count, name in zip(counts, class_names, strict=True):
        places.setdefault(int(count), []).append(name)
    gaps = np.diff(np.log(sorted(places)))
    if max(map(len, places.values())) > 2 or (gaps.size and gaps.min() < 0.04 * gaps.sum()):
        return
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(list(places), [", ".join(names) for names in places.values()], rotation=35, ha="left", fontsize=9)
    upper.xaxis.set_minor_locator(NullLocator())
    upper.tick_params(length=0, pad=1, colors="#4a5058")
    upper.spines["top"].set_visible(False)


def _add_legend(figure: Figure, accuracies: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]) -> None:
    """One entry a group with its colour and one a run with its marker and its group means."""
    means = {run: group_means(np.asarray(accuracy), groups) for run, accuracy in accuracies.items()}
    handles = [
        Line2D([], [], color=GROUP_COLORS[group], linewidth=5, label=f"{group}-shot, {len(members)} classes")
        for group, members in groups.items()
        if len(members)
    ]
    for index, (run, marker) in enumerate(zip(accuracies, RUN_MARKERS, strict=False)):
        filled = index == len(accuracies) - 1
        text = " / ".join(f"{group} {100 * mean:.1f}" for group, mean in means[run].items())
        handles.append(
            Line2D(
                [],
                [],
                color="#4a5058",
                marker=marker,
                markersize=6.5,
                markerfacecolor="#4a5058" if filled else "white",
                linewidth=2,
                linestyle="-" if filled else (0, (2, 1)),
                label=f"{run}: {text}",
            )
        )
    figure.legend(
        handles=handles, loc="outside lower center", ncols=max(1, len(handles) // 2), frameon=False, fontsize=9
    )


def _check_lengths(class_counts: np.ndarray, **arrays: Sequence) -> None:
    for name, values in arrays.items():
        if len(values) != len(class_counts):
            raise ValueError(f"There are {len(values)} {name.replace('_', ' ')} for {len(class_counts)} classes.")
