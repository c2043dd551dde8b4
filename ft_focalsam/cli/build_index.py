"""Writes `keys.json` from the parsers of the commands: python -m ft_focalsam.cli.build_index."""

import argparse
import inspect
import json
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version
from typing import Any

from ..tuning import CommonOptions
from .config import config_parser
from .key_index import INDEX
from .main import FILES

SECTIONS = {  # name of the class that declares a key -> section and title
    "DataArguments": ("data", "Images: where they come from, splits, long-tail cuts, augmentation"),
    "ModelArguments": ("model", "Backbone, head, and the tuning method"),
    "TuningOptions": ("tuning", "Settings of the tuning methods"),
    "TrainingArguments": ("trainer", "Arguments of transformers' Trainer"),
    "FocalSAMTrainingArguments": ("trainer", "Arguments of transformers' Trainer"),
}


def section_of(key: str, argument_types: Iterable[type]) -> tuple[str, str] | None:
    """Name and title of the section of a key: those of the class that declares it."""
    for argument_type in argument_types:
        for each in argument_type.__mro__:
            if key in inspect.get_annotations(each):
                name = "TuningOptions" if issubclass(each, CommonOptions) else each.__name__.lstrip("_")
                if name in SECTIONS:
                    return SECTIONS[name]
                title = (each.__doc__ or "").strip().split("\n")[0].rstrip(".")
                return name.removesuffix("Arguments").removesuffix("Options").lower(), title
    return None


def entry_of(action: argparse.Action) -> dict[str, Any]:
    """What the index says of a key."""
    if action.choices is not None:
        takes = "|".join(map(str, action.choices))
    elif action.nargs == 0:
        takes = ""
    else:
        takes = str(action.metavar or getattr(action.type, "__name__", "str")).replace("string_to_bool", "bool")
    if action.nargs in ("+", "*"):
        takes += " ..."
    default = action.default if action.default not in (argparse.SUPPRESS, "", [], False) else None
    default = " ".join(map(str, default)) if isinstance(default, list | tuple) else default
    names = [each.removeprefix("--") for each in action.option_strings if "-" not in each.removeprefix("--")]
    help_text = "" if action.help in (None, argparse.SUPPRESS) else action.help.replace("%%", "%")
    name = action.dest if action.dest in names or not names else names[0]
    aliases = [each for each in names if each != name]
    return {
        "name": name,
        **({"aliases": aliases} if aliases else {}),
        "takes": takes,
        "help": help_text,
        "default": None if default is None else str(default),
    }


def positional(action: argparse.Action) -> dict[str, Any]:
    """What the index says of an argument without a name."""
    name = str(action.metavar or action.dest)
    usage = {"+": f"{name} ...", "?": f"[{name}]"}.get(str(action.nargs), name)
    return entry_of(action) | {"name": name, "takes": "", "usage": usage}


def build() -> dict[str, Any]:
    """The index, as `read_index` says."""
    sections: dict[str, dict] = {}
    commands: dict[str, dict] = {}
    for name, file in FILES.items():
        module = import_module(f".{file}", __package__)
        parser, further = module.make_parser(), getattr(module, "FURTHER", ())
        types = [*getattr(module, "TYPES", ()), *further]
        actions = [*parser._actions, *(config_parser(further)._actions if further else ())]
        positionals, used = [], []
        for action in actions:
            if not action.option_strings:
                positionals.append(positional(action))
            elif action.dest != "help" and not action.option_strings[0].startswith("--no_"):
                section, title = section_of(action.dest, types) or (name, f"Keys of ft-focalsam {name}")
                place = sections.setdefault(section, {"title": title, "keys": []})
                if section not in used:
                    used.append(section)
                entry = entry_of(action)
                if entry["name"] not in [each["name"] for each in place["keys"]]:
                    place["keys"].append(entry)
        needed = [each.dest for each in parser._actions if each.option_strings and each.required]
        words = [
            "ft-focalsam",
            name,
            *(each["usage"] for each in positionals),
            *(f"--{key} {key.upper()}" for key in needed),
            "[--key value ...]",
        ]
        commands[name] = {
            "usage": getattr(module, "USAGE", None) or " ".join(words),
            "description": module.__doc__,
            "positionals": positionals,
            "sections": sorted(used, key=lambda each: (each == "trainer", each != name)),
            "reads_config": getattr(module, "READS_CONFIG", False),
        }
    return {"transformers": version("transformers"), "sections": sections, "commands": commands}


if __name__ == "__main__":
    INDEX.write_text(json.dumps(build(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
