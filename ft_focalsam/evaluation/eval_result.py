"""What is to be said of a model on a test set: its metrics with their intervals, class by class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.long_tail import frequency_groups
from .estimates import Estimate, estimate, estimate_classes
from .intervals import accuracy_interval
from .predictions import Predictions
from .sample_results import SampleResults

FEW_IMAGES = 10  # a group with fewer test images than this comes with a warning
MOST_TIES = 0.01  # share of the images; half precision makes a few


@dataclass(frozen=True)
class EvalResult:
    """Predictions on a test set, evaluated.

    Args:
        predictions (`Predictions`): What the model says.
        class_counts (`np.ndarray`, *optional*): Training images of each class, shape (C,); None where nobody knows.
        many, few (`int`): As in [`~ft_focalsam.data.frequency_groups`].
        notes (`Sequence[str]`): What a reader has to know of how it was made, e.g. that the logits are restricted to
            some classes.
        is_temperature_scaled (`bool`): Whether a temperature that was fitted on held-out images is applied.

    Raises:
        ValueError: If there are counts of another number of classes.
    """

    predictions: Predictions
    class_counts: np.ndarray | None = None
    many: int = 100
    few: int = 20
    notes: Sequence[str] = ()
    is_temperature_scaled: bool = False

    def __post_init__(self) -> None:
        names = self.predictions.class_names
        if self.class_counts is not None and len(self.class_counts) != len(names):
            raise ValueError(
                f"There are {len(self.class_counts)} class counts for the {len(names)} classes of the predictions on "
                f"'{self.predictions.dataset}'; give one a class."
            )

    @cached_property
    def outcomes(self) -> SampleResults:
        """Image by image."""
        groups = None
        if self.class_counts is not None:
            groups = frequency_groups(self.class_counts, many=self.many, few=self.few)
        return self.predictions.outcomes(groups)

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Classes by frequency; none where training counts are not known."""
        return self.outcomes.groups

    @staticmethod
    def estimate_runs(
        results: Sequence["EvalResult"], *, against: Sequence["EvalResult"] | None = None
    ) -> dict[str, Estimate]:
        """[`~ft_focalsam.evaluation.estimate`] of the results of several runs."""
        return estimate(outcomes_of(results), against=None if against is None else outcomes_of(against))

    @staticmethod
    def estimate_classes(
        results: Sequence["EvalResult"], *, against: Sequence["EvalResult"] | None = None
    ) -> list[Estimate | None]:
        """[`~ft_focalsam.evaluation.estimates.estimate_classes`] of the results of several runs."""
        return estimate_classes(outcomes_of(results), against=None if against is None else outcomes_of(against))

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Of this one run, by the names in `METRICS`; many, medium and few only where training counts are known."""
        return estimate([self.outcomes])

    @property
    def metrics(self) -> dict[str, float]:
        """By the names in `METRICS`, as in `estimates`."""
        return {name: found.mean for name, found in self.estimates.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals for other test images, of the metrics that have one."""
        return {name: found.interval for name, found in self.estimates.items() if found.interval is not None}

    @cached_property
    def class_accuracies(self) -> np.ndarray:
        """Shape (C,), NaN for a class without a test image."""
        return self.outcomes.tally().class_accuracies

    @cached_property
    def class_intervals(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of 95 % intervals of the class accuracies, each of shape (C,)."""
        return accuracy_interval(self.class_accuracies, self.test_counts)

    @property
    def test_counts(self) -> np.ndarray:
        """Test images of each class, shape (C,)."""
        return np.bincount(self.predictions.labels, minlength=len(self.predictions.class_names))

    @property
    def metric_images(self) -> dict[str, int]:
        """Test images that an accuracy is taken on, by the name of the metric: all, or those of the group."""
        counts, total = self.test_counts, len(self.predictions.labels)
        images = {"accuracy": total, "mean_class_accuracy": total}
        return images | {group: int(counts[classes].sum()) for group, classes in self.groups.items()}

    @property
    def warnings(self) -> list[str]:
        """Sentences on what the numbers rest on, where that is little, missing or not a number."""
        return [f"{self.predictions.dataset}: {text}" for text in self._warnings()]

    def _warnings(self) -> Iterator[str]:
        images, groups = self.metric_images, self.groups
        titles = {"accuracy": "all classes together"}
        titles |= {group: f"the {group}-shot classes" for group, classes in groups.items() if len(classes)}
        for name, title in titles.items():
            if images[name] == 0:
                yield f"{title} have no test image, and so no accuracy."
            elif images[name] < FEW_IMAGES:
                has = "1 test image" if images[name] == 1 else f"{images[name]} test images"
                yield f"{title} have {has}, too few to tell an accuracy or a difference from chance; test on more."
        if absent := int((self.test_counts == 0).sum()):
            yield f"classes without a test image: {absent:,} of {len(self.test_counts):,}; no mean counts them."
        if broken := int((self.outcomes.predicted < 0).sum()):
            yield f"images with NaN or infinite logits: {broken:,}; they count as wrong, check the model."
        values = self.predictions.log_probabilities
        if values is None:
            return
        ties = int(((values == values.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum())
        if ties > MOST_TIES * len(values):
            yield f"images with several equally high logits: {ties:,}; the first of these classes counts."

    def of_earlier(self, path: str | Path) -> "EvalResult":
        """The same for saved predictions of the same images, by another run.

        Raises:
            FileNotFoundError, ValueError: As [`Predictions.load`]; if the images or the classes are others.
        """
        predictions = Predictions.load(path)
        predictions.check_same_images(self.predictions, source=str(path))
        return replace(self, predictions=predictions, notes=(), is_temperature_scaled=False)

    def record(self) -> dict:
        """For metrics.json: the metrics, and beside them `intervals`, `images` (test images, all and by group) and
        `notes`."""
        intervals = {name: list(ends) for name, ends in self.intervals.items()}
        notes = [*self.notes, *self.warnings]
        groups = {name: count for name, count in self.metric_images.items() if name in self.groups}
        images = len(self.predictions.labels)
        return {**self.metrics, "intervals": intervals, "images": images, "group_images": groups, "notes": notes}


def outcomes_of(results: Sequence[EvalResult]) -> list[SampleResults]:
    """What `estimate` takes of several results."""
    return [result.outcomes for result in results]
