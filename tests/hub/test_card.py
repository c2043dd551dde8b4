"""The model card: its numbers are those of metrics.json, and everything else is in the run's files, too."""

import ast
import json
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from ft_focalsam import FocalSAMTrainingArguments, TuningOptions
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import DataArguments, frequency_groups
from ft_focalsam.hub import describe_run, make_card, write_card
from ft_focalsam.hub.card import MADE_HERE
from ft_focalsam.hub.run_file import base_model

pytestmark = pytest.mark.slow

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
    *of_runs, images = rows
    assert [row[0].replace("\\", "") for row in of_runs] == list(metrics)
    groups = [row["group_images"][group] for group in ("many", "medium", "few")]
    assert images[1:] == [str(count) for count in (100, 100, *groups)] and sum(groups) == 100
    for cells in of_runs:
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
    assert "γ (focal_gamma) = 1.5, λ (focal_lambda) = 0.7\n" in card.text and "direction" not in card.text
    assert "loss: logit\\_adjusted (logit_adjustment_tau = 1); sampler: instance; 3 steps; seed 0" in card.text
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
    counted = {"class_counts": np.array([30, 2]), "num_samples": 32, "is_multi_label": False}
    trainer = SimpleNamespace(args=args, model=model, **counted, **changes)
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
        (["--ascent", "friendly"], ["direction: friendly, friendly_sigma = 1, ascent_decay = 0.9\n"]),
        (["--ascent", "gaussian", "--evaluation", "one_pass", "--ascent_interval", "2"],
         ["- direction: gaussian\n- evaluation: one_pass\n- perturbed in one step of 2\n"]),
        (["--perturb", "norms"], ["- perturbed: norms\n"]),
        (["--adaptive_rho", "true"], ["adaptive: ρ is relative to each weight (ASAM)"]),
        (["--rho_schedule", "step"], ["schedule of ρ: step, rho_initial = 0, rho_step_at = 0.5"]),
        (["--rho_schedule", "cosine"], ["schedule of ρ: cosine, rho_initial = 0\n"]),
        (["--sharpness_schedule", "step", "--sharpness_initial", "sam"],
         ["- schedule of the class weights: step from SAM, sharpness_step_at = 0.5\n"]),
        (["--sharpness_schedule", "linear", "--sharpness_initial", "weighted_sam", "--sharpness_initial_values",
          '{"focal_lambda": 0.3}'],
         ["**Focal-SAM**", "of the class weights: linear from SAM with the weight λ (λ (focal_lambda) = 0.3)\n"]),
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


HOSTILE = [
    "'; --",
    'x"); import os; os.system("id',
    "a\n---\nlicense: mit\n---\n# Mine",
    "```\n# Out\n```",
    "</details><script>alert(1)</script>",
    "| a | b |",
    "[x](javascript:alert(1))",
    "\x1b[31mred\x07",
    "safe\u202egnp.exe",
    "???",
    "- item",
]


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_breaks_out_of_the_card(name, tmp_path, pushed):
    """Class, data set, backbone, row, folder and repository names, in front matter, Markdown and code."""
    config = json.loads((pushed.folder / "config.json").read_text())
    run = json.loads((pushed.folder / "run.json").read_text())
    run["data"] |= {"name": name, "hub_id": None}
    run["method"] |= {"loss": name, "sharpness": name}
    run["model"] |= {"tuning": name}
    run["command"], run["settings"] = shlex.join(["recipes/finetune.py", "--dataset", name]), {"dataset": name}
    config |= {"backbone": f"/models/{name}", "head": name}
    metrics = json.loads((pushed.folder / "metrics.json").read_text())
    metrics[name] = {**metrics["focal_sam"], "notes": [f"{name}: too few."]}
    files = {"run": run, "config": config, "metrics": metrics}
    for file, content in files.items():
        (tmp_path / f"{file}.json").write_text(json.dumps(content))
    (tmp_path / "adapter_config.json").write_text((pushed.folder / "adapter_config.json").read_text())
    text = str(make_card(tmp_path, repo_id=name, overrides={"license": name}))
    front, body = re.fullmatch(r"---\n(.*?)\n---\n\n(# .*)", text, re.DOTALL).groups()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", body)
    data = yaml.safe_load(front)
    title = name.rpartition("/")[2]
    assert data["license"] == name and data["model-index"][0]["name"] == title
    assert {each["dataset"]["name"] for each in data["model-index"][0]["results"]} == {name}
    assert ModelCard(text).data.license == name
    markdown_it = pytest.importorskip("markdown_it")  # transformers brings it
    tokens = markdown_it.MarkdownIt().enable("table").parse(body)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    sections = ["Method", "Data", "Model", "Results", "Use", "Reproduce", "License", "Citation"]
    assert headings[1:] == sections and sum(token.type == "table_open" for token in tokens) == 2
    html = [token.content.strip() for token in tokens if token.type == "html_block"]
    html += [child.content for token in tokens for child in token.children or () if child.type == "html_inline"]
    summary = "<details><summary>Settings that differ from the defaults</summary>"
    assert html == [MADE_HERE, summary, "</details>"]
    links = {child.attrs["href"] for token in tokens for child in token.children or () if child.type == "link_open"}
    assert all(not link.startswith("javascript") for link in links)
    codes = {token.info: token.content for token in tokens if token.type == "fence"}
    first = next(token.content for token in tokens if token.info == "python")
    calls = [node for node in ast.walk(ast.parse(first)) if isinstance(node, ast.Call)]
    (loaded,) = (c for c in calls if getattr(c.func, "attr", "") == "from_pretrained")
    assert ast.literal_eval(loaded.args[0]) == name and not any("system" in ast.unparse(call.func) for call in calls)
    if name.isprintable():
        assert shlex.split(codes["bash"])[-1] == name and yaml.safe_load(codes["yaml"]) == {"dataset": name}


def test_a_card_by_hand_is_not_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
