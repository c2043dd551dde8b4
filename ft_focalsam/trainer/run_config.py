"""config.yaml: all settings of a run as they were on this machine, to run it again.

It has local paths, so it is never published; the settings in run.json have none. No token is in either.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments

from ..base.files import atomic_open
from ..data import SOURCES
from ..hub.run_file import changed_settings, is_of_this_run
from ..models.backbones.transformers_models import EMBEDDED
from .run_settings import is_neutral

CONFIG_NAME = "config.yaml"
PATHS = ("test_dataset", "image_root", "class_names", "class_counts", "cache_resized")
PATHS_OR_NAMES = ("dataset", "backbone", "prompt_names", "deepspeed", "fsdp_config", "accelerator_config")


def write_config(options: Sequence[Any]) -> None:
    """Write config.yaml to the output folder of a run.

    Args:
        options (sequence of dataclass instances): All that describes the run; the last one is that of the Trainer.
    """
    folder = Path(options[-1].output_dir).expanduser().absolute()
    with atomic_open(folder / CONFIG_NAME, "w", encoding="utf-8") as file:
        file.write(f"# ft-focalsam train {folder / CONFIG_NAME} --output_dir OTHER\n")
        file.write(_yaml({"output_dir": str(folder)}))
        for each in options:
            title = type(each).__name__.removesuffix("Arguments").removesuffix("Options").removeprefix("FocalSAM")
            file.write(f"\n# {title}\n{_yaml(dict(_settings(each)))}")


def _settings(options: Any) -> Iterator[tuple[str, Any]]:
    """The settings of one dataclass: all that decide what a run computes, and of the others those that were set.

    Of transformers' own only numbers, switches and names are written where they were left at their defaults: the
    others may come from `accelerate launch`.
    """
    changed = changed_settings([options], as_written=_as_written)
    foreign = {field.name for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        value = value.value if isinstance(value, Enum) else value
        is_plain = value is not None and (name not in foreign or isinstance(value, (bool, int, float, str)))
        decides = field.init and is_plain and not (is_neutral(name) or is_of_this_run(name))
        is_chosen = getattr(options, f"_chooses_{name}", None) is False  # left out, it would be chosen anew
        if name in changed:
            yield name, changed[name]
        elif decides or is_chosen:
            yield name, _as_written(name, value)


def _as_written(name: str, value: Any) -> Any:
    """A setting as YAML keeps it, with the whole path where it is a local one."""
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "to_dict"):  # Accelerate's settings
        return value.to_dict()
    if isinstance(value, str) and name in PATHS:
        return os.path.abspath(os.path.expanduser(value))
    if isinstance(value, str):
        return absolute(value) if name in PATHS_OR_NAMES and value not in SOURCES | EMBEDDED else value
    if isinstance(value, (list, tuple)):
        return [_as_written(name, each) for each in value]
    if isinstance(value, dict):
        return {str(key): _as_written(str(key), each) for key, each in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)


def absolute(name: str) -> str:
    """The whole path of what a name leads to, also behind "timm:" or an architecture and a colon; names that lead
    nowhere on this machine, as those of the Hub, stay."""
    parts = name.split(":")
    for index in range(len(parts)):
        path = Path(":".join(parts[index:])).expanduser()
        if path.exists():
            return ":".join([*parts[:index], os.path.abspath(path)])
    return name


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100) if settings else ""
