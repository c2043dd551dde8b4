"""What a report says of images with several classes: average precision, whose intervals are over seeds alone."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..multi_label_result import MultiLabelResult
from .blocks import Block, Heading, Plot, SideBySide, Table, Text
from .class_table import MOST_UNFOLDED, class_table
from .formats import (
    Cell,
    count_cell,
    describe_spread,
    estimate_cell,
    format_percent,
    metric_titles,
    percent_cell,
    plural,
    seeds_title,
)
from .frequency import RUN_MARKERS, frequency_figure

LOWEST = 5  # classes that the summary names


def summary(runs: Mapping[str, MultiLabelResult], *, dataset: str | None = None) -> Iterator[Block]:
    """The mAP of the last run on a test set, against the first one, and its lowest classes; `dataset` names the test
    set where there are several."""
    *others, name = runs
    result = runs[name]
    images = f"{plural(len(result.predictions.labels), 'test image')}{f' of {dataset}' if dataset else ''}"
    if "mAP" not in result.metrics:
        yield Text(f"No class has a test image among {images}, and so no average precision.", is_lead=True)
        return
    value = format_percent(result.metrics["mAP"])
    text = f"{name} has a mean average precision of {value} % over the classes, on {images}"
    if others:
        gain = result.metrics["mAP"] - runs[others[0]].metrics["mAP"]
        text += f", {format_percent(abs(gain))} points {'more' if gain >= 0 else 'less'} than {others[0]}"
    values, names = result.class_average_precisions, result.predictions.class_names
    order = [index for index in np.argsort(values, kind="stable")[:LOWEST] if not np.isnan(values[index])]
    lowest = ", ".join(f"{names[index]} ({format_percent(values[index])} %)" for index in order)
    yield Text(f"{text}. The lowest classes: {lowest}.", is_lead=True)


def sections(runs: Mapping[str, MultiLabelResult], seeds: Sequence[MultiLabelResult], level: int) -> Iterator[Block]:
    """The metrics of all runs on a test set, over seeds where there are some, and class by class."""
    yield from _scores(runs, level)
    if seeds:
        found = MultiLabelResult.estimate_runs(seeds)
        yield Heading(f"Over {len(seeds)} seeds on {next(iter(runs.values())).predictions.dataset}", level)
        titles = metric_titles([found])
        yield Table(("%", seeds_title(len(seeds))), [(title, estimate_cell(found[n])) for n, title in titles.items()])
        yield Text(f"{describe_spread(len(seeds)).capitalize()}.", is_note=True)
    yield from _classes(runs, level)


def _scores(runs: Mapping[str, MultiLabelResult], level: int) -> Iterator[Block]:
    *others, last = runs
    for name in others:
        runs[name].predictions.check_same_images(runs[last].predictions, source=runs[name].predictions.model)
    images = runs[last].metric_images
    rows = []
    for metric, title in metric_titles(result.metrics for result in runs.values()).items():
        values = [result.metrics.get(metric) for result in runs.values()]
        gains = [_gain(value, values[-1]) for value in values[:-1]]
        cells = [percent_cell(value) for value in values] + [percent_cell(gain, signed=True) for gain in gains]
        rows.append((title, *cells, count_cell(images.get(metric))))
    differences = ["difference"] if len(others) == 1 else [f"difference to {name}" for name in others]
    table, chart = Table(("%", *runs, *differences, "test images"), rows), _frequency_plot(runs)
    yield Heading("Scores", level)
    yield SideBySide([table, chart]) if chart else table
    yield Text(
        "mAP is the mean of the classes' average precisions, many-, medium- and few-shot the means of these classes. "
        "One run has no intervals: average precision is no mean over images. Runs with other seeds say how far a "
        "difference is to be trusted.",
        is_note=True,
    )


def _gain(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None else last - first


def _frequency_plot(runs: Mapping[str, MultiLabelResult]) -> Plot | None:
    """Average precision over class frequency, where all classes have training images."""
    last = list(runs.values())[-1]
    counts = last.class_counts
    if counts is None or counts.min() < 1:
        return None
    shown = dict(list(runs.items())[-len(RUN_MARKERS) :])
    values = {name: result.class_average_precisions for name, result in shown.items()}
    names, groups = last.predictions.class_names, last.groups
    what = "Average precision of each class against its number of training images"
    return Plot(
        lambda look: frequency_figure(
            look, counts, accuracies=values, class_names=names, groups=groups, size=(5.2, 5), score="average precision"
        ),
        what,
        f"{what}. Lines: means of the groups.",
    )


def _classes(runs: Mapping[str, MultiLabelResult], level: int) -> Iterator[Block]:
    *others, last = runs
    values = {name: result.class_average_precisions for name, result in runs.items()}
    columns = {name: [_cell(value) for value in found] for name, found in values.items()}
    for name in others:
        title = "difference" if len(others) == 1 else f"difference to {name}"
        columns[title] = [_cell(gain, signed=True) for gain in values[last] - values[name]]
    names = runs[last].predictions.class_names
    yield Heading("All classes", level)
    fold = None if len(names) <= MOST_UNFOLDED else f"All {plural(len(names), 'class')}, average precision in %"
    yield class_table(runs[last], columns, fold=fold)
    yield Text("Average precision in %. A click on a title sorts.", is_note=True)


def _cell(value: float, *, signed: bool = False) -> Cell:
    return percent_cell(None if np.isnan(value) else value, signed=signed)
