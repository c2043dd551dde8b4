"""Bottleneck adapters at the MLPs of a frozen transformer: AdaptFormer beside them, the sequential adapter behind.

A bottleneck of width r maps tokens x of size D to up(relu(down(norm(x)))), with `down` of shape (r, D), `up` of shape
(D, r) and a LayerNorm of its own. Both start as in the released code of LIFT (arXiv 2309.10019) and Focal-SAM (arXiv
2505.01660): `down` from N(0, 1 / 3D), `up` and the biases at 0, the scale of AdaptFormer at 1. A new adapter changes
nothing. LIFT+ (arXiv 2504.13282) draws `down` from the uniform distribution of the same variance.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from ..base.ranges import Range
from ..models import LongTailClassifier, register_inserted
from .registry import MLP, CommonOptions, find_layers, register_tuning


class Bottleneck(nn.Module):
    """up(relu(down(norm(x)))), in the dtype of its own weights.

    Args:
        size (`int`): D.
        width (`int`): r.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.down = nn.Linear(size, width)
        self.up = nn.Linear(width, size)
        nn.init.kaiming_normal_(self.down.weight, a=5**0.5)  # variance 2 / (1 + a^2) / D
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        return self.up(torch.relu(self.down(self.norm(x.to(self.norm.weight.dtype)))))


class Scale(nn.Module):
    """s x with one trained number s.

    Args:
        start (`float`): First value of s.
    """

    def __init__(self, start: float):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([float(start)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


class ParallelAdapter(nn.Module):
    """An MLP with a scaled bottleneck beside it: mlp(x) + s up(relu(down(norm(x)))).

    Args:
        mlp (`nn.Module`): The MLP of a block: (B, T, D) to (B, T, D).
        size (`int`): D.
        width (`int`): r.
        scale (`float`): First value of s.
    """

    def __init__(self, mlp: nn.Module, size: int, width: int, scale: float):
        super().__init__()
        self.mlp = mlp
        self.adapter = Bottleneck(size, width)
        self.scale = Scale(scale)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mlp(x)
        return h + self.scale(self.adapter(x)).to(h.dtype)


class SequentialAdapter(nn.Module):
    """An MLP with a bottleneck behind it: h + up(relu(down(norm(h)))) with h = mlp(x).

    Args:
        mlp (`nn.Module`): The MLP of a block: (B, T, D) to (B, T, D).
        size (`int`): D.
        width (`int`): r.
    """

    def __init__(self, mlp: nn.Module, size: int, width: int):
        super().__init__()
        self.mlp = mlp
        self.adapter = Bottleneck(size, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mlp(x)
        return h + self.adapter(h).to(h.dtype)


@register_inserted("adaptformer")
def insert_parallel(model: LongTailClassifier, *, layers: list[int], width: int, scale: float) -> None:
    """A `ParallelAdapter` in the blocks numbered `layers`."""
    blocks, size = model.family.blocks(model.backbone), model.family.hidden_size(model.backbone)
    for index in layers:
        model.family.wrap_mlp(blocks[index], lambda mlp: ParallelAdapter(mlp, size, width, scale))


@register_inserted("adapter")
def insert_sequential(model: LongTailClassifier, *, layers: list[int], width: int) -> None:
    """A `SequentialAdapter` in the blocks numbered `layers`."""
    blocks, size = model.family.blocks(model.backbone), model.family.hidden_size(model.backbone)
    for index in layers:
        model.family.wrap_mlp(blocks[index], lambda mlp: SequentialAdapter(mlp, size, width))


def default_width(num_classes: int, num_blocks: int) -> int:
    """2^floor(log2(C / 2L)), at least 1: the tuned parameters grow with the classes (LIFT, arXiv 2309.10019)."""
    return 1 << max(0, (num_classes // (2 * num_blocks)).bit_length() - 1)


@dataclass
class AdapterOptions(CommonOptions):
    """Of adapters at the MLPs.

    Args:
        adapter_width (`int`, >= 1, *optional*): Width r of the bottleneck of an adapter; by default the power of two
            at or below C / 2L, at least 1, for C classes and a backbone of L blocks (LIFT, arXiv 2309.10019).
        adapter_scale (`float`, > 0): First value of the trained scale of AdaptFormer; 1 in LIFT and Focal-SAM, 0.1
            in the paper of AdaptFormer, which does not train it.
    """

    adapter_width: Annotated[int | None, Range(1)] = field(
        default=None,
        metadata={
            "help": "Width of the bottleneck of an adapter; by default the power of two at or below C / 2L for C "
            "classes and L blocks."
        },
    )
    adapter_scale: Annotated[float, Range(0, open_low=True)] = field(
        default=1.0, metadata={"help": "Initial value of the trained scale of AdaptFormer."}
    )


@register_tuning("adaptformer", stage=MLP, options=AdapterOptions)
def adaptformer(model: LongTailClassifier, options: AdapterOptions) -> None:
    """AdaptFormer (Chen et al., arXiv 2205.13535), with a trained scale as in LIFT."""
    model.insert(
        "adaptformer",
        layers=find_layers(model, options),
        width=_width(model, options),
        scale=options.adapter_scale,
    )


@register_tuning("adapter", stage=MLP, options=AdapterOptions)
def adapter(model: LongTailClassifier, options: AdapterOptions) -> None:
    """Sequential adapters (Houlsby et al., arXiv 1902.00751), one a block (Pfeiffer et al., arXiv 2005.00247)."""
    model.insert("adapter", layers=find_layers(model, options), width=_width(model, options))


def _width(model: LongTailClassifier, options: AdapterOptions) -> int:
    if options.adapter_width is not None:
        return options.adapter_width
    return default_width(len(model.config.class_names), len(model.family.blocks(model.backbone)))
