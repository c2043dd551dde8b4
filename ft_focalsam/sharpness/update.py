"""What an optimizer step consists of: the two passes, a plain one, or what an economy makes of them.

The Trainer and the optimizer both drive this one object. They say how the forward and backward pass over a batch is
run; it says how often, on which samples, and with what in between.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .economy import Economy, orthogonal_part, perturbed_probabilities, systematic_draw
from .perturbation import ascent_direction, average_over_ranks, total_norm
from .step import SharpnessStep, world_size


@dataclass(frozen=True)
class Run:
    """How a driver runs a batch, or the samples of it that an index tensor names.

    Args:
        whole (`Callable`): Forward and backward of `step.reduce(losses)`; returns the reduced loss.
        forward (`Callable`): Forward and `step.reduce(losses)` alone, for a pass that differentiates by itself.
    """

    whole: Callable[[Tensor | None], Tensor]
    forward: Callable[[Tensor | None], object]


class SharpnessUpdate:
    """Optimizer steps around the passes of a `SharpnessStep`.

    Args:
        step (`SharpnessStep`): The passes.
        economy (`Economy`): How steps are made cheaper; by default not at all.

    Raises:
        ValueError: If the economy carries a direction from step to step and the perturbation is local, where every
            process would carry another one.
    """

    def __init__(self, step: SharpnessStep, economy: Economy | None = None):
        self.step = step
        self.economy = economy or Economy()
        self.economy.check_scope(step.scope)
        self._held: list[Run] = []  # of the micro-batches that wait for their second pass
        self._kind = "plain"
        self._is_first = True  # whether the next micro-batch begins an optimizer step
        # look_sam: unit vector that plain steps add; split_batch: running average of unit gradients of L_c.
        self._direction: list[Tensor] | None = None
        self._epsilon: list[Tensor] = []  # split_batch: of the optimizer step under way
        self._perturbed: list[Tensor] = []  # split_batch: gradient at w + epsilon of the optimizer step under way

    def micro_batch(self, labels: Tensor, run: Run, *, number: int, is_last: bool = True) -> Tensor:
        """All passes over one batch. Where gradients are accumulated and the perturbation is global, the second passes
        over every batch of the optimizer step come with the last one.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices or class probabilities.
            run (`Run`): How the batch is run.
            number (`int`): Of the optimizer step, counted from 0.
            is_last (`bool`): Whether the optimizer steps after this batch.

        Returns:
            `Tensor` without dimensions: the loss that `run` returned for the batch at w; with "split_batch", the sum
            over both of its parts.
        """
        if self._is_first:
            self._kind = self._choose(number)
        self._is_first = False
        try:
            if self._kind == "exact":
                loss = self._exact(labels, run, is_last)
            elif self._kind == "split":
                loss = self._split(labels, run, is_last)
            else:
                loss = run.whole(None)
                if self._kind == "look" and is_last:
                    self._look()
        except BaseException:
            self._end()
            raise
        if is_last:
            self._end()
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """The direction that is carried from step to step, by names of parameters; empty where there is none."""
        if self._direction is None:
            return {}
        names = [name for name, _ in self.step.named_trained_parameters()]
        return dict(zip(names, self._direction, strict=True))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: If it is not for the parameters that train.
        """
        trained = {name: p for name, p in self.step.named_trained_parameters() if state}
        wrong = sorted(set(trained) ^ set(state)) or [n for n, p in trained.items() if p.shape != state[n].shape]
        if wrong:
            raise ValueError(f"The saved direction does not fit the trained parameters at {wrong[0]!r}.")
        self._direction = [state[name].to(p.device) for name, p in trained.items()] or None

    def _end(self) -> None:
        self._held.clear()
        self._epsilon, self._perturbed = [], []
        self._is_first = True

    def _choose(self, number: int) -> str:
        if self.step.is_plain:
            return "plain"
        if self.economy.name in ("none", "every_k"):
            is_turn = self.economy.name == "none" or number % self.economy.interval == 0
            return "exact" if is_turn else "plain"
        self.step.look_at_model()
        shapes = [parameter.shape for parameter in self.step.parameters]
        if self._direction is not None and [part.shape for part in self._direction] != shapes:
            self._direction = None  # other parameters train now
        if self._direction is None or (self.economy.name == "look_sam" and number % self.economy.interval == 0):
            return "exact"
        return "look" if self.economy.name == "look_sam" else "split"

    def _exact(self, labels: Tensor, run: Run, is_last: bool) -> Tensor:
        step = self.step
        is_local = step.scope == "local"
        if is_local or not self._held:
            step.start()
        self._held.append(run)
        step.verify_gradients(labels, lambda: run.whole(None))
        with step.first_pass(labels):
            loss = run.whole(None)
        if not (is_local or is_last):
            return loss
        if self.economy.name == "split_batch":
            self._direction = self._average(step.weighted_gradient(), old_share=0.0)
        plain = [gradient.clone() for gradient in self._gradient()] if self.economy.name == "look_sam" else None
        has_ascended = step.ascend()
        if step.needs_second_pass:
            for index, held in enumerate(self._held):
                with step.second_pass(index):
                    held.forward(None)
        if plain is not None and has_ascended:
            self._direction = orthogonal_part(self._gradient(), average_over_ranks(plain))
        if is_local:
            self._held.clear()
        return loss

    def _look(self) -> None:
        """p.grad += alpha ||p.grad|| v, with the unit vector v kept from the last exact step."""
        gradient = self._gradient()
        addend = torch._foreach_mul(self._direction, self.economy.look_alpha * total_norm(gradient))
        for parameter, part in zip(self.step.parameters, addend, strict=True):
            parameter.grad = part.to(parameter.dtype) if parameter.grad is None else parameter.grad + part

    def _split(self, labels: Tensor, run: Run, is_last: bool) -> Tensor:
        """One forward and one backward pass over each sample, at w + epsilon or at w."""
        step = self.step
        weights = step.sample_weights(labels)
        probabilities = perturbed_probabilities(weights, float(step.class_weights.max()))
        is_drawn = systematic_draw(probabilities, float(torch.rand((), dtype=torch.float64)))
        if not self._epsilon:
            direction, _ = ascent_direction(step.parameters, self._direction, adaptive=step.adaptive)
            self._epsilon = [step.rho * part for part in direction]
            step.statistics.add_perturbation(self._epsilon)
        loss = weights.new_zeros(())
        drawn, rest = is_drawn.nonzero().flatten(), (~is_drawn).nonzero().flatten()
        if len(drawn):
            kept = self._take_gradients()
            importance = weights[drawn] / probabilities[drawn]
            with step.weighted_pass(importance, len(labels), epsilon=self._epsilon, synchronises=False):
                loss = loss + run.whole(drawn).detach()
            arrived = [gradient.clone() for gradient in self._gradient()]
            self._perturbed = torch._foreach_add(self._perturbed, arrived) if self._perturbed else arrived
            self._give_back(kept)
        if len(rest) or world_size() > 1:
            rest = rest if len(rest) else drawn[:1]  # with weight 0: this process has to take part in the all-reduce
            importance = torch.where(is_drawn[rest], 0.0, (1 - weights[rest]) / (1 - probabilities[rest]))
            with step.weighted_pass(importance, len(labels), epsilon=None, synchronises=True):
                loss = loss + run.whole(rest).detach()
        if is_last:
            perturbed = self._perturbed or [torch.zeros_like(part) for part in self._direction]
            self._direction = self._average(perturbed, old_share=self.economy.average_decay)
        return loss

    def _average(self, gradient: list[Tensor], *, old_share: float) -> list[Tensor] | None:
        """The direction moved towards the unit vector of a gradient; as it was where that is 0 or not finite."""
        gradient = average_over_ranks(gradient)
        norm = total_norm(gradient)
        old = self._direction if old_share else [torch.zeros_like(part) for part in gradient]
        usable = torch.isfinite(norm) & (norm > 0)
        if not old_share and not usable:
            return None
        return [
            torch.where(usable, old_share * o + (1 - old_share) * g / norm, o)
            for o, g in zip(old, gradient, strict=True)
        ]

    def _gradient(self) -> list[Tensor]:
        """p.grad of each trained parameter, 0 where there is none."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.step.parameters]

    def _take_gradients(self) -> list[Tensor | None]:
        kept = [p.grad for p in self.step.parameters]
        for parameter in self.step.parameters:
            parameter.grad = None
        return kept

    def _give_back(self, kept: list[Tensor | None]) -> None:
        """p.grad becomes what it was taken as plus what has arrived since."""
        for parameter, gradient in zip(self.step.parameters, kept, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else gradient + parameter.grad
