"""Does flatness go with accuracy? Rank correlations over classes, and what changed from one run to another."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from .measure import Measurement

FEWEST_CLASSES = 3  # for a rank correlation


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's, over classes.

    Args:
        value (`float`): -1 to 1; NaN where there are fewer than 3 classes, or one side is the same for all.
        p (`float`): Two-sided p-value of no correlation, from Student's t; NaN with the value.
        classes (`int`): That have both values.
    """

    value: float
    p: float
    classes: int


@dataclass(frozen=True)
class Change:
    """One run minus another one, in a group of classes.

    Args:
        ratio (`float`): Mean of the measure over the group, over that of the other run; NaN where that is not above 0.
        lower, classes (`int`): Classes in which the measure is lower than in the other run, of how many.
        accuracy (`float`): Mean accuracy, minus that of the other run.
    """

    ratio: float
    lower: int
    classes: int
    accuracy: float


def rank_correlation(values: np.ndarray, others: np.ndarray) -> RankCorrelation:
    """Spearman's rank correlation of two vectors of shape (C,), without the classes in which one is NaN."""
    both = np.isfinite(values) & np.isfinite(others)
    values, others = values[both], others[both]
    if len(values) < FEWEST_CLASSES or np.ptp(values) == 0 or np.ptp(others) == 0:
        return RankCorrelation(float("nan"), float("nan"), len(values))
    found = spearmanr(values, others)
    return RankCorrelation(float(found.statistic), float(found.pvalue), len(values))


def with_accuracy(run: Measurement, measure: str) -> RankCorrelation:
    """Of a measure with the test accuracy, over the classes of a run: below 0 where flatter classes are more often
    right."""
    return rank_correlation(run.measures[measure], run.accuracies)


def changes_with_accuracy(run: Measurement, reference: Measurement, measure: str) -> RankCorrelation:
    """The same of what changed from `reference` to the run, class by class, in which the frequency of a class and how
    hard it is cancel."""
    change = run.measures[measure] - reference.measures[measure]
    return rank_correlation(change, run.accuracies - reference.accuracies)


def change_by_group(run: Measurement, reference: Measurement, measure: str) -> dict[str, Change]:
    """What changed from `reference` to the run in each group of classes that were measured."""
    changes = {}
    for group, classes in run.measured_groups.items():
        now, before = (each.measures[measure][classes] for each in (run, reference))
        accuracy = run.accuracies[classes] - reference.accuracies[classes]
        tested = accuracy[np.isfinite(accuracy)]
        changes[group] = Change(
            ratio=float(now.mean() / before.mean()) if before.mean() > 0 else float("nan"),
            lower=int((now < before).sum()),
            classes=len(classes),
            accuracy=float(tested.mean()) if tested.size else float("nan"),
        )
    return changes
