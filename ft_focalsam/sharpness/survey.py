"""What a step needs to know of a model and of how its modules nest."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Sequential)


class Survey(NamedTuple):
    """
    Attributes:
        trained (`dict[Tensor, None]`): The parameters that require a gradient.
        devices (`list[torch.device]`): Where parameters are, the CPU left out.
        batch_norms (`list[nn.Module]`): Batch normalisations in training mode, which make samples interact.
    """

    trained: dict[Tensor, None]
    devices: list[torch.device]
    batch_norms: list[nn.Module]


def survey(model: nn.Module) -> Survey:
    """Walk over a model; several times faster than `named_parameters()`, which matters where steps are short."""
    trained: dict[Tensor, None] = {}
    devices: dict[torch.device, None] = {}
    batch_norms: list[nn.Module] = []
    waiting, seen = [model], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for parameter in module._parameters.values():
            if parameter is not None:
                devices[parameter.device] = None
                if parameter.requires_grad:
                    trained[parameter] = None
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            batch_norms.append(module)
        waiting.extend(child for child in reversed(module._modules.values()) if child is not None)
    return Survey(trained, [device for device in devices if device.type not in ("cpu", "meta")], batch_norms)


def enclosing(model: nn.Module, name: str) -> str | None:
    """Name of the nearest module around `name` that has a forward pass of its own, None if there is none."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(name), CONTAINERS):
            return name
    return None


def refuse_wrapped(model: nn.Module) -> None:
    """Raise a `ValueError` for wrappers in which the step would not be exact."""
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "nn.DataParallel replicates the model inside one process, where per-class gradients cannot be collected; "
            "start one process per device with `accelerate launch`."
        )
    wrapper = type(model).__name__
    if wrapper in ("FullyShardedDataParallel", "DeepSpeedEngine"):
        raise ValueError(
            f"The model ({wrapper}) is sharded over processes in a way that hides its gradients; use "
            "DistributedDataParallel (accelerate_configs/multi_gpu.yaml), or torch's fully_shard."
        )
