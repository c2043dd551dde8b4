"""The drawing of accuracy by class frequency."""

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from ...base.errors import printable
from ...data.long_tail import frequency_groups
from ..estimates import Estimate
from ..intervals import accuracy_interval
from ..metrics import group_means
from .formats import plural
from .plots import LIGHT, Look, colors_of, legend_below, new_axes

RUN_MARKERS = ("o", "s", "^", "D", "v", "P")
MOST_NAMED_CLASSES = 12
LONGEST_NAME = {"class": 18, "run": 30, "axis": 60}  # letters that a drawing has room for


def plot_accuracy_by_frequency(
    path: str | Path,
    class_counts: np.ndarray,
    *,
    accuracies: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    many: int = 100,
    few: int = 20,
    test_counts: np.ndarray | None = None,
    title: str = "Accuracy by class frequency",
    score: str = "accuracy",
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
        test_counts (`np.ndarray`, *optional*): Test images of each class, shape (C,); with them, whiskers show the
            95 % intervals of the last run.
        title (`str`): Above the drawing.
        score (`str`): What is drawn.

    Raises:
        ValueError: If the arguments do not have the same number of classes, a class has no training image, or the
            number of runs is not 1 to 6.
    """
    groups = frequency_groups(class_counts, many=many, few=few)
    with colors_of(LIGHT):
        figure = frequency_figure(
            LIGHT,
            class_counts,
            accuracies=accuracies,
            class_names=class_names,
            groups=groups,
            test_counts=test_counts,
            score=score,
        )
        figure.axes[0].set_title(title, loc="left", fontsize=14, fontweight="bold", pad=14)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)


def frequency_figure(
    look: Look,
    class_counts: np.ndarray,
    *,
    accuracies: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    groups: Mapping[str, np.ndarray],
    test_counts: np.ndarray | None = None,
    size: tuple[float, float] = (9, 4.7),
    score: str = "accuracy",
) -> Figure:
    """The drawing of [`plot_accuracy_by_frequency`] in a look; `size` is its (width, height) in inches, and the legend
    comes below it.

    Raises:
        ValueError: As [`plot_accuracy_by_frequency`].
    """
    counts = np.asarray(class_counts)
    check_lengths(counts, names=class_names, **{f"accuracies of {run}": values for run, values in accuracies.items()})
    if test_counts is not None:
        check_lengths(counts, test_counts=test_counts)
    if not 1 <= len(accuracies) <= len(RUN_MARKERS):
        raise ValueError(f"{len(accuracies)} runs are given, but a drawing shows 1 to {len(RUN_MARKERS)}.")
    if counts.min() < 1:
        raise ValueError(f"Class {int(counts.argmin())} has no training image, so it has no place on a log axis.")
    figure, axes = new_axes(look, size)
    _prepare_axes(axes, counts)
    axes.set_ylabel(f"test {score} of the class (%)")
    if len(accuracies) > 1:
        stacked = 100 * np.stack(list(accuracies.values()))
        axes.vlines(counts, stacked.min(axis=0), stacked.max(axis=0), color=look.faint, linewidth=1, zorder=1)
    if test_counts is not None:
        _draw_whiskers(axes, counts, list(accuracies.values())[-1], test_counts, groups, look=look)
    for run_index, (marker, accuracy) in enumerate(zip(RUN_MARKERS, accuracies.values(), strict=False)):
        filled = run_index == len(accuracies) - 1
        _draw_run(axes, counts, np.asarray(accuracy), groups, look=look, marker=marker, filled=filled)
    if len(counts) <= MOST_NAMED_CLASSES:
        _name_classes(axes, counts, class_names)
    legend_below(figure, _legend_handles(look, accuracies, groups))
    return figure


def difference_figure(
    look: Look,
    class_counts: np.ndarray,
    differences: Sequence[Estimate | None],
    *,
    groups: Mapping[str, np.ndarray],
    ylabel: str,
    size: tuple[float, float] = (5.2, 3.8),
) -> Figure:
    """Difference of each class in points with its interval, over its number of training images."""
    counts = np.asarray(class_counts)
    check_lengths(counts, differences=differences)
    figure, axes = new_axes(look, size)
    _prepare_axes(axes, counts)
    axes.axhline(0, color=look.ink, linewidth=1)
    drawn = []
    for group, members in groups.items():
        tested = [index for index in members if differences[index] is not None]
        means = [100 * differences[index].mean for index in tested]
        ends = {index: differences[index].interval for index in tested if differences[index].interval is not None}
        low, high = 100 * np.array(list(ends.values())).reshape(-1, 2).T
        axes.vlines(counts[list(ends)], low, high, color=look.groups[group], linewidth=3, alpha=0.3)
        points = axes.scatter(counts[tested], means, s=22, color=look.groups[group], zorder=3, label=f"{group}-shot")
        drawn.append(points)
    axes.autoscale(axis="y")
    axes.set_ylabel(_shortened(ylabel, "axis"))
    legend_below(figure, drawn)
    return figure


def _prepare_axes(axes: Axes, counts: np.ndarray) -> None:
    axes.set_xscale("log")
    margin = np.exp(max(0.06 * np.log(counts.max() / counts.min()), 0.05))
    axes.set_xlim(counts.min() / margin, counts.max() * margin)
    axes.set_ylim(-3, 103)
    narrow = counts.max() < 5 * counts.min()
    axes.xaxis.set_major_locator(FixedLocator([counts.min(), counts.max()]) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("training images of the class (log scale)")


def _draw_run(
    axes: Axes,
    counts: np.ndarray,
    accuracy: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    look: Look,
    marker: str,
    filled: bool,
) -> None:
    """Points of one run, and its mean in each group as a line across the group's frequencies."""
    for group, mean in group_means(accuracy, groups).items():
        color, members = look.groups[group], groups[group]
        axes.scatter(
            counts[members],
            100 * accuracy[members],
            s=44 if len(counts) <= MOST_NAMED_CLASSES else 22,
            marker=marker,
            facecolor=color if filled else look.ground,
            edgecolor=color,
            linewidth=1.2,
            alpha=0.9,
            zorder=3,
            clip_on=False,
        )
        ends = [counts[members].min() / 1.04, counts[members].max() * 1.04]
        axes.plot(ends, [100 * mean] * 2, color=color, linewidth=2, linestyle="-" if filled else (0, (4, 2)), zorder=2)


def _draw_whiskers(
    axes: Axes,
    counts: np.ndarray,
    accuracy: np.ndarray,
    test_counts: np.ndarray,
    groups: Mapping[str, np.ndarray],
    *,
    look: Look,
) -> None:
    """95 % intervals of the classes' accuracies, each in the colour of its group."""
    low, high = (100 * end for end in accuracy_interval(accuracy, test_counts))
    for group, members in groups.items():
        axes.vlines(
            counts[members], low[members], high[members], color=look.groups[group], linewidth=3, alpha=0.3, zorder=1.5
        )


def _name_classes(axes: Axes, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Names along the upper edge, each above its class, where the frequencies lie far enough apart to read them."""
    places: dict[int, list[str]] = {}
    for count, name in zip(counts, class_names, strict=True):
        places.setdefault(int(count), []).append(name)
    gaps = np.diff(np.log(sorted(places)))
    if max(map(len, places.values())) > 2 or (gaps.size and gaps.min() < 0.04 * gaps.sum()):
        return
    upper = axes.secondary_xaxis("top")
    titles = [", ".join(_shortened(name, "class") for name in names) for names in places.values()]
    upper.set_xticks(list(places), titles, rotation=35, ha="left", fontsize=9)
    upper.xaxis.set_minor_locator(NullLocator())
    upper.tick_params(length=0, pad=1)
    upper.spines["top"].set_visible(False)


def _legend_handles(
    look: Look, accuracies: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]
) -> list[Line2D]:
    """One entry a group with its colour and one a run with its marker and its group means."""
    handles = [
        Line2D([], [], color=look.groups[group], linewidth=5, label=f"{group}-shot, {plural(len(members), 'class')}")
        for group, members in groups.items()
        if len(members)
    ]
    for index, ((run, accuracy), marker) in enumerate(zip(accuracies.items(), RUN_MARKERS, strict=False)):
        filled = index == len(accuracies) - 1
        means = " / ".join(f"{g} {100 * mean:.1f}" for g, mean in group_means(np.asarray(accuracy), groups).items())
        handle = Line2D(
            [],
            [],
            color=look.ink,
            linewidth=2,
            linestyle="-" if filled else (0, (2, 1)),
            marker=marker,
            markersize=6.5,
            markerfacecolor=look.ink if filled else look.ground,
            label=f"{_shortened(run, 'run')}: {means}",
        )
        handles.append(handle)
    return handles


def _shortened(name: str, kind: str) -> str:
    name, longest = printable(name), LONGEST_NAME[kind]
    return name if len(name) <= longest else name[: longest - 1] + "…"


def check_lengths(class_counts: Sized, **arrays: Sized) -> None:
    """Raise a `ValueError` where a sequence, by its name, has not as many entries as there are classes."""
    for name, values in arrays.items():
        if len(values) != len(class_counts):
            raise ValueError(f"There are {len(values)} {name.replace('_', ' ')} for {len(class_counts)} classes.")
