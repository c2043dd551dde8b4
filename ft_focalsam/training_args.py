"""`FocalSAMTrainingArguments`: the Trainer's arguments and those of the sharpness step."""

import math
import os
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from .argument_checks import check_optimizer, check_report_to, check_trainer_numbers
from .data.mixing import Mixing
from .data.samplers import SAMPLERS
from .data.workers import choose_num_workers
from .hub.trainer_push import check_hub_arguments
from .losses import LOSSES, PerSampleLoss, loss_hyperparameters, make_loss
from .ranges import Range
from .sharpness import (
    DIRECTIONS,
    EVALUATIONS,
    SHARPNESS_METHODS,
    TARGETS,
    ClassConditionalSAM,
    Direction,
    Evaluation,
    SharpnessStep,
    class_weights,
    scheduled_rho,
)
from .sharpness.collectives import PERTURBATION_SCOPES
from .sharpness.directions import make_direction
from .sharpness.step import check_choices

# A method beside the family of class-wise sharpness weights; see `sharpness/class_conditional.py`.
CC_SAM = "cc_sam"


@dataclass
class FocalSAMTrainingArguments(TrainingArguments):
    """Arguments of `FocalSAMTrainer`: those of `transformers.TrainingArguments` and the following.

    Defaults that differ from the Trainer's: `remove_unused_columns` is False, because images are decoded by transforms
    that need their column, `label_names` is ["labels"], `dataloader_pin_memory` is False on the CPU, and
    `logging_nan_inf_filter` is False, because `FocalSAMTrainer` filters the training loss itself, without waiting for
    the device.
    `dataloader_num_workers` is by default the cores of the machine divided by its training processes, for data sets of
    this package that decode images, see [`~ft_focalsam.data.choose_num_workers`].

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
        reuse_frozen_prefix (`bool`, defaults to `True`):
            Compute the part of the model before everything that trains once a step, and not in both passes.

    > Parameters that choose another perturbation

    Args:
        perturb (`str`, defaults to `"trained"`):
            What is perturbed: trained, norms or merged; norms are scales and shifts of normalisation layers, merged
            the weights of linear layers with an adapter such as LoRA.
        ascent (`str`, defaults to `"gradient"`):
            Direction of the perturbation: gradient, friendly, momentum or gaussian.
        ascent_decay (`float`, 0 to below 1, defaults to `0.9`):
            Share of the moving average of gradients that friendly and momentum keep in a step.
        friendly_sigma (`float`, >= 0, defaults to `1.0`):
            Share sigma of that average which friendly takes out of the gradient.
        evaluation (`str`, defaults to `"two_point"`):
            How the perturbed loss is evaluated: two_point or one_pass; one_pass takes one pass a step and needs ascent
            momentum or gaussian.
        ascent_interval (`int`, >= 1, defaults to `1`):
            One step in so many perturbs the weights, the others are plain.

    > Parameters that control the loss

    Args:
        loss (`str`, defaults to `"cross_entropy"`):
            Training loss: cross_entropy, class_balanced, grw, focal, ldam, balanced_softmax, logit_adjusted, vs, lade
            or influence_balanced. The docstrings of `ft_focalsam/losses.py` have the formula of each.
        logit_adjustment_tau (`float`, defaults to `1.0`):
            Strength tau of logit adjustment, also in vs.
        effective_number_beta (`float`, 0 to below 1, defaults to `0.9999`):
            Parameter beta of the effective number of samples, in the loss class_balanced, in deferred re-weighting and
            in the sampler effective_number.
        grw_exponent (`float`, >= 0, defaults to `1.2`):
            Exponent of the inverse class frequency by which grw weighs.
        focal_loss_gamma (`float`, >= 0, defaults to `2.0`):
            Focusing parameter gamma of the focal loss; focal_gamma is that of Focal-SAM.
        ldam_max_margin (`float`, >= 0, defaults to `0.5`):
            Margin of the rarest class in ldam, between cosines.
        ldam_scale (`float`, > 0, *optional*, defaults to `None`):
            Scale s of the logits in ldam; by default that of the model's head, 1 where the head has none.
        vs_gamma (`float`, >= 0, defaults to `0.15`):
            Exponent gamma of the class frequency by which vs scales logits.
        lade_alpha (`float`, >= 0, defaults to `0.1`):
            Weight alpha of the regulariser of lade.
        lade_lambda (`float`, >= 0, defaults to `0.1`):
            Weight lambda of the squared term inside the regulariser of lade.
        ib_alpha (`float`, > 0, defaults to `1000.0`):
            Factor alpha of influence_balanced.
        ib_start (`float`, 0 to 1, defaults to `0.5`):
            Fraction of training after which influence_balanced takes the place of cross-entropy.
        drw_start (`float`, 0 to 1, *optional*, defaults to `None`):
            Fraction of training after which samples are weighted by the inverse effective number of their class
            (deferred re-weighting), with any loss; by default never.

    > Parameters that control the sampling

    Args:
        train_sampler (`str`, defaults to `"instance"`):
            How training images are drawn: instance, class_balanced, square_root, progressively_balanced or
            effective_number; class weights of the loss and of the sharpness step stay those of the training set.

    > Parameters that control the mixing of training images

    Args:
        mixup_alpha (`float`, >= 0, defaults to `0.0`):
            Parameter of the Beta distribution of mixup; 0 is no mixup.
        cutmix_alpha (`float`, >= 0, defaults to `0.0`):
            Parameter of the Beta distribution of CutMix; 0 is no CutMix. With both above 0, each batch takes one of
            the two at random.
        remix (`bool`, defaults to `False`):
            Let the labels of mixed images favour the rarer class, as Remix does.
        remix_kappa (`float`, >= 1, defaults to `3.0`):
            Ratio kappa of class counts from which Remix acts.
        remix_tau (`float`, 0 to 1, defaults to `0.5`):
            Threshold tau of Remix, which acts on images that are more than 1 - tau of the rarer class.

    > Parameters that control the base optimizer

    Args:
        decay_everything (`bool`, defaults to `False`):
            Apply weight decay to biases and norms too, as training from scratch does. By default they are left out.

    > Parameters that control the averaging of weights

    Args:
        ema_decay (`float`, 0 to below 1, *optional*, defaults to `None`):
            Decay of an exponential moving average of the weights, such as 0.999, warmed up by (1 + t) / (10 + t); the
            averaged weights are what is evaluated and what the model has at the end. By default no average.

    > Parameters that control when training gives up

    Args:
        max_nonfinite_steps (`int`, >= 0, defaults to `20`):
            Number of steps in a row without a finite gradient after which training stops; 0 never stops it.
        early_stopping_patience (`int`, >= 0, defaults to `0`):
            Number of evaluations in a row without a better metric_for_best_model after which training stops; 0 never
            stops it. Needs load_best_model_at_end.

    > Parameters that control the output folder

    Args:
        resume_changed (`bool`, defaults to `False`):
            Resume although settings differ from those of the checkpoint; run.json keeps both.
        overwrite (`bool`, defaults to `False`):
            Begin anew in an output folder that holds a run.

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
    dataloader_num_workers: Annotated[int | None, Range(0)] = field(
        default=None,
        metadata={
            "help": "Processes that read images, for each training process; by default the cores of the machine "
            "divided by its training processes, at most 16, and 0 for fewer than 2,000 images, for tensors in memory "
            "and for a stream, whose order depends on it."
        },
    )

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Filter losses that are not finite out of the log once more, which waits for the device."},
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
    focal_gamma: Annotated[float, Range(0)] = field(
        default=1.0,
        metadata={"help": "Focusing parameter gamma of Focal-SAM: how strongly flatness is asked of rare classes."},
    )
    focal_lambda: Annotated[float, Range(0)] = field(
        default=0.8, metadata={"help": "Weight lambda of the sharpness term in Focal-SAM and weighted SAM."}
    )
    imbsam_eta: Annotated[float, Range(0, math.inf, open_low=True)] = field(
        default=100,
        metadata={"help": "Number of training samples below which ImbSAM perturbs a class."},
    )
    cc_sam_ratio: Annotated[float, Range(0, 1)] = field(
        default=0.5, metadata={"help": "Share r of the perturbed loss in CC-SAM."}
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
    reuse_frozen_prefix: bool = field(
        default=True,
        metadata={
            "help": "Compute the part of the model before everything that trains once a step, and not in both passes."
        },
    )
    perturb: str = field(
        default="trained",
        metadata={
            "help": "What is perturbed: trained, norms or merged; norms are scales and shifts of normalisation "
            "layers, merged the weights of linear layers with an adapter such as LoRA."
        },
    )
    ascent: str = field(
        default="gradient",
        metadata={"help": "Direction of the perturbation: gradient, friendly, momentum or gaussian."},
    )
    ascent_decay: Annotated[float, Range(0, 1, open_high=True)] = field(
        default=0.9,
        metadata={"help": "Share of the moving average of gradients that friendly and momentum keep in a step."},
    )
    friendly_sigma: Annotated[float, Range(0)] = field(
        default=1.0, metadata={"help": "Share sigma of that average which friendly takes out of the gradient."}
    )
    evaluation: str = field(
        default="two_point",
        metadata={
            "help": "How the perturbed loss is evaluated: two_point or one_pass; one_pass takes one pass a step and "
            "needs ascent momentum or gaussian."
        },
    )
    ascent_interval: Annotated[int, Range(1)] = field(
        default=1, metadata={"help": "One step in so many perturbs the weights, the others are plain."}
    )
    loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Training loss: cross_entropy, class_balanced, grw, focal, ldam, balanced_softmax, "
            "logit_adjusted, vs, lade or influence_balanced."
        },
    )
    logit_adjustment_tau: float = field(
        default=1.0, metadata={"help": "Strength tau of logit adjustment, also in vs."}
    )
    effective_number_beta: float = field(
        default=0.9999,
        metadata={
            "help": "Parameter beta of the effective number of samples, in the loss class_balanced, in deferred "
            "re-weighting and in the sampler effective_number."
        },
    )
    grw_exponent: float = field(
        default=1.2, metadata={"help": "Exponent of the inverse class frequency by which grw weighs."}
    )
    focal_loss_gamma: float = field(
        default=2.0, metadata={"help": "Focusing parameter gamma of the focal loss; focal_gamma is that of Focal-SAM."}
    )
    ldam_max_margin: float = field(
        default=0.5, metadata={"help": "Margin of the rarest class in ldam, between cosines."}
    )
    ldam_scale: float | None = field(
        default=None,
        metadata={
            "help": "Scale s of the logits in ldam; by default that of the model's head, 1 where the head has none."
        },
    )
    vs_gamma: float = field(
        default=0.15, metadata={"help": "Exponent gamma of the class frequency by which vs scales logits."}
    )
    lade_alpha: float = field(default=0.1, metadata={"help": "Weight alpha of the regulariser of lade."})
    lade_lambda: float = field(
        default=0.1, metadata={"help": "Weight lambda of the squared term inside the regulariser of lade."}
    )
    ib_alpha: float = field(default=1000.0, metadata={"help": "Factor alpha of influence_balanced."})
    ib_start: float = field(
        default=0.5,
        metadata={"help": "Fraction of training after which influence_balanced takes the place of cross-entropy."},
    )
    drw_start: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of training after which samples are weighted by the inverse effective number of their "
            "class (deferred re-weighting), with any loss; by default never."
        },
    )
    train_sampler: str = field(
        default="instance",
        metadata={
            "help": "How training images are drawn: instance, class_balanced, square_root, progressively_balanced or "
            "effective_number; class weights of the loss and of the sharpness step stay those of the training set."
        },
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of the Beta distribution of mixup; 0 is no mixup."}
    )
    cutmix_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of the Beta distribution of CutMix; 0 is no CutMix."}
    )
    remix: bool = field(
        default=False, metadata={"help": "Let the labels of mixed images favour the rarer class, as Remix does."}
    )
    remix_kappa: float = field(default=3.0, metadata={"help": "Ratio kappa of class counts from which Remix acts."})
    remix_tau: float = field(
        default=0.5,
        metadata={
            "help": "Threshold tau of Remix, which acts on images that are more than 1 - tau of the rarer class."
        },
    )
    decay_everything: bool = field(
        default=False, metadata={"help": "Apply weight decay to biases and norms too, as training from scratch does."}
    )
    ema_decay: Annotated[float | None, Range(0, 1, open_high=True)] = field(
        default=None,
        metadata={
            "help": "Decay of an exponential moving average of the weights, such as 0.999, warmed up by "
            "(1 + t) / (10 + t); the averaged weights are what is evaluated and what the model has at the end. By "
            "default no average."
        },
    )
    max_nonfinite_steps: Annotated[int, Range(0)] = field(
        default=20,
        metadata={
            "help": "Number of steps in a row without a finite gradient after which training stops; 0 never stops it."
        },
    )
    early_stopping_patience: Annotated[int, Range(0)] = field(
        default=0,
        metadata={
            "help": "Number of evaluations in a row without a better metric_for_best_model after which training "
            "stops; 0 never stops it. Needs load_best_model_at_end."
        },
    )
    resume_changed: bool = field(
        default=False,
        metadata={"help": "Resume although settings differ from those of the checkpoint; run.json keeps both."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Begin anew in an output folder that holds a run."})
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
            "perturb": TARGETS,
            "ascent": DIRECTIONS,
            "evaluation": EVALUATIONS,
            "loss": LOSSES,
            "train_sampler": SAMPLERS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in list(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}.")
        check_trainer_numbers(self)
        scheduled_rho(self.rho_schedule, self.rho, progress=0.0, initial=self.rho_initial, step_at=self.rho_step_at)
        self._check_perturbation()
        self.make_loss([1, 1])
        self._check_sampler()
        if self.make_mixing().is_on and self.sharpness == CC_SAM:
            raise ValueError("cc_sam perturbs by one class per image; set mixup_alpha and cutmix_alpha to 0 with it.")
        if not 0 <= self.few_shot_threshold <= self.many_shot_threshold:
            raise ValueError(
                f"few_shot_threshold is {self.few_shot_threshold} and many_shot_threshold {self.many_shot_threshold}; "
                "set 0 <= few <= many."
            )
        self._check_trainer()
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, Accelerate leaves several processes on one machine's CPUs unconnected
        self._chooses_num_workers = self.dataloader_num_workers is None
        if self._chooses_num_workers:
            self.dataloader_num_workers = 0  # until there is a data set
        super().__post_init__()
        check_report_to(self)
        check_optimizer(self)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.push_to_hub and self.process_index == 0:
            check_hub_arguments(self)

    def __getstate__(self) -> dict:
        """What a pickle or a copy holds, `training_args.bin` in each checkpoint among them: no token of the Hub."""
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    def choose_num_workers(self, dataset: Dataset | None) -> None:
        """Set `dataloader_num_workers` for a data set to train on, unless it was given."""
        if self._chooses_num_workers:
            self._chooses_num_workers = False
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
            self.dataloader_num_workers = choose_num_workers(dataset, processes=processes)

    def check_loss_is_default(self) -> None:
        """Raise a `ValueError` where these arguments describe a loss, which a function of the user's would ignore."""
        for name in ("loss", "label_smoothing_factor", "drw_start"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} beside a compute_loss_func, which would ignore it; leave "
                    f"{name} at {default!r}, or leave the function out."
                )

    def make_direction(self) -> Direction:
        """The direction of the perturbation that these arguments describe."""
        settings = {"sigma": self.friendly_sigma, "decay": self.ascent_decay, "seed": self.seed}
        return make_direction(self.ascent, settings)

    def make_evaluation(
        self, model: nn.Module, class_counts, *, separate_reason: str | None = None
    ) -> Evaluation | ClassConditionalSAM | None:
        """The sharpness-aware update that these arguments describe; None for plain training.

        Args:
            model (`nn.Module`): The model that the loss calls, with its wrappers.
            class_counts (sequence of `int`, shape (C,)): Training samples per class.
            separate_reason (`str`, *optional*): See `SharpnessStep`.
        """
        if self.sharpness == "none":
            return None
        if self.sharpness == CC_SAM:
            return ClassConditionalSAM(model, class_counts=class_counts, rho=self.rho, ratio=self.cc_sam_ratio)
        hyperparameters = {"gamma": self.focal_gamma, "lam": self.focal_lambda, "eta": self.imbsam_eta}
        step = SharpnessStep(
            model,
            class_weights(self.sharpness, class_counts, hyperparameters),
            rho=self.rho,
            adaptive=self.adaptive_rho,
            scope=self.perturbation_scope,
            perturb=self.perturb,
            direction=self.make_direction(),
            separate_reason=separate_reason,
            reuse_prefix=self.reuse_frozen_prefix,
        )
        return EVALUATIONS[self.evaluation](step, interval=self.ascent_interval)

    def make_loss(self, class_counts, *, head_scale: float = 1.0) -> PerSampleLoss:
        """The loss that these arguments describe.

        Args:
            class_counts (sequence of `int`, shape (C,)): Training samples per class.
            head_scale (`float`, > 0): What `ldam_scale` is where it is not set.
        """
        values = {name: getattr(self, name) for name in loss_hyperparameters(self.loss) if hasattr(self, name)}
        values["effective_number_beta"] = self.effective_number_beta
        if self.loss == "ldam" and self.ldam_scale is None:
            values["ldam_scale"] = head_scale
        return make_loss(
            self.loss,
            class_counts,
            values,
            label_smoothing=self.label_smoothing_factor,
            drw_start=self.drw_start,
        )

    def make_mixing(self) -> Mixing:
        """The mixing of training images that these arguments describe."""
        return Mixing(
            self.mixup_alpha, self.cutmix_alpha, remix=self.remix, kappa=self.remix_kappa, tau=self.remix_tau
        )

    def _check_trainer(self) -> None:
        """Raise a `ValueError` for arguments of the Trainer that go against the sharpness step or our own signals."""
        names = ["labels"] if self.label_names is None else self.label_names
        if len(names) != 1:
            raise ValueError(f"label_names is {names}; name the one input that holds the class of each image.")
        self.label_names = names
        optimizer = getattr(self.optim, "value", self.optim)
        steps_early = optimizer in ("lomo", "adalomo") or str(optimizer).endswith("layerwise")
        if steps_early and self.sharpness != "none":
            raise ValueError(
                f"optim is {optimizer!r}, which steps in the backward pass, and the sharpness step needs the "
                "gradients of two; choose another optimizer, or set sharpness to 'none'."
            )
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience}, which waits for a better checkpoint; set "
                "load_best_model_at_end and metric_for_best_model with it."
            )
        if self.early_stopping_patience:  # a resumed run goes on counting
            self.restore_callback_states_from_checkpoint = True
        if self.enable_jit_checkpoint:
            raise ValueError(
                "enable_jit_checkpoint is True, and FocalSAMTrainer saves a checkpoint at SIGTERM by itself; leave it "
                "False."
            )

    def _check_sampler(self) -> None:
        if self.train_sampler != "instance" and self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampler is {self.train_sampler!r} and train_sampling_strategy "
                f"{self.train_sampling_strategy!r}; set one of the two and leave the other at its default."
            )

    def _check_perturbation(self) -> None:
        """Raise a `ValueError` for choices of the perturbation that do not go together."""
        direction = self.make_direction()
        check_choices(
            scope=self.perturbation_scope, perturb=self.perturb, direction=direction, adaptive=self.adaptive_rho
        )
        EVALUATIONS[self.evaluation].check(direction)
        for name in ("perturb", "ascent", "evaluation", "ascent_interval"):
            default = type(self).__dataclass_fields__[name].default
            if self.sharpness == CC_SAM and getattr(self, name) != default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, and cc_sam perturbs the classifier by the gradient of each "
                    f"class in every step; leave {name} at {default!r}, or choose another sharpness."
                )
