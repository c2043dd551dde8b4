"""Intervals cover what they promise, on simulated models whose true accuracy is known; the paired tests are exact."""

from itertools import product
from math import comb

import numpy as np
import pytest
from scipy.stats import bootstrap

from ft_focalsam.evaluation import Outcomes, bootstrap_intervals, compare, mcnemar, over_seeds
from ft_focalsam.evaluation.intervals import WITHOUT_INTERVAL, resamples
from ft_focalsam.evaluation.metrics import tally_metrics


def outcomes_of(labels, is_hit, num_classes):
    """Predicted classes that are right where `is_hit` says so, and the next class where not."""
    return Outcomes.of(np.where(is_hit, labels, (labels + 1) % num_classes), labels, num_classes=num_classes)


@pytest.mark.parametrize("per_class", [2, 30])
def test_intervals_cover_the_true_accuracy(per_class):
    """Of 20 classes with a few images, as many test sets have: with n draws of n images, the interval of two images a
    class would have 0.71 of the length, and cover 83 %."""
    num_classes, worlds = 20, 120
    rng = np.random.default_rng(per_class)
    accuracies = np.linspace(0.3, 0.8, num_classes)
    labels = np.repeat(np.arange(num_classes), per_class)
    covered = 0
    for _ in range(worlds):
        outcomes = outcomes_of(labels, rng.random(len(labels)) < accuracies[labels], num_classes)
        low, high = bootstrap_intervals(outcomes, count=100)["mean_class_accuracy"]
        covered += low <= accuracies.mean() <= high
    assert 0.90 <= covered / worlds <= 0.99


def test_the_spread_of_a_resample_is_that_of_the_test_set():
    """Variance of the mean class accuracy: mean over classes of s^2 / n, divided by C, with s^2 without bias."""
    rng = np.random.default_rng(0)
    sizes = np.array([2, 3, 5, 40])
    labels = np.repeat(np.arange(4), sizes)
    is_hit = rng.random(50) < 0.5
    is_hit[:2] = True, False
    outcomes = outcomes_of(labels, is_hit, 4)
    drawn = [tally_metrics(outcomes.resampled(*each)) for each in resamples(labels, count=6000, seed=0)]
    expected = sum(is_hit[labels == c].var(ddof=1) / sizes[c] for c in range(4)) / 4**2
    assert np.var([values["mean_class_accuracy"] for values in drawn]) == pytest.approx(expected, rel=0.06)
    overall = sum(sizes[c] * is_hit[labels == c].var(ddof=1) for c in range(4)) / 50**2
    assert np.var([values["accuracy"] for values in drawn]) == pytest.approx(overall, rel=0.06)
    assert np.mean([values["accuracy"] for values in drawn]) == pytest.approx(is_hit.mean(), abs=0.003)


def test_one_class_equals_scipys_bootstrap():
    is_hit = np.random.default_rng(1).random(400) < 0.7
    outcomes = outcomes_of(np.zeros(400, int), is_hit, 2)
    got = bootstrap_intervals(outcomes, count=2000)["accuracy"]
    expected = bootstrap((is_hit,), np.mean, n_resamples=2000, method="percentile", random_state=0)
    assert got == pytest.approx(tuple(expected.confidence_interval), abs=0.006)


def test_resamples_keep_classes_and_follow_the_seed():
    labels = np.array([3, 0, 3, 3, 7, 0])
    drawn = list(resamples(labels, count=20, seed=4))
    for rows, weights in drawn:
        weight_of = [weights[labels[rows] == c].sum() for c in (0, 3, 7)]
        assert weight_of == pytest.approx([2, 3, 1])
    again = list(resamples(labels, count=20, seed=4))
    assert all((a[0] == b[0]).all() for a, b in zip(drawn, again, strict=True))
    other = list(resamples(labels, count=20, seed=5))
    assert any((a[0] != b[0]).any() for a, b in zip(drawn, other, strict=True))


def test_a_resample_counts_like_its_images_one_by_one():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 8, 60)
    logits = rng.normal(size=(60, 8)) + np.eye(8)[labels]
    outcomes = Outcomes.of(logits, labels, num_classes=8)
    rows = rng.integers(0, 60, 50)
    drawn, copied = (
        tally_metrics(tally)
        for tally in (
            outcomes.resampled(rows, np.ones(50)),
            Outcomes.of(logits[rows], labels[rows], num_classes=8).tally(),
        )
    )
    assert drawn == pytest.approx({name: copied[name] for name in drawn})
    assert set(copied) - set(drawn) == {"calibration_error"}
    assert not set(bootstrap_intervals(outcomes, count=100)) & set(WITHOUT_INTERVAL)


def test_classes_of_one_image_are_drawn_together():
    """The interval is that of a binomial share, not one without a width."""
    labels = np.arange(300)
    outcomes = outcomes_of(labels, np.arange(300) % 3 > 0, 300)
    low, high = bootstrap_intervals(outcomes, count=1000)["accuracy"]
    half = 1.96 * np.sqrt(2 / 3 * 1 / 3 / 300)
    assert (low, high) == pytest.approx((2 / 3 - half, 2 / 3 + half), abs=0.01)
    groups = {"many": np.arange(299), "medium": np.array([], int), "few": np.array([299])}
    got = bootstrap_intervals(Outcomes.of(labels, labels, num_classes=300, groups=groups), count=100)
    assert "many" in got and "few" not in got


def test_over_seeds_is_the_mean_and_the_sample_deviation():
    runs = [{"accuracy": 0.5, "few": 0.1, "notes": []}, {"accuracy": 0.7, "few": 0.1}, {"accuracy": 0.9, "many": 1}]
    assert over_seeds(runs) == {"accuracy": (pytest.approx(0.7), pytest.approx(0.2))}
    with pytest.raises(ValueError, match="1 run has no deviation"):
        over_seeds(runs[:1])


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
    got = compare(first, second, count=1000)
    difference = second.is_hit.mean() - first.is_hit.mean()
    assert got.differences["accuracy"] == pytest.approx(difference)
    assert (got.only_first, got.only_second) == (0, (second.is_hit & ~first.is_hit).sum())
    low, high = got.intervals["accuracy"]
    deviation = (second.is_hit.astype(float) - first.is_hit).std() / 20
    assert (low, high) == pytest.approx((difference - 1.96 * deviation, difference + 1.96 * deviation), abs=0.006)
    assert low > 0 and got.p_value < 1e-4
    alone = bootstrap_intervals(second)["accuracy"]
    assert high - low < 0.8 * (alone[1] - alone[0])


def test_paired_test_keeps_its_level():
    """Two runs that are equally good are called different at the 5 % level in at most about 5 % of the worlds."""
    rng = np.random.default_rng(4)
    p_values = [mcnemar(rng.random(300) < 0.6, rng.random(300) < 0.6) for _ in range(600)]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.07


def test_runs_on_other_images_are_not_paired():
    with pytest.raises(ValueError, match="different images or labels"):
        compare(outcomes_of(np.array([0, 1]), True, 2), outcomes_of(np.array([1, 0]), True, 2))
