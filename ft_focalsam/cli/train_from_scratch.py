"""Train a network from random weights on long-tailed images, with the losses and the step of ft-focalsam train.

    ft-focalsam train_from_scratch cifar10_lt/resnet32 --dataset path/to/cifar10
    accelerate launch recipes/train_from_scratch.py recipes/configs/cifar100_lt/resnet32.yaml --sharpness sam

Takes the same keys and writes the same files as ft-focalsam train, and takes backbones with random weights only:
`scratch:resnet32`, or `scratch:` and an architecture of timm. Says in the end how fast it was: images a second, and
the minutes that the whole training took or 200 epochs would take. ft-focalsam compare compares methods with the same
configurations.
"""

from ..models.backbones import is_pretrained
from ..trainer import FocalSAMTrainer
from ..trainer.run_log import tell
from . import train
from .arguments import ModelArguments
from .train import READS_CONFIG, TYPES, make_parser

__all__ = ["READS_CONFIG", "TYPES", "USAGE", "main", "make_parser"]

USAGE = "ft-focalsam train_from_scratch CONFIG [--key value ...]"

PUBLISHED_EPOCHS = 200


class TimedTrainer(FocalSAMTrainer):
    """Says how fast its training was, where it was not resumed."""

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.is_world_process_zero() and not resume_from_checkpoint:
            seconds, epochs = output.metrics["train_runtime"], self.state.epoch
            published = seconds / epochs * PUBLISHED_EPOCHS
            tell(
                f"{len(self.train_dataset) * epochs / seconds:,.0f} images a second; {epochs:g} epochs took "
                f"{seconds / 60:.1f} minutes, {PUBLISHED_EPOCHS} would take {published / 60:.0f}."
            )
        return output


def refuse_pretrained(model_args: ModelArguments) -> None:
    """Raise a `ValueError` for a backbone that comes with weights."""
    if is_pretrained(model_args.backbone):
        raise ValueError(
            f"The backbone '{model_args.backbone}' is pretrained; train it with ft-focalsam train, or set it to "
            "scratch:resnet32 or scratch: and an architecture of timm."
        )


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the command; returns the metrics before and after training, by name of the row."""
    return train.main(argv, trainer_type=TimedTrainer, check=refuse_pretrained)
