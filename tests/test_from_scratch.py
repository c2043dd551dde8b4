"""Training from scratch by the recipe: resumable, refused where it makes no sense."""

import json

import pytest
import torch
from running import ROOT, python
from safetensors.torch import load_file

from ft_focalsam import LongTailClassifier
from ft_focalsam.cli import compare
from ft_focalsam.hub.card import make_card

pytestmark = pytest.mark.slow

CONFIG = "recipes/configs/cifar10_lt/resnet32.yaml"
SMALL = ["--dataset", "digits", "--backbone", "scratch:test_resnet", "--image_size", "32", "--learning_rate", "0.02"]
SMALL += ["--max_train_per_class", "20", "--imbalance_factor", "5", "--max_test_per_class", "10"]
SMALL += ["--per_device_train_batch_size", "8", "--save_total_limit", "9"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run by the command, and the same one stopped after two of its four epochs and resumed."""
    folder = tmp_path_factory.mktemp("scratch")
    arguments = [CONFIG, *SMALL, "--num_train_epochs", "4"]
    whole = python("recipes/train_from_scratch.py", *arguments, "--output_dir", folder / "whole")
    assert whole.returncode == 0, whole.stderr[-3000:]
    return folder, arguments, whole


def test_the_recipe_learns_and_says_how_fast(trained):
    folder, _, whole = trained
    assert " images a second; 4 epochs took " in whole.stdout
    assert "Trained parameters" in whole.stdout
    assert "(100.00%)" in whole.stdout
    metrics = json.loads((folder / "whole" / "metrics.json").read_text())
    assert list(metrics) == ["random weights", "focal_sam"]
    assert metrics["focal_sam"]["accuracy"] > metrics["random weights"]["accuracy"] + 0.2
    card = str(make_card(folder / "whole"))
    assert "trained from scratch on long-tailed images by Focal-SAM" in card
    assert "base_model" not in card
    assert "the backbone keeps its own" not in card
    loaded = LongTailClassifier.from_pretrained(folder / "whole")
    assert float(loaded.backbone.bn1.running_mean.abs().max()) > 0


def test_a_run_that_was_stopped_resumes_to_the_same_weights_and_statistics(trained):
    folder, arguments, _ = trained
    checkpoints = sorted((folder / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 4
    resumed = [*arguments, "--resume_from_checkpoint", str(checkpoints[1])]
    result = python("recipes/train_from_scratch.py", *resumed, "--output_dir", folder / "resumed")
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (load_file(folder / name / "model.safetensors") for name in ("whole", "resumed"))
    assert first.keys() == second.keys()
    assert any("running_var" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "tiny_clip", "--image_size", "64"], "The backbone 'tiny_clip' is pretrained; train it with"),
        (
            ["--dataloader_num_workers", "2"],
            "on_device keeps all images on the device; set dataloader_num_workers to 0",
        ),
        (["--augmentation", "crop_flip"], "The augmentation 'crop_flip' is not one of those on the device"),
    ],
)
def test_what_does_not_go_together(tmp_path, arguments, message):
    result = python("recipes/train_from_scratch.py", CONFIG, *SMALL, *arguments, "--output_dir", tmp_path)
    assert result.returncode == 1
    assert f"Error: {message}" in result.stderr
    assert "Traceback" not in result.stderr


def test_runs_side_by_side_are_those_of_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [str(ROOT / CONFIG), *SMALL, "--max_steps", "2", "--methods", "none", "--seeds", "0", "1"]
    compare.main([*arguments, "--output_dir", str(tmp_path / "one")])
    compare.main([*arguments, "--output_dir", str(tmp_path / "two"), "--jobs", "2"])
    for seed in ("seed_0", "seed_1"):
        one, two = (load_file(tmp_path / name / "none" / seed / "model.safetensors") for name in ("one", "two"))
        assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert "run" in (tmp_path / "two" / "none" / "seed_0_log.txt").read_text()
    with pytest.raises(ValueError, match="--jobs is 0; set it to 1 or more"):
        compare.main([*arguments, "--output_dir", str(tmp_path / "three"), "--jobs", "0"])
