"""When what one backward pass collected counts as equal to autograd's own gradient; see `verified.py`."""

from collections.abc import Iterable

import torch
from torch import Tensor

# A parameter whose gradient is 0 (behind a zero-initialised LoRA or adapter) cannot be compared yet: comparisons go on
# for so many steps, and are taken up again when its first gradient arrives.
PATIENCE = 3


def random_weights(weights: Tensor) -> Tensor:
    """Weights between 0.5 and 1.5 that tell the samples apart; drawn without touching the global random state."""
    generator = torch.Generator().manual_seed(0)
    return (0.5 + torch.rand(len(weights), generator=generator)).to(weights)


def tolerances(parameters: Iterable[Tensor], reduced_precision: bool) -> tuple[float, float]:
    """Relative error allowed for a parameter, and the share of the whole gradient's norm below which it is noise.

    A wrong rule misses by tens of percent; what correct ones differ by is rounding (TF32 included).

    Args:
        parameters (iterable of `Tensor`): All that train.
        reduced_precision (`bool`): Whether a module computed in half precision.
    """
    if reduced_precision:
        return 5e-2, 1e-2
    return (1e-6, 1e-8) if all(p.dtype == torch.float64 for p in parameters) else (1e-2, 1e-4)
