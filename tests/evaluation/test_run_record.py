"""A record of runs says what the runs said, and takes no run of other images."""

from dataclasses import replace

import numpy as np
import pytest

from ft_focalsam.evaluation import EvalResult, Predictions, RunRecord

NAMES = ["owl", "newt", "carp"]
COUNTS = [300, 40, 5]


def predictions(seed: int) -> Predictions:
    random = np.random.default_rng(seed)
    labels = np.arange(30) % 3
    return Predictions.of_logits(
        random.normal(size=(30, 3)) + 2 * np.eye(3)[labels], labels, ids=list(map(str, range(30))), class_names=NAMES
    )


def test_what_is_read_back_scores_as_the_run_did(tmp_path):
    path, runs = tmp_path / "folder" / "record.safetensors", {f"sam/seed_{seed}": predictions(seed) for seed in (0, 1)}
    record = RunRecord(path)
    for name, said in runs.items():
        record.add(name, said, COUNTS, {"seconds": 1.5})
    again = RunRecord(path)
    assert "none/seed_0" not in again
    for name, said in runs.items():
        assert name in again and again.made(name) == {"seconds": 1.5}
        before, after = (EvalResult(each, np.array(COUNTS)) for each in (said, again.predictions(name)))
        assert after.metrics == {k: v for k, v in before.metrics.items() if k in after.metrics}
        assert {"accuracy", "mean_class_accuracy", "many", "medium", "few"} <= set(after.metrics)
        assert after.intervals == {k: v for k, v in before.intervals.items() if k in after.intervals}
        assert list(after.warnings) == list(before.warnings)


def test_an_image_without_a_prediction_stays_one(tmp_path):
    said = predictions(0)
    said.log_probabilities[4] = np.nan
    record = RunRecord(tmp_path / "record.safetensors")
    record.add("sam/seed_0", said, COUNTS, {})
    assert record.predictions("sam/seed_0").outcomes().predicted[4] == -1


def test_predicted_classes_are_selected_and_not_saved(tmp_path):
    said = predictions(0)
    record = RunRecord(tmp_path / "record.safetensors")
    record.add("sam/seed_0", said, COUNTS, {})
    kept, rows = record.predictions("sam/seed_0"), np.array([7, 2, 9])
    found = kept.select(rows)
    assert found.ids == ["7", "2", "9"]
    assert np.array_equal(found.outcomes().predicted, said.outcomes().predicted[rows])
    with pytest.raises(ValueError, match="only the predicted classes were kept"):
        kept.save(tmp_path / "predictions.safetensors")


@pytest.mark.parametrize("part", ["ids", "labels", "class_names"])
def test_runs_on_other_images_are_refused(tmp_path, part):
    record = RunRecord(tmp_path / "record.safetensors")
    record.add("sam/seed_0", predictions(0), COUNTS, {})
    before = record.path.read_bytes()
    other = {"ids": list("abcdefghijklmnopqrstuvwxyzABCD"), "labels": np.zeros(30, int), "class_names": list("xyz")}
    with pytest.raises(ValueError, match="cannot be paired"):
        record.add("sam/seed_1", replace(predictions(1), **{part: other[part]}), COUNTS, {})
    assert record.path.read_bytes() == before and "sam/seed_1" not in record


def test_other_training_images_are_refused(tmp_path):
    record = RunRecord(tmp_path / "record.safetensors")
    record.add("sam/seed_0", predictions(0), COUNTS, {})
    with pytest.raises(ValueError, match="'sam/seed_1' has other numbers of training images"):
        record.add("sam/seed_1", predictions(1), [300, 40, 6], {})


def test_another_file_is_no_record(tmp_path):
    path = tmp_path / "predictions.safetensors"
    predictions(0).save(path)
    for content in (path.read_bytes(), b"text"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no record of runs"):
            RunRecord(path)
