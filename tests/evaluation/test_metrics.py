"""Long-tailed metrics against a plain loop over the images."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from ft_focalsam.evaluation import LongTailMetrics, predicted_classes

CLASS_COUNTS = [500, 101, 100, 20, 19, 3]
GROUPS = {"many": [0, 1], "medium": [2, 3], "few": [4, 5]}


def looped(logits, labels):
    hits = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        hits.setdefault(label, []).append(max(range(len(row)), key=row.__getitem__) == label)
    per_class = {label: sum(values) / len(values) for label, values in hits.items()}
    result = {"accuracy": sum(map(sum, hits.values())) / len(labels)}
    result["mean_class_accuracy"] = sum(per_class.values()) / len(per_class)
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
    assert metrics(EvalPrediction(predictions=logits.argmax(1), label_ids=labels)) == expected


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
    assert got == pytest.approx(
        {"accuracy": 4 / 6, "mean_class_accuracy": 4 / 6, "many": 2 / 3, "medium": 1 / 2, "few": 1.0}
    )


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
    with pytest.raises(ValueError, match=r"shape \(2, 3, 4\)"):
        predicted_classes(np.zeros((2, 3, 4)))
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
