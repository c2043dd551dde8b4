"""Whether a model's confidence is to be trusted, and how sure that is."""

from dataclasses import dataclass

import numpy as np

from .intervals import LEVEL, accuracy_interval
from .sample_results import BINS, SampleResults, confidence_bins

DRAWS, SEED = 200, 0  # of test results of a calibrated model; the same in every report


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy over N test images.

    Args:
        confidence, accuracy (`float`): Means over the images, 0..1.
        gap_interval (`tuple[float, float]`): 95 % interval of `confidence - accuracy` for other labels of images with
            these confidences: that of the accuracy, see [`accuracy_interval`].
        error (`float`): Expected calibration error with 15 bins, 0..1.
        error_by_chance (`float`): What the error of a calibrated model with these confidences stays below in 95 % of
            the cases. On few images it is far from 0.
    """

    confidence: float
    accuracy: float
    gap_interval: tuple[float, float]
    error: float
    error_by_chance: float

    @property
    def gap(self) -> float:
        """Confidence minus accuracy; positive for an over-confident model."""
        return self.confidence - self.accuracy

    @property
    def has_gap(self) -> bool:
        """Whether the interval of the gap excludes 0."""
        low, high = self.gap_interval
        return low > 0 or high < 0


def calibration(outcomes: SampleResults, *, level: float = LEVEL) -> Calibration:
    """Calibration of one run, with its uncertainty.

    What chance alone does to the calibration error is found by consistency resampling (Bröcker and Smith, 2007,
    https://doi.org/10.1175/WAF993.1): test results are drawn that are right as often as the model's confidence says.

    Args:
        outcomes (`SampleResults`): With confidences.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).

    Raises:
        ValueError: If the outcomes have no confidence, as those of predicted classes.
    """
    if outcomes.confidence is None:
        raise ValueError("Calibration needs confidences, but the outcomes are of predicted classes; give logits.")
    confidence, bins = outcomes.confidence, confidence_bins(outcomes.confidence)
    images, accuracy = len(confidence), float(outcomes.is_hit.mean())
    low, high = (float(end) for end in accuracy_interval(accuracy, images, level))
    mean = float(confidence.mean())

    def error(is_hit: np.ndarray) -> float:
        return float(np.abs(np.bincount(bins, confidence - is_hit, minlength=BINS)).sum() / images)

    rng = np.random.default_rng(SEED)
    drawn = [error(rng.random(images) < confidence) for _ in range(DRAWS)]
    return Calibration(
        mean, accuracy, (mean - high, mean - low), error(outcomes.is_hit), float(np.quantile(drawn, level))
    )
