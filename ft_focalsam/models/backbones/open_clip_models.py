"""Backbones of open_clip, by name: `open_clip:ViT-B-16@laion2b_s34b_b88k` with a tag of pretrained weights or a file
of them behind the @, `open_clip:hf-hub:owner/repository`, or `open_clip:path/to/folder` with an open_clip_config.json.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import open_clip
import torch
from huggingface_hub.errors import HTTPError
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ...base.errors import nearest, one_line
from ...base.finding import check_repository
from ..foreign_config import check_model_config
from .protocol import BackboneFamily, Library, check_path, register_library
from .split_attention import split_attention
from .text_tower import TextTower
from .timm_models import HUB, TimmFamily, call_qkv_layers, make_image_processor


class OpenClipFamily(BackboneFamily):
    """Image towers of open_clip, whose projected features lie in the space of the texts.

    Their `nn.MultiheadAttention` is taken apart into linear layers, see `split_attention.py`. An image tower that is a
    timm model inside (`TimmModel`) is tuned as one of timm's.
    """

    has_text_tower = True
    _timm = TimmFamily()

    def load(self, name: str, *, dtype: torch.dtype, image_size: int | None) -> nn.Module:
        visual = create_open_clip(name, image_size=image_size).visual
        if getattr(visual, "output_tokens", False):  # CoCa, which also wants the tokens
            visual.output_tokens = False
        return call_qkv_layers(split_attention(visual)).to(dtype)

    def features(self, backbone: nn.Module, pixel_values: Tensor, *, resized: bool) -> Tensor:
        return backbone(pixel_values)

    @torch.no_grad()
    def feature_size(self, backbone: nn.Module) -> int:
        if hasattr(backbone, "output_dim"):
            return backbone.output_dim
        parameter = next(backbone.parameters())
        height, width = backbone.image_size
        return backbone(torch.zeros(1, 3, height, width).to(parameter)).shape[1]

    def hidden_size(self, backbone: nn.Module) -> int:
        return self._timm.hidden_size(backbone.trunk) if hasattr(backbone, "trunk") else backbone.transformer.width

    def patch_area(self, backbone: nn.Module) -> int:
        return self._timm.patch_area(backbone.trunk) if hasattr(backbone, "trunk") else prod(backbone.patch_size)

    def input_size(self, backbone: nn.Module) -> tuple[int, int]:
        size = backbone.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def text_tower(self, name: str) -> TextTower:
        model = create_open_clip(name)
        for part in ("visual", "text_decoder"):  # of which the latter is CoCa's
            if hasattr(model, part):
                delattr(model, part)
        encoder = EncodeText(model)
        tokenizer = open_clip.get_tokenizer(split_weights(name)[0], context_length=model.context_length)
        inside = getattr(model, "text", model)
        embedding = inside.token_embedding if hasattr(inside, "token_embedding") else None
        if embedding is None:  # a text model of transformers
            embedding = inside.transformer.get_input_embeddings()
        return TextTower(
            split_attention(encoder), lambda prompts: {"text": tokenizer(list(prompts))}, embedding=embedding
        )

    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        if hasattr(backbone, "trunk"):
            return self._timm.blocks(backbone.trunk)
        blocks = getattr(getattr(backbone, "transformer", None), "resblocks", None)
        if blocks is None:
            raise ValueError(
                f"The backbone, a {type(backbone).__name__}, has no transformer blocks for adapters or prompts to act "
                "on; choose another tuning method."
            )
        return blocks

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        return self._timm.num_prefix_tokens(backbone.trunk) if hasattr(backbone, "trunk") else 1

    def unsupported(self, backbone: nn.Module) -> Mapping[str, str]:
        if hasattr(backbone, "trunk"):
            return self._timm.unsupported(backbone.trunk)
        if getattr(backbone, "pool_type", "") == "avg":
            return {"prompts": "has the mean of its tokens as features, which prompts would shift"}
        return {}

    def set_gradient_checkpointing(self, backbone: nn.Module, enable: bool) -> bool:
        backbone.set_grad_checkpointing(enable)
        return True


class EncodeText(nn.Module):
    """The text side of an open_clip model as a module: token ids (C, T) to features (C, D), not normalised."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip  # a name that peft does not use for its own parts

    def forward(self, text: Tensor) -> Tensor:
        return self.clip.encode_text(text)


@register_library("open_clip")
class OpenClip(Library):
    """Any model of `open_clip.create_model` by name."""

    def find(self, name: str, features: str | None) -> tuple[str, BackboneFamily]:
        check_open_clip_name(name)
        return "open_clip", self.choose("open_clip", features, backbone=name)

    def choose(self, architecture: str, features: str | None, *, backbone: str) -> BackboneFamily:
        if features is not None:
            raise ValueError(f"The features of '{backbone}' are open_clip's own; leave backbone_features out.")
        return OpenClipFamily()

    def image_processor(self, name: str) -> BaseImageProcessor:
        wanted = create_open_clip(name, load_weights=False).visual.preprocess_cfg
        size = wanted["size"]
        return make_image_processor(
            (size, size) if isinstance(size, int) else tuple(size),
            mean=wanted["mean"],
            std=wanted["std"],
            interpolation=wanted["interpolation"],
            mode=wanted["resize_mode"],
            name=name,
        )


def split_weights(name: str) -> tuple[str, str | None]:
    """Name of a model as `open_clip.create_model` takes it, and the tag or file of its weights if there is one."""
    model, _, weights = name.partition("@")
    path = Path(check_path(model))
    if path.is_dir():
        model, weights = f"local-dir:{path}", ""
    for file in ("open_clip_config.json", "tokenizer_config.json") if ":" in model else ():
        check_model_config(model.partition(":")[2], file)
    return model, check_path(weights) if weights else None


def create_open_clip(name: str, *, image_size: int | None = None, load_weights: bool = True) -> nn.Module:
    """A whole open_clip model in float32.

    Args:
        name (`str`): As at the top of this file, without the prefix of the library.
        image_size (`int`, *optional*): Side of the images in pixels, by default the model's own.
        load_weights (`bool`): Whether to load its weights, which otherwise are random.

    Raises:
        ValueError: If open_clip does not know the name, or weights are missing or do not fit.
        OSError: If they can neither be found locally nor fetched.
    """
    check_open_clip_name(name)
    model, weights = split_weights(name)
    try:
        return open_clip.create_model(
            model,
            pretrained=weights,
            force_image_size=image_size,
            load_weights=load_weights,
            require_pretrained=load_weights,
            weights_only=True,
        )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"open_clip has no usable model '{name}': {one_line(error)}; open_clip.list_pretrained() lists them."
        ) from error
    except (OSError, HTTPError) as error:
        raise OSError(
            f"The weights of the backbone 'open_clip:{name}' could not be fetched ({one_line(error)}); check the name "
            "and the network, or give a file of them behind the @."
        ) from error


def check_open_clip_name(name: str) -> None:
    """See that open_clip knows a model and the tag of its weights, before anything is built.

    Raises:
        ValueError: If it does not; names the nearest that it knows.
        FileNotFoundError: If a path does not exist.
    """
    model, weights = split_weights(name)
    if model.startswith(HUB):
        check_repository("The backbone", model.removeprefix(HUB))
    if ":" in model:
        return
    if model not in open_clip.list_models():
        like = ", ".join(nearest(model, open_clip.list_models(), count=3))
        raise ValueError(
            f"open_clip has no usable model '{name}': it has no '{model}'{f' (but {like})' if like else ''}; "
            "open_clip.list_pretrained() lists them."
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights is None or not (weights in tags or Path(weights).is_file()):
        problem = "names no weights" if weights is None else f"names the weights '{weights}', which do not exist"
        raise ValueError(
            f"The backbone 'open_clip:{name}' {problem}; write open_clip:{model}@TAG with one of its tags "
            f"({', '.join(tags) or 'none known'}) or a file, or open_clip:hf-hub:OWNER/REPOSITORY."
        )
