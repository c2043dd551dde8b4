"""What is perturbed. A new target is one decorated function in this file.

A target names tensors, and how a perturbation of them is put on: weights are moved in place. *Merged weights* are no
tensors of the model: behind an adapted linear layer the output y = x W^T becomes y + x E^T, whatever the adapter makes
of W. So E is never added to weights of half precision, in which entries of its size (about rho / sqrt(N)) are lost.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        names (`dict[Tensor, str]`): The tensors that are perturbed, and their names.
        layers (`dict[nn.Module, Tensor]`): Adapted linear layer -> its merged weight among these tensors: a leaf of
            shape (out, in) without values, whose gradient is that of the weight of the layer as a whole.
    """

    names: dict[Tensor, str] = field(default_factory=dict)
    layers: dict[nn.Module, Tensor] = field(default_factory=dict)

    def values(self) -> dict[Tensor, Tensor]:
        """Each tensor with its values; a merged weight has those of the adapted layer's own weight."""
        own = {weight: base_layer(layer).weight for layer, weight in self.layers.items()}
        return {tensor: own.get(tensor, tensor).detach() for tensor in self.names}


TARGETS: dict[str, Callable[[nn.Module], Target]] = {}


def register_target(name: str) -> Callable[[Callable[[nn.Module], Target]], Callable[[nn.Module], Target]]:
    """Register a function `(model without wrappers) -> Target` under the `name` that users write as `--perturb name`.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(function: Callable[[nn.Module], Target]) -> Callable[[nn.Module], Target]:
        if name in TARGETS:
            raise ValueError(f"The target {name!r} is registered already; choose another name.")
        TARGETS[name] = function
        return function

    return decorate


@register_target("trained")
def trained(model: nn.Module) -> Target:
    """All that trains, as in SAM (arXiv 2010.01412)."""
    return Target({p: name for name, p in model.named_parameters() if p.requires_grad})


@register_target("norms")
def norms(model: nn.Module) -> Target:
    """Scales and shifts of normalisation layers, whether they train or not (SAM-ON, arXiv 2306.04226)."""
    found = {
        p: f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if is_norm(module)
        for name, p in module.named_parameters(recurse=False)
    }
    if not found:
        raise ValueError(
            "perturb is 'norms', and the model has no normalisation layer with weights; set it to 'trained'."
        )
    return Target(found)


@register_target("merged")
def merged(model: nn.Module) -> Target:
    """The merged weight of each linear layer that carries an adapter, and what trains outside of these layers, as the
    head does (Flat-LoRA, arXiv 2409.14396; EFlat-LoRA, arXiv 2508.00522)."""
    layers = _adapted_layers(model)
    if not layers:
        raise ValueError(
            "perturb is 'merged', and no linear layer of the model carries an adapter of peft, such as LoRA; set it "
            "to 'trained', or tuning to lora."
        )
    inside = {p for module in layers.values() for p in module.parameters()}
    rest = {p: name for name, p in model.named_parameters() if p.requires_grad and p not in inside}
    weights = {module: _merged_weight(base_layer(module)) for module in layers.values()}
    return Target(rest | {weights[module]: f"{name}.merged" for name, module in layers.items()}, weights)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with weights: LayerNorm, GroupNorm, or one called ...Norm."""
    named = isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) or "Norm" in type(module).__name__
    return named and any(p is not None for p in module._parameters.values())


def _adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that stand for a `base_layer` of theirs, as those of peft do, with something to train."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if is_inside or not isinstance(getattr(module, "base_layer", None), nn.Module):
            continue
        if not any(p.requires_grad for p in module.parameters()):
            continue
        if not all(isinstance(getattr(module.base_layer, a, None), int) for a in ("in_features", "out_features")):
            raise ValueError(
                f"perturb is 'merged', and {name!r} adapts a {type(module.base_layer).__name__}, which is no linear "
                "layer; adapt linear layers only, or set perturb to 'trained'."
            )
        found[name] = module
    return found


def base_layer(layer: nn.Module) -> nn.Linear:
    """The linear layer that an adapted layer adapts; a quantised one, of another type, has the same attributes."""
    return cast(nn.Linear, layer.base_layer)


def _merged_weight(layer: nn.Linear) -> Tensor:
    weight = layer.weight
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=weight.device).expand(layer.out_features, layer.in_features)


# ---- putting a perturbation on ----


@contextmanager
def perturbed(target: Target, epsilon: Mapping[Tensor, Tensor]) -> Iterator[None]:
    """Be at w + epsilon inside the block; afterwards the weights are as they were, bit for bit, also on an exception.

    Args:
        target (`Target`): What is perturbed.
        epsilon (mapping): A tensor of the target -> its perturbation, of the same shape.
    """
    layers = {module: epsilon[weight] for module, weight in target.layers.items() if weight in epsilon}
    merged_weights = set(target.layers.values())
    weights = [p for p in epsilon if p not in merged_weights]
    with ExitStack() as stack:
        for module, part in layers.items():
            stack.callback(module.register_forward_hook(partial(_add_product, part), with_kwargs=True).remove)
        with _moved(weights, [epsilon[p] for p in weights]):
            yield


def layer_input(args: tuple, kwargs: dict) -> Tensor:
    """x of a call of an adapted layer."""
    return args[0] if args else next(iter(kwargs.values()))


def _add_product(part: Tensor, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
    return plus_product(output, layer_input(args, kwargs), part)


def plus_product(output: Tensor, x: Tensor, part: Tensor) -> Tensor:
    """y + x E^T, in the precision of x, as the layer computes.

    Args:
        output (`Tensor` of shape (..., out)): y.
        x (`Tensor` of shape (..., in)): What the layer was given.
        part (`Tensor` of shape (out, in)): E.
    """
    part = part.to(x.dtype)
    if output.dtype != x.dtype or torch.is_autocast_enabled(x.device.type):
        return output + F.linear(x, part).to(output.dtype)
    return torch.addmm(output.flatten(0, -2), x.flatten(0, -2), part.T).view_as(output)


@contextmanager
def _moved(weights: Sequence[Tensor], epsilon: Sequence[Tensor]) -> Iterator[None]:
    """Autocast forgets the half-precision copies of weights that it keeps, each time the weights move: where it was
    entered outside both passes, the second one would run on copies of w."""
    if not weights:
        yield
        return
    weights = [_held(weight.detach()) for weight in weights]
    kept = [weight.clone() for weight in weights]
    try:
        torch._foreach_add_(weights, [_held(part) for part in epsilon])
        torch.clear_autocast_cache()
        yield
    finally:
        torch._foreach_copy_(weights, kept)
        torch.clear_autocast_cache()


def _held(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
