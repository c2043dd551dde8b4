"""What is to be said of a model on a test set: its metrics with their intervals, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.long_tail import frequency_groups
from .intervals import bootstrap_intervals
from .metrics import tally_metrics
from .outcomes import Outcomes
from .predictions import Predictions


@dataclass(frozen=True)
class Verdict:
    """Predictions on a test set, judged.

    Args:
        predictions (`Predictions`): What the model says.
        class_counts (`np.ndarray`, *optional*): Training images of each class, shape (C,); None where nobody knows.
        many, few (`int`): As in [`~ft_focalsam.data.frequency_groups`].
        resamples (`int`): Of the bootstrap.
        notes (`list[str]`): What a reader has to know, e.g. that the logits are restricted to some classes.
    """

    predictions: Predictions
    class_counts: np.ndarray | None = None
    many: int = 100
    few: int = 20
    resamples: int = 1000
    notes: Sequence[str] = ()

    @cached_property
    def outcomes(self) -> Outcomes:
        """Image by image."""
        groups = None
        if self.class_counts is not None:
            groups = frequency_groups(self.class_counts, many=self.many, few=self.few)
        return self.predictions.outcomes(groups)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """By the names in `METRICS`; many, medium and few only where training counts are known."""
        return tally_metrics(self.outcomes.tally())

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals, of [`bootstrap_intervals`]."""
        return bootstrap_intervals(self.outcomes, count=self.resamples)

    @cached_property
    def class_accuracies(self) -> np.ndarray:
        """Shape (C,), NaN for a class without a test image."""
        return self.outcomes.tally().class_accuracies

    @property
    def test_counts(self) -> np.ndarray:
        """Test images of each class, shape (C,)."""
        return np.bincount(self.predictions.labels, minlength=len(self.predictions.class_names))

    def of_earlier(self, path: str | Path) -> "Verdict":
        """The same for saved predictions of the same pictures, by another run.

        Raises:
            FileNotFoundError, ValueError: As [`Predictions.load`]; if the pictures or the classes are others.
        """
        predictions = Predictions.load(path)
        predictions.check_same_pictures(self.predictions, source=str(path))
        return replace(self, predictions=predictions, notes=())

    def record(self) -> dict:
        """For metrics.json: the metrics, and beside them `intervals`, `images` and `notes`."""
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        return {**self.metrics, "intervals": intervals, "images": len(self.predictions.labels), "notes": [*self.notes]}
