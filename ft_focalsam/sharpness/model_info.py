"""What a step needs to know of a model and of how its modules nest."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict, nn.Sequential)


class ModelInfo(NamedTuple):
    """
    Attributes:
        trained (`dict[Tensor, None]`): The parameters that require a gradient.
        devices (`list[torch.device]`): Where parameters are.
        batch_norms (`list[nn.Module]`): Batch normalisations in training mode, which make samples interact.
    """

    trained: dict[Tensor, None]
    devices: list[torch.device]
    batch_norms: list[nn.Module]

    @property
    def accelerators(self) -> list[torch.device]:
        """The devices that draw random numbers of their own beside the CPU."""
        return [device for device in self.devices if device.type not in ("cpu", "meta")]


def inspect_model(model: nn.Module) -> ModelInfo:
    """Walk over a model; several times faster than `named_parameters()`, which matters where steps are short.

    FSDP2 shards the parameters again that a forward pass without a backward pass, as in an evaluation, left whole: an
    optimizer steps on the sharded ones.
    """
    trained: dict[Tensor, None] = {}
    devices: dict[torch.device, None] = {}
    batch_norms: list[nn.Module] = []
    waiting, seen = [model], set()
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, FSDPModule):
            module.reshard()
        for parameter in module._parameters.values():
            if parameter is not None:
                devices[parameter.device] = None
                if parameter.requires_grad:
                    trained[parameter] = None
        if isinstance(module, _BatchNorm) and module.training:
            batch_norms.append(module)
        waiting.extend(child for child in reversed(module._modules.values()) if child is not None)
    return ModelInfo(trained, list(devices), batch_norms)


def enclosing(model: nn.Module, name: str) -> str | None:
    """Name of the nearest module around `name` that has a forward pass of its own, None if there is none."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(name), CONTAINERS):
            return name
    return None


def refuse_wrapped(model: nn.Module) -> None:
    """Raise a `ValueError` for wrappers and placements in which the step would not be exact."""
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "nn.DataParallel replicates the model inside one process, where per-class gradients cannot be collected; "
            "start one process per device with `accelerate launch`."
        )
    wrapper = type(model).__name__
    if wrapper in ("FullyShardedDataParallel", "DeepSpeedEngine"):
        raise ValueError(
            f"The model ({wrapper}) is sharded over processes in a way that hides its gradients; use "
            "DistributedDataParallel (accelerate_configs/multi_gpu.yaml), or torch's fully_shard (fsdp_version: 2)."
        )


def refuse_split(model: nn.Module, info: ModelInfo) -> None:
    """Raise a `ValueError` for a model that is spread over devices or sharded in part, or one whose parameters an
    optimizer steps on in the backward pass."""
    if len(info.devices) > 1:
        raise ValueError(
            f"The parameters of the model are on {', '.join(map(str, info.devices))}; the sharpness step needs all of "
            "them on one device: load the model without device_map, or use several processes."
        )
    is_sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if is_sharded and parameter.requires_grad and not isinstance(parameter, DTensor):
            raise ValueError(
                f"The parameter {name} trains and is not sharded as others are, so that each process would have its "
                "own gradient for it; let fully_shard take it too (no ignored modules), or freeze it."
            )
        if parameter.requires_grad and parameter._post_accumulate_grad_hooks:
            raise ValueError(
                f"The parameter {name} has a hook that acts on its gradient in the backward pass, as optimizers that "
                "step there have; the sharpness step needs the gradients of both passes, so use another optimizer."
            )
