"""Tuning methods by name. A new method is one file in this folder, imported in `__init__.py`."""

from collections.abc import Callable
from dataclasses import dataclass, field

from peft import PeftModel
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
    """

    lora_rank: int = field(default=8, metadata={"help": "Rank r of the LoRA update."})
    lora_alpha: float = field(default=8.0, metadata={"help": "The LoRA update is scaled by alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout in front of the LoRA update, 0 to 1."})
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the layers LoRA acts on; by default the query and value projections."},
    )


# A method is a function (model, options) that makes exactly what it tunes require a gradient, in float32. It finds the
# backbone frozen and the head trainable.
TUNING_METHODS: Registry[Callable[[LongTailClassifier, TuningOptions], None]] = Registry("tuning method")
register_tuning = TUNING_METHODS.register


def apply_tuning(model: LongTailClassifier, name: str, options: TuningOptions | None = None) -> None:
    """Choose what of a classifier trains, beside its head.

    Args:
        model (`LongTailClassifier`): A new classifier; changed in place.
        name (`str`): A name in `TUNING_METHODS`: "lora", "linear_probe" or "full".
        options (`TuningOptions`, *optional*): Sizes and places.

    Raises:
        ValueError: If the method is unknown, an option does not fit the model, or it has an adapter already.
    """
    method = TUNING_METHODS.choose(name)
    if isinstance(model.backbone, PeftModel):
        adapter = model.backbone.active_peft_config.peft_type.value.lower()
        raise ValueError(f"The classifier has an adapter ({adapter}) already; start from a new one: from_backbone.")
    model.backbone.requires_grad_(False)
    method(model, options or TuningOptions())


def describe_parameters(model: nn.Module) -> str:
    """One line: how many parameters are trained, of how many, in percent."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"Trained parameters: {trained:,} of {total:,} ({trained / total:.2%})"
