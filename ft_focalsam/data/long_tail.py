"""Long-tailed class profiles: class counts, subsets that follow them, and many/medium/few-shot groups."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..base.registry import Registry
from .multi_label import stratified_split_of_sets

_ROUNDING_SLACK = 1e-6  # images; lifts 49.999999999 to 50 before the count is cut to an integer


# A profile is a function from the number of classes C and the imbalance factor IF to n_i / n_max, shape (C,).
PROFILES: Registry[Callable[[int, float], np.ndarray]] = Registry("long-tail profile")
register_profile = PROFILES.register


@register_profile("exponential")
def exponential(num_classes: int, imbalance_factor: float) -> np.ndarray:
    """`IF ** (-i / (C - 1))`: CIFAR-LT of Cao et al., LDAM-DRW, 2019 (https://arxiv.org/abs/1906.07413)."""
    return imbalance_factor ** (-np.arange(num_classes) / max(num_classes - 1, 1))


@register_profile("step")
def step(num_classes: int, imbalance_factor: float) -> np.ndarray:
    """1 for the first `C // 2` classes (one at least), `1 / IF` for the others (Buda et al., 2018,
    https://arxiv.org/abs/1710.05381)."""
    return np.where(np.arange(num_classes) < max(num_classes // 2, 1), 1.0, 1 / imbalance_factor)


@register_profile("pareto")
def pareto(num_classes: int, imbalance_factor: float) -> np.ndarray:
    """`(i + 1) ** (-1 / alpha)` with `alpha = ln C / ln IF`: class sizes of a Pareto distribution of index alpha, in
    the order of their rank, so that the last class has `1 / IF`. (ImageNet-LT itself is a fixed list of images.)"""
    exponent = np.log(imbalance_factor) / np.log(max(num_classes, 2))
    return (np.arange(num_classes) + 1.0) ** -exponent


def profile_counts(
    num_classes: int, max_count: int, *, imbalance_factor: float, profile: str = "exponential"
) -> np.ndarray:
    """Class counts of a long-tailed profile, `n_i = int(n_max * profile_i)`.

    Class 0 is the most frequent one, class C-1 the rarest, and their counts have the ratio IF.

    Args:
        num_classes (`int`): C, at least 1.
        max_count (`int`): n_max, the images of class 0, at least 1.
        imbalance_factor (`float`): IF = n_0 / n_{C-1}, at least 1 (1 is balanced).
        profile (`str`, defaults to `"exponential"`): `"exponential"`, `"step"` or `"pareto"`, or the name of one added
            with [`register_profile`].

    Returns:
        `np.ndarray`: int64 of shape (C,), never increasing, each at least 1.

    Raises:
        ValueError: If an argument is out of range, or if the rarest classes would get no image.
    """
    if num_classes < 1 or max_count < 1:
        raise ValueError(f"num_classes={num_classes} and max_count={max_count} must both be at least 1.")
    counts = _profile_counts(max_count, _profile(num_classes, imbalance_factor, profile))
    if counts[-1] == 0:
        raise ValueError(
            f"imbalance_factor={imbalance_factor:g} with {max_count} images of the most frequent class leaves "
            f"{int((counts == 0).sum())} of {num_classes} classes without an image; lower the imbalance factor to at "
            f"most {max_count} or raise max_count."
        )
    return counts


def exponential_counts(num_classes: int, max_count: int, *, imbalance_factor: float) -> np.ndarray:
    """[`profile_counts`] of the exponential profile, `n_i = int(n_max * IF ** (-i / (C - 1)))`."""
    return profile_counts(num_classes, max_count, imbalance_factor=imbalance_factor)


def long_tail_indices(
    labels: np.ndarray,
    num_classes: int,
    *,
    imbalance_factor: float,
    seed: int,
    profile: str = "exponential",
    max_count: int | None = None,
) -> np.ndarray:
    """Draw a subset that follows a long-tailed profile (see [`profile_counts`]).

    Each class is shuffled once by the seed and its first n_i images are taken. With the same seed, a subset of a
    higher imbalance factor or of a smaller `max_count` is therefore contained in the larger one.

    Args:
        labels (`np.ndarray`): int of shape (N,), values 0..C-1.
        num_classes (`int`): C.
        imbalance_factor (`float`): IF, at least 1.
        seed (`int`): Seed of the draw, 0 or larger.
        profile (`str`, defaults to `"exponential"`): As in [`profile_counts`].
        max_count (`int`, *optional*): n_max. By default the largest one for which every class can supply its n_i.

    Returns:
        `np.ndarray`: int64 of shape (sum of n_i,), sorted indices into `labels`.

    Raises:
        ValueError: If a class has fewer images than the profile needs, or an argument is out of range.
    """
    available = class_counts(labels, num_classes)
    if max_count is None:
        max_count = _largest_max_count(available, _profile(num_classes, imbalance_factor, profile))
    needed = profile_counts(num_classes, max_count, imbalance_factor=imbalance_factor, profile=profile)
    short = np.flatnonzero(needed > available)
    if short.size:
        first = int(short[0])
        raise ValueError(
            f"Class {first} has {available[first]} images but the long-tailed profile with max_count={max_count} and "
            f"imbalance_factor={imbalance_factor:g} needs {needed[first]}; lower max_count, or leave it unset to take "
            f"the largest profile that fits."
        )
    return _first_per_class(labels, needed, seed)


def take_per_class(labels: np.ndarray, num_classes: int, *, per_class: int, seed: int) -> np.ndarray:
    """Draw at most `per_class` images of every class, e.g. a small balanced test set.

    Args:
        labels (`np.ndarray`): int of shape (N,), values 0..C-1.
        num_classes (`int`): C.
        per_class (`int`): Images a class, at least 1; a class that has fewer gives all it has.
        seed (`int`): Seed of the draw; a smaller draw with the same seed is contained in a larger one.

    Returns:
        `np.ndarray`: int64, sorted indices into `labels`.

    Raises:
        ValueError: If `per_class` is below 1 or a label is out of range.
    """
    if per_class < 1:
        raise ValueError(f"per_class={per_class} must be at least 1.")
    return _first_per_class(labels, np.minimum(class_counts(labels, num_classes), per_class), seed)


def stratified_split(
    labels: np.ndarray, num_classes: int, *, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split indices into train and test, class by class; every class keeps at least one training image.

    Args:
        labels (`np.ndarray`): int of shape (N,), values 0..C-1; or 0 and 1, of shape (N, C), for several classes per
            image, see [`stratified_split_of_sets`].
        num_classes (`int`): C.
        test_fraction (`float`): Share of each class that goes to the test side, inside (0, 1).
        seed (`int`): Seed of the draw.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Sorted train and test indices, int64, disjoint, together all of 0..N-1.

    Raises:
        ValueError: If the fraction is outside (0, 1), or no class can give a test image.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction} must be larger than 0 and smaller than 1.")
    counts = class_counts(labels, num_classes)
    test_counts = np.clip(np.rint(test_fraction * counts).astype(np.int64), 0, np.maximum(counts - 1, 0))
    if np.ndim(labels) == 2:
        test = stratified_split_of_sets(labels, test_fraction=test_fraction, seed=seed)[1]
    else:
        test = _first_per_class(labels, test_counts, seed)
    if test.size == 0:
        raise ValueError(
            f"test_fraction={test_fraction} leaves no test image: the largest class has {counts.max()} images, and "
            f"one of each class stays in training; raise the fraction or use a data set with a test split."
        )
    return np.setdiff1d(np.arange(len(labels)), test, assume_unique=True), test


def class_counts(labels: np.ndarray | Sequence[int], num_classes: int) -> np.ndarray:
    """Count the images of every class.

    Args:
        labels (`np.ndarray` or `Sequence[int]`): int of shape (N,), values 0..C-1; or 0 and 1, of shape (N, C).
        num_classes (`int`): C.

    Returns:
        `np.ndarray`: int64 of shape (C,), 0 for a class without an image.

    Raises:
        ValueError: If a label is outside 0..C-1.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if labels.ndim == 2:
        return labels.sum(axis=0)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        first = int(outside[0])
        raise ValueError(f"Label {labels[first]} at position {first} is outside 0..{num_classes - 1}.")
    return np.bincount(labels, minlength=num_classes)


def frequency_groups(
    class_counts: np.ndarray | Sequence[int], *, many: int = 100, few: int = 20
) -> dict[str, np.ndarray]:
    """Sort classes into many-, medium- and few-shot by their number of training images.

    The thresholds are those of Liu et al., OLTR, 2019 (https://arxiv.org/abs/1904.05160), which the long-tailed
    literature reports by: many-shot above 100 images, medium-shot 20 to 100, few-shot below 20.

    Args:
        class_counts (`np.ndarray` or `Sequence[int]`): Training images of each class, shape (C,).
        many (`int`, defaults to 100): A class with more images than this is many-shot.
        few (`int`, defaults to 20): A class with fewer images than this is few-shot.

    Returns:
        `dict[str, np.ndarray]`: `"many"`, `"medium"` and `"few"`, each the sorted class indices (possibly none).

    Raises:
        ValueError: If `few` is larger than `many`.
    """
    if few > many:
        raise ValueError(
            f"few={few} is larger than many={many}; few-shot must end where medium-shot begins, or below."
        )
    counts = np.asarray(class_counts)
    return {
        "many": np.flatnonzero(counts > many),
        "medium": np.flatnonzero((counts >= few) & (counts <= many)),
        "few": np.flatnonzero(counts < few),
    }


def describe_groups(
    class_counts: np.ndarray | Sequence[int], *, many: int = 100, few: int = 20, counted: str = "images"
) -> str:
    """Table of the many/medium/few-shot groups: thresholds, number of classes, number of training images.

    Takes the arguments of [`frequency_groups`], and `counted`, what the counts add up to: of several classes an image
    these are labels. Returns a text of four lines, ready to print.
    """
    counts = np.asarray(class_counts)
    thresholds = {"many": f"> {many}", "medium": f"{few}..{many}", "few": f"< {few}"}
    lines = [f"{'group':<8}{'images a class':>16}{'classes':>10}{counted:>12}"]
    for group, classes in frequency_groups(counts, many=many, few=few).items():
        lines.append(f"{group:<8}{thresholds[group]:>16}{len(classes):>10}{int(counts[classes].sum()):>12}")
    return "\n".join(lines)


def _profile(num_classes: int, imbalance_factor: float, profile: str) -> np.ndarray:
    """n_i / n_max for i = 0..C-1, float64 of shape (C,)."""
    if not imbalance_factor >= 1:
        raise ValueError(
            f"imbalance_factor={imbalance_factor} must be at least 1: it is the image count of the most frequent "
            f"class divided by that of the rarest (100, not 0.01)."
        )
    return PROFILES.choose(profile)(num_classes, float(imbalance_factor))


def _profile_counts(max_count: int, profile: np.ndarray) -> np.ndarray:
    return np.floor(max_count * profile + _ROUNDING_SLACK).astype(np.int64)


def _largest_max_count(available: np.ndarray, profile: np.ndarray) -> int:
    """The largest n_max with `int(n_max * profile_i) <= available_i` for every class."""
    if available.min() == 0:
        raise ValueError(
            f"Class {int(available.argmin())} has no image, so no long-tailed profile fits; remove the class from the "
            f"data set's class names or add images of it."
        )
    max_count = int(((available + 1) / profile).min()) + 1
    while (_profile_counts(max_count, profile) > available).any():
        max_count -= 1
    return max_count


def _first_per_class(labels: np.ndarray, counts: np.ndarray, seed: int) -> np.ndarray:
    """The first `counts[i]` images of every class i in the seed's order, as sorted indices."""
    chosen = [order[:count] for order, count in zip(_shuffled_classes(labels, len(counts), seed), counts, strict=True)]
    return np.sort(np.concatenate(chosen))


def _shuffled_classes(labels: np.ndarray, num_classes: int, seed: int) -> Iterator[np.ndarray]:
    """The indices of each class in an order that depends on the seed and on the class, and on nothing else."""
    labels = np.asarray(labels)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(num_classes + 1))
    for index in range(num_classes):
        members = by_class[starts[index] : starts[index + 1]]
        # RandomState's stream is frozen across NumPy versions, so a seed names the same subset for good.
        yield np.random.RandomState([seed, index]).permutation(members)
