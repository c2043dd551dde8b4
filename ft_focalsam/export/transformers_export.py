"""To an image classifier of transformers, which `pipeline("image-classification", model=folder)` loads as it is."""

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageClassification,
    BaseImageProcessor,
    BeitForImageClassification,
    CLIPConfig,
    CLIPForImageClassification,
    Data2VecVisionForImageClassification,
    DeiTForImageClassification,
    Dinov2ForImageClassification,
    Dinov2WithRegistersForImageClassification,
    IJepaForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipForImageClassification,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTMSNForImageClassification,
)

from ..base.files import check_is_free, new_folder
from ..models import LongTailClassifier
from ..models.backbones.timm_models import split_qkv_biases
from ..models.backbones.transformers_models import quiet_loading
from .check import check_same, logits_of, random_images
from .merge import check_can_merge, merge
from .preprocessing import preprocessing_of, to_image_processor

CLASS_TOKEN = {None: 0, "cls": 0}


def export_transformers(
    model: LongTailClassifier, folder: str | os.PathLike, *, image_processor: BaseImageProcessor | None = None
) -> None:
    """Write a checkpoint of the architecture of transformers that the backbone is of, with its image processor.

    Args:
        model (`LongTailClassifier`): A tuned classifier with the head "linear".
        folder (`str` or path): The folder to make.
        image_processor (`BaseImageProcessor`, *optional*): How images were prepared in training, but for the image
            size of the classifier; by default that of the backbone.

    Raises:
        ValueError: If there is no such architecture, or it cannot give the logits of the classifier.
        OSError: If the folder exists and is not empty, or the backbone has no image processor.
    """
    check_is_free(folder)
    target = _choose_target(model)
    check_can_merge(model)
    processor = to_image_processor(preprocessing_of(model, image_processor))
    merged = merge(model)
    with new_folder(folder) as path, quiet_loading():
        found = target(merged)
        found.config.problem_type = model.config.problem_type
        found.save_pretrained(path)
        processor.save_pretrained(path)
        exported = AutoModelForImageClassification.from_pretrained(path).eval()
        images = random_images(merged)
        check_same(
            logits_of(merged, images),
            logits_of(exported, images),
            what=f"the {type(exported).__name__} made of the classifier",
            remedy="export to onnx",
        )


@dataclass(frozen=True)
class ExportTarget:
    """How a classifier becomes an image classifier of transformers.

    Attributes:
        model_type (`type`): The class of transformers.
        body (`str`): What it calls its backbone; "" where the weights have the same names.
        reads (mapping): `backbone_features` of the classifier -> which part of what its own classifier multiplies
            these are.
        parts (`int`): How many parts of D numbers there are; the others get weights of 0.
        make_config (`Callable`): Configuration of the backbone -> that of the image classifier.
    """

    model_type: type[PreTrainedModel]
    body: str = ""
    reads: Mapping[str | None, int] = field(default_factory=lambda: CLASS_TOKEN)
    parts: int = 1
    make_config: Callable[[PreTrainedConfig], PreTrainedConfig] = lambda config: config

    def __call__(self, model: LongTailClassifier) -> PreTrainedModel:
        """The image classifier with the weights of a merged classifier."""
        own = copy.deepcopy(model.backbone.config)
        size = model.config.image_size
        state = model.backbone.state_dict()
        if size is not None and model.family.image_sizes == "interpolated":
            state |= resized_positions(model, size)
            own.image_size = size
        config = self.make_config(own)
        config.id2label, config.label2id = model.config.id2label, model.config.label2id
        target = self.model_type(config)
        prefix = f"{self.body}." if self.body else ""
        state = {f"{prefix}{name}": value for name, value in state.items()}
        weight = torch.zeros(config.num_labels, self.parts * model.config.feature_size)
        place = self.reads[model.config.backbone_features]
        weight.view(config.num_labels, self.parts, -1)[:, place] = model.head.weight.detach()
        target.load_state_dict(
            {**state, "classifier.weight": weight, "classifier.bias": model.head.bias}, strict=False
        )
        return target


def _build_timm(model: LongTailClassifier) -> PreTrainedModel:
    """timm's own model with a classifier, in the wrapper that transformers has for it."""
    backbone, labels = model.backbone, list(model.config.id2label.values())
    arguments = {n: v for n, v in getattr(backbone, "_model_args", {}).items() if n != "num_classes"}
    if model.config.image_size is not None:
        arguments["img_size"] = model.config.image_size
    config = TimmWrapperConfig(
        architecture=backbone.pretrained_cfg["architecture"],
        model_args=arguments,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )
    target = TimmWrapperForImageClassification(config)
    classifier = target.timm_model.get_classifier()
    if not isinstance(classifier, nn.Linear):
        raise ValueError(
            f"The classifier of '{model.config.backbone}' in timm is a {type(classifier).__name__} and not one linear "
            "layer; export to onnx."
        )
    state = split_qkv_biases(backbone.state_dict(), set(target.timm_model.state_dict()))
    target.timm_model.load_state_dict(state, strict=False)
    classifier.load_state_dict(model.head.state_dict())
    return target


def _with_vision_config(config: PreTrainedConfig, *, whole: type[PreTrainedConfig]) -> PreTrainedConfig:
    """The configuration of both towers, of which the image classifier has one."""
    return whole(vision_config=getattr(config, "vision_config", config).to_dict(), text_config={})


_clip = ExportTarget(
    CLIPForImageClassification, reads={"mean": 0}, make_config=partial(_with_vision_config, whole=CLIPConfig)
)
_siglip = ExportTarget(
    SiglipForImageClassification,
    "vision_model",
    reads={"mean": 0},
    make_config=partial(_with_vision_config, whole=SiglipConfig),
)
_both = {None: 0, "cls": 0, "pooler": 0, "mean": 1}

# By the architecture of the backbone: (merged classifier) -> model of transformers. A new one is one entry.
TARGETS: dict[str, Callable[[LongTailClassifier], PreTrainedModel]] = {
    "vit": ExportTarget(ViTForImageClassification, "vit"),
    "deit": ExportTarget(DeiTForImageClassification, "deit"),
    "vit_msn": ExportTarget(ViTMSNForImageClassification, "vit", reads={"cls": 0}),
    "vit_mae": ExportTarget(
        ViTForImageClassification,
        "vit",
        make_config=lambda config: ViTConfig(
            **{name: value for name, value in config.to_dict().items() if name in ViTConfig().to_dict()}
            | {"model_type": "vit"}
        ),
    ),
    "ijepa": ExportTarget(IJepaForImageClassification, "ijepa", reads={"mean": 0}),
    "beit": ExportTarget(BeitForImageClassification, "beit", reads={None: 0, "pooler": 0}),
    "data2vec-vision": ExportTarget(
        Data2VecVisionForImageClassification, "data2vec_vision", reads={None: 0, "pooler": 0}
    ),
    "dinov2": ExportTarget(Dinov2ForImageClassification, "dinov2", reads=_both, parts=2),
    "dinov2_with_registers": ExportTarget(
        Dinov2WithRegistersForImageClassification, "dinov2_with_registers", reads=_both, parts=2
    ),
    "swin": ExportTarget(SwinForImageClassification, "swin", reads={"pooler": 0}),
    "clip": _clip,
    "clip_vision_model": _clip,
    "siglip": _siglip,
    "siglip_vision_model": _siglip,
    "timm:timm": _build_timm,
}


def _choose_target(model: LongTailClassifier) -> Callable[[LongTailClassifier], PreTrainedModel]:
    """The entry of `TARGETS` for a classifier.

    Raises:
        ValueError: If there is none, or it cannot give the same logits.
    """
    config = model.config
    if config.backbone_family not in TARGETS:
        others = "open_clip or onnx" if config.backbone_family.startswith("open_clip") else "onnx"
        raise ValueError(
            f"transformers has no image classifier for the backbone '{config.backbone}' ({config.backbone_family}); "
            f"export to {others}."
        )
    if config.head != "linear":
        raise ValueError(
            f"The head is {config.head!r}, and an image classifier of transformers multiplies plain features; train "
            "with head linear, or export to onnx, or, with a backbone that has a text tower, to open_clip."
        )
    target = TARGETS[config.backbone_family]
    if isinstance(target, ExportTarget) and config.backbone_features not in target.reads:
        given = config.backbone_features or "that are usual"
        known = " or ".join(name for name in target.reads if name)
        raise ValueError(
            f"The classifier reads the features {given} of '{config.backbone}', and {target.model_type.__name__} "
            f"reads others; train with backbone_features {known}, or export to onnx."
        )
    return target


@torch.no_grad()
def resized_positions(model: LongTailClassifier, size: int) -> dict[str, Tensor]:
    """The table of positions as the backbone itself interpolates it, by its name; nothing where it has none.

    Args:
        model (`LongTailClassifier`): With a backbone of a family whose `image_sizes` is "interpolated".
        size (`int`): Side of the images in pixels.
    """
    backbone = model.backbone
    name, module = next((n, m) for n, m in backbone.named_modules() if hasattr(m, "interpolate_pos_encoding"))
    is_embedding = hasattr(module, "position_embedding")
    table = module.position_embedding.weight[None] if is_embedding else module.position_embeddings
    if table is None:  # in Swin, whose biases are of positions within a window
        return {}
    height, width = model.family.input_size(backbone)
    patch = backbone.config.patch_size
    others = table.shape[1] - (height // patch) * (width // patch)  # of the tokens that are no patches
    tokens = table.new_empty(1, others + (size // patch) ** 2, table.shape[2])
    new = module.interpolate_pos_encoding(tokens, size, size)
    return {f"{name}.position_embedding.weight": new[0]} if is_embedding else {f"{name}.position_embeddings": new}
