"""`FocalSAMTrainingArguments`: the Trainer's arguments and those of this package."""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import torch
from torch.utils.data import Dataset
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import IntervalStrategy

from ...base.ranges import Range
from ...data.workers import choose_num_workers
from ...hub.trainer_push import check_hub_arguments
from ...sharpness.class_conditional import CC_SAM
from .checks import check_optimizer, check_report_to, check_trainer_numbers
from .loss import LossArguments
from .run import RunArguments
from .sampling import SamplingArguments
from .sharpness import SharpnessArguments


@dataclass
class FocalSAMTrainingArguments(RunArguments, SamplingArguments, LossArguments, SharpnessArguments):
    """Arguments of `FocalSAMTrainer`: those of `transformers.TrainingArguments` and of this package.

    Defaults that differ from the Trainer's: `remove_unused_columns` is False, because images are decoded by transforms
    that need their column, `label_names` is ["labels"], `dataloader_pin_memory` is False on the CPU, and
    `logging_nan_inf_filter` is False, because `FocalSAMTrainer` filters the training loss itself, without waiting for
    the device.
    `report_to` is by default TensorBoard where it is installed, which writes to a folder in `output_dir`.
    `eval_strategy` is unset, which is "no"; the recipe sets it to "epoch" where there are validation images.
    `dataloader_num_workers` is by default the cores of the machine divided by its training processes, for data sets of
    this package that decode images, see [`~ft_focalsam.data.choose_num_workers`].

    What this package adds is documented by family: [`SharpnessArguments`], [`LossArguments`], [`SamplingArguments`]
    and [`RunArguments`].

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

    if TYPE_CHECKING:
        output_dir: str  # in the end

    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns that the model's forward does not name, before transforms run."}
    )
    label_names: list[str] | None = field(
        default_factory=lambda: ["labels"], metadata={"help": "Names of the inputs that hold labels."}
    )
    dataloader_num_workers: Annotated[int | None, Range(0)] = field(  # type: ignore[assignment]  # a number in the end
        default=None,
        metadata={
            "help": "Processes that read images, for each training process; by default the cores of the machine "
            "divided by its training processes, at most 16, and 0 for fewer than 2,000 images, for tensors in memory "
            "and for a stream, whose order depends on it."
        },
    )

    report_to: None | str | list[str] = field(  # noqa: RUF036  (the parser of transformers takes the second type)
        default=None,
        metadata={
            "help": "Trackers of the numbers, such as tensorboard or wandb, all or none; by default TensorBoard where "
            "it is installed."
        },
    )
    eval_strategy: str | IntervalStrategy | None = field(  # type: ignore[assignment]  # no None in the end
        default=None,
        metadata={
            "help": "When to evaluate while training: no, steps or epoch; by default each epoch where there are "
            "validation images, else no."
        },
    )

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Filter non-finite losses out of the log a second time, which waits for the device."},
    )

    def __post_init__(self):
        check_trainer_numbers(self)
        names = ["labels"] if self.label_names is None else self.label_names
        if len(names) != 1:
            raise ValueError(f"label_names is {names}; name the one input that holds the class of each image.")
        self.label_names = names
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it, Accelerate leaves several processes on one machine's CPUs unconnected
        self._chooses_dataloader_num_workers = self.dataloader_num_workers is None
        if self._chooses_dataloader_num_workers:
            self.dataloader_num_workers = 0  # until there is a data set
        if self.report_to is None:
            self.report_to = ["tensorboard"] if is_tensorboard_available() else []
        self._chooses_eval_strategy = self.eval_strategy is None
        if self._chooses_eval_strategy:
            self.eval_strategy = IntervalStrategy.NO
        super().__post_init__()
        if self.make_mixing().is_on and self.sharpness == CC_SAM:
            raise ValueError("cc_sam perturbs by one class per image; set mixup_alpha and cutmix_alpha to 0 with it.")
        check_report_to(self)
        check_optimizer(self)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False
        if self.push_to_hub and self.process_index == 0:
            check_hub_arguments(self)

    def __getstate__(self) -> dict:
        """What a pickle or a copy holds, `training_args.bin` in each checkpoint among them: no token of the Hub."""
        return {name: None if name.endswith("_token") else value for name, value in vars(self).items()}

    def choose_eval_strategy(self, *, has_validation: bool) -> None:
        """Evaluate after each epoch where there are validation images, unless `eval_strategy` was given."""
        if self._chooses_eval_strategy and has_validation:
            self.eval_strategy, self.do_eval = IntervalStrategy.EPOCH, True
        self._chooses_eval_strategy = False

    def choose_num_workers(self, dataset: Dataset | None) -> None:
        """Set `dataloader_num_workers` for a data set to train on, unless it was given."""
        if self._chooses_dataloader_num_workers:
            self._chooses_dataloader_num_workers = False
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
            self.dataloader_num_workers = choose_num_workers(dataset, processes=processes)
