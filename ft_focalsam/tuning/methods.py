"""All methods: importing this file imports every file of this folder, and so registers what is in it."""

import pkgutil
from importlib import import_module
from pathlib import Path

from .registry import (
    TUNING_METHODS,
    CommonOptions,
    apply_tuning,
    check_keeps_backbone,
    choose_methods,
    describe_methods,
    describe_parameters,
    find_layers,
    register_tuning,
)

__all__ = [
    "TUNING_METHODS",
    "CommonOptions",
    "apply_tuning",
    "check_keeps_backbone",
    "choose_methods",
    "describe_methods",
    "describe_parameters",
    "find_layers",
    "register_tuning",
]

for _file in pkgutil.iter_modules([str(Path(__file__).parent)]):
    if _file.name not in ("methods", "options"):
        import_module(f".{_file.name}", __package__)
