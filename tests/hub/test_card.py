"""The model card: its numbers are those of metrics.json, and everything else is in the run's files, too."""

import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.config import ModelArguments, parse_config
from ft_focalsam.data import DataArguments, frequency_groups
from ft_focalsam.hub import describe_run, make_card, write_card
from ft_focalsam.hub.run_file import base_model

TYPES = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)


def table(text, heading):
    """Cells of the first table under a heading, by row."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[0], rows[2:]


def test_the_numbers_are_those_of_the_runs_metrics(pushed):
    metrics = json.loads((pushed.folder / "metrics.json").read_text())
    card = ModelCard.load(pushed.folder / "README.md")
    row = metrics["focal_sam"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    names = {"overall (top-1)": "accuracy", "mean per class": "mean_class_accuracy"}
    names |= {f"{group}-shot": group for group in ("many", "medium", "few")}
    assert values == {f"Accuracy, {title}": row[name] for title, name in names.items()}
    header, rows = table(card.text, "Results")
    assert [row[0].replace("\\", "") for row in rows] == list(metrics)
    for cells in rows:
        record = metrics[cells[0].replace("\\", "")]
        for title, cell in zip(header[1:], cells[1:], strict=True):
            low, high = record["intervals"][names[title]]
            assert cell == f"{100 * record[names[title]]:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            assert low <= record[names[title]] <= high
    shown = json.dumps(metrics).replace("0.9", "0.1")  # another metrics.json gives another card
    (pushed.folder.parent / "other").mkdir()
    (pushed.folder.parent / "other" / "metrics.json").write_text(shown)
    assert table(make_card(pushed.folder.parent / "other").text, "Results") != (header, rows)


def test_data_and_method_are_those_of_the_run(pushed):
    card = ModelCard.load(pushed.folder / "README.md")
    counts = np.array(json.loads((pushed.folder / "run.json").read_text())["data"]["class_counts"])
    groups = frequency_groups(counts)
    _, rows = table(card.text, "Data")
    assert [row[0] for row in rows] == ["many-shot", "medium-shot", "few-shot"]
    assert [int(row[2]) for row in rows] == [len(groups[name]) for name in ("many", "medium", "few")]
    images = [counts[groups[name]].sum() for name in ("many", "medium", "few")]
    assert [int(row[3].replace(",", "")) for row in rows] == images
    assert f"(imbalance factor {counts.max() / counts.min():.1f}); tested on 100 images" in card.text
    assert "**Focal-SAM** ([paper](https://arxiv.org/abs/2505.01660)): ρ (rho) = 0.05, " in card.text
    assert "γ (focal_gamma) = 1.5, λ (focal_lambda) = 0.7\n" in card.text and "economy" not in card.text
    assert "loss: logit_adjusted; sampler: instance; 3 steps; seed 0" in card.text
    assert "tuned by: lora, rank 8, alpha 8" in card.text and "head: cosine, scale 25" in card.text
    assert card.data.base_model is None and card.data.license == "apache-2.0"
    assert "@inproceedings{li2025focalsam" in card.text


def test_the_command_and_the_settings_describe_the_run_again(pushed, tmp_path):
    card = (pushed.folder / "README.md").read_text()
    words = shlex.split(re.search(r"```bash\n(.*?)\n```", card)[1])
    assert words[:4] == ["accelerate", "launch", "--config_file", "accelerate_configs/cpu.yaml"]
    assert words[4] == "recipes/finetune.py"
    (tmp_path / "run.yaml").write_text(re.search(r"```yaml\n(.*?)```", card, re.DOTALL)[1])
    by_command, by_settings = parse_config(TYPES, words[5:]), parse_config(TYPES, [str(tmp_path / "run.yaml")])
    for one, other in zip(by_command, by_settings, strict=True):
        own = {"output_dir": "", "distributed_state": None}  # where this run writes, and what it runs on
        assert vars(one) | own == vars(other) | own
    args = by_command[-1]
    assert (args.max_steps, args.rho, args.focal_gamma, args.loss) == (3, 0.05, 1.5, "logit_adjusted")


def describe(argv, **changes):
    """run.json of arguments alone."""
    options = parse_config(TYPES, [*argv])
    args = options[-1]
    model = torch.nn.Linear(1, 1)
    model.config = SimpleNamespace(backbone=options[1].backbone)
    trainer = SimpleNamespace(args=args, model=model, class_counts=np.array([30, 2]), **changes)
    return describe_run(trainer, options=options, argv=argv)


def test_run_json_has_no_token_and_no_folder_of_this_machine(tmp_path):
    secret, folder = "hf_abcdefgh", str(tmp_path / "images")
    for given in (["--hub_token", secret], [f"--hub_token={secret}"], ["--hub-token", secret]):
        argv = ["--dataset", folder, *given, "--rho", "0.2", "--output_dir", str(tmp_path / "out")]
        run = describe(argv)
        assert secret not in json.dumps(run) and str(tmp_path) not in json.dumps(run)
        assert run["command"].endswith("recipes/finetune.py --dataset path/to/images --rho 0.2")
        assert run["settings"] == {"dataset": "path/to/images", "rho": 0.2}
    run = describe(["--push_to_hub", "false", "--rho", "0.2"])
    assert run["command"].endswith("recipes/finetune.py --rho 0.2")


@pytest.mark.parametrize(
    ("argv", "texts"),
    [
        (["--economy", "look_sam", "--adaptive_rho", "true"], ["economy: look_sam, economy_interval = 5, look_alpha"]),
        (["--adaptive_rho", "true"], ["adaptive: ρ is relative to each weight (ASAM)"]),
        (["--rho_schedule", "step"], ["schedule of ρ: step, rho_initial = 0, rho_step_at = 0.5"]),
        (["--sharpness", "none"], ["**Plain training**\n"]),
        (["--sharpness", "imbsam"], ["**ImbSAM**: ρ (rho) = 0.05, η (imbsam_eta) = 100"]),
        (["--dataset", "uoft-cs/cifar100", "--imbalance_factor", "100"],
         ["[uoft-cs/cifar100](https://huggingface.co/datasets/uoft-cs/cifar100), cut to an imbalance factor of 100"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)  # fmt: skip
def test_what_is_not_by_default_is_told(argv, texts, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(describe(argv)))
    text = str(make_card(tmp_path))
    assert [each for each in texts if each not in text] == []
    assert "## Results" not in text


@pytest.mark.parametrize(
    ("backbone", "repository"),
    [
        ("tiny_clip", None),
        ("openai/clip-vit-base-patch16", "openai/clip-vit-base-patch16"),
        ("timm:hf-hub:timm/vit_base_patch16_224", "timm/vit_base_patch16_224"),
        ("open_clip:hf-hub:laion/CLIP-ViT-B-32", "laion/CLIP-ViT-B-32"),
        ("timm:vit_base_patch16_224.augreg2_in21k_ft_in1k", None),
        ("open_clip:ViT-B-16@laion2b_s34b_b88k", None),
        ("/models/dinov2_vits14", None),
        ("{folder}", None),
    ],
)
def test_base_model_is_the_hub_s_name_of_the_backbone_or_nothing(backbone, repository, tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert base_model(backbone.format(folder="models/mine")) == repository


def test_a_backbone_in_a_folder_is_named_and_has_to_be_given(pushed, tmp_path):
    config = json.loads((pushed.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "backbone": "/models/dinov2_vits14"}))
    text = str(make_card(tmp_path, repo_id="alice/x"))
    assert 'from_pretrained("alice/x", backbone="path/to/dinov2_vits14")' in text
    assert "/models" not in text and "dinov2\\_vits14, a folder of the author's" in text


def test_names_that_markdown_would_read_are_shown_as_they_are(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"a|b <script>": {"accuracy": 0.5}}))
    header, (row,) = table(make_card(tmp_path).text.replace("\\|", "PIPE"), "Results")
    assert len(row) == len(header) and row[0] == "aPIPEb \\<script\\>"


def test_a_card_by_hand_is_not_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
