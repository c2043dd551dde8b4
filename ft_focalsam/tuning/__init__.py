"""Which parameters train."""

from . import adapter, any_peft, lora, prompts, sparse, ssf, unfrozen, whole  # noqa: F401  (importing a file registers its methods)
from .options import TuningOptions
from .registry import TUNING_METHODS, apply_tuning, choose_methods, describe_parameters, register_tuning

__all__ = [
    "TUNING_METHODS",
    "TuningOptions",
    "apply_tuning",
    "choose_methods",
    "describe_parameters",
    "register_tuning",
]
