"""The recipes as users run them: real processes, real files."""

import csv
import json
import re
import sys

import pytest
import torch
from PIL import Image
from running import QUICKSTART, ROOT, finetune, run

from ft_focalsam import (
    LongTailClassifier,
)
from ft_focalsam.data import eval_transform, load_image_data
from ft_focalsam.models import load_image_processor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The README's main command, with another output folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = re.search(r"accelerate launch \S+ \S+ recipes/finetune.py \S+", (ROOT / "README.md").read_text())[0]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *command.split()[2:]]
    return run([*launcher, "--output_dir", str(folder)]), folder


def rows_of(output):
    """Name -> five numbers, of the last table in the output."""
    lines = output.rpartition("top-1")[2].splitlines()[2:4]
    return {line.split("  ")[0].strip(): [float(v) for v in line.split()[-5:]] for line in lines}


def test_quickstart_runs_and_improves_on_zero_shot(quickstart):
    result, _ = quickstart
    assert result.returncode == 0, result.stderr[-3000:]
    assert "10 classes" in result.stdout
    assert re.search(r"few\s+< 20\s+5", result.stdout)
    assert re.search(r"Trained parameters: [\d,]+ of [\d,]+ \(\d", result.stdout)
    lines = re.findall(
        r"^step +(\d+)/220  epoch +([\d.]+)  loss +([\d.]+)  lr +\S+  grad norm +\S+  sharpness +\S+  +\S+ left$",
        result.stdout, re.MULTILINE,
    )  # fmt: skip
    assert [int(step) for step, *_ in lines] == list(range(10, 221, 10)) and float(lines[-1][1]) == 20
    assert "Trained 220 steps in " in result.stdout and "skipped" not in result.stdout and "{" not in result.stdout
    assert "validation" not in result.stdout and result.stderr == ""  # no bar in a file, no warning of a library
    rows = rows_of(result.stdout)
    assert rows["zero-shot"][0] > 85
    assert rows["focal_sam"][0] > rows["zero-shot"][0] + 1


def test_quickstart_writes_metrics_table_plot_and_checkpoints(quickstart):
    result, folder = quickstart
    metrics = json.loads((folder / "metrics.json").read_text())
    printed = rows_of(result.stdout)
    for row, values in metrics.items():
        names = ("accuracy", "mean_class_accuracy", "many", "medium", "few")
        assert [round(100 * values[name], 1) for name in names] == pytest.approx(printed[row], abs=0.051)
    with open(folder / "per_class.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["name"] for row in table][:3] == ["zero", "one", "two"]
    counts = [int(row["train_images"]) for row in table]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] / counts[-1] >= 50
    weighted = sum(float(row["accuracy"]) * int(row["test_images"]) for row in table)
    assert weighted / sum(int(row["test_images"]) for row in table) == pytest.approx(metrics["focal_sam"]["accuracy"])
    with Image.open(folder / "accuracy_by_frequency.png") as plot:
        assert plot.width > 600
    assert len(list(folder.glob("checkpoint-*"))) == 2
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert {"model.safetensors", "adapter_model.safetensors", "preprocessor_config.json", "report.md"} <= names
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "focal_sam is right on" in page and "γ (focal_gamma) = 1.5" in page
    assert f"{100 * metrics['focal_sam']['few']:.1f}<small>" in page


def test_what_was_saved_loads_back_and_scores_the_same(quickstart):
    _, folder = quickstart
    model = LongTailClassifier.from_pretrained(folder)
    data = load_image_data("digits")
    transform = eval_transform(load_image_processor(folder))
    images = torch.stack([transform(image) for image in data.test["image"]])
    with torch.no_grad():
        predicted = model(images).logits.argmax(dim=1)
    accuracy = (predicted == torch.tensor(data.test["labels"])).double().mean().item()
    assert accuracy == pytest.approx(json.loads((folder / "metrics.json").read_text())["focal_sam"]["accuracy"])


def test_two_processes_share_a_run(tmp_path):
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    launcher += ["--config_file", "accelerate_configs/multi_cpu.yaml"]
    options = ["--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--output_dir", str(tmp_path)]
    result = run([*launcher, "--main_process_port", "0", "recipes/finetune.py", QUICKSTART, *options])
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("10 classes") == 1
    assert result.stdout.count("focal_sam ") == 1
    epochs = re.findall(r"epoch +([\d.]+)", result.stdout)
    assert len(epochs) == 2 and float(epochs[0]) == pytest.approx(1 / 6, abs=1e-2)  # 344 images in batches of 2 x 32
    with open(tmp_path / "per_class.csv", newline="") as file:
        test_images = sum(int(row["test_images"]) for row in csv.DictReader(file))
    accuracy = json.loads((tmp_path / "metrics.json").read_text())["zero-shot"]["accuracy"]
    assert accuracy * test_images == pytest.approx(round(accuracy * test_images))  # no image counted twice


def test_real_photographs_by_overrides_alone(shared, tmp_path):
    result = finetune(
        "--dataset", shared / "data" / "cifar10", "--backbone", shared / "models" / "dinov2_vits14",
        "--head_start", "class_means", "--imbalance_factor", 100, "--max_train_per_class", 20, "--max_test_per_class",
        2, "--image_size", 56, "--augmentation", "crop_flip", "--max_steps", 2, "--save_strategy", "no",
        "--per_device_train_batch_size", 8, "--output_dir", tmp_path,
    )  # fmt: skip
    assert result.returncode != 0  # imbalance 100 of 20 images leaves the rarest class none
    assert "Error: " in result.stderr
    result = finetune(
        "--dataset", shared / "data" / "cifar10", "--backbone", shared / "models" / "dinov2_vits14",
        "--head_start", "class_means", "--imbalance_factor", 20, "--max_train_per_class", 40, "--max_test_per_class",
        2, "--image_size", 56, "--augmentation", "crop_flip", "--max_steps", 2, "--save_strategy", "no",
        "--per_device_train_batch_size", 8, "--output_dir", tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "class means" in result.stdout
    assert (tmp_path / "model.safetensors").stat().st_size < 2**20


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--rho", "-0.1"], "Error: rho is -0.1"),
        (["--focal_gamma", "-1"], "Error: focal_gamma is -1.0; set it to 0 or more"),
        (["--focal_gama", "1"], "Unknown key 'focal_gama' on the command line; did you mean 'focal_gamma'?"),
        (["--label_column", "klass", "--dataset", "{folder}"], "There is no column 'klass'"),
        (["--dataset", "/does/not/exist"], "The data set folder '/does/not/exist' does not exist"),
        (["--backbone", "/does/not/exist"], "The backbone folder '/does/not/exist' does not exist"),
        (["--backbone", "{vit}", "--head_start", "text"], "has no text tower to start a head from class names"),
        (["--head", "cosin"], "Unknown head 'cosin'; choose one of linear, cosine"),
        (["--tuning", "lorra"], "Unknown tuning method 'lorra'"),
        (["--augmentation", "flip"], "'flip'"),
        (["--metric_for_best_model", "accuracyy"], "metric_for_best_model is 'accuracyy'; did you mean 'accuracy'?"),
        (["--cache_resized", "/proc/x"], "cannot be written to"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_with_one_sentence_before_training(overrides, message, tmp_path):
    folder = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8), (index * 40, 0, 0)).save(folder / split / name / f"{index}.png")
    if "{vit}" in overrides:
        save_tiny_vit(tmp_path / "vit")
    values = [value.format(folder=folder, vit=tmp_path / "vit") for value in overrides]
    result = finetune(*values, "--output_dir", tmp_path / "out")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()


def save_tiny_vit(folder):
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def test_an_image_folder_of_the_users_own(tmp_path):
    """Class folders only, with a space and an umlaut in their names."""
    for index, name in enumerate(["ein Stück", "größer", "plain"]):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(12 - 4 * index):
            Image.new("RGB", (20, 16), (80 * index, number, 40)).save(tmp_path / "images" / name / f"{number} x.png")
    result = finetune(
        "--dataset", tmp_path / "images", "--imbalance_factor", 2, "--test_fraction", "0.25", "--max_steps", 2,
        "--save_strategy", "no", "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    with open(tmp_path / "out" / "per_class.csv", newline="", encoding="utf-8") as file:
        assert {row["name"] for row in csv.DictReader(file)} == {"ein Stück", "größer", "plain"}
