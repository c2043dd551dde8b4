"""run.json: what a run was, beside its model, so that a card can be made from the folder at any later time.

It is meant to be published: no token, no folder of this machine.
"""

import dataclasses
import json
import os
import platform
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..base.parsing import read_json_object
from ..base.versions import checkout, library_versions
from ..data import SOURCES
from ..losses import LOSSES
from ..models.backbones import is_pretrained, split_name
from ..sharpness import DIRECTIONS, SHARPNESS_METHODS
from ..sharpness.hyperparameters import by_argument
from ..tuning import CommonOptions, choose_methods

RUN_NAME = "run.json"
# Arguments of the Trainer that say how a run is trained, beside the hyperparameters of its methods.
METHOD = (
    "sharpness",
    "rho",
    "rho_schedule",
    "rho_initial",
    "rho_step_at",
    "sharpness_schedule",
    "sharpness_initial",
    "sharpness_initial_values",
    "sharpness_step_at",
    "adaptive_rho",
    "perturbation_scope",
    "perturb",
    "ascent",
    "evaluation",
    "ascent_interval",
    "loss",
    "train_sampler",
    "num_train_epochs",
    "max_steps",
    "seed",
)
# Where a run writes and what it pushes, which another one does otherwise.
_OF_THIS_RUN = (
    *("output_dir", "push_to_hub", "resume_from_checkpoint", "resume_changed", "overwrite"),
    *("logging_dir", "report_to", "run_name"),
)


def describe_run(
    trainer,
    *,
    options: Sequence[Any] = (),
    argv: Sequence[str] | None = None,
    data_notes: Sequence[str] = (),
    seconds: float | None = None,
) -> dict:
    """What a run was, as run.json holds it.

    Args:
        trainer (`FocalSAMTrainer`): Of the run.
        options (sequence of dataclass instances): All that describes the run, where that is more than the arguments of
            the Trainer: [`~ft_focalsam.data.DataArguments`], [`~ft_focalsam.cli.arguments.ModelArguments`], ...
        argv (sequence of `str`, *optional*): The command line behind `recipes/finetune.py`.
        data_notes (sequence of `str`): What was told about the images when they were read, e.g. which were skipped.
        seconds (`float`, *optional*): What the run took until now, since it was started or resumed.

    Returns:
        `dict`: "method", "data", "model", "command", "settings" (arguments that are not at their default), "resolved"
        (all settings that decide what the run computes), "fingerprint" (of these), "changes" (what was changed at a
        resume), "date" (the end of the run, ISO 8601), "seconds" (since it was started or resumed), "device",
        "git" (commit of the checkout of this package, and whether it was changed; null for an installed package) and
        "versions".
    """
    args, model = trainer.args, trainer.model
    values = {field.name: getattr(each, field.name) for each in options for field in dataclasses.fields(each)}
    dataset, counts, config = values.get("dataset"), trainer.class_counts, getattr(model, "config", None)
    backbone = getattr(config, "backbone", None) or getattr(config, "_name_or_path", None) or ""
    return {
        "method": _method(args),
        "data": {
            "name": None if dataset is None else _public(dataset),
            "hub_id": hub_id(dataset) if dataset not in SOURCES else None,
            "imbalance_factor": values.get("imbalance_factor"),
            "images": None if counts is None else int(trainer.num_samples),
            "is_multi_label": trainer.is_multi_label,
            "class_counts": None if counts is None else [int(count) for count in counts],
            "many_shot_threshold": args.many_shot_threshold,
            "few_shot_threshold": args.few_shot_threshold,
            "notes": [_without_folders(note) for note in data_notes],
        },
        "model": {
            "base_model": base_model(backbone),
            "revision": _revision(model),
            "tuning": values.get("tuning"),
            "tuning_options": _tuning_options(values),
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        },
        "command": None if argv is None else _command(argv, args),
        "settings": changed_settings([*options] if options else [args], as_written=lambda _, value: _plain(value)),
        **_resolved(trainer),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": None if seconds is None else round(seconds, 1),
        "device": _device(args),
        "git": checkout(),
        "versions": library_versions(),
    }


def _tuning_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the tuning methods have of their own, where it is not at its default."""
    methods = choose_methods(values["tuning"]) if values.get("tuning") else []
    common = {field.name for field in dataclasses.fields(CommonOptions)}
    return {
        field.name: _plain(values[field.name])
        for method in methods
        for field in dataclasses.fields(method.options)
        if field.name not in common and values.get(field.name, field.default) not in (field.default, [])
    }


def _method(args) -> dict[str, Any]:
    methods = [*(method.make for method in SHARPNESS_METHODS.values()), *DIRECTIONS.values(), LOSSES[args.loss]]
    names = [*METHOD, *(name for name in by_argument(methods) if hasattr(args, name))]
    return {name: _plain(getattr(args, name)) for name in names}


def write_run(folder: str | os.PathLike, description: dict) -> None:
    """Write run.json."""
    text = json.dumps(description, indent=2, ensure_ascii=False)
    Path(folder, RUN_NAME).write_text(text + "\n", encoding="utf-8")


def read_run(folder: str | os.PathLike) -> dict:
    """What is in run.json, with empty sections where there is none.

    Raises:
        ValueError: If it is no JSON object.
    """
    path = Path(folder, RUN_NAME)
    sections = {"method": {}, "data": {}, "model": {}, "command": None, "settings": {}, "versions": {}}
    return {**sections, **read_json(path)}


def read_json(path: Path) -> dict:
    """The object in a JSON file of a run, empty where there is no such file.

    Raises:
        ValueError: If it is no JSON object.
    """
    if not path.is_file():
        return {}
    return read_json_object(path, called=f"'{path}'", remedy="write it again, or remove it")


def hub_id(name: str | None) -> str | None:
    """The name as that of a Hub repository, None where it is a path or no such name."""
    if name is None or name.count("/") != 1 or name.startswith((".", "~", "/")) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def base_model(backbone: str) -> str | None:
    """The Hub repository of a backbone, None where it has none that its name tells."""
    _, name = split_name(backbone)
    if not is_pretrained(backbone):
        return None
    return hub_id(name.removeprefix("hf-hub:"))


def settings_yaml(settings: dict) -> str:
    """Settings as a YAML file for `recipes/finetune.py`."""
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def changed_settings(options: Sequence[Any], *, as_written: Callable[[str, Any], Any]) -> dict[str, Any]:
    """What differs from the defaults, as these come out on this machine, and is not of one run alone.

    Args:
        options (sequence of dataclass instances): What describes the run.
        as_written (`Callable`): Name and value of a setting -> its value as JSON and YAML know it.
    """
    settings = {}
    for each in options:
        with _accelerate_kept():
            default = type(each)()
        for field in dataclasses.fields(each):
            value = getattr(each, field.name)
            if field.init and not is_of_this_run(field.name) and value != getattr(default, field.name):
                settings[field.name] = as_written(field.name, value)
    return settings


def _revision(model) -> str | None:
    """Commit of the Hub that the weights of a backbone of transformers are from; None where that is not known."""
    config = getattr(getattr(model, "backbone", model), "config", None)
    return getattr(config, "_commit_hash", None)


def _device(args) -> dict[str, Any]:
    """What a run was computed on, and by how many processes."""
    is_cuda = args.device.type == "cuda"
    name = torch.cuda.get_device_name(args.device) if is_cuda else platform.processor() or platform.machine()
    return {"type": args.device.type, "name": name, "processes": args.world_size}


def _resolved(trainer) -> dict[str, Any]:
    settings = getattr(trainer, "run_settings", None)
    if settings is None:  # of another Trainer
        return {}
    return {"resolved": settings, "fingerprint": trainer.fingerprint, "changes": trainer.changes}


@contextmanager
def _accelerate_kept() -> Iterator[None]:
    """Arguments of a Trainer reset Accelerate's state when they are made, which a trainer may still need."""
    states = [each._shared_state for each in (AcceleratorState, PartialState)]
    kept = [dict(state) for state in states]
    try:
        yield
    finally:
        for state, before in zip(states, kept, strict=True):
            state.clear()
            state.update(before)


def is_of_this_run(name: str) -> bool:
    """Whether a setting says where a run writes or what it pushes, tokens among them."""
    return name in _OF_THIS_RUN or name.startswith("hub_") or "token" in name.split("_")


def _command(argv: Sequence[str], args) -> str:
    """The command that runs this again: without what is of this run alone, tokens first of all."""
    kept: list[str] = []
    leaves_out = False
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            leaves_out = is_of_this_run(name)
        if not leaves_out:
            key, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            kept.append(f"{key}{equals}{_public(value)}" if equals or not key else word)
    devices = ("multi_" if args.world_size > 1 else "single_") + ("cpu" if args.device.type == "cpu" else "gpu")
    launcher = f"accelerate_configs/{devices.replace('single_cpu', 'cpu')}.yaml"
    processes = ["--num_processes", str(args.world_size)] if args.world_size > 1 else []
    words = ["accelerate", "launch", "--config_file", launcher, *processes, "recipes/finetune.py", *kept]
    return shlex.join(words)


def _public(value: str) -> str:
    """A path of this machine as a reader can take it: relative, or its last part."""
    path = Path(value).expanduser()
    if not (path.is_absolute() or value.startswith("~")):
        return value
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return f"path/to/{path.name}"


def _without_folders(note: str) -> str:
    """A sentence in which paths are the names of their files."""
    return re.sub(r"'[^'\n]*[/\\]", "'", note.strip())


def _plain(value: Any) -> Any:
    """A setting as JSON and YAML know it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return _public(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else str(value)
