"""All settings chosen for real folders of images."""

import os
from dataclasses import fields

import numpy as np
import pytest
import torch
from running import python

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.automatic import choose
from ft_focalsam.cli.automatic.machine import Machine, this_machine
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import class_counts, label_array

GIB = 2**30
GPU = Machine("cuda", "A GPU", 24 * GIB, 8, "bf16")
CPU = Machine("cpu", "4 CPU cores", 16 * GIB, 4)
TYPES = (ModelArguments, TuningOptions, FocalSAMTrainingArguments)


def as_arguments(settings):
    """The settings as a command line."""
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


def counts_of(data, split):
    return class_counts(label_array(data.parts[split]), data.num_classes)


def test_a_skewed_folder(animals):
    choice = choose(animals, {"backbone": "tiny_clip"}, machine=CPU)
    train, test, validation = (counts_of(choice.data, split) for split in ("train", "test", "validation"))
    whole = train + test + validation
    assert whole.sum() == 543
    np.testing.assert_array_equal(test, np.rint(0.2 * whole))
    np.testing.assert_array_equal(validation, np.rint(0.1 * (whole - test)))
    assert train.min() == 2 and test[train.argmin()] == validation[train.argmin()] == 0
    settings = choice.settings
    assert settings["validation_fraction"] == 0.1 and settings["eval_strategy"] == "epoch"
    assert settings["on_bad_image"] == "skip" and settings["loss"] == "logit_adjusted"
    assert settings["head_start"] == "text" and settings["backbone"] == "tiny_clip"
    assert "image_size" not in settings  # the backbone's own
    assert choice.reasons[0].startswith(
        f"{train.sum()} training images of 8 classes, {train.max()} to 2 a class; 109 test images"
    )
    assert all(reason.endswith(".") and "\n" not in reason for reason in choice.reasons)
    for key in ("batch size", "epochs", "learning rate", "loss", "focal-sam with gamma", "image size", "head starts"):
        assert sum(key in reason.lower() for reason in choice.reasons) == 1


def test_every_setting_is_one_that_a_run_takes(animals, tmp_path):
    from ft_focalsam.data import DataArguments

    for machine in (CPU, GPU):
        settings = choose(animals, {"backbone": "tiny_clip"}, machine=machine).settings
        settings = {key: value for key, value in settings.items() if key != "bf16"}  # which a CPU may not have
        options = parse_config((DataArguments, *TYPES), [*as_arguments(settings), "--output_dir", str(tmp_path)])
        values = {field.name: getattr(each, field.name) for each in options for field in fields(each)}
        different = {key for key, value in settings.items() if values[key] != value}
        assert different <= {"eval_strategy", "save_strategy", "lr_scheduler_type", "optim"}  # enumerations
        assert all(values[key] == settings[key] or values[key].value == settings[key] for key in different)


def test_few_images_are_all_trained_on(tmp_path, write_images):
    for name, number in (("cat", 9), ("dog", 6), ("yak", 3), ("owl", 2), ("bee", 1)):
        write_images(tmp_path / name, number)
    choice = choose(tmp_path, {"backbone": "tiny_clip"}, machine=CPU)
    assert "validation_fraction" not in choice.settings and "eval_strategy" not in choice.settings
    assert choice.data.class_names == ["bee", "cat", "dog", "owl", "yak"]
    assert counts_of(choice.data, "train").tolist() == [1, 7, 5, 2, 2]
    assert counts_of(choice.data, "test").tolist() == [0, 2, 1, 0, 1]
    assert choice.settings["per_device_train_batch_size"] == 8 and choice.settings["num_train_epochs"] == 40


def test_a_gpu_and_a_cpu_get_settings_of_their_own(animals, tmp_path):
    given = {"backbone": "openai/clip-vit-large-patch14"}
    slow = Machine("cpu", "1 CPU core", 16 * GIB, 1)
    gpu, cpu = (choose(animals, given, machine=machine) for machine in (GPU, slow))
    assert gpu.settings["bf16"] is True and "bf16" not in cpu.settings
    assert "image_size" not in gpu.settings and cpu.settings["image_size"] == 112
    assert gpu.settings["num_train_epochs"] > cpu.settings["num_train_epochs"] >= 5
    assert any("would be better where there is a GPU" in reason for reason in cpu.reasons)
    assert any(reason.startswith("The images, of 40 pixels by the median, are enlarged") for reason in gpu.reasons)


def test_what_the_user_says_wins_and_others_go_by_it(animals):
    given = {
        "backbone": "tiny_clip", "test_fraction": 0.5, "validation_fraction": 0.3, "tuning": "full", "head": "linear",
        "per_device_train_batch_size": 4, "num_train_epochs": 3, "loss": "vs", "image_size": 64, "seed": 7,
        "imbalance_factor": 10, "sharpness": "sam", "rho": 0.1,
    }  # fmt: skip
    choice = choose(animals, given, machine=CPU)
    assert given.items() <= choice.settings.items()
    assert choice.settings["learning_rate"] == 5e-5  # of the recipe for full
    assert "head_start" not in choice.settings and "focal_gamma" not in choice.settings
    counts = counts_of(choice.data, "train")
    assert counts.max() / counts.min() == pytest.approx(10, rel=0.5)
    for word in ("epochs:", "batch size", "loss", "focal-sam", "tuning", "image size"):
        assert not any(word in reason.lower() for reason in choice.reasons)


def test_characters_are_not_mirrored(tmp_path, write_images):
    for name in "0123":
        write_images(tmp_path / name, 10)
    choice = choose(tmp_path, {"backbone": "tiny_clip"}, machine=CPU)
    assert choice.settings["augmentation"] == "crop" and choice.settings["head_start"] == "class_means"
    assert choose(tmp_path, {"backbone": "tiny_clip", "augmentation": "none"}).settings["augmentation"] == "none"


def test_what_cannot_be_chosen_for_is_told(animals, tmp_path, write_images):
    with pytest.raises(ValueError, match="cannot be chosen for a stream"):
        choose(animals, {"streaming": True})
    for split in ("train", "test"):
        write_images(tmp_path / "one" / split / "cat", 3)
    with pytest.raises(ValueError, match="holds images of one class, 'cat'; add a folder"):
        choose(tmp_path / "one", {"backbone": "tiny_clip"})


def test_this_machine(monkeypatch):
    machine = this_machine(use_cpu=True)
    assert machine.is_cpu and 2**28 < machine.memory < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1 <= machine.cores <= os.cpu_count() and machine.processes == 1
    assert this_machine().is_cpu != torch.accelerator.is_available()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert this_machine().processes == 4


@pytest.mark.slow
def test_the_choice_is_trained_on(animals, tmp_path):
    (animals / "owl" / "broken.png").write_bytes(b"no image")
    given = {"backbone": "tiny_clip", "max_steps": 4, "output_dir": str(tmp_path / "out"), "report_to": "none"}
    settings = choose(animals, given).settings
    assert "num_train_epochs" not in settings
    result = python("recipes/finetune.py", *as_arguments(settings))
    assert result.returncode == 0, result.stderr
    assert "put aside for validation" in result.stdout and "training images cannot be read" in result.stdout
    assert (tmp_path / "out" / "report.html").is_file()
