"""The sentence at the top of a report, and which classes it calls unreliable."""

import numpy as np
import pytest
from scipy.stats import binomtest

from ft_focalsam.evaluation import EvalResult, Predictions
from ft_focalsam.evaluation.report.blocks import Table
from ft_focalsam.evaluation.report.summary import summary, unreliable_classes

NAMES = ["sure", "low", "rare", "untested", "barely"]
# Of each class: training images, test images, those that are right.
TRAINED, TESTED, RIGHT = [500, 300, 5, 4, 80], [100, 50, 40, 0, 6], [98, 20, 10, 0, 6]


def verdict_of(trained=TRAINED, tested=TESTED, right=RIGHT, **settings):
    labels = np.repeat(np.arange(len(tested)), tested)
    rank = np.concatenate([np.arange(count) for count in tested])
    predicted = np.where(rank < np.array(right)[labels], labels, (labels + 1) % len(tested))
    logits, names = 5 * np.eye(len(tested))[predicted], NAMES[: len(tested)]
    ids = [str(row) for row in range(len(labels))]
    predictions = Predictions.of_logits(logits, labels, ids=ids, class_names=names, dataset="d")
    return EvalResult(predictions, None if trained is None else np.array(trained), **settings)


def test_unreliable_classes_against_their_definition():
    overall = sum(RIGHT) / sum(TESTED)
    expected = {}
    for label, (trained, tested, right) in enumerate(zip(TRAINED, TESTED, RIGHT, strict=True)):
        reasons = []
        if tested and (right / tested < 0.5 or binomtest(right, tested).proportion_ci(0.95, "exact").high < overall):
            reasons.append("low accuracy")
        if tested < 10:
            reasons.append(f"{tested} test images" if tested else "no test image")
        if reasons and trained < 20:
            reasons.append(f"{trained} training images")
        if reasons:
            expected[label] = tuple(reasons)
    found = unreliable_classes(verdict_of())
    assert {each.label: each.reasons for each in found} == expected
    assert [NAMES[each.label] for each in found] == ["rare", "low", "barely", "untested"]
    assert [each.remedy for each in found] == [
        "add training images",
        "see its mistakes: wrong labels, or classes too alike",
        "test on more images of it",
        "test on more images of it",
    ]


def test_without_training_counts_nothing_is_called_rare():
    reasons = {NAMES[each.label]: each.reasons for each in unreliable_classes(verdict_of(trained=None))}
    assert reasons["rare"] == ("low accuracy",) and reasons["untested"] == ("no test image",)


def test_the_sentence_tells_share_images_interval_gain_and_classes():
    first, last = verdict_of(right=[90, 20, 5, 0, 6]), verdict_of()
    lead, table, *_ = summary({"before": first, "after": last})
    low, high = last.intervals["accuracy"]
    assert lead.text.startswith(
        f"after is right on 68.4 % of 196 test images (95 % interval {100 * low:.1f} to {100 * high:.1f}), "
        f"{100 * (134 - 121) / 196:.1f} points more ("
    )
    assert "than before. 4 of 5 classes are unreliable: rare (low accuracy, 5 training images); low (" in lead.text
    assert isinstance(table, Table) and [row[0] for row in table.rows] == ["rare", "low", "barely", "untested"]
    assert table.rows[0][3] == "untested (75.0 %)"  # what its images are taken for


def test_a_difference_that_may_be_chance_and_no_unreliable_class_are_told():
    tested = [60, 60]
    runs = {"a": verdict_of([200, 200], tested, [55, 55]), "b": verdict_of([200, 200], tested, [55, 54])}
    (lead,) = summary(runs)
    assert "0.8 points less, which may be chance, (" in lead.text
    assert lead.text.endswith(
        "None of its 2 classes is unreliable: each has 10 test images or more, and none is clearly worse than the "
        "others."
    )


@pytest.mark.parametrize("number", [6, 12])
def test_many_unreliable_classes_are_counted(number):
    tested = [4] * number
    names = [f"c{label}" for label in range(number)]
    labels = np.repeat(np.arange(number), tested)
    ids = list(map(str, range(len(labels))))
    predictions = Predictions.of_logits(5 * np.eye(number)[labels], labels, ids=ids, class_names=names)
    lead, table, *rest = summary({"run": EvalResult(predictions)}, dataset="photos")
    assert "test images of photos (95 %" in lead.text and lead.text.endswith(f"; and {number - 5} others.")
    assert len(table.rows) == min(number, 10)
    assert [block.text for block in rest] == (["And 2 others, which the table of all classes has."] if rest else [])
    assert bool(rest) == (number > 10)
