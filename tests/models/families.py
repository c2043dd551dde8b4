"""Tiny random models of the architectures of transformers, saved with their image processors, and their features by
way of transformers alone."""

from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import (
    Aimv2VisionConfig,
    AutoModel,
    BeitConfig,
    BeitImageProcessor,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    DeiTConfig,
    DeiTImageProcessor,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    IJepaConfig,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMSNConfig,
)

REGISTERS = 3
BASE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = BASE | {"image_size": 8, "patch_size": 4}
TEXT = BASE | {"vocab_size": 64, "max_position_embeddings": 32}
BIAS = {"layer_scale_init_value": 0.5, "use_mask_token": True, "drop_path_rate": 0.0}
LETTERS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", ".", ",", "!", *map(chr, range(ord("a"), ord("z") + 1))]

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP_MEAN = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's, with one token a letter, one a last letter."""
    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>", "<|pad|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab, [], pad_token="<|pad|>", model_max_length=48)


CLIP_TOKENIZER = tiny_tokenizer()
SPECIAL = {name: getattr(CLIP_TOKENIZER, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
CLIP_TEXT = BASE | SPECIAL | {"vocab_size": len(CLIP_TOKENIZER), "max_position_embeddings": 48, "projection_dim": 12}

# Name of the architecture -> configuration, image processor, published mean and deviation of its images.
FAMILIES = {
    "vit": (ViTConfig(**VISION), ViTImageProcessor, HALF),
    "deit": (DeiTConfig(**VISION), DeiTImageProcessor, IMAGENET),
    "beit": (BeitConfig(**VISION, **BIAS, use_relative_position_bias=True), BeitImageProcessor, HALF),
    "data2vec-vision": (Data2VecVisionConfig(**VISION, **BIAS), BeitImageProcessor, HALF),
    "vit_mae": (ViTMAEConfig(**VISION), ViTImageProcessor, HALF),
    "dinov2": (Dinov2Config(**VISION, mlp_ratio=2), BitImageProcessor, IMAGENET),
    "dinov2_with_registers": (
        Dinov2WithRegistersConfig(**VISION, mlp_ratio=2, num_register_tokens=REGISTERS),
        BitImageProcessor,
        IMAGENET,
    ),
    "dinov3_vit": (  # whose positions move at random in training by default
        DINOv3ViTConfig(**VISION, num_register_tokens=REGISTERS, pos_embed_rescale=None),
        DINOv3ViTImageProcessor,
        IMAGENET,
    ),
    "clip": (
        CLIPConfig(vision_config=VISION | {"projection_dim": 12}, text_config=CLIP_TEXT, projection_dim=12),
        CLIPImageProcessor,
        CLIP_MEAN,
    ),
    "siglip": (SiglipConfig(vision_config=VISION, text_config=TEXT), SiglipImageProcessor, HALF),
    "siglip_vision_model": (SiglipVisionConfig(**VISION), SiglipImageProcessor, HALF),
}
# BEiT with one position bias for all blocks and the class token as features; architectures without an entry.
OTHERS = {
    "beit_shared": BeitConfig(**VISION, **BIAS, use_shared_relative_position_bias=True, use_mean_pooling=False),
    "ijepa": IJepaConfig(**VISION),
    "vit_msn": ViTMSNConfig(**VISION),
    "aimv2_vision_model": Aimv2VisionConfig(**VISION),
    "swin": SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2),
}


def save_families(root: Path) -> dict[str, str]:
    """One random model of each; returns their folders by name."""
    size = {"height": 8, "width": 8}
    tokenizer = Siglip2Tokenizer({letter: index for index, letter in enumerate(LETTERS)}, [], padding_side="right")
    make = AutoModel.from_config
    for name, config in {**{name: entry[0] for name, entry in FAMILIES.items()}, **OTHERS}.items():
        model = Data2VecVisionModel(config, add_pooling_layer=True) if name == "data2vec-vision" else make(config)
        for parameter in model.parameters():  # many start at 0 or 1, which would hide what they do
            parameter.data += 0.2 * torch.randn_like(parameter)
        model.save_pretrained(root / name)
        if name in FAMILIES:
            _, processor, (mean, std) = FAMILIES[name]
            processor(size=size, crop_size=size, image_mean=mean, image_std=std).save_pretrained(root / name)
    CLIP_TOKENIZER.save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "siglip")
    path = root / "siglip" / "tokenizer_config.json"  # as SigLIP 2 is published, with a tokenizer of upper case too
    path.write_text(path.read_text().replace("Siglip2Tokenizer", "GemmaTokenizer"))
    return {name: str(root / name) for name in (*FAMILIES, *OTHERS)}


def make_images(size: int = 8, *, count: int = 6) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def plain_features(path: str, name: str, images: Tensor, **options) -> Tensor:
    """What the architecture's own classifier of transformers, or its contrastive model, takes as features."""
    if name in ("clip", "siglip"):
        model = {"clip": CLIPModel, "siglip": SiglipModel}[name].from_pretrained(path).eval()
        return model.get_image_features(images, **options).pooler_output
    options_of_model = {"add_pooling_layer": True} if name == "data2vec-vision" else {}
    model = AutoModel.from_pretrained(path, **options_of_model).eval()
    if name == "vit_mae":
        model.config.mask_ratio = 0.0
    tokens = model(images, **options).last_hidden_state
    if name in ("beit", "data2vec-vision"):
        norm = model.pooler.layernorm
        return F.layer_norm(tokens[:, 1:].mean(dim=1), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    return model.head(tokens) if name == "siglip_vision_model" else tokens[:, 0]
