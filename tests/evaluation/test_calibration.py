"""The gap of confidence and accuracy, and what chance alone does to the calibration error."""

import numpy as np
import pytest
from scipy.stats import binomtest

from ft_focalsam.evaluation import EvalResult, Predictions, SampleResults, calibration
from ft_focalsam.evaluation.metrics import calibration_error
from ft_focalsam.evaluation.report.confidence import calibration as section


def outcomes_of(confidence, is_hit):
    labels = np.zeros(len(confidence), dtype=np.int64)
    predicted = np.where(is_hit, 0, 1)
    return SampleResults(labels, predicted, None, np.asarray(confidence, dtype=np.float64), num_classes=2)


def test_gap_and_error_against_loops():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, size=200)
    is_hit = rng.random(200) < 0.6
    found = calibration(outcomes_of(confidence, is_hit))
    bins = [int(np.ceil(15 * each)) - 1 for each in confidence]
    error = 0.0
    for index in range(15):
        rows = [row for row, each in enumerate(bins) if each == index]
        if rows:
            gap = np.mean([confidence[row] for row in rows]) - np.mean([is_hit[row] for row in rows])
            error += len(rows) / 200 * abs(gap)
    assert found.error == pytest.approx(error)
    assert found.error == pytest.approx(calibration_error(outcomes_of(confidence, is_hit).tally()))
    assert found.gap == pytest.approx(confidence.mean() - is_hit.mean())
    ends = binomtest(int(is_hit.sum()), 200).proportion_ci(0.95, "exact")
    assert found.gap_interval == pytest.approx((confidence.mean() - ends.high, confidence.mean() - ends.low))
    assert found.has_gap and not calibration(outcomes_of(np.full(200, is_hit.mean()), is_hit)).has_gap


def test_a_calibrated_model_stays_below_chance_and_inside_the_interval_as_often_as_it_says():
    rng, below, inside = np.random.default_rng(1), 0, 0
    for _ in range(300):
        confidence = rng.beta(5, 2, size=100)
        found = calibration(outcomes_of(confidence, rng.random(100) < confidence))
        below += found.error <= found.error_by_chance
        inside += not found.has_gap
    assert 0.92 <= below / 300 <= 0.98  # 95 %; its standard deviation is 1.3 %
    assert inside / 300 >= 0.93  # the interval allows for more variance than these confidences have


def test_predicted_classes_have_no_calibration():
    with pytest.raises(ValueError, match="Calibration needs confidences"):
        calibration(SampleResults.of(np.array([0, 1]), np.array([0, 1]), num_classes=2))


@pytest.mark.parametrize(
    ("share", "margin", "scaled", "advice"),
    [
        (
            0.5,
            6.0,
            False,
            "It is too sure: do not take its confidence for a probability as it is.",
        ),
        (1.0, 0.5, False, "It is too unsure: do not take"),
        (
            0.5,
            6.0,
            True,
            "A temperature that was fitted on held-out images is already applied, and is off: hold out more",
        ),
        (0.88, np.log(9), True, "A temperature that was fitted on held-out images is already applied."),
        (0.88, np.log(9), False, "Neither is more than chance would do: no correction is called for."),
    ],
)
def test_the_advice_follows_from_the_calibration(share, margin, scaled, advice):
    labels = np.zeros(100, dtype=np.int64)
    predicted = (np.arange(100) >= 100 * share).astype(int)
    ids, names = list(map(str, range(100))), ["a", "b"]
    predictions = Predictions.of_logits(margin * np.eye(2)[predicted], labels, ids=ids, class_names=names)
    texts = [
        block.text
        for block in section({"run": EvalResult(predictions, is_temperature_scaled=scaled)}, 2)
        if hasattr(block, "text")
    ]
    assert texts[2].startswith(advice)
    gap = 100 * (1 / (1 + np.exp(-margin)) - share)
    assert f"{'over' if gap > 0 else 'under'}-confident by {abs(gap):.1f} points" in texts[1]
