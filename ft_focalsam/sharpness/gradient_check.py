"""The last look at a gradient before an optimizer steps on it."""

import logging
import math
from collections.abc import Iterable

from torch import Tensor, nn

from .collectives import total_norm
from .compiled import unwrapped
from .step_statistics import StepStatistics

logger = logging.getLogger(__name__)


class GradientCheck:
    """Skips steps whose gradient is not finite, and warns once of parameters that no gradient reaches.

    Args:
        model (`nn.Module`): The model, with its wrappers or without.
    """

    def __init__(self, model: nn.Module):
        self.model = unwrapped(model)
        self._has_warned = False

    def drop_if_not_finite(
        self, statistics: StepStatistics, parameters: Iterable[Tensor] | None = None, *, drop: bool = True
    ) -> bool:
        """Whether the gradient has an infinite entry or one that is not a number, on which no optimizer is to step. It
        is then counted as a skipped step and, with `drop`, set to None. The one time a step waits for the device.

        Args:
            statistics (`StepStatistics`): Counts skipped steps.
            parameters (iterable of `Tensor`, *optional*): The trained parameters; looked up if not given.
        """
        if parameters is None:
            parameters = [p for p in self.model.parameters() if p.requires_grad]
        parameters = list(parameters)
        self._warn_of_unreached(len(parameters))
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients or math.isfinite(total_norm(gradients)):
            return False
        statistics.skipped_steps += 1
        if drop:
            for parameter in parameters:
                parameter.grad = None
        return True

    def _warn_of_unreached(self, number: int) -> None:
        """Name trained parameters without gradient, as those of an adapter around a layer that its parent never
        calls."""
        if self._has_warned:
            return
        self._has_warned = True
        unreached = [name for name, p in self.model.named_parameters() if p.requires_grad and p.grad is None]
        if unreached:
            logger.warning(
                "No gradient reaches %d of %d trained parameters, among them %s: the model does not use them, so they "
                "stay as they are.",
                len(unreached),
                number,
                unreached[0],
            )
