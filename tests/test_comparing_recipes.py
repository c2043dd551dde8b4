"""The recipes that measure and compare: what a step costs, cheaper schedules, ways to tune."""

import importlib
import json
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from running import QUICKSTART, ROOT, python
from transformers import Dinov2Config, Dinov2Model

from ft_focalsam import (
    FocalSAM,
    FocalSAMTrainingArguments,
    LongTailClassifier,
    LongTailClassifierConfig,
    TuningOptions,
    apply_tuning,
)
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import DataArguments

pytestmark = pytest.mark.slow


def benchmark(*arguments):
    result = python("recipes/benchmarks/step_cost.py", *arguments)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_the_benchmark_runs_on_a_vision_transformer():
    output = benchmark(
        "--model", "vit_s14", "--tuning", "adaptformer", "--image_size", 70, "--batch_size", 2, "--steps", 1
    )
    assert 0.5 < float(re.search(r"three backwards / ours: ([\d.]+)", output)[1]) < 3


def test_the_benchmark_knows_every_kind_of_step():
    kinds = ["sam", "three_backward", "focal_sam", "no_reuse", "friendly", "imbsam", "cc_sam"]
    output = benchmark("--model", "resnet32", "--batch_size", 20, "--steps", 3, "--kinds", *kinds, "--profile")
    rows = {line.split("  ")[0] for line in output.splitlines()}
    assert {"plain", "SAM", "Focal-SAM, ours", "friendly", "ImbSAM, 10 % rare", "CC-SAM"} <= rows
    assert "aten::convolution" in output


def test_the_benchmark_shows_what_one_pass_saves():
    kinds = ["focal_sam", "norms", "merged", "momentum", "gaussian", "imbsam"]
    output = benchmark("--model", "vit_s14", "--image_size", 70, "--batch_size", 10, "--steps", 3, "--kinds", *kinds)
    rows = {line[:24].strip(): line[24:].split() for line in output.splitlines()}
    to_plain = {name: float(rows[name][1]) for name in ("Focal-SAM, ours", "momentum, one pass", "ImbSAM, 10 % rare")}
    ours = to_plain.pop("Focal-SAM, ours")
    assert all(ratio < 0.8 * ours for ratio in to_plain.values())
    assert {"norms", "merged", "gaussian, one pass"} <= set(rows)


def test_the_benchmark_compares_with_other_libraries():
    kinds = {"pytorch_optimizer_sam": "SAM, pytorch_optimizer", "hf_trainer": "Trainer, plain"}
    kinds |= {"trainer_plain": "FocalSAMTrainer, none", "trainer_focal_sam": "FocalSAMTrainer, ours"}
    output = benchmark("--model", "vit_s14", "--image_size", 28, "--batch_size", 2, "--steps", 3, "--kinds", *kinds)
    rows = {line[:24].strip(): line[24:].split() for line in output.splitlines()}
    to_plain = {kind: float(rows[name][1]) for kind, name in kinds.items()}
    assert to_plain["trainer_focal_sam"] > 1.4 * to_plain["trainer_plain"]
    assert to_plain["pytorch_optimizer_sam"] > 1.4 * to_plain["hf_trainer"]


def test_the_benchmark_names_the_package_that_it_lacks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "recipes" / "benchmarks")
    peer_steps = importlib.import_module("peer_steps")
    monkeypatch.setattr(peer_steps, "find_spec", lambda name: None)
    reason = peer_steps.refuse_missing("pytorch_optimizer_sam")
    assert reason.endswith("pip install pytorch_optimizer.")
    assert peer_steps.refuse_missing("hf_trainer") is None


DINOV2_RECIPES = sorted((ROOT / "recipes" / "configs" / "cifar100_lt").glob("dinov2_vits14_*.yaml"))


@pytest.mark.parametrize("path", DINOV2_RECIPES, ids=lambda path: path.stem)
def test_a_dinov2_recipe_tunes_what_it_is_called(path):
    """On random weights: their modules are called what the recipe calls them, and the step moves what trains."""
    torch.manual_seed(0)
    types = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
    _, model_args, options, args = parse_config(types, [str(path)])
    depth = 1 + max(options.tuned_layers or [1])
    sizes = {"hidden_size": 16, "num_hidden_layers": depth, "num_attention_heads": 2, "image_size": 28}
    labels = {index: str(index) for index in range(32)}
    config = LongTailClassifierConfig(backbone_family="dinov2", feature_size=16, id2label=labels, head="cosine")
    model = LongTailClassifier(config, Dinov2Model(Dinov2Config(**sizes)))
    apply_tuning(model, model_args.tuning, options)
    trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    focal_sam = FocalSAM(optimizer, model.train(), class_counts=range(32, 0, -1), rho=args.rho, gamma=args.focal_gamma)
    images, targets = torch.randn(32, 3, 28, 28), torch.arange(32)
    for _ in range(3):  # what stands in front of a zero start moves from the second step on
        focal_sam.step(
            lambda: F.cross_entropy(model(pixel_values=images).logits, targets, reduction="none"), labels=targets
        )
    names = dict(model.named_parameters())
    still = {name for name, before in trained.items() if torch.equal(names[name], before)}
    assert still <= {"backbone.embeddings.mask_token"}  # of masked pretraining, not used here
    assert {name.partition(".")[0] for name in trained} - {"head"} or model_args.tuning == "linear_probe"


@pytest.fixture
def tunings(tmp_path):
    """Two recipes on the quickstart, and the command line that compares them in two steps each."""
    recipes = [tmp_path / "alone.yaml", tmp_path / "layer_norms.yaml"]
    for recipe, tuning in zip(recipes, ("linear_probe", "norms"), strict=True):
        recipe.write_text(f"base: {ROOT / QUICKSTART}\ntuning: {tuning}\n")
    options = ["--results", tmp_path / "runs" / "results.jsonl", "--timed_steps", 3, "--max_steps", 2]
    return recipes, ["recipes/benchmarks/tuning_methods.py", *map(str, [*recipes, *options])]


@pytest.fixture
def compare_tuning(monkeypatch):
    """The script, as a module."""
    monkeypatch.syspath_prepend(ROOT / "recipes" / "benchmarks")
    return importlib.import_module("tuning_methods")


def test_tunings_are_compared_and_finished_ones_kept(tunings, compare_tuning, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", tunings[1])
    compare_tuning.main()
    output = capsys.readouterr().out
    assert output.count(" steps in ") == 2
    header, _, start, *rows = [line.strip("| ").split(" | ") for line in output.splitlines()[-5:]]
    assert [row[0] for row in (start, *rows)] == ["zero-shot, before", "alone", "layer_norms"]
    assert header[3:7] == ["top-1", "many", "medium", "few"]
    printed = re.findall(r"Trained parameters: ([\d,]+) of [\d,]+ \((\S+)\)", output)
    assert [(row[1], row[2]) for row in rows] == printed
    tables = output.split("top-1")[2:5:2]  # what each recipe printed when it was through
    for row, table in zip(rows, tables, strict=True):
        accuracies = table.splitlines()[3].split()[-5:]
        assert row[3:7] == [accuracies[0], *accuracies[2:]]
    alone, norms = (float(row[7]) for row in rows)
    assert 0.5 < alone < 4 and 1.3 < norms < 4  # the frozen backbone is computed once

    results = tmp_path / "runs" / "results.jsonl"
    first, second = results.read_text().splitlines()
    results.write_text(first + "\n")  # as if it had been stopped in the second run
    compare_tuning.main()
    rest = capsys.readouterr().out
    assert rest.count(" steps in ") == 1
    assert rest.splitlines()[-2] == output.splitlines()[-2]
    kept, new = map(json.loads, results.read_text().splitlines())
    assert kept == json.loads(first)
    new["result"]["step_cost"] = json.loads(second)["result"]["step_cost"]
    assert new == json.loads(second)


def test_a_mistake_in_any_tuning_recipe_ends_the_comparison_before_the_first_run(tunings, tmp_path):
    recipes, command_line = tunings
    recipes[1].write_text(f"base: {ROOT / QUICKSTART}\ntunign: norms\n")
    result = python(*command_line)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("Error: Unknown key 'tunign'")
    assert not (tmp_path / "runs").exists()


def test_results_of_other_settings_are_not_mixed(compare_tuning, tmp_path):
    read_results = compare_tuning.read_results
    path = tmp_path / "results.jsonl"
    assert read_results(path, []) == {}
    lines = [{"config": "a", "further": further, "result": {"n": n}} for n, further in enumerate(([], ["--rho", "0"]))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_results(path, []) == {"a": {"n": 0}}
    assert read_results(path, ["--rho", "0"]) == {"a": {"n": 1}}
    for damage in ('{"config": "a"', '{"config": "a"}', "[]"):
        path.write_text(json.dumps(lines[0]) + "\n" + damage)
        with pytest.raises(ValueError, match=rf"Line 2 of '{path}' is no result of a run; take it out"):
            read_results(path, [])
