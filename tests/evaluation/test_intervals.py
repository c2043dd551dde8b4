"""Intervals cover what they promise, on simulated models whose true accuracy is known; the paired tests are exact."""

from functools import cache
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ft_focalsam.evaluation import SampleResults, accuracy_interval, compare, difference_interval, estimate, mcnemar
from ft_focalsam.evaluation.intervals import WeightedMean, interval_of, weighted_mean
from ft_focalsam.evaluation.metrics import class_weights, tally_metrics

SIZES = list(product([1, 3, 20], [1, 2, 3, 5, 10]))  # classes, test images of each


def outcomes_of(labels, is_hit, num_classes, groups=None):
    """Predicted classes that are right where `is_hit` says so, and none where not."""
    return SampleResults.of(np.where(is_hit, labels, -1), labels, num_classes=num_classes, groups=groups)


def class_accuracies(accuracy, *, spread, num_classes, rng):
    """All classes alike, or drawn around the accuracy with a quarter of the variance of single images."""
    return rng.beta(3 * accuracy, 3 * (1 - accuracy), num_classes) if spread else np.full(num_classes, accuracy)


def draw(rng, probabilities, images):
    """Number of a class's images with each score, int of shape (C, K), for probabilities of shape (C, K)."""
    return np.stack([rng.multinomial(images, row) for row in probabilities])


@cache
def interval_of_counts(counts, scores):
    """Of the mean over classes, by (number of images with each score, number of classes like that)."""
    rows = [row for row, times in counts for _ in range(times)]
    images = np.concatenate([np.repeat(scores, row) for row in rows]).astype(float)
    labels = np.repeat(np.arange(len(rows)), [sum(row) for row in rows])
    found = weighted_mean(images[None], labels, np.full(len(rows), 1 / len(rows)))
    return interval_of(found, is_difference=len(scores) > 2)


def coverage(probabilities, images, scores, *, worlds, rng):
    """How often the interval of the mean over classes holds the true mean, and its mean width."""
    truth, covered, width = float((probabilities @ scores).mean()), 0, 0.0
    for _ in range(worlds):
        rows, times = np.unique(draw(rng, probabilities, images), axis=0, return_counts=True)
        counts = tuple(zip(map(tuple, rows.tolist()), times.tolist(), strict=True))
        low, high = interval_of_counts(counts, scores)
        covered, width = covered + (low - 1e-9 <= truth <= high + 1e-9), width + (high - low) / worlds
    return covered / worlds, width


@pytest.mark.parametrize("spread", [False, True], ids=["equal", "mixed"])
@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.9, 0.99])
def test_an_accuracy_is_covered_from_one_image_a_class_on(accuracy, spread):
    """Resamples within a class of one image have no variance: they covered the accuracy in none of the worlds where
    all is right."""
    rng = np.random.default_rng(int(100 * accuracy))
    for num_classes, images in SIZES:
        p = class_accuracies(accuracy, spread=spread, num_classes=num_classes, rng=rng)
        covered, _ = coverage(np.stack([1 - p, p], axis=1), images, (0, 1), worlds=400, rng=rng)
        assert covered >= 0.92, (num_classes, images)


@pytest.mark.parametrize("shares", [(0.01, 0.01), (0.05, 0.02), (0.25, 0.25), (0.89, 0.005)], ids=str)
@pytest.mark.slow
def test_a_difference_is_covered_from_one_image_a_class_on(shares):
    """Shares of images that one run alone has right, in classes alike and mixed."""
    rng = np.random.default_rng(int(100 * shares[0]))
    rest = 1 - sum(shares)
    for (num_classes, images), spread in product(SIZES, [False, True]):
        means = np.array([shares[1], rest, shares[0]])
        p = rng.dirichlet(3 * means, num_classes) if spread else np.tile(means, (num_classes, 1))
        covered, _ = coverage(p, images, (-1, 0, 1), worlds=400, rng=rng)
        assert covered >= 0.92, (num_classes, images, spread)


@pytest.mark.parametrize("seed", range(4))
def test_a_mean_over_classes_of_unlike_sizes_is_covered(seed):
    rng = np.random.default_rng(seed)
    for _ in range(8):
        sizes = rng.integers(1, 11, rng.integers(2, 20))
        p = class_accuracies(rng.choice([0.1, 0.5, 0.9]), spread=True, num_classes=len(sizes), rng=rng)
        labels, weights = np.repeat(np.arange(len(sizes)), sizes), np.full(len(sizes), 1 / len(sizes))
        ends = np.array(
            [
                interval_of(weighted_mean(hits[None].astype(float), labels, weights), is_difference=False)
                for hits in rng.random((200, len(labels))) < p[labels]
            ]
        )
        assert np.mean((ends[:, 0] <= p.mean()) & (p.mean() <= ends[:, 1])) >= 0.92, sizes


@pytest.mark.parametrize(("num_classes", "images"), [(1, 1000), (10, 100), (100, 10)])
def test_a_thousand_images_give_the_normal_interval(num_classes, images):
    rng = np.random.default_rng(0)
    for accuracy, spread in product([0.1, 0.5, 0.9], [False, True]):
        p = class_accuracies(accuracy, spread=spread and num_classes > 1, num_classes=num_classes, rng=rng)
        _, width = coverage(np.stack([1 - p, p], axis=1), images, (0, 1), worlds=40, rng=rng)
        normal = 2 * 1.96 * np.sqrt((p * (1 - p)).mean() / 1000)
        assert 0.97 * normal <= width <= 1.15 * normal, (accuracy, spread)
        shares = np.stack([p * 0.1, 1 - 0.3 * p, p * 0.2], axis=1)
        _, width = coverage(shares, images, (-1, 0, 1), worlds=40, rng=rng)
        normal = 2 * 1.96 * np.sqrt((0.3 * p - (0.1 * p) ** 2).mean() / 1000)
        assert 0.95 * normal <= width <= 1.15 * normal, (accuracy, spread)


def test_one_class_is_clopper_and_pearsons_of_its_images():
    for hits, images in [(0, 1), (1, 1), (0, 6), (5, 6), (17, 40)]:
        expected = tuple(binomtest(hits, images).proportion_ci(0.95, "exact"))
        labels = np.zeros(images, int)
        outcomes = outcomes_of(labels, np.arange(images) < hits, 1, {"few": np.array([0])})
        for name in ("accuracy", "mean_class_accuracy", "few"):
            assert estimate([outcomes])[name].interval == pytest.approx(expected, abs=1e-9)
        assert np.array(accuracy_interval(hits / images, images)) == pytest.approx(expected, abs=1e-9)


def test_classes_that_are_alike_count_as_one():
    """On average: the effective size of many classes with one accuracy is the number of their images."""
    rng = np.random.default_rng(0)
    labels, weights = np.repeat(np.arange(50), 3), np.full(50, 1 / 50)
    variances = [weighted_mean(hits[None] * 1.0, labels, weights).variance for hits in rng.random((300, 150)) < 0.7]
    assert np.mean(variances) == pytest.approx(0.7 * 0.3 / 150, rel=0.02)


def test_few_images_leave_a_difference_open():
    """Six images, one of each class, of which one run has one more right: an interval without a width before."""
    labels, groups = np.arange(6), {"many": np.arange(3), "medium": np.array([], int), "few": np.arange(3, 6)}
    first, second = (outcomes_of(labels, labels < right, 6, groups) for right in (4, 5))
    found = compare(first, second)
    assert found.differences["few"] == pytest.approx(1 / 3)
    for low, high in found.intervals.values():
        assert -1 <= low < 0 < high <= 1 and high - low > 0.5
    assert "medium" not in found.intervals


bits = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), min_size=1, max_size=30)


@given(bits)
def test_an_interval_holds_its_value_and_stays_in_its_range(images):
    labels, first, second = (np.array(column) for column in zip(*images, strict=True))
    runs = [
        outcomes_of(labels, is_hit, 5, {"few": np.array([0, 3]), "many": np.array([1])}) for is_hit in (first, second)
    ]
    for against, bounds in ((None, (0, 1)), ([runs[1]], (-1, 1))):
        for found in estimate(runs[:1], against=against).values():
            if found.interval is not None:
                low, high = found.interval
                assert bounds[0] <= low <= found.mean + 1e-9 and found.mean - 1e-9 <= high <= bounds[1]


def test_weights_are_those_of_the_metrics():
    rng = np.random.default_rng(2)
    labels = rng.choice([0, 1, 2, 4, 5, 7], 60)
    groups = {"many": np.array([0, 3]), "medium": np.array([3]), "few": np.array([1, 2, 6])}
    tally = SampleResults.of(
        rng.normal(size=(60, 8)) + np.eye(8)[labels], labels, num_classes=8, groups=groups
    ).tally()
    weights, metrics = class_weights(tally), tally_metrics(tally)
    assert set(weights) == {"accuracy", "top5_accuracy", "mean_class_accuracy", "many", "few"}
    for name, values in weights.items():
        hits = tally.top5_hits if name == "top5_accuracy" else tally.hits
        assert values @ (hits / np.maximum(tally.images, 1)) == pytest.approx(metrics[name])


def test_a_variance_from_elsewhere_widens_both_intervals_up_to_their_range():
    found = WeightedMean(0.5, 0.5, 0.0025, 100.0)
    widths = [np.diff(interval_of(found, is_difference=False, further=v)).item() for v in (0, 0.01, 0.1, 10)]
    assert sorted(widths) == widths and widths[-1] > 0.99
    assert difference_interval(0.0, 0.0, 0.0) == (-1, 1)


# ---- paired ----


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (3, 3), (2, 9), (12, 4)])
def test_mcnemar_equals_the_sum_of_binomials(only_first, only_second):
    both, neither = [True] * 5, [False] * 7
    first = np.array(both + neither + [True] * only_first + [False] * only_second)
    second = np.array(both + neither + [False] * only_first + [True] * only_second)
    n, fewer = only_first + only_second, min(only_first, only_second)
    expected = min(1, 2 * sum(comb(n, k) for k in range(fewer + 1)) / 2**n)
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_equals_an_enumeration():
    """All ways in which equally good runs could have been right, alone, on the images where they differ."""
    first, second = np.array([1, 1, 0, 1, 1, 1, 0], bool), np.array([0, 0, 1, 0, 0, 1, 0], bool)
    observed = abs(4 - 1)
    ways = [abs(2 * sum(way) - 5) >= observed for way in product([0, 1], repeat=5)]
    assert mcnemar(first, second) == pytest.approx(np.mean(ways))


def test_a_paired_interval_is_shorter_where_runs_fail_together():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(5), 80)
    hard = rng.random(400) < 0.4
    first = outcomes_of(labels, ~hard, 5)
    second = outcomes_of(labels, ~hard | (rng.random(400) < 0.15), 5)
    got = compare(first, second)
    difference = second.is_hit.mean() - first.is_hit.mean()
    assert got.differences["accuracy"] == pytest.approx(difference)
    assert (got.only_first, got.only_second) == (0, (second.is_hit & ~first.is_hit).sum())
    low, high = got.intervals["accuracy"]
    deviation = (second.is_hit.astype(float) - first.is_hit).std() / 20
    assert (low, high) == pytest.approx((difference - 1.96 * deviation, difference + 1.96 * deviation), abs=0.006)
    assert low > 0 and got.p_value < 1e-4
    alone = estimate([second])["accuracy"].interval
    assert high - low < 0.8 * (alone[1] - alone[0])


def test_paired_test_keeps_its_level():
    """Two runs that are equally good are called different at the 5 % level in at most about 5 % of the worlds."""
    rng = np.random.default_rng(4)
    p_values = [mcnemar(rng.random(300) < 0.6, rng.random(300) < 0.6) for _ in range(600)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.07


def test_runs_on_other_images_are_not_paired():
    with pytest.raises(ValueError, match="different images or labels"):
        compare(outcomes_of(np.array([0, 1]), True, 2), outcomes_of(np.array([1, 0]), True, 2))
