"""Which parameters train."""

from . import adapter, lora, prompts, whole  # noqa: F401  (importing a file registers its methods)
from .registry import TUNING_METHODS, TuningOptions, apply_tuning, describe_parameters, register_tuning

__all__ = ["TUNING_METHODS", "TuningOptions", "apply_tuning", "describe_parameters", "register_tuning"]
