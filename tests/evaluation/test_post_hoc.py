"""Corrections of logits: against their formulas, and on data whose right correction is known."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch.nn.functional import cross_entropy

from ft_focalsam.evaluation import Predictions, SampleResults, adjust_logits, fit_temperature
from ft_focalsam.evaluation.evaluate import scale_temperature
from ft_focalsam.evaluation.metrics import tally_metrics


def world(images=6000, classes=6, sharpness=1.0, seed=0):
    """Logits whose softmax is the true distribution of the labels, made too sharp or too flat."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(images, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(logits, axis=1)])
    return sharpness * logits, labels


def predictions_of(logits, labels):
    names = [str(index) for index in range(logits.shape[1])]
    return Predictions.of_logits(logits, labels, ids=[str(row) for row in range(len(labels))], class_names=names)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.5])
def test_temperature_is_recovered(temperature):
    logits, labels = world(sharpness=temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_temperature_has_the_highest_likelihood():
    logits, labels = world(images=500, sharpness=2.0)
    fitted = fit_temperature(logits, labels)
    losses = {
        t: float(cross_entropy(torch.from_numpy(logits / t), torch.from_numpy(labels)))
        for t in (0.98 * fitted, fitted, 1.02 * fitted)
    }
    assert min(losses, key=losses.get) == fitted


def test_temperature_calibrates_what_it_was_not_fitted_on_and_changes_no_prediction():
    logits, labels = world(sharpness=3.0)
    before = predictions_of(logits, labels)
    after, rows, note = scale_temperature(before, 0.25)
    held_out = np.setdiff1d(np.arange(len(labels)), rows)
    assert after.ids == [str(row) for row in rows]
    assert len(held_out) == pytest.approx(1500, abs=6) and f"fitted on {len(held_out):,} images" in note
    expected = fit_temperature(before.log_probabilities[held_out], labels[held_out])
    np.testing.assert_allclose(
        np.exp(after.log_probabilities), softmax(logits[rows] / expected, axis=1), rtol=1e-4, atol=1e-7
    )
    errors = [tally_metrics(p.outcomes().tally())["calibration_error"] for p in (before.select(rows), after)]
    assert errors[1] < 0.2 * errors[0]
    assert (after.outcomes().predicted == before.select(rows).outcomes().predicted).all()


def test_temperature_of_unusable_logits_is_refused():
    with pytest.raises(ValueError, match="held-out images"):
        fit_temperature(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_temperature(np.array([[np.nan, 0]]), np.array([0]))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_adjustment_equals_its_formula(tau):
    logits, counts = np.random.default_rng(0).normal(size=(5, 3)), [60, 30, 10]
    for row, adjusted in zip(logits, adjust_logits(logits, counts, tau=tau), strict=True):
        for index, count in enumerate(counts):
            assert adjusted[index] == pytest.approx(row[index] - tau * np.log(count / 100))


def test_adjustment_makes_bayes_classifier_of_unbalanced_data_that_of_balanced():
    """Logits log p(x|y) + log pi_y of two Gaussians: adjusted, the mean class accuracy is the best there is."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 4000)
    x = rng.normal(size=8000) + 2.0 * labels
    prior = np.array([0.95, 0.05])
    logits = np.stack([-(x**2) / 2, -((x - 2) ** 2) / 2], axis=1) + np.log(prior)
    adjusted = adjust_logits(logits, [950, 50])
    before, after = (
        tally_metrics(SampleResults.of(each, labels, num_classes=2).tally())["mean_class_accuracy"]
        for each in (logits, adjusted)
    )
    assert before < 0.77
    assert after == pytest.approx(0.8413, abs=0.015)  # Phi(1), the balanced optimum


def test_adjustment_refuses_counts_that_do_not_fit():
    with pytest.raises(ValueError, match="2 class counts for logits of 3 classes"):
        adjust_logits(np.zeros((1, 3)), [1, 2])
    with pytest.raises(ValueError, match="Class 1 has no training image"):
        adjust_logits(np.zeros((1, 2)), [1, 0])
