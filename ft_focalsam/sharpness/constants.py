"""Constants that a step computes with, beside the model."""

import torch
from torch import Tensor


class Constant:
    """A tensor of the CPU, copied to where it is needed when that changes.

    Args:
        value (`Tensor`): The constant.
    """

    def __init__(self, value: Tensor):
        self.value = value
        self._copy = value

    def on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The constant on a device, in a type."""
        if (self._copy.device, self._copy.dtype) != (device, dtype):
            self._copy = self.value.to(device, dtype)
        return self._copy
