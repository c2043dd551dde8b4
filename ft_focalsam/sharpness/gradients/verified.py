"""`WeightedGradient`: the single backward pass where it is exact, compared before it is trusted, else a second one.

Before the first steps what the single backward pass collects, for random weights in the place of c(n), is compared
with autograd's own gradient. A parameter that disagrees is handed to the enclosing module, whose general rule sees
more (a position table without batch dimension, a projection that its parent uses functionally). Where no enclosing
module is left, or batch statistics make samples interact, L_c gets a backward pass of its own: exact too, slower, and
announced once with the name of the cause.

A module may later see rows that belong to samples in another way (packed sequences, rows routed to experts). Such a
layout is compared when it first appears.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..collectives import total_norm
from ..compiled import is_compiled, keep_graphs
from .base import BatchLosses, GradientPair, gradients_apart, sum_of
from .second_backward import weighted_gradient
from .single_backward import Layout, SingleBackward
from .tolerances import PATIENCE, random_weights, tolerances

logger = logging.getLogger(__name__)


class WeightedGradient(GradientPair):
    """For any class weights. Without `verify`, the comparison is made along with the first passes that count, which
    then give L_c from a backward pass of its own.

    Args:
        model (`nn.Module`): As for `GradientPair`.
        separate_reason (`str`, *optional*): Why L_c needs a backward pass of its own whatever the model is: say, a
            loss by which the samples of a batch interact.
        perturb (`str`): As for `GradientPair`.
    """

    def __init__(self, model: nn.Module, *, separate_reason: str | None = None, perturb: str = "trained"):
        super().__init__(model, perturb=perturb)
        keep_graphs()
        self._is_compiled = is_compiled(model)
        self._given_reason = separate_reason
        self._single = SingleBackward(self.model, {}, {})
        self._batch_norms: list[nn.Module] = []
        self._unchecked: set[Tensor] = set()  # parameters not compared yet
        self._known_layouts: set[Layout] = set()
        self._is_due = False  # whether the next batch is to be compared
        self._patience = 0
        # The pass under way:
        self._rule_weights: Tensor | None = None  # what the rules weigh by, None without rules
        self._compares = False
        self._interacting: str | None = None  # a batch normalisation that a gradient goes through

    # ---- what a step uses ----

    def start(self) -> None:
        super().start()
        if self._unchecked and self._patience > 0:
            self._patience -= 1
            self._is_due = True

    def release(self) -> None:
        super().release()
        self._single.release()

    def gradients(self) -> dict[Tensor, Tensor]:
        if self._unchecked and self._patience == 0 and self._gradients_woke():
            self._patience = PATIENCE
        return {
            parameter: gradient + self._sums[parameter] if parameter in self._sums else gradient
            for parameter, gradient in self._single.gradients().items()
        }

    def needs_verification(self, batch_size: int) -> bool:
        # One sample alone cannot show whether samples are told apart, so it is no batch to compare on.
        return self.separate_reason is None and self._is_due and batch_size > 1

    @contextmanager
    def watch(self, weights: Tensor) -> Iterator[None]:
        self._compares = self.needs_verification(len(weights))
        self._rule_weights = self._interacting = None
        if self.separate_reason is None and (self._compares or not self._is_due):
            self._rule_weights = random_weights(weights) if self._compares else weights
        try:
            with ExitStack() as stack:
                if self._rule_weights is None:
                    stack.enter_context(self._merged_weights_watched())
                else:
                    stack.enter_context(self._single.rules(self._rule_weights))
                    self._watch_batch_norms(stack)
                yield
        finally:
            self._rule_weights = None

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        with self._single.paused(), gradients_apart(self._single.buffers.values()):
            yield

    def backward(self, batch: BatchLosses) -> None:
        if self._interacting:
            self._separate(self._interacting)
        if self._rule_weights is None or self._interacting:
            self._by_second_backward(batch)
        elif self._compares:
            found = weighted_gradient(batch, self._leaves())
            self._draw_consequences(self._reference(batch), self._collect(batch))
            self._add(found)
            self.backward_passes = 3
        elif self._single.lost:
            self._hand_over(list(self._single.lost))
            self._by_second_backward(batch)
        elif self._single.layouts <= self._known_layouts or len(batch.weights) == 1:
            batch.backward(batch.mean())
            self.backward_passes = 1
        else:
            self._by_both(batch)

    def verify(self, batch: BatchLosses) -> None:
        if self._interacting:
            self._separate(self._interacting)
            return
        reference = self._reference(batch)
        with gradients_apart(self._leaves()) as collected:
            batch.backward(batch.mean())
        self._draw_consequences(reference, collected)

    # ---- which module collects for which parameter ----

    def prepare(self) -> None:
        super().prepare()
        if not self._single.fits(self.names) or self.info.batch_norms != self._batch_norms:
            self._plan_anew()
        if self._given_reason and self.separate_reason is None:
            self._separate(self._given_reason)
        if self.info.batch_norms and self._is_compiled and self.separate_reason is None:
            self._separate(self._interaction_of(self.info.batch_norms[0]))

    def _plan_anew(self) -> None:
        self._single = SingleBackward(self.model, self.names, self.target.layers)
        self._batch_norms = self.info.batch_norms
        self._known_layouts.clear()
        self.separate_reason = None
        self._compare_from_now_on(self.names)

    def _compare_from_now_on(self, parameters) -> None:
        self._unchecked.intersection_update(self._single.names)
        self._unchecked.update(parameters)
        self._is_due = True
        self._patience = PATIENCE

    def _hand_over(self, parameters: list[Tensor]) -> None:
        """Let the enclosing module collect for each parameter, or give up where there is none but the whole model."""
        if not parameters:
            return
        without = self._single.hand_over(parameters)
        if without is None:
            self._compare_from_now_on(parameters)
        else:
            self._separate(f"no module's output gives the gradient of {self._single.names[without]}")

    def _separate(self, reason: str) -> None:
        self.separate_reason = reason
        logger.warning(
            "One backward pass is not exact for this model: %s. The class-weighted gradient gets a backward pass of "
            "its own: as exact, but slower.",
            reason,
        )

    def _watch_batch_norms(self, stack: ExitStack) -> None:
        """Notice a batch normalisation that the gradient goes through; one before all that trains mixes no samples."""
        for norm in () if self._is_compiled else self.info.batch_norms:
            stack.callback(norm.register_forward_hook(self._note_interaction).remove)

    def _note_interaction(self, norm: nn.Module, args, output) -> None:
        if any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(output)):
            self._interacting = self._interacting or self._interaction_of(norm)

    def _interaction_of(self, norm: nn.Module) -> str:
        name = next(name for name, module in self.model.named_modules() if module is norm)
        return f"{name} ({type(norm).__name__}) makes the samples of a batch interact"

    # ---- backward passes, and their comparison ----

    def _leaves(self) -> list[Tensor]:
        """All that a backward pass accumulates into."""
        return [*self._single.names, *self._single.buffers.values()]

    def _reference(self, batch: BatchLosses) -> dict[Tensor, Tensor]:
        """Autograd's own gradient for what the rules weigh by."""
        with self._single.paused():
            return weighted_gradient(batch, self._leaves(), weights=self._rule_weights)

    def _collect(self, batch: BatchLosses) -> dict[Tensor, Tensor]:
        """p.grad += grad L; gives what arrived in the buffers, which are left as they were."""
        with gradients_apart(self._single.buffers.values()) as collected:
            batch.backward(batch.mean())
        return collected

    def _by_second_backward(self, batch: BatchLosses) -> None:
        with self._single.paused():
            found = weighted_gradient(batch, self._leaves())
        self._collect(batch)
        self._add(found)
        self.backward_passes = 2

    def _by_both(self, batch: BatchLosses) -> None:
        """A layout that was not compared yet: believe the rules where they agree with autograd for these weights, and
        compare for random ones as soon as it appears again."""
        reference, collected = self._reference(batch), self._collect(batch)
        wrong = self._disagreeing(reference, collected, self._single.names)[1]
        if wrong is None or wrong:
            self._add(reference)
            self._hand_over(wrong or [])
        else:
            for buffer, gradient in collected.items():
                buffer.grad = sum_of(buffer.grad, gradient, like=buffer)
        self._compare_from_now_on(self._single.names)
        self.backward_passes = 2

    def _draw_consequences(self, reference: Mapping[Tensor, Tensor], collected: Mapping[Tensor, Tensor]) -> None:
        """After a comparison for random weights."""
        self._is_due = False
        right, wrong = self._disagreeing(reference, collected, self._unchecked)
        if wrong is None:
            self._patience = PATIENCE  # one is due as long as loss scaling overflows
            return
        self._unchecked.difference_update(right)
        if wrong:
            self._hand_over(wrong)
        else:
            self._known_layouts |= self._single.layouts

    def _disagreeing(self, reference, collected, parameters) -> tuple[list[Tensor], list[Tensor] | None]:
        """Parameters whose collected gradient agrees with autograd's, and those where it does not: None where
        autograd's is not finite, so that nothing can be said."""
        scale = _norm([reference[p] for p in self._single.names if p in reference])
        if not scale < float("inf"):
            return [], None
        tolerance, floor = tolerances(self._single.names, self._single.reduced_precision)
        right, wrong = [], []
        for parameter in parameters:
            buffer = self._single.buffers[parameter]
            expected, actual = reference.get(parameter), collected.get(buffer)
            size = 0.0 if expected is None else _norm([expected])
            error = _norm([sum_of(actual, None if expected is None else -expected, like=buffer)])
            if size > 0 and error <= tolerance * size:
                right.append(parameter)
            elif not error <= floor * scale:
                wrong.append(parameter)
        return right, wrong

    def _gradients_woke(self) -> bool:
        """Whether a parameter that could not be compared has a gradient of L by now that is more than noise."""
        unchecked = [p.grad for p in self._unchecked if p.grad is not None]
        if not unchecked:
            return False
        whole = total_norm([p.grad for p in self._single.names if p.grad is not None])
        largest = torch.stack([total_norm([gradient]) for gradient in unchecked]).max()
        return bool(largest > tolerances(self._single.names, self._single.reduced_precision)[1] * whole)


def _norm(tensors: list[Tensor]) -> float:
    return float(total_norm(tensors)) if tensors else 0.0
