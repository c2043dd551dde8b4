"""Average precision of each class, for images that have several classes, and its means."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score
from torch import Tensor
from transformers import EvalPrediction
from transformers.trainer_pt_utils import nested_numpify

from ..data.long_tail import frequency_groups
from .metrics import group_means

MULTI_LABEL_METRICS = ("mAP", "many", "medium", "few")  # means over all classes, and over those of a group


def class_average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class, as scikit-learn's `average_precision_score` has it: the sum over the thresholds
    of the precision times the recall that is won there, (R_n - R_{n-1}) P_n, without interpolation. Images of one
    score have one threshold.

    Args:
        scores (`np.ndarray`): Of shape (N, C): logits or probabilities; NaN ranks last.
        labels (`np.ndarray`): 0 and 1, of shape (N, C).

    Returns:
        `np.ndarray`: float64 of shape (C,); NaN for a class that no image has.

    Raises:
        ValueError: If there is no image, the shapes differ, or a label is neither 0 nor 1.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if not len(scores):
        raise ValueError("The test set has no image; give one that has.")
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(
            f"Average precision needs a score and a 0 or 1 for each image and class, but got scores of shape "
            f"{scores.shape} and labels of shape {labels.shape}."
        )
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("A test label is neither 0 nor 1; give each image a 1 for each of its classes, else 0.")
    places = rankdata(np.where(np.isnan(scores), -np.inf, scores), method="dense", axis=0)  # infinity is a score too
    values = np.full(labels.shape[1], np.nan)
    for index in np.flatnonzero(labels.any(axis=0)):
        values[index] = average_precision_score(labels[:, index], places[:, index])
    return values


def average_precision_means(class_values: np.ndarray, groups: dict[str, np.ndarray] | None = None) -> dict[str, float]:
    """By the names of `MULTI_LABEL_METRICS`: mAP, the mean over the classes that have a test image, and that over the
    classes of each group. A group without such a class has no entry; there is none at all where no class has one.

    Args:
        class_values (`np.ndarray`): Of [`class_average_precisions`], shape (C,).
        groups (`dict[str, np.ndarray]`, *optional*): Classes by frequency, of
            [`~ft_focalsam.data.frequency_groups`].
    """
    everything = {"mAP": np.arange(len(class_values))}
    return group_means(class_values, everything | (groups or {}))


class MultiLabelMetrics:
    """The `compute_metrics` of a Trainer for a long-tailed training set whose images have several classes.

    All values are fractions 0..1: `mAP` is the mean of the classes' average precisions
    ([`class_average_precisions`]), `many`, `medium` and `few` are its means within a group of classes. A class without
    a test image has none and enters no mean.

    Args:
        class_counts (`np.ndarray` or `Sequence[int]`): Training images of each class, shape (C,).
        many, few (`int`): As in [`~ft_focalsam.data.frequency_groups`].

    Raises:
        ValueError: If `few` is larger than `many`.
    """

    def __init__(self, class_counts: np.ndarray | Sequence[int], *, many: int = 100, few: int = 20):
        self.groups = frequency_groups(class_counts, many=many, few=few)
        self._batches: list[tuple[np.ndarray, np.ndarray]] = []  # so far, where the Trainer gives one at a time

    def __call__(self, eval_prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Compute the metrics.

        Args:
            eval_prediction (`EvalPrediction`): `predictions` of shape (N, C), logits, or a tuple that begins with
                them; `label_ids` of shape (N, C), 0 and 1. With `eval_do_concat_batches=False`, lists of these.
            compute_result (`bool`): With `batch_eval_metrics=True`, False for every batch but the last one.

        Raises:
            ValueError: As [`class_average_precisions`].
        """
        scores, labels = eval_prediction.predictions, eval_prediction.label_ids
        if isinstance(labels, Tensor):  # of a batch
            scores, labels = nested_numpify((scores, labels))
        parts = zip(scores, labels, strict=True) if isinstance(labels, list) else [(scores, labels)]
        for part, own in parts:
            logits = part[0] if isinstance(part, (tuple, list)) else part
            self._batches.append((np.asarray(logits), np.asarray(own)))
        if not compute_result:
            return {}
        scores, labels = (np.concatenate(each) for each in zip(*self._batches, strict=True))
        self._batches = []
        return average_precision_means(class_average_precisions(scores, labels), self.groups)
