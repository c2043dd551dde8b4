"""A run folder can be run again: config.yaml, train.log, and what run.json says of it."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image
from running import ROOT, finetune

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.base import versions
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import DataArguments
from ft_focalsam.hub import files_to_push, make_card
from ft_focalsam.trainer.run_config import PATHS, absolute, write_config
from ft_focalsam.trainer.run_settings import settings_of

TYPES = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
SECRET = "hf_NobodyMayReadThis"


def written_and_read(folder, *argv):
    """Options of a command line, and those of the config.yaml that is written for them."""
    options = parse_config(TYPES, [*argv, "--output_dir", str(folder)])
    folder.mkdir(exist_ok=True)
    write_config(options)
    return options, parse_config(TYPES, [str(folder / "config.yaml")])


def values(options):
    """All values, local paths made whole."""
    found = {name: value for each in options for name, value in vars(each).items() if name != "distributed_state"}
    found |= {name: os.path.abspath(found[name]) for name in PATHS if found[name] is not None}
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_config_of_every_recipe_reads_back_the_same(config, tmp_path):
    before, after = written_and_read(tmp_path, str(config))
    assert values(before) == values(after)
    one, other = (settings_of(options[-1], options[:-1]) for options in (before, after))
    assert {key for key in one if one[key] != other[key]} <= set(PATHS)  # the files of some are not here


def test_values_of_every_kind_read_back_the_same(tmp_path):
    (tmp_path / "given.yaml").write_text(
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\ntuning: [lora, bias]\n"
        "lora_target_modules: [fc1]\nprompt_templates: ['a \"{}\": # é']\naccelerator_config: {split_batches: true}\n"
        "learning_rate: 1.2345678901234567e-5\nlogging_steps: 0.25\neval_strategy: epoch\nmax_grad_norm: 0\n"
    )
    before, after = written_and_read(tmp_path / "out", str(tmp_path / "given.yaml"))
    assert values(before) == values(after) and before[-1].accelerator_config.split_batches


def test_settings_that_are_at_their_default_are_written_too_and_what_is_of_one_run_alone_is_not(tmp_path):
    options = ("--hub_token", SECRET, "--hub_model_id", "me/mine", "--overwrite", "true", "--resume_changed", "true")
    written_and_read(tmp_path / "out", *options)
    text = (tmp_path / "out" / "config.yaml").read_text()
    content = yaml.safe_load(text)
    assert (content["rho"], content["learning_rate"], content["seed"]) == (0.05, 5e-5, 42)
    assert content["output_dir"] == str(tmp_path / "out")
    assert SECRET not in text and "me/mine" not in text
    assert not {"hub_token", "hub_model_id", "push_to_hub", "overwrite", "resume_changed"} & set(content)


def test_local_paths_are_whole_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "weights.pt", "digits", "tiny_clip", "names.txt"):
        Path(name).mkdir() if "." not in name else Path(name).touch()
    for name in ("images", "timm:vit_small:weights.pt", "timm:images"):
        assert absolute(name) == re.sub(r"[a-z.]+$", lambda found: str(tmp_path / found[0]), name)
    assert absolute("openai/clip-vit-base-patch16") == "openai/clip-vit-base-patch16"
    argv = ("--dataset", "images", "--class_names", "names.txt", "--cache_resized", "new", "--backbone", "timm:images")
    written_and_read(tmp_path / "out", *argv)
    content = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    keys = ("dataset", "class_names", "cache_resized", "backbone")
    expected = [str(tmp_path / name) for name in ("images", "names.txt", "new")] + [f"timm:{tmp_path / 'images'}"]
    assert [content[key] for key in keys] == expected
    written_and_read(tmp_path / "other", "--dataset", "digits", "--backbone", "tiny_clip")  # also folders here
    content = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert (content["dataset"], content["backbone"]) == ("digits", "tiny_clip")


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A run on a relative folder of images with dropout and augmentation, and the run of its config.yaml."""
    folder = tmp_path_factory.mktemp("again")
    for name, images in (("frequent", 12), ("rare", 6)):
        for split in ("train", "test"):
            (folder / "images" / split / name).mkdir(parents=True)
            for index in range(images):
                image = Image.new("RGB", (20, 20), (index * 20, 200 if name == "rare" else 0, 40))
                image.save(folder / "images" / split / name / f"{index}.png")
    options = ("--dataset", os.path.relpath(folder / "images", ROOT), "--imbalance_factor", "null", "--max_steps", 4)
    options += ("--lora_dropout", "0.2", "--per_device_train_batch_size", 5, "--logging_steps", 2, "--seed", 7)
    options += ("--validation_fraction", 0.25, "--augmentation", "crop_flip", "--hub_token", SECRET)
    first = finetune(*options, "--output_dir", folder / "first")
    assert first.returncode == 0, first.stderr[-3000:]
    second = finetune("--output_dir", folder / "second", config=folder / "first" / "config.yaml")
    assert second.returncode == 0, second.stderr[-3000:]
    return folder, first


def scores(folder):
    timed = re.compile(r"runtime|per_second|preparation_time")
    rows = json.loads((folder / "metrics.json").read_text())
    return {
        row: {name: value for name, value in values.items() if not timed.search(name)} for row, values in rows.items()
    }


@pytest.mark.slow
def test_a_run_of_its_config_gives_the_same_weights_and_metrics(twice):
    folder, _ = twice
    for name in ("model.safetensors", "adapter_model.safetensors"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()
    assert scores(folder / "first") == scores(folder / "second") and "focal_sam" in scores(folder / "first")
    runs = [json.loads((folder / name / "run.json").read_text()) for name in ("first", "second")]
    assert runs[0]["fingerprint"] == runs[1]["fingerprint"] and runs[0]["settings"] != {}
    assert runs[0]["method"]["seed"] == 7


@pytest.mark.slow
def test_run_json_says_what_the_run_was_made_with(twice):
    run = json.loads((twice[0] / "first" / "run.json").read_text())
    assert set(run["versions"]) == {"ft_focalsam", "torch", "transformers", "peft", "accelerate", "python"}
    assert run["device"]["type"] == "cpu" and run["device"]["processes"] == 1
    assert 0 < run["seconds"] < 600 and run["model"]["revision"] is None
    assert run["git"] == versions.checkout()


def test_the_commit_is_that_of_a_checkout_alone(tmp_path, monkeypatch):
    def git(*command):
        own = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", "-C", tmp_path, *own, *command], check=True, capture_output=True, text=True
        ).stdout

    for package in (tmp_path / "package" / "base", tmp_path / "environment" / "package" / "base"):
        package.mkdir(parents=True)
        (package / "versions.py").touch()
    git("init")
    git("add", "package")
    git("commit", "-m", "first")
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "package" / "base" / "versions.py"))
    commit = git("rev-parse", "HEAD").strip()
    assert versions.checkout() == {"commit": commit, "dirty": False}
    (tmp_path / "package" / "base" / "versions.py").write_text("changed")
    assert versions.checkout() == {"commit": commit, "dirty": True}
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "environment" / "package" / "base" / "versions.py"))
    assert versions.checkout() is None  # installed inside a repository that is another one
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "package" / "base" / "versions.py"))
    monkeypatch.setenv("PATH", "")
    assert versions.checkout() is None  # without git


@pytest.mark.slow
def test_the_log_has_every_line_that_was_printed(twice):
    folder, result = twice
    log = (folder / "first" / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in log)
    assert [line[20:] for line in log] == [line for line in result.stdout.splitlines() if line.strip()]
    assert sum(" validation " in line for line in log) == 2 and sum("step 4/4" in line for line in log) == 2


@pytest.mark.slow
def test_neither_local_paths_nor_the_log_are_published_and_no_file_has_the_token(twice):
    folder, result = twice
    assert not {"config.yaml", "train.log"} & set(files_to_push(folder / "first"))
    for name in files_to_push(folder / "second"):  # whose images were given by their whole path
        assert str(folder).encode() not in (folder / "second" / name).read_bytes(), name
    card = make_card(folder / "second", repo_id="me/mine").text
    assert "path/to/images" in card and str(folder) not in card
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 20 and not [path for path in files if SECRET.encode() in path.read_bytes()]
    assert SECRET not in result.stdout + result.stderr
