"""The passes of an update: each is given the losses of a forward pass and differentiates what it makes of them.

`reduce` gives the driver a loss that stands for the whole forward pass, but is a leaf of its own: the backward pass
of the driver stops there. So a pass learns by which factor its loss was multiplied (loss scaling, accumulation) and
whether it was used at all, and differentiates it itself when its block ends. What the driver adds to it (a penalty on
the weights) goes to `p.grad` by the driver's own backward pass: it is a part of L, never of L_c.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .gradients import BatchLosses, GradientPair
from .step_statistics import StepStatistics


class LossContractError(ValueError):
    """What was differentiated in a pass is not made of the losses of its samples; the message says what to do."""


def check_per_sample(losses: Tensor, batch_size: int) -> None:
    """Raise a `LossContractError` unless there is one loss per sample, shape (B,)."""
    if losses.shape != (batch_size,):
        raise LossContractError(
            f"The losses have shape {tuple(losses.shape)} for {batch_size} labels; return one loss per sample "
            '(reduction="none").'
        )


class Pass(ABC):
    """One forward and backward pass over a batch.

    Args:
        weights (`Tensor` of shape (B,)): What the samples are weighted by.
        count (`Tensor` or `float`): What sums over samples are divided by, unless `reduce` is told otherwise.

    Attributes:
        factor (`Tensor` without dimensions): What multiplied its loss, once it is finished.
    """

    factor: Tensor
    _handle: Tensor  # what the driver differentiates, as long as there is a batch

    def __init__(self, weights: Tensor, count: Tensor | float):
        self.weights = weights
        self.count = count
        self._batch: BatchLosses | None = None

    def reduce(self, losses: Tensor, count: Tensor | float | None = None) -> Tensor:
        """The loss of the pass, to be differentiated.

        Args:
            losses (`Tensor` of shape (B,)): One loss per sample.
            count (`Tensor` or `float`, *optional*): What sums over samples are divided by.

        Returns:
            `Tensor` without dimensions.

        Raises:
            LossContractError: If there is not one loss per sample, they have no graph, or it is the second call.
        """
        check_per_sample(losses, len(self.weights))
        if not losses.requires_grad:
            raise LossContractError("The losses depend on no trained parameter; compute them with gradients enabled.")
        if self._batch is not None:
            raise LossContractError(
                "The losses of a pass were reduced twice; add them up per sample and reduce the sum once."
            )
        self._batch = BatchLosses(losses, self.weights.to(losses.dtype), self.count if count is None else count)
        self._handle = self._value(self._batch).detach().requires_grad_()
        return self._handle.clone()  # which the driver may change in place

    def finish(self) -> None:
        """Differentiate, after the driver's backward pass.

        Raises:
            LossContractError: If nothing of the loss of the pass was differentiated.
        """
        batch = self._batch
        if batch is None or self._handle.grad is None:
            raise LossContractError(
                "The loss that was differentiated is not made of one loss per sample, which a sharpness step needs: "
                "with FocalSAMTrainer, let compute_loss call super().compute_loss(...) or give a compute_loss_func "
                "that returns losses of shape (B,); with FocalSAM, call backward on reduce(losses) inside the block; "
                "or set sharpness to 'none'."
            )
        self.factor = batch.factor = self._handle.grad
        try:
            self._differentiate(batch)
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise LossContractError(
                "A term that was added to the loss is computed from the outputs of the model, so that it cannot be "
                "told apart from the losses of the samples; add it to the loss of each sample before they are reduced "
                "(in compute_loss_func), or set sharpness to 'none'."
            ) from error

    @abstractmethod
    def _value(self, batch: BatchLosses) -> Tensor:
        """The loss of the pass."""

    @abstractmethod
    def _differentiate(self, batch: BatchLosses) -> None:
        """Its backward pass."""


class FirstPass(Pass):
    """At w: p.grad += grad L, and that of L_c is collected.

    Attributes:
        loss (`Tensor` without dimensions): L_c(w), detached.
    """

    loss: Tensor

    def __init__(self, weights: Tensor, count: Tensor | float, gradients: GradientPair):
        super().__init__(weights, count)
        self._gradients = gradients

    def _value(self, batch: BatchLosses) -> Tensor:
        self.loss = batch.weighted().detach()
        return batch.mean()

    def _differentiate(self, batch: BatchLosses) -> None:
        self._gradients.backward(batch)
        self._batch = None  # the graph and its memory


class VerificationPass(FirstPass):
    """A first pass that only compares the ways to the gradient of L_c."""

    def _differentiate(self, batch: BatchLosses) -> None:
        self._gradients.verify(batch)


class SecondPass(Pass):
    """At w + epsilon, over the batch of a first pass: p.grad += grad L_c.

    Args:
        first (`FirstPass`): Whose factor multiplies the loss where the driver runs no backward pass of its own.
        statistics (`StepStatistics`): Takes L_c(w + epsilon) - L_c(w).
        rows (`Tensor` of shape (b,), *optional*): The samples of the batch that the pass runs over, all others having
            c(n) = 0.
        usable (`Tensor` without dimensions, *optional*): Whether epsilon could be formed; where it could not, or none
            was tried (None), the pass only synchronises processes.
    """

    def __init__(
        self, first: FirstPass, statistics: StepStatistics, *, rows: Tensor | None = None, usable: Tensor | None
    ):
        super().__init__(first.weights if rows is None else first.weights[rows], first.count)
        self._first = first
        self._statistics = statistics
        self._usable = usable

    def _value(self, batch: BatchLosses) -> Tensor:
        loss = self._contribution(batch)
        if self._usable is not None:
            self._statistics.add_sharpness(torch.where(self._usable, loss.detach() - self._first.loss, 0))
        return loss

    def finish(self) -> None:
        if self._batch is not None and self._handle.grad is None:
            self._handle.grad = self._first.factor.to(self._handle.dtype)
        super().finish()

    def _differentiate(self, batch: BatchLosses) -> None:
        batch.backward(self._contribution(batch))

    def _contribution(self, batch: BatchLosses) -> Tensor:
        return batch.losses.sum() * 0 if self._usable is None else batch.weighted() * self._usable


class WeightedPass(Pass):
    """p.grad += grad of 1/count sum_n u_n l_n."""

    def _value(self, batch: BatchLosses) -> Tensor:
        return batch.weighted()

    def _differentiate(self, batch: BatchLosses) -> None:
        batch.backward(batch.weighted())
