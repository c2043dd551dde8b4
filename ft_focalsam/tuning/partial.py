"""Training some of the backbone's own parameters: its biases, its normalisation layers, its last blocks.

They keep their names. That is why `norms` does not go through peft's LNTuning, which trains a second copy of each
layer: here a checkpoint holds the weights under the names that transformers loads.
"""

from dataclasses import dataclass, field
from typing import Annotated

from torch import nn

from ..base.ranges import Range
from ..models import LongTailClassifier
from ..models.precision import raise_to_float32
from .registry import PARAMETERS, CommonOptions, find_parts, own_modules, register_tuning


def unfreeze(model: LongTailClassifier, names: list[str], *, kind: str) -> None:
    """Train parameters of the backbone, in float32.

    Args:
        model (`LongTailClassifier`): The model.
        names (`list[str]`): Their names in the backbone.
        kind (`str`): What they are, for the error message.

    Raises:
        ValueError: If there are none.
    """
    if not names:
        raise ValueError(
            f"The backbone '{model.config.backbone}' has no {kind} where they were to be tuned; choose another tuning "
            "method, or leave tuned_layers out."
        )
    for name in names:
        model.backbone.get_parameter(name).requires_grad_(True)
    raise_to_float32(model.backbone, names)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with weights: LayerNorm, GroupNorm, or one called ...Norm."""
    named = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) or "Norm" in type(module).__name__
    return named and any(p is not None for p in module._parameters.values())


def _parameters(parts: dict[str, nn.Module], wanted=lambda module, name, parameter: True) -> list[str]:
    return [
        f"{module_name}.{name}" if module_name else name
        for prefix, part in parts.items()
        for module_name, module in own_modules(part, prefix)
        for name, parameter in module.named_parameters(recurse=False)
        if wanted(module, name, parameter)
    ]


@register_tuning("bias", stage=PARAMETERS)
def bias(model: LongTailClassifier, options: CommonOptions) -> None:
    """All bias vectors (BitFit, Ben Zaken et al., arXiv 2106.10199)."""
    names = _parameters(find_parts(model, options), lambda module, name, p: name.endswith("bias") and p.ndim == 1)
    unfreeze(model, names, kind="biases")


@register_tuning("norms", stage=PARAMETERS)
def norms(model: LongTailClassifier, options: CommonOptions) -> None:
    """Weights and biases of the normalisation layers (as in Frankle et al., arXiv 2003.00152, for batch norms)."""
    names = _parameters(find_parts(model, options), lambda module, name, p: is_norm(module))
    unfreeze(model, names, kind="normalisation layers")


@dataclass
class LastBlocksOptions(CommonOptions):
    """Of partial fine-tuning.

    Args:
        last_blocks (`int`, >= 1): How many of the last blocks the method of that name trains.
    """

    last_blocks: Annotated[int, Range(1)] = field(
        default=1, metadata={"help": "Number of blocks that last_blocks trains."}
    )


@register_tuning("last_blocks", stage=PARAMETERS, options=LastBlocksOptions)
def last_blocks(model: LongTailClassifier, options: LastBlocksOptions) -> None:
    """The last k blocks and the norm behind them ("partial fine-tuning" in LIFT, arXiv 2309.10019).

    Raises:
        ValueError: If the backbone has fewer blocks.
    """
    blocks = model.family.blocks(model.backbone)
    k = options.last_blocks
    if k > len(blocks):
        raise ValueError(
            f"last_blocks is {k}, and the backbone '{model.config.backbone}' has {len(blocks)} blocks; set it to "
            f"{len(blocks)} or less, or choose the tuning method full."
        )
    modules = list(own_modules(model.backbone))
    place = next(name for name, module in modules if module is blocks)
    behind = [name for name, _ in modules].index(f"{place}.{len(blocks) - 1}")
    parts = {f"{place}.{index}": blocks[index] for index in range(len(blocks) - k, len(blocks))}
    in_blocks = f"{place}."
    parts |= {n: m for n, m in modules[behind:] if is_norm(m) and not n.startswith(in_blocks)}
    unfreeze(model, _parameters(parts), kind="parameters in its last blocks")
