"""A head as what it is in the end: class vectors, a bias, a scale, and a normalisation of the features before."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models import LongTailClassifier

NONE, UNIT_LENGTH, LAYER_NORM = "none", "unit_length", "layer_norm"
NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    NONE: lambda features: features,
    UNIT_LENGTH: lambda features: F.normalize(features, dim=-1),
    LAYER_NORM: lambda features: F.layer_norm(features, features.shape[-1:]),
}


@dataclass(frozen=True)
class ClassVectors:
    """logits = scale * normalised(features) @ weight.T + bias

    Attributes:
        weight (`Tensor` of shape (C, D)): One vector a class.
        bias (`Tensor` of shape (C,)): One number a class.
        scale (`Tensor` of shape ()): A number above 0.
        normalisation (`str`): A name in `NORMALISATIONS`.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    normalisation: str

    def logits(self, features: Tensor) -> Tensor:
        """Features of shape (B, D) to logits of shape (B, C)."""
        return self.scale * NORMALISATIONS[self.normalisation](features) @ self.weight.T + self.bias


def _make(weight: Tensor, bias: Tensor | None, *, scale: float = 1.0, normalisation: str = NONE) -> ClassVectors:
    bias = torch.zeros(len(weight)) if bias is None else bias
    return ClassVectors(weight.contiguous(), bias.contiguous(), torch.tensor(float(scale)), normalisation)


def _layer_norm(head: nn.Module) -> ClassVectors:
    """W (gamma n + beta) + b, with n the normalised features, as (W gamma) n + (W beta + b)."""
    weight, norm = head.linear.weight, head.norm
    return _make(weight * norm.weight, weight @ norm.bias + head.linear.bias, normalisation=LAYER_NORM)


# By the name of the head. A new head that can be written in this way is one entry.
CLASS_VECTORS: dict[str, Callable[[nn.Module], ClassVectors]] = {
    "linear": lambda head: _make(head.weight, head.bias),
    "cosine": lambda head: _make(F.normalize(head.weight, dim=-1), None, scale=head.scale, normalisation=UNIT_LENGTH),
    "l2_normalized": lambda head: _make(
        head.linear.weight, head.linear.bias, scale=head.scale, normalisation=UNIT_LENGTH
    ),
    "layer_norm": _layer_norm,
}


def check_head(model: LongTailClassifier) -> None:
    """Raise a `ValueError` where the head of a classifier cannot be written in this way."""
    if model.config.head not in CLASS_VECTORS:
        raise ValueError(
            f"The head is {model.config.head!r}, which is not one vector a class; export to onnx, which takes any "
            f"head, or train with one of {', '.join(CLASS_VECTORS)}."
        )


@torch.no_grad()
def class_vectors(model: LongTailClassifier) -> ClassVectors:
    """The head of a merged classifier."""
    return CLASS_VECTORS[model.config.head](model.head)
