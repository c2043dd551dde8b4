"""Backbones of timm, by name: `timm:vit_base_patch16_224.augreg2_in21k_ft_in1k`, `timm:hf-hub:owner/repository`,
`timm:path/to/folder` as timm's `save_for_hf` writes it, or `timm:vit_base_patch16_224@weights.safetensors`."""

from collections.abc import Mapping
from math import floor, prod
from pathlib import Path

import timm
import torch
from huggingface_hub.errors import HTTPError
from torch import Tensor, nn
from transformers import BaseImageProcessor, CLIPImageProcessor

from ...base.errors import nearest, one_line
from ...base.finding import check_repository
from ..foreign_config import check_model_config
from .protocol import BackboneFamily, Library, check_path, register_library

HUB = "hf-hub:"  # of names of repositories
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # PIL's numbers


class TimmFamily(BackboneFamily):
    """timm models, whose pooled features in front of their classifier are the feature vector of an image.

    Their memory has the layout that convolutions are fastest in (channels last).
    """

    def load(self, name: str, *, dtype: torch.dtype, image_size: int | None) -> nn.Module:
        model = call_qkv_layers(resize(create_timm(name, pretrained=True), name, image_size))
        return model.to(dtype=dtype, memory_format=torch.channels_last)

    def features(self, backbone: nn.Module, pixel_values: Tensor, *, resized: bool) -> Tensor:
        return backbone(pixel_values)

    def feature_size(self, backbone: nn.Module) -> int:
        return backbone.num_features

    def hidden_size(self, backbone: nn.Module) -> int:
        return backbone.embed_dim

    def patch_area(self, backbone: nn.Module) -> int:
        return prod(backbone.patch_embed.patch_size)

    def input_size(self, backbone: nn.Module) -> tuple[int, int]:
        size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
        return size or tuple(backbone.pretrained_cfg["input_size"][-2:])

    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        """Of a model that keeps one sequence of tokens from the first block to the last, as ViT, BEiT and EVA do."""
        blocks = getattr(backbone, "blocks", None)
        if not isinstance(blocks, (nn.ModuleList, nn.Sequential)) or not hasattr(backbone, "num_prefix_tokens"):
            raise ValueError(
                f"The backbone, a {type(backbone).__name__}, has no transformer blocks for adapters or prompts to act "
                "on; choose another tuning method."
            )
        return blocks

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        return max(1, backbone.num_prefix_tokens)

    def unsupported(self, backbone: nn.Module) -> Mapping[str, str]:
        if getattr(backbone, "rope", None) is not None:
            return {"prompts": "rotates the positions of its own tokens, in which prompts have no place"}
        if any("rel_pos" in name or "relative_position" in name for name, _ in backbone.named_parameters()):
            return {"prompts": "has a position bias for each pair of its own tokens, in which prompts have no place"}
        if getattr(backbone, "global_pool", "") not in ("token", "map"):
            return {"prompts": "has the mean of its tokens as features, which prompts would shift"}
        return {}

    def set_gradient_checkpointing(self, backbone: nn.Module, enable: bool) -> bool:
        backbone.set_grad_checkpointing(enable)
        return True


def resize(model: nn.Module, name: str, image_size: int | None) -> nn.Module:
    """The model set to images of `image_size` pixels a side if given; convolutional networks take any as they are.

    Raises:
        ValueError: If it takes no other size than its own.
    """
    if image_size is not None:
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=(image_size, image_size))
        elif model.pretrained_cfg.get("fixed_input_size", True):
            raise ValueError(
                f"image_size is {image_size}, and '{name}', a {type(model).__name__}, takes no other size than its "
                "own; leave image_size out."
            )
    return model


def call_qkv_layers(model: nn.Module) -> nn.Module:
    """Let the attention of BEiT and EVA call its layer `qkv`, in place.

    They keep the biases of queries and values apart and use the weight of the layer functionally, where no adapter
    around the layer would act. With the biases in the layer they call it.
    """
    for attention in model.modules():
        if isinstance(getattr(attention, "qkv", None), nn.Linear) and getattr(attention, "q_bias", None) is not None:
            biases = (attention.q_bias, attention.k_bias, attention.v_bias)
            attention.qkv.bias = nn.Parameter(torch.cat(biases).detach())
            attention.q_bias = attention.k_bias = attention.v_bias = None
    return model


def split_qkv_biases(state: dict[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    """The state dict of a model from `call_qkv_layers` under the names that it had before.

    Args:
        state (mapping): Tensors by name.
        names (`set[str]`): What the plain model calls its tensors; it has no place for a bias of the keys, which
            adds the same to every attention logit of a query.
    """
    plain: dict[str, Tensor] = {}
    for name, value in state.items():
        attention = name.removesuffix(".qkv.bias")
        if name not in names and attention != name and f"{attention}.q_bias" in names:
            plain[f"{attention}.q_bias"], _, plain[f"{attention}.v_bias"] = value.chunk(3)
        else:
            plain[name] = value
    return plain


@register_library("timm")
class Timm(Library):
    """Any ViT-like model of timm by name; others for the methods that need no transformer blocks."""

    def find(self, name: str, features: str | None) -> tuple[str, BackboneFamily]:
        check_timm_name(name, pretrained=True)
        return "timm", self.choose("timm", features, backbone=name)

    def choose(self, architecture: str, features: str | None, *, backbone: str) -> BackboneFamily:
        if features is not None:
            raise ValueError(f"The features of '{backbone}' are timm's own; leave backbone_features out.")
        return TimmFamily()

    def image_processor(self, name: str) -> BaseImageProcessor:
        data = timm.data.resolve_model_data_config(create_timm(name, pretrained=False))
        return make_image_processor(
            data["input_size"][-2:],
            mean=data["mean"],
            std=data["std"],
            interpolation=data["interpolation"],
            mode={"center": "shortest"}.get(data["crop_mode"], data["crop_mode"]),
            crop_share=data["crop_pct"],
            name=name,
        )


def create_timm(name: str, *, pretrained: bool) -> nn.Module:
    """A timm model without its classifier.

    Args:
        name (`str`): As at the top of this file, without the prefix of the library.
        pretrained (`bool`): Whether to load its weights.

    Raises:
        ValueError: If timm does not know the name, or the weights do not fit.
        OSError: If they can neither be found locally nor fetched.
    """
    model, weights = _split_file(name)
    options = {"pretrained_cfg_overlay": {"file": check_path(weights)}} if weights else {}
    path = Path(check_path(model))
    if path.is_dir():
        model = f"local-dir:{path}"
        check_model_config(str(path))
    elif ":" in model:
        repository, _, revision = model.partition(":")[2].partition("@")
        check_model_config(repository, revision=revision or None)
    try:
        return timm.create_model(model, pretrained=pretrained, num_classes=0, **options)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"timm has no usable model '{name}': {one_line(error)}; timm.list_models(pretrained=True) lists names."
        ) from error
    except (OSError, HTTPError) as error:
        raise OSError(
            f"The weights of the backbone '{name}' could not be fetched ({one_line(error)}); check the network, or "
            f"give a file of them: {model}@weights.safetensors."
        ) from error


def check_timm_name(name: str, *, pretrained: bool, others: tuple[str, ...] = ()) -> None:
    """See that timm knows an architecture and, if asked for, has weights of it, before anything is built.

    Args:
        name (`str`): As at the top of this file, without the prefix of the library.
        pretrained (`bool`): Whether weights are wanted.
        others (`tuple[str, ...]`): Names that would do beside those of timm.

    Raises:
        ValueError: If it does not; names the nearest that it knows.
        FileNotFoundError: If a path does not exist.
    """
    models = timm.models
    model, weights = _split_file(name)
    if weights and not Path(weights).expanduser().is_file():
        raise FileNotFoundError(f"The weights '{weights}' of the backbone '{name}' do not exist; check the path.")
    if model.startswith(HUB):
        check_repository("The backbone", model.removeprefix(HUB))
    if ":" in model or Path(check_path(model)).is_dir():
        return
    if "/" in model:
        raise FileNotFoundError(
            f"The backbone folder '{model}' does not exist; check the path, or write timm:{HUB}{model} for a "
            "repository of the Hub."
        )
    architecture, tag = models.split_model_name_tag(model)
    names = models.list_models(architecture + "*", pretrained=True)
    tags = [other.partition(".")[2] for other in names if other.partition(".")[0] == architecture]
    problem, remedy = "", "timm.list_models(pretrained=True) lists names"
    if not models.is_model(architecture):
        like = nearest(architecture, (*others, *models.list_models()), count=3)
        problem = "it has no such architecture" + (f" (but {', '.join(like)})" if like else "")
    elif tag and tag not in tags:
        problem, remedy = (
            f"it has no weights '{tag}'",
            f"write {architecture}.TAG with one of {', '.join(tags) or 'none'}",
        )
    elif pretrained and not (weights or tags) and architecture in models.list_models():  # not an old name
        problem, remedy = (
            "it has no weights",
            f"write {architecture}@FILE.safetensors, or scratch:{architecture} to train it",
        )
    if problem:
        raise ValueError(f"timm has no usable model '{name}': {problem}; {remedy}.")


def _split_file(name: str) -> tuple[str, str]:
    """A model and the file of its weights, "" where there is none."""
    model, _, file = name.partition("@") if ".safetensors" in name else (name, "", "")
    return model, file


def make_image_processor(
    size: tuple[int, int],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str,
    mode: str,
    crop_share: float = 1.0,
    name: str,
) -> BaseImageProcessor:
    """The settings of a library's evaluation transform as an image processor of transformers.

    Args:
        size (`tuple[int, int]`): (height, width) in pixels of what the model sees.
        mean, std (`tuple[float, ...]`): One a channel, of values from 0 to 1.
        interpolation (`str`): Of the resize: nearest, bilinear, bicubic or lanczos.
        mode (`str`): "shortest" resizes the shortest edge and crops, "squash" changes the ratio of the edges.
        crop_share (`float`, above 0, to 1): Side of the crop as a share of what it is cut from.
        name (`str`): Of the backbone, for error messages.

    Raises:
        ValueError: If the mode or the interpolation is another one, or a crop is not square.
    """
    if mode not in ("shortest", "squash") or (mode == "shortest" and size[0] != size[1]):
        raise ValueError(
            f"The backbone '{name}' wants images resized by {mode!r} to {size[0]} x {size[1]} pixels, which is not "
            "supported; choose another checkpoint."
        )
    if interpolation not in RESAMPLE:
        raise ValueError(f"The backbone '{name}' wants the interpolation {interpolation!r}, which is not supported.")
    height, width = (floor(side / crop_share) for side in size)
    return CLIPImageProcessor(
        size={"shortest_edge": min(height, width)} if mode == "shortest" else {"height": height, "width": width},
        resample=RESAMPLE[interpolation],
        do_center_crop=mode == "shortest" or crop_share < 1,
        crop_size={"height": size[0], "width": size[1]},
        image_mean=list(mean),
        image_std=list(std),
    )
