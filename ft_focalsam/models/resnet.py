"""The ResNet-32 for 32-pixel images that the long-tail literature trains from scratch."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A of He et al., arXiv 1512.03385): where the
    block halves the image and widens, the shortcut takes every other pixel and pads channels with zeros."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.stride = 1 if channels_in == channels else 2
        self.padding = (channels - channels_in) // 2
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(shortcut + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet32(nn.Module):
    """ResNet-32 without its classifier: three stages of five blocks with 16, 32 and 64 channels, Kaiming start;
    463,504 weights."""

    num_features = 64

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16] * 6 + [32] * 5 + [64] * 5
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of shape (B, 64) of images of shape (B, 3, 32, 32)."""
        return self.blocks(F.relu(self.bn1(self.conv1(pixel_values)))).mean(dim=(2, 3))
