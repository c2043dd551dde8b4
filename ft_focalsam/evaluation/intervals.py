"""How far a mean of class accuracies, or of their differences, would move with other test images of the same classes.

Both intervals are ones for a share of n images that keep their coverage down to a single image. A mean over classes is
brought to that form by its effective size: the n of a plain share that varies as much as it does.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, norm

LEVEL = 0.95
_NOTHING = 1e-12  # a variance that is zero but for rounding


@dataclass(frozen=True)
class WeightedMean:
    """A weighted mean over classes of what the images of each class score, over one run or several.

    Args:
        mean (`float`): Of the scores.
        mean_square (`float`): Of the squared scores of single runs, with the same weights.
        variance (`float`): Of `mean` over test sets with as many images of each class.
        images (`float`): Effective number of images by the weights alone, 1 / sum of w_c^2 / n_c; of a plain mean over
            N images, N.
    """

    mean: float
    mean_square: float
    variance: float
    images: float


def weighted_mean(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> WeightedMean:
    """Mean of scores over classes, and its variance over test images.

    The variance is sum w_c^2 v_c / n_c. The images of a class with one or two of them do not tell its v_c, so each
    class's moments are averaged with those of all classes, as n_c images with one: the mean a_c = (n_c m_c + m) /
    (n_c + 1), the mean square likewise, and v_c is the mean square less a_c^2. A factor takes out what this is short
    of where all classes are alike. That several runs differ on an image makes their mean vary less, which few images
    do not tell either: two are added on which they agree.

    Args:
        scores (`np.ndarray`): Of each image in each of S runs, 0 or 1, or -1, 0 or 1; shape (S, N).
        labels (`np.ndarray`): Class of each image, int64 of shape (N,), values 0..C-1.
        weights (`np.ndarray`): Of each class, shape (C,), sum 1; 0 for a class without an image.
    """
    used, of_images = weights > 0, scores.mean(axis=0)
    moments = (None, of_images, of_images**2, (scores**2).mean(axis=0))
    counts, *sums = (np.bincount(labels, values, minlength=len(weights))[used] for values in moments)
    means, squares, of_runs = (each / counts for each in sums)
    weights = weights[used]
    images = 1 / np.sum(weights**2 / counts)
    squares = (images * squares + 2 * of_runs) / (images + 2)
    mean, square = weights @ means, weights @ squares
    own = counts / (counts + 1)
    variances = own * squares + (1 - own) * square - (own * means + (1 - own) * mean) ** 2
    if images > 1 + _NOTHING:  # of a single image all factors are 0 / 0
        missing = own**2 / counts + 2 * own * (1 - own) * weights / counts + (1 - own) ** 2 / images
        variances = variances * (1 - 1 / images) / (1 - missing)
    variance = np.sum(weights**2 / counts * variances)
    return WeightedMean(float(mean), float(weights @ of_runs), float(variance), float(images))


def interval_of(
    found: WeightedMean, *, is_difference: bool, further: float = 0.0, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of a weighted mean.

    Args:
        found (`WeightedMean`): Of scores 0 or 1, or of their differences.
        is_difference (`bool`): Whether they are differences.
        further (`float`): Variance of the mean beside that by the test images.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).

    Returns:
        The ends, inside [0, 1] or, of a difference, [-1, 1].
    """
    spread, variance = found.mean_square - found.mean**2, found.variance + further
    size = spread / variance if variance > _NOTHING / found.images else found.images
    if is_difference:
        return difference_interval(found.mean, found.mean_square, size, level)
    low, high = accuracy_interval(found.mean, size, level)
    return float(low), float(high)


def accuracy_interval(
    accuracy: float | np.ndarray, size: float | np.ndarray, level: float = LEVEL
) -> tuple[np.ndarray, np.ndarray]:
    """Clopper and Pearson's interval of an accuracy (1934, https://doi.org/10.1093/biomet/26.4.404), which covers it
    at least as often as it says for any number of images; with an effective size as Korn and Graubard (1998).

    Args:
        accuracy (`float` or `np.ndarray`): Share of the images that is right, 0..1.
        size (`float` or `np.ndarray`): Number of images, above 0, whole or not; NaN gives NaN.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).

    Returns:
        Lower and upper ends, inside [0, 1].
    """
    hits = np.asarray(accuracy * size, dtype=np.float64)
    misses = np.asarray(size - hits, dtype=np.float64)
    low = np.where(hits < _NOTHING * size, 0.0, beta.ppf((1 - level) / 2, hits, misses + 1))
    return low, np.where(misses < _NOTHING * size, 1.0, beta.ppf((1 + level) / 2, hits + 1, misses))


def difference_interval(mean: float, mean_square: float, size: float, level: float = LEVEL) -> tuple[float, float]:
    """Bonett and Price's interval of a difference between two shares of the same images (2012,
    https://doi.org/10.3102/1076998611411915): a normal one after two images are added, on each of which one of the two
    alone is right.

    Args:
        mean (`float`): Of the differences image by image, inside [-1, 1].
        mean_square (`float`): Of their squares; of one run against another one, the share on which they differ.
        size (`float`): Number of images, 0 or more, whole or not.
        level (`float`, defaults to 0.95): Coverage, inside (0, 1).

    Returns:
        Lower and upper end, inside [-1, 1].
    """
    center, square = size * mean / (size + 2), (size * mean_square + 2) / (size + 2)
    half = norm.ppf((1 + level) / 2) * np.sqrt((square - center**2) / (size + 2))
    return float(max(center - half, -1.0)), float(min(center + half, 1.0))
