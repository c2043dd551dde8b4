"""Arguments of a run: its optimizer, when it gives up, its output and its evaluation."""

import warnings
from dataclasses import dataclass, field
from typing import Annotated

from transformers import TrainingArguments

from ...base.ranges import Range


@dataclass
class RunArguments(TrainingArguments):
    """How a run goes on, where it writes, and how it is evaluated.

    > Parameters that control the base optimizer

    Args:
        decay_norms_and_biases (`bool`, defaults to `False`):
            Apply weight decay to normalisation layers and biases too, as training from scratch does.
        decay_everything (`bool`, *optional*, defaults to `None`):
            Old name of decay_norms_and_biases, which goes with the next version.
        layer_decay (`float`, above 0 to 1, defaults to `1.0`):
            Factor of the learning rate from each block of the backbone to the one in front of it, such as 0.75; the
            head has learning_rate itself.
        head_learning_rate (`float`, >= 0, *optional*, defaults to `None`):
            Learning rate of the classifier head. By default learning_rate.

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

    > Parameters that control the averaging of weights

    Args:
        ema_decay (`float`, 0 to below 1, *optional*, defaults to `None`):
            Decay of an exponential moving average of the weights, such as 0.999, warmed up by (1 + t) / (10 + t); the
            averaged weights are evaluated and saved. By default no average.

    > Parameters that control the evaluation

    Args:
        many_shot_threshold (`int`, defaults to `100`):
            Classes with more training samples are many-shot.
        few_shot_threshold (`int`, defaults to `20`):
            Classes with fewer training samples are few-shot; the ones between are medium-shot.

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

    decay_norms_and_biases: bool = field(
        default=False,
        metadata={"help": "Apply weight decay to normalisation layers and biases too, as training from scratch does."},
    )
    decay_everything: bool | None = field(
        default=None, metadata={"help": "Old name of decay_norms_and_biases, which goes with the next version."}
    )
    layer_decay: Annotated[float, Range(0, 1, open_low=True)] = field(
        default=1.0,
        metadata={
            "help": "Factor of the learning rate from each block of the backbone to the one in front of it, such as "
            "0.75; the head has learning_rate itself."
        },
    )
    head_learning_rate: Annotated[float | None, Range(0)] = field(
        default=None, metadata={"help": "Learning rate of the classifier head. By default learning_rate."}
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
    ema_decay: Annotated[float | None, Range(0, 1, open_high=True)] = field(
        default=None,
        metadata={
            "help": "Decay of an exponential moving average of the weights, such as 0.999, warmed up by (1 + t) / "
            "(10 + t); the averaged weights are evaluated and saved. By default no average."
        },
    )
    many_shot_threshold: int = field(
        default=100, metadata={"help": "Classes with more training samples are many-shot."}
    )
    few_shot_threshold: int = field(
        default=20,
        metadata={"help": "Classes with fewer training samples are few-shot; the ones between are medium-shot."},
    )

    def __post_init__(self):
        if self.decay_everything is not None:
            text = "decay_everything is called decay_norms_and_biases now; the old name goes with the next version."
            warnings.warn(text, FutureWarning, stacklevel=3)
            self.decay_norms_and_biases, self.decay_everything = self.decay_everything, None
        if not 0 <= self.few_shot_threshold <= self.many_shot_threshold:
            raise ValueError(
                f"few_shot_threshold is {self.few_shot_threshold} and many_shot_threshold {self.many_shot_threshold}; "
                "set 0 <= few <= many."
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
        super().__post_init__()
