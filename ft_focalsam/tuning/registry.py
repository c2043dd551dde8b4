"""Tuning methods by name. A new method is one file in this folder, imported in `__init__.py`."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from ..models import LongTailClassifier
from ..registry import Registry


@dataclass
class TuningOptions:
    """Sizes and places of what is tuned; each method reads its own.

    Args:
        lora_rank (`int`, >= 1): Rank r of the update.
        lora_alpha (`float`, > 0): The update is scaled by alpha / r.
        lora_dropout (`float`, 0 to 1): Dropout in front of the update.
        lora_target_modules (`list[str]`): Names of the layers to act on; by default the query and value projections.
        adapter_width (`int`, >= 1, *optional*): Width r of the bottleneck of an adapter; by default the power of two
            at or below C / 2L, at least 1, for C classes and a backbone of L blocks (LIFT, arXiv 2309.10019).
        adapter_scale (`float`, > 0): First value of the trained scale of AdaptFormer; 0.1 in its paper, 1 in LIFT.
        prompt_length (`int`, >= 1): Prompts in front of a block.
        tuned_layers (`list[int]`): Numbers, from 0, of the blocks that adapters and deep prompts act on; by default
            all of them.

    Raises:
        ValueError: If a size is out of range.
    """

    lora_rank: int = field(default=8, metadata={"help": "Rank r of the LoRA update."})
    lora_alpha: float = field(default=8.0, metadata={"help": "The LoRA update is scaled by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the LoRA update, 0 to 1."})
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the layers LoRA acts on; by default the query and value projections."},
    )
    adapter_width: int | None = field(
        default=None,
        metadata={
            "help": "Width of the bottleneck of an adapter; by default the power of two at or below C / 2L for C "
            "classes and L blocks."
        },
    )
    adapter_scale: float = field(default=0.1, metadata={"help": "First value of the trained scale of AdaptFormer."})
    prompt_length: int = field(default=10, metadata={"help": "Prompts in front of a block."})
    tuned_layers: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers, from 0, of the blocks that adapters and deep prompts act on; by default all."},
    )

    def __post_init__(self) -> None:
        if self.adapter_width is not None and self.adapter_width < 1:
            raise ValueError(f"adapter_width is {self.adapter_width}; set it to 1 or more, or leave it out.")
        if not (self.adapter_scale > 0 and math.isfinite(self.adapter_scale)):
            raise ValueError(f"adapter_scale is {self.adapter_scale}; set it to a number above 0.")
        if self.prompt_length < 1:
            raise ValueError(f"prompt_length is {self.prompt_length}; set it to 1 or more.")


# A method is a function (model, options) that makes exactly what it tunes require a gradient, in float32. It finds the
# backbone frozen and the head trainable.
TUNING_METHODS: Registry[Callable[[LongTailClassifier, TuningOptions], None]] = Registry("tuning method")
register_tuning = TUNING_METHODS.register


def apply_tuning(model: LongTailClassifier, name: str, options: TuningOptions | None = None) -> None:
    """Choose what of a classifier trains, beside its head.

    Args:
        model (`LongTailClassifier`): A new classifier; changed in place.
        name (`str`): A name in `TUNING_METHODS`: "adapter", "adaptformer", "lora", "vpt_deep", "vpt_shallow",
            "linear_probe" or "full".
        options (`TuningOptions`, *optional*): Sizes and places.

    Raises:
        ValueError: If the method is unknown, an option does not fit the model, or an adapter or prompts are there.
    """
    method = TUNING_METHODS.choose(name)
    model.check_is_new()
    model.backbone.requires_grad_(False)
    method(model, options or TuningOptions())


def find_layers(model: LongTailClassifier, options: TuningOptions) -> list[int]:
    """Numbers of the blocks to tune, from 0, in order.

    Raises:
        ValueError: If `tuned_layers` names a block that the backbone does not have.
    """
    count = len(model.family.blocks(model.backbone))
    wrong = [index for index in options.tuned_layers if not 0 <= index < count]
    if wrong:
        raise ValueError(
            f"tuned_layers names {wrong[0]}, and the backbone '{model.config.backbone}' has the blocks 0 to "
            f"{count - 1}; choose among them, or leave it out for all."
        )
    return sorted(set(options.tuned_layers)) or list(range(count))


def describe_parameters(model: nn.Module) -> str:
    """One line: how many parameters are trained, of how many, in percent."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"Trained parameters: {trained:,} of {total:,} ({trained / total:.2%})"
