"""Runs of recipes/finetune.py on features that are computed once, with one process and with two."""

import json

import pytest
import torch
from running import QUICKSTART, ROOT, finetune, processes, ranks
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "tests" / "distributed" / "cached.py"
OPTIONS = {
    "tuning": "clip_adapter", "head_start": "class_means", "augmentation_views": 2, "num_train_epochs": 3,
    "logging_steps": 1, "save_strategy": "no", "max_test_per_class": 5, "imbalance_factor": 10,
    "max_train_per_class": 25, "per_device_eval_batch_size": 16, "learning_rate": 0.1, "report_to": "none",
}  # fmt: skip


def runs(folder, *, count, cache, name, **options):
    """What each process saw of a run of the quickstart recipe."""
    options = OPTIONS | {"output_dir": folder / name} | options
    options |= {"cache_features": True} if cache else {}
    arguments = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
    environments = ranks(count) if count > 1 else [{}]
    for result in processes(environments, SCRIPT, folder / name, folder / "cache", QUICKSTART, *arguments):
        assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"{name}{rank}.json").read_text()) for rank in range(count)]


def files(folder):
    return sorted((folder / "cache" / "ft_focalsam").glob("features-*"))


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_on_cached_features_is_the_run_on_images(count, tmp_path):
    options = {"per_device_train_batch_size": 32 // count}
    plain = runs(tmp_path, count=count, cache=False, name="plain", **options)
    assert not files(tmp_path)
    first = runs(tmp_path, count=count, cache=True, name="first", **options)
    assert len(files(tmp_path)) == 4  # two views to train on, one without augmentation to start from, the test images
    second = runs(tmp_path, count=count, cache=True, name="second", **options)
    assert len(files(tmp_path)) == 4
    for seen in (*first, *second):
        assert seen["losses"] == pytest.approx(plain[0]["losses"], rel=1e-5)
        assert seen["head"] == pytest.approx(plain[0]["head"], rel=1e-5, abs=1e-6)
        for row, values in plain[0]["metrics"].items():
            numbers = {n: v for n, v in values.items() if not n.endswith(("time", "second"))}
            assert {n: seen["metrics"][row][n] for n in numbers} == pytest.approx(numbers, rel=1e-5)
    assert [seen["encoded"] for seen in second] == [0] * count  # nothing is computed twice
    saved, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("second", "plain"))
    assert saved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)


def test_two_processes_read_each_image_once_and_start_from_the_same_head(tmp_path):
    (alone,) = runs(tmp_path, count=1, cache=False, name="one")
    images = alone["encoded"]  # those that the head starts from
    both = runs(tmp_path, count=2, cache=False, name="two", per_device_train_batch_size=16)
    assert both[0]["head"] == both[1]["head"]
    assert both[0]["head"] == pytest.approx(alone["head"], rel=1e-5, abs=1e-6)
    assert [seen["encoded"] for seen in both] == [-(-images // 2)] * 2 and images == 97


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "the augmentation 'crop' draws anew in every epoch; set augmentation_views"),
        (
            {"augmentation": "none", "tuning": "lora"},
            "tuning is 'lora', which changes the backbone, and cache_features",
        ),
        ({"augmentation": "none", "mixup_alpha": 0.2}, "mixup_alpha is 0.2, which mixes images anew in every batch"),
        ({"augmentation": "none", "streaming": True}, "set streaming or cache_features to false"),
        ({"augmentation": "none", "on_device": True}, "set on_device or cache_features to false"),
        ({"augmentation_views": 0}, "augmentation_views is 0; set it to 1 or more"),
    ],
    ids=str,
)
def test_what_features_computed_once_cannot_do_is_told_before_an_image_is_read(options, told, tmp_path):
    options = {"tuning": "linear_probe", "cache_features": True, "dataset": "/no/such/folder"} | options
    arguments = [text for key, value in options.items() for text in (f"--{key}", value)]
    result = finetune(*arguments, "--output_dir", tmp_path)
    assert result.returncode != 0 and told in result.stderr.splitlines()[-1]
