"""The processes that run a command together."""

import torch
from accelerate import PartialState


def join_processes() -> PartialState:
    """The state of this process, joined with the others of its launcher.

    Without an accelerator they meet over gloo; a bare `PartialState()` does that only under `accelerate launch --cpu`.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
