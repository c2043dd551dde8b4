"""Backbones: any pretrained vision model as a map from pictures to one feature vector each.

A backbone is described by one `BackboneFamily`; a new architecture of transformers is one entry in this file.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    CLIPVisionModelWithProjection,
    Dinov2Model,
    PreTrainedConfig,
    ViTModel,
)

# Names under which a backbone that ships with the package is asked for.
EMBEDDED = {"tiny_clip": "assets/tiny_clip"}

DTYPES = ("float32", "bfloat16", "float16")


def _find_blocks(backbone: nn.Module) -> nn.ModuleList:
    """The one list of modules that is as long as the configuration says the model is deep."""
    depth = getattr(getattr(backbone, "config", None), "num_hidden_layers", None)
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
    else:  # a ViT of older transformers, which has the second layer beside the residual connection, in `output`
        block.intermediate = wrap(nn.Sequential(block.intermediate, block.output.dense))
        block.output.dense = nn.Identity()


@dataclass(frozen=True)
class BackboneFamily:
    """How the models of one architecture are loaded and turned into features.

    Attributes:
        load (`Callable`): (name or path, **keywords of `from_pretrained`) -> the vision model.
        features (`Callable`): Output of the vision model -> features of shape (B, D).
        feature_size (`Callable`): Configuration -> D.
        interpolates (`bool`): Whether the model takes other image sizes only when told to interpolate its positions.
        has_text_tower (`bool`): Whether class names can be encoded into the same space (`models/text.py`).
        blocks (`Callable`): The vision model -> its list of transformer blocks, in order; entries may be replaced.
        wrap_mlp (`Callable`): (block, function) -> None; puts function(MLP) in the place of the MLP of a block.
    """

    load: Callable[..., nn.Module]
    features: Callable[..., Tensor]
    feature_size: Callable[[PreTrainedConfig], int]
    interpolates: bool = False
    has_text_tower: bool = False
    blocks: Callable[[nn.Module], nn.ModuleList] = _find_blocks
    wrap_mlp: Callable[[nn.Module, Callable[[nn.Module], nn.Module]], None] = _wrap_mlp


def _load_vit(name: str, **keywords) -> nn.Module:
    return ViTModel.from_pretrained(name, add_pooling_layer=False, **keywords)


BACKBONE_FAMILIES: dict[str, BackboneFamily] = {
    "vit": BackboneFamily(
        load=_load_vit,
        features=lambda output: output.last_hidden_state[:, 0],
        feature_size=lambda config: config.hidden_size,
        interpolates=True,
    ),
    "dinov2": BackboneFamily(
        load=Dinov2Model.from_pretrained,
        features=lambda output: output.last_hidden_state[:, 0],
        feature_size=lambda config: config.hidden_size,
    ),
    "clip": BackboneFamily(
        load=CLIPVisionModelWithProjection.from_pretrained,
        features=lambda output: output.image_embeds,
        feature_size=lambda config: config.projection_dim,
        interpolates=True,
        has_text_tower=True,
    ),
}
BACKBONE_FAMILIES["clip_vision_model"] = replace(BACKBONE_FAMILIES["clip"], has_text_tower=False)


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


def find_family(name: str) -> tuple[str, BackboneFamily]:
    """The family a backbone belongs to, by the model type in its configuration.

    Args:
        name (`str`): A Hub name, a path, or "tiny_clip".

    Returns:
        Name of the family, and the family.

    Raises:
        ValueError: If the architecture is not supported.
    """
    family = load_config(name).model_type
    if family not in BACKBONE_FAMILIES:
        raise ValueError(f"The backbone '{name}' is a {family!r} model; supported are {', '.join(BACKBONE_FAMILIES)}.")
    return family, BACKBONE_FAMILIES[family]


def load_backbone(name: str, *, dtype: str | torch.dtype = torch.float32) -> nn.Module:
    """Load the vision model of a backbone, all of its parameters frozen.

    Args:
        name (`str`): A Hub name, a path, or "tiny_clip".
        dtype (`torch.dtype` or `str`): Of the weights: float32, bfloat16 or float16.

    Raises:
        ValueError: If the dtype is unknown or the architecture is not supported.
        OSError: If the backbone can neither be found locally nor fetched.
    """
    _, family = find_family(name)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"The dtype of the backbone is {dtype!r}; choose one of {', '.join(DTYPES)}.")
        dtype = getattr(torch, dtype)
    with quiet_loading():
        return family.load(resolve_name(name), dtype=dtype).requires_grad_(False)


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
