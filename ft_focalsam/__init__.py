"""Fine-tune vision foundation models on long-tailed images with Focal-SAM.

Names and submodules are imported when they are first used, so that `ft_focalsam.sharpness` needs torch alone.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .losses import make_loss
    from .models import ImageClassifier, LongTailClassifier, LongTailClassifierConfig
    from .sharpness import ClassConditionalSAM, FocalSAM, class_weights, scheduled_rho
    from .trainer import FocalSAMTrainer, FocalSAMTrainingArguments
    from .tuning import TuningOptions, apply_tuning

__version__ = "0.1.0"

__all__ = [
    "ClassConditionalSAM",
    "FocalSAM",
    "FocalSAMTrainer",
    "FocalSAMTrainingArguments",
    "ImageClassifier",
    "LongTailClassifier",
    "LongTailClassifierConfig",
    "TuningOptions",
    "apply_tuning",
    "class_weights",
    "make_loss",
    "scheduled_rho",
]

# Name of `__all__` -> submodule that it is imported from, as above.
_SUBMODULES = {
    "ClassConditionalSAM": "sharpness",
    "FocalSAM": "sharpness",
    "FocalSAMTrainer": "trainer",
    "FocalSAMTrainingArguments": "trainer",
    "ImageClassifier": "models",
    "LongTailClassifier": "models",
    "LongTailClassifierConfig": "models",
    "TuningOptions": "tuning",
    "apply_tuning": "tuning",
    "class_weights": "sharpness",
    "make_loss": "losses",
    "scheduled_rho": "sharpness",
}


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        value = getattr(import_module(f".{_SUBMODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
