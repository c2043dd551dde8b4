"""The recipe chooses by images put aside for it, never by those it reports on."""

import json

import numpy as np
import pytest
from forging import Forge
from PIL import Image
from running import finetune

from ft_focalsam.data import DataArguments, class_counts, label_array, prepare_images
from ft_focalsam.evaluation import Predictions

pytestmark = pytest.mark.slow

CHOOSING = ("--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 3)


@pytest.fixture(scope="module")
def forge(tmp_path_factory):
    forge = Forge(tmp_path_factory.mktemp("forge"))
    yield forge
    forge.end()


def test_a_part_of_each_class_is_put_aside_before_the_cut():
    whole = prepare_images(DataArguments())
    data = prepare_images(DataArguments(validation_fraction=0.2, imbalance_factor=20))
    counts, held, train = (class_counts(label_array(d), 10) for d in (whole.train, data.validation, data.train))
    assert (held == np.rint(0.2 * counts)).all() and train[0] / train[-1] == 20
    pixels = [{bytes(image.tobytes()) for image in part["image"]} for part in (data.train, data.validation, data.test)]
    assert not pixels[0] & pixels[1] and not pixels[2] & (pixels[0] | pixels[1])


def test_the_best_checkpoint_is_that_of_the_validation_images(forge):
    options = ("--validation_fraction", 0.2, *CHOOSING, "--save_total_limit", 9, "--learning_rate", 1)
    run = forge.run("chosen", *options, "--metric_for_best_model", "accuracy", "--max_test_per_class", 3)
    assert run.statuses == [0], run.log[-3000:]
    assert (
        "30 test images, 10 classes, 250 put aside for validation" in run.log and "for reporting alone" not in run.log
    )
    state = json.loads((run.folder / "checkpoint-9" / "trainer_state.json").read_text())
    evaluated = {entry["step"]: entry for entry in state["log_history"] if "eval_accuracy" in entry}
    best = max(evaluated, key=lambda step: evaluated[step]["eval_accuracy"])
    share = evaluated[best]["eval_accuracy"] * 250
    assert share == pytest.approx(round(share))  # of the 250 images, not of the 30
    assert run.weights == (run.folder / f"checkpoint-{best}" / "model.safetensors").read_bytes()
    predictions = Predictions.load(next((run.folder / "predictions").iterdir()))
    assert len(predictions.labels) == 30  # the table is of the test set


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (CHOOSING, "load_best_model_at_end is True, which chooses by the images"),
        (("--metric_for_best_model", "accuracy"), "metric_for_best_model is 'accuracy', which chooses by"),
        (("--lr_scheduler_type", "reduce_lr_on_plateau", "--eval_strategy", "epoch"),
         "lr_scheduler_type is 'reduce_lr_on_plateau', which chooses by"),
        (("--metric_for_best_model", "acuracy", "--validation_fraction", 0.2), "'acuracy'; did you mean 'accuracy'?"),
        (("--validation_fraction", 1), "validation_fraction is 1.0; set it to a number above 0 and below 1"),
        (("--num_train_epochs", 0, "--max_steps", -1), "num_train_epochs is 0.0; set it to a number above 0, or "),
        (("--resume_from_checkpoint", "nowhere"), "The checkpoint 'nowhere' cannot be resumed from: there is no such"),
        (("--max_steps", 0), "max_steps is 0; set it to 1 or more, or to -1"),
        (("--image_size", 30), "image_size is 30, which the patches of the backbone, 8 pixels a side, do not fill"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_training(options, told, forge):
    run = forge.run("refused", *options)
    errors = [line for line in run.log.splitlines() if line.startswith("Error: ")]
    assert run.statuses == [1] and len(errors) == 1 and told in errors[0], run.log[-3000:]
    assert "Traceback" not in run.log and list(run.folder.glob("*")) == []


def test_evaluating_on_the_test_set_while_training_is_said_to_be_reporting(forge):
    run = forge.run("reporting", "--eval_strategy", "steps", "--eval_steps", 3)
    assert run.statuses == [0], run.log[-3000:]
    assert run.log.count("While training, the test set is evaluated on: for reporting alone") == 1


def test_a_class_too_small_for_a_part_of_it_is_named(tmp_path):
    for name, images in (("frequent", 10), ("pair", 2), ("single", 1)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(images):
            Image.new("RGB", (16, 16), (index * 20, 0, 0)).save(tmp_path / "images" / name / f"{index}.png")
    result = finetune(
        "--dataset", tmp_path / "images", "--imbalance_factor", "null", "--test_fraction", 0.2,
        "--validation_fraction", 0.25, "--max_steps", 1, "--save_strategy", "no", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    told = "set has no image of 2 of 3 classes, too small to give {} of their images, which all go to training: "
    assert "The test " + told.format(0.2) + "'pair' (2), 'single' (1)." in result.stdout
    assert "The validation " + told.format(0.25) + "'pair' (2), 'single' (1)." in result.stdout
