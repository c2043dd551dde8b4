"""The recipes of published settings against the table of docs/tuning.md, and what is said of the papers' data sets."""

import re
from enum import Enum

import pytest
import yaml
from running import ROOT

from ft_focalsam.cli.arguments import TYPES
from ft_focalsam.cli.config import parse_config
from ft_focalsam.cli.configs import show
from ft_focalsam.evaluation import VIEWS

CONFIGS = ROOT / "recipes" / "configs"
PRESETS = sorted(path.stem for path in (CONFIGS / "published").glob("*.yaml"))
# Of a recipe, what is no setting of a paper: the data, which users choose, and how a run is written down.
NO_SETTINGS = {"dataset", "imbalance_factor", "imbalance_profile", "output_dir", "per_device_eval_batch_size"}
NO_SETTINGS |= {"dataloader_persistent_workers", "logging_steps", "save_strategy", "save_total_limit"}


def table():
    """Preset -> first cell of a row -> cell of the preset, of the section on published settings."""
    section = (ROOT / "docs" / "tuning.md").read_text().partition("\n## Published settings\n")[2].partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith(("| key", "| `"))]
    (_, *names), *rows = [[cell.strip() for cell in line] for line in lines]
    return {name.strip("`"): {row[0]: row[column] for row in rows} for column, name in enumerate(names, start=1)}


def resolved(name):
    """Every key of a recipe as it arrives, in the types of YAML."""
    values = {}
    for options in parse_config(TYPES, [str(CONFIGS / "published" / f"{name}.yaml")]):
        values |= vars(options)
    return {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}


def test_the_table_has_every_preset():
    assert sorted(table()) == PRESETS == ["focal_sam_clip", "lift", "lift_plus"]


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_what_the_table_says(name):
    values, cells = resolved(name), table()[name]
    *rows, views = cells.items()
    compared = set()
    for row, cell in rows:
        key = row.strip("`")
        if cell:
            expected = None if cell == "–" else yaml.safe_load(cell)
            actual = values[key][0] if isinstance(values[key], list) else values[key]
            assert actual == expected and type(actual) in (type(expected), float), key
            compared.add(key)
    assert set(views[1].split(", ")) <= set(VIEWS)
    assert set(yaml.safe_load(show(f"published/{name}"))) - NO_SETTINGS == compared


def test_only_a_preset_with_focal_sam_has_its_numbers_in_the_table():
    for name, cells in table().items():
        used = {bool(cells[f"`{key}`"]) for key in ("rho", "focal_gamma", "focal_lambda")}
        assert used == {resolved(name)["sharpness"] == "focal_sam"}


def test_presets_train_with_what_the_released_code_trains_with():
    """The numbers in its scripts: that no preset changes together with the table."""
    keys = ("num_train_epochs", "learning_rate", "augmentation", "sharpness", "rho", "focal_gamma", "focal_lambda")
    released = {
        "focal_sam_clip": (20, 0.01, "crop_flip", "focal_sam", 0.05, 5.5, 0.8),
        "lift": (10, 0.01, "crop_flip", "none"),
        "lift_plus": (5, 0.02, "minimalist", "none"),
    }
    for name, numbers in released.items():
        values = resolved(name)
        assert tuple(values[key] for key in keys[: len(numbers)]) == numbers
        assert (values["per_device_train_batch_size"], values["weight_decay"], values["head_scale"]) == (128, 5e-4, 25)


def test_the_recipe_for_places_lt_says_that_focal_sam_has_no_settings_for_it():
    comments = {
        path.relative_to(CONFIGS).as_posix(): " ".join(re.findall(r"^# ?(.*)$", path.read_text(), re.MULTILINE))
        for path in CONFIGS.rglob("*.yaml")
    }
    (recipe,) = [name for name, comment in comments.items() if "Places" in comment]
    assert recipe.startswith("places_lt/")
    assert "The Focal-SAM paper (arXiv 2505.01660) has no settings for Places-LT" in comments[recipe]
