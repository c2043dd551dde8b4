"""LoRA (Hu et al., arXiv 2106.09685), through peft."""

from peft import LoraConfig
from torch import nn

from ..models import LongTailClassifier
from .registry import TuningOptions, register_tuning

# What the query and value projections are called in the backbones.
QUERY_AND_VALUE = ("q_proj", "query", "v_proj", "value")


@register_tuning("lora")
def lora(model: LongTailClassifier, options: TuningOptions) -> None:
    """Low-rank updates of linear layers, by default of the query and value projections."""
    names = {name.rpartition(".")[2] for name, m in model.backbone.named_modules() if isinstance(m, nn.Linear)}
    targets = options.lora_target_modules or [name for name in QUERY_AND_VALUE if name in names]
    unknown = [name for name in targets if name.rpartition(".")[2] not in names]
    if unknown or not targets:
        raise ValueError(
            f"lora_target_modules names {unknown or 'nothing'}, which the backbone has no linear layer for; choose "
            f"among {', '.join(sorted(names))}."
        )
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=targets,
    )
    model.wrap_backbone(config)
