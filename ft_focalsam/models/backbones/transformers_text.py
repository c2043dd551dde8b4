"""Text towers of transformers: one function an architecture, named in its `TransformersFamily`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection, PreTrainedTokenizerBase, SiglipTextModel

from ..foreign_config import check_model_config
from .text_tower import TextTower


def load_clip_text(path: str) -> TextTower:
    """The text tower of CLIP, where no token sees those behind it; padded ones are masked."""
    model = CLIPTextModelWithProjection.from_pretrained(path, dtype=torch.float32)
    tokenize = _tokenizer(_load_tokenizer(path), model.config.max_position_embeddings)
    return TextTower(
        model,
        tokenize,
        read=lambda output: output.text_embeds,
        embedding=model.get_input_embeddings(),
        may_trim=True,
    )


def load_siglip_text(path: str) -> TextTower:
    """The text tower of SigLIP (Zhai et al., arXiv 2303.15343) and of SigLIP 2 (Tschannen et al., arXiv 2502.14786).

    Both were trained on lower-case texts padded to the full length, whose padding is attended to like any token.
    """
    model = SiglipTextModel.from_pretrained(path, dtype=torch.float32)
    tokenize = _tokenizer(_load_siglip_tokenizer(path), model.config.max_position_embeddings)

    def lower_case(prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"input_ids": tokenize([prompt.lower() for prompt in prompts])["input_ids"]}

    return TextTower(
        model, lower_case, read=lambda output: output.pooler_output, embedding=model.get_input_embeddings()
    )


def _load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    check_model_config(path, "tokenizer_config.json")
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def _load_siglip_tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        return _load_tokenizer(path)
    except ImportError as error:
        raise ValueError(
            f"The tokenizer of '{path}' needs the package sentencepiece to read class names; install it, or set "
            "head_start to class_means, linear_probe or random."
        ) from error


def _tokenizer(tokenizer: PreTrainedTokenizerBase, length: int) -> Callable[[Sequence[str]], dict[str, Tensor]]:
    """Prompts -> "input_ids" and "attention_mask", padded to the full length."""

    def tokenize(prompts: Sequence[str]) -> dict[str, Tensor]:
        options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
        tokens = tokenizer(list(prompts), return_attention_mask=True, **options)
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    return tokenize
