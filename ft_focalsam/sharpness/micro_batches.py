"""What is kept of the first passes of an optimizer step until its second passes."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from .collectives import world_size
from .frontier import PrefixRecord
from .passes import FirstPass, LossContractError
from .randomness import RandomState

# Up to this share of a batch with c(n) > 0, the second pass runs over these samples alone.
FEW_ROWS = 0.6


@dataclass
class MicroBatch:
    """What the second pass over a batch needs to know of the first.

    Args:
        first (`FirstPass`): The pass.
        random_state (`RandomState`): That it began with.
        prefix (`PrefixRecord`, *optional*): What it kept of the frozen calls.
        draws (`bool`): Whether the model drew random numbers.
    """

    first: FirstPass
    random_state: RandomState
    prefix: PrefixRecord | None
    draws: bool

    def rows(self) -> Tensor | None:
        """The samples with c(n) > 0, shape (b,), which are all the second pass needs where samples do not interact.

        None for all samples: where those are not few, where the model draws random numbers, which would be others for
        fewer samples, and where the frozen prefix is still looked for.
        """
        if self.draws or (self.prefix is not None and self.prefix.is_whole):
            return None
        rows = self.first.weights.nonzero().flatten()
        if len(rows) > FEW_ROWS * len(self.first.weights):
            return None
        is_alone = world_size() == 1
        return rows if len(rows) or is_alone else rows.new_zeros(1)  # every process takes part in the all-reduce


class GradientSeal:
    """Notices changes of gradients between the passes of a step."""

    def __init__(self) -> None:
        self._left: list[tuple[Tensor, Tensor, int]] = []

    def put_on(self, parameters: Iterable[Tensor]) -> None:
        """Note what a first pass has left in `p.grad`."""
        self._left = [(p, p.grad, p.grad._version) for p in parameters if p.grad is not None]

    def take_off(self) -> None:
        """From here on, gradients may change."""
        self._left.clear()

    def check(self) -> None:
        """Raise a `LossContractError` unless gradients are as they were left."""
        if all(p.grad is gradient and gradient._version == version for p, gradient, version in self._left):
            return
        self.take_off()
        raise LossContractError(
            "The gradients changed between the passes of a step; clear, clip or unscale them before the first pass or "
            "after the second one."
        )
