"""Where c(n) is the same number for all samples, as in SAM: the gradient of L_c is that multiple of the one of L."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .base import BatchLosses, GradientPair, add_to, gradients_apart
from .rules import sum_dtype


class ScaledGradient(GradientPair):
    """One backward pass, for any model.

    Args:
        model (`nn.Module`): As for `GradientPair`.
        weight (`float`): c(n), which may change between two steps. A sample that is to have none of it has to have a
            loss of 0.
        perturb (`str`): As for `GradientPair`.
    """

    def __init__(self, model: nn.Module, weight: float = 1.0, *, perturb: str = "trained"):
        super().__init__(model, perturb=perturb)
        self.weight = weight

    def watch(self, weights: Tensor) -> AbstractContextManager[None]:
        return self._merged_weights_watched()

    def backward(self, batch: BatchLosses) -> None:
        with gradients_apart(self.names) as found:
            batch.backward(batch.mean())
        if not found:
            return
        weighted = torch._foreach_mul([gradient.to(sum_dtype(p)) for p, gradient in found.items()], self.weight)
        self._add(dict(zip(found, weighted, strict=True)))
        arrived = {p: gradient for p, gradient in found.items() if p in self.info.trained}
        sums = {p: p.grad for p in arrived if p.grad is not None}
        add_to(sums, arrived)
        for parameter, gradient in sums.items():
            parameter.grad = gradient

    def gradients(self) -> dict[Tensor, Tensor]:
        return {p: self._sums[p] if p in self._sums else torch.zeros_like(p, dtype=sum_dtype(p)) for p in self.names}
