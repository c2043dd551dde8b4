"""Where a head starts: from class-name texts, from class means of the frozen features, or at random."""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from .backbones import find_family
from .classifier import LongTailClassifier
from .text import DEFAULT_TEMPLATE, require_text_tower, text_features

HEAD_STARTS = ("text", "class_means", "random")


def choose_head_start(backbone: str, head_start: str | None = None) -> str:
    """The start of the head that was asked for, or the best the backbone allows: "text", else "class_means".

    Raises:
        ValueError: If the start is unknown, or "text" is asked of a backbone without text tower.
    """
    if head_start is None:
        return "text" if find_family(backbone)[1].has_text_tower else "class_means"
    if head_start not in HEAD_STARTS:
        raise ValueError(f"Unknown head_start {head_start!r}; choose one of {', '.join(HEAD_STARTS)}.")
    if head_start == "text":
        require_text_tower(backbone)
    return head_start


@torch.no_grad()
def class_means(model: LongTailClassifier, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Mean feature vector of each class.

    Args:
        model (`LongTailClassifier`): Its backbone as it is now, in evaluation mode.
        batches (iterable of mappings): "pixel_values" of shape (B, 3, H, W) and "labels" of shape (B,).

    Returns:
        `Tensor` of shape (C, D), float32.

    Raises:
        ValueError: If a class has no picture.
    """
    was_training = model.training
    model.eval()
    device = model.head.weight.device
    totals = torch.zeros(model.config.num_labels, model.config.feature_size, device=device)
    counts = torch.zeros(model.config.num_labels, device=device)
    for batch in batches:
        features = F.normalize(model.features(batch["pixel_values"].to(device)).float(), dim=-1)
        labels = batch["labels"].to(device)
        totals.index_add_(0, labels, features)
        counts += torch.bincount(labels, minlength=len(counts))
    model.train(was_training)
    if (counts == 0).any():
        raise ValueError(f"Class {int((counts == 0).nonzero()[0])} has no picture to take the mean of.")
    return totals / counts[:, None]


def start_head(
    model: LongTailClassifier,
    start: str,
    *,
    batches: Callable[[], Iterable[dict[str, Tensor]]] | None = None,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
) -> None:
    """Initialise the head of a classifier.

    Args:
        model (`LongTailClassifier`): Its head is changed in place.
        start (`str`): "text": text features of the class names (semantic-aware initialisation, LIFT, arXiv
            2309.10019); "class_means": means of the backbone's normalised features; "random": as it was built.
        batches (`Callable`, *optional*): Gives batches of the training pictures without augmentation, as
            `class_means` takes them; needed for "class_means" only.
        templates (sequence of `str`): Prompts for "text".

    Raises:
        ValueError: If `start` is unknown, "text" is asked of a backbone without text tower, or "class_means" without
            `batches`.
    """
    if choose_head_start(model.config.backbone, start) == "text":
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        model.head.start_from(text_features(model.config.backbone, names, templates=templates))
    elif start == "class_means":
        if batches is None:
            raise ValueError('A head_start of "class_means" needs the training pictures; give `batches`.')
        model.head.start_from(class_means(model, tqdm(batches(), desc="Class means", leave=False)))
