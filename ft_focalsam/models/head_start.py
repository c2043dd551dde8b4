"""Where a head starts: from class-name texts, class means or a linear probe of the frozen features, or at random."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..base.errors import first_fault
from .backbones import has_text_tower, is_pretrained
from .classifier import LongTailClassifier
from .linear_probe import fit_linear_probe
from .text import DEFAULT_TEMPLATE, choose_templates, prompt_names, require_text_tower, text_features

HEAD_STARTS = ("text", "class_means", "linear_probe", "random", "kaiming")


def choose_head_start(backbone: str, head_start: str | None = None) -> str:
    """The start of the head that was asked for, or the best the backbone allows: "text", else "class_means"; "kaiming"
    where its weights are random.

    Raises:
        ValueError: If the start is unknown, or "text" is asked of a backbone without text tower.
    """
    if head_start is None:
        if not is_pretrained(backbone):
            return "kaiming"
        return "text" if has_text_tower(backbone) else "class_means"
    if head_start not in HEAD_STARTS:
        raise ValueError(f"Unknown head_start {head_start!r}; choose one of {', '.join(HEAD_STARTS)}.")
    if head_start == "text":
        require_text_tower(backbone)
    return head_start


def class_means(model: LongTailClassifier, batches: Iterable[dict[str, Tensor]]) -> Tensor:
    """Mean direction of the features of each class: over the images that have it.

    Args:
        model (`LongTailClassifier`): Its backbone as it is now, in evaluation mode.
        batches (iterable of mappings): "labels" of shape (B,), or (B, C) with a 1 for each class, and "pixel_values"
            of shape (B, 3, H, W), or "image_features" of shape (B, D), see `encode_images`.

    Returns:
        `Tensor` of shape (C, D), float32.

    Raises:
        ValueError: If a class has no image.
    """
    totals, counts, _ = _sums(model, batches)
    return _means(totals, counts)


@torch.no_grad()
def _sums(model: LongTailClassifier, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """By class the sum of the directions of its features, shape (C, D), and their number, shape (C,); the mean length
    of all features."""
    device = next(model.head.parameters()).device
    totals = torch.zeros(model.config.num_labels, model.config.feature_size, device=device)
    counts = torch.zeros(model.config.num_labels, device=device)
    length, number = torch.zeros((), device=device), 0
    for features, labels in _features(model, batches):
        length += features.norm(dim=-1).sum()
        number += len(features)
        directions = F.normalize(features, dim=-1)
        if labels.ndim == 2:  # several classes an image
            totals += labels.T @ directions
            counts += labels.sum(dim=0)
        else:
            totals.index_add_(0, labels, directions)
            counts += torch.bincount(labels, minlength=len(counts))
    return totals, counts, length / max(1, number)


def _means(totals: Tensor, counts: Tensor) -> Tensor:
    if (counts == 0).any():
        raise ValueError(f"Class {int((counts == 0).nonzero()[0])} has no image to take the mean of.")
    return totals / counts[:, None]


@torch.no_grad()
def collect_features(model: LongTailClassifier, batches: Iterable[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features of images, from the backbone as it is now, in evaluation mode.

    Args:
        model (`LongTailClassifier`): Left in the mode it is in.
        batches (iterable of mappings): As for `class_means`.

    Returns:
        Features of shape (N, D), float32, and labels of shape (N,), both on the CPU.
    """
    none = torch.empty(0, model.config.feature_size), torch.empty(0, dtype=torch.int64)
    parts = [none, *((features.cpu(), labels.cpu()) for features, labels in _features(model, batches))]
    features, labels = zip(*parts, strict=True)
    return torch.cat(features), torch.cat(labels)


@torch.no_grad()
def _features(model: LongTailClassifier, batches: Iterable[dict[str, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Features in float32 and labels, batch by batch, on the device of the head."""
    was_training = model.training
    model.eval()
    device = next(model.head.parameters()).device
    for batch in batches:
        images = {name: batch[name].to(device) for name in ("pixel_values", "image_features") if name in batch}
        yield model.features(**images).float(), batch["labels"].to(device)
    model.train(was_training)


def init_head(
    model: LongTailClassifier,
    start: str,
    *,
    batches: Callable[[], Iterable[dict[str, Tensor]]] | None = None,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    class_names: Sequence[str] | None = None,
) -> None:
    """Initialise the head of a classifier.

    Args:
        model (`LongTailClassifier`): Its head is changed in place.
        start (`str`): "text": text features of the class names (semantic-aware initialisation, LIFT, arXiv
            2309.10019); "class_means": means of the backbone's normalised features; "linear_probe": class-balanced
            ridge regression on the features, see `fit_linear_probe`; "random": as it was built; "kaiming": weights
            from N(0, 2 / D) and no bias, as networks that are trained from scratch start (arXiv 1502.01852).
        batches (`Callable`, *optional*): Gives batches of the training images without augmentation, as
            `class_means` takes them; needed for "class_means" and "linear_probe" only. Of several processes, the main
            one starts the head from what it gets, and the others receive it; with `encode_images` they share the work.
        templates (sequence of `str`): Prompts for "text" with {} where the class name goes, or a name, see
            `choose_templates`.
        class_names (sequence of `str`, *optional*): Names of the classes in the prompts, if not those of the model.

    Raises:
        ValueError: If `start` is unknown or not one of the head's, "text" is asked of a backbone without text tower,
            or `batches` is missing, or has a class without image.
    """
    start, head = choose_head_start(model.config.backbone, start), model.head
    if start == "random":
        return
    if start == "kaiming":
        for name, parameter in head.named_parameters():
            if parameter.ndim == 2:
                nn.init.kaiming_normal_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        return
    needed = ("prepare", "has_bias", "start_from_fit") if start == "linear_probe" else ("start_from",)
    missing = [name for name in needed if not hasattr(head, name)]
    if missing:
        raise ValueError(
            f"The head {model.config.head!r} has no start from {start}, for which it needs {', '.join(missing)}; set "
            "head_start to random."
        )
    if start == "text":
        require_text_tower(model.config.backbone, model.config.backbone_features)
        model.config.prompt_templates = templates = choose_templates(templates)
        model.config.prompt_names = None if class_names is None else list(class_names)
        head.start_from(text_features(model.config.backbone, prompt_names(model.config), templates=templates))
        return
    if batches is None:
        raise ValueError(f'A head_start of "{start}" needs the training images; give `batches`.')
    if start == "linear_probe" and model.is_multi_label:
        raise ValueError(
            "head_start is 'linear_probe', which fits one class an image, and these images have several; set it to "
            "class_means, text or random."
        )
    read = _sums if start == "class_means" else collect_features
    found, fault = read(model, batches()), None  # of which several processes may have a part each to read
    if PartialState().is_main_process:
        try:
            (_start_from_means if start == "class_means" else _start_from_probe)(model, *found)
        except ValueError as error:
            fault = str(error)
    fault = first_fault(fault)
    if fault is not None:
        raise ValueError(fault)
    for tensor in head.state_dict().values():
        broadcast(tensor)


def _start_from_means(model: LongTailClassifier, totals: Tensor, counts: Tensor, length: Tensor) -> None:
    model.head.start_from(_means(totals, counts), length=float(length))


@torch.no_grad()
def _start_from_probe(model: LongTailClassifier, features: Tensor, labels: Tensor) -> None:
    head, device = model.head, next(model.head.parameters()).device
    prepared = torch.cat([head.prepare(part.to(device)).cpu() for part in features.split(8192)])
    fit = fit_linear_probe(prepared, labels, model.config.num_labels, has_bias=head.has_bias)
    head.start_from_fit(fit.weight.to(device), None if fit.bias is None else fit.bias.to(device))
