"""The ascent: epsilon from the class-weighted gradient, applied to the weights and taken back bit for bit."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

PERTURBATION_SCOPES = ("global", "local")


def average_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Mean of each tensor over all processes, by one all-reduce of their concatenation, in float32 at least.

    Args:
        tensors (sequence of `Tensor`): The same shapes in the same order on every process.

    Returns:
        New tensors of the same shapes and dtypes; the given ones if there is one process only, or if they are sharded:
        FSDP has averaged them when it sharded them.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return list(tensors)
    if is_sharded(tensors):
        return list(tensors)
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if is_double else torch.float32
    flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    """Whether each process holds a part of a tensor only, as of the parameters of FSDP2."""
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries of all tensors, on all processes that hold them: a tensor without dimensions, in
    float32 at least."""
    dtype = None if all(tensor.dtype in (torch.float32, torch.float64) for tensor in tensors) else torch.float32
    norms = torch._foreach_norm(list(tensors), 2, dtype=dtype)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def ascent_direction(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], *, adaptive: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Unit ascent direction of the class-weighted loss, so that epsilon = rho * direction.

    SAM's is g / ||g|| (arXiv 2010.01412, eq. 2); ASAM's, with `adaptive`, is T^2 g / ||T g|| with T = |w| element-wise
    (arXiv 2102.11600, eq. 5), so that the radius is measured relative to each weight. The scale of g cancels, and with
    it fp16 loss scaling.

    Args:
        parameters (sequence of `Tensor`): The trained weights w.
        gradients (sequence of `Tensor`): The class-weighted gradient, shapes as `parameters`.
        adaptive (`bool`): Use ASAM's radius.

    Returns:
        The direction, shapes as `parameters`, and the norm it was divided by (a float tensor without dimensions). The
        direction is meaningless where that norm is 0 or not finite.
    """
    if adaptive:
        magnitudes = torch._foreach_abs([parameter.detach() for parameter in parameters])
        gradients = torch._foreach_mul(magnitudes, list(gradients))
    norm = total_norm(gradients)
    direction = torch._foreach_div(list(gradients), norm)
    if adaptive:
        direction = torch._foreach_mul(magnitudes, direction)
    return list(direction), norm


@contextmanager
def perturbed(parameters: Sequence[Tensor], epsilon: list[Tensor], *, consume: bool = False) -> Iterator[None]:
    """Move the weights to w + epsilon inside the block, then restore them bit for bit, also on an exception.

    Autocast forgets the half-precision copies of weights that it keeps, each time the weights move: where it was
    entered outside both passes, the second one would run on copies of w.

    Args:
        parameters (sequence of `Tensor`): The trained weights.
        epsilon (list of `Tensor`): Shapes as `parameters`.
        consume (`bool`): Empty the list once the weights have moved, to hold its memory no longer.
    """
    parameters = [_held(parameter.detach()) for parameter in parameters]
    kept = [parameter.clone() for parameter in parameters]
    try:
        torch._foreach_add_(parameters, [_held(part) for part in epsilon])
        if consume:
            epsilon.clear()
        torch.clear_autocast_cache()
        yield
    finally:
        torch._foreach_copy_(parameters, kept)
        torch.clear_autocast_cache()


def _held(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
