"""What one run or several with other seeds say: of one method, or of one against another."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from scipy.stats import norm, t

from .intervals import LEVEL, WeightedMean, interval_of, weighted_mean
from .metrics import class_weights, tally_metrics
from .sample_results import SampleResults

Key = TypeVar("Key", bound=Hashable)

FEWEST_SEEDS = 3  # that have a deviation; that of two runs is below a third of the true one in every fourth case


@dataclass(frozen=True)
class Estimate:
    """A metric of a method, or its difference between two methods.

    Args:
        mean (`float`): Over the runs.
        values (`tuple[float, ...]`): Of each run.
        deviation (`float`, *optional*): Standard deviation over the runs (divided by n - 1); None of fewer than three.
        interval (`tuple[float, float]`, *optional*): For other test images and, of three runs or more, for other runs,
            see [`estimate`]; of average precision for other runs alone, see [`estimate_values`]. None for what is
            neither average precision nor a mean of class accuracies.
    """

    mean: float
    values: tuple[float, ...]
    deviation: float | None
    interval: tuple[float, float] | None


def estimate(
    runs: Sequence[SampleResults], *, against: Sequence[SampleResults] | None = None, level: float = LEVEL
) -> dict[str, Estimate]:
    """Metrics over the runs of a method, or their differences from those of another one.

    The mean over S runs is off for two reasons: these test images are some of many, and these seeds are some of many.
    The variance by the images is that of [`weighted_mean`], where an image scores 1 in a run that has it right, less 1
    where the other method has: what is hard for both cancels. That by the seeds is s^2 / S, s the deviation
    over the runs, and counts (t / z)^2 times, with the quantiles t of Student's distribution with S - 1 degrees of
    freedom and z of the normal one. The interval is that of [`interval_of`] with the sum of both: a little wide, as
    the chance of a run that falls on single images is in both parts. With one run or two it covers other test images
    only: t is 12.7 for two, and their s is no measure.

    Args:
        runs (sequence of `SampleResults`): S runs on the same images in the same order.
        against (sequence of `SampleResults`, *optional*): Those of the other method, its seeds in the same order;
            the differences are `runs` minus these, seed by seed.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).

    Returns:
        `dict[str, Estimate]`: By the name of the metric, of those that all runs have.

    Raises:
        ValueError: If there is no run, the numbers of runs differ, or the images of any two do.
    """
    check_runs(runs, against)
    values = [tally_metrics(run.tally()) for run in runs]
    if against is not None:
        values = [minus(each, tally_metrics(run.tally())) for each, run in zip(values, against, strict=True)]
    weights = class_weights(runs[0].tally())
    estimates = {}
    for name in values[0]:
        if not all(name in each for each in values):
            continue
        of_runs = np.array([each[name] for each in values])
        found = None
        if name in weights:
            scores = _scores(runs, name) - (0 if against is None else _scores(against, name))
            found = weighted_mean(scores, runs[0].labels, weights[name])
        estimates[name] = _over_runs(of_runs, found, is_difference=against is not None, level=level)
    return estimates


def estimate_values(
    runs: Sequence[Mapping[Key, float]], *, against: Sequence[Mapping[Key, float]] | None = None, level: float = LEVEL
) -> dict[Key, Estimate]:
    """Values over the runs of a method that are no means over images, as average precision, or their differences.

    The interval is Student's over the runs, mean ± t s / √S: for other seeds, on these test images. Fewer than three
    runs have none.

    Args:
        runs (sequence of mappings): Of each run the values by name; names that not all have are left out.
        against (sequence of mappings, *optional*): Those of the other method, its seeds in the same order; the
            differences are `runs` minus these, seed by seed.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).
    """
    if against is not None:
        runs = [minus(run, other) for run, other in zip(runs, against, strict=True)]
    estimates = {}
    for name in runs[0]:
        if not all(name in run for run in runs):
            continue
        found = _over_runs(np.array([run[name] for run in runs]), None, is_difference=False, level=level)
        if found.deviation is not None:
            half = norm.ppf((1 + level) / 2) * seeds_variance(found.deviation, len(runs), level) ** 0.5
            found = replace(found, interval=(found.mean - half, found.mean + half))
        estimates[name] = found
    return estimates


def estimate_classes(
    runs: Sequence[SampleResults], *, against: Sequence[SampleResults] | None = None, level: float = LEVEL
) -> list[Estimate | None]:
    """Accuracy of each class, or its difference from that of another method, by the rules of [`estimate`].

    Args:
        runs, against, level: As in [`estimate`].

    Returns:
        One entry a class; None for a class without a test image.

    Raises:
        ValueError: As [`estimate`].
    """
    check_runs(runs, against)
    scores = _scores(runs, "accuracy") - (0 if against is None else _scores(against, "accuracy"))
    order = np.argsort(runs[0].labels, kind="stable")
    ends = np.cumsum(np.bincount(runs[0].labels, minlength=runs[0].num_classes))[:-1]
    found: list[Estimate | None] = []
    for rows in np.split(order, ends):
        if not len(rows):
            found.append(None)
            continue
        own = scores[:, rows]
        of_class = weighted_mean(own, np.zeros(len(rows), dtype=np.int64), np.ones(1))
        found.append(_over_runs(own.mean(axis=1), of_class, is_difference=against is not None, level=level))
    return found


def _over_runs(of_runs: np.ndarray, found: WeightedMean | None, *, is_difference: bool, level: float) -> Estimate:
    """The estimate of a metric from its value in each run; without `found` it has no interval."""
    deviation = float(of_runs.std(ddof=1)) if len(of_runs) >= FEWEST_SEEDS else None
    interval = None
    if found is not None:
        by_seeds = 0.0 if deviation is None else seeds_variance(deviation, len(of_runs), level)
        interval = interval_of(found, is_difference=is_difference, further=by_seeds, level=level)
    return Estimate(float(of_runs.mean()), tuple(of_runs.tolist()), deviation, interval)


def check_runs(runs: Sequence[SampleResults], against: Sequence[SampleResults] | None) -> None:
    """Raise a `ValueError` where there is no run, the numbers of runs differ, or the images of any two do."""
    if not runs or (against is not None and len(against) != len(runs)):
        raise ValueError(f"{len(runs)} runs cannot be estimated{'' if against is None else f' from {len(against)}'}.")
    for other in (*runs, *(against or ())):
        check_same_labels(runs[0], other)


def seeds_variance(deviation: float, num_runs: int, level: float = LEVEL) -> float:
    """Variance of a mean over runs by their seeds, as much larger as Student's quantile is than the normal one."""
    quantile = (1 + level) / 2
    return (t.ppf(quantile, num_runs - 1) / norm.ppf(quantile)) ** 2 * deviation**2 / num_runs


def _scores(runs: Sequence[SampleResults], metric: str) -> np.ndarray:
    """1 where a run has an image right, else 0; float64 of shape (S, N)."""
    return np.stack([_is_right(run, metric) for run in runs]).astype(np.float64)


def _is_right(run: SampleResults, metric: str) -> np.ndarray:
    """Of each image, bool of shape (N,)."""
    if metric != "top5_accuracy":
        return run.is_hit
    if run.in_top5 is None:
        raise ValueError("The top-5 accuracy needs logits of more than five classes; give these.")
    return run.in_top5


def check_same_labels(first: SampleResults, second: SampleResults) -> None:
    """Raise a `ValueError` where two runs were not scored on the same images."""
    if not np.array_equal(first.labels, second.labels):
        raise ValueError(
            "The two runs were scored on different images or labels, which cannot be paired; evaluate both on the "
            "same test set."
        )


def minus(second: Mapping[Key, float], first: Mapping[Key, float]) -> dict[Key, float]:
    """Second minus first, of the metrics that both have."""
    return {name: second[name] - first[name] for name in second if name in first}
