"""Text towers: prompts in, text features out. A new one is one function here, named in its `BackboneFamily`."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModelWithProjection, PreTrainedTokenizerBase, SiglipTextModel

# Prompts -> their features, shape (number of prompts, D), not normalised.
TextTower = Callable[[Sequence[str]], Tensor]


def load_clip_text(path: str) -> TextTower:
    """The text tower of CLIP; padded tokens are masked."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = CLIPTextModelWithProjection.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(prompts: Sequence[str]) -> Tensor:
        tokens = _tokenize(tokenizer, prompts, model.config.max_position_embeddings)
        return model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).text_embeds

    return encode


def load_siglip_text(path: str) -> TextTower:
    """The text tower of SigLIP (Zhai et al., arXiv 2303.15343) and of SigLIP 2 (Tschannen et al., arXiv 2502.14786).

    Both were trained on lower-case texts padded to the full length, whose padding is attended to like any token.
    """
    tokenizer = _load_siglip_tokenizer(path)
    model = SiglipTextModel.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def encode(prompts: Sequence[str]) -> Tensor:
        prompts = [prompt.lower() for prompt in prompts]
        tokens = _tokenize(tokenizer, prompts, model.config.max_position_embeddings)
        return model(input_ids=tokens["input_ids"]).pooler_output

    return encode


def _load_siglip_tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(path)
    except ImportError as error:
        raise ValueError(
            f"The tokenizer of '{path}' needs the package sentencepiece to read class names; install it, or set "
            "head_start to class_means, linear_probe or random."
        ) from error


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int) -> dict[str, Tensor]:
    return tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
