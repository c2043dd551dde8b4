"""Running statistics of batch normalisation, which only the first pass over a batch may move."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Of DistributedDataParallel: whether its next forward pass broadcasts the buffers of rank 0, as the first pass over a
# batch is to do.
BROADCASTS = "require_forward_param_sync"


@contextmanager
def kept_running_statistics(model: nn.Module, norms: list[nn.Module]) -> Iterator[None]:
    """Batch normalisation may normalise inside the block, but its running statistics come out as they went in, and
    whether data parallelism broadcasts them next is as before, too.

    Args:
        model (`nn.Module`): The model, with its wrapper for data parallelism.
        norms (list of `nn.Module`): Its batch normalisations in training mode.
    """
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    broadcasts = getattr(model, BROADCASTS, None)
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
        if broadcasts is not None:
            setattr(model, BROADCASTS, broadcasts)
