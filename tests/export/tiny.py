"""Tiny classifiers to export, and images for them."""

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from tuning.tiny import randomise

from ft_focalsam.models import LongTailClassifier
from ft_focalsam.tuning import TuningOptions, apply_tuning

NAMES = ("owl", "fox", "newt")


def build(
    backbone: str, tuning: str = "linear_probe", *, head: str = "linear", image_size=None, features=None, **options
) -> LongTailClassifier:
    """A tuned classifier whose tuned weights are off their start."""
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(
        backbone, NAMES, head=head, head_scale=5.0, image_size=image_size, features=features
    )
    apply_tuning(model, tuning, TuningOptions(**{"lora_rank": 2, **options}))
    return randomise(model).eval()


def processor(size: int = 8) -> CLIPImageProcessor:
    """Of the backbones that were saved without one: a resize to a larger image, and a crop."""
    return CLIPImageProcessor(size={"shortest_edge": size + 2}, crop_size={"height": size, "width": size})


def make_image(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))
