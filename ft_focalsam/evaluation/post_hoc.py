"""Changes to the logits of a trained model: for balanced classes, and for probabilities that can be trusted."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

LOWEST, HIGHEST = 0.01, 100.0  # temperatures that the fit looks at


def adjust_logits(logits: np.ndarray, class_counts: Sequence[int], *, tau: float = 1.0) -> np.ndarray:
    """Logits for balanced classes, z_i - tau * log pi_i, of a model trained on unbalanced ones with plain
    cross-entropy (Menon et al., 2021, https://arxiv.org/abs/2007.07314, eq. 9).

    A model that was trained with the logit-adjusted loss has this behind it, and needs none.

    Args:
        logits (`np.ndarray`): Shape (N, C), or log-probabilities.
        class_counts (sequence of `int`): Training images of each class, shape (C,), each at least 1.
        tau (`float`, defaults to 1.0): 0 changes nothing; 1 is consistent with the balanced error.

    Raises:
        ValueError: If the number of classes differs, or a class has no training image.
    """
    counts = np.asarray(class_counts, dtype=np.float64)
    if counts.shape != logits.shape[1:]:
        raise ValueError(f"There are {len(counts)} class counts for logits of {logits.shape[1]} classes.")
    if counts.min() <= 0:
        raise ValueError(
            f"Class {int(counts.argmin())} has no training image, so its logit cannot be adjusted; give the counts "
            "that the model was trained on."
        )
    return logits - tau * np.log(counts / counts.sum())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature T whose softmax(z / T) gives held-out labels the highest likelihood (Guo et al., 2017,
    https://arxiv.org/abs/1706.04599, section 4.2); it changes the confidence and no prediction.

    Args:
        logits (`np.ndarray`): Shape (N, C), or log-probabilities, of images that nothing is scored on later.
        labels (`np.ndarray`): int of shape (N,).

    Returns:
        `float`: T, from 0.01 to 100.

    Raises:
        ValueError: If there is no image, or a logit is not finite.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if len(labels) == 0:
        raise ValueError("A temperature needs held-out images to be fitted on, but there is none; hold out more.")
    if not np.isfinite(logits).all():
        raise ValueError("A temperature cannot be fitted on logits that are NaN or infinite; check the model.")
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    bounds = (np.log(LOWEST), np.log(HIGHEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x))
