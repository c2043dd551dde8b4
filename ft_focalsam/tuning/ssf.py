"""Scaling and shifting features (SSF, Lian et al., arXiv 2210.08823): y = gamma x + beta behind every layer.

The layers are those of the paper: linear ones, normalisations and the patch embedding. gamma starts at 1 and beta at
0, so that nothing changes; the paper adds normal noise of deviation 0.02 to both.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ..models import LongTailClassifier, register_inserted
from .partial import is_norm
from .registry import OUTPUTS, CommonOptions, find_layers, own_modules, register_tuning


class ScaleAndShift(nn.Module):
    """gamma x + beta for each channel, in float32; the result has the dtype of x.

    Args:
        size (`int`): Number of channels D.
        channel_dim (`int`): Where the channels of x are: -1 in (B, T, D), 1 in the images (B, D, H, W) of a
            convolution and of the norms of a convolutional network.
    """

    def __init__(self, size: int, *, channel_dim: int = -1):
        super().__init__()
        self.channel_dim = channel_dim
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (B, ...) to the same."""
        shape = [1] * x.ndim
        shape[self.channel_dim] = -1
        return (x * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class _ScaledLayer(nn.Module):
    """What type checkers are told of a layer that has something behind it; none is made."""

    ssf: ScaleAndShift


def _behind(layer: _ScaledLayer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return layer.ssf(output)


def _channels(layer: nn.Module) -> tuple[int, int] | None:
    """How many channels a layer gives, and in which dimension; None where nothing is to be put behind it."""
    if any(p is not None and p.requires_grad for p in (getattr(layer, "weight", None), getattr(layer, "bias", None))):
        return None  # of a new module, which trains anyway
    if isinstance(layer, NonDynamicallyQuantizableLinear):
        return None  # nn.MultiheadAttention uses its weights without calling it
    if isinstance(layer, nn.Linear):
        return layer.out_features, -1
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, 1
    if not is_norm(layer):
        return None
    of_images = isinstance(layer, (_BatchNorm, nn.GroupNorm)) or type(layer).__name__.endswith("2d")  # timm's
    return layer.get_parameter("weight").numel(), 1 if of_images else -1


@torch.no_grad()
def merge_ssf(model: LongTailClassifier) -> None:
    """gamma W and gamma b + beta in the place of W and b: gamma (W x + b) + beta is what the layer gives.

    Raises:
        ValueError: If a layer has no b to take a beta other than 0.
    """
    layers = [(name, m) for name, m in model.backbone.named_modules() if hasattr(m, "ssf")]
    for name, layer in layers:
        gamma, beta, bias = layer.ssf.weight, layer.ssf.bias, getattr(layer, "bias", None)
        if bias is None and beta.any():
            raise ValueError(
                f"The shift that ssf trained behind {name.removeprefix('base_model.model.')!r} cannot be folded into "
                "it, as that layer has no bias; export to onnx, which keeps it, or train with tuned_layers, by which "
                "layers outside of blocks go without."
            )
        layer.weight.mul_(gamma.view(-1, *[1] * (layer.weight.ndim - 1)))
        if bias is not None:
            bias.mul_(gamma).add_(beta)
        del layer.ssf
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _behind]:
            del layer._forward_hooks[key]


@register_inserted("ssf", merge=merge_ssf)
def insert_ssf(model: LongTailClassifier, *, layers: list[int] | None) -> None:
    """A `ScaleAndShift` called `ssf` in every layer, which acts on its output; `layers` None: also outside of blocks.

    A layer stays what it is, with a child and a forward hook more, so that peft and the model find its attributes.
    """
    parts = [model.backbone]
    if layers is not None:
        blocks = model.family.blocks(model.backbone)
        parts = [blocks[index] for index in layers]
    for layer in [module for part in parts for _, module in own_modules(part)]:
        channels = _channels(layer)
        if channels is not None:
            size, channel_dim = channels
            layer.ssf = ScaleAndShift(size, channel_dim=channel_dim)
            layer.register_forward_hook(_behind)


@register_tuning("ssf", stage=OUTPUTS)
def ssf(model: LongTailClassifier, options: CommonOptions) -> None:
    """Scale and shift behind the layers of the tuned blocks, by default of the whole backbone."""
    model.insert("ssf", layers=find_layers(model, options) if options.tuned_layers else None)
