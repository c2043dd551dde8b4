"""Tiny random models of open_clip and timm, saved the way these libraries save them."""

import json
from pathlib import Path

import open_clip
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf

SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
# Name -> architecture of timm, its arguments.
TIMM = {
    "timm": ("vit_tiny_patch16_224", SIZE),
    "timm_registers": ("vit_tiny_patch16_224", SIZE | {"reg_tokens": 2, "init_values": 0.5, "qkv_bias": False}),
    "timm_map": ("vit_tiny_patch16_224", SIZE | {"class_token": False, "global_pool": "map"}),  # as SigLIP
    "timm_mean": ("vit_tiny_patch16_224", SIZE | {"global_pool": "avg"}),
    "timm_distilled": ("deit_tiny_distilled_patch16_224", SIZE),
    "timm_eva": ("eva02_tiny_patch14_224", SIZE),
    "timm_beit": ("beit_base_patch16_224", SIZE),
    "timm_convnext": ("test_convnext", {}),
    "timm_resnet": ("test_resnet", {}),
}

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 8, "layers": 3, "width": 16, "head_width": 8, "patch_size": 4, "mlp_ratio": 2.0}
POOL = {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4, "output_tokens": True}
TRUNK = {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear"}
OPEN_CLIP = {
    "open_clip": {"vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "open_clip_scale": {"vision_cfg": VISION | {"ls_init_value": 0.5, "pool_type": "avg"}, "text_cfg": TEXT},
    "open_clip_coca": {
        "vision_cfg": VISION | POOL,
        "text_cfg": TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": TEXT,
        "custom_text": True,
    },
    "open_clip_timm": {"vision_cfg": TRUNK, "text_cfg": TEXT | {"no_causal_mask": True}, "custom_text": True},
    "open_clip_resnet": {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}, "text_cfg": TEXT},
}
PREPROCESSING = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"}
SIDES = {
    "timm_convnext": 32,
    "timm_resnet": 32,
    "open_clip_timm": 32,
    "open_clip_resnet": 32,
}  # of images, where it is not 8


def side_of(name: str) -> int:
    return SIDES.get(name, 8)


@torch.no_grad()
def move(model: torch.nn.Module) -> None:
    """Away from the start, which has zeros and ones that would hide what they do."""
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn_like(parameter)


def save_others(root: Path) -> dict[str, str]:
    """One random model of each; returns their names as backbones."""
    names = {}
    for name, (architecture, arguments) in TIMM.items():
        model = timm.create_model(architecture, num_classes=0, **arguments)
        move(model)
        save_for_hf(model, root / name, model_args=arguments, safe_serialization=True)
        names[name] = f"timm:{root / name}"
    for name, config in OPEN_CLIP.items():
        (root / name).mkdir(parents=True)
        config = {"model_cfg": {"embed_dim": 12, **config}, "preprocess_cfg": PREPROCESSING}
        (root / name / "open_clip_config.json").write_text(json.dumps(config))
        model = open_clip.create_model(f"local-dir:{root / name}", load_weights=False)
        move(model)
        state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
        save_file(state, root / name / "open_clip_model.safetensors")
        names[name] = f"open_clip:{root / name}"
    return names
