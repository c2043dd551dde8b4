"""Intervals over seeds cover what they promise, on simulated trainings and test sets whose truth is known."""

import numpy as np
import pytest
from scipy.stats import norm
from test_intervals import outcomes_of

from ft_focalsam.evaluation import bootstrap_intervals, compare, estimate, over_seeds
from ft_focalsam.evaluation.estimates import estimate_metric
from ft_focalsam.evaluation.intervals import WITHOUT_INTERVAL, resampled_metrics
from ft_focalsam.evaluation.metrics import tally_metrics

CLASSES, IMAGES = 10, 30
LABELS = np.repeat(np.arange(CLASSES), IMAGES)


def trainings(rng, *, ability, over_seeds, num_seeds, difficulty):
    """Runs whose accuracy varies with the seed around `ability`, on images of one difficulty for all."""
    for _ in range(num_seeds):
        latent = ability + over_seeds * rng.normal() + difficulty + 0.5 * rng.normal(size=len(LABELS))
        yield outcomes_of(LABELS, latent > 0, CLASSES)


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
@pytest.mark.parametrize("by_seeds", [0.0, 0.5, 2.0])
def test_the_interval_covers_whichever_dominates(num_seeds, by_seeds):
    """Means that are off by the images, variance 1 for all runs alike, and by the seeds, run by run."""
    rng = np.random.default_rng(num_seeds)
    quantiles = norm.ppf((np.arange(100) + 0.5) / 100)  # resamples, as they would be with infinitely many
    covered = 0
    for _ in range(1000):
        values = rng.normal() + by_seeds * rng.normal(size=num_seeds)
        low, high = estimate_metric(values, [quantiles] * num_seeds).interval
        covered += low <= 0 <= high
    assert 0.93 <= covered / 1000 <= 0.998


def test_the_interval_of_a_difference_covers_it():
    """An image is right where its latent is above 0: the truth is that of the normal law of the sum."""
    rng = np.random.default_rng(0)
    spread = np.sqrt(1 + 0.25 + 0.1**2)
    truth = norm.cdf(0.4 / spread) - norm.cdf(0.2 / spread)
    covered, worlds = 0, 60
    for _ in range(worlds):
        world = {"over_seeds": 0.1, "num_seeds": 2, "difficulty": rng.normal(size=len(LABELS))}
        first, second = (list(trainings(rng, ability=ability, **world)) for ability in (0.2, 0.4))
        low, high = estimate(second, against=first, count=40)["accuracy"].interval
        covered += low <= truth <= high
    assert covered / worlds >= 0.9


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(7)
    world = {"over_seeds": 0.1, "num_seeds": 3, "difficulty": rng.normal(size=len(LABELS))}
    return [list(trainings(rng, ability=ability, **world)) for ability in (0.0, 0.5)]


def test_an_interval_is_the_formula_of_the_docstring(runs):
    first, second = runs
    got = estimate(second, against=first, count=200)["mean_class_accuracy"]
    differences = [compare(*pair).differences["mean_class_accuracy"] for pair in zip(first, second, strict=True)]
    resampled = [
        resampled_metrics(b, count=200)["mean_class_accuracy"] - resampled_metrics(a, count=200)["mean_class_accuracy"]
        for a, b in zip(first, second, strict=True)
    ]
    by_images, by_seeds = np.var(sum(resampled) / 3, ddof=1), np.var(differences, ddof=1) / 3
    half = np.sqrt(1.959964**2 * by_images + 4.302653**2 * by_seeds)
    assert got.mean == pytest.approx(np.mean(differences))
    assert got.deviation == pytest.approx(np.std(differences, ddof=1))
    assert got.interval == pytest.approx((got.mean - half, got.mean + half))


def test_means_and_deviations_are_those_over_seeds(runs):
    values = over_seeds([tally_metrics(run.tally()) for run in runs[0]])
    for name, found in estimate(runs[0], count=50).items():
        assert (found.mean, found.deviation) == pytest.approx(values[name])
        assert (found.interval is None) == (name in WITHOUT_INTERVAL)


def test_one_run_has_the_interval_over_the_test_images(runs):
    run = runs[0][0]
    found = estimate([run], count=2000)["accuracy"]
    assert found.deviation is None
    assert found.interval == pytest.approx(bootstrap_intervals(run, count=2000)["accuracy"], abs=0.006)


def test_runs_that_cannot_be_paired_are_refused(runs):
    first, second = runs
    with pytest.raises(ValueError, match="3 runs cannot be estimated from 2"):
        estimate(first, against=second[:2])
    with pytest.raises(ValueError, match="0 runs"):
        estimate([])
    other = outcomes_of(LABELS[::-1], np.ones(len(LABELS), bool), CLASSES)
    with pytest.raises(ValueError, match="different images or labels"):
        estimate(first, against=[*second[:2], other])
