"""What every way to the gradients of L and L_c has in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..compiled import draw_as_eager, unwrapped
from ..model_info import ModelInfo, inspect_model, refuse_split
from ..targets import TARGETS, Target
from .merged import watched_output
from .rules import sum_dtype


@dataclass
class BatchLosses:
    """The losses of one forward pass, and what multiplies them.

    Args:
        losses (`Tensor` of shape (B,)): l_n, with their graph.
        weights (`Tensor` of shape (B,)): c(n).
        count (`Tensor` or `float`): What sums over samples are divided by: B, or the samples of the whole step.
        factor (`Tensor` without dimensions, *optional*): What else multiplies the loss before it is differentiated:
            loss scaling, gradient accumulation. 1 if not given.
    """

    losses: Tensor
    weights: Tensor
    count: Tensor | float
    factor: Tensor | None = None

    def mean(self) -> Tensor:
        """L = 1/count sum_n l_n."""
        return self.losses.sum() / self.count

    def weighted(self, weights: Tensor | None = None) -> Tensor:
        """1/count sum_n u_n l_n with u the given `weights` of shape (B,), by default c: L_c."""
        weights = self.weights if weights is None else weights
        return (self.losses * weights.to(self.losses.dtype)).sum() / self.count  # no product that autocast would round

    def backward(self, loss: Tensor, *, retain_graph: bool = False) -> None:
        """Backward pass of factor * loss, in the precision of the forward pass whatever autocast is on by now.

        It is `backward()` and not `autograd.grad()`, because reentrant activation checkpointing knows only the former.
        """
        with torch.autocast(loss.device.type, enabled=False):
            loss.backward(self.factor, retain_graph=retain_graph)


class GradientPair(ABC):
    """The gradient of L goes to `p.grad` as autograd accumulates it; that of L_c = 1/count sum_n c(n) l_n is collected
    beside it. A step does

        pair.start()
        with pair.watch(weights):
            losses = forward()                                     # shape (B,)
            pair.backward(BatchLosses(losses, weights, len(losses)))   # p.grad += grad L
        pair.gradients()                                           # grad L_c

    where `watch` and `backward` may come several times, for gradient accumulation, before `gradients` gives the sum.
    As long as `needs_verification` says so, such a forward pass is to be given to `verify` first.
    Sums are float32 at least.

    Args:
        model (`nn.Module`): The model, wrapped for data parallelism or compiled or not. The trained parameters are
            those that require a gradient when a step begins.
        perturb (`str`): What the gradient of L_c is collected for beside them, a name in `TARGETS`.

    Attributes:
        model (`nn.Module`): The model without its wrappers.
        info (`ModelInfo`): What is known of it, as of the latest `prepare`.
        target (`Target`): What is perturbed.
        names (`dict[Tensor, str]`): What the gradient of L_c is collected for: all that trains or is perturbed.
        separate_reason (`str` or `None`): Why L_c needs a backward pass of its own; None while one is enough for both.
        backward_passes (`int`): Backward passes that the latest `backward` took.
    """

    separate_reason: str | None = None
    backward_passes = 1

    def __init__(self, model: nn.Module, *, perturb: str = "trained"):
        draw_as_eager(model)
        self.model = unwrapped(model)
        self.info = ModelInfo({}, [], [])
        self.target = Target()
        self.names: dict[Tensor, str] = {}
        self._perturb = perturb
        self._sums: dict[Tensor, Tensor] = {}  # of `names` -> gradient of L_c so far

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters."""
        return list(self.info.trained)

    @property
    def frozen(self) -> list[Tensor]:
        """What is perturbed and does not train."""
        return [tensor for tensor in self.target.names if tensor not in self.info.trained]

    def prepare(self) -> None:
        """Look at the model again; `start` does so.

        Raises:
            ValueError: If it is spread over devices, or an optimizer steps in the backward pass.
        """
        before, self.info = self.info.trained, inspect_model(self.model)
        if self.info.trained.keys() != before.keys():
            refuse_split(self.model, self.info)
            self.target = TARGETS[self._perturb](self.model)
            trained = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
            self.names = trained | self.target.names

    def start(self) -> None:
        """Begin an optimizer step with nothing collected."""
        self.prepare()
        self.release()

    def release(self) -> None:
        """Give back the memory of what was collected."""
        self._sums.clear()

    def watch(self, weights: Tensor) -> AbstractContextManager[None]:
        """Watch a forward pass; `backward`, or `verify`, is to be called inside the block.

        Args:
            weights (`Tensor` of shape (B,)): c(n).
        """
        return nullcontext()

    def undisturbed(self) -> AbstractContextManager[None]:
        """Inside a watched pass: collect nothing from backward passes of others inside the block."""
        return nullcontext()

    def needs_verification(self, batch_size: int) -> bool:
        """Whether a batch of this size is to be given to `verify` before it counts."""
        return False

    def verify(self, batch: BatchLosses) -> None:
        """Compare the ways to the gradient of L_c on a watched pass, of which nothing remains."""
        return

    @abstractmethod
    def backward(self, batch: BatchLosses) -> None:
        """p.grad += grad of L, times the factor of the batch; that of L_c is added to what was collected."""

    @abstractmethod
    def gradients(self) -> dict[Tensor, Tensor]:
        """Gradient of L_c for each of `names`, summed over the batches since `start()`; 0 where none arrived."""

    @contextmanager
    def reaching_frozen(self) -> Iterator[None]:
        """Let backward passes inside the block reach what is perturbed and does not train, and throw away what they
        leave in its `.grad`."""
        frozen = self.frozen
        try:
            for tensor in frozen:
                tensor.requires_grad_(True)
            with gradients_apart(frozen):
                yield
        finally:
            for tensor in frozen:
                tensor.requires_grad_(False)

    @contextmanager
    def _merged_weights_watched(self) -> Iterator[None]:
        """Let autograd's own gradient reach the merged weights."""
        with ExitStack() as stack:
            for layer, weight in self.target.layers.items():
                stack.callback(layer.register_forward_hook(partial(watched_output, weight), with_kwargs=True).remove)
            yield

    def _add(self, found: Mapping[Tensor, Tensor]) -> None:
        add_to(self._sums, {p: gradient.to(sum_dtype(p)) for p, gradient in found.items() if p in self.names})


@contextmanager
def gradients_apart(tensors: Iterable[Tensor]) -> Iterator[dict[Tensor, Tensor]]:
    """Let what arrives in `tensor.grad` inside the block go to the yielded dictionary, filled when the block ends, and
    leave `tensor.grad` as it was, also where the block fails."""
    kept = {tensor: tensor.grad for tensor in tensors}
    for tensor in kept:
        tensor.grad = None
    found: dict[Tensor, Tensor] = {}
    try:
        yield found
    finally:
        for tensor, before in kept.items():
            if tensor.grad is not None:
                found[tensor] = tensor.grad
            tensor.grad = before


def add_to(sums: dict[Tensor, Tensor], gradients: Mapping[Tensor, Tensor]) -> None:
    """sums[p] += gradients[p] in place, for all p at once; what has no sum yet begins with its gradient."""
    known = [p for p in gradients if p in sums]
    if known:
        torch._foreach_add_([sums[p] for p in known], [gradients[p] for p in known])
    sums.update({p: gradient for p, gradient in gradients.items() if p not in sums})


def sum_of(a: Tensor | None, b: Tensor | None, *, like: Tensor) -> Tensor:
    """a + b where None is 0."""
    if a is None:
        return torch.zeros_like(like) if b is None else b
    return a if b is None else a + b
