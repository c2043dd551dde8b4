"""The passes of a sharpness-aware update; `evaluations.py` decides which of them an optimizer step takes.

With c(n) the sharpness weight of sample n's class and L_c(w) = 1/B sum_n c(n) l_n(w), the base optimizer steps on

    g = grad L(w) - grad L_c(w) + grad L_c(w + eps),     eps = rho * grad L_c(w) / ||grad L_c(w)||

(Focal-SAM, arXiv 2505.01660, algorithm 1), which takes two forward and two backward passes: the first backward pass
gives both gradients at w (`gradients/`). `passes.py` has the formula of each pass, `targets.py` what else eps may
move, `directions.py` where else it may point.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .batch_statistics import kept_broadcast, kept_running_statistics
from .choices import check_choices, check_sharded
from .collectives import average_over_ranks, is_sharded, world_size
from .compiled import refuse_compiled
from .constants import Constant
from .directions import Direction, Gradient, Parts, Perturbation
from .frontier import FrozenPrefix
from .gradient_check import GradientCheck
from .gradient_sync import first_pass_sync, no_sync
from .gradients import GradientPair, ScaledGradient, WeightedGradient
from .gradients.base import gradients_apart
from .micro_batches import GradientSeal, MicroBatch
from .model_info import ModelInfo, inspect_model, refuse_wrapped
from .passes import FirstPass, LossContractError, Pass, SecondPass, VerificationPass
from .randomness import RandomState, drawing_from, is_same_state, random_state
from .schedules import check_rho
from .step_statistics import StepStatistics
from .targets import Target, perturbed
from .weights import IGNORED, sample_weights


class SharpnessStep:
    """The passes of an update. For each optimizer step, a driver does

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
        perturb (`str`): What is perturbed, a name in `TARGETS`: "trained", "norms" or "merged".
        direction (`Direction`, *optional*): The direction of the perturbation; by default that of grad L_c.
        separate_reason (`str`, *optional*): Why L_c needs a backward pass of its own whatever the model is; without
            it, the first steps find out.
        reuse_prefix (`bool`): Let the second pass take over what depends on no trained parameter, see `FrozenPrefix`.

    Attributes:
        separate_reason (`str` or `None`): Why a separate backward pass is used for L_c; None while one is enough, as
            it always is where all classes have the same weight (SAM).
        perturbation (`Perturbation` or `None`): epsilon of the step under way, once it is formed.

    Raises:
        ValueError: If an argument is out of range, two of them do not go together, or the model is wrapped in
            `nn.DataParallel` or sharded. From `start`, if it is spread over devices, or has nothing to perturb.
    """

    def __init__(
        self,
        model: nn.Module,
        class_weights: Tensor,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        scope: str = "global",
        perturb: str = "trained",
        direction: Direction | None = None,
        separate_reason: str | None = None,
        reuse_prefix: bool = True,
    ):
        direction = Gradient() if direction is None else direction
        check_rho(rho)
        check_choices(scope=scope, perturb=perturb, direction=direction, adaptive=adaptive)
        refuse_wrapped(model)
        if perturb == "merged":
            refuse_compiled(model, "perturb is 'merged'", "trained")
        if is_sharded(inspect_model(model).trained):
            check_sharded(scope, perturb, direction)
            separate_reason = separate_reason or "its parameters are sharded over processes"
        self.model = model
        self._given_reason = separate_reason
        self.rho = rho
        self.adaptive = adaptive
        self.scope = scope
        self.perturb = perturb
        self.direction = direction
        self.statistics = StepStatistics()
        self._check = GradientCheck(model)
        self._prefix = FrozenPrefix(model, is_off=not reuse_prefix)
        self._has_looked = False  # at the model, in the optimizer step under way
        self._micro_batches: list[MicroBatch] = []
        self._seal = GradientSeal()
        self.perturbation: Perturbation | None = None
        self._pass: Pass | None = None
        self._gradients: GradientPair
        self._scaled: ScaledGradient | None = None
        self._weighted: WeightedGradient | None = None
        self.class_weights = torch.empty(0, dtype=torch.float64)
        self.set_class_weights(class_weights)

    def set_class_weights(self, class_weights: Tensor) -> None:
        """Take other class-wise sharpness weights, shape (C,), from the next step on. What was found out about the
        gradients of the model does not depend on them, and stays known."""
        class_weights = class_weights.detach().to("cpu", torch.float64, copy=True)
        if torch.equal(class_weights, self.class_weights):
            return
        self.class_weights = class_weights
        self._class_weights = Constant(class_weights)
        if (class_weights == class_weights[0]).all():
            self._scaled = self._scaled or ScaledGradient(self.model, perturb=self.perturb)
            self._scaled.weight = float(class_weights[0])
            self._gradients = self._scaled
        else:
            self._weighted = self._weighted or WeightedGradient(
                self.model, separate_reason=self._given_reason, perturb=self.perturb
            )
            self._gradients = self._weighted

    @property
    def separate_reason(self) -> str | None:
        return self._gradients.separate_reason

    @property
    def bare_model(self) -> nn.Module:
        """The model without its wrappers."""
        return self._gradients.model

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters, as of the step under way."""
        return self._gradients.parameters

    @property
    def target(self) -> Target:
        """What is perturbed, as of the step under way."""
        return self._gradients.target

    @property
    def info(self) -> ModelInfo:
        """What is known of the model, as of the step under way."""
        return self._gradients.info

    @property
    def backward_passes(self) -> int:
        """Backward passes the latest first pass took: 1, or more where L_c had one of its own."""
        return self._gradients.backward_passes

    @property
    def is_plain(self) -> bool:
        """Whether the update is that of plain training (c = 0 or rho = 0), for which one pass does."""
        return self.rho == 0 or not bool(self.class_weights.any())

    @property
    def num_micro_batches(self) -> int:
        """First passes so far in the step under way."""
        return len(self._micro_batches)

    def weighted_gradient(self) -> list[Tensor]:
        """Gradient of L_c at w for each of `parameters`, on this process, after the first passes."""
        collected = self._gradients.gradients()
        return [collected[parameter] for parameter in self.parameters]

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
        self._seal.take_off()
        self.perturbation = None
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
        weights, state = self.sample_weights(labels), random_state(self.info.accelerators)
        while self._gradients.needs_verification(len(labels)):
            under_way = VerificationPass(weights, len(labels), self._gradients)
            with self.rehearsal(state), self._gradients.reaching_frozen(), self._watched(under_way):
                run()

    @contextmanager
    def rehearsal(self, state: RandomState | None = None) -> Iterator[dict[Tensor, Tensor]]:
        """A pass of which nothing remains but the yielded gradients of the trained parameters, filled when the block
        ends; random numbers are those of the pass that comes next."""
        with (
            kept_broadcast(self.model),
            no_sync(self.model),
            drawing_from(state or random_state(self.info.accelerators), self.info.accelerators),
            kept_running_statistics(self.info.batch_norms),
            gradients_apart(self.parameters) as found,
        ):
            yield found

    @contextmanager
    def under_way(self, one: Pass) -> Iterator[None]:
        """Let `reduce` be that of a pass inside the block, and differentiate when it ends."""
        self._pass = one
        try:
            yield
        finally:
            self._pass = None
        one.finish()

    @contextmanager
    def first_pass(self, labels: Tensor) -> Iterator[None]:
        """Forward and backward of L at w, without gradient synchronisation.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices, or class probabilities (mixup), for which
                c(n) = sum_k y_nk c_k.

        Raises:
            LossContractError: If what is differentiated inside the block is not made of the losses of the samples.
        """
        self._seal.check()
        first = FirstPass(self.sample_weights(labels), len(labels), self._gradients)
        state = random_state(self.info.accelerators)
        with (
            first_pass_sync(self.model, is_separate=self.separate_reason is not None),
            self._gradients.reaching_frozen(),
            self._watched(first),
            self._prefix.first() as prefix,
        ):
            yield
        draws = not is_same_state(state, random_state(self.info.accelerators))
        self._micro_batches.append(MicroBatch(first, state, prefix, draws))
        self._seal.put_on(self.parameters)

    def ascend(self) -> None:
        """Turn the collected gradient of L_c into epsilon, and take it out of `p.grad`.

        Where ||grad L_c|| is 0 or not finite, epsilon is 0 and `p.grad` stays that of plain training, to which the
        second pass adds nothing: a skipped perturbation. Nothing here waits for the device.

        Raises:
            LossContractError: If gradients were changed since the first passes.
        """
        self._seal.check()
        self._seal.take_off()
        collected = self._gradients.gradients()
        ascent = self._averaged(collected)
        self.perturb_along(self.direction.choose(self.target, ascent))
        self.direction.learn(self.target, ascent)
        if self.perturbation is None:
            return
        is_usable = self.perturbation.is_usable
        taken = [(p.grad, torch.where(is_usable, collected[p], 0)) for p in self.parameters if p.grad is not None]
        if taken:
            torch._foreach_sub_(*map(list, zip(*taken, strict=True)))
        self._gradients.release()

    def perturb_along(self, direction: Parts | None) -> None:
        """Form epsilon along a direction; None leaves the step without one."""
        if direction is not None:
            self.perturbation = Perturbation.along(direction, rho=self.rho, adaptive=self.adaptive)
            self.statistics.add_perturbation(list(self.perturbation.parts.values()), self.perturbation.is_usable)

    def learn_direction(self) -> None:
        """Let the direction take note of the gradient of L_c that first passes have collected."""
        if self.direction.learns:
            self.direction.learn(self.target, self._averaged(self._gradients.gradients()))

    def rows_of_second_pass(self, index: int) -> Tensor | None:
        """The samples of micro-batch `index` that the second pass need only run over, those with c(n) > 0 (ImbSAM);
        None for all, as where samples interact. See `MicroBatch.rows`."""
        interact = self._given_reason or self.separate_reason or self.info.batch_norms
        return None if interact or bool((self.class_weights > 0).all()) else self._micro_batches[index].rows()

    @contextmanager
    def second_pass(self, index: int, rows: Tensor | None = None) -> Iterator[None]:
        """Forward and backward of L_c at w + epsilon, over micro-batch `index` of this step; at w again afterwards.

        The last one synchronises the gradients and ends the step. After a skipped ascent it contributes nothing else.
        Inside the block only the reduced loss counts, whether it is differentiated there or not.

        Args:
            index (`int`): Of the first pass over the same batch, counted from 0.
            rows (`Tensor` of shape (b,), *optional*): The samples that the block runs over, as `rows_of_second_pass`
                gives them; all if not given.
        """
        batch = self._micro_batches[index]
        is_last = index == len(self._micro_batches) - 1
        moved = self.perturbation
        second = SecondPass(batch.first, self.statistics, rows=rows, usable=None if moved is None else moved.is_usable)
        prefix = None if rows is not None else batch.prefix
        with (
            drawing_from(batch.random_state, self.info.accelerators),
            kept_running_statistics(self.info.batch_norms),
            nullcontext() if is_last else no_sync(self.model),
            nullcontext() if moved is None else perturbed(self.target, moved.parts),
            self.under_way(second),
        ):
            replayed = self._prefix.second(prefix, is_perturbed=moved is not None)
            with gradients_apart(self.parameters) as added, replayed:
                yield
            batch.prefix = None  # and its memory
            if added and is_last and world_size() > 1:
                raise LossContractError(
                    "In the second pass a term beside reduce(losses) was differentiated, which several processes "
                    "would sum up twice; call backward on reduce(losses) alone there."
                )

    def reduce(self, losses: Tensor, count: Tensor | float | None = None) -> Tensor:
        """The loss whose backward pass the driver is to run: that of the pass under way, else the mean.

        Args:
            losses (`Tensor` of shape (B,)): One loss per sample.
            count (`Tensor` or `float`, *optional*): What sums over samples are divided by; B if not given.
                Under gradient accumulation, the number of samples of the whole step.

        Returns:
            `Tensor` without dimensions.

        Raises:
            LossContractError: If there is not one loss per sample.
        """
        if self._pass is None:
            return losses.sum() / (losses.numel() if count is None else count)
        return self._pass.reduce(losses, count)

    def drop_if_not_finite(self, *, drop: bool = True) -> bool:
        """After the passes: see `GradientCheck.drop_if_not_finite`."""
        if not self._has_looked:
            self.look_at_model()
        self._has_looked = False
        is_dropped = self._check.drop_if_not_finite(self.statistics, self.parameters, drop=drop)
        if is_dropped and drop and self._prefix.is_replayed:  # loss scaling overflows on its way to a scale
            self._prefix.turn_off("a gradient was not finite")
        return is_dropped

    # ---- details ----

    def _averaged(self, collected: Parts) -> Parts:
        """grad L_c of what is perturbed, over all processes where the scope is global; without loss scaling where it
        is kept."""
        found: list[Tensor] | tuple[Tensor, ...] = [collected[tensor] for tensor in self.target.names]
        if self.direction.learns:
            found = torch._foreach_div(found, self._micro_batches[-1].first.factor)
        found = average_over_ranks(found) if self.scope == "global" else found
        return dict(zip(self.target.names, found, strict=True))

    @contextmanager
    def _watched(self, first: FirstPass) -> Iterator[None]:
        """A first pass whose losses the gradients are collected from when the block ends."""
        with self._gradients.watch(first.weights), self.under_way(first), self._gradients.undisturbed():
            yield

    def sample_weights(self, labels: Tensor) -> Tensor:
        """c(n) of each sample, shape (B,), for labels of shape (B,) or (B, C); 0 for those that are to be ignored.
        Where all classes have the same weight, as in SAM, every sample has it, those of no class too."""
        parameter = next(iter(self.info.trained), None)
        if parameter is None:
            raise ValueError("The model has no parameter that requires a gradient; make the ones to train do so.")
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        labels = labels.to(parameter.device)
        if labels.ndim == 2 and self._scaled is not None and self._gradients is self._scaled:
            return (labels != IGNORED).any(dim=1).to(dtype) * self._scaled.weight
        return sample_weights(self._class_weights.on(parameter.device, dtype), labels)
