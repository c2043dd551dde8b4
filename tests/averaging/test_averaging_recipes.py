"""The commands soup, wise_ft and lt_soups on runs of the quickstart, as users start them."""

import json
from pathlib import Path

import pytest
import torch
from running import QUICKSTART, finetune, python
from safetensors.torch import load_file

from ft_focalsam import LongTailClassifier
from ft_focalsam.averaging.average import average
from ft_focalsam.averaging.ingredients import read_ingredients
from ft_focalsam.cli.run_folders import data_of_runs
from ft_focalsam.data import label_array
from ft_focalsam.data.sources import SOURCES
from ft_focalsam.evaluation import Predictions

pytestmark = pytest.mark.slow

SHORT = (
    *("--max_steps", "3", "--imbalance_factor", "10", "--max_train_per_class", "20"),
    *("--learning_rate", "0.05", "--disable_tqdm", "true"),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("runs")
    folders = [str(root / f"seed{seed}") for seed in range(2)]
    for seed, folder in enumerate(folders):
        further = ("--validation_fraction", "0.2", "--save_strategy", "steps", "--save_steps", "2")
        result = finetune("--output_dir", folder, "--seed", seed, *SHORT, *further)
        assert result.returncode == 0, result.stderr[-3000:]
    return folders


def error_of(result) -> str:
    assert result.returncode == 1, result.stdout + result.stderr[-3000:]
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    return line


@pytest.mark.parametrize("kind", ["uniform", "greedy"])
def test_a_soup_is_a_run_folder_that_the_other_recipes_take(kind, runs, tmp_path):
    soup = tmp_path / "soup"
    result = python("ft-focalsam", "soup", *runs, "--output", soup, "--kind", kind)
    assert result.returncode == 0, result.stderr[-3000:]
    assert f"{kind} soup" in result.stdout and "report.html" in result.stdout
    record = json.loads((soup / "run.json").read_text())
    weights = list(record["average"]["weights"].values())
    assert sum(weights) == pytest.approx(1) and "seed" not in record["settings"]
    assert record["settings"]["imbalance_factor"] == 10
    template, ingredients = read_ingredients(runs)
    expected = average(template, ingredients, weights)[0].trained_state_dict()
    saved = load_file(soup / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in saved)
    evaluated = tmp_path / "evaluated"
    options = ("--datasets", "digits", "--output_dir", evaluated)
    result = python("ft-focalsam", "evaluate", soup, *options)
    assert result.returncode == 0, result.stderr[-3000:]
    records = json.loads((soup / "metrics.json").read_text())
    assert {row.rpartition("/")[2] for row in records} == {"seed0", "seed1", f"{kind} soup"}
    own = Predictions.load(soup / "predictions" / "digits.safetensors")
    every = Predictions.load(evaluated / "predictions" / "digits.safetensors")
    rows = [every.ids.index(name) for name in own.ids]
    assert (abs(own.log_probabilities - every.log_probabilities[rows]) < 1e-4).all()
    again = python("ft-focalsam", "soup", soup, runs[0], "--output", tmp_path / "again")  # a soup of a soup
    assert again.returncode == 0, again.stderr[-3000:]


def test_checkpoints_of_a_run_make_a_soup(runs, tmp_path):
    checkpoints = [f"{runs[0]}/checkpoint-{step}" for step in (2, 3)]
    result = python("ft-focalsam", "soup", *checkpoints, "--output", tmp_path / "soup", "--merged")
    assert result.returncode == 0, result.stderr[-3000:]
    model = LongTailClassifier.from_pretrained(tmp_path / "soup")
    template, ingredients = read_ingredients(checkpoints, merged=True)
    expected = average(template, ingredients, [0.5, 0.5])[0].state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_greedy_without_held_out_images_is_refused(tmp_path):
    folder = tmp_path / "plain"
    assert finetune("--output_dir", folder, *SHORT, "--save_strategy", "no").returncode == 0
    result = python("ft-focalsam", "soup", folder, folder, "--output", tmp_path / "soup", "--kind", "greedy")
    assert f"The run in '{folder}' held no images out to choose by; train with --validation_fraction" in error_of(
        result
    )
    assert not (tmp_path / "soup").exists()


def test_soups_that_cannot_be_made_are_refused(runs, tmp_path):
    said = error_of(python("ft-focalsam", "soup", runs[0], "--output", tmp_path / "soup"))
    assert "There is one run" in said
    said = error_of(python("ft-focalsam", "soup", *runs, "--output", runs[0]))
    assert "exists and is not an empty folder" in said
    said = error_of(python("ft-focalsam", "soup", *runs, "--output", tmp_path / "soup", "--datset", "digits"))
    assert "Unknown key 'datset' on the command line; did you mean 'dataset'?" in said


def test_other_held_out_images_are_refused(runs, tmp_path):
    other = tmp_path / "other"
    settings = json.loads(Path(runs[0], "run.json").read_text())
    settings["settings"]["validation_fraction"] = 0.3
    other.mkdir()
    (other / "run.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"held out other images \(validation_fraction is 0.2 and 0.3\)"):
        data_of_runs([runs[0], str(other)], needs_validation=True)


def test_wise_ft_prints_the_curve_and_writes_one_classifier(runs, tmp_path):
    half = tmp_path / "half"
    options = ("--alphas", "0", "0.5", "1", "--alpha", "0.5", "--output", half)
    result = python("ft-focalsam", "wise_ft", runs[0], *options)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [line.split()[:2] for line in result.stdout.splitlines() if line.startswith("alpha ")]
    assert rows == [["alpha", "0"], ["alpha", "0.5"], ["alpha", "1"]]
    assert "On the validation images" in result.stdout and "On the test images" in result.stdout
    tuned, between = load_file(f"{runs[0]}/model.safetensors"), load_file(half / "model.safetensors")
    up = [name for name in tuned if ".lora_B." in name]
    assert up
    for name in up:
        torch.testing.assert_close(between[name], 0.5 * tuned[name])
    said = error_of(python("ft-focalsam", "wise_ft", runs[0], "--alpha", "0.5"))
    assert "give --alpha and --output together" in said
    assert "alpha is 2; set it from 0" in error_of(python("ft-focalsam", "wise_ft", runs[0], "--alphas", "2"))


def test_lt_soups(tmp_path):
    further = ("--factors", "0", "2", "--branches", "2", "--merge_rate", "0.6", *SHORT)
    command = ("ft-focalsam", "lt_soups", QUICKSTART, "--output_dir", tmp_path, *further)
    result = python(*command)
    assert result.returncode == 0, result.stderr[-3000:]
    folders = [tmp_path / f"factor_{factor}" / f"branch_{branch}" for factor in (0, 2) for branch in (0, 1)]
    counts = [json.loads((folder / "run.json").read_text())["data"]["class_counts"] for folder in folders]
    assert counts[0] == [2] * 10 and max(counts[2]) == 8 and min(counts[2]) == 2
    soup, last = LongTailClassifier.from_pretrained(tmp_path / "soup"), tmp_path / "lt_soup"
    start = LongTailClassifier.from_pretrained(tmp_path / "start")
    branches = [LongTailClassifier.from_pretrained(folder) for folder in folders]
    assert not torch.equal(branches[0].head.weight, branches[1].head.weight)
    theta = start.head.weight.double()
    for pair in (branches[:2], branches[2:]):
        theta = 0.4 * theta + 0.6 * sum(branch.head.weight.double() for branch in pair) / 2
    torch.testing.assert_close(soup.head.weight.double(), theta, rtol=0, atol=1e-6)
    place = next(name for name, m in soup.backbone.named_modules() if hasattr(m, "get_delta_weight"))
    update = 0
    for pair in (branches[:2], branches[2:]):
        of_pair = [branch.backbone.get_submodule(place).get_delta_weight("default").double() for branch in pair]
        update = 0.4 * update + 0.6 * sum(of_pair) / 2
    found = soup.backbone.get_submodule(place).get_delta_weight("default").double()
    torch.testing.assert_close(found, update, rtol=0, atol=1e-6)
    final = LongTailClassifier.from_pretrained(last)
    assert not torch.equal(final.head.weight, soup.head.weight)
    backbone = soup.backbone.state_dict()
    assert all(torch.equal(value, backbone[name]) for name, value in final.backbone.state_dict().items())
    assert json.loads((last / "run.json").read_text())["data"]["class_counts"][0] == 20


def test_classes_are_limited_to_a_multiple_of_the_rarest():
    data = SOURCES["digits"]().cut(imbalance_factor=10, max_train_per_class=50)
    whole = [label_array(data.train).tolist().count(label) for label in range(10)]
    images = {}
    for seed in (0, 1):
        cut = data.limit_imbalance(2.5, seed=seed)
        counts = [label_array(cut.train).tolist().count(label) for label in range(10)]
        assert min(whole) == 5 and counts == [min(count, 12) for count in whole]
        images[seed] = [image.tobytes() for image in cut.train["image"]]
        assert len(cut.test) == len(data.test)
    assert images[0] != images[1] and set(images[0]) <= {image.tobytes() for image in data.train["image"]}
