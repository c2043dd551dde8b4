"""The gradient of L_c out of the backward pass of L.

Samples of a batch do not interact, so the signal delta_n that reaches a module for sample n is the same in the
gradient of L = 1/B sum_n l_n and in that of L_c = 1/B sum_n c(n) l_n, up to the factor c(n). While autograd
accumulates the gradient of L into `p.grad`, every module that owns trained parameters therefore also forms

    sum_n c(n) (d module / d p)^T delta_n

which arrives in the gradient of a *weighted-gradient buffer* of p: a tensor of its shape that holds no memory. Two
kinds of rule do so:

- a rule of its own for a module type (`rules.py`), which stands in for the module's forward;
- the general local rule for every other type: when delta reaches the module's output, a local backward pass with
  c(n) delta_n from that output to the module's own parameters.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from ..collectives import is_sharded
from ..model_info import enclosing
from ..pausing import Pausable
from .base import sum_of
from .merged import watched_output
from .rules import find_rule, is_buffer_of, make_buffer, rows_per_sample, spread

# Name of a module that collects, and the rows that each sample has in what it sees
Layout = tuple[str, int]


class _Places(NamedTuple):
    forwards: dict[nn.Module, Callable]  # modules with a rule -> what stands in for forward
    without_rule: dict[nn.Module, tuple[str, list[Tensor]]]  # those that the general rule collects at


class SingleBackward(Pausable):
    """Rules at the modules of a model, and what they collect.

    Args:
        model (`nn.Module`): The model without wrappers.
        names (`dict[Tensor, str]`): What is collected for, and the names: parameters and merged weights.
        layers (`dict[nn.Module, Tensor]`): Adapted layer -> its merged weight, see `Target`.

    Attributes:
        buffers (`dict[Tensor, Tensor]`): Each of these -> leaf whose `.grad` receives its weighted gradient.
        lost (`set[Tensor]`): Parameters whose module saw a tensor without batch dimension in the latest pass.
        layouts (`set[Layout]`): How the rows of what the modules saw in the latest pass belong to samples.
        reduced_precision (`bool`): Whether a module ever computed in half precision.
    """

    def __init__(self, model: nn.Module, names: dict[Tensor, str], layers: dict[nn.Module, Tensor]):
        self.model = model
        self.names = names
        self.layers = layers
        self.buffers = {parameter: make_buffer(parameter) for parameter in names}
        self.lost: set[Tensor] = set()
        self.layouts: set[Layout] = set()
        self.reduced_precision = False
        merged_weights = set(layers.values())
        owners = {p: enclosing(model, name) for p, name in names.items() if p not in merged_weights}
        self._owners = {p: owner for p, owner in owners.items() if owner is not None}
        self._places: _Places | None = None  # where each parameter is collected for
        self._weights = torch.empty(0)  # of the latest pass

    def fits(self, names: dict[Tensor, str]) -> bool:
        """Whether these are still what is collected for, as it was."""
        return names.keys() == self.names.keys() and all(is_buffer_of(b, p) for p, b in self.buffers.items())

    def gradients(self) -> dict[Tensor, Tensor]:
        """What was collected for each parameter; 0 where nothing was."""
        return {
            parameter: sum_of(None, buffer.grad, like=parameter if is_sharded([parameter]) else buffer)
            for parameter, buffer in self.buffers.items()
        }

    def release(self) -> None:
        """Forget what was collected."""
        for buffer in self.buffers.values():
            buffer.grad = None

    def hand_over(self, parameters: list[Tensor]) -> Tensor | None:
        """Let the enclosing module collect for each parameter; returns one that only the whole model encloses, or
        that has no other place."""
        for parameter in parameters:
            owner = enclosing(self.model, self._owners.get(parameter, ""))
            if not owner:
                return parameter
            self._owners[parameter] = owner
        self._places = None
        return None

    @contextmanager
    def rules(self, weights: Tensor) -> Iterator[None]:
        """Have the rules in place for a forward pass and its backward pass.

        Args:
            weights (`Tensor` of shape (B,)): What they weigh the samples by.
        """
        if self._places is None:
            self._places = self._choose_rules()
        self.lost.clear()
        self.layouts.clear()
        self._weights = weights
        with ExitStack() as stack:
            for module, forward in self._places.forwards.items():
                module.forward = forward
                stack.callback(delattr, module, "forward")
            for module, (owner, parameters) in self._places.without_rule.items():
                hook = partial(self._by_local_backward, stack, weights, owner, parameters)
                stack.callback(module.register_forward_hook(hook).remove)
            for layer in self.layers:
                stack.callback(layer.register_forward_hook(self._at_adapted_layer, with_kwargs=True).remove)
            yield

    def _choose_rules(self) -> _Places:
        """Sort the modules that collect into those with a rule of their own, and those for the general one."""
        groups: dict[str, list[Tensor]] = {}
        for parameter, owner in self._owners.items():
            groups.setdefault(owner, []).append(parameter)
        places = _Places({}, {})
        for owner, parameters in groups.items():
            module = self.model.get_submodule(owner)
            own: dict[Tensor, str] = {p: name for name, p in module.named_parameters(recurse=False)}
            rule = find_rule(module)
            if rule is not None and all(p in own for p in parameters):
                buffers = {own[p]: self.buffers[p] for p in parameters}
                places.forwards[module] = partial(self._by_rule, rule, module, buffers, owner, parameters)
            else:
                places.without_rule[module] = owner, parameters
        return places

    def _by_rule(self, rule, module, buffers, owner, parameters, input, *args, **kwargs):
        if not self._has_batch(owner, input, self._weights):
            self.lost.update(parameters)
            return type(module).forward(module, input, *args, **kwargs)
        return rule(module, buffers, self._weights, input, *args, **kwargs)

    def _by_local_backward(self, stack, weights, owner, parameters, module, args, output) -> None:
        """Forward hook of the general rule."""
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        if not outputs:
            return  # a forward pass without gradient, as the first one under activation checkpointing
        if not all(self._has_batch(owner, tensor, weights) for tensor in outputs):
            self.lost.update(parameters)
            return
        for tensor in outputs:
            edge = get_gradient_edge(tensor)
            handle = tensor.register_hook(partial(self._local_backward, edge, weights, parameters))
            # Removing the hook also breaks the cycle from the graph node over the hook to its edge.
            stack.callback(handle.remove)

    def _at_adapted_layer(self, layer, args, kwargs, output) -> Tensor:
        """Forward hook for the merged weight."""
        weight = self.layers[layer]
        if not self._has_batch(self.names[weight], output, self._weights):
            self.lost.add(weight)
            return watched_output(weight, layer, args, kwargs, output)
        buffer = self.buffers[weight]
        return watched_output(
            weight, layer, args, kwargs, output, buffer=buffer, weights=self._weights, is_reference=self._is_reference
        )

    def _is_reference(self) -> bool:
        return self.is_paused

    def _has_batch(self, owner: str, tensor, weights: Tensor) -> bool:
        """Whether the batch is in front of a tensor; notes the layout and the precision."""
        rows = rows_per_sample(tensor, weights)
        if rows is None:
            return False
        self.layouts.add((owner, rows))
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        self.reduced_precision |= half or torch.is_autocast_enabled(tensor.device.type)
        return True

    def _local_backward(self, edge, weights, parameters, delta: Tensor) -> None:
        if self.is_paused:
            return
        with self.paused():
            found = torch.autograd.grad(
                edge, parameters, delta * spread(weights, delta), retain_graph=True, allow_unused=True
            )
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                buffer = self.buffers[parameter]
                buffer.grad = sum_of(buffer.grad, gradient.to(buffer.dtype), like=buffer)
