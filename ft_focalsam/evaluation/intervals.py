"""How far a metric would move with other test images or with another seed."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from .metrics import tally_metrics
from .outcomes import Outcomes

LEVEL = 0.95
# A resample adds the noise of the test set a second time, which pulls these to one side, the more so the fewer images
# a class has: the worst class gets worse, a mean that low values dominate gets lower, a distance from zero larger. An
# interval of theirs would not hold what it promises.
WITHOUT_INTERVAL = ("worst_class_accuracy", "harmonic_mean_accuracy", "geometric_mean_accuracy", "calibration_error")


def resamples(labels: np.ndarray, *, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Bootstrap resamples of a test set, stratified by class.

    The images of a test set are drawn class by class, so a resample keeps the number of each class, and no class loses
    all of its images. Of n images of a class n - 1 are drawn, with replacement, each counting n / (n - 1): with n
    draws the variance would come out too small by (n - 1) / n, which is a third of it where a class has three test
    images (Rao & Wu, 1988, https://doi.org/10.1080/01621459.1988.10478591, with m = n - 1). Classes with a
    single image, which says nothing about the spread of its class, are drawn from together, as one.

    Args:
        labels (`np.ndarray`): int of shape (N,).
        count (`int`): Number of resamples.
        seed (`int`): Of the draws.

    Yields:
        Rows, int64 of shape (M,), and their weights, float64 of shape (M,).
    """
    _, places, images = np.unique(labels, return_inverse=True, return_counts=True)
    strata = np.where(images[places] == 1, -1, places)
    by_class = np.argsort(strata, kind="stable")
    _, starts, sizes = np.unique(strata[by_class], return_index=True, return_counts=True)
    draws = np.maximum(sizes - 1, 1)
    starts, ranges, weights = (np.repeat(values, draws) for values in (starts, sizes, sizes / draws))
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield by_class[starts + (rng.random(len(ranges)) * ranges).astype(np.int64)], weights


def resampled_metrics(outcomes: Outcomes, *, count: int = 1000, seed: int = 0) -> dict[str, np.ndarray]:
    """Metrics of bootstrap resamples of the test images, the model being what it is.

    The resamples depend on the labels, the count and the seed only: values of two runs on the same images are paired.

    Args:
        outcomes (`Outcomes`): Of the test set.
        count (`int`, defaults to 1000): Number of [`resamples`].
        seed (`int`, defaults to 0): Of the resamples.

    Returns:
        `dict[str, np.ndarray]`: By the name of the metric, float64 of shape (count,); none for those in
            `WITHOUT_INTERVAL`.
    """
    if (count, seed) not in outcomes.resampled_metrics:
        drawn = resamples(outcomes.labels, count=count, seed=seed)
        values = [tally_metrics(outcomes.resampled(*each), without=WITHOUT_INTERVAL) for each in drawn]
        shared = set.intersection(*map(set, values))  # a group of single images may miss all of them
        names = [name for name in values[0] if name in shared]
        outcomes.resampled_metrics[count, seed] = {name: np.array([value[name] for value in values]) for name in names}
    return outcomes.resampled_metrics[count, seed]


def bootstrap_intervals(
    outcomes: Outcomes, *, count: int = 1000, level: float = LEVEL, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of the metrics over the test images.

    Args:
        outcomes, count, seed: As in [`resampled_metrics`].
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).

    Returns:
        `dict[str, tuple[float, float]]`: Lower and upper end by the name of the metric; none for those in
            `WITHOUT_INTERVAL`.
    """
    values = resampled_metrics(outcomes, count=count, seed=seed)
    return {name: percentile_interval(column, level) for name, column in values.items()}


def percentile_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The central part of resampled values that holds the share `level` of them."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation (of the sample, divided by n - 1) of each metric over runs with several seeds.

    Args:
        runs (sequence of mappings): Metrics of at least two runs.

    Returns:
        `dict[str, tuple[float, float]]`: By the name of the metric, of those that all runs have.

    Raises:
        ValueError: If there are fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run has no deviation over seeds; give the metrics of two or more.")
    shared = [name for name in runs[0] if all(isinstance(run.get(name), (int, float)) for run in runs)]
    columns = {name: np.array([run[name] for run in runs], dtype=np.float64) for name in shared}
    return {name: (float(values.mean()), float(values.std(ddof=1))) for name, values in columns.items()}
