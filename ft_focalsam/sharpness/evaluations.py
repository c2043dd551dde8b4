"""How a perturbed loss is evaluated: how many passes, with which loss, in which order. A new evaluation is one class.

The Trainer and the optimizer drive these objects. They say how the forward and backward pass over a batch is run; an
evaluation says how often, on which samples, and with what in between. CC-SAM has one of its own, see
`class_conditional.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from .collectives import average_over_ranks, world_size
from .compiled import refuse_compiled
from .directions import Direction
from .gradient_sync import no_sync
from .gradients.base import sum_of
from .passes import WeightedPass
from .per_sample import NotPerSampleError, agree, owners_by_type, perturbed_per_sample, random_perturbation
from .randomness import random_state
from .step import SharpnessStep
from .step_statistics import StepStatistics
from .targets import perturbed


@dataclass(frozen=True)
class Run:
    """How a driver runs a batch.

    Args:
        whole (`Callable`): Forward and backward of `step.reduce(losses)`; returns the reduced loss.
        forward (`Callable`): Forward and `step.reduce(losses)` alone, for a pass that differentiates by itself, over
            the samples that an index tensor names (None: all).
        takes_rows (`bool`): Whether `forward` can run over a part of the samples.
    """

    whole: Callable[[], Tensor]
    forward: Callable[[Tensor | None], object]
    takes_rows: bool = False


class Evaluation(ABC):
    """Optimizer steps around the passes of a `SharpnessStep`.

    Args:
        step (`SharpnessStep`): The passes.
        interval (`int`, >= 1): One step in so many perturbs the weights, the others are plain.

    Raises:
        ValueError: If the interval is out of range, or the evaluation cannot have the step's direction.
    """

    def __init__(self, step: SharpnessStep, *, interval: int = 1):
        if interval != int(interval) or interval < 1:
            raise ValueError(f"ascent_interval is {interval}; set it to a number of steps, 1 or more.")
        self.check(step.direction)
        self.step = step
        self.interval = interval
        self._is_plain: bool | None = None  # of the optimizer step under way

    @classmethod
    def check(cls, direction: Direction) -> None:
        """Raise a `ValueError` for a direction that the evaluation cannot have."""
        return

    @property
    def rho(self) -> float:
        """Radius of the perturbation."""
        return self.step.rho

    @rho.setter
    def rho(self, value: float) -> None:
        self.step.rho = value

    @property
    def statistics(self) -> StepStatistics:
        """Where the step counts what it does."""
        return self.step.statistics

    @statistics.setter
    def statistics(self, value: StepStatistics) -> None:
        self.step.statistics = value

    def micro_batch(self, labels: Tensor, run: Run, *, number: int, is_last: bool = True) -> Tensor:
        """All passes over one batch. Where gradients are accumulated and the perturbation is global, the second passes
        over every batch of the optimizer step come with the last one.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices or class probabilities.
            run (`Run`): How the batch is run.
            number (`int`): Of the optimizer step, counted from 0.
            is_last (`bool`): Whether the optimizer steps after this batch.

        Returns:
            `Tensor` without dimensions: the loss that `run` returned for the batch.
        """
        if self._is_plain is None:
            self._is_plain = self.step.is_plain or number % self.interval > 0
        try:
            loss = run.whole() if self._is_plain else self._evaluate(labels, run, is_last)
        except BaseException:
            self._end()
            raise
        if is_last:
            self._end()
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """What is carried from step to step; empty where there is nothing."""
        return self.step.direction.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: If it does not fit what is perturbed.
        """
        self.step.look_at_model()
        self.step.direction.load_state_dict(state, self.step.target)

    @abstractmethod
    def _evaluate(self, labels: Tensor, run: Run, is_last: bool) -> Tensor:
        """All passes over one batch of a step that perturbs."""

    def _end(self) -> None:
        """Of an optimizer step, or of one that was given up."""
        self._is_plain = None


class TwoPoint(Evaluation):
    """g = grad L(w) - grad L_c(w) + grad L_c(w + eps): the paper's algorithm (arXiv 2505.01660), in two passes."""

    def __init__(self, step: SharpnessStep, *, interval: int = 1):
        super().__init__(step, interval=interval)
        self._held: list[Run] = []  # of the micro-batches that wait for their second pass

    def _evaluate(self, labels: Tensor, run: Run, is_last: bool) -> Tensor:
        step = self.step
        is_local = step.scope == "local"
        if is_local or not self._held:
            step.start()
        self._held.append(run)
        step.verify_gradients(labels, run.whole)
        with step.first_pass(labels):
            loss = run.whole()
        if not (is_local or is_last):
            return loss
        step.ascend()
        for index, held in enumerate(self._held):
            rows = step.rows_of_second_pass(index) if held.takes_rows else None
            if rows is not None and len(rows) == 0:
                continue
            with step.second_pass(index, rows):
                held.forward(rows)
        if is_local:
            self._held.clear()
        return loss

    def _end(self) -> None:
        super()._end()
        self._held.clear()


class OnePass(Evaluation):
    """g = 1/B sum_n grad l_n(w + c(n) eps): each sample once, at a radius of its own along a direction that is known
    before the batch. Equal to the two-point form to first order in eps, and exactly where c(n) is 0 or 1.

    Raises:
        ValueError: If the direction depends on the batch. From the first step, if a module cannot be evaluated at
            weights of its own for each sample.
    """

    def __init__(self, step: SharpnessStep, *, interval: int = 1):
        super().__init__(step, interval=interval)
        refuse_compiled(step.model, "evaluation is 'one_pass'", "two_point")
        self._is_begun = False
        self._is_verified = False

    @classmethod
    def check(cls, direction: Direction) -> None:
        if not direction.is_known_before:
            raise ValueError(
                f"evaluation is 'one_pass' and ascent '{type(direction).__name__.lower()}', which is not known before "
                "the batch; set ascent to 'momentum' or 'gaussian', or evaluation to 'two_point'."
            )

    def _evaluate(self, labels: Tensor, run: Run, is_last: bool) -> Tensor:
        step = self.step
        if not self._is_begun:
            step.start()
            step.perturb_along(step.direction.choose(step.target, None))
        self._is_begun = True
        if not self._is_verified:
            self._verify(labels, run)
        with no_sync(step.model), self._moved(labels):
            if step.direction.learns:
                step.verify_gradients(labels, run.whole)
                with step.first_pass(labels):
                    loss = run.whole()
            else:
                loss = run.whole()
        if is_last:
            step.learn_direction()
            self._average_gradients()
        return loss

    def _moved(self, labels: Tensor) -> AbstractContextManager[None]:
        """Inside, sample n is run at w + c(n) epsilon; at w as long as no direction is known."""
        step = self.step
        if step.perturbation is None:
            return nullcontext()
        return perturbed_per_sample(step.bare_model, step.target, step.perturbation.parts, step.sample_weights(labels))

    def _average_gradients(self) -> None:
        """Over processes, which has not happened in the passes."""
        if world_size() > 1:
            parameters = self.step.parameters
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            for parameter, gradient in zip(parameters, average_over_ranks(gradients), strict=True):
                parameter.grad = gradient

    def _end(self) -> None:
        super()._end()
        self._is_begun = False
        self.step.forget()

    def _verify(self, labels: Tensor, run: Run) -> None:
        """Compare, for a large random perturbation, with passes at weights that are really moved."""
        step, target = self.step, self.step.target
        result = self._agrees(labels, run, target.names)
        if result is False:
            owners = [] if step.info.batch_norms else owners_by_type(step.bare_model, target)
            wrong = (module for module, tensors in owners if self._agrees(labels, run, tensors) is False)
            raise NotPerSampleError(step.bare_model, next(wrong, *step.info.batch_norms[:1] or [step.bare_model]))
        self._is_verified = result is True and len(labels) > 1

    def _agrees(self, labels: Tensor, run: Run, tensors: Iterable[Tensor]) -> bool | None:
        """Whether a pass with half the perturbation for one half of the samples and all of it for the others has the
        gradient of two passes, one a radius; None where a gradient is not finite, and nothing can be said."""
        step, model, target = self.step, self.step.bare_model, self.step.target
        kept = set(tensors)
        epsilon = {t: e if t in kept else torch.zeros_like(e) for t, e in random_perturbation(target).items()}
        state = random_state(step.info.accelerators)
        weights = step.sample_weights(labels)
        radii = torch.ones_like(weights)
        radii[::2] = 0.5

        def gradient_at(moved: AbstractContextManager[None], shares: Tensor) -> dict[Tensor, Tensor]:
            with step.rehearsal(state) as found, moved, step.under_way(WeightedPass(shares, len(labels))):
                run.whole()
            return found

        expected: dict[Tensor, Tensor] = {}
        for radius in (0.5, 1.0):
            moved = perturbed(target, {t: radius * e for t, e in epsilon.items()})
            for tensor, part in gradient_at(moved, (radii == radius).to(weights.dtype)).items():
                expected[tensor] = sum_of(expected.get(tensor), part, like=part)
        actual = gradient_at(perturbed_per_sample(model, target, epsilon, radii), torch.ones_like(radii))
        return agree(actual, expected)


EVALUATIONS: dict[str, type[Evaluation]] = {"two_point": TwoPoint, "one_pass": OnePass}
