"""Models that `torch.compile` compiles."""

import torch
import torch._inductor.config
from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without the wrappers of data parallelism and compilation."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, torch._dynamo.OptimizedModule)):
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model._orig_mod
    return model


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` compiles the model, inside its wrappers or not, or a module of it."""
    return any(
        isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )


def refuse_compiled(model: nn.Module, choice: str, otherwise: str) -> None:
    """Raise a `ValueError` for a compiled model, where hooks of a pass would stay in the graph, or not get into it."""
    if is_compiled(model):
        raise ValueError(
            f"{choice}, which acts beside the layers of the model, and the model is compiled; leave torch.compile "
            f"(torch_compile) out, or set it to '{otherwise}'."
        )


def draw_as_eager(model: nn.Module) -> None:
    """Let a compiled model draw the random numbers that an eager one does.

    The graphs of the two forward passes differ, so that Inductor's own random numbers could give them different
    dropout masks. What was compiled otherwise is compiled anew.
    """
    if is_compiled(model) and not torch._inductor.config.fallback_random:
        torch._inductor.config.fallback_random = True
        torch._dynamo.reset()


def keep_graphs() -> None:
    """Let backward passes that `torch.compile` builds leave intact what a second one over the same graph reads.

    What was compiled otherwise is compiled anew.
    """
    if torch._functorch.config.donated_buffer:
        torch._functorch.config.donated_buffer = False
        torch._dynamo.reset()
