"""The frozen prefix of a model: what the second pass over a batch need not compute again.

A call of a module whose output depends on no trained parameter gives the same at w and at w + epsilon. The first pass
keeps the outputs of such calls that anything else reads (of a ViT whose upper blocks train, that of the last frozen
block), and the second pass returns them instead of calling the module.

Which calls these are is found in the first two steps that perturb: their second passes compute everything, compare the
outputs bit for bit with those of the first pass, and see which of them are read outside such calls. Two steps, because
what starts at zero has no gradient, and no perturbation, in the first one. The others are replaced by NaN in later
steps: if one were read after all, the gradient would not be finite, the step be skipped and the prefix computed again
from then on.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from .collectives import is_sharded
from .compiled import is_compiled, unwrapped
from .model_info import ModelInfo
from .pausing import Pausable
from .randomness import RandomState, is_same_state, random_state, set_random_state

logger = logging.getLogger(__name__)

# Modules with a smaller share of the model's parameters are computed again: to keep what they give costs more memory
# than it saves time.
LEAST_SHARE = 0.01

Call = tuple[nn.Module, int]  # a module, and the how manieth call of it in a forward pass


@dataclass
class PrefixRecord:
    """What a first pass keeps of the frozen calls, in their order, for the second pass over the same batch."""

    outputs: dict[Call, Any] = field(default_factory=dict)
    versions: dict[Call, list[int]] = field(default_factory=dict)
    random_states: dict[Call, RandomState] = field(default_factory=dict)
    is_whole: bool = False  # all outputs are there, for the comparison

    def keep(self, call: Call, output: Any) -> None:
        self.outputs[call] = output
        self.versions[call] = [tensor._version for tensor in _tensors(output)]

    def was_changed(self) -> bool:
        """Whether an output was changed in place since."""
        return any(
            [tensor._version for tensor in _tensors(output)] != self.versions[call]
            for call, output in self.outputs.items()
        )


class FrozenPrefix:
    """Finds the frozen calls of a model, and replays them:

        prefix.prepare(info)
        with prefix.first() as record:
            first_forward()
        with prefix.second(record):
            second_forward()

    Args:
        model (`nn.Module`): The model, with its wrappers.
        is_off (`bool`): Compute everything in both passes.

    Attributes:
        calls (`dict[Call, bool]`): The frozen calls, in their order, and whether anything else reads what they give.
    """

    def __init__(self, model: nn.Module, *, is_off: bool = False):
        self._model = unwrapped(model)
        self._is_off = is_off or is_compiled(model) or is_sharded(model.parameters())
        self._trained: list[Tensor] = []
        self._accelerators: list[torch.device] = []
        self._is_known = False
        self._step = 0
        self._first_compared: int | None = None  # the step of the first comparison
        self._draws = False  # whether a frozen call draws random numbers
        self.calls: dict[Call, bool] = {}

    def prepare(self, info: ModelInfo) -> None:
        """Take note of what trains; where that has changed, the frozen calls are looked for again."""
        self._step += 1
        self._accelerators = info.accelerators
        trained = list(info.trained)
        if len(trained) != len(self._trained) or any(a is not b for a, b in zip(trained, self._trained, strict=True)):
            self._trained = trained
            self._look_again()
            self._is_off = self._is_off or any(getattr(m, "gradient_checkpointing", False) for m in self._modules())

    def _look_again(self) -> None:
        self._is_known, self._first_compared = False, None

    def turn_off(self, reason: str) -> None:
        """Compute everything again from now on."""
        if not self._is_off and self.calls:
            logger.warning("The frozen part of the model is computed in both passes of each step: %s.", reason)
        self._is_off = True

    @property
    def is_replayed(self) -> bool:
        """Whether second passes have something to replay."""
        return self._is_known and bool(self.calls) and not self._is_off

    @contextmanager
    def first(self) -> Iterator[PrefixRecord | None]:
        """Around the forward pass at w."""
        if self._is_off or (self._is_known and not self.calls):
            yield None
            return
        record = PrefixRecord(is_whole=not self._is_known)
        with ExitStack() as stack:
            if self._is_known:
                self._keep_outputs(stack, record)
            else:
                self._look_for_calls(stack, record)
            yield record

    @contextmanager
    def second(self, record: PrefixRecord | None, *, is_perturbed: bool = True) -> Iterator[None]:
        """Around the forward pass over the same batch at w + epsilon; at w, where equal outputs show nothing, without
        `is_perturbed`."""
        if record is None or self._is_off or not is_perturbed:
            yield
            return
        if record.is_whole:
            with self._compared(record):
                yield
            return
        if record.outputs.keys() != self.calls.keys() or record.was_changed():
            self._look_again()  # other calls than in the steps that were looked at
            yield
            return
        numbers: dict[nn.Module, int] = {}
        with ExitStack() as stack:
            for module in _modules_of(self.calls):
                if "forward" in vars(module):  # something else stands in for it already
                    stack.callback(setattr, module, "forward", module.forward)
                else:
                    stack.callback(delattr, module, "forward")
                module.forward = partial(self._replay, module, module.forward, record, numbers)
            yield

    # ---- the first pass ----

    def _modules(self) -> list[nn.Module]:
        return list(self._model.modules())

    def _look_for_calls(self, stack: ExitStack, record: PrefixRecord) -> None:
        """Keep the outputs of the outermost calls that depend on nothing trained."""
        size = sum(p.numel() for p in self._model.parameters())
        large = {m for m in self._modules() if sum(p.numel() for p in m.parameters()) >= LEAST_SHARE * size}
        numbers: dict[nn.Module, int] = {}
        begun: list[tuple[nn.Module, int, RandomState]] = []
        self._draws = False

        def begin(module, args):
            begun.append((module, len(record.outputs), random_state(self._accelerators)))

        def end(module, args, output):
            _, inner, before = begun.pop()
            call = _count_call(module, numbers)
            tensors = _tensors(output)
            if not tensors or any(tensor.requires_grad for tensor in tensors) or not torch.is_grad_enabled():
                return
            if any(p.requires_grad for p in module.parameters()):
                return  # whatever it is, it may come to depend on them
            for inside in list(record.outputs)[inner:]:
                del record.outputs[inside]
            record.keep(call, output)
            self._draws |= not is_same_state(before, random_state(self._accelerators))

        for module in self._modules():
            if module in large and module is not self._model:
                stack.callback(module.register_forward_pre_hook(begin).remove)
                stack.callback(module.register_forward_hook(end).remove)

    def _keep_outputs(self, stack: ExitStack, record: PrefixRecord) -> None:
        numbers: dict[nn.Module, int] = {}

        def end(module, args, output):
            call = _count_call(module, numbers)
            is_frozen = not any(tensor.requires_grad for tensor in _tensors(output))
            if call not in self.calls or not is_frozen:
                return
            record.keep(call, output if self.calls[call] else tree_map(_without_values, output))
            if self._draws:
                record.random_states[call] = random_state(self._accelerators)

        for module in _modules_of(self.calls):
            stack.callback(module.register_forward_hook(end).remove)

    # ---- the second pass ----

    def _replay(self, module, forward, record, numbers, *args, **kwargs):
        call = _count_call(module, numbers)
        if call not in record.outputs:
            return forward(*args, **kwargs)
        if self._draws:
            set_random_state(record.random_states[call], self._accelerators)
        return record.outputs[call]

    @contextmanager
    def _compared(self, record: PrefixRecord) -> Iterator[None]:
        """Compute everything, and compare the outputs of frozen calls with those of the first pass."""
        watch = _Consumers()
        numbers: dict[nn.Module, int] = {}
        differing: list[nn.Module] = []
        seen: list[Call] = []

        def begin(module, args):
            if (module, numbers.get(module, 0)) in record.outputs:
                watch.depth += 1

        def end(module, args, output):
            call = _count_call(module, numbers)
            if call not in record.outputs:
                return
            seen.append(call)
            with watch.paused():
                if not _equal(output, record.outputs[call]):
                    differing.append(module)
            watch.depth -= 1
            watch.note(call, _tensors(output))

        with ExitStack() as stack:
            for module in _modules_of(record.outputs):
                stack.callback(module.register_forward_pre_hook(begin).remove)
                stack.callback(module.register_forward_hook(end).remove)
            with watch:
                yield
        if self._first_compared is None:
            self._first_compared = self._step
        self._is_known = self._step > self._first_compared
        self.calls = {call: call in watch.consumed for call in seen}
        if differing or record.was_changed() or seen != list(record.outputs):
            name = next((n for n, m in self._model.named_modules() if m in differing), "a module")
            self.turn_off(f"{name} does not give the same twice")


class _Consumers(Pausable, TorchDispatchMode):
    """Notes which tensors are read by operations outside frozen calls."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.consumed: set[Call] = set()
        self._calls: dict[int, Call] = {}
        self._held: list[Tensor] = []  # so that no other tensor gets the same id

    def note(self, call: Call, tensors: list[Tensor]) -> None:
        self._held += tensors
        self._calls |= {id(tensor): call for tensor in tensors}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if self.depth == 0 and not self.is_paused:
            for tensor in _tensors((args, kwargs)):
                if id(tensor) in self._calls:
                    self.consumed.add(self._calls[id(tensor)])
        return operation(*args, **(kwargs or {}))


def _modules_of(calls: Iterable[Call]) -> list[nn.Module]:
    """Each module once."""
    return list(dict.fromkeys(module for module, _ in calls))


def _count_call(module: nn.Module, numbers: dict[nn.Module, int]) -> Call:
    """The call of a module that is under way; `numbers` has how many there were before."""
    number = numbers.get(module, 0)
    numbers[module] = number + 1
    return module, number


def _tensors(structure: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(structure) if isinstance(leaf, Tensor)]


def _without_values(leaf: Any) -> Any:
    """NaN in the shape of a tensor, without its memory; what is no floating-point tensor stays."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
        return leaf
    return leaf.new_full((), float("nan")).expand(leaf.shape)


def _equal(a: Any, b: Any) -> bool:
    """Whether two structures hold the same tensors bit for bit."""
    pairs = list(zip(_tensors(a), _tensors(b), strict=False))
    same_number = len(_tensors(a)) == len(_tensors(b))
    return same_number and all(
        x.shape == y.shape and x.dtype == y.dtype and torch.equal(x.nan_to_num(), y.nan_to_num())
        if x.is_floating_point()
        else torch.equal(x, y)
        for x, y in pairs
    )
