"""An adapter between the backbone and the head (CLIP-Adapter, Gao et al., arXiv 2110.04544)."""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from ..base.ranges import Range
from ..models import LongTailClassifier, register_inserted
from .registry import FEATURES, CommonOptions, register_tuning


class FeatureAdapter(nn.Module):
    """a relu(up(relu(down(f)))) + (1 - a) f, in float32, with layers without bias.

    Args:
        size (`int`): D.
        width (`int`): Of what is between `down` and `up`.
        ratio (`float`, 0 to 1): a.
    """

    def __init__(self, size: int, width: int, ratio: float):
        super().__init__()
        self.down = nn.Linear(size, width, bias=False)
        self.up = nn.Linear(width, size, bias=False)
        self.ratio = ratio

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        features = features.to(self.down.weight.dtype)
        adapted = torch.relu(self.up(torch.relu(self.down(features))))
        return self.ratio * adapted + (1 - self.ratio) * features


@register_inserted("clip_adapter")
def insert_clip_adapter(model: LongTailClassifier, *, width: int, ratio: float) -> None:
    """A `FeatureAdapter` in front of the head."""
    model.neck = FeatureAdapter(model.config.feature_size, width, ratio)


@dataclass
class ClipAdapterOptions(CommonOptions):
    """Of a CLIP-Adapter.

    Args:
        clip_adapter_reduction (`int`, >= 1): The features are squeezed to 1 / this by a CLIP-Adapter.
        clip_adapter_ratio (`float`, 0 to 1): Share of what the CLIP-Adapter gives in the features.
    """

    clip_adapter_reduction: Annotated[int, Range(1)] = field(
        default=4, metadata={"help": "Factor by which the bottleneck of a CLIP-Adapter is narrower than the features."}
    )
    clip_adapter_ratio: Annotated[float, Range(0, 1)] = field(
        default=0.2, metadata={"help": "Share of the CLIP-Adapter's output in the features, 0 to 1."}
    )


@register_tuning("clip_adapter", stage=FEATURES, keeps_backbone=True, options=ClipAdapterOptions)
def clip_adapter(model: LongTailClassifier, options: ClipAdapterOptions) -> None:
    """A bottleneck on the features, with a share of them passed by."""
    width = max(1, model.config.feature_size // options.clip_adapter_reduction)
    model.insert("clip_adapter", width=width, ratio=options.clip_adapter_ratio)
