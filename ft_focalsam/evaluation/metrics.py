"""Numbers that a long-tailed data set is evaluated by. A new metric is one decorated function in this file.

Every metric is a function of [`ClassCounts`], by class and by confidence. All are fractions 0..1. Those that are a
weighted mean of class accuracies (`class_weights`) have an interval.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add

import numpy as np
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_numpify

from ..base.registry import Registry
from ..data.long_tail import frequency_groups
from .sample_results import ClassCounts, SampleResults

# A metric is a function from a ClassCounts to a fraction 0..1, or to None where it has no value.
METRICS: Registry[Callable[[ClassCounts], float | None]] = Registry("metric")
register_metric = METRICS.register


@register_metric("accuracy")
def accuracy(tally: ClassCounts) -> float:
    """Share of the test images whose highest logit is at their class."""
    return tally.hits.sum() / tally.images.sum()


@register_metric("top5_accuracy")
def top5_accuracy(tally: ClassCounts) -> float | None:
    """Share of the test images whose class is among the five highest logits, where there are more than five."""
    return None if tally.top5_hits is None else tally.top5_hits.sum() / tally.images.sum()


@register_metric("mean_class_accuracy")
def mean_class_accuracy(tally: ClassCounts) -> float:
    """Mean of the classes' accuracies, of those that have a test image."""
    return np.nanmean(tally.class_accuracies)


def _group_mean(group: str) -> Callable[[ClassCounts], float | None]:
    def mean(tally: ClassCounts) -> float | None:
        if group not in tally.groups:
            return None
        return group_means(tally.class_accuracies, {group: tally.groups[group]}).get(group)

    return mean


# Within a group of classes (Liu et al., 2019, https://arxiv.org/abs/1904.05160).
for name in ("many", "medium", "few"):
    register_metric(name)(_group_mean(name))


@register_metric("worst_class_accuracy")
def worst_class_accuracy(tally: ClassCounts) -> float:
    """Lowest of the classes' accuracies."""
    return np.nanmin(tally.class_accuracies)


@register_metric("harmonic_mean_accuracy")
def harmonic_mean_accuracy(tally: ClassCounts) -> float:
    """Harmonic mean of the classes' accuracies, which a class that is never right makes 0."""
    values = tally.class_accuracies[~np.isnan(tally.class_accuracies)]
    return 0.0 if (values == 0).any() else 1 / np.mean(1 / values)


@register_metric("geometric_mean_accuracy")
def geometric_mean_accuracy(tally: ClassCounts) -> float:
    """Geometric mean of the classes' accuracies, which a class that is never right makes 0."""
    values = tally.class_accuracies[~np.isnan(tally.class_accuracies)]
    return 0.0 if (values == 0).any() else np.exp(np.mean(np.log(values)))


@register_metric("macro_f1")
def macro_f1(tally: ClassCounts) -> float:
    """Mean of the classes' F1, 2 hits / (images + images taken for the class), of those that have a test image."""
    present = tally.images > 0
    return np.mean(2 * tally.hits[present] / (tally.images + tally.predicted)[present])


@register_metric("calibration_error")
def calibration_error(tally: ClassCounts) -> float | None:
    """Expected calibration error with 15 bins of equal width (Guo et al., 2017, https://arxiv.org/abs/1706.04599,
    eq. 3): mean distance of confidence and accuracy over the images, by bins of confidence; needs logits."""
    if tally.bins is None:
        return None
    images, confidence, hits = tally.bins
    return np.abs(confidence - hits).sum() / images.sum()


def class_weights(tally: ClassCounts) -> dict[str, np.ndarray]:
    """What each class counts in the metrics that are a weighted mean of class accuracies, by the name of the metric:
    float64 of shape (C,), sum 1. Overall accuracies weigh a class by its test images, the others all classes alike
    that have one."""
    present = tally.images > 0
    weights = {"accuracy": tally.images, "mean_class_accuracy": present}
    if tally.top5_hits is not None:
        weights["top5_accuracy"] = tally.images
    for group, classes in tally.groups.items():
        weights[group] = present & np.isin(np.arange(len(present)), classes)
    return {name: values / values.sum() for name, values in weights.items() if values.any()}


def tally_metrics(tally: ClassCounts) -> dict[str, float]:
    """All registered metrics that have a value."""
    values = {name: metric(tally) for name, metric in METRICS.items()}
    return {name: float(value) for name, value in values.items() if value is not None}


class LongTailMetrics:
    """The `compute_metrics` of a Trainer for a long-tailed training set.

    All values are fractions 0..1. `accuracy` is the share of test images whose highest logit is at their class,
    `top5_accuracy` among the five highest. `mean_class_accuracy` averages the accuracies of the classes, and `many`,
    `medium` and `few` do so within a group of classes (Liu et al., 2019, https://arxiv.org/abs/1904.05160); on a
    balanced test set this equals the accuracy over the group's images. `worst_class_accuracy`,
    `harmonic_mean_accuracy` and `geometric_mean_accuracy` say what the mean hides, `macro_f1` counts false positives
    too, and `calibration_error` is the expected calibration error. A class without a test image has no accuracy and
    enters no mean; a group without any other class has no entry. An image with a NaN among its logits counts as wrong.

    Args:
        class_counts (`np.ndarray` or `Sequence[int]`): Training images of each class, shape (C,).
        many (`int`, defaults to 100): A class with more images than this is many-shot.
        few (`int`, defaults to 20): A class with fewer images than this is few-shot.

    Raises:
        ValueError: If `few` is larger than `many`.
    """

    def __init__(self, class_counts: np.ndarray | Sequence[int], *, many: int = 100, few: int = 20):
        self.num_classes = len(class_counts)
        self.groups = frequency_groups(class_counts, many=many, few=few)
        self._batches: ClassCounts | None = None  # so far, where the Trainer gives one batch at a time

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Compute the metrics.

        Args:
            eval_prediction (`EvalPrediction`): `predictions` of shape (N, C), logits, or a tuple that begins with
                them, or the predicted classes of shape (N,); `label_ids` of shape (N,), values 0..C-1. With
                `eval_do_concat_batches=False`, lists of these.
            compute_result (`bool`): With `batch_eval_metrics=True`, False for every batch but the last one.

        Returns:
            `dict[str, float]`: The values by the names in `METRICS`; those that need logits, only where these are
            given. Empty without `compute_result`.

        Raises:
            ValueError: If there is no image, a shape does not fit, or a label is outside 0..C-1.
        """
        tally = self._tally(eval_prediction.predictions, eval_prediction.label_ids)
        tally = tally if self._batches is None else self._batches + tally
        self._batches = None if compute_result else tally
        return tally_metrics(tally) if compute_result else {}

    def per_class(self, predictions: np.ndarray | tuple, labels: np.ndarray) -> np.ndarray:
        """Accuracy of each class.

        Args:
            predictions (`np.ndarray` or `tuple`): As in [`LongTailMetrics.__call__`].
            labels (`np.ndarray`): int of shape (N,), values 0..C-1.

        Returns:
            `np.ndarray`: float64 of shape (C,), NaN for a class without a test image.

        Raises:
            ValueError: As in [`LongTailMetrics.__call__`].
        """
        return self._tally(predictions, labels).class_accuracies

    def _tally(
        self, predictions: np.ndarray | tuple | list, labels: np.ndarray | Tensor | tuple | list
    ) -> ClassCounts:
        if isinstance(predictions, list) and isinstance(labels, list):  # of batches
            return reduce(add, map(self._tally, predictions, labels))
        if isinstance(labels, Tensor):  # of a batch
            predictions, labels = nested_numpify((predictions, labels))
        said = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
        return SampleResults.of(said, np.asarray(labels), num_classes=self.num_classes, groups=self.groups).tally()


def group_means(per_class_accuracy: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Mean accuracy of the classes of each group, without the groups where no class has one.

    Args:
        per_class_accuracy (`np.ndarray`): Shape (C,), NaN for a class without a test image.
        groups (`Mapping[str, np.ndarray]`): Of [`~ft_focalsam.data.frequency_groups`].
    """
    means = {}
    for group, classes in groups.items():
        values = per_class_accuracy[classes]
        values = values[~np.isnan(values)]
        if values.size:
            means[group] = float(values.mean())
    return means
