"""A backward pass of its own for L_c: exact for every model and loss, and slower."""

from collections.abc import Iterable

from torch import Tensor

from .base import BatchLosses, gradients_apart


def weighted_gradient(
    batch: BatchLosses, parameters: Iterable[Tensor], *, weights: Tensor | None = None
) -> dict[Tensor, Tensor]:
    """Gradient of 1/count sum_n u_n l_n, times the factor of the batch, by autograd; `p.grad` stays as it was.

    Args:
        batch (`BatchLosses`): Its graph is kept for a further backward pass.
        parameters (iterable of `Tensor`): Leaves; all that the backward pass accumulates into.
        weights (`Tensor` of shape (B,), *optional*): u, by default the c(n) of the batch: the gradient of L_c.

    Returns:
        Parameter -> gradient, without those that it does not reach.
    """
    with gradients_apart(parameters) as found:
        batch.backward(batch.weighted(weights), retain_graph=True)
    return found
