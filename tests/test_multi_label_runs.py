"""A run on images of several classes, from its recipe to predictions, as users start it."""

import csv
import json
import re
import sys

import numpy as np
import pytest
import torch
from composed_digits import write_images
from running import finetune
from running import run as run_command
from safetensors.torch import load_file
from scipy.stats import ttest_rel
from sklearn.metrics import average_precision_score

from ft_focalsam import ImageClassifier, LongTailClassifier
from ft_focalsam.cli import compare, evaluate, lt_soups, predict, retrain, train
from ft_focalsam.cli.automatic import choose
from ft_focalsam.data import TransformedImages, eval_transform, label_array, load_image_data
from ft_focalsam.evaluation import Predictions
from ft_focalsam.hub.card import make_card
from ft_focalsam.models import load_image_processor

pytestmark = pytest.mark.slow
RECIPE = "recipes/configs/multi_label.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The recipe, shorter, choosing its best epoch by the mAP of validation images."""
    folder = tmp_path_factory.mktemp("multi_label")
    choosing = ["--validation_fraction", "0.1", "--metric_for_best_model", "mAP", "--load_best_model_at_end", "true"]
    choosing += ["--save_strategy", "epoch", "--eval_strategy", "epoch", "--save_total_limit", "1"]
    result = finetune("--output_dir", folder, "--num_train_epochs", 10, *choosing, config=RECIPE)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder, result.stdout


def test_map_rises_and_is_everywhere(run):
    folder, said = run
    metrics = json.loads((folder / "metrics.json").read_text())
    before, after = metrics["zero-shot"], metrics["focal_sam"]
    assert before["mAP"] < 0.4 and after["mAP"] > before["mAP"] + 0.15
    assert {"many", "medium", "few"} <= set(after) and "accuracy" not in after and "intervals" not in after
    assert re.search(r"validation  mAP +\d+\.\d  many +\d", said)
    assert re.search(r"^run +mAP +many +medium +few$", said, re.MULTILINE)
    assert "10 classes, several an image" in said
    with (folder / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert np.mean([float(row["average_precision"]) for row in rows]) == pytest.approx(after["mAP"])
    assert int(rows[0]["train_images"]) > 20 * int(rows[9]["train_images"])
    assert f"| mAP | {100 * before['mAP']:.1f} | {100 * after['mAP']:.1f} |" in (folder / "report.md").read_text()


def test_the_saved_classifier_gives_the_same_logits(run):
    folder, _ = run
    model, data = LongTailClassifier.from_pretrained(folder), load_image_data("composed_digits")
    assert model.config.problem_type == "multi_label_classification"
    images = TransformedImages(data.test, eval_transform(load_image_processor("tiny_clip")))
    with torch.no_grad():
        logits = model(torch.stack([images[row]["pixel_values"] for row in range(len(images))])).logits.numpy()
    saved = Predictions.load(next((folder / "predictions").glob("*.safetensors")))
    np.testing.assert_allclose(saved.log_probabilities, logits, atol=1e-4)
    labels = label_array(data.test)
    found = np.mean([average_precision_score(labels[:, k], logits[:, k]) for k in range(10)])
    assert json.loads((folder / "metrics.json").read_text())["focal_sam"]["mAP"] == pytest.approx(found, abs=1e-4)


def test_evaluate_finds_the_same(run, tmp_path):
    folder, _ = run
    evaluate.main([str(folder), "--datasets", "composed_digits", "--output_dir", str(tmp_path)])
    (found,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    expected = json.loads((folder / "metrics.json").read_text())["focal_sam"]
    assert found["mAP"] == pytest.approx(expected["mAP"], abs=1e-4) and found["few"] == pytest.approx(expected["few"])
    with pytest.raises(ValueError, match="have one class each, and the model is for several classes an image"):
        evaluate.main([str(folder), "--datasets", "digits", "--output_dir", str(tmp_path / "x")])


def test_predict_gives_all_classes_above_the_threshold(run, tmp_path):
    folder, _ = run
    write_images(tmp_path / "images", train=0, test=12)
    predict.main([str(folder), str(tmp_path / "images"), "--output", str(tmp_path / "p.csv"), "--threshold", "0.4"])
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    classify = ImageClassifier.from_pretrained(folder)
    for row in rows:
        guesses = classify(tmp_path / "images" / row["path"], top_k=10)
        assert row["labels"] == "|".join(guess["label"] for guess in guesses if guess["score"] >= 0.4)
        assert float(row["probability_1"]) == pytest.approx(guesses[0]["score"], abs=1e-5)
    scores = [guess["score"] for guess in classify(tmp_path / "images" / rows[0]["path"], top_k=10)]
    logits = classify.model(classify.transform(_opened(tmp_path / "images" / rows[0]["path"]))[None]).logits[0]
    assert sorted(scores) == pytest.approx(sorted(logits.sigmoid().tolist()), abs=1e-5)


def _opened(path):
    from PIL import Image

    return Image.open(path)


def test_the_card_says_several_classes(run):
    card = str(make_card(run[0]))
    assert "An image classifier for 10 classes, several an image" in card
    assert "- multi-label\n" in card and "Mean average precision, mAP" in card and "Accuracy" not in card
    assert "![Average precision of each class" in card
    images = json.loads((run[0] / "run.json").read_text())["data"]["images"]
    assert f"{images} training images of 10 classes" in card and images < 600


def test_methods_are_compared_by_average_precision(tmp_path, capsys):
    options = ["--output_dir", str(tmp_path), "--methods", "none", "sam", "--max_steps", "3", "--learning_rate", "0.1"]
    compare.main([RECIPE, "--seeds", "0", "1", "2", *options])
    record = json.loads((tmp_path / "comparison.json").read_text())
    runs = [
        [list(json.loads((tmp_path / m / f"seed_{s}" / "metrics.json").read_text()).values())[-1] for s in range(3)]
        for m in ("none", "sam")
    ]
    for metric in ("mAP", "many", "medium", "few"):
        plain, sam = (np.array([each[metric] for each in of_method]) for of_method in runs)
        found, paired = record["SAM"]["differences"][metric], ttest_rel(sam, plain).confidence_interval(0.95)
        assert found["mean"] == pytest.approx((sam - plain).mean()) and found["mean"] != 0
        assert found["interval"] == pytest.approx((paired.low, paired.high))
    table = capsys.readouterr().out
    assert "| % | mAP | many-shot | medium-shot | few-shot | time / plain |" in table
    page = (tmp_path / "comparison.md").read_text()
    assert "95 % intervals for other trainings but not for other test images" in page
    assert re.search(r"SAM against plain: [+−][\d.]+ points mAP \(95 % interval .* of 10 classes; highest: ", page)
    assert "Average precision in %, differences in points." in page and "Accuracy" not in page.replace(
        "Accuracy and", ""
    )
    compare.main([RECIPE, "--seeds", "0", *options])
    assert (
        "points mAP, which may be chance, as there are fewer than three seeds; highest: "
        in (tmp_path / "comparison.md").read_text()
    )


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (retrain, ["--method", "crt", "--output"], "have several classes each, and second stages are for one"),
        (
            compare,
            [RECIPE, "--record", "new.safetensors", "--output_dir"],
            "'new.safetensors', which keeps one predicted class an image",
        ),
        (
            compare,
            [RECIPE, "--methods", "none+crt", "--output_dir"],
            "for several classes an image, and second stages are for one",
        ),
        (lt_soups, [RECIPE, "--output_dir"], "and LT-Soups takes images away class by class"),
        (train, [RECIPE, "--metric_for_best_model", "accuracy", "--output_dir"], "metric_for_best_model.*'accuracy'"),
        (train, [RECIPE, "--loss", "cross_entropy", "--output_dir"], "these images have several; set it to bce, asym"),
        (train, [RECIPE, "--dataset", "digits", "--output_dir"], "these images have one; set it to cross_entropy"),
        (train, [RECIPE, "--imbalance_factor", "10", "--output_dir"], "imbalance_factor is 10, which takes images"),
        (train, [RECIPE, "--head_start", "linear_probe", "--output_dir"], "'linear_probe', which fits one class"),
        (train, [RECIPE, "--train_sampler", "square_root", "--output_dir"], "train_sampler is 'square_root'"),
    ],
)
def test_what_is_for_one_class_is_refused(run, command, words, message, tmp_path):
    first = [str(run[0])] if command is retrain else []
    with pytest.raises(ValueError, match=message):
        command.main([*first, *words, str(tmp_path / "new")])


def test_a_folder_with_a_list_is_trained_by_the_distribution_balanced_loss(tmp_path):
    write_images(tmp_path, separator=None)
    choice = choose(tmp_path, {"backbone": "tiny_clip"})
    assert choice.settings["loss"] == "distribution_balanced" and choice.data.is_multi_label
    assert any("images have several classes" in reason for reason in choice.reasons)
    assert any(f"{len(choice.data.validation)} of the training images" in reason for reason in choice.reasons)


def test_two_processes_do_what_one_does(tmp_path):
    options = ["--max_steps", 3, "--logging_steps", 1, "--optim", "sgd", "--learning_rate", 0.1]
    one = finetune("--output_dir", tmp_path / "one", *options, config=RECIPE)
    assert one.returncode == 0, one.stderr[-3000:]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    launcher += ["--config_file", "accelerate_configs/multi_cpu.yaml", "recipes/finetune.py", RECIPE]
    halved = [*options, "--per_device_train_batch_size", 16, "--output_dir", tmp_path / "two"]
    two = run_command([*launcher, *map(str, halved)])
    assert two.returncode == 0, two.stderr[-3000:]
    weights, halves = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    before = LongTailClassifier.from_backbone("tiny_clip", [str(digit) for digit in range(10)]).state_dict()
    moved = {name: (value - before[name]).abs().max() for name, value in weights.items() if name in before}
    assert max(moved.values()) > 1e-4
    for name, value in weights.items():
        torch.testing.assert_close(halves[name], value, rtol=0, atol=1e-5, msg=name)
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text())["focal_sam"] for name in ("one", "two"))
    assert two["mAP"] == pytest.approx(one["mAP"], abs=1e-3) and two["images"] == one["images"]
