"""The processes that run a command together."""

import torch
from accelerate import PartialState


def join_processes() -> PartialState:
    """The state of this process, joined with the others of its launcher: over gloo where there is no accelerator, which
    a bare `PartialState()` does only under `accelerate launch --cpu`."""
    return PartialState(cpu=not torch.accelerator.is_available())
