"""Intervals over seeds cover what they promise, on simulated trainings and test sets whose truth is known."""

import numpy as np
import pytest
from scipy.stats import norm, ttest_1samp, ttest_rel
from scipy.stats import t as student
from test_intervals import outcomes_of

from ft_focalsam.evaluation import compare, estimate, estimate_classes
from ft_focalsam.evaluation.estimates import estimate_values, seeds_variance
from ft_focalsam.evaluation.metrics import class_weights, tally_metrics

CLASSES, IMAGES = 10, 30
LABELS = np.repeat(np.arange(CLASSES), IMAGES)


def trainings(rng, *, ability, over_seeds, num_seeds, difficulty, labels=LABELS):
    """Runs whose accuracy varies with the seed around `ability`, on images of one difficulty for all."""
    for _ in range(num_seeds):
        latent = ability + over_seeds * rng.normal() + difficulty + 0.5 * rng.normal(size=len(labels))
        yield outcomes_of(labels, latent > 0, labels.max() + 1)


@pytest.mark.parametrize("images", [1, 3, 30])
@pytest.mark.parametrize("over_seeds", [0.0, 0.1, 0.6])
def test_three_seeds_cover_a_method_and_a_difference(images, over_seeds):
    """An image is right where its latent is above 0: the truth is that of the normal law of the sum."""
    rng = np.random.default_rng(images)
    labels = np.repeat(np.arange(CLASSES), images)
    spread = np.sqrt(1 + 0.25 + over_seeds**2)
    truth = norm.cdf(0.8 / spread), norm.cdf(0.8 / spread) - norm.cdf(0.4 / spread)
    covered, worlds = np.zeros(2), 120
    for _ in range(worlds):
        world = {
            "over_seeds": over_seeds,
            "num_seeds": 3,
            "difficulty": rng.normal(size=len(labels)),
            "labels": labels,
        }
        first, second = (list(trainings(rng, ability=ability, **world)) for ability in (0.4, 0.8))
        for index, against in enumerate((None, first)):
            low, high = estimate(second, against=against)["mean_class_accuracy"].interval
            assert -1 <= low <= high <= 1
            covered[index] += low <= truth[index] <= high
    assert (covered / worlds >= 0.92).all()


@pytest.mark.parametrize("images", [1, 3, 30])
def test_two_seeds_cover_other_test_images_and_give_no_deviation(images):
    rng = np.random.default_rng(images)
    labels = np.repeat(np.arange(CLASSES), images)
    truth, covered, worlds = norm.cdf(0.5 / np.sqrt(1.25)), 0, 150
    for _ in range(worlds):
        world = {"over_seeds": 0.0, "num_seeds": 2, "difficulty": rng.normal(size=len(labels)), "labels": labels}
        found = estimate(list(trainings(rng, ability=0.5, **world)))["accuracy"]
        covered += found.interval[0] <= truth <= found.interval[1]
        assert found.deviation is None and len(found.values) == 2
    assert covered / worlds >= 0.92


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(7)
    world = {"over_seeds": 0.1, "num_seeds": 3, "difficulty": rng.normal(size=len(LABELS))}
    return [list(trainings(rng, ability=ability, **world)) for ability in (0.0, 0.5)]


def test_a_difference_is_that_of_the_runs_and_as_wide_as_images_and_seeds_make_it(runs):
    first, second = runs
    got = estimate(second, against=first)["mean_class_accuracy"]
    differences = [compare(*pair).differences["mean_class_accuracy"] for pair in zip(first, second, strict=True)]
    assert got.values == pytest.approx(differences)
    assert got.mean == pytest.approx(np.mean(differences))
    assert got.deviation == pytest.approx(np.std(differences, ddof=1))
    scores = np.mean([b.is_hit.astype(float) - a.is_hit for a, b in zip(first, second, strict=True)], axis=0)
    by_images = np.mean([scores[c == LABELS].var(ddof=1) for c in range(CLASSES)]) / len(LABELS)
    by_seeds = np.var(differences, ddof=1) / 3
    half = np.sqrt(1.959964**2 * by_images + 4.302653**2 * by_seeds)
    assert np.diff(got.interval) == pytest.approx(2 * half, rel=0.1)


def test_the_variance_by_seeds_is_students():
    assert seeds_variance(0.2, 4) == pytest.approx((student.ppf(0.975, 3) / 1.959964) ** 2 * 0.04 / 4)


def test_an_interval_over_runs_alone_is_that_of_the_paired_t_test():
    first, second = np.random.default_rng(0).uniform(size=(2, 5))
    found = estimate_values([{"mAP": value} for value in second], against=[{"mAP": value} for value in first])["mAP"]
    paired = ttest_rel(second, first).confidence_interval(0.95)
    assert found.interval == pytest.approx((paired.low, paired.high))
    assert found.mean == pytest.approx((second - first).mean()) and found.values == pytest.approx(second - first)
    alone = estimate_values([{"mAP": value, "few": value} for value in second] + [{"mAP": 0.5}])
    assert list(alone) == ["mAP"] and alone["mAP"].interval == pytest.approx(
        ttest_1samp([*second, 0.5], 0).confidence_interval(0.95)
    )
    assert estimate_values([{"mAP": 0.1}, {"mAP": 0.2}])["mAP"].interval is None


def test_means_and_deviations_are_those_of_the_runs(runs):
    values = [tally_metrics(run.tally()) for run in runs[0]]
    for name, found in estimate(runs[0]).items():
        assert list(found.values) == [each[name] for each in values]
        assert found.mean == pytest.approx(np.mean(found.values))
        assert found.deviation == pytest.approx(np.std(found.values, ddof=1))
        assert (found.interval is not None) == (name in class_weights(runs[0][0].tally()))


def test_several_runs_that_agree_say_what_one_says(runs):
    run = runs[0][0]
    alone, twice = estimate([run]), estimate([run, run])
    assert alone["accuracy"].interval == pytest.approx(twice["accuracy"].interval)
    assert alone["accuracy"].deviation is None


def test_runs_that_cannot_be_paired_are_refused(runs):
    first, second = runs
    with pytest.raises(ValueError, match="3 runs cannot be estimated from 2"):
        estimate(first, against=second[:2])
    with pytest.raises(ValueError, match="0 runs"):
        estimate([])
    other = outcomes_of(LABELS[::-1], np.ones(len(LABELS), bool), CLASSES)
    with pytest.raises(ValueError, match="different images or labels"):
        estimate(first, against=[*second[:2], other])


@pytest.mark.parametrize("num_seeds", [1, 2, 3])
@pytest.mark.parametrize("is_difference", [False, True])
def test_estimates_of_classes_are_those_of_a_test_set_of_one_class(num_seeds, is_difference):
    rng, labels = np.random.default_rng(0), np.array([0, 2, 2, 0, 3, 0, 2, 3, 0])  # class 1 has no test image
    runs, others = (
        [outcomes_of(labels, rng.random(len(labels)) < share, 4) for _ in range(num_seeds)] for share in (0.7, 0.4)
    )
    found = estimate_classes(runs, against=others if is_difference else None)
    assert len(found) == 4 and found[1] is None
    for label in (0, 2, 3):
        rows = labels == label
        alone, against = ([outcomes_of(labels[rows], run.is_hit[rows], 4) for run in each] for each in (runs, others))
        expected = estimate(alone, against=against if is_difference else None)["accuracy"]
        assert found[label].mean == pytest.approx(expected.mean)
        assert found[label].values == pytest.approx(expected.values)
        assert found[label].deviation == pytest.approx(expected.deviation)
        assert found[label].interval == pytest.approx(expected.interval)
    with pytest.raises(ValueError, match="different images or labels"):
        estimate_classes(runs, against=[outcomes_of(labels[::-1], np.ones(9, bool), 4)] * num_seeds)
