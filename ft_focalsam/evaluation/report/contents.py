"""What a report says, section by section. A new section is one function here, named in `report_blocks`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import datasets
import numpy as np

from ..comparison import compare_verdicts
from ..estimates import FEWEST_SEEDS, Estimate, estimate
from ..verdict import Verdict
from .blocks import Block, Examples, Heading, Plot, Table, Text
from .frequency import RUN_MARKERS, frequency_figure
from .pictures import example, worst_confusions
from .plots import curve, reliability
from .tables import distinct_notes, verdict_rows

TITLES = {
    "accuracy": "top-1",
    "top5_accuracy": "top-5",
    "mean_class_accuracy": "mean per class",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "worst_class_accuracy": "worst class",
    "harmonic_mean_accuracy": "harmonic mean",
    "geometric_mean_accuracy": "geometric mean",
    "macro_f1": "macro-F1",
    "calibration_error": "calibration error",
}
EXAMPLES = 4  # pictures of each confusion

# Of what is logged in training: title -> key in the log -> name in the drawing.
CURVES = {
    "loss": {"loss": "training", "eval_loss": "evaluation"},
    "accuracy": {"eval_accuracy": "top-1", "eval_mean_class_accuracy": "mean per class", "eval_few": "few-shot"},
    "sharpness": {"sharpness": "class-weighted loss at w + ε minus at w"},
    "learning rate": {"learning_rate": "learning rate"},
}


def report_blocks(
    verdicts: Mapping[str, Verdict],
    *,
    title: str,
    pictures: Mapping[str, datasets.Dataset],
    log_history: Sequence[Mapping],
    seeds: Mapping[str, Sequence[Verdict]],
) -> Iterator[Block]:
    """All blocks of a report, see [`write_page`]."""
    yield Heading(title, 1)
    yield from headline(verdicts)
    for dataset, runs in seeds.items():
        yield from seed_table(dataset, runs)
    names = list(dict.fromkeys(verdict.predictions.dataset for verdict in verdicts.values()))
    for dataset in names:
        runs = {name: verdict for name, verdict in verdicts.items() if verdict.predictions.dataset == dataset}
        if len(names) > 1:
            yield Heading(f"Test set {dataset}")
        level = 3 if len(names) > 1 else 2
        yield from comparisons(runs, level)
        yield from classes(runs, level)
        yield from confusions(runs, pictures.get(dataset), level)
        yield from calibration(runs, level)
    yield from training(log_history)


def headline(verdicts: Mapping[str, Verdict]) -> Iterator[Block]:
    """The metrics of all runs, one column a run, and what to know about them."""
    rows = []
    for metric, title in _titles(verdict.metrics for verdict in verdicts.values()).items():
        cells = [_cell(verdict.metrics.get(metric), verdict.intervals.get(metric)) for verdict in verdicts.values()]
        rows.append((title, *cells))
    for title, counts in _image_counts(verdicts.values()).items():
        rows.append((title, *counts))
    rows.append(("classes in the test", *(f"{int((v.test_counts > 0).sum()):,}" for v in verdicts.values())))
    yield Table(("%", *verdicts), rows)
    yield from map(Text, distinct_notes({name: [*v.notes, *v.warnings] for name, v in verdicts.items()}))
    yield Text(
        "Small: 95 % intervals (Clopper and Pearson's, at the effective number of images). They say what other test "
        "images of the same classes would change, not what another training would. Only means of class accuracies "
        "have one.",
        is_note=True,
    )


def _image_counts(verdicts: Iterable[Verdict]) -> dict[str, list[str]]:
    """Test images by title, all and those of each group, one number a run."""
    counts = [verdict.metric_images for verdict in verdicts]
    titles = {"accuracy": "test images"} | {
        group: f"of {TITLES[group]} classes" for group in ("many", "medium", "few")
    }
    shown = {name: title for name, title in titles.items() if any(name in each for each in counts)}
    return {title: [count_cell(each.get(name)) for each in counts] for name, title in shown.items()}


def seed_table(dataset: str, runs: Sequence[Verdict]) -> Iterator[Block]:
    """What runs with several seeds say together; of fewer than three, each run by itself."""
    yield Heading(f"Over {len(runs)} seeds on {dataset}")
    found = estimate([run.outcomes for run in runs])
    rows = [(title, estimate_cell(found[name])) for name, title in _titles([found]).items()]
    yield Table(("%", seeds_title(len(runs))), rows)
    yield Text(f"{describe_seeds(len(runs)).capitalize()}.", is_note=True)


def seeds_title(num_seeds: int) -> str:
    """What a cell of [`estimate_cell`] shows first."""
    return "mean ± standard deviation" if num_seeds >= FEWEST_SEEDS else "mean (single runs)"


def describe_seeds(num_seeds: int) -> str:
    """What the numbers over seeds are, in words."""
    if num_seeds >= FEWEST_SEEDS:
        return (
            f"mean ± standard deviation over {num_seeds} seeds, and 95 % intervals for other test images and other "
            "trainings together"
        )
    runs = "one seed" if num_seeds == 1 else "means of two seeds with the single runs behind them"
    return (
        f"{runs}, and 95 % intervals for other test images but not for another training, which takes three seeds or "
        "more"
    )


def comparisons(runs: Mapping[str, Verdict], level: int) -> Iterator[Block]:
    """The last run against each of the others, on the same images."""
    if len(runs) < 2:
        return
    *others, last = runs
    tests = {name: compare_verdicts(runs[name], runs[last]) for name in others}
    yield Heading(f"{last} against the other runs" if len(others) > 1 else f"{last} against {others[0]}", level)
    rows = []
    for metric, title in _titles(test.differences for test in tests.values()).items():
        found = [(test.differences.get(metric), test.intervals.get(metric)) for test in tests.values()]
        rows.append((title, *(_cell(*pair, signed=True) for pair in found)))
    rows.append((f"images that only {last} has right", *(f"{test.only_second:,}" for test in tests.values())))
    rows.append(("images that only the other has right", *(f"{test.only_first:,}" for test in tests.values())))
    rows.append(("p, McNemar's exact test", *(_p_value(test.p_value) for test in tests.values())))
    yield Table(("difference in points", *(f"to {name}" for name in others)), rows)
    yield Text(
        "Small: 95 % intervals of the differences on the same images (Bonett and Price's, at the effective number of "
        "images). p is how often two runs that are equally good would differ as much as these on the images that one "
        "of them alone has right.",
        is_note=True,
    )


def classes(runs: Mapping[str, Verdict], level: int) -> Iterator[Block]:
    """Accuracy of each class: over its frequency where that is known, and as a table."""
    last = list(runs.values())[-1]
    names, counts = last.predictions.class_names, last.class_counts
    yield Heading("Accuracy of each class", level)
    shown = dict(list(runs.items())[-len(RUN_MARKERS) :])
    accuracies = {name: verdict.class_accuracies for name, verdict in shown.items()}
    if counts is not None and counts.min() > 0:
        groups = last.outcomes.groups
        yield Plot(
            lambda look: frequency_figure(
                look, counts, accuracies=accuracies, class_names=names, groups=groups, size=(5.2, 5)
            ),
            "Accuracy of each class against its number of training images",
            "Accuracy of each class against its number of training images; lines: means of the groups.",
        )
    records = verdict_rows(last)
    keys = {"name": "class", "group": "group", "train_images": "training images", "test_images": "test images"}
    columns = {title: [record[key] for record in records] for key, title in keys.items()}
    columns = {title: values for title, values in columns.items() if values[0] is not None}  # no counts, no groups
    header = [*columns, *runs]
    cells = [[str(value) for value in values] for values in columns.values()]
    cells += [_class_cells(verdict) for verdict in runs.values()]
    yield Table(header, list(zip(*cells, strict=True)), fold=f"All {len(names):,} classes, accuracy in %")


def confusions(runs: Mapping[str, Verdict], pictures: datasets.Dataset | None, level: int) -> Iterator[Block]:
    """What the last run takes for something else most often, with examples."""
    name, verdict = list(runs.items())[-1]
    names, outcomes = verdict.predictions.class_names, verdict.outcomes
    found = worst_confusions(outcomes)
    yield Heading("What is confused most", level)
    if not found:
        yield Text(f"{name} has every image right.")
        return
    rows = [(names[c.label], names[c.predicted], f"{len(c.rows):,}", f"{100 * c.share:.1f}") for c in found]
    yield Table(("class", "taken for", "images", "% of the class"), rows)
    for confusion in found if pictures is not None else ():
        chosen = confusion.rows[:EXAMPLES]
        captions = [f"{100 * outcomes.confidence[row]:.0f} % sure" for row in chosen]
        images = [example(pictures, row) for row in chosen]
        title = f"{names[confusion.label]}, taken for {names[confusion.predicted]}"
        yield Examples(title, list(zip(images, captions, strict=True)))


def calibration(runs: Mapping[str, Verdict], level: int) -> Iterator[Block]:
    """Reliability diagram of the last run."""
    name, verdict = list(runs.items())[-1]
    tally = verdict.outcomes.tally()
    confidence = tally.bin_confidence.sum() / tally.bin_images.sum()
    gap = 100 * (confidence - verdict.metrics["accuracy"])
    yield Heading("Calibration", level)
    yield Text(
        f"{name} is {100 * confidence:.1f} % sure on average and right in {100 * verdict.metrics['accuracy']:.1f} "
        f"%: {'over' if gap > 0 else 'under'}confident by {abs(gap):.1f} points. The expected calibration error (15 "
        f"bins) is {100 * verdict.metrics['calibration_error']:.1f} points."
    )
    yield Plot(
        lambda look: reliability(look, tally),
        f"Reliability diagram of {name}: accuracy over confidence",
        "Bars: accuracy of the images in each bin of confidence; dots: their mean confidence, on the diagonal.",
    )


def training(log_history: Sequence[Mapping]) -> Iterator[Block]:
    """What was logged over the steps."""
    shown = []
    for title, keys in CURVES.items():
        scale, unit = (100, " (%)") if title == "accuracy" else (1, "")
        lines = {
            name: [(entry["step"], scale * entry[key]) for entry in log_history if key in entry and "step" in entry]
            for key, name in keys.items()
        }
        lines = {name: pairs for name, pairs in lines.items() if len(pairs) > 1}
        if lines:
            shown.append((title, lines, title + unit))
    if shown:
        yield Heading("Training")
    for title, lines, ylabel in shown:
        draw = lambda look, lines=lines, ylabel=ylabel: curve(look, lines, ylabel)  # noqa: E731
        yield Plot(draw, f"{title} over the steps of training", f"{title.capitalize()} over the steps of training.")


def _titles(metrics) -> dict[str, str]:
    """Names and titles of the metrics that any of the runs has."""
    present = {name for each in metrics for name in each}
    return {name: title for name, title in TITLES.items() if name in present}


def _cell(value: float | None, interval, *, signed: bool = False) -> str | tuple[str, str]:
    """A value in percent, with its interval below it."""
    if value is None:
        return "–"
    text = format_percent(value, signed=signed)
    return text if interval is None else (text, format_interval(interval, signed=signed))


def format_percent(value: float, *, signed: bool = False) -> str:
    """In percent, with a true minus, and no sign before a zero."""
    text = f"{100 * value:{'+' if signed else ''}.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def estimate_cell(found: Estimate | None, *, signed: bool = False) -> str | tuple[str, str]:
    """Mean and deviation, or mean and single runs, with the interval below."""
    if found is None:
        return "–"
    text = format_percent(found.mean, signed=signed)
    if found.deviation is not None:
        text += f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{100 * found.deviation:.1f}"
    elif len(found.values) > 1:
        values = (format_percent(value, signed=signed) for value in found.values)
        text += " (" + ",\N{NO-BREAK SPACE}".join(values) + ")"
    return text if found.interval is None else (text, format_interval(found.interval, signed=signed))


def format_interval(ends: Iterable[float], *, signed: bool = False) -> str:
    """Both ends in percent."""
    return " to ".join(format_percent(end, signed=signed) for end in ends)


def _class_cells(verdict: Verdict) -> list[str | tuple[str, str]]:
    """Accuracy of each class with its interval."""
    values = zip(verdict.class_accuracies, *verdict.class_intervals, strict=True)
    return [_cell(None if np.isnan(value) else value, ends) for value, *ends in values]


def count_cell(images: int | None) -> str:
    """A number of images; a dash where there is none to give."""
    return "–" if images is None else f"{images:,}"


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
