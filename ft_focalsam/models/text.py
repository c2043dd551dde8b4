"""Class names to text features: zero-shot classification and semantic-aware starts of a head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from .backbones import find_family, load_text_tower

DEFAULT_TEMPLATE = "a photo of a {}."


@torch.no_grad()
def text_features(
    backbone: str, class_names: Sequence[str], *, templates: Sequence[str] = (DEFAULT_TEMPLATE,)
) -> Tensor:
    """Text features of class names, averaged over templates.

    Args:
        backbone (`str`): A backbone with a text tower, by Hub name, path, or "tiny_clip".
        class_names (sequence of `str`): One name a class; underscores are read as spaces.
        templates (sequence of `str`): Prompts with `{}` where the name goes.

    Returns:
        `Tensor` of shape (C, D), float32: unit vectors in the space of the image features.

    Raises:
        ValueError: If the backbone has no text tower, or a template has no `{}`.
    """
    require_text_tower(backbone)
    prompts = class_prompts(class_names, templates)
    tower = load_text_tower(backbone)
    total = sum(F.normalize(tower.encode(row), dim=-1) for row in prompts)
    return F.normalize(total, dim=-1)


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """For each template the prompts of all classes; underscores in their names are read as spaces.

    Raises:
        ValueError: If there is no template, or one has no `{}`.
    """
    if not templates:
        raise ValueError('prompt_templates is empty; give one or several, as "a photo of a {}.".')
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"The template {template!r} has no {{}}; write {{}} where the class name goes.")
    names = [name.replace("_", " ") for name in class_names]
    return [[template.replace("{}", name) for name in names] for template in templates]


def prompt_names(config: PreTrainedConfig) -> list[str]:
    """Names of the classes in prompts.

    Args:
        config (`LongTailClassifierConfig`): Of the classifier.
    """
    return config.prompt_names or [config.id2label[index] for index in range(config.num_labels)]


def require_text_tower(backbone: str, features: str | None = None) -> None:
    """Raise a `ValueError` unless the backbone can encode class names into the space of its features."""
    architecture, family = find_family(backbone, features)
    if not family.has_text_tower:
        raise ValueError(
            f"The backbone '{backbone}' ({architecture}) has no text tower to start a head from class names; set "
            "head_start to class_means, linear_probe or random."
        )
