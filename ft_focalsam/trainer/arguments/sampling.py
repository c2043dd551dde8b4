"""Arguments of how training images are drawn and mixed."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ...data.mixing import Mixing
from ...data.samplers import SAMPLERS
from .checks import check_allowed


@dataclass
class SamplingArguments(TrainingArguments):
    """How training images are drawn and mixed.

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

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

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

    def __post_init__(self):
        check_allowed(self, train_sampler=SAMPLERS)
        self._check_sampler()
        self.make_mixing()
        super().__post_init__()

    def make_mixing(self) -> Mixing:
        """The mixing of training images that these arguments describe."""
        return Mixing(
            self.mixup_alpha, self.cutmix_alpha, remix=self.remix, kappa=self.remix_kappa, tau=self.remix_tau
        )

    def _check_sampler(self) -> None:
        if self.train_sampler != "instance" and self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampler is {self.train_sampler!r} and train_sampling_strategy "
                f"{self.train_sampling_strategy!r}; set one of the two and leave the other at its default."
            )
