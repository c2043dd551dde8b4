"""Training where FSDP2 shards parameters, gradients and the optimizer's state over processes on a CPU."""

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import DistributedType
from sharpness.models import COUNTS, make_batch, make_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ft_focalsam import FocalSAM, FocalSAMTrainer


def sharding(trainer_type: type[FocalSAMTrainer]) -> type[FocalSAMTrainer]:
    """A trainer that shards on the CPU too. Of FSDP on several CPUs Accelerate makes plain data parallelism; its
    sharding asks for nothing but that the processes count as those of several GPUs."""

    class Sharding(trainer_type):
        def create_accelerator_and_postprocess(self):
            PartialState().distributed_type = DistributedType.MULTI_GPU
            super().create_accelerator_and_postprocess()
            assert self.accelerator.distributed_type == DistributedType.FSDP

    return Sharding


class ReduceScatters(TorchDispatchMode):
    """Counts the calls by which FSDP2 shards gradients."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.namespace == "c10d" and "reduce_scatter" in function.__name__
        return function(*args, **(kwargs or {}))


def is_sharded(model: nn.Module) -> bool:
    """Whether of every parameter each process holds a part."""
    return all(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """What `model.state_dict()` holds, on every process."""
    parts = model.state_dict()
    return {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in parts.items()}


def shard(model: nn.Module, *, reshards: bool) -> None:
    """Over all processes, block by block, as FSDP2 is meant to be used."""
    mesh = init_device_mesh("cpu", (PartialState().num_processes,))
    blocks = [module for module in model.modules() if type(module).__name__ == "Dinov2Layer"]
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshards)
    assert is_sharded(model)


def train_in_a_loop(tuning: str, gamma: float, evaluates: bool) -> dict[str, Tensor]:
    """Weights after four steps of FocalSAM on the same eight images, which the processes share.

    Args:
        evaluates: Run the model between the steps and before the first one, each time with its parameters left whole.
    """
    state, model = PartialState(), make_model("dinov2", tuning)
    if state.num_processes > 1:
        shard(model, reshards=not evaluates)
    each = 8 // state.num_processes
    mine = slice(each * state.process_index, each * (state.process_index + 1))
    images, labels = (tensor[mine] for tensor in make_batch(8))

    @torch.no_grad()
    def evaluate() -> None:
        model(images)
        assert not is_sharded(model)

    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    if evaluates:
        evaluate()
    optimizer = FocalSAM(sgd, model, class_counts=COUNTS, rho=0.05, gamma=gamma, lam=1.1)
    for _ in range(4):
        optimizer.step(lambda: F.cross_entropy(model(images).logits, labels, reduction="none"), labels=labels)
        if evaluates:
            evaluate()
    step = optimizer.sharpness_step
    assert (step.separate_reason is not None) == (state.num_processes > 1 and gamma > 0)
    assert step.statistics.pop()["skipped_perturbations"] == 0
    return whole_weights(model)
