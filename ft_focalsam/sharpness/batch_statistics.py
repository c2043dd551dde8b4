"""Running statistics of batch normalisation, which only the first pass over a batch may move."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Of DistributedDataParallel: whether its next forward pass begins with the buffers of rank 0.
BROADCASTS = "require_forward_param_sync"


@contextmanager
def kept_running_statistics(norms: list[nn.Module]) -> Iterator[None]:
    """Batch normalisation may normalise inside the block, but its running statistics come out as they went in.

    Args:
        norms (list of `nn.Module`): Batch normalisations in training mode.
    """
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)


@contextmanager
def kept_broadcast(model: nn.Module) -> Iterator[None]:
    """Whether data parallelism broadcasts the running statistics before the next forward pass stays as it was.

    Args:
        model (`nn.Module`): The model with its wrapper.
    """
    kept = getattr(model, BROADCASTS, None)
    try:
        yield
    finally:
        if kept is not None:
            setattr(model, BROADCASTS, kept)
