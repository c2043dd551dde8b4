"""Backbones of transformers: one `TransformersFamily` an architecture; a new one is one entry in this file."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from math import prod
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    BaseImageProcessor,
    BeitModel,
    CLIPVisionModelWithProjection,
    Data2VecVisionModel,
    DeiTModel,
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedConfig,
    SiglipVisionModel,
    ViTMAEModel,
    ViTModel,
)
from transformers.utils import ModelOutput

from ...base.errors import one_line
from ...base.finding import check_repository
from ..foreign_config import check_model_config
from .protocol import LIBRARIES, BackboneFamily, Library, UnknownFeaturesError, check_path, register_library
from .text_tower import TextTower
from .transformers_text import load_clip_text, load_siglip_text

# Names under which a backbone that ships with the package is asked for.
EMBEDDED = {"tiny_clip": "assets/tiny_clip"}


# How features are read from the output of a vision model, by the name that users write: (output, number of patches) ->
# features of shape (B, D). Where the output is (B, T, D), the patches are the last of its T tokens.
Reading = Callable[[ModelOutput, int], Tensor]


def _tokens(output: ModelOutput) -> Tensor:
    tokens = output.last_hidden_state
    if tokens.ndim != 3:
        raise ValueError(
            f"The backbone gives a {type(output).__name__} whose last_hidden_state has the shape "
            f"{tuple(tokens.shape)}, which is no sequence of tokens (B, T, D); set its features to pooler."
        )
    return tokens


def _class_token(output: ModelOutput, patches: int) -> Tensor:
    return _tokens(output)[:, 0]


def _patch_mean(output: ModelOutput, patches: int) -> Tensor:
    return _tokens(output)[:, -patches:].mean(dim=1)


def _pooled(output: ModelOutput, patches: int) -> Tensor:
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        raise ValueError(
            f"The backbone gives a {type(output).__name__} without pooler_output; set its features to cls or mean."
        )
    return pooled.flatten(1)


READINGS: dict[str, Reading] = {"cls": _class_token, "mean": _patch_mean, "pooler": _pooled}


@dataclass(frozen=True)
class TransformersFamily(BackboneFamily):
    """How the models of one architecture are loaded and turned into features.

    Attributes:
        from_pretrained (`Callable`): Of the vision model, whose keywords it takes.
        reading (`Callable`): (output of the vision model, patches in an image) -> features of shape (B, D).
        size (`Callable`): Configuration -> D.
        image_sizes (`str`): "any", where the model takes other image sizes than its own; "interpolated", where it
            takes them when told to interpolate its positions; "own", where it does not.
        load_text (`Callable`, *optional*): Name or path -> the text tower, see `transformers_text.py`, where class
            names can be encoded into the space of the features.
        allowed_missing (`tuple[str, ...]`): Parts of the names of weights that checkpoints may leave at their start.
        refused (mapping): Name of inserted modules that the model cannot take -> the reason, as "it ...".
    """

    from_pretrained: Callable[..., nn.Module]
    reading: Reading = _class_token
    size: Callable[[PreTrainedConfig], int] = lambda config: config.hidden_size
    image_sizes: str = "any"
    load_text: Callable[[str], TextTower] | None = None
    allowed_missing: tuple[str, ...] = ("mask_token",)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_text_tower(self) -> bool:
        return self.load_text is not None

    def load(self, name: str, *, dtype: torch.dtype, image_size: int | None) -> nn.Module:
        self._check_image_size(load_config(name), image_size)
        with quiet_loading():
            backbone, report = self.from_pretrained(resolve_name(name), dtype=dtype, output_loading_info=True)
        missing = sorted(
            key for key in report["missing_keys"] if not any(part in key for part in self.allowed_missing)
        )
        if missing:
            raise ValueError(
                f"The backbone '{name}' has no weights for {missing[0]!r} (and {len(missing) - 1} others) of a "
                f"{type(backbone).__name__}, which would stay random; choose a checkpoint that holds them."
            )
        return backbone

    def _check_image_size(self, config: PreTrainedConfig, image_size: int | None) -> None:
        own = getattr(config, "image_size", None)
        if self.image_sizes == "own" and image_size is not None and own not in (image_size, [image_size] * 2):
            raise ValueError(
                f"image_size is {image_size}, and a {config.model_type!r} model takes images of {own} pixels only, "
                "as it cannot interpolate its positions; leave image_size out."
            )

    def features(self, backbone: nn.Module, pixel_values: Tensor, *, resized: bool) -> Tensor:
        options = {"interpolate_pos_encoding": True} if resized and self.image_sizes == "interpolated" else {}
        patches = _count_patches(backbone.config, pixel_values)
        return self.reading(backbone(pixel_values=pixel_values, **options), patches)

    def feature_size(self, backbone: nn.Module) -> int:
        return self.size(backbone.config)

    def hidden_size(self, backbone: nn.Module) -> int:
        return backbone.config.hidden_size

    def patch_area(self, backbone: nn.Module) -> int:
        size = backbone.config.patch_size
        return size**2 if isinstance(size, int) else prod(size)

    def input_size(self, backbone: nn.Module) -> tuple[int, int]:
        size = getattr(backbone.config, "image_size", 224)
        return (size, size) if isinstance(size, int) else tuple(size)

    def text_tower(self, name: str) -> TextTower:
        if self.load_text is None:
            return super().text_tower(name)
        with quiet_loading():
            return self.load_text(resolve_name(name))

    def blocks(self, backbone: nn.Module) -> nn.ModuleList:
        return find_blocks(backbone)

    def wrap_mlp(self, block: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
        if hasattr(block, "mlp") or not hasattr(block, "intermediate"):
            return super().wrap_mlp(block, wrap)
        # As in Data2Vec, which has the second layer in `output`, behind which may be the residual connection.
        block.intermediate = wrap(nn.Sequential(block.intermediate, block.output.dense))
        block.output.dense = nn.Identity()

    def unsupported(self, backbone: nn.Module) -> Mapping[str, str]:
        return self.refused


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The blocks of a model of transformers: the one list of modules that is as long as the configuration says the
    model is deep.

    There is none in a model of stages, as Swin, whose sequences shrink from stage to stage.

    Raises:
        ValueError: If there are none.
    """
    config = getattr(model, "config", None)
    config = getattr(config, "vision_config", config)
    depth = None if hasattr(config, "depths") else getattr(config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"The backbone, a {type(model).__name__}, has no transformer blocks for adapters or prompts to act on; "
        "choose another tuning method."
    )


def _count_patches(config: PreTrainedConfig, pixel_values: Tensor) -> int:
    """How many patches the images are cut into, 1 where the model says nothing of patches."""
    size = getattr(config, "patch_size", None) or tuple(pixel_values.shape[-2:])
    height, width = (size, size) if isinstance(size, int) else size
    return (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)


_NO_PROMPTS = {"prompts": "has a position bias for each pair of its own tokens, in which prompts have no place"}

# By the model_type of the configuration. A new architecture is one entry, here or, in your own code,
# BACKBONE_FAMILIES["its_model_type"] = TransformersFamily(...).
BACKBONE_FAMILIES: dict[str, TransformersFamily] = {
    "vit": TransformersFamily(partial(ViTModel.from_pretrained, add_pooling_layer=False), image_sizes="interpolated"),
    "deit": TransformersFamily(
        partial(DeiTModel.from_pretrained, add_pooling_layer=False), image_sizes="interpolated"
    ),
    "beit": TransformersFamily(
        BeitModel.from_pretrained,
        reading=_pooled,  # the normalised mean of the patches, or the class token where use_mean_pooling is False
        allowed_missing=("mask_token", "pooler.layernorm"),
        refused=_NO_PROMPTS,
    ),
    "data2vec-vision": TransformersFamily(
        partial(Data2VecVisionModel.from_pretrained, add_pooling_layer=True),
        reading=_pooled,  # as BEiT
        allowed_missing=("mask_token", "pooler.layernorm"),
        refused=_NO_PROMPTS,
    ),
    "vit_mae": TransformersFamily(partial(ViTMAEModel.from_pretrained, mask_ratio=0.0), image_sizes="interpolated"),
    "dinov2": TransformersFamily(Dinov2Model.from_pretrained),
    "dinov2_with_registers": TransformersFamily(Dinov2WithRegistersModel.from_pretrained),
    "dinov3_vit": TransformersFamily(DINOv3ViTModel.from_pretrained),
    "clip": TransformersFamily(
        CLIPVisionModelWithProjection.from_pretrained,
        reading=lambda output, patches: output.image_embeds,
        size=lambda config: config.projection_dim,
        image_sizes="interpolated",
        load_text=load_clip_text,
    ),
    "siglip": TransformersFamily(  # and SigLIP 2 of one fixed image size
        SiglipVisionModel.from_pretrained,
        reading=_pooled,
        size=lambda config: getattr(config, "vision_config", config).hidden_size,
        image_sizes="interpolated",
        load_text=load_siglip_text,
    ),
}
for _name in ("clip", "siglip"):
    BACKBONE_FAMILIES[f"{_name}_vision_model"] = replace(BACKBONE_FAMILIES[_name], load_text=None)


@register_library("")
class Transformers(Library):
    """Models of transformers, by Hub name, path, or the name of an embedded one."""

    def find(self, name: str, features: str | None) -> tuple[str, BackboneFamily]:
        architecture = load_config(name).model_type
        return architecture, self.choose(architecture, features, backbone=name)

    def choose(self, architecture: str, features: str | None, *, backbone: str) -> BackboneFamily:
        if features is None:
            if architecture not in BACKBONE_FAMILIES:
                raise UnknownFeaturesError(
                    f"The backbone '{backbone}' is a {architecture!r} model; supported are "
                    f"{', '.join(BACKBONE_FAMILIES)}, and with features= one of {', '.join(READINGS)} any other model "
                    "of transformers that takes images alone and gives a sequence of tokens."
                )
            return BACKBONE_FAMILIES[architecture]
        if features not in READINGS:
            raise ValueError(f"Unknown features {features!r} of a backbone; choose one of {', '.join(READINGS)}.")
        family = BACKBONE_FAMILIES.get(architecture) or _family_of_auto_model(architecture, backbone)
        refused = dict(family.refused)
        if features == "mean":
            refused.setdefault("prompts", "has the mean of its tokens as features, which prompts would shift")
        return replace(
            family,
            reading=READINGS[features],
            size=lambda config: getattr(config, "vision_config", config).hidden_size,
            load_text=None,
            allowed_missing=family.allowed_missing if features == "pooler" else (*family.allowed_missing, "pooler."),
            refused=refused,
        )

    def image_processor(self, name: str) -> BaseImageProcessor:
        return read_image_processor(resolve_name(name))


def read_image_processor(name: str, *, revision: str | None = None) -> BaseImageProcessor:
    """The image processor that is saved in a folder or a Hub repository.

    Raises:
        OSError: If there is none.
        ValueError: If its configuration is not one that is read, see `check_model_config`.
    """
    for file in ("preprocessor_config.json", "processor_config.json"):
        check_model_config(name, file, revision=revision)
    return AutoImageProcessor.from_pretrained(name, revision=revision or "main", trust_remote_code=False)


def _family_of_auto_model(architecture: str, backbone: str) -> BackboneFamily:
    """What `AutoModel` builds of an architecture that has no entry."""
    model_class = MODEL_MAPPING.get(CONFIG_MAPPING[architecture], None) if architecture in CONFIG_MAPPING else None
    parameters = inspect.signature(model_class.forward).parameters if model_class else {}
    needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if not needed <= {"self", "pixel_values"} or getattr(model_class, "main_input_name", "") != "pixel_values":
        raise ValueError(
            f"The backbone '{backbone}' is a {architecture!r} model, which takes something else than images alone; "
            f"choose a model that does not, as {', '.join(BACKBONE_FAMILIES)}."
        )
    image_sizes = "interpolated" if "interpolate_pos_encoding" in parameters else "own"
    return TransformersFamily(model_class.from_pretrained, image_sizes=image_sizes)


def resolve_name(name: str, *, what: str = "The backbone") -> str:
    """Path of an embedded backbone, or the Hub name or path as it is; `what` it is called in error messages.

    Raises:
        FileNotFoundError: If `name` is neither a path that exists nor a repository of the Hub.
    """
    if name in EMBEDDED:
        return str(files("ft_focalsam") / EMBEDDED[name])
    path, prefix = check_path(name, what=what), name.partition(":")[0]
    if prefix != name and not Path(path).exists():
        known = ", ".join(f"{library}:" for library in LIBRARIES if library)
        raise FileNotFoundError(f"{what} '{name}' begins with '{prefix}:'; the libraries of backbones are {known}.")
    if not Path(path).exists():
        check_repository(what, name, known=EMBEDDED)
    return path


def load_config(name: str) -> PreTrainedConfig:
    """Configuration of a backbone.

    Raises:
        OSError: If it can neither be found locally nor fetched.
        ValueError: If it is not one that is read, see `check_model_config`, or brings its own code.
    """
    path = resolve_name(name)
    check_model_config(path)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"The backbone '{name}' brings its own code, which is not run; choose a model whose architecture is part "
            "of transformers."
        ) from error
    except OSError as error:
        raise OSError(
            f"The backbone '{name}' could not be loaded ({one_line(error)}); give a model of transformers, or use one "
            f"that ships with the package: {', '.join(EMBEDDED)}."
        ) from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No report on the weights of the other tower, which a checkpoint holds and one tower leaves."""
    verbosity = transformers.logging.get_verbosity()
    shows_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if shows_bars:
            transformers.logging.enable_progress_bar()
