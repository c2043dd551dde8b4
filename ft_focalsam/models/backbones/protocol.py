"""What the toolkit asks of a backbone, whatever library it comes from.

A library is one file beside this one: a `Library` registered under the prefix that users write in front of a name
("timm:vit_base_patch16_224.augreg_in21k"). Names without a prefix are those of transformers.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ...base.finding import did_you_mean
from ...base.registry import Registry
from .text_tower import TextTower

DTYPES = ("float32", "bfloat16", "float16")


class UnknownFeaturesError(ValueError):
    """An architecture whose feature vector has to be named."""


class BackboneFamily(ABC):
    """Vision models that are loaded, run and tuned in the same way.

    Where a method takes `backbone`, it is what `load` gave or a `PeftModel` around it.

    Attributes:
        has_text_tower (`bool`): Whether class names can be encoded into the space of the features.
    """

    has_text_tower = False

    @abstractmethod
    def load(self, name: str, *, dtype: torch.dtype, image_size: int | None) -> nn.Module:
        """The pretrained vision model, for images of `image_size` pixels a side if given.

        Raises:
            ValueError: If it does not take images of that size, or its checkpoint lacks weights.
            OSError: If it can neither be found locally nor fetched.
        """

    @abstractmethod
    def features(self, backbone: nn.Module, pixel_values: Tensor, *, resized: bool) -> Tensor:
        """Feature vectors of images, with gradients: (B, 3, H, W) to (B, D).

        Args:
            pixel_values (`Tensor`): In the dtype of the weights.
            resized (`bool`): Whether H and W may differ from the model's own.
        """

    @abstractmethod
    def feature_size(self, backbone: nn.Module) -> int:
        """D, the length of a feature vector."""

    @abstractmethod
    def hidden_size(self, backbone: nn.Module) -> int:
        """Length of the tokens in its blocks."""

    @abstractmethod
    def patch_area(self, backbone: nn.Module) -> int:
        """Pixels of a patch."""

    @abstractmethod
    def input_size(self, backbone: nn.Module) -> tuple[int, int]:
        """(height, width) in pixels of the images that the model as it was loaded is made for."""

    def text_tower(self, name: str) -> TextTower:
        """The text tower that belongs to the vision model, in evaluation mode, frozen, float32.

        Raises:
            ValueError: If there is none, or its tokenizer needs another package.
        """
        raise ValueError(f"The backbone '{name}' has no text tower; set head_start to class_means or linear_probe.")

    @abstractmethod
    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        """Its transformer blocks, in order; entries may be replaced.

        Raises:
            ValueError: If there are none.
        """

    def wrap_mlp(self, block: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Put wrap(MLP) in the place of the MLP of a block.

        Raises:
            ValueError: If the block has none.
        """
        if not hasattr(block, "mlp"):
            raise ValueError(
                f"The blocks of the backbone, {type(block).__name__}, have no MLP; choose another tuning method."
            )
        block.mlp = wrap(block.mlp)

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        """How many tokens at the front of the sequence keep their places when prompts come in."""
        return 1

    def unsupported(self, backbone: nn.Module) -> Mapping[str, str]:
        """Name of inserted modules that the model cannot take -> the reason, as "it ..."."""
        return {}

    def set_gradient_checkpointing(self, backbone: nn.Module, enable: bool) -> bool:
        """Switch activation checkpointing on or off; False where transformers' own switch is the one to use."""
        return False


class Library(ABC):
    """Where backbones come from.

    Attributes:
        is_pretrained (`bool`): Whether they come with weights; where these are random, a saved classifier holds all of
            them.
    """

    is_pretrained = True

    @abstractmethod
    def find(self, name: str, features: str | None) -> tuple[str, BackboneFamily]:
        """Architecture and family of a backbone.

        Args:
            name (`str`): What the user wrote behind the prefix.
            features (`str`, *optional*): "cls", "mean" or "pooler": which output is the feature vector of an image.

        Raises:
            ValueError: If the architecture is not supported or has no such features.
        """

    @abstractmethod
    def choose(self, architecture: str, features: str | None, *, backbone: str) -> BackboneFamily:
        """The family of an architecture that `find` gave; `backbone` is its name, for error messages."""

    @abstractmethod
    def image_processor(self, name: str) -> BaseImageProcessor:
        """How images are resized, cropped and normalised for a backbone, as an image processor of transformers."""


# By prefix, "" for names without one.
LIBRARIES: Registry[Library] = Registry("library of backbones")


def register_library(prefix: str) -> Callable[[type[Library]], type[Library]]:
    """Register a subclass of `Library` under the prefix of its names.

    Raises:
        ValueError: If the prefix is taken.
    """

    def decorate(library: type[Library]) -> type[Library]:
        LIBRARIES.register(prefix)(library())
        return library

    return decorate


def split_name(name: str) -> tuple[str, str]:
    """Prefix of the library, "" without one, and what is behind it."""
    prefix, colon, rest = str(name).partition(":")
    return (prefix, rest) if colon and prefix in LIBRARIES else ("", str(name))


def find_family(name: str, features: str | None = None) -> tuple[str, BackboneFamily]:
    """The family a backbone belongs to.

    Args:
        name (`str`): A Hub name, a path, "tiny_clip", or the prefix of another library and a name there.
        features (`str`, *optional*): As in `choose_family`.

    Returns:
        Name of the architecture, as `choose_family` takes it, and the family.

    Raises:
        ValueError: As `choose_family`.
        OSError: If the backbone can neither be found locally nor fetched.
    """
    prefix, rest = split_name(name)
    architecture, family = LIBRARIES[prefix].find(rest, features)
    return (f"{prefix}:{architecture}" if prefix else architecture), family


def choose_family(architecture: str, features: str | None = None, *, backbone: str = "") -> BackboneFamily:
    """The family of an architecture.

    Args:
        architecture (`str`): The model_type of its configuration, with the prefix of another library in front.
        features (`str`, *optional*): "cls" (the first token), "mean" (of the patch tokens) or "pooler" (the model's
            own pooler_output), to read features of a model of transformers in another way than usual, or to use any
            other `AutoModel` that takes images and gives a sequence of tokens.
        backbone (`str`): Its name, for error messages.

    Raises:
        ValueError: If the architecture is not supported or takes more than images, or `features` is unknown.
    """
    prefix, rest = split_name(architecture)
    return LIBRARIES[prefix].choose(rest, features, backbone=backbone)


def load_backbone(
    name: str,
    *,
    dtype: str | torch.dtype = torch.float32,
    features: str | None = None,
    image_size: int | None = None,
) -> nn.Module:
    """Load the vision model of a backbone, in evaluation mode, all of its parameters frozen.

    Args:
        name (`str`): As in `find_family`.
        dtype (`torch.dtype` or `str`): Of the weights: float32, bfloat16 or float16.
        features (`str`, *optional*): As in `choose_family`.
        image_size (`int`, *optional*): Side of the images in pixels; by default the model's own.

    Raises:
        ValueError: If the dtype is unknown, the architecture is not supported, it takes no images of that size, or
            weights are missing or no finite numbers.
        OSError: If the backbone can neither be found locally nor fetched.
    """
    _, family = find_family(name, features)
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"The dtype of the backbone is {dtype!r}; choose one of {', '.join(DTYPES)}.")
        dtype = getattr(torch, dtype)
    model = family.load(split_name(name)[1], dtype=dtype, image_size=image_size).eval().requires_grad_(False)
    for place, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"The weight '{place}' of the backbone '{name}' has entries that are no finite numbers; choose "
                "another checkpoint, or fetch it again."
            )
    return model


def check_image_size(family: BackboneFamily, backbone: nn.Module, image_size: int) -> None:
    """Refuse images of which the model would not see the right and the lower edge.

    Args:
        family (`BackboneFamily`): Of the backbone.
        backbone (`nn.Module`): As `load` gave it.
        image_size (`int`): Side of the images in pixels.

    Raises:
        ValueError: If patches of the model do not fill the images; names the nearest sizes that they fill.
    """
    try:
        side = math.isqrt(family.patch_area(backbone))
    except (AttributeError, TypeError):  # a network without patches of one size
        return
    if side and image_size % side:
        below, above = image_size // side * side, (image_size // side + 1) * side
        nearest = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"image_size is {image_size}, which the patches of the backbone, {side} pixels a side, do not fill, so "
            f"that the edge would be left out; set it to {nearest}."
        )


def load_image_processor(name: str) -> BaseImageProcessor:
    """The image processor that belongs to a backbone."""
    prefix, rest = split_name(name)
    return LIBRARIES[prefix].image_processor(rest)


def has_text_tower(name: str) -> bool:
    """Whether class names can be encoded into the space of a backbone's usual features."""
    try:
        return find_family(name)[1].has_text_tower
    except UnknownFeaturesError:
        return False


def is_pretrained(name: str) -> bool:
    """Whether a backbone, or one of an architecture, comes with weights, and not with random ones."""
    return LIBRARIES[split_name(name)[0]].is_pretrained


def load_text_tower(name: str) -> TextTower:
    """The text tower that belongs to a backbone.

    Raises:
        ValueError: If it has none, or its tokenizer needs another package.
    """
    return find_family(name)[1].text_tower(split_name(name)[1])


def check_path(name: str, *, what: str = "The backbone") -> str:
    """A path with ~ resolved, or the name as it is where it is none; `what` it is called in error messages.

    Raises:
        FileNotFoundError: If `name` is a path that does not exist.
    """
    path = Path(name).expanduser()
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{what} folder '{name}' does not exist; check the path.{did_you_mean(name)}")
    return str(path) if path.exists() else name
