"""Tiny random backbones of timm and open_clip, and classifiers to export."""

import json
from pathlib import Path

import numpy as np
import open_clip
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor
from tuning.tiny import randomise

from ft_focalsam.models import LongTailClassifier
from ft_focalsam.tuning import TuningOptions, apply_tuning

NAMES = ("owl", "fox", "newt")
TIMM = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
OPEN_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 8, "layers": 3, "width": 16, "head_width": 8, "patch_size": 4, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def save_timm(folder: Path) -> str:
    """The name of a backbone."""
    model = _shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, **TIMM))
    timm.models.save_for_hf(model, folder, model_args=TIMM, safe_serialization=True)
    return f"timm:{folder}"


def save_open_clip(folder: Path) -> str:
    """The name of a backbone."""
    folder.mkdir()
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = _shaken(open_clip.CLIP(**OPEN_CLIP)).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


@torch.no_grad()
def _shaken(model: torch.nn.Module) -> torch.nn.Module:
    for parameter in model.parameters():  # many start at 0 or 1, which would hide what they do
        parameter += 0.1 * torch.randn_like(parameter)
    return model


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
    """Of the backbones that were saved without one: a resize to a larger picture, and a crop."""
    return CLIPImageProcessor(size={"shortest_edge": size + 2}, crop_size={"height": size, "width": size})


def picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8))
