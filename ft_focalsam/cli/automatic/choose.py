"""All settings of a run, chosen from a folder of images and the machine, each with its reason."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from ...data import DataArguments, ImageData, class_counts, label_array, prepare_images
from ...data.images import BadImageError, StoredImage, undecoded, upright_size
from .backbones import Backbone, are_characters, are_words, choose_backbone, describe_backbone
from .layout import find_layout
from .machine import Machine, this_machine
from .schedule import Work, choose_batch, choose_epochs, choose_image_size, choose_optimizer, choose_precision
from .sharpness import choose_sharpness

VALIDATION_FRACTION = 0.1
LEAST_VALIDATION = 30  # images; by these an accuracy is known to within 18 points, by fewer not even that
SAMPLE = 64  # image headers that are read
_DATA_KEYS = {field.name for field in fields(DataArguments)}


@dataclass(frozen=True)
class Choice:
    """The settings of a run.

    Args:
        settings (`dict`): Key -> value, of `DataArguments`, `ModelArguments`, `TuningOptions` and
            `FocalSAMTrainingArguments`; what the user gave is among them.
        reasons (`list[str]`): One sentence a choice, in the order in which they were made.
        data (`ImageData`): The images as a run with these settings uses them, broken ones included.
    """

    settings: dict[str, object]
    reasons: list[str]
    data: ImageData


def choose(
    folder: str | os.PathLike, given: Mapping[str, object] | None = None, *, machine: Machine | None = None
) -> Choice:
    """Choose what an expert would for a folder of images.

    Labels are read from paths or tables, the sizes of 64 images from their headers. No image is decoded and no
    backbone is loaded.

    Args:
        folder (`str` or path): As for [`find_layout`].
        given (mapping, *optional*): Keys that the user has set, with values of the types of their arguments. They win,
            and other choices go by them.
        machine ([`Machine`], *optional*): What trains; by default what there is.

    Raises:
        FileNotFoundError: If there is no such folder, or no backbone.
        ValueError: If the folder holds no images of at least two classes.
    """
    given = dict(given or {})
    if given.get("streaming"):
        raise ValueError("Settings cannot be chosen for a stream, whose images are not counted; give a config file.")
    machine = machine or this_machine(use_cpu=bool(given.get("use_cpu")))
    settings, reasons, data = _choose_data(folder, given)
    counts = class_counts(label_array(data.train), data.num_classes)
    more, why, backbone = _choose_model(data, given, machine)
    settings, reasons = settings | more, reasons + why
    work = Work(machine, backbone, data.num_train, given)
    image_size, why = choose_image_size(work)
    if image_size != backbone.image_size:
        settings["image_size"] = image_size
    reasons += why + _describe_sizes(data, image_size)
    batches, batch, batch_why = choose_batch(work, image_size)
    for more, why in (
        choose_precision(work),
        (batches, batch_why),
        choose_epochs(work, batch, image_size),
        choose_optimizer(work),
        _choose_loss(counts, given, is_multi_label=data.is_multi_label),
        choose_sharpness(counts, given),
    ):
        settings, reasons = settings | more, reasons + why
    settings |= {"logging_steps": 0.02, "save_strategy": "epoch", "save_total_limit": 1, "seed": 0}
    return Choice(settings | given, [_sentence(reason) for reason in reasons], data)


def _choose_data(folder, given: Mapping[str, object]) -> tuple[dict[str, object], list[str], ImageData]:
    """Where the images are, which are put aside, and how they are augmented."""
    layout = find_layout(folder, {key: value for key, value in given.items() if key in _DATA_KEYS})
    settings: dict[str, object] = {**layout.settings, "on_bad_image": "skip"}
    reasons = list(layout.reasons)
    data = _read(settings, given)
    if data.num_classes < 2:
        raise ValueError(
            f"'{folder}' holds images of one class, '{data.class_names[0]}'; add a folder of images of another class."
        )
    if not {"validation_fraction", "validation_split"} & {*settings, *given}:
        held = _held_out(data)
        if held.sum() >= LEAST_VALIDATION and (held > 0).sum() >= data.num_classes / 2:
            settings["validation_fraction"] = VALIDATION_FRACTION
            data = _read(settings, given)
            number = len(data.validation)
            reasons.append(f"{number:,} of the training images, a tenth of each class, are for validation")
        else:
            reasons.append("no images are for validation: there are too few, and all of them are trained on")
    if data.validation is not None:
        settings["eval_strategy"] = "epoch"
    counts = class_counts(label_array(data.train), data.num_classes)
    trained = counts[counts > 0]
    sizes = (
        f"{data.num_train:,} training images of {data.num_classes:,} classes, {counts.max():,} to {trained.min():,}"
    )
    reasons.insert(0, f"{sizes} a class; {len(data.test):,} test images")
    characters = are_characters(data.class_names)
    settings["augmentation"] = "crop" if characters else "crop_flip"
    if characters and "augmentation" not in given:
        reasons.append("augmentation crop, without a flip: the classes are characters")
    return settings, reasons, data


def _read(settings: Mapping[str, object], given: Mapping[str, object]) -> ImageData:
    """The images of a run; broken ones are not looked for."""
    keys = {key: value for key, value in {**settings, **given}.items() if key in _DATA_KEYS}
    return prepare_images(DataArguments(**{**keys, "on_bad_image": "unchecked", "cache_resized": None}), say=_quiet)


def _quiet(text: str) -> None:
    """The run itself says it."""


def _held_out(data: ImageData) -> np.ndarray:
    """How many images of each class a tenth is; classes of five images and fewer give none."""
    counts = class_counts(label_array(data.train), data.num_classes)
    return np.rint(VALIDATION_FRACTION * counts).astype(int)


def _choose_model(
    data: ImageData, given: Mapping[str, object], machine: Machine
) -> tuple[dict[str, object], list[str], Backbone]:
    """Backbone, what of it is tuned, and where its head starts."""
    has_words = are_words(data.class_names) or "prompt_names" in given
    settings: dict[str, object] = {"tuning": "lora", "lora_rank": 8, "lora_alpha": 8.0, "head": "cosine"}
    reasons = []
    if "backbone" in given:
        backbone = describe_backbone(str(given["backbone"]))
    else:
        backbone, why = choose_backbone(has_words=has_words, is_cpu=machine.is_cpu, memory=machine.memory)
        settings["backbone"] = backbone.name
        reasons.append(f"backbone {backbone.name}: {why}")
    if "tuning" not in given:
        reasons.append("tuning lora of rank 8: under 2 % of the weights train, in all blocks")
    if "head_start" not in given and given.get("head", "cosine") == "cosine":
        start = "text" if backbone.has_text and has_words else "class_means"
        settings["head_start"] = start
        what = "the text features of the class names" if start == "text" else "the mean features of each class"
        reasons.append(f"the classifier head starts from {what}")
    return settings, reasons, backbone


def _describe_sizes(data: ImageData, image_size: int) -> list[str]:
    """A sentence on small images, by a sample of headers."""
    stored, sides = undecoded(data.train), []
    for row in np.unique(np.linspace(0, len(stored) - 1, num=min(SAMPLE, len(stored)), dtype=int)):
        try:
            sides.append(min(upright_size(StoredImage.read(stored[int(row)]["image"], row=int(row)).open())))
        except BadImageError:
            continue
    side = int(np.median(sides)) if sides else image_size
    return [f"the images, of {side} pixels by the median, are enlarged to {image_size}"] if side < image_size else []


def _choose_loss(
    counts: np.ndarray, given: Mapping[str, object], *, is_multi_label: bool
) -> tuple[dict[str, object], list[str]]:
    """Logit adjustment (arXiv 2007.07314), with which the published accuracies were reached, and which is
    cross-entropy where classes are balanced. For several classes an image the distribution-balanced loss (arXiv
    2007.09654), which was made for long tails of these."""
    if "loss" in given:
        return {}, []
    ratio = counts.max() / counts[counts > 0].min()
    if is_multi_label:
        return {"loss": "distribution_balanced"}, [
            f"loss distribution_balanced: images have several classes, the most frequent one {ratio:.3g} times the "
            "images of the rarest"
        ]
    return {"loss": "logit_adjusted"}, [
        f"loss logit_adjusted: the most frequent class has {ratio:.3g} times the images of the rarest"
    ]


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
