"""LoRA (Hu et al., arXiv 2106.09685), its variants and IA3, through peft."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from peft import IA3Config, LoraConfig
from torch import nn

from ..base.ranges import Range
from ..models import LongTailClassifier
from .registry import PEFT, CommonOptions, find_parts, register_tuning

# What the query, key and value projections and the last layer of the MLP are called in the backbones; timm has the
# three projections in one layer.
QUERY_AND_VALUE = ("q_proj", "query", "v_proj", "value", "qkv")
KEY_AND_VALUE = ("k_proj", "key", "v_proj", "value", "qkv")
MLP_OUTPUT = ("fc2", "down_proj", "weights_out", "c_proj")
# How LoRA may start -> what peft calls it. The others that peft knows are random in a way that loading could not
# repeat, or need data.
LORA_INITS: dict[str, Literal[True, "gaussian", "orthogonal", "pissa", "olora"]] = {
    "default": True,
    "gaussian": "gaussian",
    "orthogonal": "orthogonal",
    "pissa": "pissa",
    "olora": "olora",
}


@dataclass
class LoraOptions(CommonOptions):
    """Of LoRA, in the backbone and in the text tower.

    Args:
        lora_rank (`int`, >= 1): Rank r of the update.
        lora_alpha (`float`, > 0): The update is scaled by alpha / r.
        lora_dropout (`float`, 0 to 1): Dropout in front of the update.
        lora_target_modules (`list[str]`): Names of the layers to act on; by default the query and value projections.
        lora_rslora (`bool`): Scale by alpha / sqrt(r) instead (rsLoRA, arXiv 2312.03732).
        lora_dora (`bool`): Train the magnitude of each row of the weights apart (DoRA, arXiv 2402.09353).
        lora_init (`str`): default (A random, B zero), gaussian, orthogonal, pissa (the principal singular vectors,
            arXiv 2404.02948) or olora (a QR factorisation, arXiv 2406.01775).
    """

    lora_rank: Annotated[int, Range(1)] = field(default=8, metadata={"help": "Rank r of the LoRA update."})
    lora_alpha: Annotated[float, Range(0, open_low=True)] = field(
        default=8.0, metadata={"help": "The LoRA update is scaled by alpha / r."}
    )
    lora_dropout: Annotated[float, Range(0, 1, open_high=True)] = field(
        default=0.0, metadata={"help": "Dropout in front of the LoRA update, 0 to 1."}
    )
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the layers LoRA acts on; by default the query and value projections."},
    )
    lora_rslora: bool = field(default=False, metadata={"help": "Scale the LoRA update by alpha / sqrt(r): rsLoRA."})
    lora_dora: bool = field(
        default=False, metadata={"help": "Train magnitude and direction of the weights separately: DoRA."}
    )
    lora_init: str = field(
        default="default", metadata={"help": "Start of LoRA: default, gaussian, orthogonal, pissa or olora."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_init not in LORA_INITS:
            raise ValueError(f"lora_init is {self.lora_init!r}; choose one of {', '.join(LORA_INITS)}.")


@register_tuning("lora", stage=PEFT, options=LoraOptions)
def lora(model: LongTailClassifier, options: LoraOptions) -> None:
    """Low-rank updates of linear layers, by default of the query and value projections, and of the key's too where
    the three are one layer."""
    names = linear_layers(model.backbone)
    if not names:
        raise ValueError(
            f"The backbone '{model.config.backbone}' has no linear layers for lora to act on; choose another tuning "
            "method, or name its convolutions in peft_config with tuning 'peft'."
        )
    targets = options.lora_target_modules or [name for name in QUERY_AND_VALUE if name in names]
    unknown = [name for name in targets if name.rpartition(".")[2] not in names]
    if unknown or not targets:
        raise ValueError(
            f"lora_target_modules names {unknown or 'nothing'}, which the backbone has no linear layer for; choose "
            f"among {', '.join(sorted(names))}."
        )
    config = LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]  # peft divides it by r: any number will do
        lora_dropout=options.lora_dropout,
        target_modules=_in_tuned_layers(model, options, targets),
        use_rslora=options.lora_rslora,
        use_dora=options.lora_dora,
        init_lora_weights=LORA_INITS[options.lora_init],
    )
    model.wrap_backbone(config)


@register_tuning("ia3", stage=PEFT)
def ia3(model: LongTailClassifier, options: CommonOptions) -> None:
    """IA3 (Liu et al., arXiv 2205.05638): scales of the keys, the values and the input of the MLP's last layer; of the
    queries too where the three are one layer."""
    names = linear_layers(model.backbone)
    attention = [name for name in KEY_AND_VALUE if name in names]
    mlp = [name for name in MLP_OUTPUT if name in names]
    if not attention or not mlp:
        raise ValueError(
            f"The backbone '{model.config.backbone}' has no linear layers called {', '.join(KEY_AND_VALUE)} and "
            f"{', '.join(MLP_OUTPUT)} for ia3; name its own in peft_config with tuning 'peft'."
        )
    mlp = _in_tuned_layers(model, options, mlp)
    attention = _in_tuned_layers(model, options, attention)
    model.wrap_backbone(IA3Config(target_modules=attention + mlp, feedforward_modules=mlp))


def linear_layers(tower: nn.Module) -> set[str]:
    """The last parts of their names."""
    return {name.rpartition(".")[2] for name, m in tower.named_modules() if isinstance(m, nn.Linear)}


def _in_tuned_layers(model: LongTailClassifier, options: CommonOptions, targets: list[str]) -> list[str]:
    """The targets as they are, or, where only some blocks are tuned, the full names of those in them.

    Raises:
        ValueError: If there are none in these blocks.
    """
    if not options.tuned_layers:
        return list(targets)
    found = [
        f"{prefix}.{name}"
        for prefix, block in find_parts(model, options).items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and any(f"{prefix}.{name}".endswith(f".{target}") for target in targets)
    ]
    if not found:
        raise ValueError(
            f"tuned_layers is {options.tuned_layers}, and there is no layer {' or '.join(targets)} in these blocks; "
            "choose other blocks or layers."
        )
    return found
