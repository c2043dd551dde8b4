"""The processes that run a command together."""

import torch
from accelerate import PartialState


def join_processes() -> PartialState:
    """The state of this process, joined with the others of its launcher.

    Without an accelerator they meet over gloo, which a bare `PartialState()` does under `accelerate launch --cpu` only.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
