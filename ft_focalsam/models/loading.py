"""Load any image classifier: one of this package, one of transformers, or CLIP by class names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedConfig

from .backbones import has_text_tower, load_image_processor, quiet_loading, resolve_name, split_name
from .backbones.transformers_models import read_image_processor
from .checkpoints import refuse_pickles
from .classifier import LongTailClassifier
from .classifier_config import MULTI_LABEL, LongTailClassifierConfig
from .foreign_config import check_model_config
from .text import DEFAULT_TEMPLATE, readable_names, text_features

DEFAULT_PATCH = 16  # of models whose configuration names none


@dataclass(frozen=True)
class Classifier:
    """A model, what its classes are called, and how it wants images.

    Args:
        model (`nn.Module`): pixel_values -> an output with `logits` of shape (B, C).
        class_names (`list[str]`): The C class names in index order.
        processor (`BaseImageProcessor`): Its image processor.
        image_size (`int`, *optional*): Side of the images in pixels, where it is not the processor's own.
        patch_size (`int`): Side of its patches, in pixels.
        is_zero_shot (`bool`): Made for the classes of one test set, by their names.
    """

    model: nn.Module
    class_names: list[str]
    processor: BaseImageProcessor
    image_size: int | None = None
    patch_size: int = DEFAULT_PATCH
    is_zero_shot: bool = False

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return getattr(self.model.config, "problem_type", None) == MULTI_LABEL


def load_classifier(
    name: str,
    class_names: Sequence[str] = (),
    class_index: Mapping[int, Sequence[str]] | None = None,
    *,
    templates: Sequence[str] = (DEFAULT_TEMPLATE,),
    revision: str | None = None,
    backbone: str | None = None,
) -> Classifier:
    """Load a classifier in evaluation mode; code that comes with a repository is never run.

    Args:
        name (`str`): A folder or Hub repository with a `LongTailClassifier` or an image classifier of transformers
            (safetensors), or a backbone with a text tower ("tiny_clip", "openai/clip-vit-base-patch16"), which
            becomes a zero-shot classifier.
        class_names (sequence of `str`): For zero-shot, what to tell apart; the others have their own.
        class_index (mapping, *optional*): For zero-shot, what classes that are named by synsets are called.
        templates (sequence of `str`): For zero-shot, prompts with {} where the class name goes.
        revision (`str`, *optional*): Branch, tag or commit of a Hub repository with a classifier.
        backbone (`str`, *optional*): Where the backbone of a `LongTailClassifier` is now.

    Raises:
        FileNotFoundError: If there is no such folder or repository.
        ValueError: If it is no classifier and has no text tower, or lacks weights.
    """
    if is_zero_shot(name, revision=revision):
        if not class_names:
            raise ValueError(
                f"'{name}' is a backbone, which tells class_names apart; give these, or a fine-tuned classifier."
            )
        features = text_features(name, readable_names(class_names, class_index), templates=templates)
        model = LongTailClassifier.from_backbone(name, class_names).eval()
        model.head.start_from(features)
        return replace(_classifier(model, load_image_processor(name)), is_zero_shot=True)
    config = read_config(name, revision=revision)
    source = {"revision": revision or "main", "trust_remote_code": False}
    if config["model_type"] == LongTailClassifierConfig.model_type:
        model = LongTailClassifier.from_pretrained(name, revision=revision, backbone=backbone)
        try:
            processor = read_image_processor(name, revision=revision)
        except OSError:  # what save_pretrained wrote without a processor beside it
            processor = load_image_processor(model.config.backbone)
        return _classifier(model, processor, image_size=model.config.image_size)
    try:
        with quiet_loading():
            model, report = AutoModelForImageClassification.from_pretrained(
                name, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **source
            )
    except OSError:
        refuse_pickles(name, revision=revision)
        raise
    if report["missing_keys"]:
        raise ValueError(
            f"'{name}' has no weights for {sorted(report['missing_keys'])[0]!r}, which would stay random; give a "
            "checkpoint of a trained classifier."
        )
    return _classifier(model.eval(), read_image_processor(name, revision=revision))


def is_zero_shot(name: str, *, revision: str | None = None) -> bool:
    """Whether a checkpoint is no classifier, but one by its text tower.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is neither.
    """
    if split_name(name)[0]:  # a backbone of another library
        if has_text_tower(name):
            return True
        raise ValueError(
            f"'{name}' has no classification head and no text tower to classify by class names; give the folder of a "
            "fine-tuned classifier."
        )
    config = read_config(name, revision=revision)
    architectures = config.get("architectures") or []
    if config["model_type"] == LongTailClassifierConfig.model_type:
        return False
    if any("ForImageClassification" in architecture for architecture in architectures):
        return False
    if has_text_tower(name):
        return True
    raise ValueError(
        f"'{name}' ({', '.join(architectures) or config['model_type']}) has no classification head and no text tower "
        "to classify by class names; give a fine-tuned classifier."
    )


def read_config(name: str, *, revision: str | None = None) -> dict:
    """The config.json of a folder, a Hub repository or an embedded backbone.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it names no model type.
    """
    path = resolve_name(name, what="The model")
    check_model_config(path, revision=revision)
    try:
        if Path(path).is_dir() and not Path(path, "config.json").is_file():
            raise FileNotFoundError(f"{path} has no config.json")
        config, _ = PreTrainedConfig.get_config_dict(path, revision=revision or "main")
    except OSError as error:
        raise FileNotFoundError(
            f"The model '{name}' could not be read: it has no config.json; give a folder that save_pretrained wrote, "
            "or a repository of a model and a revision that it has."
        ) from error
    if "model_type" not in config:
        raise ValueError(
            f"The config.json of '{name}' names no model_type; give a model of this package or of transformers."
        )
    return config


def _classifier(model: nn.Module, processor: BaseImageProcessor, *, image_size: int | None = None) -> Classifier:
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    return Classifier(model, names, processor, image_size, _patch_size(model))


def _patch_size(model: nn.Module) -> int:
    """Side of the patches of a classifier in pixels."""
    if isinstance(model, LongTailClassifier):
        try:
            return round(model.family.patch_area(model.backbone) ** 0.5)
        except AttributeError:  # a backbone without patches
            return DEFAULT_PATCH
    config = model.config.to_dict()
    patch = config.get("patch_size") or (config.get("vision_config") or {}).get("patch_size") or DEFAULT_PATCH
    return patch if isinstance(patch, int) else max(patch)
