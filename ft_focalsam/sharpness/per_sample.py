"""Evaluate each sample of a batch at weights of its own, w + c(n) epsilon, in one forward pass.

Behind each module that owns perturbed parameters, what c(n) epsilon adds to its output is added sample by sample. A
module whose output is linear in its own weights, f(x; w) = f(x; 0) + J(x) w, gives f(x; w) + c(n) J(x) epsilon: for
nn.Linear that is x W^T + c(n) x E^T. A module type whose output is not linear in them has a rule here or elsewhere
(`per_sample_rule`). Whether all of this holds for a model is found out by `evaluations.OnePass`, before it is used.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .collectives import total_norm
from .gradients.rules import inherited_rule, rows_per_sample, spread
from .gradients.tolerances import tolerances
from .model_info import CONTAINERS, enclosing
from .targets import Target, layer_input, plus_product

# (module, epsilon by names of its parameters, c(n) of shape (B,), output at w, arguments...) -> output at w + c(n) eps
PerSampleRule = Callable[..., Tensor]
PER_SAMPLE_RULES: dict[type[nn.Module], PerSampleRule] = {}


def per_sample_rule(*module_types: type[nn.Module]) -> Callable[[PerSampleRule], PerSampleRule]:
    """Register a rule for module types, and for their subclasses that inherit `forward`."""

    def decorate(rule: PerSampleRule) -> PerSampleRule:
        PER_SAMPLE_RULES.update(dict.fromkeys(module_types, rule))
        return rule

    return decorate


@contextmanager
def perturbed_per_sample(
    model: nn.Module, target: Target, epsilon: Mapping[Tensor, Tensor], weights: Tensor
) -> Iterator[None]:
    """Run sample n at w + u_n epsilon inside the block.

    Args:
        model (`nn.Module`): The model without wrappers.
        target (`Target`): What is perturbed.
        epsilon (mapping): A tensor of the target -> its perturbation, of the same shape.
        weights (`Tensor` of shape (B,)): u_n.
    """
    with ExitStack() as stack:
        for module, parts in _owners(model, epsilon).items():
            rule = inherited_rule(PER_SAMPLE_RULES, module) or linear_in_weights
            hook = partial(_move_output, model, rule, parts, weights)
            handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)  # of the output as it is
            stack.callback(handle.remove)
        for layer, weight in target.layers.items():
            hook = partial(_move_adapted, model, epsilon[weight], weights)
            stack.callback(layer.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def owners_by_type(model: nn.Module, target: Target) -> Iterator[tuple[nn.Module, list[Tensor]]]:
    """For each type of module that owns perturbed tensors: the first such module, and the tensors of all of them."""
    owners = {module: list(parts.values()) for module, parts in _owners(model, {t: t for t in target.names}).items()}
    owners |= {layer: [*owners.get(layer, []), weight] for layer, weight in target.layers.items()}
    for kind in dict.fromkeys(map(type, owners)):
        alike = {module: tensors for module, tensors in owners.items() if type(module) is kind}
        yield next(iter(alike)), [tensor for tensors in alike.values() for tensor in tensors]


def _owners(model: nn.Module, epsilon: Mapping[Tensor, Tensor]) -> dict[nn.Module, dict[str, Tensor]]:
    """Module -> its part of epsilon, by the names that its parameters have in it; a parameter that several modules
    share is in each of them."""
    found: dict[nn.Module, dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter not in epsilon:
            continue
        owner = name.rpartition(".")[0]
        if isinstance(model.get_submodule(owner), CONTAINERS):
            owner = enclosing(model, owner) or ""
        found.setdefault(model.get_submodule(owner), {})[name[len(owner) :].lstrip(".")] = epsilon[parameter]
    return found


def _move_output(model, rule, parts, weights, module, args, kwargs, output) -> Tensor:
    """Forward hook of a module with perturbed parameters."""
    _check_batch(model, module, weights, output)
    return rule(module, parts, weights, output, *args, **kwargs)


def _move_adapted(model, part, weights, layer, args, kwargs, output) -> Tensor:
    """Forward hook of an adapted layer."""
    _check_batch(model, layer, weights, output)
    x = layer_input(args, kwargs)
    return plus_product(output, x * spread(weights, x), part)


def _check_batch(model: nn.Module, module: nn.Module, weights: Tensor, output: Any) -> None:
    """One that is the same for all samples, shape (1, ...), becomes one for each."""
    is_shared = isinstance(output, Tensor) and output.ndim > 1 and len(output) == 1
    if not is_shared and rows_per_sample(output, weights) is None:
        raise NotPerSampleError(model, module)


def with_part(output: Tensor, weights: Tensor, part: Tensor) -> Tensor:
    """output + u_n part, sample by sample.

    Args:
        output, part (`Tensor` of shape (B, ...), (B * T, ...) or (1, ...)): As the module returns them.
        weights (`Tensor` of shape (B,)): u_n.
    """
    is_shared = len(output) == 1
    shares = weights.to(output.dtype).view(-1, *[1] * (output.ndim - 1)) if is_shared else spread(weights, output)
    return output + shares * part.to(output.dtype)


def random_perturbation(target: Target) -> dict[Tensor, Tensor]:
    """A perturbation that is large enough to show in gradients, of weights that are 0 too; it touches no global random
    state."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for tensor, values in target.values().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
        found[tensor] = noise * (0.3 * values.to(tensor.dtype).square().mean().sqrt() + 0.02)
    return found


def agree(actual: Mapping[Tensor, Tensor], expected: Mapping[Tensor, Tensor]) -> bool | None:
    """Whether two gradients are equal but for rounding, which a wrong rule misses by tens of percent; None where one
    is not finite."""
    scale = total_norm(list(expected.values()))
    if not torch.isfinite(scale):
        return None
    tolerance, floor = tolerances(expected, reduced_precision=True)
    if all(gradient.dtype == torch.float64 for gradient in expected.values()):
        tolerance, floor = tolerances(expected, reduced_precision=False)
    for tensor, gradient in expected.items():
        error = total_norm([actual.get(tensor, torch.zeros_like(gradient)) - gradient])
        if not bool((error <= tolerance * total_norm([gradient])) | (error <= floor * scale)):
            return False
    return actual.keys() <= expected.keys()


class NotPerSampleError(ValueError):
    """A module cannot be evaluated at weights of its own for each sample.

    Args:
        model (`nn.Module`): The model.
        module (`nn.Module`): A module of it.
    """

    def __init__(self, model: nn.Module, module: nn.Module):
        path = next(name for name, candidate in model.named_modules() if candidate is module)
        name = f"{path} ({type(module).__name__})" if path else type(module).__name__
        super().__init__(
            f"evaluation is 'one_pass', and the weights of {name} cannot be perturbed for each sample by itself (its "
            "output is not linear in them, has no batch in front or mixes samples, or they are used elsewhere); set "
            "evaluation to 'two_point', or perturb something else."
        )


def linear_in_weights(module, parts, weights, output, *args, **kwargs) -> Tensor:
    """For any module: f(x; w) + u_n (f(x; epsilon) - f(x; 0)), where its other parameters stay as they are."""
    bare = _Bare(module)
    zeros = {
        f"module.{name}": torch.zeros((), dtype=p.dtype, device=p.device).expand(p.shape) for name, p in parts.items()
    }
    moved = {f"module.{name}": part for name, part in parts.items()}
    difference = functional_call(bare, moved, args, kwargs) - functional_call(bare, zeros, args, kwargs)
    return with_part(output, weights, difference)


class _Bare(nn.Module):
    """The forward pass of a module, without its hooks and what stands in for it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return type(self.module).forward(self.module, *args, **kwargs)


def _product_rule(product: Callable) -> PerSampleRule:
    """The rule of a module whose output is `product(module, weight, bias, x)`, linear in weight and bias together."""

    def rule(module, parts, weights, output, x: Tensor) -> Tensor:
        weight = parts.get("weight")
        if weight is None:
            weight = torch.zeros((), dtype=output.dtype, device=output.device).expand(module.weight.shape)
        dtype = module.weight.dtype
        bias = parts.get("bias")
        moved = product(module, weight.to(dtype), None if bias is None else bias.to(dtype), x)
        return with_part(output, weights, moved)

    return rule


@per_sample_rule(nn.Linear)
def linear(module, parts, weights, output, x: Tensor) -> Tensor:
    """x W^T + b + u_n (x E^T + e), where u_n multiplies the narrower of x and the output."""
    if "weight" in parts and x.shape[-1] <= output.shape[-1] and len(x) >= len(weights):
        output = plus_product(output, x * spread(weights, x), parts["weight"])
    elif "weight" in parts:
        output = with_part(output, weights, F.linear(x, parts["weight"].to(x.dtype)))
    return with_part(output, weights, parts["bias"]) if "bias" in parts else output


per_sample_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)(
    _product_rule(lambda module, weight, bias, x: module._conv_forward(x, weight, bias))
)
per_sample_rule(nn.LayerNorm)(
    _product_rule(lambda module, weight, bias, x: F.layer_norm(x, module.normalized_shape, weight, bias, module.eps))
)
