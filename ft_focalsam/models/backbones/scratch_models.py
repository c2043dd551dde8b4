"""Networks with random weights, to train from scratch: `scratch:resnet32`, the one for 32-pixel images of the
long-tail literature, or any architecture of timm, `scratch:resnet50`, `scratch:resnext50_32x4d`."""

import torch
from torch import Tensor, nn
from transformers import BaseImageProcessor

from ..resnet import ResNet32
from .protocol import BackboneFamily, Library, register_library
from .timm_models import Timm, TimmFamily, check_timm_name, create_timm, make_image_processor, resize

# Of CIFAR's images, values from 0 to 1, as the long-tail literature writes them.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class ResNet32Family(BackboneFamily):
    """The ResNet-32 of `resnet.py`, in the layout of memory that convolutions are fastest in (channels last)."""

    def load(self, name: str, *, dtype: torch.dtype, image_size: int | None) -> nn.Module:
        return ResNet32().to(dtype=dtype, memory_format=torch.channels_last)

    def features(self, backbone: nn.Module, pixel_values: Tensor, *, resized: bool) -> Tensor:
        return backbone(pixel_values)

    def feature_size(self, backbone: nn.Module) -> int:
        return backbone.num_features

    def hidden_size(self, backbone: nn.Module) -> int:
        return backbone.num_features

    def patch_area(self, backbone: nn.Module) -> int:
        return 1

    def input_size(self, backbone: nn.Module) -> tuple[int, int]:
        return (32, 32)

    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        raise ValueError("The backbone, a ResNet-32, has no transformer blocks to tune; set tuning to full.")


class RandomTimmFamily(TimmFamily):
    """timm's architectures with random weights."""

    def load(self, name: str, *, dtype: torch.dtype, image_size: int | None) -> nn.Module:
        model = resize(create_timm(name, pretrained=False), name, image_size)
        return model.to(dtype=dtype, memory_format=torch.channels_last)


@register_library("scratch")
class Scratch(Library):
    """ResNet-32, and timm's architectures without their weights."""

    is_pretrained = False

    def find(self, name: str, features: str | None) -> tuple[str, BackboneFamily]:
        if name != "resnet32":
            check_timm_name(name, pretrained=False, others=("resnet32",))
        architecture = "resnet32" if name == "resnet32" else "timm"
        return architecture, self.choose(architecture, features, backbone=name)

    def choose(self, architecture: str, features: str | None, *, backbone: str) -> BackboneFamily:
        if features is not None:
            raise ValueError(f"The features of 'scratch:{backbone}' are its own; leave backbone_features out.")
        return ResNet32Family() if architecture == "resnet32" else RandomTimmFamily()

    def image_processor(self, name: str) -> BaseImageProcessor:
        if name != "resnet32":
            return Timm().image_processor(name)
        return make_image_processor(
            (32, 32), mean=CIFAR_MEAN, std=CIFAR_STD, interpolation="bilinear", mode="squash", name=name
        )
