"""The gradient of the merged weight of an adapted linear layer, which the model holds nowhere.

The layer maps x to y, whatever its adapter makes of its weight. For a weight W of it as a whole, y = x W^T, the
gradient is sum_n delta_n x_n^T, and that of L_c is sum_n c(n) delta_n x_n^T, with delta at the output of the layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..targets import layer_input
from .rules import spread


def watched_output(
    weight: Tensor,
    layer: nn.Module,
    args: tuple,
    kwargs: dict,
    output: Tensor,
    *,
    buffer: Tensor | None = None,
    weights: Tensor | None = None,
    is_reference: Callable[[], bool] = lambda: True,
) -> Tensor:
    """Forward hook: the same output, whose backward pass also gives the gradient of the merged weight.

    Args:
        weight (`Tensor`): The merged weight; autograd's own gradient arrives in its `.grad`.
        buffer (`Tensor`, *optional*): Its weighted-gradient buffer.
        weights (`Tensor` of shape (B,), *optional*): What the buffer weighs samples by.
        is_reference (`Callable`): Asked in the backward pass: True where `weight` is to receive, False where `buffer`.
    """
    if not torch.is_grad_enabled():
        return output
    return _MergedWeight.apply(output, layer_input(args, kwargs), weight, buffer, weights, is_reference)


class _MergedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, output, x, weight, buffer, weights, is_reference):
        ctx.save_for_backward(x, weights)
        ctx.is_reference = is_reference
        return torch.ops.aten._unsafe_view.default(output, output.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, delta):
        x, weights = ctx.saved_tensors
        _, _, needs_weight, needs_buffer, _, _ = ctx.needs_input_grad
        rows, signals = x.flatten(0, -2).to(delta.dtype), delta.flatten(0, -2)
        if ctx.is_reference():
            return delta, None, signals.T @ rows if needs_weight else None, None, None, None
        weighted = (signals * spread(weights, signals)).T @ rows if needs_buffer else None
        return delta, None, None, weighted, None, None
