"""The mean loss of a class as a function of the weights: its value, its gradient, and its Hessian times a vector."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..sharpness.collectives import total_norm
from ..sharpness.directions import Parts
from ..sharpness.targets import Target, perturbed

Tensors = list[Tensor] | tuple[Tensor, ...]


class ClassLoss:
    """L(w + epsilon), the mean over all images of all batches; one batch is in memory as a graph at a time.

    Attention runs by its plain formula, the one implementation that can be differentiated twice.

    Args:
        target (`Target`): What epsilon perturbs; derivatives are with respect to it.
        losses_of (`Callable`): Runs the model as it is on a batch; returns losses of its images, shape (B,). The loss
            of an image must not depend on the rest of its batch.
        batches (sequence): What `losses_of` takes, at least one.
        name (`str`): Of the class, for error messages.
    """

    def __init__(
        self, target: Target, losses_of: Callable[[Any], Tensor], batches: Sequence[Any], *, name: str = "the class"
    ):
        self.target = target
        self._losses_of = losses_of
        self._batches = batches
        self._name = name

    @torch.no_grad()
    def value(self, epsilon: Parts | None = None) -> float:
        """L(w + epsilon); at w without `epsilon`.

        Raises:
            ValueError: If it is not finite.
        """
        with self._at(epsilon or {}):
            losses = torch.cat([self._losses_of(batch).double() for batch in self._batches])
        return self._checked(losses.mean())

    def gradient(self, epsilon: Parts | None = None) -> tuple[float, Parts]:
        """L and its gradient at w + epsilon.

        Raises:
            ValueError: If L or its gradient is not finite.
        """
        total, count, sums = torch.zeros((), dtype=torch.float64), 0, None
        with self._at(epsilon or {}) as leaves:
            for batch in self._batches:
                losses = self._losses_of(batch)
                sums = _added(sums, torch.autograd.grad(losses.sum(), leaves, materialize_grads=True))
                total, count = total + losses.detach().double().sum(), count + len(losses)
        gradient = self._mean(sums, count)
        self._checked(total_norm(list(gradient.values())), what="gradient")
        return self._checked(total / count), gradient

    def hessian_vector(self, vector: Parts) -> Parts:
        """H v with H the Hessian of L at w.

        Args:
            vector (`Parts`): v, one part for each tensor of the target.
        """
        count, sums = 0, None
        parts = [vector[tensor] for tensor in self.target.names]
        with self._at({}) as leaves:
            for batch in self._batches:
                losses = self._losses_of(batch)
                slopes = torch.autograd.grad(losses.sum(), leaves, create_graph=True, materialize_grads=True)
                slope = reduce(add, ((g * v).sum() for g, v in zip(slopes, parts, strict=True)))
                found = tuple(torch.zeros_like(v) for v in parts)  # of a loss that is linear
                if slope.requires_grad:
                    found = torch.autograd.grad(slope, leaves, materialize_grads=True)
                sums, count = _added(sums, found), count + len(losses)
        return self._mean(sums, count)

    @contextmanager
    def _at(self, epsilon: Parts) -> Iterator[list[Tensor]]:
        """Be at w + epsilon; gives what stands for the tensors of the target in the graph. A merged weight is no
        tensor of the model: its perturbation stands for it."""
        merged = set(self.target.layers.values())
        epsilon = {**epsilon}
        for weight in merged:
            at = epsilon.get(weight, torch.zeros(weight.shape, dtype=weight.dtype, device=weight.device))
            epsilon[weight] = at.detach().requires_grad_()
        with ExitStack() as stack:
            for tensor in self.target.names:
                if not tensor.requires_grad and tensor not in merged:
                    stack.callback(tensor.requires_grad_(True).requires_grad_, False)
            stack.enter_context(perturbed(self.target, epsilon))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield [epsilon[tensor] if tensor in merged else tensor for tensor in self.target.names]

    def _mean(self, sums: Tensors | None, count: int) -> Parts:
        """Sums over images, as a perturbation."""
        if sums is None:
            raise ValueError(f"There is no image of {self._name}; give at least one batch.")
        return dict(zip(self.target.names, torch._foreach_div(sums, count), strict=True))

    def _checked(self, value: Tensor, *, what: str = "loss") -> float:
        if not torch.isfinite(value):
            raise ValueError(
                f"The {what} of {self._name} is {float(value)} at the weights or near them; lower rho and extent, or "
                "analyse a run whose losses are finite."
            )
        return float(value)


def _added(sums: Tensors | None, found: Tensors) -> Tensors:
    """The sums, with what was found in another batch."""
    return found if sums is None else torch._foreach_add(sums, found)


def combined(*terms: tuple[float, Parts]) -> Parts:
    """The sum of factors times perturbations of the same tensors."""
    (factor, first), *others = terms
    values = torch._foreach_mul(list(first.values()), factor)
    for factor, parts in others:
        torch._foreach_add_(values, [parts[tensor] for tensor in first], alpha=factor)
    return dict(zip(first, values, strict=True))


def random_parts(target: Target, draw: Callable[[torch.Size, torch.Generator], Tensor], *, seed: int) -> Parts:
    """A random perturbation, drawn on the CPU, so that it is the same on every device.

    Args:
        target (`Target`): What is perturbed.
        draw (`Callable`): (shape, generator) -> values.
        seed (`int`): Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        tensor: draw(tensor.shape, generator).to(tensor.device, torch.promote_types(tensor.dtype, torch.float32))
        for tensor in target.names
    }


def gaussian(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Independent entries of the normal distribution, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)
