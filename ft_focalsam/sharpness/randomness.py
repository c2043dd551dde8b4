"""The random numbers that a model draws: of torch on each device, of numpy and of Python's `random`."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

RandomState = dict[str, Any]


def random_state(accelerators: Sequence[torch.device]) -> RandomState:
    """The state of all global generators.

    Args:
        accelerators (sequence of `torch.device`): Devices whose generators count beside the CPU's.
    """
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        **{str(device): torch.get_device_module(device).get_rng_state(device) for device in accelerators},
    }


def set_random_state(state: RandomState, accelerators: Sequence[torch.device]) -> None:
    """Set what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for device in accelerators:
        torch.get_device_module(device).set_rng_state(state[str(device)], device)


def is_same_state(a: RandomState, b: RandomState) -> bool:
    """Whether nothing was drawn between two calls of `random_state`."""
    return all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else str(a[key]) == str(b[key]) for key in a
    )


@contextmanager
def drawing_from(state: RandomState, accelerators: Sequence[torch.device]) -> Iterator[None]:
    """Draw random numbers from a state inside the block, and afterwards as if there had been no block."""
    before = random_state(accelerators)
    set_random_state(state, accelerators)
    try:
        yield
    finally:
        set_random_state(before, accelerators)
