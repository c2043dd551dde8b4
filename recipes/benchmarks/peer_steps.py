"""Steps for step_cost.py to compare with: SAM of pytorch_optimizer, and those of Trainers."""

import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments

SGD = {"lr": 1e-4, "momentum": 0.9}
# Kind of step -> name in the table
PEERS = {
    "pytorch_optimizer_sam": "SAM, pytorch_optimizer",
    "hf_trainer": "Trainer, plain",
    "trainer_plain": "FocalSAMTrainer, none",
    "trainer_focal_sam": "FocalSAMTrainer, ours",
}


def refuse_missing(kind: str) -> str | None:
    """Why a kind of step cannot be had here; None where it can."""
    if kind == "pytorch_optimizer_sam" and find_spec("pytorch_optimizer") is None:
        return f"The kind {kind} needs a package that is not installed: pip install pytorch_optimizer."
    return None


def make_peer_step(
    kind: str,
    model: nn.Module,
    run: Callable[[slice], Tensor],
    inputs: Mapping[str, Tensor],
    *,
    counts: list[int],
    settings: Mapping[str, Any],
    is_half: bool,
) -> Callable[[], None]:
    """One update by a kind in `PEERS`, with the base optimizer of the other steps.

    Args:
        model (`nn.Module`): The model, of which some parameters train.
        run (`Callable`): A slice of the batch -> logits.
        inputs (mapping): "pixel_values" and "labels" of the batch.
        counts (list of `int`): Training images per class.
        settings (mapping): rho, focal_gamma and focal_lambda.
        is_half (`bool`): Whether the Trainers compute in bf16.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if kind == "pytorch_optimizer_sam":
        return _pytorch_optimizer_sam(parameters, run, inputs["labels"], settings["rho"])
    common = {
        "output_dir": tempfile.gettempdir(),  # where they write nothing
        "report_to": "none",
        "use_cpu": inputs["labels"].device.type == "cpu",
        "bf16": is_half,
    }
    optimizer = torch.optim.SGD(parameters, **SGD)
    if kind == "hf_trainer":
        trainer = Trainer(model, TrainingArguments(**common), optimizers=(optimizer, None))
    else:
        sharpness = {"trainer_plain": "none", "trainer_focal_sam": "focal_sam"}[kind]
        arguments = FocalSAMTrainingArguments(**common, sharpness=sharpness, loss="cross_entropy", **settings)
        trainer = FocalSAMTrainer(model, arguments, class_counts=counts, optimizers=(optimizer, None))

    trainer.current_gradient_accumulation_steps = 1  # which `train` sets

    def step() -> None:
        trainer.training_step(model, dict(inputs))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _pytorch_optimizer_sam(parameters: list[Tensor], run: Callable, labels: Tensor, rho: float) -> Callable[[], None]:
    from pytorch_optimizer import SAM

    optimizer = SAM(parameters, torch.optim.SGD, rho=rho, **SGD)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(run(slice(None)), labels)
        loss.backward()
        return loss

    def step() -> None:
        closure()
        optimizer.step(closure)

    return step
