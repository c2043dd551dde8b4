"""What came of each test image, and the counts of it that metrics are functions of."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.special import softmax

BINS = 15  # of confidence, of equal width, as in Guo et al., 2017 (https://arxiv.org/abs/1706.04599)


@dataclass(frozen=True)
class ClassCounts:
    """Counts of test images, by class and by confidence.

    Args:
        images (`np.ndarray`): Test images of each class, shape (C,).
        hits (`np.ndarray`): Those of them whose highest logit is at the class, shape (C,).
        top5_hits (`np.ndarray`, *optional*): Those of them with the class among the five highest logits, shape (C,);
            None without logits and with five classes or fewer, where all would be.
        predicted (`np.ndarray`): Images taken for each class, right or wrong, shape (C,).
        bin_images, bin_confidence, bin_hits (`np.ndarray`, *optional*): Images, the sum of their confidences and the
            number of hits in each bin of confidence, shape (15,); None without logits.
        groups (`dict[str, np.ndarray]`): Classes by frequency, of [`~ft_focalsam.data.frequency_groups`].
    """

    images: np.ndarray
    hits: np.ndarray
    top5_hits: np.ndarray | None
    predicted: np.ndarray
    bin_images: np.ndarray | None = None
    bin_confidence: np.ndarray | None = None
    bin_hits: np.ndarray | None = None
    groups: dict[str, np.ndarray] = field(default_factory=dict)

    def __add__(self, other: "ClassCounts") -> "ClassCounts":
        """The counts of both, of the same classes."""
        return replace(
            self,
            images=self.images + other.images,
            hits=self.hits + other.hits,
            top5_hits=_sum(self.top5_hits, other.top5_hits),
            predicted=self.predicted + other.predicted,
            bin_images=_sum(self.bin_images, other.bin_images),
            bin_confidence=_sum(self.bin_confidence, other.bin_confidence),
            bin_hits=_sum(self.bin_hits, other.bin_hits),
        )

    @property
    def bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """`bin_images`, `bin_confidence` and `bin_hits`; None without logits."""
        if self.bin_images is None or self.bin_confidence is None or self.bin_hits is None:
            return None
        return self.bin_images, self.bin_confidence, self.bin_hits

    @cached_property
    def class_accuracies(self) -> np.ndarray:
        """Shape (C,), NaN for a class without a test image."""
        return np.divide(self.hits, self.images, out=np.full(self.images.shape, np.nan), where=self.images > 0)


@dataclass(frozen=True)
class SampleResults:
    """What came of each of N test images.

    Args:
        labels (`np.ndarray`): Its class, int64 of shape (N,), values 0..C-1.
        predicted (`np.ndarray`): The class of its highest logit, int64 of shape (N,); -1 where a logit is NaN.
        in_top5 (`np.ndarray`, *optional*): bool of shape (N,), see [`ClassCounts`].
        confidence (`np.ndarray`, *optional*): Probability of the predicted class, float64 of shape (N,); 0 where a
            logit is NaN. None without logits.
        num_classes (`int`): C.
        groups (`dict[str, np.ndarray]`): Classes by frequency.
    """

    labels: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray | None
    confidence: np.ndarray | None
    num_classes: int
    groups: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        predictions: np.ndarray | tuple,
        labels: np.ndarray,
        *,
        num_classes: int,
        groups: dict[str, np.ndarray] | None = None,
    ) -> "SampleResults":
        """Compare predictions with labels.

        Args:
            predictions (`np.ndarray` or `tuple`): Logits of shape (N, C), a tuple that begins with them, or the
                predicted classes of shape (N,).
            labels (`np.ndarray`): int of shape (N,), values 0..C-1.
            num_classes (`int`): C.
            groups (`dict[str, np.ndarray]`, *optional*): Classes by frequency.

        Raises:
            ValueError: If there is no image, a shape does not fit, a label is outside 0..C-1, or a predicted class
                outside -1..C-1.
        """
        predictions = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
        predicted, labels = predicted_classes(predictions), np.asarray(labels)
        if labels.size == predicted.size == 0:
            raise ValueError("The test set has no image; give one that has.")
        if labels.shape != predicted.shape:
            raise ValueError(
                f"Metrics need one label an image, but got {labels.shape} labels and {predicted.shape} images."
            )
        labels = whole_numbers(labels, "test labels")
        if labels.min() < 0 or labels.max() >= num_classes:
            raise ValueError(
                f"The test labels {labels.min()}..{labels.max()} leave 0..{num_classes - 1}, the classes that "
                f"class_counts has; give counts of the classes that the test set has."
            )
        if predicted.min() < -1 or predicted.max() >= num_classes:
            raise ValueError(
                f"The predicted classes {predicted.min()}..{predicted.max()} leave 0..{num_classes - 1}; give logits, "
                "or the index of a class for each image (-1 for none)."
            )
        if predictions.ndim == 2 and predictions.shape[1] != num_classes:
            raise ValueError(
                f"The logits of shape {predictions.shape} are not those of {num_classes} classes; give one a class."
            )
        in_top5 = confidence = None
        if predictions.ndim == 2:
            valid = predicted >= 0
            confidence = np.zeros(len(labels))
            confidence[valid] = softmax(predictions[valid].astype(np.float64), axis=1).max(axis=1)
            if num_classes > 5:
                in_top5 = valid & (_ranks(predictions, labels) < 5)
        return cls(labels, predicted, in_top5, confidence, num_classes, groups or {})

    @property
    def is_hit(self) -> np.ndarray:
        """bool of shape (N,)."""
        return self.predicted == self.labels

    def tally(self) -> ClassCounts:
        """Count the images by class, and by confidence where that is known."""
        found = ClassCounts(
            images=self._by_class(None),
            hits=self._by_class(self.is_hit),
            top5_hits=None if self.in_top5 is None else self._by_class(self.in_top5),
            # A place before the first class takes the images that are taken for none.
            predicted=np.bincount(self.predicted + 1, minlength=self.num_classes + 1)[1:],
            groups=self.groups,
        )
        if self.confidence is None:
            return found
        bins = confidence_bins(self.confidence)
        return replace(
            found,
            bin_images=np.bincount(bins, minlength=BINS),
            bin_confidence=np.bincount(bins, self.confidence, minlength=BINS),
            bin_hits=np.bincount(bins, self.is_hit, minlength=BINS),
        )

    def _by_class(self, weights: np.ndarray | None) -> np.ndarray:
        """Images of each class, or the sum of their weights, shape (C,)."""
        return np.bincount(self.labels, weights, minlength=self.num_classes)


def _sum(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Of counts that both have; else None."""
    return None if first is None or second is None else first + second


def confidence_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin of each confidence, int64 0..14; bin b holds (b / 15, (b + 1) / 15], as in Guo et al., and 0 is in bin 0."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def predicted_classes(predictions: np.ndarray | tuple) -> np.ndarray:
    """Class of the highest logit, int64 of shape (N,); -1 for an image with a NaN among its logits.

    Args:
        predictions (`np.ndarray` or `tuple`): As in [`LongTailMetrics.__call__`].

    Raises:
        ValueError: If the array has neither one nor two dimensions, or one and values that are no whole numbers.
    """
    predictions = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
    if predictions.ndim == 1:
        return whole_numbers(predictions, "predicted classes")
    if predictions.ndim != 2:
        raise ValueError(f"Predictions of shape {predictions.shape} are neither logits (N, C) nor classes (N,).")
    return np.where(np.isnan(predictions).any(axis=1), -1, predictions.argmax(axis=1))


def whole_numbers(values: np.ndarray, what: str) -> np.ndarray:
    """Values as int64.

    Raises:
        ValueError: If one is no whole number; `what` names them.
    """
    if values.dtype.kind == "f" and not np.array_equal(values, np.floor(values)):
        wrong = values[values != np.floor(values)][0]
        raise ValueError(f"The {what} have the value {wrong:g}; give the index of a class for each image.")
    return values.astype(np.int64)


def _ranks(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Place of each image's class in the order of its logits, 0 for the highest; of equal ones the first is higher."""
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    ties_before = (logits == own) & (np.arange(logits.shape[1]) < labels[:, None])
    return (logits > own).sum(axis=1) + ties_before.sum(axis=1)
