"""One entry for each new member of a family: its hyperparameters reach arguments, run, card and search."""

import csv
import json
import sys
from importlib.util import find_spec

import pytest
import yaml
from huggingface_hub import ModelCard
from running import QUICKSTART, ROOT, run

from ft_focalsam.hub import make_card

pytestmark = pytest.mark.slow

# One entry a family, each as somebody would add it to the file of the family.
ENTRIES = """
from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import torch

from ft_focalsam.averaging.soups import register_soup
from ft_focalsam.data import SOURCES, register_source
from ft_focalsam.evaluation import register_metric
from ft_focalsam.losses import cross_entropy, register_loss
from ft_focalsam.models import register_head
from ft_focalsam.models.heads import CosineHead
from ft_focalsam.sharpness import Hyperparameter, Search, register_sharpness_method
from ft_focalsam.tuning import CommonOptions, register_tuning

SEEN = {}


@register_sharpness_method("root_sam", title="Root-SAM")
def root_sam(
    class_counts,
    *,
    power: Annotated[
        float,
        Hyperparameter("Power of the rarity.", argument="root_power", low=0, symbol="p", search=Search(0.1, 2.0)),
    ] = 0.5,
):
    SEEN["root_power"] = power
    return (class_counts.min() / class_counts) ** power


@register_loss("tempered")
def tempered(
    logits,
    targets,
    *,
    temperature: Annotated[
        float, Hyperparameter("Temperature.", low=0, open_low=True, search=Search(0.5, 4.0, log=True))
    ] = 1.0,
):
    SEEN["temperature"] = temperature
    return cross_entropy(logits / temperature, targets)


@register_head("shifted")
class ShiftedHead(CosineHead):
    def __init__(
        self,
        feature_size,
        num_classes,
        scale,
        *,
        shift: Annotated[
            float, Hyperparameter("Shift of the logits.", argument="head_shift", search=Search(-1.0, 1.0))
        ] = 0.0,
    ):
        super().__init__(feature_size, num_classes, scale)
        self.shift = shift
        SEEN["head_shift"] = shift

    def forward(self, features):
        return super().forward(features) + self.shift


@dataclass
class SomeNormsOptions(CommonOptions):
    some_norms: Annotated[int, Hyperparameter("How many norms train.", low=1, search=Search(1, 3))] = field(
        default=1, metadata={"help": "How many norms train."}
    )


@register_tuning("some_norms", options=SomeNormsOptions)
def some_norms(model, options):
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    SEEN["some_norms"] = options.some_norms
    for norm in norms[: options.some_norms]:
        norm.requires_grad_(True)


@register_source("few_digits")
def few_digits():
    return replace(SOURCES["digits"](), name="few_digits")


@register_metric("error_rate")
def error_rate(tally):
    return 1 - tally.hits.sum() / tally.images.sum()


@register_soup("first")
def first(
    template,
    ingredients,
    score=None,
    *,
    say=print,
    weight: Annotated[float, Hyperparameter("Of the first.", argument="first_weight", low=0, high=1)] = 1.0,
):
    rest = (1 - weight) / (len(ingredients) - 1)
    return [weight] + [rest] * (len(ingredients) - 1)
"""
CHOICES = {
    **{"dataset": "few_digits", "tuning": "some_norms", "some_norms": 2, "head": "shifted", "head_shift": 0.25},
    **{"sharpness": "root_sam", "root_power": 0.75, "loss": "tempered", "temperature": 1.5},
}
OPTIONS = [word for key, value in CHOICES.items() for word in (f"--{key}", str(value))]
SHORT = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
RANGES = ["--root_power_range", "0.2", "0.3", "--head_shift_range", "0.5", "0.6", "--some_norms_range", "3", "3"]
MISTAKES = {
    ("--root_power", "-1"): "root_power is -1.0; set it to 0 or more",
    ("--temperature", "0"): "temperature is 0.0; set it to a number above 0",
    ("--root_pover", "1"): "Unknown key 'root_pover' on the command line; did you mean 'root_power'",
    ("--some_norms", "0"): "some_norms is 0; set it to 1 or more",
}
# What their author then does, in one process.
PROGRAM = """
import json, sys
from ft_focalsam.cli import search, soup, train
from ft_focalsam.hub import make_card

folder, told = sys.argv[1], {}
argv, mistakes, ranges = (json.loads(text) for text in sys.argv[2:])
train.main([*argv, "--output_dir", f"{folder}/run"])
told["train"] = dict(SEEN)
make_card(f"{folder}/run").save(f"{folder}/card.md")
checkpoints = [f"{folder}/run/checkpoint-{step}" for step in (1, 2)]
soup.main([*checkpoints, "--output", f"{folder}/soup", "--kind", "first", "--first_weight", "0.75"])
told["mistakes"] = []
for mistake in mistakes:
    try:
        train.main([*argv, "--output_dir", f"{folder}/other", *mistake])
    except ValueError as error:
        told["mistakes"].append(str(error))
if ranges:
    search.main([*argv, "--output_dir", f"{folder}/search", "--num_trials", "2", *ranges])
    told["search"] = dict(SEEN)
with open(f"{folder}/told.json", "w") as file:
    json.dump(told, file)
"""


def run_program(folder, lines: str, *arguments: str) -> str:
    """What a program with these entries prints."""
    path = folder / "program.py"
    path.write_text(f"{ENTRIES}\n\n{lines}")
    result = run([sys.executable, path, *arguments])
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of what the program wrote, and what it saw."""
    folder = tmp_path_factory.mktemp("extended")
    ranges = RANGES if find_spec("optuna") else []
    arguments = [json.dumps(each) for each in ([QUICKSTART, *SHORT, *OPTIONS], list(MISTAKES), ranges)]
    run_program(folder, PROGRAM, str(folder), *arguments)
    return folder, json.loads((folder / "told.json").read_text())


def test_arguments_reach_what_was_trained(done):
    folder, told = done
    assert told["train"] == {key: CHOICES[key] for key in ("root_power", "temperature", "head_shift", "some_norms")}
    record = json.loads((folder / "run" / "run.json").read_text())
    assert {key: record["settings"][key] for key in CHOICES} == CHOICES
    config = json.loads((folder / "run" / "config.json").read_text())
    assert config["head_options"] == {"shift": 0.25}
    assert record["model"]["trained_parameters"] == 10 * 64 + 2 * 2 * 128  # class weights; scales and shifts
    metrics = list(json.loads((folder / "run" / "metrics.json").read_text()).values())[-1]
    assert metrics["error_rate"] == pytest.approx(1 - metrics["accuracy"])


def test_the_card_names_them(done):
    folder, _ = done
    text = ModelCard.load(folder / "card.md").text
    assert "**Root-SAM**: ρ (rho) = 0.05, p (root_power) = 0.75\n" in text
    assert "loss: tempered (temperature = 1.5)" in text
    assert "- head: shifted, scale 25, head_shift = 0.25\n" in text
    assert "- tuned by: some\\_norms, some\\_norms = 2\n" in text
    settings = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert {key: settings[key] for key in CHOICES} == CHOICES
    assert "root\\_sam" in make_card(folder / "run").text, "a card is made by those too who do not have the entry"


def test_a_search_draws_them(done):
    pytest.importorskip("optuna")
    folder, told = done
    with (folder / "search" / "trials.csv").open() as file:
        trials = sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))
    searched = ["root_power", "temperature", "head_shift", "some_norms"]
    assert list(trials[0]) == ["trial", "value", "rho", *searched]
    values = [{key: float(trial[key]) for key in searched} for trial in trials]
    assert values[0] == {key: CHOICES[key] for key in searched}
    assert 0.2 <= values[1]["root_power"] <= 0.3 and 0.5 <= values[1]["temperature"] <= 4
    assert 0.5 <= values[1]["head_shift"] <= 0.6 and values[1]["some_norms"] == 3
    assert told["search"] == values[1], "the second trial trains with what it has drawn"


def test_a_soup_takes_its_own_option(done):
    folder, _ = done
    record = json.loads((folder / "soup" / "run.json").read_text())
    assert list(record["average"]["weights"].values()) == [0.75, 0.25]


def test_their_mistakes_are_told_as_any(done):
    _, told = done
    assert [said in each for said, each in zip(MISTAKES.values(), told["mistakes"], strict=True)] == [True] * 4


def test_what_cannot_become_an_argument_is_told(tmp_path):
    """An argument that is declared twice, and options of a tuning method that is registered after `TuningOptions`."""
    lines = """
from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning

@register_loss("other")
def other(logits, targets, *, temperature: Annotated[float, Hyperparameter("Temperature.")] = 2.0):
    return cross_entropy(logits, targets)

try:
    from ft_focalsam import FocalSAMTrainingArguments
except ValueError as error:
    print(error)

TuningOptions()

@dataclass
class LateOptions(CommonOptions):
    late: int = field(default=3, metadata={"help": "Number."})

@register_tuning("late", options=LateOptions)
def late(model, options):
    print("given", options.late)

model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
try:
    apply_tuning(model, "late", TuningOptions())
except TypeError as error:
    print(error)
apply_tuning(model, "late", LateOptions(late=5))
"""
    output = run_program(tmp_path, lines)
    assert "The argument 'temperature' of other has another default, range or help" in output
    assert "The options have none of LateOptions; give LateOptions(...), or register the tuning method" in output
    assert "given 5" in output


def test_the_page_says_where_they_go(tmp_path):
    page = (ROOT / "docs/extending.md").read_text()
    program = tmp_path / "program.py"
    use = "\nfrom ft_focalsam import class_weights\nprint(class_weights('root_sam', [9, 1], {'power': 0.5}).tolist())"
    program.write_text(page.partition("```python\n")[2].partition("```")[0] + use)
    assert json.loads(run([sys.executable, program]).stdout) == pytest.approx([1 / 3, 1])
    for decorator in ("register_sharpness_method", "register_loss", "register_head", "register_tuning"):
        assert f"@{decorator}" in page
    for decorator in ("register_source", "register_metric", "register_soup"):
        assert f"@{decorator}" in page
