"""The features that heads are retrained on, and runs of the quickstart that are retrained, as users start it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from running import finetune, processes, python, ranks
from safetensors.torch import load_file

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.data import DataArguments, TransformedImages, eval_transform, prepare_images
from ft_focalsam.evaluation import Predictions
from ft_focalsam.models import load_image_processor
from ft_focalsam.retraining.features import FrozenFeatures

RETRAIN = ("ft-focalsam", "retrain")
SHORT = (
    *("--max_steps", "3", "--imbalance_factor", "10", "--max_train_per_class", "20", "--learning_rate", "0.05"),
    *("--disable_tqdm", "true", "--save_strategy", "no"),
)


@pytest.fixture(scope="module")
def digits():
    return prepare_images(
        DataArguments(dataset="digits", imbalance_factor=10, max_train_per_class=12, validation_fraction=0.1)
    )


def expected_features(model, images) -> torch.Tensor:
    """Image by image."""
    images = TransformedImages(images, eval_transform(load_image_processor("tiny_clip")))
    with torch.no_grad():
        return torch.cat([model.eval().features(image["pixel_values"][None]) for image in images])


@pytest.mark.parametrize("tuning", ["lora", "norms", "lora,clip_adapter", "full"])
def test_features_are_those_of_the_frozen_backbone(tuning, digits, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone("tiny_clip", digits.class_names)
    apply_tuning(model, tuning, TuningOptions(lora_dropout=0.3))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    flags = [p.requires_grad for p in model.parameters()]
    data = FrozenFeatures(model, digits, batch_size=32)
    assert data.counts.tolist() == np.bincount(digits.train["labels"]).tolist()
    for split in ("train", "validation"):
        features, labels = data.of(split)
        part = digits.parts[split]
        assert labels.tolist() == list(part["labels"])
        torch.testing.assert_close(features, expected_features(model, part), rtol=1e-4, atol=1e-5)
    assert [p.requires_grad for p in model.parameters()] == flags
    if tuning == "lora":  # the scale of the update is no weight, and is counted in
        files = set(tmp_path.rglob("features-*"))
        for module in model.backbone.modules():
            if getattr(module, "scaling", None):
                module.scaling = {name: 2 * scale for name, scale in module.scaling.items()}
        model.backbone.active_peft_config.lora_alpha *= 2
        features, _ = data.of("train")
        assert len(set(tmp_path.rglob("features-*")) - files) == 1
        torch.testing.assert_close(features, expected_features(model, digits.train), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("run") / "linear")
    result = finetune("--output_dir", folder, "--head", "linear", "--validation_fraction", "0.2", *SHORT)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def cosine_run(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("run") / "cosine")
    result = finetune("--output_dir", folder, *SHORT)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def error_of(result) -> str:
    assert result.returncode == 1, result.stdout + result.stderr[-3000:]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options", "title"),
    [
        ("crt", ("--epochs", "3"), "cRT"),
        ("lws", (), "LWS"),
        ("tau_norm", (), "tau-normalised"),
        ("cc_sam", ("--strength", "0.5"), "CC-SAM, second stage"),
    ],
)
def test_a_retrained_run_is_a_run(method, options, title, run, tmp_path):
    folder = tmp_path / "retrained"
    result = python(*RETRAIN, run, "--method", method, "--output", folder, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    assert title in result.stdout and "report.html" in result.stdout
    before, after = load_file(f"{run}/model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    record = json.loads((folder / "run.json").read_text())
    assert record["retraining"]["method"] == method and record["retraining"]["kind"] == title
    assert record["settings"]["imbalance_factor"] == 10 and record["command"] is None
    assert [row.rpartition("/")[2] for row in json.loads((folder / "metrics.json").read_text())] == ["linear", title]
    evaluated = tmp_path / "evaluated"
    result = python("ft-focalsam", "evaluate", folder, "--datasets", "digits", "--output_dir", evaluated)
    assert result.returncode == 0, result.stderr[-3000:]
    own = Predictions.load(folder / "predictions" / "digits.safetensors")
    every = Predictions.load(evaluated / "predictions" / "digits.safetensors")
    rows = [every.ids.index(name) for name in own.ids]
    assert (abs(own.log_probabilities - every.log_probabilities[rows]) < 1e-4).all()
    again = python(*RETRAIN, folder, "--method", "lws", "--output", tmp_path / "again")
    assert again.returncode == 0, again.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_retrain_as_one_does(run, tmp_path):
    command = (run, "--method", "crt", "--epochs", "3")
    assert python(*RETRAIN, *command, "--output", tmp_path / "one").returncode == 0
    results = processes(ranks(2, ACCELERATE_USE_CPU="true"), *RETRAIN, *command, "--output", tmp_path / "two")
    assert [result.returncode for result in results] == [0, 0], results[0].stderr[-3000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(value, two[name], rtol=1e-5, atol=1e-6) for name, value in one.items())


@pytest.mark.slow
def test_what_cannot_be_retrained_is_refused(run, cosine_run, tmp_path):
    def said(*arguments):
        return error_of(python(*RETRAIN, *arguments, "--output", tmp_path / "out"))

    assert "--tau is no option of crt, which takes epochs, train_batch_size," in said(
        run, "--method", "crt", "--tau", 1
    )
    assert "The head 'cosine' does not depend on the lengths" in said(cosine_run, "--method", "lws")
    assert "learning_rate is -1.0; set it to a number above 0" in said(run, "--method", "lws", "--learning_rate", -1)
    message = said(run, "--method", "crt", "--datset", "digits")
    assert "Unknown key 'datset' on the command line; did you mean 'dataset'?" in message
    record = json.loads(Path(run, "run.json").read_text())
    record["settings"]["validation_fraction"] = None
    other = tmp_path / "other"
    model = LongTailClassifier.from_pretrained(run)
    model.save_pretrained(other)
    (other / "run.json").write_text(json.dumps(record))
    assert "train with --validation_fraction 0.1, or give --tau." in said(other, "--method", "tau_norm")
    assert not (tmp_path / "out").exists()
