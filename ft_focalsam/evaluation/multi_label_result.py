"""What is to be said of a model on a test set whose images have several classes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from ..data.long_tail import frequency_groups
from .average_precision import average_precision_means, class_average_precisions
from .estimates import Estimate, estimate_values
from .eval_result import FEW_IMAGES, EvalResult
from .predictions import Predictions


@dataclass(frozen=True)
class MultiLabelResult:
    """Predictions on images of several classes each, evaluated by average precision.

    One run has no intervals: average precision is a mean over ranks, not over images, for which those of this package
    do not hold. Those of several runs are over their seeds alone.

    Args:
        predictions (`Predictions`): What the model says; its `is_multi_label` is True.
        class_counts (`np.ndarray`, *optional*): Training images of each class, shape (C,); None where nobody knows.
        many, few (`int`): As in [`~ft_focalsam.data.frequency_groups`].
        notes (`Sequence[str]`): As in [`EvalResult`].
    """

    predictions: Predictions
    class_counts: np.ndarray | None = None
    many: int = 100
    few: int = 20
    notes: Sequence[str] = ()

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Classes by frequency; none where training counts are not known."""
        if self.class_counts is None:
            return {}
        return frequency_groups(self.class_counts, many=self.many, few=self.few)

    @staticmethod
    def estimate_runs(
        results: Sequence["MultiLabelResult"], *, against: Sequence["MultiLabelResult"] | None = None
    ) -> dict[str, Estimate]:
        """[`~ft_focalsam.evaluation.estimates.estimate_values`] of the metrics of several runs.

        Raises:
            ValueError: If the images or the classes of two runs differ.
        """
        _check_same_images([*results, *(against or ())])
        others = None if against is None else [each.metrics for each in against]
        return estimate_values([each.metrics for each in results], against=others)

    @staticmethod
    def estimate_classes(
        results: Sequence["MultiLabelResult"], *, against: Sequence["MultiLabelResult"] | None = None
    ) -> list[Estimate | None]:
        """The same of the average precision of each class; None for a class without a test image."""
        _check_same_images([*results, *(against or ())])
        others = None if against is None else [each._by_class() for each in against]
        found = estimate_values([each._by_class() for each in results], against=others)
        return [found.get(index) for index in range(len(results[0].class_average_precisions))]

    def _by_class(self) -> dict[int, float]:
        values = self.class_average_precisions
        return {int(index): float(values[index]) for index in np.flatnonzero(~np.isnan(values))}

    @cached_property
    def class_average_precisions(self) -> np.ndarray:
        """Shape (C,), NaN for a class without a test image."""
        return class_average_precisions(self.predictions.logits, self.predictions.labels)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """By the names in `MULTI_LABEL_METRICS`."""
        return average_precision_means(self.class_average_precisions, self.groups)

    @property
    def test_counts(self) -> np.ndarray:
        """Test images that have each class, shape (C,)."""
        return self.predictions.labels.sum(axis=0, dtype=np.int64)

    @property
    def group_images(self) -> dict[str, int]:
        """Test images that have a class of each group."""
        labels = self.predictions.labels
        return {group: int(labels[:, classes].any(axis=1).sum()) for group, classes in self.groups.items()}

    @property
    def metric_images(self) -> dict[str, int]:
        """Test images that a metric is taken on, by its name: all, or those that have a class of the group."""
        return {"mAP": len(self.predictions.labels), **self.group_images}

    @property
    def warnings(self) -> list[str]:
        """Sentences on what the numbers rest on, where that is little, missing or not a number."""
        return [f"{self.predictions.dataset}: {text}" for text in self._warnings()]

    def _warnings(self) -> Iterator[str]:
        counts = self.test_counts
        if absent := int((counts == 0).sum()):
            yield f"classes without a test image: {absent:,} of {len(counts):,}; no mean counts them."
        if scarce := int(((counts > 0) & (counts < FEW_IMAGES)).sum()):
            yield (
                f"classes with fewer than {FEW_IMAGES} test images: {scarce:,} of {len(counts):,}; their average "
                "precision hangs on single images, test on more."
            )
        if broken := int(np.isnan(self.predictions.logits).any(axis=1).sum()):
            yield f"images with NaN logits: {broken:,}; they rank last, check the model."

    def of_earlier(self, path: str | Path) -> "MultiLabelResult":
        """The same for saved predictions of the same images, by another run.

        Raises:
            FileNotFoundError, ValueError: As [`Predictions.load`]; if the images or the classes are others.
        """
        predictions = Predictions.load(path)
        predictions.check_same_images(self.predictions, source=str(path))
        return replace(self, predictions=predictions, notes=())

    def record(self) -> dict:
        """For metrics.json: the metrics, and beside them `images` (test images), `group_images` and `notes`."""
        images = len(self.predictions.labels)
        notes = [*self.notes, *self.warnings]
        return {**self.metrics, "images": images, "group_images": self.group_images, "notes": notes}


def _check_same_images(results: Sequence[MultiLabelResult]) -> None:
    first, *others = (result.predictions for result in results)
    for each in others:
        each.check_same_images(first, source=each.model)


Result = EvalResult | MultiLabelResult
Kind = TypeVar("Kind", EvalResult, MultiLabelResult)


def make_result(
    predictions: Predictions,
    class_counts: np.ndarray | None = None,
    *,
    many: int = 100,
    few: int = 20,
    notes: Sequence[str] = (),
) -> Result:
    """The result on predictions: of images of one class each, or of several.

    Args:
        predictions (`Predictions`): What a model says.
        class_counts, many, few, notes: As in [`EvalResult`].
    """
    kind = MultiLabelResult if predictions.is_multi_label else EvalResult
    return kind(predictions, class_counts, many=many, few=few, notes=notes)


def all_of(kind: type[Kind], results: Iterable[Result]) -> list[Kind]:
    """Results that are all of a kind.

    Raises:
        ValueError: If one is of the other kind.
    """
    found = []
    for result in results:
        if not isinstance(result, kind):
            raise ValueError(
                f"The results on '{result.predictions.dataset}' are of one class an image and of several; give those "
                "of one kind."
            )
        found.append(result)
    return found
