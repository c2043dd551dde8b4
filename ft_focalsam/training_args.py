"""`FocalSAMTrainingArguments`: the Trainer's arguments and those of the sharpness step."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from .losses import LOSSES
from .sharpness import SHARPNESS_METHODS, Economy, scheduled_rho
from .sharpness.perturbation import PERTURBATION_SCOPES

# A method beside the family of class-wise sharpness weights; see `sharpness/class_conditional.py`.
CC_SAM = "cc_sam"


@dataclass
class FocalSAMTrainingArguments(TrainingArguments):
    """Arguments of `FocalSAMTrainer`: those of `transformers.TrainingArguments` and the following.

    Defaults that differ from the Trainer's: `remove_unused_columns` is False, because images are decoded by transforms
    that need their column, `label_names` is ["labels"], and `dataloader_pin_memory` is False on the CPU.

    > Parameters that control the sharpness step

    Args:
        sharpness (`str`, defaults to `"focal_sam"`):
            Sharpness-aware method: none, sam, weighted_sam, imbsam, focal_sam or cc_sam.
        rho (`float`, >= 0, defaults to `0.05`):
            Radius of the perturbation.
        rho_schedule (`str`, defaults to `"constant"`):
            Course of rho over training: constant, linear or step; the latter two begin at rho_initial.
        rho_initial (`float`, >= 0, defaults to `0.0`):
            Radius at the beginning of a linear or step schedule; steps at 0 are plain ones and cost as little.
        rho_step_at (`float`, 0 to 1, defaults to `0.5`):
            Fraction of training after which a step schedule takes rho.
        focal_gamma (`float`, >= 0, defaults to `1.0`):
            Focusing parameter gamma of Focal-SAM: how strongly flatness is asked of rare classes.
        focal_lambda (`float`, >= 0, defaults to `0.8`):
            Weight lambda of the sharpness term in Focal-SAM and weighted SAM.
        imbsam_eta (`float`, > 0, defaults to `100`):
            Number of training samples below which ImbSAM perturbs a class.
        cc_sam_ratio (`float`, 0 to 1, defaults to `0.5`):
            Share r of the perturbed loss in CC-SAM.
        adaptive_rho (`bool`, defaults to `False`):
            Measure the radius relative to each weight, as ASAM does.
        perturbation_scope (`str`, defaults to `"global"`):
            Perturb by the gradient of all samples of a step (global), or each process and micro-batch by its own
            (local, less communication).

    > Parameters that make steps cheaper

    Args:
        economy (`str`, defaults to `"none"`):
            Cheaper schedule of the sharpness step: none, every_k, look_sam or split_batch.
        economy_interval (`int`, >= 1, defaults to `5`):
            Number of steps k of which every_k and look_sam perturb one.
        look_alpha (`float`, >= 0, defaults to `0.7`):
            Weight alpha of the kept direction in the steps of look_sam in between.
        average_decay (`float`, 0 to below 1, defaults to `0.9`):
            Share of the running average of the ascent direction that split_batch keeps in a step.

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
        metadata={"help": "Sharpness-aware method: none, sam, weighted_sam, imbsam, focal_sam or cc_sam."},
    )
    rho: float = field(default=0.05, metadata={"help": "Radius of the perturbation."})
    rho_schedule: str = field(
        default="constant",
        metadata={
            "help": "Course of rho over training: constant, linear or step; the latter two begin at rho_initial."
        },
    )
    rho_initial: float = field(
        default=0.0,
        metadata={
            "help": "Radius at the beginning of a linear or step schedule; steps at 0 are plain ones and cost as "
            "little."
        },
    )
    rho_step_at: float = field(
        default=0.5, metadata={"help": "Fraction of training after which a step schedule takes rho."}
    )
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
    cc_sam_ratio: float = field(default=0.5, metadata={"help": "Share r of the perturbed loss in CC-SAM."})
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
    economy: str = field(
        default="none",
        metadata={"help": "Cheaper schedule of the sharpness step: none, every_k, look_sam or split_batch."},
    )
    economy_interval: int = field(
        default=5, metadata={"help": "Number of steps k of which every_k and look_sam perturb one."}
    )
    look_alpha: float = field(
        default=0.7, metadata={"help": "Weight alpha of the kept direction in the steps of look_sam in between."}
    )
    average_decay: float = field(
        default=0.9,
        metadata={"help": "Share of the running average of the ascent direction that split_batch keeps in a step."},
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
            "sharpness": (*SHARPNESS_METHODS, CC_SAM),
            "perturbation_scope": PERTURBATION_SCOPES,
            "loss": LOSSES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        scheduled_rho(self.rho_schedule, self.rho, progress=0.0, initial=self.rho_initial, step_at=self.rho_step_at)
        self._check_economy()
        if not 0 <= self.cc_sam_ratio <= 1:
            raise ValueError(f"cc_sam_ratio is {self.cc_sam_ratio}; set it to a share of the loss, from 0 to 1.")
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

    def make_economy(self) -> Economy:
        """The cheaper schedule that these arguments describe."""
        return Economy(
            self.economy,
            interval=self.economy_interval,
            look_alpha=self.look_alpha,
            average_decay=self.average_decay,
        )

    def _check_economy(self) -> None:
        economy = self.make_economy()
        if economy.name != "none" and self.sharpness == CC_SAM:
            raise ValueError(
                f"economy is {economy.name!r}, and cc_sam takes one forward and one backward pass already; set "
                "economy to 'none'."
            )
        economy.check_scope(self.perturbation_scope)
