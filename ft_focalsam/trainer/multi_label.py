"""Training sets whose images have several classes each, and which arguments are for one class an image."""

from typing import TYPE_CHECKING

from torch import Tensor
from transformers import Trainer

from ..base.registry import listed
from ..data.labels import LabelCounts
from ..losses import is_multi_label, same_kind
from ..models.classifier_config import MULTI_LABEL
from ..sharpness.class_conditional import CC_SAM

if TYPE_CHECKING:
    from .arguments import FocalSAMTrainingArguments

SINGLE_LABEL = "single_label_classification"


def problem_type_of(trainer: Trainer) -> str | None:
    """What the config of the model says.

    Raises:
        ValueError: If it is no classification.
    """
    kind = getattr(getattr(trainer.model, "config", None), "problem_type", None)
    if kind not in (None, SINGLE_LABEL, MULTI_LABEL):
        raise ValueError(
            f"The model's config has problem_type {kind!r}, and FocalSAMTrainer trains classifiers; set it to "
            f"{SINGLE_LABEL!r} or {MULTI_LABEL!r}."
        )
    return kind


def has_several_classes(trainer: Trainer, found: LabelCounts | None) -> bool:
    """Whether images have several classes: as counted, else as the model's config says. A config that says nothing is
    set to what was counted, as transformers does by the first batch.

    Raises:
        ValueError: If the labels and the config differ, or the config is of no classifier.
    """
    kind = problem_type_of(trainer)
    if found is None:
        return kind == MULTI_LABEL
    if kind is not None and found.is_multi_label != (kind == MULTI_LABEL):
        counted, other = ("several", MULTI_LABEL) if found.is_multi_label else ("one", SINGLE_LABEL)
        raise ValueError(
            f"The model's config has problem_type {kind!r}, and the labels of the training set are {counted} a "
            f"sample; set it to {other!r}, or correct the labels."
        )
    config = getattr(trainer.model, "config", None)
    if found.is_multi_label and config is not None:
        config.problem_type = MULTI_LABEL
    return found.is_multi_label


def refuse_other_kind(args: "FocalSAMTrainingArguments", *, multi_label: bool, own_loss: bool = False) -> None:
    """Raise a `ValueError` where an argument is for one class an image and these have several, or the other way round.

    Args:
        args (`FocalSAMTrainingArguments`): Of the run.
        multi_label (`bool`): Whether images have several classes.
        own_loss (`bool`): Whether the loss is a function of the user's.
    """
    if is_multi_label(args.loss) != multi_label and not own_loss:
        takes, have = ("one class", "several") if multi_label else ("several classes", "one")
        remedy = listed(same_kind(multi_label=True)) if multi_label else "cross_entropy or another loss of one class"
        raise ValueError(
            f"loss is {args.loss!r}, for {takes} an image, and these images have {have}; set it to {remedy}."
        )
    if not multi_label:
        return
    alternatives = {
        "sharpness": (args.sharpness == CC_SAM, "focal_sam or another method of its family"),
        "train_sampler": (args.train_sampler != "instance", "instance"),
        "mixup_alpha": (args.mixup_alpha > 0, "0"),
        "cutmix_alpha": (args.cutmix_alpha > 0, "0"),
    }
    for name, (is_set, remedy) in alternatives.items():
        if is_set:
            raise ValueError(
                f"{name} is {getattr(args, name)!r}, for one class an image, and these images have several; set it to "
                f"{remedy}."
            )


def check_multi_hot(labels: Tensor) -> None:
    """Raise a `ValueError` unless labels, of a batch, are of shape (B, C) and from 0 to 1."""
    if labels.ndim != 2 or bool(((labels < 0) | (labels > 1)).any()):
        raise ValueError(
            f"The labels of a batch are {labels.dtype} of shape {tuple(labels.shape)}; for several classes an image "
            "give rows of shape (C,) with a 1 for each of its classes, and 0 for the others."
        )
