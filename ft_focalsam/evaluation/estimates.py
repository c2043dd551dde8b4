"""What several trainings with other seeds say together: of one method, or of one against another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from .comparison import check_same_labels, minus
from .intervals import LEVEL, resampled_metrics
from .metrics import tally_metrics
from .outcomes import Outcomes


@dataclass(frozen=True)
class Estimate:
    """A metric of a method, or its difference between two methods.

    Args:
        mean (`float`): Over the runs.
        deviation (`float`, *optional*): Standard deviation over the runs (divided by n - 1); None of one run.
        interval (`tuple[float, float]`, *optional*): For other test images and other trainings, see [`estimate`]; None
            for metrics in `WITHOUT_INTERVAL`.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float] | None


def estimate(
    runs: Sequence[Outcomes],
    *,
    against: Sequence[Outcomes] | None = None,
    count: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Metrics over the runs of a method, or their differences from those of another one.

    The mean over S runs is off for two reasons: these test images are some of many, and these seeds are some of many.
    The variance by the images, V, is that of the mean over the runs in bootstrap resamples, the same images for all
    runs and for both methods; that by the seeds is s^2 / S, s the deviation over the runs. The interval is mean +-
    sqrt(z^2 V + t^2 s^2 / S), with the quantiles z of the normal distribution and t of Student's with S - 1 degrees of
    freedom: exact where one of the two dominates, and a little wide between, for any S. With one run it covers other
    test images only.

    Args:
        runs (sequence of `Outcomes`): S runs on the same images in the same order.
        against (sequence of `Outcomes`, *optional*): Those of the other method with the same seeds in the same order;
            the differences are `runs` minus these, seed by seed.
        count (`int`, defaults to 1000): Number of resamples.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).
        seed (`int`, defaults to 0): Of the resamples.

    Returns:
        `dict[str, Estimate]`: By the name of the metric, of those that all runs have.

    Raises:
        ValueError: If there is no run, the numbers of runs differ, or the images of any two do.
    """
    if not runs or (against is not None and len(against) != len(runs)):
        raise ValueError(f"{len(runs)} runs cannot be estimated{'' if against is None else f' from {len(against)}'}.")
    for other in (*runs, *(against or ())):
        check_same_labels(runs[0], other)
    values = [tally_metrics(run.tally()) for run in runs]
    resampled = [resampled_metrics(run, count=count, seed=seed) for run in runs]
    if against is not None:
        values = [minus(v, tally_metrics(run.tally())) for v, run in zip(values, against, strict=True)]
        others = [resampled_metrics(run, count=count, seed=seed) for run in against]
        resampled = [minus(r, other) for r, other in zip(resampled, others, strict=True)]
    estimates = {}
    for name in values[0]:
        if all(name in each for each in values):
            drawn = [each[name] for each in resampled] if all(name in each for each in resampled) else None
            estimates[name] = estimate_metric(np.array([each[name] for each in values]), drawn, level)
    return estimates


def estimate_metric(values: np.ndarray, drawn: Sequence[np.ndarray] | None, level: float = LEVEL) -> Estimate:
    """The formula of [`estimate`], of one metric.

    Args:
        values (`np.ndarray`): Of the S runs, shape (S,).
        drawn (sequence of `np.ndarray`, *optional*): Of each run in the resamples, S of shape (count,).
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).
    """
    num_runs, mean = len(values), float(np.mean(values))
    deviation = float(np.std(values, ddof=1)) if num_runs > 1 else None
    if drawn is None:
        return Estimate(mean, deviation, None)
    quantile = (1 + level) / 2
    squares = norm.ppf(quantile) ** 2 * np.mean(drawn, axis=0).var(ddof=1)
    if num_runs > 1:
        squares += (t.ppf(quantile, num_runs - 1) * deviation) ** 2 / num_runs
    half = float(np.sqrt(squares))
    return Estimate(mean, deviation, (mean - half, mean + half))
