"""Whether one run is better than another on the same test images."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from .intervals import percentile_interval, resampled_metrics
from .metrics import tally_metrics
from .outcomes import Outcomes
from .verdict import Verdict


@dataclass(frozen=True)
class Comparison:
    """A second run against a first one, image by image.

    Args:
        only_first (`int`): Images that the first run alone has right.
        only_second (`int`): Images that the second run alone has right.
        p_value (`float`): Of McNemar's exact test: how often runs that are equally good would differ this much.
        differences (`dict[str, float]`): Second minus first, by the name of the metric.
        intervals (`dict[str, tuple[float, float]]`): 95 % intervals of the differences, of a paired bootstrap, for
            the metrics that `bootstrap_intervals` has one for.
    """

    only_first: int
    only_second: int
    p_value: float
    differences: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def mcnemar(first_is_hit: np.ndarray, second_is_hit: np.ndarray) -> float:
    """p-value of McNemar's exact test, two-sided, that two runs are right equally often on the same images.

    Of the images that one run alone has right, either run should have half: a binomial test (McNemar, 1947,
    https://doi.org/10.1007/BF02295996, in its exact form).

    Args:
        first_is_hit, second_is_hit (`np.ndarray`): bool of shape (N,), of the same images in the same order.
    """
    only_first = int((first_is_hit & ~second_is_hit).sum())
    only_second = int((second_is_hit & ~first_is_hit).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def compare(first: Outcomes, second: Outcomes, *, count: int = 1000, seed: int = 0) -> Comparison:
    """Test two runs on the same test images against each other.

    The resamples of the bootstrap are those of `intervals.py`, the same for both runs, so that what is hard for both
    cancels in the difference.

    Args:
        first, second (`Outcomes`): Of the same images in the same order.
        count (`int`, defaults to 1000): Number of resamples.
        seed (`int`, defaults to 0): Of the resamples.

    Raises:
        ValueError: If the labels of the two differ.
    """
    check_same_labels(first, second)
    resampled = [resampled_metrics(outcomes, count=count, seed=seed) for outcomes in (first, second)]
    total = minus(*(tally_metrics(outcomes.tally()) for outcomes in (second, first)))
    drawn = minus(*reversed(resampled))
    return Comparison(
        only_first=int((first.is_hit & ~second.is_hit).sum()),
        only_second=int((second.is_hit & ~first.is_hit).sum()),
        p_value=mcnemar(first.is_hit, second.is_hit),
        differences=total,
        intervals={name: percentile_interval(drawn[name]) for name in total if name in drawn},
    )


def compare_verdicts(first: Verdict, second: Verdict) -> Comparison:
    """[`compare`], for verdicts on the same pictures.

    Raises:
        ValueError: If the pictures or the classes of the two differ.
    """
    first.predictions.check_same_pictures(second.predictions, source=first.predictions.model)
    return compare(first.outcomes, second.outcomes, count=second.resamples)


def check_same_labels(first: Outcomes, second: Outcomes) -> None:
    """Raise a `ValueError` where two runs were not scored on the same images."""
    if not np.array_equal(first.labels, second.labels):
        raise ValueError(
            "The two runs were scored on different images or labels, which cannot be paired; evaluate both on the "
            "same test set."
        )


def minus(second: dict, first: dict) -> dict:
    """Second minus first, of the metrics that both have."""
    return {name: second[name] - first[name] for name in second if name in first}
