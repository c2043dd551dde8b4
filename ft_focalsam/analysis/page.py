"""`write_analysis`: what was measured of one or several runs, as a page, as a table of classes and as JSON."""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from ..evaluation import to_cell
from ..evaluation.report.blocks import Block, Heading, Plot, Table, Text
from ..evaluation.report.formats import Cell
from ..evaluation.report.html import to_html
from ..evaluation.report.markdown import markdown_table, write_markdown
from .agreement import RankCorrelation, change_by_group, changes_with_accuracy, with_accuracy
from .landscape import offsets
from .measure import MEASURES, Measurement, MeasureOptions
from .plots import against_accuracy, by_frequency, lines, planes

IMAGES = "analysis_images"  # folder of what analysis.md shows
SHARPNESS = "ascent"  # the measure that stands for sharpness in drawings and comparisons
CSV_FIELDS = ("run", "class", "name", "group", "train_images", "images", "accuracy", *MEASURES, "trace_error")


def write_analysis(
    folder: str | Path,
    runs: Sequence[Measurement],
    *,
    class_names: Sequence[str],
    class_counts: np.ndarray,
    options: MeasureOptions,
    about: str,
) -> str:
    """Write analysis.html, one file that needs nothing else, the same as analysis.md, per_class.csv and analysis.json.

    Args:
        folder (`str` or `Path`): Where to write; made where it does not exist.
        runs (sequence of `Measurement`): The first is the one that the others are compared with.
        class_names (sequence of `str`): C names in index order.
        class_counts (`np.ndarray`): Training images of each class, shape (C,).
        options (`MeasureOptions`): What was measured.
        about (`str`): Which images and which loss, in a sentence.

    Returns:
        `str`: The tables of groups and of comparisons as Markdown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "By frequency of the classes": group_table(runs, options),
        "Does flatness go with accuracy?": correlation_table(runs),
    }
    if len(runs) > 1:
        tables[f"Compared with {runs[0].name}"] = change_table(runs)
    blocks = [*_page(runs, tables, class_names, class_counts, options, about)]
    (folder / "analysis.html").write_text(to_html(blocks), encoding="utf-8")
    write_markdown(folder / "analysis.md", blocks, folder=IMAGES)
    _write_csv(folder / "per_class.csv", _rows(runs, class_names, class_counts))
    content = {"options": asdict(options), "about": about, "runs": {run.name: _record(run, runs[0]) for run in runs}}
    content["offsets"] = {
        name: offsets(points, options.extent).tolist()
        for name, points in (("line", options.line_points), ("plane", options.plane_points))
    }
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "analysis.json").write_text(text + "\n", encoding="utf-8")
    return "\n\n".join(markdown_table(table) for table in tables.values())


def group_table(runs: Sequence[Measurement], options: MeasureOptions) -> Table:
    """Means over the classes of each group: accuracy and every measure, a row for each run."""
    groups = list(runs[0].measured_groups)
    rows = []
    for measure, title in {"accuracy": "accuracy (%)", **MEASURES}.items():
        for run in runs:
            values = 100 * run.accuracies if measure == "accuracy" else run.measures[measure]
            if not np.isfinite(values).any():
                continue
            means = run.by_group(values)
            numbers = [_number(means.get(group, math.nan)) for group in groups]
            cells: list[Cell] = [*numbers]
            if measure == "trace":
                errors = [run.trace_error(classes) for classes in run.measured_groups.values()]
                cells = [(cell, f"± {_number(error)}") for cell, error in zip(numbers, errors, strict=True)]
            rows.append([title, run.name, *cells])
    return Table(["mean over classes", "run", *groups], rows)


def correlation_table(runs: Sequence[Measurement]) -> Table:
    """Spearman's correlation of every measure with accuracy over classes, and of their changes from the first run."""
    first, *others = runs
    measures = [name for name in MEASURES if np.isfinite(first.measures[name]).any()]
    rows = []
    for run in runs:
        rows.append([run.name, *(_correlation(with_accuracy(run, name)) for name in measures)])
    for run in others:
        cells = [_correlation(changes_with_accuracy(run, first, name)) for name in measures]
        rows.append([f"{run.name} minus {first.name}", *cells])
    return Table(["rank correlation with accuracy", *(MEASURES[name] for name in measures)], rows)


def change_table(runs: Sequence[Measurement]) -> Table:
    """Sharpness and eigenvalue of each run over those of the first one, and accuracy minus that of the first one."""
    first, *others = runs
    groups = list(first.measured_groups)
    rows: list[list[Cell]] = []
    for run in others:
        for measure in (SHARPNESS, "eigenvalue"):
            if np.isfinite(first.measures[measure]).any():
                changes = change_by_group(run, first, measure)
                cells = [(f"× {_number(c.ratio)}", f"lower in {c.lower} of {c.classes}") for c in changes.values()]
                rows.append([MEASURES[measure], run.name, *cells])
        changes = change_by_group(run, first, SHARPNESS)
        rows.append(["accuracy (points)", run.name, *(_signed(100 * c.accuracy) for c in changes.values())])
    return Table(["change", "run", *groups], rows)


def _page(
    runs: Sequence[Measurement],
    tables: dict[str, Table],
    class_names: Sequence[str],
    class_counts: np.ndarray,
    options: MeasureOptions,
    about: str,
) -> Iterator[Block]:
    yield Heading("Sharpness by class: " + ", ".join(run.name for run in runs), 1)
    yield Text(about)
    yield Text(
        f"Sharpness is the largest increase of a class's mean loss that {_ascent(options)} found within a radius of "
        f"{options.rho:g} around the weights ({options.perturb}); both are lower bounds of the maximum, and one SAM "
        "step is a first-order approximation of it. A group shows means over its classes."
    )
    norms = "; ".join(f"{run.name}: {run.weights:,} weights of norm {_number(run.weight_norm)}" for run in runs)
    yield Text(
        f"{norms}. The radius does not follow the norm, and where the function of a layer does not change with the "
        "scale of its weights, it is the flatter the larger they are: compare norms before sharpness.",
        is_note=True,
    )
    for title, table in tables.items():
        yield Heading(title)
        yield table
        if table is tables["By frequency of the classes"]:
            yield from _unconverged(runs, class_names, options)
        if table is tables["Does flatness go with accuracy?"]:
            yield Text(
                "Below 0: flatter classes are more often right. Few classes make wide intervals, and one run per "
                "method says nothing about other seeds.",
                is_note=True,
            )
    shown = [SHARPNESS, *(["eigenvalue"] if options.hessian else [])]
    for measure in shown:
        title = MEASURES[measure]
        yield Plot(
            partial(by_frequency, runs=runs, counts=class_counts, measure=measure, title=title),
            f"{title} of each class over its training images",
            f"{title.capitalize()} by class frequency.",
        )
        yield Plot(
            partial(against_accuracy, runs=runs, measure=measure, title=title),
            f"{title} of each class over its test accuracy",
            f"{title.capitalize()} and accuracy.",
        )
    yield from _landscapes(runs, options)
    yield Heading("Classes")
    for run in runs:
        yield _class_table(run, class_names, class_counts)


def _unconverged(runs: Sequence[Measurement], class_names: Sequence[str], options: MeasureOptions) -> Iterator[Text]:
    """A note for each run with classes whose eigenvalue is not known."""
    for run in runs if options.hessian else ():
        classes = np.flatnonzero((run.images > 0) & np.isnan(run.measures["eigenvalue"]))
        if classes.size:
            names = ", ".join(class_names[int(index)] for index in classes)
            yield Text(f"{run.name}: Lanczos did not converge for {names}, which no mean counts.", is_note=True)


def _landscapes(runs: Sequence[Measurement], options: MeasureOptions) -> Iterator[Block]:
    groups = [group for group in runs[0].measured_groups if group != "all"]
    if options.line_points or options.plane_points:
        yield Heading("Loss landscapes")
        yield Text(
            "Mean loss of the classes of a group along random directions whose filters have the norms of the weights' "
            "own (Li et al., 2018): at an offset of 1 every filter moves by its own norm. The directions come from "
            "the same noise for all runs.",
        )
    for draw, points, what in ((lines, options.line_points, "one"), (planes, options.plane_points, "two")):
        for group in groups if points else ():
            description = f"Loss of the {group}-shot classes around the weights, in {what} dimensions"
            yield Plot(partial(draw, runs=runs, group=group, extent=options.extent), description, f"{description}.")


def _class_table(run: Measurement, class_names: Sequence[str], class_counts: np.ndarray) -> Table:
    measures = [name for name in MEASURES if np.isfinite(run.measures[name]).any()]
    header = ["class", "training images", "measured on", "accuracy (%)", *(MEASURES[name] for name in measures)]
    rows = []
    for index in np.flatnonzero(run.images):
        accuracy = _number(100 * run.accuracies[index])
        values = [_number(run.measures[name][index]) for name in measures]
        name = class_names[int(index)]
        rows.append([name, f"{class_counts[index]:,}", f"{run.images[index]:,}", accuracy, *values])
    return Table(header, rows, fold=f"The classes of {run.name}")


def _ascent(options: MeasureOptions) -> str:
    return f"projected gradient ascent ({options.ascent_steps} steps)" if options.ascent_steps else "one SAM step"


def _rows(runs: Sequence[Measurement], class_names: Sequence[str], class_counts: np.ndarray) -> Iterator[dict]:
    for run in runs:
        group_of = {int(index): group for group, classes in run.groups.items() for index in classes}
        for index in np.flatnonzero(run.images):
            values = [run.accuracies[index], *(run.measures[name][index] for name in MEASURES)]
            values.append(run.trace_error(np.array([index])) if run.probes.shape[1] else math.nan)
            cells = ["" if math.isnan(value) else repr(float(value)) for value in values]
            about = [to_cell(run.name), int(index), to_cell(class_names[int(index)]), group_of[int(index)]]
            row = [*about, int(class_counts[index]), int(run.images[index]), *cells]
            yield dict(zip(CSV_FIELDS, row, strict=True))


def _write_csv(path: Path, rows: Iterator[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=CSV_FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def _record(run: Measurement, first: Measurement) -> dict:
    measures = {name: values.tolist() for name, values in run.measures.items()}
    record = {
        "weights": run.weights,
        "weight_norm": run.weight_norm,
        "images": run.images.tolist(),
        "accuracy": run.accuracies.tolist(),
        "groups": {name: run.by_group(values) for name, values in run.measures.items()},
        **measures,
        "trace_probes": run.probes.tolist(),
        "rank_correlation": {name: asdict(with_accuracy(run, name)) for name in MEASURES},
        "line": run.line.tolist(),
        "plane": run.plane.tolist(),
    }
    if run is not first:
        record["rank_correlation_of_changes"] = {
            name: asdict(changes_with_accuracy(run, first, name)) for name in MEASURES
        }
        record["changes"] = {
            name: {group: asdict(change) for group, change in change_by_group(run, first, name).items()}
            for name in MEASURES
        }
    return record


def _finite(value: object) -> object:
    """The same for JSON, which has no NaN: null."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _correlation(found: RankCorrelation) -> Cell:
    return "-" if math.isnan(found.value) else (f"{found.value:+.2f}", f"p {found.p:.2g}, {found.classes} classes")


def _number(value: float) -> str:
    """Three digits; thousands and above in full."""
    if not math.isfinite(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.1f}"
