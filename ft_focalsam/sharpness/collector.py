"""The gradients of L and of L_c side by side: what every way to them has in common, and the way for equal weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from .rules import sum_dtype
from .survey import Survey, survey


class GradientCollector(ABC):
    """Collects the gradient of L_c = 1/B sum_n c(n) l_n for the trained parameters during the backward pass of L, the
    mean of the l_n, whose gradient goes to `p.grad` as ever. Use it as

        collector.clear()
        with collector.collect(weights):
            losses = forward()                             # shape (B,)
            collector.mean(losses, count=len(losses)).backward()
        collector.gradients()

    where `collect` may be entered several times, for gradient accumulation, before `gradients` gives the sum. As long
    as `needs_comparison` says so, the same pass is to be run under `WeightedGradient.compare` first. Sums are float32
    at least.

    Args:
        model (`nn.Module`): The model, wrapped for data parallelism or compiled or not. The trained parameters are
            those that require a gradient when a pass begins.

    Attributes:
        model (`nn.Module`): The model without its wrappers.
        separate_reason (`str` or `None`): Why L_c needs a backward pass of its own; None while one is enough for both.
        backward_passes (`int`): Backward passes that the latest `collect` took.
        survey (`Survey`): The model as of the latest `plan`.
    """

    separate_reason: str | None = None
    backward_passes = 1

    def __init__(self, model: nn.Module):
        while isinstance(model, (nn.parallel.DistributedDataParallel, torch._dynamo.OptimizedModule)):
            model = model.module if hasattr(model, "module") else model._orig_mod
        self.model = model
        self.survey = Survey({}, [], [])
        self._sums: dict[Tensor, Tensor] = {}  # trained parameter -> gradient of L_c so far

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, in the order of `gradients()`."""
        return list(self.survey.trained)

    def plan(self) -> None:
        """Note the trained parameters and how to collect for them, anew only when they have changed; `clear` does
        so."""
        self.survey = survey(self.model)

    def clear(self) -> None:
        """Begin an optimizer step with nothing collected."""
        self.plan()
        self.release()

    def release(self) -> None:
        """Give back the memory of what was collected."""
        self._sums.clear()

    @abstractmethod
    def collect(self, weights: Tensor) -> AbstractContextManager[None]:
        """Watch one forward and backward pass of L.

        Args:
            weights (`Tensor` of shape (B,)): c(n) of each sample of the batch.
        """

    def needs_comparison(self, batch_size: int) -> bool:
        """Whether a batch is to be run under `WeightedGradient.compare` before it is collected."""
        return False

    def mean(self, losses: Tensor, count: Tensor | float) -> Tensor:
        """L of the watched pass, ready for `backward()`.

        Args:
            losses (`Tensor` of shape (B,)): Losses of the samples.
            count (`Tensor` or `float`): What their sum is divided by, B unless batches are accumulated.

        Returns:
            `Tensor` without dimensions: sum(losses) / count.
        """
        return losses.sum() / count

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """Gradient of L_c for each of `parameters`, summed over the passes since `clear()`; 0 where none arrived."""


class MultipleGradient(GradientCollector):
    """Where c(n) is the same number for all samples, as in SAM, the gradient of L_c is that multiple of the one of L:
    one backward pass, for any model.

    Args:
        model (`nn.Module`): As for `GradientCollector`.
        weight (`float`): c(n). A sample that is to have none of it has to have a loss of 0.
    """

    def __init__(self, model: nn.Module, weight: float):
        super().__init__(model)
        self._weight = weight

    @contextmanager
    def collect(self, weights: Tensor) -> Iterator[None]:
        """As in `GradientCollector`; `weights` is not read."""
        kept = {parameter: parameter.grad for parameter in self.survey.trained}
        for parameter in kept:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, before in kept.items():
                if parameter.grad is not None:
                    gradient = self._weight * parameter.grad.to(sum_dtype(parameter))
                    self._sums[parameter] = sum_of(self._sums.get(parameter), gradient, like=gradient)
                if before is not None:
                    parameter.grad = sum_of(before, parameter.grad, like=before)

    def gradients(self) -> list[Tensor]:
        return [self._sums[p] if p in self._sums else torch.zeros_like(p, dtype=sum_dtype(p)) for p in self.parameters]


def sum_of(a: Tensor | None, b: Tensor | None, *, like: Tensor) -> Tensor:
    """a + b where None is 0."""
    if a is not None and b is not None:
        return a + b
    if a is None and b is None:
        return torch.zeros_like(like)
    return b if a is None else a
