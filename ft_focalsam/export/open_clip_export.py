"""To a checkpoint of open_clip, which `open_clip.create_model_and_transforms("local-dir:folder")` loads as it is, with
the class vectors of the head beside it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BaseImageProcessor, CLIPModel

from ..base.files import check_is_free, new_folder
from ..models import LongTailClassifier, load_text_tower
from ..models.backbones import open_clip_models
from ..models.backbones.protocol import split_name
from ..models.backbones.split_attention import join_projections
from ..models.backbones.timm_models import split_qkv_biases
from ..models.backbones.transformers_models import quiet_loading, resolve_name
from .check import check_same, logits_of, random_images
from .class_vectors import LAYER_NORM, NONE, UNIT_LENGTH, ClassVectors, check_head, class_vectors
from .clip_weights import to_open_clip_config, to_open_clip_weights
from .merge import check_can_merge, merge
from .preprocessing import preprocessing_of, to_open_clip
from .transformers_export import resized_positions

PROMPTS = ("a photo of a cat.", "two of them")  # on which the text tower is compared

NORMALISATION_LINE = {
    NONE: "",
    UNIT_LENGTH: "    features = torch.nn.functional.normalize(features, dim=-1)\n",
    LAYER_NORM: "    features = torch.nn.functional.layer_norm(features, features.shape[-1:])\n",
}
README = """# Image classifier of {classes} classes

A model of open_clip whose image tower was fine-tuned from `{backbone}`, and a classifier on its image features
(`classifier.safetensors`, the names of the classes in `classifier.json`). The text tower is the pretrained one.

```python
import json

import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file

folder = "path/to/this/folder"
model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{{folder}}")
head = load_file(f"{{folder}}/classifier.safetensors")
with open(f"{{folder}}/classifier.json", encoding="utf-8") as file:
    names = json.load(file)["labels"]

image = preprocess(Image.open("image.jpg").convert("RGB"))
with torch.no_grad():
    features = model.eval().encode_image(image[None], normalize=False)
{normalisation}    logits = head["scale"] * features @ head["weight"].T + head["bias"]
print(names[int(logits.argmax())])
```
"""


@dataclass(frozen=True)
class Parts:
    """What a checkpoint of open_clip is made of.

    Attributes:
        config (`dict`): "model_cfg" of open_clip_config.json.
        weights (`dict[str, Tensor]`): Of both towers, by their names in open_clip.
        save_tokenizer (`Callable`): Writes the tokenizer into a folder, if it is not open_clip's own.
    """

    config: dict
    weights: dict[str, Tensor]
    save_tokenizer: Callable[[Path], object]


def export_open_clip(
    model: LongTailClassifier, folder: str | os.PathLike, *, image_processor: BaseImageProcessor | None = None
) -> None:
    """Write a model of open_clip with the tuned image tower and the text tower as it was, and the head beside it.

    Args:
        model (`LongTailClassifier`): A tuned classifier on a backbone of open_clip, or a CLIP of transformers.
        folder (`str` or path): The folder to make.
        image_processor (`BaseImageProcessor`, *optional*): As in `export_transformers`.

    Raises:
        ValueError: If the backbone, the head or the preprocessing has no counterpart in open_clip.
        OSError: If the folder exists and is not empty, or the backbone is gone.
    """
    check_is_free(folder)
    if model.is_multi_label:
        raise ValueError(
            "The classifier is for several classes an image, and the head beside a model of open_clip for one; export "
            "to onnx or transformers."
        )
    source = _choose_source(model)
    check_can_merge(model)
    check_head(model)
    preprocess = to_open_clip(preprocessing_of(model, image_processor))
    merged = merge(model)
    with quiet_loading():
        parts = source(merged)
    head = class_vectors(merged)
    with new_folder(folder) as path:
        parts.save_tokenizer(path)
        config = {"model_cfg": parts.config, "preprocess_cfg": preprocess}
        (path / "open_clip_config.json").write_text(json.dumps(config, indent=2))
        weights = {name: value.detach().clone().contiguous() for name, value in parts.weights.items()}
        save_file(weights, path / "open_clip_model.safetensors", metadata={"format": "pt"})
        tensors = {"weight": head.weight, "bias": head.bias, "scale": head.scale}
        save_file(tensors, path / "classifier.safetensors", metadata={"format": "pt"})
        labels = [merged.config.id2label[index] for index in range(merged.config.num_labels)]
        note = {"labels": labels, "normalisation_of_features": head.normalisation}
        (path / "classifier.json").write_text(json.dumps(note, indent=2, ensure_ascii=False), encoding="utf-8")
        text = README.format(
            classes=len(labels),
            backbone=merged.config.backbone,
            normalisation=NORMALISATION_LINE[head.normalisation],
        )
        (path / "README.md").write_text(text, encoding="utf-8")
        _check(merged, head, path)


@torch.no_grad()
def _check(merged: LongTailClassifier, head: ClassVectors, path: Path) -> None:
    """Compare both towers of what was written with what they were made of."""
    import open_clip

    exported = open_clip.create_model(f"local-dir:{path}", weights_only=True).eval()
    images = random_images(merged)
    got = head.logits(exported.encode_image(images, normalize=False))
    what, remedy = "the open_clip model made of the classifier", "export to onnx"
    check_same(logits_of(merged, images), got, what=what, remedy=remedy)
    tokens = open_clip.get_tokenizer(f"local-dir:{path}")(list(PROMPTS))
    with quiet_loading():
        expected = F.normalize(load_text_tower(merged.config.backbone).encode(PROMPTS), dim=-1)
    got = exported.encode_text(tokens, normalize=True)  # CoCa's tower has no other
    check_same(expected, got, what="the text tower of " + what, remedy=remedy)


def _from_open_clip(model: LongTailClassifier) -> Parts:
    """The open_clip model that the backbone was taken out of, with the tuned image tower put back."""
    import open_clip

    name, size = split_name(model.config.backbone)[1], model.config.image_size
    whole = open_clip_models.create_open_clip(name, image_size=size)
    names = set(whole.visual.state_dict())
    whole.visual.load_state_dict(join_projections(split_qkv_biases(model.backbone.state_dict(), names), names))
    identifier = open_clip_models.split_weights(name)[0]
    config = open_clip.get_model_config(identifier)
    if size is not None:
        config["vision_cfg"]["image_size"] = size
    tokenizer = open_clip.get_tokenizer(identifier)
    return Parts(config, whole.state_dict(), getattr(tokenizer, "save_pretrained", lambda path: None))


def _from_clip(model: LongTailClassifier) -> Parts:
    """Both towers of a `CLIPModel`, under the names of open_clip."""
    path, size = resolve_name(model.config.backbone), model.config.image_size
    whole = CLIPModel.from_pretrained(path, dtype=torch.float32)
    state = whole.state_dict() | model.backbone.state_dict()
    if size is not None:
        state |= resized_positions(model, size)
    tokenizer = AutoTokenizer.from_pretrained(path)
    config = to_open_clip_config(whole.config, image_size=size)
    return Parts(config, to_open_clip_weights(state), tokenizer.save_pretrained)


# By the architecture of the backbone: merged classifier -> the parts of a checkpoint. A new one is one entry.
PART_SOURCES: dict[str, Callable[[LongTailClassifier], Parts]] = {
    "open_clip:open_clip": _from_open_clip,
    "clip": _from_clip,
}


def _choose_source(model: LongTailClassifier) -> Callable[[LongTailClassifier], Parts]:
    """The entry of `PART_SOURCES` for a classifier.

    Raises:
        ValueError: If there is none, the features are not those of open_clip, or open_clip is not installed.
    """
    config = model.config
    if config.backbone_family not in PART_SOURCES:
        raise ValueError(
            f"The backbone '{config.backbone}' ({config.backbone_family}) is no CLIP with two towers, which open_clip "
            "could load; export to transformers or onnx."
        )
    if config.backbone_features is not None:
        raise ValueError(
            f"The classifier reads the features {config.backbone_features}, and open_clip gives those in the space of "
            "the texts; train without backbone_features, or export to onnx."
        )
    if config.image_size is not None and hasattr(model.backbone, "trunk"):
        raise ValueError(
            f"image_size is {config.image_size}, which an open_clip checkpoint cannot note for an image tower of timm"
            "; train without image_size, or export to onnx."
        )
    return PART_SOURCES[config.backbone_family]
