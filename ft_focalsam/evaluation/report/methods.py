"""Several methods, each with several seeds, on one data set: a table, their differences, accuracy over cost."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from math import isclose
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...base.errors import printable
from ..estimates import Estimate
from ..eval_result import EvalResult
from ..multi_label_result import Kind, MultiLabelResult, Result, all_of
from .blocks import Block, Heading, Plot, SideBySide, Table, Text, Warnings
from .class_table import MOST_UNFOLDED, class_table
from .contents import MANY_INTERVALS
from .formats import (
    TITLES,
    count_cell,
    describe_seeds,
    describe_spread,
    estimate_cell,
    format_interval,
    format_percent,
    plural,
)
from .frequency import RUN_MARKERS, difference_figure
from .markdown import markdown_table
from .page import write_blocks
from .plots import Look, legend_below, new_axes
from .tables import COLUMNS, MULTI_LABEL_COLUMNS, distinct_notes


@dataclass(frozen=True)
class Score:
    """What a comparison calls its numbers.

    Args:
        name (`str`): Of the score of a class.
        columns (sequence of `str`): The metrics of the tables.
        main, mean (`str`): The metrics that a sentence tells, and that the first drawing shows over the cost.
        describe_seeds (`Callable`): (number of seeds) -> what the numbers over these are, in words.
        note (`str`): What else a reader has to know of the columns.
    """

    name: str
    columns: Sequence[str]
    main: str
    mean: str
    describe_seeds: Callable[[int], str]
    note: str


ACCURACY = Score(
    "accuracy",
    tuple(COLUMNS),
    "accuracy",
    "mean_class_accuracy",
    describe_seeds,
    "Mean per class weighs all classes alike",
)
AVERAGE_PRECISION = Score(
    "average precision",
    tuple(MULTI_LABEL_COLUMNS),
    "mAP",
    "mAP",
    describe_spread,
    "mAP is the mean of the classes' average precisions",
)


@dataclass(frozen=True)
class MethodRuns:
    """Runs of one method.

    Args:
        name (`str`): Of the method.
        results (`Mapping[int, Result]`): By seed, at least one; all of one class an image, or all of several.
        seconds (`Mapping[int, float]`): What each training took, by seed.
    """

    name: str
    results: Mapping[int, Result]
    seconds: Mapping[int, float]

    @property
    def any_result(self) -> Result:
        """What all of them have in common is in each: test images, groups, thresholds."""
        return next(iter(self.results.values()))

    @property
    def score(self) -> Score:
        return ACCURACY if isinstance(self.any_result, EvalResult) else AVERAGE_PRECISION

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """By the name of the metric, see `estimate_runs` of the results."""
        return self._estimate_runs()

    def differences(self, reference: "MethodRuns") -> dict[str, Estimate]:
        """This method minus another one, seed by seed on the same images.

        Raises:
            ValueError: If the seeds or the images of the two differ.
        """
        return self._estimate_runs(against=self._paired_with(reference))

    @cached_property
    def class_estimates(self) -> list[Estimate | None]:
        """One entry a class, see `estimate_classes` of the results."""
        return self._estimate_classes()

    def class_differences(self, reference: "MethodRuns") -> list[Estimate | None]:
        """As `differences`, of each class.

        Raises:
            ValueError: As `differences`.
        """
        return self._estimate_classes(against=self._paired_with(reference))

    def _estimate_runs(self, *, against: Sequence[Result] | None = None) -> dict[str, Estimate]:
        if isinstance(self.any_result, EvalResult):
            runs, others = _of_kind(EvalResult, self._runs, against)
            return EvalResult.estimate_runs(runs, against=others)
        several, others_of_several = _of_kind(MultiLabelResult, self._runs, against)
        return MultiLabelResult.estimate_runs(several, against=others_of_several)

    def _estimate_classes(self, *, against: Sequence[Result] | None = None) -> list[Estimate | None]:
        if isinstance(self.any_result, EvalResult):
            runs, others = _of_kind(EvalResult, self._runs, against)
            return EvalResult.estimate_classes(runs, against=others)
        several, others_of_several = _of_kind(MultiLabelResult, self._runs, against)
        return MultiLabelResult.estimate_classes(several, against=others_of_several)

    @property
    def _runs(self) -> list[Result]:
        return list(self.results.values())

    def _paired_with(self, reference: "MethodRuns") -> list[Result]:
        """The results of another method with the same seeds on the same images."""
        if list(self.results) != list(reference.results):
            raise ValueError(
                f"{self.name} was run with the seeds {', '.join(map(str, self.results))} and {reference.name} with "
                f"{', '.join(map(str, reference.results))}; give both the same."
            )
        for seed, result in self.results.items():
            result.predictions.check_same_images(reference.results[seed].predictions, source=self.name)
        return reference._runs

    def cost(self, reference: "MethodRuns") -> float:
        """Time of a training over that of another method, medians over the seeds."""
        return median(self.seconds.values()) / median(reference.seconds.values())


def _of_kind(
    kind: type[Kind], runs: Sequence[Result], against: Sequence[Result] | None
) -> tuple[list[Kind], list[Kind] | None]:
    """Results and those that they are compared with, where there are some, all of a kind."""
    return all_of(kind, runs), None if against is None else all_of(kind, against)


def write_comparison(
    folder: str | Path,
    methods: Sequence[MethodRuns],
    *,
    title: str,
    clock: str,
    written: datetime | None = None,
) -> str:
    """Write comparison.html, one file that needs nothing else, the same as comparison.md, and comparison.json.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        methods (sequence of `MethodRuns`): The first is the one that the others are compared with.
        title (`str`): Of the page.
        clock (`str`): What the seconds are of, e.g. "CPU time".
        written (`datetime`, *optional*): When the page was written; now by default.

    Returns:
        `str`: The tables as Markdown, and what to know about them.

    Raises:
        ValueError: If two methods were run with other seeds, or scored on other images.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    reference, *others = methods
    differences = {method.name: method.differences(reference) for method in others}
    costs = {method.name: method.cost(reference) for method in methods}
    tables = [accuracy_table(methods, costs)]
    if differences:
        tables.append(difference_table(differences, reference))
    blocks = [
        Heading(title, 1),
        *class_sections(methods, differences),
        *score_sections(tables, methods, costs, clock=clock),
        *note_section(methods),
    ]
    write_blocks(folder, "comparison", blocks, written=written)
    record = {
        method.name: {
            "cost": costs[method.name],
            "seconds": dict(method.seconds),
            "estimates": {name: asdict(each) for name, each in method.estimates.items()},
            "differences": {name: asdict(each) for name, each in differences.get(method.name, {}).items()},
        }
        for method in methods
    }
    (folder / "comparison.json").write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    return "\n\n".join([*map(markdown_table, tables), *map(printable, _notes(methods))])


def accuracy_table(methods: Sequence[MethodRuns], costs: Mapping[str, float]) -> Table:
    """Mean over the seeds, with deviation or single runs and intervals, one row a method; last, the test images."""
    columns = _columns(methods[0].score, [method.estimates for method in methods])
    rows = []
    for method in methods:
        cells = [estimate_cell(method.estimates.get(metric)) for metric in columns]
        rows.append((method.name, *cells, f"{costs[method.name]:.2f}"))
    images = methods[0].any_result.metric_images
    rows.append(("test images", *(count_cell(images.get(metric)) for metric in columns), ""))
    return Table(("%", *(TITLES[metric] for metric in columns), f"time / {methods[0].name}"), rows)


def difference_table(differences: Mapping[str, Mapping[str, Estimate]], reference: MethodRuns) -> Table:
    """Differences from the first method in points, one row for each of the others."""
    columns = _columns(reference.score, differences.values())
    rows = []
    for name, values in differences.items():
        rows.append((name, *(estimate_cell(values.get(metric), signed=True) for metric in columns)))
    return Table((f"points from {reference.name}", *(TITLES[metric] for metric in columns)), rows)


def _columns(score: Score, estimates: Iterable[Mapping[str, Estimate]]) -> list[str]:
    """The metrics to show: without the mean over the classes where the test set is balanced, so that it is top-1."""
    if score.mean == score.main:
        return list(score.columns)
    is_balanced = all(isclose(e[score.mean].mean, e[score.main].mean, abs_tol=1e-9) for e in estimates)
    return [metric for metric in score.columns if metric != score.mean or not is_balanced]


def _notes(methods: Sequence[MethodRuns]) -> list[str]:
    """What to know about the numbers of the runs."""
    runs = {f"{each.name}, seed {seed}": result for each in methods for seed, result in each.results.items()}
    return distinct_notes({name: [*result.notes, *result.warnings] for name, result in runs.items()})


def accuracy_by_cost(look: Look, methods: Sequence[MethodRuns], costs: Mapping[str, float], metric: str) -> Figure:
    """A metric with its interval over the time of training, one mark a method."""
    figure, axes = new_axes(look, (5.2, 3.9))
    marks: list[Line2D] = []
    colors = list(dict.fromkeys([look.ink, look.accent, look.second, *look.groups.values()]))
    places = _spread([costs[method.name] for method in methods])
    for index, (method, place) in enumerate(zip(methods, places, strict=True)):
        found, color = method.estimates[metric], colors[index % len(colors)]
        if found.interval is not None:
            low, high = found.interval
            axes.vlines(place, 100 * low, 100 * high, color=color, linewidth=1.4)
        marker = RUN_MARKERS[index % len(RUN_MARKERS)]
        marks += axes.plot(place, 100 * found.mean, marker, color=color, markersize=8, label=printable(method.name))
    axes.margins(x=0.15)
    axes.set(xlabel=f"time of training / {printable(methods[0].name)}", ylabel=f"{TITLES[metric]} (%)")
    legend_below(figure, marks)
    return figure


def _spread(costs: Sequence[float]) -> list[float]:
    """Places on the axis: the costs, those that nearly coincide set beside each other."""
    width = 0.02 * (max(costs) - min(costs) or 1)
    places: list[float] = []
    for cost in costs:
        while any(abs(cost - place) < width for place in places):
            cost += width
        places.append(cost)
    return places


def class_sections(
    methods: Sequence[MethodRuns], differences: Mapping[str, Mapping[str, Estimate]]
) -> Iterator[Block]:
    """What each method gains and loses by class: in a sentence, as drawings, as a table."""
    reference, *others = methods
    result = reference.any_result
    names, counts = result.predictions.class_names, result.class_counts
    found = {method.name: method.class_differences(reference) for method in others}
    for name, estimates in found.items():
        yield Text(_gains(name, reference, differences[name], estimates), is_lead=True)
    yield Heading("Class by class")
    if counts is not None and counts.min() >= 1:
        plots = []
        for name, estimates in found.items():
            draw = lambda look, e=estimates, n=name: difference_figure(  # noqa: E731
                look, counts, e, groups=result.groups, ylabel=f"{n} minus {reference.name} (points)"
            )
            title = f"Difference of {name} from {reference.name} on each class, by its training images"
            plots.append(Plot(draw, title, f"{title}; whiskers: 95 % intervals."))
        if plots:
            yield SideBySide(plots)
    columns = {}
    for name, estimates in found.items():
        columns[f"{name} minus {reference.name}"] = [estimate_cell(each, signed=True) for each in estimates]
    for method in methods:
        columns[method.name] = [estimate_cell(each) for each in method.class_estimates]
    last = found[others[-1].name] if others else reference.class_estimates
    order = sorted(range(len(names)), key=lambda index: _falling(last[index]))
    fold = None if len(names) <= MOST_UNFOLDED else f"All {plural(len(names), 'class')}"
    yield class_table(result, columns, fold=fold, order=order)
    what = reference.score.name.capitalize()
    yield Text(f"{what} in %, differences in points. A click on a title sorts. {MANY_INTERVALS}", is_note=True)


def _falling(found: Estimate | None) -> float:
    """For sorting: the highest first, those without one last."""
    return float("inf") if found is None else -found.mean


def _gains(
    name: str, reference: MethodRuns, differences: Mapping[str, Estimate], classes: Sequence[Estimate | None]
) -> str:
    """On which classes a method is better and worse than the reference, in a sentence."""
    overall, names = differences[reference.score.main], reference.any_result.predictions.class_names
    tested = {label: each for label, each in zip(names, classes, strict=True) if each is not None}
    best, worst = (choose(tested, key=lambda label: tested[label].mean) for choose in (max, min))
    gain = f"{format_percent(overall.mean, signed=True)} points {TITLES[reference.score.main]}"
    if overall.interval is None:
        gain += ", which may be chance, as there are fewer than three seeds"
    else:
        doubt = ", which may be chance" if overall.interval[0] <= 0 <= overall.interval[1] else ""
        intervals = [each.interval for each in tested.values() if each.interval is not None]  # all, as overall
        better = sum(low > 0 for low, _ in intervals)
        worse = sum(high < 0 for _, high in intervals)
        gain += (
            f" (95 % interval {format_interval(overall.interval, signed=True)}){doubt}. Beyond chance it is better on "
            f"{better:,} and worse on {worse:,} of {plural(len(tested), 'class')}"
        )
    return (
        f"{name} against {reference.name}: {gain}; highest: {best} "
        f"({format_percent(tested[best].mean, signed=True)}), lowest: {worst} "
        f"({format_percent(tested[worst].mean, signed=True)})."
    )


def score_sections(
    tables: Sequence[Table], methods: Sequence[MethodRuns], costs: Mapping[str, float], *, clock: str
) -> Iterator[Block]:
    """The tables over all classes, and accuracy over cost."""
    result, score = methods[0].any_result, methods[0].score
    seeds = score.describe_seeds(len(methods[0].results))
    yield Heading("All classes together")
    yield from tables
    yield Text(
        f"{len(result.predictions.labels):,} test images; {seeds}. Differences are taken seed by seed on the same "
        f"images; one whose interval holds 0 is not established. Time is {clock} of training, the median over the "
        f"seeds. {score.note}; many-shot are classes with more than "
        f"{result.many} training images, few-shot those with fewer than {result.few}.",
        is_note=True,
    )
    plots = []
    for metric in (score.mean, "few"):
        if all(method.estimates.get(metric) for method in methods):
            draw = lambda look, metric=metric: accuracy_by_cost(look, methods, costs, metric)  # noqa: E731
            title = f"{TITLES[metric]} {score.name}" if metric != score.main else TITLES[metric]
            title = f"{title[0].upper()}{title[1:]} over the time of training"
            plots.append(Plot(draw, title, f"{title}, one mark a method, with the intervals of the table."))
    if plots:
        yield Heading("Accuracy and cost")
        yield SideBySide(plots)


def note_section(methods: Sequence[MethodRuns]) -> Iterator[Block]:
    """What to know about the numbers."""
    notes = _notes(methods)
    if notes:
        yield Heading("What to know about the data")
        yield Warnings(notes)
