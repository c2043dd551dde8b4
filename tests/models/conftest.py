"""Tiny random backbones, saved the way transformers saves them."""

from pathlib import Path

import pytest
import torch
from families import tiny_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.2,
}
VISION = SIZE | {"image_size": 16, "patch_size": 8}


def tiny_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = SIZE | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 48, "projection_dim": 24}
    vision = VISION | {"projection_dim": 24}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


@pytest.fixture(scope="session")
def backbones(tmp_path_factory) -> dict[str, Path]:
    """Folders by name: vit, dinov2 and clip; clip_vision without a text tower; bert, which is no vision model."""
    root = tmp_path_factory.mktemp("backbones")
    tokenizer = tiny_tokenizer()
    size = {"height": 16, "width": 16}
    image_processor = CLIPImageProcessor(size=size, crop_size=size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        saved = {
            "vit": (ViTModel(ViTConfig(**VISION), add_pooling_layer=False), ViTImageProcessor(size=size)),
            "dinov2": (Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2)), ViTImageProcessor(size=size)),
            "clip": (tiny_clip(tokenizer), CLIPProcessor(image_processor, tokenizer)),
            "clip_vision": (
                CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24)),
                image_processor,
            ),
            "bert": (BertModel(BertConfig(**SIZE, vocab_size=50)), tokenizer),
        }
    for name, parts in saved.items():
        for part in parts:
            part.save_pretrained(root / name)
    return {name: root / name for name in saved}
