"""`FocalSAMTrainingArguments`: the Trainer's arguments and those of the sharpness step."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .losses import LOSSES
from .sharpness import SHARPNESS_METHODS
from .sharpness.perturbation import PERTURBATION_SCOPES
from .sharpness.step import check_rho


@dataclass
class FocalSAMTrainingArguments(TrainingArguments):
    """Arguments of `FocalSAMTrainer`: those of `transformers.TrainingArguments` and the following.

    Defaults that differ from the Trainer's: `remove_unused_columns` is False, because images are decoded by transforms
    that need their column, `label_names` is ["labels"], and `dataloader_pin_memory` is False on the CPU.

    > Parameters that control the sharpness step

    Args:
        sharpness (`str`, defaults to `"focal_sam"`):
            Sharpness-aware method: none, sam, weighted_sam, imbsam or focal_sam.
        rho (`float`, >= 0, defaults to `0.05`):
            Radius of the perturbation.
        focal_gamma (`float`, >= 0, defaults to `1.0`):
            Focusing parameter gamma of Focal-SAM: how strongly flatness is asked of rare classes.
        focal_lambda (`float`, >= 0, defaults to `0.8`):
            Weight lambda of the sharpness term in Focal-SAM and weighted SAM.
        imbsam_eta (`float`, > 0, defaults to `100`):
            Number of training samples below which ImbSAM perturbs a class.
        adaptive_rho (`bool`, defaults to `False`):
            Measure the radius relative to each weight, as ASAM does.
        perturbation_scope (`str`, defaults to `"global"`):
            Perturb by the gradient of all samples of a step (global), or each process and micro-batch by its own
            (local, less communication).

    > Parameters that control the loss

    Args:
        loss (`str`, defaults to `"cross_entropy"`):
            Training loss: cross_entropy or logit_adjusted.
        logit_adjustment_tau (`float`, defaults to `1.0`):
            Strength tau of logit adjustment.

    > Parameters that control the evaluation

    Args:
        many_shot_threshold (`int`, defaults to `100`):
            Classes with more training samples are many-shot.
        few_shot_threshold (`int`, defaults to `20`):
            Classes with fewer training samples are few-shot; the ones between are medium-shot.

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns that the model's forward does not name, before transforms run."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Names of the inputs that are labels."}
    )

    sharpness: str = field(
        default="focal_sam",
        metadata={"help": "Sharpness-aware method: none, sam, weighted_sam, imbsam or focal_sam."},
    )
    rho: float = field(default=0.05, metadata={"help": "Radius of the perturbation."})
    focal_gamma: float = field(
        default=1.0,
        metadata={"help": "Focusing parameter gamma of Focal-SAM: how strongly flatness is asked of rare classes."},
    )
    focal_lambda: float = field(
        default=0.8, metadata={"help": "Weight lambda of the sharpness term in Focal-SAM and weighted SAM."}
    )
    imbsam_eta: float = field(
        default=100, metadata={"help": "Number of training samples below which ImbSAM perturbs a class."}
    )
    adaptive_rho: bool = field(
        default=False, metadata={"help": "Measure the radius relative to each weight, as ASAM does."}
    )
    perturbation_scope: str = field(
        default="global",
        metadata={
            "help": "Perturb by the gradient of all samples of a step (global), or each process and micro-batch by "
            "its own (local, less communication)."
        },
    )
    loss: str = field(default="cross_entropy", metadata={"help": "Training loss: cross_entropy or logit_adjusted."})
    logit_adjustment_tau: float = field(default=1.0, metadata={"help": "Strength tau of logit adjustment."})
    many_shot_threshold: int = field(
        default=100, metadata={"help": "Classes with more training samples are many-shot."}
    )
    few_shot_threshold: int = field(
        default=20,
        metadata={"help": "Classes with fewer training samples are few-shot; the ones between are medium-shot."},
    )

    def __post_init__(self):
        choices = {
            "sharpness": SHARPNESS_METHODS,
            "perturbation_scope": PERTURBATION_SCOPES,
            "loss": LOSSES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        check_rho(self.rho)
        for name in ("focal_gamma", "focal_lambda"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; set it to 0 or more.")
        if not self.imbsam_eta > 0:
            raise ValueError(f"imbsam_eta is {self.imbsam_eta}; set it to a number of samples above 0.")
        if not 0 <= self.few_shot_threshold <= self.many_shot_threshold:
            raise ValueError(
                f"few_shot_threshold is {self.few_shot_threshold} and many_shot_threshold {self.many_shot_threshold}; "
                "set 0 <= few <= many."
            )
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, Accelerate leaves several processes on one machine's CPUs unconnected
        super().__post_init__()
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
