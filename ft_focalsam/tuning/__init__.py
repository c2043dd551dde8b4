"""Which parameters train."""

from . import (  # noqa: F401  (importing a file registers its methods)
    adapter,
    any_peft,
    clip_adapter,
    lora,
    prompts,
    sparse,
    ssf,
    text_side,
    unfrozen,
    whole,
)
from .options import TuningOptions
from .registry import (
    TUNING_METHODS,
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
    "TuningOptions",
    "apply_tuning",
    "check_keeps_backbone",
    "choose_methods",
    "describe_methods",
    "describe_parameters",
    "find_layers",
    "register_tuning",
]
