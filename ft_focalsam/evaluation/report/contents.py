"""What a report says, section by section. A new section is one function here or in a file beside this one, named in
`report_blocks`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np
from sklearn.metrics import confusion_matrix

from ..comparison import Comparison, compare_results
from ..estimates import estimate, estimate_classes
from ..eval_result import EvalResult
from ..multi_label_result import Kind, MultiLabelResult, Result, all_of
from . import multi_label
from .blocks import Block, Confusions, Example, Examples, Heading, Plot, SideBySide, Table, Text, Warnings
from .class_table import MOST_UNFOLDED, class_table
from .confidence import calibration
from .formats import (
    Cell,
    count_cell,
    describe_seeds,
    estimate_cell,
    format_p_value,
    format_percent,
    metric_titles,
    percent_cell,
    plural,
    seeds_title,
)
from .frequency import RUN_MARKERS, frequency_figure
from .images import example, worst_confusions
from .plots import curve
from .settings import settings, subtitle
from .summary import summary
from .tables import distinct_notes

EXAMPLES = 4  # images of each confusion
MOST_IN_MATRIX = 50  # classes

# Of what is logged in training: title -> key in the log -> name in the drawing; {} is what is evaluated on.
CURVES = {
    "loss": {"loss": "training", "eval_loss": "{}"},
    "accuracy": {
        "eval_accuracy": "{}, top-1",
        "eval_mean_class_accuracy": "{}, mean per class",
        "eval_few": "{}, few-shot",
    },
    "mAP": {"eval_mAP": "{}, all classes", "eval_few": "{}, few-shot"},
    "sharpness": {"sharpness": "class-weighted loss at w + ε minus at w"},
    "learning rate": {"learning_rate": "learning rate"},
}


PERCENT = ("accuracy", "mAP")


@dataclass(frozen=True)
class Report:
    """What a report is about; the arguments are those of [`write_page`]."""

    results: Mapping[str, Result]
    title: str
    images: Mapping[str, datasets.Dataset] = field(default_factory=dict)
    log_history: Sequence[Mapping] = ()
    seeds: Mapping[str, Sequence[Result]] = field(default_factory=dict)
    run: Mapping = field(default_factory=dict)

    @property
    def test_sets(self) -> dict[str, dict[str, Result]]:
        """The runs by the name of their test set."""
        found: dict[str, dict[str, Result]] = {}
        for name, result in self.results.items():
            found.setdefault(result.predictions.dataset, {})[name] = result
        return found


def report_blocks(report: Report) -> Iterator[Block]:
    """All blocks of a report."""
    yield Heading(report.title, 1)
    yield from subtitle(report.run)
    several = len(report.test_sets) > 1
    for dataset, runs in report.test_sets.items():
        named = dataset if several else None
        if _has_several_classes(runs):
            yield from multi_label.summary(_all_of(MultiLabelResult, runs), dataset=named)
        else:
            yield from summary(_all_of(EvalResult, runs), dataset=named)
    yield from warnings(report)
    for dataset, runs in report.test_sets.items():
        level = 3 if several else 2
        if several:
            yield Heading(f"Test set {dataset}")
        seeds = report.seeds.get(dataset, ())
        if _has_several_classes(runs):
            yield from multi_label.sections(_all_of(MultiLabelResult, runs), all_of(MultiLabelResult, seeds), level)
        else:
            found = _all_of(EvalResult, runs)
            yield from _sections(dataset, found, all_of(EvalResult, seeds), report.images.get(dataset), level)
    yield from training(report.log_history, report.run)
    yield from settings(report.run)


def _sections(
    dataset: str,
    runs: Mapping[str, EvalResult],
    seeds: Sequence[EvalResult],
    images: datasets.Dataset | None,
    level: int,
) -> Iterator[Block]:
    """What is said of a test set whose images have one class each."""
    yield from scores(runs, level)
    if seeds:
        yield from seed_table(dataset, seeds, level)
    yield from classes(runs, level)
    yield from confusions(runs, images, level)
    yield from calibration(runs, level)


def _all_of(kind: type[Kind], runs: Mapping[str, Result]) -> dict[str, Kind]:
    """Runs whose results are all of a kind."""
    return dict(zip(runs, all_of(kind, runs.values()), strict=True))


def _has_several_classes(runs: Mapping[str, Result]) -> bool:
    """Whether the images of a test set have several classes each."""
    return any(isinstance(result, MultiLabelResult) for result in runs.values())


def warnings(report: Report) -> Iterator[Block]:
    """What the data lacks, and how the numbers were made."""
    notes = distinct_notes({name: [*v.warnings, *v.notes] for name, v in report.results.items()})
    notes = [*(report.run.get("data") or {}).get("notes", ()), *notes]
    if notes:
        yield Heading("What to know about the data")
        yield Warnings(notes)


def scores(runs: Mapping[str, EvalResult], level: int) -> Iterator[Block]:
    """The metrics of all runs on a test set, with what the last one gains, beside the accuracies of the classes."""
    *others, last = runs
    tests = {name: compare_results(runs[name], runs[last]) for name in others}
    images = runs[last].metric_images
    rows = []
    for metric, title in metric_titles(result.metrics for result in runs.values()).items():
        cells = [percent_cell(v.metrics.get(metric), v.intervals.get(metric)) for v in runs.values()]
        cells += [_difference_cell(test, metric) for test in tests.values()]
        rows.append((title, *cells, count_cell(images.get(metric, images["accuracy"]))))
    differences = ["difference"] if len(others) == 1 else [f"difference to {name}" for name in others]
    table = Table(("%", *runs, *differences, "test images"), rows)
    yield Heading("Scores", level)
    chart = _frequency_plot(runs)
    yield SideBySide([table, chart]) if chart else table
    for name, test in tests.items():
        yield Text(
            f"On the same images, {last} alone is right on {test.only_second:,} and {name} alone on "
            f"{test.only_first:,}; two equally good runs differ this much with {format_p_value(test.p_value)} "
            "(McNemar's exact test)."
        )
    yield Text(
        "Small: 95 % intervals (Clopper and Pearson's; of differences Bonett and Price's; at the effective number of "
        "images). They say what other test images of the same classes would change, not what another training would. "
        "Only means of class accuracies have one.",
        is_note=True,
    )


def _difference_cell(test: Comparison, metric: str) -> Cell:
    return percent_cell(test.differences.get(metric), test.intervals.get(metric), signed=True)


def _frequency_plot(runs: Mapping[str, EvalResult]) -> Plot | None:
    """Accuracy over class frequency, where all classes have training images."""
    last = list(runs.values())[-1]
    counts = last.class_counts
    if counts is None or counts.min() < 1:
        return None
    shown = dict(list(runs.items())[-len(RUN_MARKERS) :])
    accuracies = {name: result.class_accuracies for name, result in shown.items()}
    names, groups, tests = last.predictions.class_names, last.outcomes.groups, last.test_counts
    return Plot(
        lambda look: frequency_figure(
            look,
            counts,
            accuracies=accuracies,
            class_names=names,
            groups=groups,
            test_counts=tests,
            size=(5.2, 4),
        ),
        "Accuracy of each class against its number of training images",
        "Accuracy of each class against its number of training images. Whiskers: 95 % intervals of the last run, wide "
        "where a class has few test images; lines: means of the groups.",
    )


def seed_table(dataset: str, runs: Sequence[EvalResult], level: int) -> Iterator[Block]:
    """What runs with several seeds say together; of fewer than three, each run by itself."""
    yield Heading(f"Over {len(runs)} seeds on {dataset}", level)
    found = estimate([run.outcomes for run in runs])
    rows = [(title, estimate_cell(found[name])) for name, title in metric_titles([found]).items()]
    yield Table(("%", seeds_title(len(runs))), rows)
    yield Text(f"{describe_seeds(len(runs)).capitalize()}.", is_note=True)


def classes(runs: Mapping[str, EvalResult], level: int) -> Iterator[Block]:
    """Accuracy of each class as a table."""
    *others, last = runs
    names, outcomes = runs[last].predictions.class_names, runs[last].outcomes
    columns = {}
    for name, result in runs.items():
        columns[name] = [estimate_cell(each) for each in estimate_classes([result.outcomes])]
    for name in others:
        title = "difference" if len(others) == 1 else f"difference to {name}"
        found = estimate_classes([outcomes], against=[runs[name].outcomes])
        columns[title] = [estimate_cell(each, signed=True) for each in found]
    yield Heading("All classes", level)
    fold = None if len(names) <= MOST_UNFOLDED else f"All {plural(len(names), 'class')}, accuracy in %"
    yield class_table(runs[last], columns, fold=fold)
    yield Text(
        "Accuracy in %, small: 95 % intervals. A click on a title sorts." + (f" {MANY_INTERVALS}" if others else ""),
        is_note=True,
    )


MANY_INTERVALS = (
    "Of many intervals at 95 %, one in twenty misses what it is for: a difference of a single class is a hint, not a "
    "proof."
)


def confusions(runs: Mapping[str, EvalResult], images: datasets.Dataset | None, level: int) -> Iterator[Block]:
    """What the last run takes for something else: a matrix, and the most frequent mistakes with examples."""
    name, result = list(runs.items())[-1]
    names, outcomes = result.predictions.class_names, result.outcomes
    found = worst_confusions(outcomes)
    yield Heading("What is confused", level)
    if not found:
        yield Text(f"{name} has every image right.")
        return
    rows = [(names[c.label], names[c.predicted], f"{len(c.rows):,}", format_percent(c.share)) for c in found]
    table = Table(("class", "taken for", "images", "% of the class"), rows)
    if len(names) > MOST_IN_MATRIX:
        yield table
    else:
        counts = confusion_matrix(outcomes.labels, outcomes.predicted, labels=np.arange(len(names)))
        yield SideBySide([Confusions(names, counts), table])
        yield Text(
            f"{name}: rows are the classes, columns what their images are taken for; the darker, the larger the share "
            "of the class.",
            is_note=True,
        )
    shown = []
    for confusion in found if images is not None else ():
        examples = []
        for row in confusion.rows[:EXAMPLES]:
            sure = outcomes.confidence
            caption = "confidence unknown" if sure is None else f"{100 * sure[row]:.0f} % sure"
            examples.append(Example(example(images, row), _image_name(result.predictions.ids[row]), caption))
        shown.append(Examples(f"{names[confusion.label]}, taken for {names[confusion.predicted]}", examples))
    if shown:
        yield SideBySide(shown)


def _image_name(name: str) -> str:
    """The name of an image's file; of one without, its row."""
    return f"row {name}" if name.isdecimal() else name


def training(log_history: Sequence[Mapping], run: Mapping) -> Iterator[Block]:
    """What was logged over the steps."""
    resolved = run.get("resolved") or {}
    has_validation = any(resolved.get(f"validation_{kind}") is not None for kind in ("fraction", "split"))
    evaluated = "validation" if has_validation else "evaluation"
    plots = []
    for title, keys in CURVES.items():
        if title in PERCENT and not any(next(iter(keys)) in entry for entry in log_history):
            continue
        scale, unit = (100, " (%)") if title in PERCENT else (1, "")
        lines = {
            name.format(evaluated): [
                (entry["step"], scale * entry[key]) for entry in log_history if key in entry and "step" in entry
            ]
            for key, name in keys.items()
        }
        lines = {name: pairs for name, pairs in lines.items() if len(pairs) > 1}
        if lines:
            draw = lambda look, lines=lines, ylabel=title + unit: curve(look, lines, ylabel)  # noqa: E731
            plots.append(
                Plot(draw, f"{title} over the steps", f"{title[0].upper()}{title[1:]} over the optimizer steps.")
            )
    if plots:
        yield Heading("Training")
        yield SideBySide(plots)
        if not any("eval_loss" in entry for entry in log_history):
            yield Text(
                "Nothing was evaluated while training; --validation_fraction 0.1 --eval_strategy epoch shows whether "
                "the run learns by heart.",
                is_note=True,
            )
