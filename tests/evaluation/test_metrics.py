"""Long-tailed metrics against a plain loop over the images."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, recall_score, top_k_accuracy_score
from transformers import EvalPrediction, Trainer, TrainingArguments

from ft_focalsam.evaluation import METRICS, LongTailMetrics, SampleResults, predicted_classes, register_metric

CLASS_COUNTS = [500, 101, 100, 20, 19, 3]
GROUPS = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def looped(logits, labels):
    hits, in_top5, taken_for, bins = {}, 0, {}, {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda c: -row[c])
        hits.setdefault(label, []).append(order[0] == label)
        in_top5 += label in order[:5]
        taken_for.setdefault(order[0], []).append(label)
        confidence = max(softmax(row))
        place = next(b for b in range(15) if confidence <= (b + 1) / 15)
        bins.setdefault(place, []).append((confidence, order[0] == label))
    per_class = {label: sum(values) / len(values) for label, values in hits.items()}
    result = {"accuracy": sum(map(sum, hits.values())) / len(labels), "top5_accuracy": in_top5 / len(labels)}
    result["mean_class_accuracy"] = sum(per_class.values()) / len(per_class)
    result["worst_class_accuracy"] = min(per_class.values())
    inverses = [1 / value if value else math.inf for value in per_class.values()]
    result["harmonic_mean_accuracy"] = len(inverses) / sum(inverses)
    result["geometric_mean_accuracy"] = math.prod(per_class.values()) ** (1 / len(per_class))
    f1 = []
    for label, values in hits.items():
        right = sum(values)
        precision, recall = right / max(1, len(taken_for.get(label, []))), right / len(values)
        f1.append(2 * precision * recall / (precision + recall) if right else 0)
    result["macro_f1"] = sum(f1) / len(f1)
    result["calibration_error"] = sum(
        abs(sum(c for c, _ in entries) - sum(h for _, h in entries)) for entries in bins.values()
    ) / len(labels)
    for group, classes in GROUPS.items():
        present = [per_class[c] for c in classes if c in per_class]
        if present:
            result[group] = sum(present) / len(present)
    return result


def random_predictions(classes, images=400):
    rng = np.random.default_rng(0)
    labels = rng.choice(classes, size=images)
    return (rng.normal(size=(images, 6)) + 2 * np.eye(6)[labels]).astype(np.float32), labels


@pytest.mark.parametrize("classes", [range(6), [0, 2, 3, 5], [0, 1, 2], [5]], ids=str)
def test_equals_a_loop(classes):
    logits, labels = random_predictions(list(classes))
    got = LongTailMetrics(CLASS_COUNTS)(EvalPrediction(predictions=logits, label_ids=labels))
    assert got == pytest.approx(looped(logits, labels), abs=1e-12)
    assert all(type(value) is float for value in got.values())


def test_tuple_and_classes_give_the_same_as_logits():
    logits, labels = random_predictions(range(6))
    metrics = LongTailMetrics(CLASS_COUNTS)
    expected = metrics(EvalPrediction(predictions=logits, label_ids=labels))
    assert metrics(EvalPrediction(predictions=(logits, np.zeros((400, 8))), label_ids=labels)) == expected
    of_classes = metrics(EvalPrediction(predictions=logits.argmax(1), label_ids=labels))
    assert set(expected) - set(of_classes) == {"top5_accuracy", "calibration_error"}  # these need logits
    assert of_classes == {name: expected[name] for name in of_classes}


def test_equals_scikit_learn_and_torchmetrics():
    rng = np.random.default_rng(5)
    labels = rng.choice([0, 1, 2, 4, 7, 8, 9], size=700)
    logits = rng.normal(size=(700, 10)) + 2 * np.eye(10)[labels]
    got = LongTailMetrics(np.full(10, 50))(EvalPrediction(predictions=logits, label_ids=labels))
    present, predicted = np.unique(labels), logits.argmax(axis=1)
    recalls = recall_score(labels, predicted, labels=present, average=None)
    assert got["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert got["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=np.arange(10)))
    assert got["mean_class_accuracy"] == pytest.approx(recalls.mean())
    assert got["macro_f1"] == pytest.approx(f1_score(labels, predicted, labels=present, average="macro"))
    torchmetrics = pytest.importorskip("torchmetrics")  # lightning brings it
    error = torchmetrics.CalibrationError(task="multiclass", num_classes=10, n_bins=15)
    probabilities = torch.from_numpy(logits).softmax(dim=1)
    assert got["calibration_error"] == pytest.approx(float(error(probabilities, torch.from_numpy(labels))), abs=1e-6)


def test_a_class_that_is_never_right_makes_the_strict_means_zero():
    labels, logits = np.array([0, 1, 2, 3, 4, 5]), np.eye(6)[[0, 1, 2, 3, 4, 4]]
    got = LongTailMetrics(CLASS_COUNTS)(EvalPrediction(predictions=logits, label_ids=labels))
    strict = ("worst_class_accuracy", "harmonic_mean_accuracy", "geometric_mean_accuracy")
    assert [got[name] for name in strict] == [0, 0, 0]
    assert got["mean_class_accuracy"] == pytest.approx(5 / 6)


def test_five_classes_have_no_top_5():
    logits, labels = random_predictions(range(5))
    assert "top5_accuracy" not in LongTailMetrics(CLASS_COUNTS[:5])(
        EvalPrediction(predictions=logits[:, :5], label_ids=labels)
    )


def test_equal_logits_count_for_the_first_class_in_top_1_and_top_5():
    logits = np.zeros((8, 8))
    outcomes = SampleResults.of(logits, np.arange(8), num_classes=8)
    assert outcomes.is_hit.tolist() == [True] + [False] * 7
    assert outcomes.in_top5.tolist() == [True] * 5 + [False] * 3


def test_a_metric_of_ones_own_is_one_function():
    @register_metric("best_class_accuracy")
    def best_class_accuracy(tally):
        return np.nanmax(tally.class_accuracies)

    try:
        logits, labels = random_predictions(range(6))
        metrics = LongTailMetrics(CLASS_COUNTS)
        got = metrics(EvalPrediction(predictions=logits, label_ids=labels))
        assert got["best_class_accuracy"] == metrics.per_class(logits, labels).max()
    finally:
        del METRICS["best_class_accuracy"]


def test_balanced_test_set_makes_group_accuracy_that_of_its_images():
    labels = np.repeat(np.arange(6), 50)
    logits = np.random.default_rng(1).normal(size=(300, 6)) + np.eye(6)[labels]
    got = LongTailMetrics(CLASS_COUNTS)(EvalPrediction(predictions=logits, label_ids=labels))
    assert got["accuracy"] == pytest.approx(got["mean_class_accuracy"])
    for group, classes in GROUPS.items():
        inside = np.isin(labels, classes)
        assert got[group] == pytest.approx((logits.argmax(1) == labels)[inside].mean())


def test_thresholds_move_classes_between_groups():
    labels = np.arange(6)
    logits = np.eye(6)[[0, 1, 0, 0, 4, 5]]
    metrics = LongTailMetrics(CLASS_COUNTS, many=50, few=10)
    got = metrics(EvalPrediction(predictions=logits, label_ids=labels))
    expected = {"accuracy": 4 / 6, "mean_class_accuracy": 4 / 6, "many": 2 / 3, "medium": 1 / 2, "few": 1.0}
    assert {name: got[name] for name in expected} == pytest.approx(expected)


def test_per_class_leaves_out_classes_without_an_image():
    per_class = LongTailMetrics(CLASS_COUNTS).per_class(np.eye(6)[[0, 1, 1, 5]], np.array([0, 0, 1, 4]))
    np.testing.assert_array_equal(per_class, [0.5, 1.0, np.nan, np.nan, 0.0, np.nan])


def test_nan_logits_are_wrong_not_class_zero():
    logits = np.array([[np.nan, 0.0], [1.0, 0.0]])
    assert predicted_classes(logits).tolist() == [-1, 0]
    got = LongTailMetrics([5, 5])(EvalPrediction(predictions=logits, label_ids=np.array([0, 0])))
    assert got["accuracy"] == got["mean_class_accuracy"] == 0.5


def test_errors_name_value_and_place():
    metrics = LongTailMetrics(CLASS_COUNTS)
    with pytest.raises(ValueError, match=r"test labels 0\.\.6 leave 0\.\.5"):
        metrics(EvalPrediction(predictions=np.zeros((2, 7)), label_ids=np.array([0, 6])))
    with pytest.raises(ValueError, match=r"\(3,\) labels and \(2,\) images"):
        metrics(EvalPrediction(predictions=np.zeros((2, 6)), label_ids=np.zeros(3)))
    with pytest.raises(ValueError, match=r"logits of shape \(2, 7\) are not those of 6 classes"):
        metrics(EvalPrediction(predictions=np.zeros((2, 7)), label_ids=np.zeros(2)))
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\)"):
        predicted_classes(np.zeros((2, 3, 4)))
    with pytest.raises(ValueError, match=r"predicted classes 0\.\.9 leave 0\.\.5; give logits"):
        metrics(EvalPrediction(predictions=np.array([0, 9]), label_ids=np.zeros(2)))
    with pytest.raises(ValueError, match=r"predicted classes have the value 0\.25"):
        predicted_classes(np.array([1, 0.25]))
    with pytest.raises(ValueError, match="few=30 is larger than many=20"):
        LongTailMetrics(CLASS_COUNTS, many=20, few=30)


class Linear(torch.nn.Module):
    """One layer with the interface that a Trainer evaluates."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(6, 6)

    def forward(self, pixel_values, labels=None):
        logits = self.layer(pixel_values)
        return SimpleNamespace(loss=torch.nn.functional.cross_entropy(logits, labels), logits=logits).__dict__


def test_inside_a_trainer(tmp_path):
    torch.manual_seed(0)
    model = Linear()
    inputs, labels = torch.randn(40, 6), torch.arange(40) % 6
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(inputs, labels, strict=True)]
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True)
    got = Trainer(model, args, eval_dataset=rows, compute_metrics=LongTailMetrics(CLASS_COUNTS)).evaluate()
    expected = looped(model.layer(inputs).detach(), labels)
    assert {name: got[f"eval_{name}"] for name in expected} == pytest.approx(expected)
