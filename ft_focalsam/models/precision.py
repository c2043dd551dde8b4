"""Training some weights of a half-precision backbone in float32, while all of it goes on computing in half."""

from collections.abc import Iterable
from functools import cache

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

HALF = (torch.float16, torch.bfloat16)


class CastsParameters:
    """Computes in the dtype of the input, with its own parameters cast to it, as autocast does.

    Put in front of a module type; names and children of the module stay as they are.

    Attributes:
        half_dtype (`torch.dtype`): What the parameters were in; computed in where the input has no floats, as that of
            a table of position biases.
    """

    half_dtype: torch.dtype

    def forward(self, *args, **kwargs):
        values = (*args, *kwargs.values())
        floats = (v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point())
        dtype = next(floats, self.half_dtype)
        modules = [self, self.out_proj] if isinstance(self, nn.MultiheadAttention) else [self]
        own = [module._parameters for module in modules]
        try:
            for module, parameters in zip(modules, own, strict=True):
                module._parameters = {n: p if p is None else p.to(dtype) for n, p in parameters.items()}
            return super().forward(*args, **kwargs)
        finally:
            for module, parameters in zip(modules, own, strict=True):
                module._parameters = parameters


@cache
def _casting(module_type: type[nn.Module]) -> type[nn.Module]:
    return type(module_type.__name__, (CastsParameters, module_type), {})


def raise_to_float32(root: nn.Module, names: Iterable[str]) -> None:
    """Hold parameters in float32, in place; a module that owns one casts it to the dtype of its input.

    A module type that does so itself has the attribute `casts_parameters`.

    Args:
        root (`nn.Module`): The model.
        names (iterable of `str`): Names of its parameters; those that are not in half precision stay as they are.
    """
    for name in names:
        parameter = root.get_parameter(name)
        if parameter.dtype not in HALF:
            continue
        half, parameter.data = parameter.dtype, parameter.data.float()
        place = name.rpartition(".")[0]
        owner = root.get_submodule(place)
        if isinstance(owner, NonDynamicallyQuantizableLinear):  # which nn.MultiheadAttention uses without calling it
            owner = root.get_submodule(place.rpartition(".")[0])
        if not isinstance(owner, CastsParameters) and not getattr(owner, "casts_parameters", False):
            owner.__class__, owner.half_dtype = _casting(type(owner)), half


def forget_half(root: nn.Module) -> nn.Module:
    """All of a model in float32, in place, without the casts of `raise_to_float32`."""
    for module in root.modules():
        if isinstance(module, CastsParameters):
            module.__class__ = type(module).__bases__[1]
            del module.half_dtype
    return root.float()
