"""Accuracies that a long-tailed data set is judged by: overall, mean over classes, many-, medium- and few-shot."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, recall_score
from transformers import EvalPrediction

from ..data.long_tail import frequency_groups


class LongTailMetrics:
    """The `compute_metrics` of a Trainer for a long-tailed training set.

    All values are fractions 0..1. `accuracy` is the share of test images whose highest logit is at their class.
    `mean_class_accuracy` averages the accuracies of the classes, and `many`, `medium` and `few` do so within a group
    of classes (Liu et al., 2019, https://arxiv.org/abs/1904.05160); on a balanced test set this equals the accuracy
    over the group's images. A class without a test image has no accuracy and enters no mean; a group without any
    other class has no entry. An image with a NaN among its logits counts as wrong.

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

    def __call__(self, eval_prediction: EvalPrediction) -> dict[str, float]:
        """Compute the metrics.

        Args:
            eval_prediction (`EvalPrediction`): `predictions` of shape (N, C), logits, or a tuple that begins with
                them, or the predicted classes of shape (N,); `label_ids` of shape (N,), values 0..C-1.

        Returns:
            `dict[str, float]`: accuracy, mean_class_accuracy, many, medium, few.

        Raises:
            ValueError: If there is no image, a shape does not fit, or a label is outside 0..C-1.
        """
        labels = np.asarray(eval_prediction.label_ids)
        per_class = self.per_class(eval_prediction.predictions, labels)
        metrics = {
            "accuracy": float(accuracy_score(labels, predicted_classes(eval_prediction.predictions))),
            "mean_class_accuracy": float(np.nanmean(per_class)),
        }
        return metrics | group_means(per_class, self.groups)

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
        predicted, labels = predicted_classes(predictions), np.asarray(labels)
        if labels.shape != predicted.shape or labels.size == 0:
            raise ValueError(
                f"Metrics need one label an image, but got {labels.shape} labels and {predicted.shape} images."
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"The test labels {labels.min()}..{labels.max()} leave 0..{self.num_classes - 1}, the classes that "
                f"class_counts has; give counts of the classes that the test set has."
            )
        classes = np.arange(self.num_classes)
        return recall_score(labels, predicted, labels=classes, average=None, zero_division=np.nan)


def predicted_classes(predictions: np.ndarray | tuple) -> np.ndarray:
    """Class of the highest logit, int64 of shape (N,); -1 for an image with a NaN among its logits.

    Args:
        predictions (`np.ndarray` or `tuple`): As in [`LongTailMetrics.__call__`].

    Raises:
        ValueError: If the array has neither one nor two dimensions.
    """
    predictions = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    if predictions.ndim == 1:
        return predictions.astype(np.int64)
    if predictions.ndim != 2:
        raise ValueError(f"Predictions of shape {predictions.shape} are neither logits (N, C) nor classes (N,).")
    return np.where(np.isnan(predictions).any(axis=1), -1, predictions.argmax(axis=1))


def group_means(per_class_accuracy: np.ndarray, groups: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean accuracy of the classes of each group, without the groups where no class has one.

    Args:
        per_class_accuracy (`np.ndarray`): Shape (C,), NaN for a class without a test image.
        groups (`dict[str, np.ndarray]`): Of [`~ft_focalsam.data.frequency_groups`].
    """
    means = {}
    for group, classes in groups.items():
        values = per_class_accuracy[classes]
        values = values[~np.isnan(values)]
        if values.size:
            means[group] = float(values.mean())
    return means
