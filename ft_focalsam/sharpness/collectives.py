"""What all processes agree on: means over them, and norms over what each of them holds."""

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

PERTURBATION_SCOPES = ("global", "local")


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def average_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Mean of each tensor over all processes, by one all-reduce of their concatenation, in float32 at least.

    Args:
        tensors (sequence of `Tensor`): The same shapes in the same order on every process.

    Returns:
        New tensors of the same shapes and dtypes; the given ones if there is one process only, or if they are sharded:
        FSDP has averaged them when it sharded them.
    """
    if world_size() == 1 or is_sharded(tensors):
        return list(tensors)
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    dtype = torch.float64 if is_double else torch.float32
    flat = torch.cat([tensor.detach().reshape(-1).to(dtype) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= world_size()
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
