"""A CLIP model of transformers as the same model of open_clip."""

import re

from torch import Tensor
from transformers import CLIPConfig, PreTrainedConfig

from ..models.backbones.split_attention import join_projections

# Patterns of names in transformers and what they become in open_clip, each applied to every name.
RENAMED = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.self_attn\.", ".attn."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
TRANSPOSED = ("visual.proj", "text_projection")  # which open_clip multiplies from the right


def to_open_clip_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `CLIPModel` under the names of open_clip."""
    renamed = {}
    for name, value in state.items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        renamed[name] = value.T if name in TRANSPOSED else value
    return join_projections(renamed, {re.sub(r"\.[qkv]_proj\.", ".in_proj_", name) for name in renamed})


def to_open_clip_config(config: CLIPConfig, *, image_size: int | None) -> dict:
    """The "model_cfg" of open_clip for a `CLIPModel`.

    Args:
        image_size (`int`, *optional*): Side of the images in pixels, by default that of `config`.

    Raises:
        ValueError: If its activation is one that open_clip does not have.
    """
    vision, text = config.vision_config, config.text_config
    activations = {vision.hidden_act, text.hidden_act}
    if activations not in ({"quick_gelu"}, {"gelu"}):
        raise ValueError(
            f"The backbone has the activations {' and '.join(sorted(activations))}, and open_clip knows quick_gelu or "
            "gelu, the same in both towers; export to onnx."
        )
    # Where the text ends: transformers takes the number 2 as the sign of an old checkpoint.
    pooling = {} if text.eos_token_id == 2 else {"pool_type": "eos", "eos_id": text.eos_token_id}
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": image_size or vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **_tower(vision),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            "hf_tokenizer_name": "the tokenizer in this folder",
            **pooling,
            **_tower(text),
        },
    }


def _tower(config: PreTrainedConfig) -> dict:
    return {
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }
