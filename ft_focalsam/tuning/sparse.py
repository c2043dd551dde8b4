"""Arbitrary sparse tuning (LIFT, arXiv 2309.10019): a seeded share of the entries of each weight matrix trains.

A linear layer computes with W + S, where S is zero but at the chosen entries, whose values start at 0 and are all that
trains and is saved. Which entries they are follows from the seed and the place of the layer.
"""

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.ranges import SEED, Range
from ..models import LongTailClassifier, register_inserted
from .registry import WEIGHTS, CommonOptions, find_layers, own_modules, register_tuning


class SparselyTunedLinear(nn.Linear):
    """x (W + S)^T + b; W and b are those of another layer, and S holds `values` at `index` of the flattened matrix.

    W + S is formed in float32 and cast to the dtype of x, as autocast does with float32 weights.

    Args:
        linear (`nn.Linear`): The layer whose W and b are taken over.
        ratio (`float`, above 0, to 1): Share of the entries that S may have; at least one has it.
        seed (`list[int]`): Of the choice.
    """

    casts_parameters = True
    index: Tensor

    def __init__(self, linear: nn.Linear, ratio: float, seed: list[int]):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        count = max(1, round(ratio * self.weight.numel()))
        # RandomState's stream is frozen; torch may change what a seed gives from one release to the next.
        index = np.sort(np.random.RandomState(seed).permutation(self.weight.numel())[:count])
        self.register_buffer("index", torch.from_numpy(index.astype(np.int64)), persistent=False)
        self.values = nn.Parameter(torch.zeros(count))

    def forward(self, input: Tensor) -> Tensor:
        """(B, ..., in) to (B, ..., out)."""
        weight = self.weight.to(self.values.dtype).flatten().index_add(0, self.index, self.values)
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, weight.view_as(self.weight).to(input.dtype), bias)


@torch.no_grad()
def merge_sparse(model: LongTailClassifier) -> None:
    """W + S in the place of W, in layers that are `nn.Linear` again and keep their hooks and children."""
    for layer in model.backbone.modules():
        if isinstance(layer, SparselyTunedLinear):
            layer.weight.view(-1).index_add_(0, layer.index, layer.values)
            del layer.values, layer.index
            layer.__class__ = nn.Linear  # type: ignore[assignment]  # its base, of which it has no more than W and b


@register_inserted("sparse", merge=merge_sparse)
def insert_sparse(model: LongTailClassifier, *, layers: list[int], ratio: float, seed: int) -> None:
    """A `SparselyTunedLinear` for each linear layer of the blocks numbered `layers`."""
    blocks = model.family.blocks(model.backbone)
    for number in layers:
        linears = {n: m for n, m in own_modules(blocks[number]) if isinstance(m, nn.Linear)}
        frozen = {name: m for name, m in linears.items() if not m.weight.requires_grad}  # those of the backbone
        for place, (name, linear) in enumerate(frozen.items()):
            parent = blocks[number].get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], SparselyTunedLinear(linear, ratio, [seed, number, place]))


@dataclass
class SparseOptions(CommonOptions):
    """Of sparse tuning.

    Args:
        sparse_ratio (`float`, above 0, to 1): Share of the entries of each weight matrix that sparse tuning trains.
        sparse_seed (`int`, >= 0): Which entries these are.
    """

    sparse_ratio: Annotated[float, Range(0, 1, open_low=True)] = field(
        default=0.01,
        metadata={"help": "Share of the entries of each weight matrix that sparse tuning trains."},
    )
    sparse_seed: Annotated[int, SEED] = field(
        default=0, metadata={"help": "Seed that chooses the entries of sparse tuning."}
    )


@register_tuning("sparse", stage=WEIGHTS, options=SparseOptions)
def sparse(model: LongTailClassifier, options: SparseOptions) -> None:
    """A share of the entries of every weight matrix of the tuned blocks."""
    model.insert("sparse", layers=find_layers(model, options), ratio=options.sparse_ratio, seed=options.sparse_seed)
