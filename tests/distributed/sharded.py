"""Training with FocalSAM where FSDP2 shards parameters, gradients and the optimizer's state over the processes."""

import torch
import torch.nn.functional as F
from accelerate import PartialState
from sharpness.models import COUNTS, make_batch, make_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ft_focalsam import FocalSAM


def shard(model: nn.Module) -> None:
    """Over all processes, block by block, as FSDP2 is meant to be used."""
    mesh = init_device_mesh("cpu", (PartialState().num_processes,))
    for module in list(model.modules()):
        if type(module).__name__ == "Dinov2Layer":
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())


def train_sharded(tuning: str, gamma: float) -> dict[str, Tensor]:
    """Weights after four steps on the same eight images, which the processes share."""
    state, model = PartialState(), make_model("dinov2", tuning)
    if state.num_processes > 1:
        shard(model)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    optimizer = FocalSAM(sgd, model, class_counts=COUNTS, rho=0.05, gamma=gamma, lam=1.1)
    each = 8 // state.num_processes
    mine = slice(each * state.process_index, each * (state.process_index + 1))
    images, labels = (tensor[mine] for tensor in make_batch(8))
    for _ in range(4):
        optimizer.step(lambda: F.cross_entropy(model(images).logits, labels, reduction="none"), labels=labels)
    step = optimizer.sharpness_step
    assert (step.separate_reason is not None) == (state.num_processes > 1 and gamma > 0)
    assert step.statistics.pop()["skipped_perturbations"] == 0
    parts = {name: p.detach() for name, p in model.named_parameters()}
    return {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in parts.items()}
