"""Classification heads: features in, logits out. A new head is one registered class in this file."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import Registry

# A head is a class built as (feature_size, num_classes, scale). Its start_from(vectors) sets it up to answer by the
# similarity of a feature to one vector a class.
HEADS: Registry[type[nn.Module]] = Registry("head")
register_head = HEADS.register


@register_head("linear")
class LinearHead(nn.Linear):
    """z = W f + b. `scale` is not used."""

    def __init__(self, feature_size: int, num_classes: int, scale: float):
        super().__init__(feature_size, num_classes)

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Nearest-prototype classifier: |f - v_i|^2 is least where f . v_i - |v_i|^2 / 2 is greatest.

        Args:
            vectors (`Tensor` of shape (C, D)): One prototype a class.
        """
        self.weight.copy_(vectors)
        self.bias.copy_(-vectors.square().sum(dim=1) / 2)


@register_head("cosine")
class CosineHead(nn.Module):
    """z_i = scale * cos(f, w_i).

    Args:
        feature_size (`int`): D.
        num_classes (`int`): C.
        scale (`float`, > 0): Inverse temperature; 25 in LIFT (arXiv 2309.10019).
    """

    def __init__(self, feature_size: int, num_classes: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, feature_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1)) * self.scale

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Take the directions of `vectors`, shape (C, D), as class weights."""
        self.weight.copy_(F.normalize(vectors, dim=-1))
