"""Visual prompt tuning (Jia et al., arXiv 2203.12119): trained tokens in the sequence of a frozen transformer.

The sequence is: class token, P prompts, patches. Shallow prompts enter in front of the first block and go through all
of them; deep ones are replaced by fresh ones in front of every block. Features are read from the class token, at
position 0, so what comes out in the place of the prompts is never read. A backbone without a class token (SigLIP) has
the prompts behind its first patch, and pools over them too. Where it counts on more tokens in front than the class
token (timm's registers and distillation token), the prompts come behind them.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from ..base.ranges import Range
from ..models import LongTailClassifier, register_inserted
from .registry import TOKENS, CommonOptions, find_layers, register_tuning


class Prompts(nn.Module):
    """P trained tokens behind the class token, or behind the first `first` tokens.

    They start uniform within sqrt(6 / (3 p^2 + D)), Xavier's bound for the projection of patches of p x p pixels.

    Args:
        length (`int`): P.
        size (`int`): D.
        patch_area (`int`): p^2.
        replaces (`int`): How many tokens they take the place of: those of an earlier block.
        first (`int`): How many tokens keep their places in front of them.
    """

    def __init__(self, length: int, size: int, patch_area: int, *, replaces: int = 0, first: int = 1):
        super().__init__()
        self.replaces = replaces
        self.first = first
        bound = math.sqrt(6 / (3 * patch_area + size))
        self.weight = nn.Parameter(torch.empty(length, size).uniform_(-bound, bound))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) to (B, T + P - replaces, D)."""
        # Not len(tokens), which would fix the size of the batch where the model is traced.
        prompts = self.weight.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        return torch.cat([tokens[:, : self.first], prompts, tokens[:, self.first + self.replaces :]], dim=1)


class PromptedBlock(nn.Module):
    """A transformer block with prompts in front of it; other arguments go to the block."""

    def __init__(self, prompts: Prompts, block: nn.Module):
        super().__init__()
        self.prompts = prompts
        self.block = block

    def forward(self, tokens: Tensor, *args, **kwargs) -> Tensor:
        return self.block(self.prompts(tokens), *args, **kwargs)


@register_inserted("prompts")
def insert_prompts(model: LongTailClassifier, *, layers: list[int], length: int) -> None:
    """`Prompts` in front of the blocks numbered `layers`; the first enter the sequence, the others replace them."""
    family, backbone = model.family, model.backbone
    blocks, size, area = family.blocks(backbone), family.hidden_size(backbone), family.patch_area(backbone)
    for index in layers:
        replaces = 0 if index == layers[0] else length
        prompts = Prompts(length, size, area, replaces=replaces, first=family.num_prefix_tokens(backbone))
        blocks[index] = PromptedBlock(prompts, blocks[index])


@dataclass
class PromptOptions(CommonOptions):
    """Of prompts in the sequence.

    Args:
        prompt_length (`int`, >= 1): Prompts in front of a block.
    """

    prompt_length: Annotated[int, Range(1)] = field(
        default=10, metadata={"help": "Number of prompts in front of a block."}
    )


@register_tuning("vpt_shallow", stage=TOKENS, options=PromptOptions)
def vpt_shallow(model: LongTailClassifier, options: PromptOptions) -> None:
    """Prompts in front of the first block."""
    model.insert("prompts", layers=[0], length=options.prompt_length)


@register_tuning("vpt_deep", stage=TOKENS, options=PromptOptions)
def vpt_deep(model: LongTailClassifier, options: PromptOptions) -> None:
    """Fresh prompts in front of every tuned block; in front of another one the latest stay in the sequence."""
    model.insert("prompts", layers=find_layers(model, options), length=options.prompt_length)
