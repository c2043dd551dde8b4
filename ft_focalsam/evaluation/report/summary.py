"""The top of a report: what share is right, and which classes are unreliable and why."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..comparison import compare_results
from ..eval_result import FEW_IMAGES, EvalResult
from .blocks import Block, Table, Text
from .formats import format_interval, format_percent, percent_cell, plural
from .images import worst_confusions

NAMED, LISTED = 5, 10  # unreliable classes in the sentence and in the table


@dataclass(frozen=True)
class UnreliableClass:
    """A class whose predictions are not to be relied on.

    Args:
        label (`int`): The class.
        reasons (`tuple[str, ...]`): Why, e.g. "low accuracy", "2 training images", "no test image".
        remedy (`str`): What helps.
    """

    label: int
    reasons: tuple[str, ...]
    remedy: str


def unreliable_classes(result: EvalResult) -> list[UnreliableClass]:
    """Classes of low accuracy, and those with too few test images to tell, the lowest first.

    The accuracy of a class is low if its 95 % interval ends below the accuracy over all images, or if fewer than half
    of its images are right. Fewer than ten test images are too few. A class with few training images is not unreliable
    for that alone: it is a reason where its accuracy is low or cannot be told.
    """
    low, high = result.class_intervals
    tests, trained = result.test_counts, result.class_counts
    found = []
    for label in np.lexsort((np.arange(len(tests)), np.nan_to_num(low, nan=2.0))):
        accuracy, reasons, remedies = result.class_accuracies[label], [], []
        few_trained = int(trained[label]) if trained is not None and trained[label] < result.few else None
        if tests[label] and (high[label] < result.metrics["accuracy"] or accuracy < 0.5):
            reasons.append("low accuracy")
            remedies.append(
                "see its mistakes: wrong labels, or classes too alike"
                if few_trained is None
                else "add training images"
            )
        if tests[label] < FEW_IMAGES:
            reasons.append(plural(int(tests[label]), "test image") if tests[label] else "no test image")
            remedies.append("test on more images of it")
        if reasons and few_trained is not None:
            reasons.append(plural(few_trained, "training image"))
        if reasons:
            found.append(UnreliableClass(int(label), tuple(reasons), " and ".join(remedies)))
    return found


def summary(runs: Mapping[str, EvalResult], *, dataset: str | None = None) -> Iterator[Block]:
    """What the last run reaches on a test set, against the first one, and its unreliable classes; `dataset` names the
    test set where there are several."""
    *others, name = runs
    result = runs[name]
    text = (
        f"{name} is right on {format_percent(result.metrics['accuracy'])} % of {len(result.predictions.labels):,} "
        f"test images{f' of {dataset}' if dataset else ''} (95 % interval "
        f"{format_interval(result.intervals['accuracy'])})"
    )
    if others:
        text += f", {_against(runs[others[0]], result)} than {others[0]}"
    found = unreliable_classes(result)
    yield Text(f"{text}. {_name_classes(result, found)}", is_lead=True)
    if found:
        yield _class_table(result, found[:LISTED])
        if len(found) > LISTED:
            yield Text(f"And {len(found) - LISTED:,} others, which the table of all classes has.", is_note=True)


def _against(first: EvalResult, last: EvalResult) -> str:
    """ "3.2 points more (interval 1.3 to 5.0)"."""
    test = compare_results(first, last)
    difference, ends = test.differences["accuracy"], test.intervals["accuracy"]
    points = f"{format_percent(abs(difference))} points {'more' if difference >= 0 else 'less'}"
    doubt = ", which may be chance," if ends[0] <= 0 <= ends[1] else ""
    return f"{points}{doubt} ({format_interval(ends, signed=True)})"


def _name_classes(result: EvalResult, found: list[UnreliableClass]) -> str:
    names = result.predictions.class_names
    if not found:
        return (
            f"None of its {plural(len(names), 'class')} is unreliable: each has {FEW_IMAGES} test images or more, and "
            "none is clearly worse than the others."
        )
    named = "; ".join(f"{names[each.label]} ({', '.join(each.reasons)})" for each in found[:NAMED])
    others = f"; and {len(found) - NAMED:,} others" if len(found) > NAMED else ""
    share = f"{len(found):,} of {plural(len(names), 'class')} {'is' if len(found) == 1 else 'are'}"
    return f"{share} unreliable: {named}{others}."


def _class_table(result: EvalResult, found: list[UnreliableClass]) -> Table:
    names, trained = result.predictions.class_names, result.class_counts
    taken_for: dict[int, str] = {}
    for confusion in worst_confusions(result.outcomes, most=None):
        taken_for.setdefault(confusion.label, f"{names[confusion.predicted]} ({format_percent(confusion.share)} %)")
    rows = []
    for each in found:
        accuracy, ends = result.class_accuracies[each.label], [end[each.label] for end in result.class_intervals]
        cells = [percent_cell(None if np.isnan(accuracy) else accuracy, ends), f"{result.test_counts[each.label]:,}"]
        cells += [] if trained is None else [f"{trained[each.label]:,}"]
        rows.append((names[each.label], ", ".join(each.reasons), each.remedy, taken_for.get(each.label, "–"), *cells))
    header = ("unreliable class", "why", "what helps", "most often taken for", "right (%)", "test images")
    return Table((*header, *(() if trained is None else ("training images",))), rows)
