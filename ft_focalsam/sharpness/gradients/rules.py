"""Rules of their own for module types: forward functions whose backward also yields the class-weighted gradient.

A rule stands in for `module.forward` during the first pass. It returns the same output; in the backward pass it gives
each parameter p its gradient as always, and the *weighted-gradient buffer* of p the gradient weighted by c(n). Because
autograd itself accumulates into the buffer, a module called twice, a parameter shared by two modules and activation
checkpointing need no care here. A module type without a rule is served by the general local rule of
`single_backward.py`; write a rule where that one costs too much.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Rule = Callable[..., Tensor]
WEIGHTED_GRAD_RULES: dict[type[nn.Module], Rule] = {}

# Up to this width the two weight gradients come from one matrix product over the concatenated factors.
NARROW = 64


def weighted_grad_rule(module_type: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register a rule for `module_type` and for its subclasses that inherit its `forward`.

    The rule is called as `rule(module, buffers, weights, *args, **kwargs)`: `buffers` maps the names of the module's
    parameters to their weighted-gradient buffers (those to be left alone are missing), `weights` holds c(n), shape
    (B,), and the rest is what `module.forward` was called with. Tensors have the batch in front, shape (B, ...) or
    flattened (B * T, ...).

    Raises:
        ValueError: If the type has a rule already.
    """

    def decorate(rule: Rule) -> Rule:
        if module_type in WEIGHTED_GRAD_RULES:
            raise ValueError(f"{module_type.__name__} has a rule already; change that one.")
        WEIGHTED_GRAD_RULES[module_type] = rule
        return rule

    return decorate


def find_rule(module: nn.Module) -> Rule | None:
    """The rule for a module; None where its type has none, or overrides or patches the forward a rule stands for."""
    return None if "forward" in vars(module) else inherited_rule(WEIGHTED_GRAD_RULES, module)


def inherited_rule(rules: Mapping[type[nn.Module], Rule], module: nn.Module) -> Rule | None:
    """The rule for the type of a module or its nearest parent that has one; None where none has, or where the type
    overrides the forward that the rule stands for."""
    for parent in type(module).__mro__:
        if issubclass(parent, nn.Module) and parent in rules:
            return rules[parent] if type(module).forward is parent.forward else None
    return None


def sum_dtype(parameter: Tensor) -> torch.dtype:
    """What gradients of a parameter are summed in: float32 at least."""
    return torch.promote_types(parameter.dtype, torch.float32)


def make_buffer(parameter: Tensor) -> Tensor:
    """A leaf of the parameter's shape and device, to receive a gradient; its values take no memory."""
    return (
        torch.zeros((), dtype=sum_dtype(parameter), device=parameter.device).expand(parameter.shape).requires_grad_()
    )


def is_buffer_of(buffer: Tensor, parameter: Tensor) -> bool:
    """False where the parameter moved to another device, or changed its dtype or shape, since it got its buffer."""
    return (buffer.shape, buffer.dtype, buffer.device) == (parameter.shape, sum_dtype(parameter), parameter.device)


def rows_per_sample(tensor, weights: Tensor) -> int | None:
    """T of a tensor with the batch in front, shape (B, ...) with T = 1 or (B * T, ...); None for any other one.

    Args:
        tensor: What a module was given or returned.
        weights (`Tensor` of shape (B,)): c(n).
    """
    size = weights.shape[0]
    if not isinstance(tensor, Tensor) or tensor.ndim < 2 or tensor.shape[0] % size:
        return None
    return tensor.shape[0] // size


def spread(weights: Tensor, tensor: Tensor) -> Tensor:
    """Shape c(n), (B,), so that it multiplies a tensor of shape (B, ...) or (B * T, ...) sample by sample."""
    rows = weights.to(tensor.dtype).repeat_interleave(tensor.shape[0] // weights.shape[0])
    return rows.reshape(-1, *[1] * (tensor.ndim - 1))


class _Linear(torch.autograd.Function):
    """y = x W^T + b; the buffers of W and b receive sum_n c(n) delta_n x_n^T and sum_n c(n) delta_n."""

    @staticmethod
    def forward(ctx, x, weight, bias, weight_buffer, bias_buffer, weights):
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = (
                t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t
                for t in (x, weight, bias)
            )
        ctx.save_for_backward(x, weight, weights)
        output = F.linear(x, weight, bias)
        # In torch 2.6 linear may return a view, and a Function's view cannot be changed in place by what comes next.
        return torch.ops.aten._unsafe_view.default(output, output.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, delta):
        x, weight, weights = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_weight_buffer, needs_bias_buffer, _ = ctx.needs_input_grad
        delta = delta.to(weight.dtype)
        grad_x = delta @ weight if needs_x else None
        x, delta = x.flatten(0, -2), delta.flatten(0, -2)
        scale = spread(weights, delta)
        grad_weight = grad_weight_buffer = grad_bias = grad_bias_buffer = None
        if needs_weight and needs_weight_buffer and min(weight.shape) <= NARROW:
            if weight.shape[0] <= weight.shape[1]:
                both = torch.cat([delta, delta * scale], dim=1).T @ x
            else:
                both = (delta.T @ torch.cat([x, x * scale], dim=1)).unflatten(1, (2, -1)).transpose(0, 1)
                both = both.flatten(0, 1)
            grad_weight, grad_weight_buffer = both.chunk(2)
        else:
            if needs_weight:
                grad_weight = delta.T @ x
            if needs_weight_buffer:
                grad_weight_buffer = (delta * scale).T @ x
        if needs_bias:
            grad_bias = delta.sum(0)
        if needs_bias_buffer:
            grad_bias_buffer = (scale.T @ delta).flatten()
        return grad_x, grad_weight, grad_bias, grad_weight_buffer, grad_bias_buffer, None


@weighted_grad_rule(nn.Linear)
def linear(module: nn.Linear, buffers: Mapping[str, Tensor], weights: Tensor, input: Tensor) -> Tensor:
    """Rule of `nn.Linear`, by what LoRA, adapters and classification heads are made of."""
    return _Linear.apply(input, module.weight, module.bias, buffers.get("weight"), buffers.get("bias"), weights)


class _LayerNorm(torch.autograd.Function):
    """y = xhat * w + b; the buffers of w and b receive sum_n c(n) delta_n xhat_n and sum_n c(n) delta_n.

    Both pairs of gradients come from torch's kernel, the second one called with c(n) delta_n and without a gradient
    for x: it is faster than matrix products with xhat, which it never writes to memory.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, weight_buffer, bias_buffer, weights, shape, eps):
        output, mean, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias, weights)
        ctx.shape, ctx.dtype = shape, output.dtype
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, delta):
        x, mean, rstd, weight, bias, weights = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_weight_buffer, needs_bias_buffer, *_ = ctx.needs_input_grad
        # As the forward pass had them where autocast computes layer norms in float32.
        x = x.to(ctx.dtype)
        weight, bias = (t if t is None else t.to(torch.promote_types(t.dtype, ctx.dtype)) for t in (weight, bias))

        def gradients(delta, *mask):
            return torch.ops.aten.native_layer_norm_backward(delta, x, ctx.shape, mean, rstd, weight, bias, mask)

        grad_x = grad_weight = grad_bias = grad_weight_buffer = grad_bias_buffer = None
        if needs_x or needs_weight or needs_bias:
            grad_x, grad_weight, grad_bias = gradients(delta, needs_x, needs_weight, needs_bias)
        if needs_weight_buffer or needs_bias_buffer:
            scaled = delta * spread(weights, delta)
            _, grad_weight_buffer, grad_bias_buffer = gradients(scaled, False, needs_weight_buffer, needs_bias_buffer)
        return grad_x, grad_weight, grad_bias, grad_weight_buffer, grad_bias_buffer, None, None, None


@weighted_grad_rule(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, buffers: Mapping[str, Tensor], weights: Tensor, input: Tensor) -> Tensor:
    """Rule of `nn.LayerNorm`."""
    shape, eps = module.normalized_shape, module.eps
    return _LayerNorm.apply(
        input, module.weight, module.bias, buffers.get("weight"), buffers.get("bias"), weights, shape, eps
    )
