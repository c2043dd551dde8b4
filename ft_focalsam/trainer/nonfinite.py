"""The end of a training whose gradient has not been finite for many steps, with the images it came to it with."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..data.images import record_name
from ..data.labels import dataset_labels

if TYPE_CHECKING:
    from .trainer import FocalSAMTrainer

BATCH_NAME = "nonfinite_batch.txt"  # in the output folder
NUM_SHOWN = 5
# Loss scaling in fp16 skips steps to find its scale. At this one it has found that the scale is not to blame.
LEAST_SCALE = 1.0


class NonFiniteSteps:
    """Counts optimizer steps in a row that were skipped because their gradient was not finite.

    Args:
        trainer (`FocalSAMTrainer`): Whose steps; `args.max_nonfinite_steps` is too many of them, 0 for any number.
    """

    def __init__(self, trainer: "FocalSAMTrainer"):
        self.trainer = trainer
        self.count = 0

    def add(self, is_finite: bool, loss: Tensor, labels: Tensor | None) -> None:
        """Count a step.

        Args:
            is_finite (`bool`): Whether its gradient is, on all processes.
            loss (`Tensor` without dimensions): Of its last batch, on this process.
            labels (`Tensor` of shape (B,) or (B, C), *optional*): The same.

        Raises:
            ValueError: If it is one too many, on all processes; says the step, the learning rate and the images.
        """
        if is_finite:
            self.count = 0
            return
        trainer, scaler = self.trainer, self.trainer.accelerator.scaler
        if scaler is None or scaler.get_scale() <= LEAST_SCALE or _any(not bool(torch.isfinite(loss))):
            self.count += 1
        if 0 < trainer.args.max_nonfinite_steps <= self.count:
            rate = trainer._get_learning_rate()
            raise ValueError(
                f"The gradient has not been finite for {self.count} steps in a row, up to step "
                f"{trainer.state.global_step + 1} at a learning rate of {rate:.3g}; lower --learning_rate or --rho, "
                f"look at {self._describe(labels)}, or set --max_nonfinite_steps 0 to go on."
            )

    def _describe(self, labels: Tensor | None) -> str:
        rows = rows_of_step(self.trainer, labels)
        names = gather_object([None] if rows is None else image_names(self.trainer.train_dataset, rows))
        if None in names:
            return "the images of its batch (which they are is not known in a stream or with a sampler of one's own)"
        shown, more = ", ".join(names[:NUM_SHOWN]), len(names) - NUM_SHOWN
        if more <= 0:
            return f"the images of its batch: {shown}"
        file = Path(self.trainer.args.output_dir) / BATCH_NAME
        if self.trainer.is_world_process_zero():
            file.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        return f"the images of its batch: {shown} and {more} more in '{file}'"


def finite_loss(trainer: "FocalSAMTrainer", loss: Tensor) -> Tensor:
    """The loss, or, where it is not finite, the mean of those since the latest log: what the Trainer's
    `logging_nan_inf_filter` makes of it, without waiting for the device."""
    if not hasattr(trainer, "_tr_loss"):  # outside of `train`
        return loss
    mean = trainer._tr_loss / (1 + trainer.state.global_step - trainer._globalstep_last_logged)
    return torch.where(torch.isfinite(loss), loss, mean.to(loss))


def rows_of_step(trainer: "FocalSAMTrainer", labels: Tensor | None) -> list[int] | None:
    """Rows of the training set that this process has read for the optimizer step under way.

    Nothing is noted during training: the order of the epoch is drawn once more, and compared with the labels of the
    last batch.

    Args:
        trainer (`FocalSAMTrainer`): In a training step, whose gradients are about to be stepped on.
        labels (`Tensor` of shape (B,) or (B, C), *optional*): Of the last batch.

    Returns:
        list of `int`, or None where the order cannot be drawn again: of a stream, of a sampler without a seed, or
        without labels.
    """
    loader = trainer.callback_handler.train_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    dataset = trainer.train_dataset
    if sampler is None or labels is None or dataset is None or not hasattr(dataset, "__len__"):
        return None
    accumulation = trainer.args.gradient_accumulation_steps
    epoch, step = divmod(trainer.state.global_step, -(-len(loader) // accumulation))
    for stage in (loader, getattr(sampler, "batch_sampler", None)):
        getattr(stage, "set_epoch", lambda _: None)(epoch)
    first = step * accumulation
    batches = list(islice(sampler, first, first + trainer.current_gradient_accumulation_steps))
    if not batches or len(batches[-1]) != len(labels):
        return None
    expected = torch.from_numpy(dataset_labels(dataset)[np.asarray(batches[-1])]).to(labels.device)
    is_mixed = labels.ndim > expected.ndim
    agrees = labels.gather(1, expected[:, None]) > 0 if is_mixed else labels == expected
    return [int(row) for batch in batches for row in batch] if bool(agrees.all()) else None


def image_names(dataset, rows: list[int]) -> list[str]:
    """What to call rows of a training set: by path where the set has paths, else by number."""
    stored = getattr(dataset, "dataset", None)
    if not isinstance(stored, datasets.Dataset) or "image" not in stored.column_names:
        return [f"row {row}" for row in rows]
    names = (record_name(stored[row]["image"], row=row) for row in rows)
    return [name.removeprefix("in ") for name in names]


def _any(here: bool) -> bool:
    """Whether it is so on any process."""
    return any(gather_object([here]))
