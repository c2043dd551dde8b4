"""`FocalSAMTrainer` and its arguments, imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arguments import FocalSAMTrainingArguments
    from .trainer import FocalSAMTrainer

__all__ = ["FocalSAMTrainer", "FocalSAMTrainingArguments"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".trainer" if name == "FocalSAMTrainer" else ".arguments", __name__), name)
