"""When processes exchange gradients: in the backward pass DDP all-reduces them, and FSDP2 reduce-scatters them."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def no_sync(model: nn.Module) -> Iterator[None]:
    """Backward passes inside the block exchange nothing.

    DDP adds their gradients to `p.grad` on each process. FSDP2 keeps them aside, whole, and adds them to `p.grad` in
    the next backward pass that exchanges.
    """
    if not isinstance(model, FSDPModule):
        with getattr(model, "no_sync", nullcontext)():
            yield
        return
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


@contextmanager
def first_pass_sync(model: nn.Module, *, is_separate: bool) -> Iterator[None]:
    """For a first pass: nothing is exchanged, but FSDP2, which keeps apart one sum only, exchanges both gradients.

    Args:
        model (`nn.Module`): With its wrapper.
        is_separate (`bool`): Whether L_c has a backward pass of its own. Where it has not, FSDP2 does what it was told
            to, for instance by Accelerate's `no_sync`; the last first pass of a step has to exchange.
    """
    if not isinstance(model, FSDPModule):
        with no_sync(model):
            yield
        return
    if is_separate:
        model.set_requires_gradient_sync(True)
    yield
