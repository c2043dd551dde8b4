"""Backbones: any pretrained vision model as a map from pictures to one feature vector each.

A backbone is described by one `BackboneFamily`; a new architecture of transformers is one entry in this file.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
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

from .text_towers import TextTower, load_clip_text, load_siglip_text

# Names under which a backbone that ships with the package is asked for.
EMBEDDED = {"tiny_clip": "assets/tiny_clip"}

DTYPES = ("float32", "bfloat16", "float16")


def _find_blocks(backbone: nn.Module) -> nn.ModuleList:
    """The one list of modules that is as long as the configuration says the model is deep.

    There is none in a model of stages, as Swin, whose sequences shrink from stage to stage.
    """
    config = getattr(backbone, "config", None)
    depth = None if hasattr(config, "depths") else getattr(config, "num_hidden_layers", None)
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"The backbone, a {type(backbone).__name__}, has no transformer blocks for adapters or prompts to act on; "
        "choose another tuning method."
    )


def _wrap_mlp(block: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
    if hasattr(block, "mlp"):
        block.mlp = wrap(block.mlp)
    elif not hasattr(block, "intermediate"):
        raise ValueError(
            f"The blocks of the backbone, {type(block).__name__}, have no MLP; choose another tuning method."
        )
    else:  # as in Data2Vec, which has the second layer in `output`, behind which may be the residual connection
        block.intermediate = wrap(nn.Sequential(block.intermediate, block.output.dense))
        block.output.dense = nn.Identity()


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
class BackboneFamily:
    """How the models of one architecture are loaded and turned into features.

    Attributes:
        load (`Callable`): `from_pretrained` of the vision model, whose keywords it takes.
        features (`Callable`): (output of the vision model, patches in a picture) -> features of shape (B, D).
        feature_size (`Callable`): Configuration -> D.
        image_sizes (`str`): "any", where the model takes other image sizes than its own; "interpolated", where it
            takes them when told to interpolate its positions; "own", where it does not.
        load_text (`Callable`, *optional*): Name or path -> the text tower, see `text_towers.py`, where class names
            can be encoded into the space of the features.
        blocks (`Callable`): The vision model -> its list of transformer blocks, in order; entries may be replaced.
        wrap_mlp (`Callable`): (block, function) -> None; puts function(MLP) in the place of the MLP of a block.
        may_lack (`tuple[str, ...]`): Parts of the names of weights that checkpoints may leave at their start.
        refuses (mapping): Name of inserted modules that the model cannot take -> the reason, as "it ...".
    """

    load: Callable[..., nn.Module]
    features: Reading = _class_token
    feature_size: Callable[[PreTrainedConfig], int] = lambda config: config.hidden_size
    image_sizes: str = "any"
    load_text: Callable[[str], TextTower] | None = None
    blocks: Callable[[nn.Module], nn.ModuleList] = _find_blocks
    wrap_mlp: Callable[[nn.Module, Callable[[nn.Module], nn.Module]], None] = _wrap_mlp
    may_lack: tuple[str, ...] = ("mask_token",)
    refuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_text_tower(self) -> bool:
        """Whether class names can be encoded into the space of the features."""
        return self.load_text is not None

    def run(self, backbone: nn.Module, pixel_values: Tensor, *, resized: bool) -> Tensor:
        """Feature vectors of pictures, with gradients: (B, 3, H, W) to (B, D).

        Args:
            backbone (`nn.Module`): What `load` gave, or a `PeftModel` around it.
            pixel_values (`Tensor`): In the dtype of the weights.
            resized (`bool`): Whether H and W may differ from the model's own.
        """
        options = {"interpolate_pos_encoding": True} if resized and self.image_sizes == "interpolated" else {}
        patches = _count_patches(backbone.config, pixel_values)
        return self.features(backbone(pixel_values=pixel_values, **options), patches)

    def check_image_size(self, config: PreTrainedConfig, image_size: int | None) -> None:
        """Raise a `ValueError` where the model takes no pictures of a side of `image_size` pixels."""
        own = getattr(config, "image_size", None)
        if self.image_sizes == "own" and image_size is not None and own not in (image_size, [image_size] * 2):
            raise ValueError(
                f"image_size is {image_size}, and a {config.model_type!r} model takes pictures of {own} pixels only, "
                "as it cannot interpolate its positions; leave image_size out."
            )

    def check_takes(self, name: str) -> None:
        """Raise a `ValueError` where inserted modules of that name do not go with the model."""
        if name in self.refuses:
            raise ValueError(f"The backbone takes no {name}: it {self.refuses[name]}; choose another tuning method.")


def _count_patches(config: PreTrainedConfig, pixel_values: Tensor) -> int:
    """How many patches the pictures are cut into, 1 where the model says nothing of patches."""
    size = getattr(config, "patch_size", None) or tuple(pixel_values.shape[-2:])
    height, width = (size, size) if isinstance(size, int) else size
    return (pixel_values.shape[-2] // height) * (pixel_values.shape[-1] // width)


_NO_PROMPTS = {"prompts": "has a position bias for each pair of its own tokens, in which prompts have no place"}

# By the model_type of the configuration. A new architecture is one entry, here or, in your own code,
# BACKBONE_FAMILIES["its_model_type"] = BackboneFamily(...).
BACKBONE_FAMILIES: dict[str, BackboneFamily] = {
    "vit": BackboneFamily(partial(ViTModel.from_pretrained, add_pooling_layer=False), image_sizes="interpolated"),
    "deit": BackboneFamily(partial(DeiTModel.from_pretrained, add_pooling_layer=False), image_sizes="interpolated"),
    "beit": BackboneFamily(
        BeitModel.from_pretrained,
        features=_pooled,  # the normalised mean of the patches, or the class token where use_mean_pooling is False
        may_lack=("mask_token", "pooler.layernorm"),
        refuses=_NO_PROMPTS,
    ),
    "data2vec-vision": BackboneFamily(
        partial(Data2VecVisionModel.from_pretrained, add_pooling_layer=True),
        features=_pooled,  # as BEiT
        may_lack=("mask_token", "pooler.layernorm"),
        refuses=_NO_PROMPTS,
    ),
    "vit_mae": BackboneFamily(partial(ViTMAEModel.from_pretrained, mask_ratio=0.0), image_sizes="interpolated"),
    "dinov2": BackboneFamily(Dinov2Model.from_pretrained),
    "dinov2_with_registers": BackboneFamily(Dinov2WithRegistersModel.from_pretrained),
    "dinov3_vit": BackboneFamily(DINOv3ViTModel.from_pretrained),
    "clip": BackboneFamily(
        CLIPVisionModelWithProjection.from_pretrained,
        features=lambda output, patches: output.image_embeds,
        feature_size=lambda config: config.projection_dim,
        image_sizes="interpolated",
        load_text=load_clip_text,
    ),
    "siglip": BackboneFamily(  # and SigLIP 2 of one fixed image size
        SiglipVisionModel.from_pretrained,
        features=_pooled,
        feature_size=lambda config: getattr(config, "vision_config", config).hidden_size,
        image_sizes="interpolated",
        load_text=load_siglip_text,
    ),
}
for _name in ("clip", "siglip"):
    BACKBONE_FAMILIES[f"{_name}_vision_model"] = replace(BACKBONE_FAMILIES[_name], load_text=None)


def choose_family(architecture: str, features: str | None = None, *, backbone: str = "") -> BackboneFamily:
    """The family of an architecture.

    Args:
        architecture (`str`): The model_type of its configuration.
        features (`str`, *optional*): "cls" (the first token), "mean" (of the patch tokens) or "pooler" (the model's
            own pooler_output), to read features of a supported architecture in another way than usual, or to use any
            other `AutoModel` that takes pictures and gives a sequence of tokens.
        backbone (`str`): Its name, for error messages.

    Raises:
        ValueError: If the architecture is not supported or takes more than pictures, or `features` is unknown.
    """
    if features is None:
        if architecture not in BACKBONE_FAMILIES:
            raise ValueError(
                f"The backbone '{backbone}' is a {architecture!r} model; supported are "
                f"{', '.join(BACKBONE_FAMILIES)}, and with features= one of {', '.join(READINGS)} any other model of "
                "transformers that takes pictures alone and gives a sequence of tokens."
            )
        return BACKBONE_FAMILIES[architecture]
    if features not in READINGS:
        raise ValueError(f"Unknown features {features!r} of a backbone; choose one of {', '.join(READINGS)}.")
    family = BACKBONE_FAMILIES.get(architecture) or _family_of_auto_model(architecture, backbone)
    refuses = dict(family.refuses)
    if features == "mean":
        refuses.setdefault("prompts", "has the mean of its tokens as features, which prompts would shift")
    return replace(
        family,
        features=READINGS[features],
        feature_size=lambda config: getattr(config, "vision_config", config).hidden_size,
        load_text=None,
        may_lack=family.may_lack if features == "pooler" else (*family.may_lack, "pooler."),
        refuses=refuses,
    )


def _family_of_auto_model(architecture: str, backbone: str) -> BackboneFamily:
    """What `AutoModel` builds of an architecture that has no entry."""
    model_class = MODEL_MAPPING.get(CONFIG_MAPPING[architecture], None) if architecture in CONFIG_MAPPING else None
    parameters = inspect.signature(model_class.forward).parameters if model_class else {}
    needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if not needed <= {"self", "pixel_values"} or getattr(model_class, "main_input_name", "") != "pixel_values":
        raise ValueError(
            f"The backbone '{backbone}' is a {architecture!r} model, which takes something else than pictures alone; "
            f"choose a model that does not, as {', '.join(BACKBONE_FAMILIES)}."
        )
    image_sizes = "interpolated" if "interpolate_pos_encoding" in parameters else "own"
    return BackboneFamily(model_class.from_pretrained, image_sizes=image_sizes)


def resolve_name(name: str) -> str:
    """Path of an embedded backbone, or the Hub name or path as it is.

    Raises:
        FileNotFoundError: If `name` is a path that does not exist.
    """
    if name in EMBEDDED:
        return str(files("ft_focalsam") / EMBEDDED[name])
    path = Path(name).expanduser()
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"The backbone folder '{name}' does not exist; check the path.")
    return str(path) if path.exists() else name


def load_config(name: str) -> PreTrainedConfig:
    """Configuration of a backbone.

    Raises:
        OSError: If it can neither be found locally nor fetched.
    """
    try:
        return AutoConfig.from_pretrained(resolve_name(name))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OSError(
            f"The backbone '{name}' could not be loaded: it is neither a local folder nor to be had from the Hub; "
            f"check the name and the network, or use one that ships with the package: {', '.join(EMBEDDED)}."
        ) from error


def find_family(name: str, features: str | None = None) -> tuple[str, BackboneFamily]:
    """The family a backbone belongs to, by the model type in its configuration.

    Args:
        name (`str`): A Hub name, a path, or "tiny_clip".
        features (`str`, *optional*): As in `choose_family`.

    Returns:
        Name of the architecture, and the family.

    Raises:
        ValueError: As `choose_family`.
    """
    architecture = load_config(name).model_type
    return architecture, choose_family(architecture, features, backbone=name)


def load_backbone(name: str, *, dtype: str | torch.dtype = torch.float32, features: str | None = None) -> nn.Module:
    """Load the vision model of a backbone, all of its parameters frozen.

    Args:
        name (`str`): A Hub name, a path, or "tiny_clip".
        dtype (`torch.dtype` or `str`): Of the weights: float32, bfloat16 or float16.
        features (`str`, *optional*): As in `choose_family`.

    Raises:
        ValueError: If the dtype is unknown, the architecture is not supported, or weights are missing.
        OSError: If the backbone can neither be found locally nor fetched.
    """
    _, family = find_family(name, features)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"The dtype of the backbone is {dtype!r}; choose one of {', '.join(DTYPES)}.")
        dtype = getattr(torch, dtype)
    with quiet_loading():
        backbone, report = family.load(resolve_name(name), dtype=dtype, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if not any(part in key for part in family.may_lack))
    if missing:
        raise ValueError(
            f"The backbone '{name}' has no weights for {missing[0]!r} (and {len(missing) - 1} others) of a "
            f"{type(backbone).__name__}, which would stay random; choose a checkpoint that holds them."
        )
    return backbone.requires_grad_(False)


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


def load_image_processor(name: str):
    """The image processor that belongs to a backbone."""
    return AutoImageProcessor.from_pretrained(resolve_name(name))
