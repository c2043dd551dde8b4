"""Class names to text features: zero-shot classification and semantic-aware starts of a head."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedConfig

from .backbones import find_family, load_text_tower

DEFAULT_TEMPLATE = "a photo of a {}."
_SYNSET = re.compile(r"n\d{8}\b")  # a WordNet noun, as ImageNet and its variants name their folders
# Names of templates and class names that open_clip ships, and what it calls them.
NAMED_TEMPLATES = {"imagenet": "OPENAI_IMAGENET_TEMPLATES", "imagenet_simple": "SIMPLE_IMAGENET_TEMPLATES"}
NAMED_CLASSES = {"imagenet": "IMAGENET_CLASSNAMES"}


@torch.no_grad()
def text_features(
    backbone: str, class_names: Sequence[str], *, templates: Sequence[str] = (DEFAULT_TEMPLATE,)
) -> Tensor:
    """Text features of class names, averaged over templates.

    Args:
        backbone (`str`): A backbone with a text tower, by Hub name, path, or "tiny_clip".
        class_names (sequence of `str`): One name a class; underscores are read as spaces.
        templates (sequence of `str`): Prompts with `{}` where the name goes, or a name, see `choose_templates`.

    Returns:
        `Tensor` of shape (C, D), float32: unit vectors in the space of the image features.

    Raises:
        ValueError: If the backbone has no text tower, or a template has no `{}`.
    """
    require_text_tower(backbone)
    prompts = class_prompts(class_names, choose_templates(templates))
    tower = load_text_tower(backbone)
    total = sum(F.normalize(tower.encode(row), dim=-1) for row in prompts)
    return F.normalize(total, dim=-1)


def choose_templates(templates: Sequence[str]) -> list[str]:
    """Templates as they are, or the ones that go by a name.

    Args:
        templates (sequence of `str`): Prompts with `{}`, or one name: "imagenet" for the 80 of CLIP (Radford et al.,
            arXiv 2103.00020), "imagenet_simple" for 7 of them that do as well.

    Raises:
        ValueError: If open_clip, which ships the named ones, is not installed.
    """
    if len(templates) == 1 and templates[0] in NAMED_TEMPLATES:
        return [template("{}") for template in getattr(open_clip, NAMED_TEMPLATES[templates[0]])]
    return list(templates)


def check_prompts(templates: Sequence[str], names: str | None = None) -> None:
    """See, before anything is loaded, that prompts can be made.

    Args:
        templates (sequence of `str`): As in [`choose_templates`].
        names (`str`, *optional*): As in [`read_prompt_names`].

    Raises:
        FileNotFoundError: If the file of names does not exist.
        ValueError: If a template has no `{}`.
    """
    for template in templates:
        if "{}" not in template and list(templates) not in [[name] for name in NAMED_TEMPLATES]:
            raise ValueError(f"The template {template!r} has no {{}}; write {{}} where the class name goes.")
    if names is not None and names not in NAMED_CLASSES and not Path(names).is_file():
        raise FileNotFoundError(
            f"prompt_names is '{names}', which is no file; give one with a class name a line, or one of "
            f"{', '.join(NAMED_CLASSES)}."
        )


def read_prompt_names(source: str | None, num_classes: int) -> list[str] | None:
    """Names of classes for prompts, where they are not those of the data set.

    Args:
        source (`str`, *optional*): A text file with one name a line, or "imagenet" for the curated names of its 1,000
            classes, in their usual order.
        num_classes (`int`): C.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are not C names.
    """
    if source is None:
        return None
    check_prompts((), source)
    if source in NAMED_CLASSES:
        names = list(getattr(open_clip, NAMED_CLASSES[source]))
    else:
        names = [line.strip() for line in Path(source).read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != num_classes:
        raise ValueError(
            f"prompt_names '{source}' has {len(names)} names and the data {num_classes} classes; give one a class."
        )
    return names


def class_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """For each template the prompts of all classes; underscores in their names are read as spaces.

    Raises:
        ValueError: If there is no template, or one has no `{}`.
    """
    if not templates:
        raise ValueError('prompt_templates is empty; give one or several, as "a photo of a {}.".')
    check_prompts(templates)
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


def find_synset(name: str) -> list[str]:
    """The WordNet synset that a name begins with, if it does."""
    found = _SYNSET.match(name)
    return [found[0]] if found else []


def readable_names(names: Sequence[str], class_index: Mapping[int, Sequence[str]] | None = None) -> list[str]:
    """Names that a text tower can read, of classes that may be named by WordNet synsets.

    Args:
        names (sequence of `str`): "n01440764 tench" becomes "tench"; "n01440764" what the class index calls it.
        class_index (mapping, *optional*): Of [`~ft_focalsam.evaluation.read_class_index`].

    Raises:
        ValueError: If a synset has no name.
    """
    known: dict[str, str] = {}
    for entry in (class_index or {}).values():
        words = next((name for name in entry if not find_synset(name)), None)
        known |= {synset: words.split(",")[0] for name in entry for synset in find_synset(name) if words}
    readable = []
    for name in names:
        (synset,) = find_synset(name) or [""]
        words = name.removeprefix(synset).strip(" _-") or known.get(synset)
        if words is None:
            raise ValueError(
                f"The class {name!r} is named by a WordNet synset, which a text tower cannot read; give a class index "
                "that has its name (--class_index)."
            )
        readable.append(words)
    return readable
