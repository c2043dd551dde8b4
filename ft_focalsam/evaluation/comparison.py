"""Whether one run is better than another on the same test images."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from .estimates import estimate
from .eval_result import EvalResult
from .sample_results import SampleResults


@dataclass(frozen=True)
class Comparison:
    """A second run against a first one, image by image.

    Args:
        only_first (`int`): Images that the first run alone has right.
        only_second (`int`): Images that the second run alone has right.
        p_value (`float`): Of McNemar's exact test: how often runs that are equally good would differ this much.
        differences (`dict[str, float]`): Second minus first, by the name of the metric.
        intervals (`dict[str, tuple[float, float]]`): 95 % intervals of the differences, of [`estimate`].
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


def compare(first: SampleResults, second: SampleResults) -> Comparison:
    """Test two runs on the same test images against each other.

    Args:
        first, second (`SampleResults`): Of the same images in the same order.

    Raises:
        ValueError: If the labels of the two differ.
    """
    found = estimate([second], against=[first])
    return Comparison(
        only_first=int((first.is_hit & ~second.is_hit).sum()),
        only_second=int((second.is_hit & ~first.is_hit).sum()),
        p_value=mcnemar(first.is_hit, second.is_hit),
        differences={name: each.mean for name, each in found.items()},
        intervals={name: each.interval for name, each in found.items() if each.interval is not None},
    )


def compare_results(first: EvalResult, second: EvalResult) -> Comparison:
    """[`compare`], for results on the same images.

    Raises:
        ValueError: If the images or the classes of the two differ.
    """
    first.predictions.check_same_images(second.predictions, source=first.predictions.model)
    return compare(first.outcomes, second.outcomes)
