"""Train a network from random weights on long-tailed images, with the losses and the step of recipes/finetune.py.

    python recipes/train_from_scratch.py recipes/configs/cifar10_lt/resnet32.yaml --dataset path/to/cifar10
    accelerate launch recipes/train_from_scratch.py recipes/configs/cifar100_lt/resnet32.yaml --sharpness sam

Takes the same keys and writes the same files as recipes/finetune.py, and takes backbones with random weights only:
`scratch:resnet32`, or `scratch:` and an architecture of timm. Says in the end how fast it was: images a second, and
the minutes that the whole training took or 200 epochs would take. recipes/compare.py compares methods with the same
configurations.
"""

import sys
import time

from accelerate import PartialState
from finetune import main as finetune

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.models.backbones import is_pretrained
from ft_focalsam.preemption import TrainingTerminated

PUBLISHED_EPOCHS = 200


class ScratchTrainer(FocalSAMTrainer):
    """Takes a network that starts from random weights, and says how fast its training was."""

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        backbone = self.model.config.backbone
        if is_pretrained(backbone):
            raise ValueError(
                f"The backbone '{backbone}' is pretrained; train it with recipes/finetune.py, or set backbone to "
                "scratch:resnet32 or scratch: and an architecture of timm."
            )
        start = time.perf_counter()
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        seconds = time.perf_counter() - start
        if self.is_world_process_zero() and not resume_from_checkpoint:
            epochs, count = self.state.epoch, len(self.train_dataset)
            published = seconds / epochs * PUBLISHED_EPOCHS
            print(
                f"{count * epochs / seconds:,.0f} images a second; {epochs:g} epochs took {seconds / 60:.1f} minutes, "
                f"{PUBLISHED_EPOCHS} would take {published / 60:.0f}."
            )
        return output


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the recipe; returns the metrics before and after training, by name of the row."""
    return finetune(argv, trainer_type=ScratchTrainer)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    except TrainingTerminated:  # at SIGTERM, on all processes; exits with 143
        PartialState().destroy_process_group()
        raise
    PartialState().destroy_process_group()
