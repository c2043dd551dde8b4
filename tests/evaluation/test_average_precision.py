"""Average precision by class, its means, and results on images of several classes."""

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from transformers import EvalPrediction

from ft_focalsam.evaluation import (
    MultiLabelMetrics,
    MultiLabelResult,
    Predictions,
    class_average_precisions,
    format_table,
    make_result,
    write_page,
    write_results,
)

COUNTS = np.array([200, 150, 50, 20, 5])
RNG = np.random.default_rng(0)
LABELS = (RNG.random((40, 5)) < [0.6, 0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
LOGITS = RNG.normal(size=(40, 5)).astype(np.float32) + LABELS
NAMES = ["a", "b", "c", "=d", "e"]


def naive(scores: list[float], labels: list[int]) -> float:
    """sum_n (R_n - R_(n-1)) P_n over the thresholds from the highest to the lowest."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
        precision, new = sum(taken) / len(taken), sum(taken) / sum(labels)
        total, recall = total + (new - recall) * precision, new
    return total


def predictions(logits=LOGITS, labels=LABELS) -> Predictions:
    ids = [str(row) for row in range(len(labels))]
    return Predictions.of_logits(logits, labels, ids=ids, class_names=NAMES, dataset="animals")


@pytest.mark.parametrize("scores", [LOGITS, np.round(LOGITS)], ids=["all different", "with ties"])
def test_equals_the_sum_over_the_thresholds_and_scikit_learn(scores):
    found = class_average_precisions(scores, LABELS)
    for k in range(5):
        assert found[k] == pytest.approx(naive(scores[:, k].tolist(), LABELS[:, k].tolist()), rel=1e-12)
        assert found[k] == pytest.approx(average_precision_score(LABELS[:, k], scores[:, k]), rel=1e-12)


def test_a_class_without_an_image_has_none_and_enters_no_mean():
    labels = LABELS.copy()
    labels[:, [1, 4]] = 0
    metrics = MultiLabelMetrics(COUNTS)(EvalPrediction(LOGITS, labels))
    values = class_average_precisions(LOGITS, labels)
    assert np.flatnonzero(np.isnan(values)).tolist() == [1, 4]
    assert metrics == {
        "mAP": pytest.approx(values[[0, 2, 3]].mean()),
        "many": pytest.approx(values[0]),
        "medium": pytest.approx(values[[2, 3]].mean()),
    }


def test_nan_ranks_last_and_infinity_first():
    scores = np.array([[np.nan], [0.0], [np.inf], [-np.inf], [1.0]])
    ranked = np.array([[-3.0], [0], [2], [-3.0], [1]])
    for labels in ([1, 0, 1, 0, 0], [0, 1, 0, 0, 1]):
        labels = np.array(labels)[:, None]
        assert class_average_precisions(scores, labels) == class_average_precisions(ranked, labels)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 5)), np.zeros((0, 5)), "has no image"),
        (LOGITS, LABELS[:, 0], "scores of shape \\(40, 5\\) and labels of shape \\(40,\\)"),
        (LOGITS, 2 * LABELS, "neither 0 nor 1"),
    ],
)
def test_what_has_no_average_precision_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        class_average_precisions(scores, labels)


def test_predictions_keep_order_and_labels_through_a_file(tmp_path):
    extreme = np.concatenate([LOGITS, 40 * LOGITS])
    found = predictions(extreme, np.concatenate([LABELS, LABELS]))
    assert np.array_equal(class_average_precisions(found.log_probabilities, found.labels),
                          class_average_precisions(extreme, found.labels))  # fmt: skip
    found.save(tmp_path / "p.safetensors")
    again = Predictions.load(tmp_path / "p.safetensors")
    assert again.is_multi_label and np.array_equal(again.labels, found.labels)
    np.testing.assert_array_equal(again.log_probabilities, extreme)


def test_a_result_is_of_the_kind_of_its_labels():
    assert isinstance(make_result(predictions(), COUNTS), MultiLabelResult)
    record = make_result(predictions(), COUNTS, many=100, few=20).record()
    assert record["images"] == 40 and set(record) == {
        "mAP",
        "many",
        "medium",
        "few",
        "images",
        "group_images",
        "notes",
    }
    assert record["group_images"]["many"] == int(LABELS[:, :2].any(axis=1).sum())
    assert any("fewer than 10 test images" in note for note in record["notes"])


def test_runs_on_other_images_are_not_compared(tmp_path):
    results = {"before": make_result(predictions(LOGITS[:30], LABELS[:30])), "after": make_result(predictions())}
    with pytest.raises(ValueError, match="cannot be paired"):
        write_page(tmp_path, results)


def test_results_of_one_class_an_image_and_of_several_are_not_mixed(tmp_path):
    ids = [str(row) for row in range(40)]
    single = Predictions.of_logits(LOGITS, np.arange(40) % 5, ids=ids, class_names=NAMES, dataset="animals")
    results = {"single": make_result(single), "several": make_result(predictions())}
    for kept in (results, dict(reversed(results.items()))):
        with pytest.raises(ValueError, match="of one class an image and of several"):
            write_results(tmp_path, {}, kept)
        with pytest.raises(ValueError, match="of one class an image and of several"):
            write_page(tmp_path, kept)


def test_seeds_on_other_images_have_no_common_estimate():
    several = [make_result(predictions()), make_result(predictions(LOGITS[:30], LABELS[:30]))]
    for estimate in (several[0].estimate_runs, several[0].estimate_classes):
        with pytest.raises(ValueError, match="cannot be paired"):
            estimate(several)
        with pytest.raises(ValueError, match="cannot be paired"):
            estimate(several[:1], against=several[1:])


@pytest.mark.parametrize("is_multi_label", [False, True])
def test_files_without_training_counts_have_no_drawing(tmp_path, is_multi_label):
    labels = LABELS if is_multi_label else np.arange(40) % 5
    result = make_result(predictions(labels=labels))
    write_results(tmp_path, {"run": result.record()}, {"run": result})
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "per_class.csv"}


def test_files_and_pages_say_average_precision_and_no_accuracy(tmp_path):
    results = {"before": make_result(predictions(-LOGITS), COUNTS), "after": make_result(predictions(), COUNTS)}
    records = {name: result.record() for name, result in results.items()}
    write_results(tmp_path, records, results)
    write_page(tmp_path, results, title="Animals", seeds={"animals": list(results.values())})
    assert json.loads((tmp_path / "metrics.json").read_text())["after"]["mAP"] == results["after"].metrics["mAP"]
    with (tmp_path / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = results["after"].class_average_precisions
    assert [float(row["average_precision"]) for row in rows] == pytest.approx(values.tolist())
    assert [row["group"] for row in rows] == ["many", "many", "medium", "medium", "few"]
    assert rows[3]["name"] == "'=d" and "accuracy" not in rows[0]
    assert (tmp_path / "average_precision_by_frequency.png").stat().st_size > 10_000
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert (
        f"| mAP | {100 * results['before'].metrics['mAP']:.1f} | {100 * results['after'].metrics['mAP']:.1f} |" in page
    )
    assert "One run has no intervals" in page and "Over 2 seeds on animals" in page
    assert not any(word in page for word in ("top-1", "McNemar", "Calibration", "confused", "calibration"))
    table = format_table(records)
    assert table.splitlines()[0].split() == ["run", "mAP", "many", "medium", "few"]
