"""The two passes of a sharpness-aware update; `update.py` decides which optimizer steps take them.

With c(n) the sharpness weight of sample n's class and L_c(w) = 1/B sum_n c(n) l_n(w), the base optimizer steps on

    g = grad L(w) - grad L_c(w) + grad L_c(w + eps),     eps = rho * grad L_c(w) / ||grad L_c(w)||

(Focal-SAM, arXiv 2505.01660, algorithm 1), which takes two forward and two backward passes: the first backward pass
gives both gradients at w (`gradients/`). `passes.py` has the formula of each pass.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .batch_statistics import kept_broadcast, kept_running_statistics
from .frontier import FrozenPrefix, PrefixRecord
from .gradient_sync import first_pass_sync, no_sync
from .gradients import GradientPair, ScaledGradient, WeightedGradient
from .gradients.base import gradients_apart
from .model_info import inspect_model, refuse_wrapped
from .passes import FirstPass, LossContractError, Pass, SecondPass, VerificationPass, WeightedPass
from .perturbation import PERTURBATION_SCOPES, ascent_direction, average_over_ranks, is_sharded, perturbed, total_norm
from .randomness import RandomState, drawing_from, random_state
from .schedules import check_rho
from .step_statistics import StepStatistics

logger = logging.getLogger(__name__)

# The label of a sample without weight, whose loss has to be 0, as in torch.nn.functional.cross_entropy
IGNORED = -100


@dataclass
class _MicroBatch:
    """What the second pass over a batch needs to know of the first."""

    first: FirstPass
    random_state: RandomState
    prefix: PrefixRecord | None


class SharpnessStep:
    """The two passes of an update. For each optimizer step, a driver does

        step.start()
        for batch in micro_batches:
            step.verify_gradients(labels, lambda: step.reduce(losses(batch)).backward())
            with step.first_pass(labels):
                step.reduce(losses(batch)).backward()      # p.grad += grad L(w) when the block ends
        step.ascend()                                      # p.grad -= grad L_c(w)
        for index, batch in enumerate(micro_batches):
            with step.second_pass(index):
                step.reduce(losses(batch)).backward()      # p.grad += grad L_c(w + eps), at w again afterwards

    and then lets the base optimizer step. `losses` runs the model and returns one loss per sample, shape (B,); what is
    added to the reduced loss in a first pass (a penalty on the weights) belongs to L and is not perturbed.
    `verify_gradients` acts on the first few steps only; without it, these take more backward passes. Both passes over
    a batch draw the same random numbers (dropout, drop path; of torch, numpy and Python); running statistics of batch
    normalisation move in the first pass only. With several processes, gradients are all-reduced once, in the last
    second pass.

    Args:
        model (`nn.Module`): The model that `losses` calls, wrapped in `DistributedDataParallel` or not.
        class_weights (`Tensor` of shape (C,)): Class-wise sharpness weights c, see `class_weights`.
        rho (`float`, >= 0): Radius of the perturbation.
        adaptive (`bool`): ASAM's element-wise radius (arXiv 2102.11600).
        scope (`str`): "global" perturbs by the gradient of all samples of the step, on all processes, so that N
            processes of b samples do what one of N * b does; "local" perturbs each process by its own gradient,
            without communication.
        separate_reason (`str`, *optional*): Why L_c needs a backward pass of its own whatever the model is; without
            it, the first steps find out.
        reuse_prefix (`bool`): Let the second pass take over what depends on no trained parameter, see `FrozenPrefix`.

    Attributes:
        separate_reason (`str` or `None`): Why a separate backward pass is used for L_c; None while one is enough, as
            it always is where all classes have the same weight (SAM).

    Raises:
        ValueError: If an argument is out of range, or the model is wrapped in `nn.DataParallel` or sharded. From
            `start`, if it is spread over devices.
    """

    def __init__(
        self,
        model: nn.Module,
        class_weights: Tensor,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        scope: str = "global",
        separate_reason: str | None = None,
        reuse_prefix: bool = True,
    ):
        check_rho(rho)
        if scope not in PERTURBATION_SCOPES:
            raise ValueError(f"perturbation_scope is {scope!r}; choose one of {', '.join(PERTURBATION_SCOPES)}.")
        refuse_wrapped(model)
        if is_sharded(inspect_model(model).trained):
            if scope == "local":
                raise ValueError(
                    "perturbation_scope is 'local' and the model is sharded over processes, none of which has a "
                    "gradient of its own; set it to 'global'."
                )
            separate_reason = separate_reason or "its parameters are sharded over processes"
        self.model = model
        self._given_reason = separate_reason
        self.rho = rho
        self.adaptive = adaptive
        self.scope = scope
        self.statistics = StepStatistics()
        self._prefix = FrozenPrefix(model, is_off=not reuse_prefix)
        self._has_warned = False  # of parameters that no gradient reaches
        self._has_looked = False  # at the model, in the optimizer step under way
        self._micro_batches: list[_MicroBatch] = []
        self._left: list[tuple[Tensor, Tensor, int]] = []  # gradients as the first passes left them
        self._epsilon: list[Tensor] | None = None
        self._pass: Pass | None = None
        self._gradients: GradientPair
        self.set_class_weights(class_weights)

    def set_class_weights(self, class_weights: Tensor) -> None:
        """Take other class-wise sharpness weights, shape (C,), from the next step on."""
        self.class_weights = class_weights
        self._class_weights = class_weights  # where and as the model needs them
        self._has_weights = bool(class_weights.any())
        if (class_weights == class_weights[0]).all():
            self._gradients = ScaledGradient(self.model, float(class_weights[0]))
        else:
            self._gradients = WeightedGradient(self.model, separate_reason=self._given_reason)

    @property
    def separate_reason(self) -> str | None:
        return self._gradients.separate_reason

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, as of the step under way."""
        return self._gradients.parameters

    @property
    def backward_passes(self) -> int:
        """Backward passes the latest first pass took: 1, or more where L_c had one of its own."""
        return self._gradients.backward_passes

    @property
    def is_plain_method(self) -> bool:
        """Whether c = 0, whatever rho may become."""
        return not self._has_weights

    @property
    def is_plain(self) -> bool:
        """Whether the update is that of plain training (c = 0 or rho = 0), for which one pass does."""
        return self.rho == 0 or not self._has_weights

    @property
    def num_micro_batches(self) -> int:
        """First passes so far in the step under way."""
        return len(self._micro_batches)

    def named_trained_parameters(self) -> list[tuple[str, Tensor]]:
        """The trained parameters with their names in the model without its wrappers."""
        return [(name, p) for name, p in self._gradients.model.named_parameters() if p.requires_grad]

    def weighted_gradient(self) -> list[Tensor]:
        """Gradient of L_c at w for each of `parameters`, on this process, after the first passes."""
        return self._gradients.gradients()

    def look_at_model(self) -> None:
        """Note what trains; `start` does so by itself."""
        self._gradients.prepare()
        self._has_looked = True

    def start(self) -> None:
        """Begin an optimizer step; what another one has left unfinished is forgotten."""
        self.forget()
        self._gradients.start()
        self._prefix.prepare(self._gradients.info)
        self._has_looked = True

    def forget(self) -> None:
        """Give up what first passes have collected, until the next `start`."""
        self._micro_batches.clear()
        self._left.clear()
        self._epsilon = None
        self._gradients.release()

    def verify_gradients(self, labels: Tensor, run: Callable[[], object]) -> None:
        """Before a first pass over a batch: find out how one backward pass can give both gradients exactly.

        On the first few steps the pass is run and thrown away, as often as it takes; later, nothing happens. Without
        this, the first pass finds out by itself, and gives L_c a backward pass of its own meanwhile: the same update
        but for rounding.

        Args:
            labels (`Tensor`): As for `first_pass`.
            run (`Callable`): Does what the driver does in a first pass, backward pass included.
        """
        if not self._gradients.needs_verification(len(labels)):
            return
        weights, state = self.sample_weights(labels), self._random_state()
        while self._gradients.needs_verification(len(labels)):
            with (
                kept_broadcast(self.model),
                no_sync(self.model),
                drawing_from(state, self._gradients.info.accelerators),
                kept_running_statistics(self._gradients.info.batch_norms),
                gradients_apart(self.parameters),
                self._watched(VerificationPass(weights, len(labels), self._gradients)),
            ):
                run()

    @contextmanager
    def first_pass(self, labels: Tensor) -> Iterator[None]:
        """Forward and backward of L at w, without gradient synchronisation.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices, or class probabilities (mixup), for which
                c(n) = sum_k y_nk c_k.

        Raises:
            LossContractError: If what is differentiated inside the block is not made of the losses of the samples.
        """
        self._check_untouched()
        first = FirstPass(self.sample_weights(labels), len(labels), self._gradients)
        state = self._random_state()
        sync = first_pass_sync(self.model, is_separate=self.separate_reason is not None)
        with sync, self._watched(first), self._prefix.first() as prefix:
            yield
        self._micro_batches.append(_MicroBatch(first, state, prefix))
        self._left = [(p, p.grad, p.grad._version) for p in self.parameters if p.grad is not None]

    def ascend(self) -> bool:
        """Turn the collected gradient of L_c into epsilon, and take it out of `p.grad`.

        Returns:
            `bool`: Whether the weights will be perturbed. They are not where ||grad L_c|| is 0 or not finite; the
            step is then that of plain training, `p.grad` holds it already, and second passes are needed only to
            synchronise it (`needs_second_pass`).

        Raises:
            LossContractError: If gradients were changed since the first passes.
        """
        self._check_untouched()
        self._left.clear()
        parameters, gradients = self.parameters, self.weighted_gradient()
        ascent = average_over_ranks(gradients) if self.scope == "global" else gradients
        direction, norm = ascent_direction(parameters, ascent, adaptive=self.adaptive)
        if not 0 < float(norm) < float("inf"):
            self.statistics.skipped_perturbations += 1
            return False
        with_gradient = [(p.grad, g) for p, g in zip(parameters, gradients, strict=True) if p.grad is not None]
        if with_gradient:
            torch._foreach_sub_(*map(list, zip(*with_gradient, strict=True)))
        self._gradients.release()
        torch._foreach_mul_(direction, self.rho)
        self._epsilon = direction
        self.statistics.add_perturbation(self._epsilon)
        return True

    @property
    def needs_second_pass(self) -> bool:
        """Whether second passes have something to do: to perturb, or at least to synchronise the processes."""
        return self._epsilon is not None or world_size() > 1

    @contextmanager
    def second_pass(self, index: int) -> Iterator[None]:
        """Forward and backward of L_c at w + epsilon, over micro-batch `index` of this step; at w again afterwards.

        The last one synchronises the gradients and ends the step. After a skipped ascent it contributes nothing else.
        Inside the block only the reduced loss counts, whether it is differentiated there or not.
        """
        batch = self._micro_batches[index]
        is_last = index == len(self._micro_batches) - 1
        second = SecondPass(batch.first, self.statistics, contributes=self._epsilon is not None)
        with (
            drawing_from(batch.random_state, self._gradients.info.accelerators),
            kept_running_statistics(self._gradients.info.batch_norms),
            self._moved(self._epsilon, is_over=is_last, synchronises=is_last),
            self._finished(second),
        ):
            prefix = self._prefix.second(batch.prefix, is_perturbed=second.contributes)
            with gradients_apart(self.parameters) as added, prefix:
                yield
            batch.prefix = None  # and its memory
            if added and is_last and world_size() > 1:
                raise LossContractError(
                    "In the second pass a term beside reduce(losses) was differentiated, which several processes "
                    "would sum up twice; call backward on reduce(losses) alone there."
                )

    @contextmanager
    def weighted_pass(
        self, weights: Tensor, count: float, *, epsilon: list[Tensor] | None, synchronises: bool
    ) -> Iterator[None]:
        """Forward and backward of 1/count sum_n u_n l_n, at w + epsilon if given; at w again afterwards.

        Args:
            weights (`Tensor` of shape (b,)): u_n of each sample that the pass runs over.
            count (`float`): What `reduce` divides by, unless it is told otherwise.
            epsilon (list of `Tensor`, *optional*): Shapes as `parameters`.
            synchronises (`bool`): Whether the processes all-reduce their gradients.
        """
        norms = [] if epsilon is None else self._gradients.info.batch_norms
        with (
            kept_running_statistics(norms),
            self._moved(epsilon, is_over=False, synchronises=synchronises),
            self._finished(WeightedPass(weights, count)),
            gradients_apart(self.parameters) as added,
        ):
            yield
        if added:
            raise LossContractError(
                "A term was added to the loss that has no samples, and split_batch has no pass over all of them; set "
                "economy to 'none'."
            )

    def reduce(self, losses: Tensor, count: Tensor | float | None = None) -> Tensor:
        """The loss whose backward pass the driver is to run: that of the pass under way, else the mean.

        Args:
            losses (`Tensor` of shape (B,)): One loss per sample.
            count (`Tensor` or `float`, *optional*): What sums over samples are divided by; B if not given (in a
                weighted pass, its `count`). Under gradient accumulation, the number of samples of the whole step.

        Returns:
            `Tensor` without dimensions.

        Raises:
            LossContractError: If there is not one loss per sample.
        """
        if self._pass is None:
            return losses.sum() / (losses.numel() if count is None else count)
        return self._pass.reduce(losses, count)

    def drop_if_not_finite(self, *, drop: bool = True) -> bool:
        """After the passes: whether the gradient has an infinite entry or one that is not a number, on which no
        optimizer is to step. It is then counted as a skipped step and, with `drop`, set to None."""
        if not self._has_looked:
            self.look_at_model()
        self._has_looked = False
        self._warn_of_unreached()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients or math.isfinite(total_norm(gradients)):
            return False
        self.statistics.skipped_steps += 1
        if drop and self._prefix.is_replayed:  # loss scaling overflows on its way to a scale
            self._prefix.turn_off("a gradient was not finite")
        if drop:
            for parameter in self.parameters:
                parameter.grad = None
        return True

    # ---- details ----

    def _warn_of_unreached(self) -> None:
        """Once: name trained parameters that no gradient reaches, as those of an adapter around a layer that its
        parent never calls."""
        if self._has_warned:
            return
        self._has_warned = True
        unreached = [name for name, p in self.named_trained_parameters() if p.grad is None]
        if unreached:
            logger.warning(
                "No gradient reaches %d of %d trained parameters, among them %s: the model does not use them, so they "
                "stay as they are.",
                len(unreached),
                len(self.parameters),
                unreached[0],
            )

    def _check_untouched(self) -> None:
        """That gradients are as the first passes left them."""
        if all(p.grad is gradient and gradient._version == version for p, gradient, version in self._left):
            return
        self._left.clear()
        raise LossContractError(
            "The gradients changed between the passes of a step; clear, clip or unscale them before the first pass or "
            "after the second one."
        )

    @contextmanager
    def _watched(self, first: FirstPass) -> Iterator[None]:
        """A first pass whose losses the gradients are collected from when the block ends."""
        with self._gradients.watch(first.weights), self._finished(first), self._gradients.undisturbed():
            yield

    @contextmanager
    def _finished(self, under_way: Pass) -> Iterator[None]:
        """Let `reduce` be that of a pass inside the block, and differentiate when it ends."""
        self._pass = under_way
        try:
            yield
        finally:
            self._pass = None
        under_way.finish()

    @contextmanager
    def _moved(self, epsilon: list[Tensor] | None, *, is_over: bool, synchronises: bool) -> Iterator[None]:
        """At w + epsilon if given, which nothing needs afterwards if `is_over`."""
        with ExitStack() as stack:
            stack.enter_context(nullcontext() if synchronises else no_sync(self.model))
            if epsilon is not None:
                stack.enter_context(perturbed(self.parameters, epsilon, consume=is_over))
            yield

    def sample_weights(self, labels: Tensor) -> Tensor:
        """c(n) of each sample, shape (B,), for labels of shape (B,) or (B, C); 0 for those that are to be ignored."""
        parameter = next(iter(self._gradients.info.trained), None)
        if parameter is None:
            raise ValueError("The model has no parameter that requires a gradient; make the ones to train do so.")
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        if (self._class_weights.device, self._class_weights.dtype) != (parameter.device, dtype):
            self._class_weights = self.class_weights.to(parameter.device, dtype)
        labels = labels.to(parameter.device)
        if labels.ndim == 2:
            return labels.masked_fill(labels == IGNORED, 0).to(dtype) @ self._class_weights
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"The labels are {labels.dtype} of shape {tuple(labels.shape)}; give class indices, integers of shape "
                "(B,), or class probabilities of shape (B, C)."
            )
        labels = labels.long()
        ignored = labels == IGNORED
        return self._class_weights[labels.masked_fill(ignored, 0)].masked_fill(ignored, 0)

    def _random_state(self) -> RandomState:
        return random_state(self._gradients.info.accelerators)


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
