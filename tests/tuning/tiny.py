"""Tiny classifiers of every backbone family, and their backbones run by hand, block by block."""

from pathlib import Path

import torch
from families import CLIP_TEXT, CLIP_TOKENIZER
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTModel,
)

from ft_focalsam.models import LongTailClassifier, load_backbone
from ft_focalsam.tuning import TuningOptions, apply_tuning

HIDDEN_SIZE, LAYERS, PATCHES = 16, 3, 4
NAMES = ("owl", "fox", "newt", "moth", "carp")
FAMILIES = ("vit", "dinov2", "dinov2_swiglu", "clip", "clip_vision_model")

SIZE = {
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
VISION = SIZE | {"image_size": 8, "patch_size": 4}


def save_backbones(root: Path) -> dict[str, str]:
    """One random model of each family; returns their folders."""
    torch.manual_seed(0)
    text = CLIP_TEXT | SIZE
    models = {
        "vit": ViTModel(ViTConfig(**VISION), add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)),
        "dinov2_swiglu": Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2, use_swiglu_ffn=True)),
        "clip": CLIPModel(
            CLIPConfig(text_config=text, vision_config=VISION | {"projection_dim": 12}, projection_dim=12)
        ),
        "clip_vision_model": CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=12)),
    }
    for name, model in models.items():
        for parameter_name, parameter in model.named_parameters():
            if "layer_scale" in parameter_name or "norm" in parameter_name:  # 1 and 0 would hide what they do
                parameter.data += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
    CLIP_TOKENIZER.save_pretrained(root / "clip")
    return {name: str(root / name) for name in models}


def build(backbone: str, tuning: str, *, dtype: str = "float32", **options) -> LongTailClassifier:
    """A classifier with a random head, tuned."""
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(backbone, NAMES, dtype=dtype)
    apply_tuning(model, tuning, TuningOptions(**options))
    return model.eval()


@torch.no_grad()
def randomise(model: LongTailClassifier) -> LongTailClassifier:
    """Move everything that trains away from where it started."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return model


def make_images(size: int = 6) -> Tensor:
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits_of(model: LongTailClassifier) -> Tensor:
    return model(make_images()).logits


def inserted(model: LongTailClassifier) -> dict[str, nn.Parameter]:
    """What trains of the backbone, by its name in the backbone."""
    return {name: p for name, p in model.backbone.named_parameters() if p.requires_grad}


class PlainBackbone:
    """The backbone as it was, loaded anew, its parts in the order in which they run."""

    def __init__(self, path: str):
        self.model = load_backbone(path).eval()
        tower = self.model.vision_model if hasattr(self.model, "vision_model") else self.model
        encoder = tower.encoder if hasattr(tower, "encoder") else tower
        self.blocks = list(encoder.layers if hasattr(encoder, "layers") else encoder.layer)
        self.tower = tower

    def mlp_ends(self, index: int) -> tuple[nn.Module, nn.Module]:
        """The modules that take the input and give the output of the MLP of a block."""
        block = self.blocks[index]
        return (block.mlp, block.mlp) if hasattr(block, "mlp") else (block.intermediate, block.output.dense)

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """What the first block receives."""
        tokens = self.tower.embeddings(pixel_values)
        return self.tower.pre_layrnorm(tokens) if hasattr(self.tower, "pre_layrnorm") else tokens

    def run_block(self, index: int, tokens: Tensor) -> Tensor:
        block = self.blocks[index]
        return block(tokens, None) if hasattr(block, "self_attn") else block(tokens)

    def features(self, tokens: Tensor) -> Tensor:
        """Features from what the last block gives."""
        if hasattr(self.tower, "post_layernorm"):
            return self.model.visual_projection(self.tower.post_layernorm(tokens[:, 0]))
        return self.tower.layernorm(tokens)[:, 0]

    def features_of(self, pixel_values: Tensor) -> Tensor:
        tokens = self.tokens(pixel_values)
        for index in range(LAYERS):
            tokens = self.run_block(index, tokens)
        return self.features(tokens)
