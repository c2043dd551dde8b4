"""All methods: importing this file registers them."""

from . import (  # noqa: F401
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
    "apply_tuning",
    "check_keeps_backbone",
    "choose_methods",
    "describe_methods",
    "describe_parameters",
    "find_layers",
    "register_tuning",
]
