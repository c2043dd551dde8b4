"""Tuning the text tower of a contrastive model: the class vectors are computed by it in every pass.

The head must be the cosine head, whose place a `TextHead` takes. Images do not reach the text tower, so the gradient
of its parameters is collected where images and texts meet: at the head, by one more pass back through the text tower
alone; the image side keeps its single backward pass.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..base.ranges import Range
from ..models import LongTailClassifier, TextHead, TextTower, load_text_tower, prompt_names, register_inserted
from ..models.heads import CosineHead
from ..models.peft_adapter import wrap_with_peft
from ..models.text import DEFAULT_TEMPLATE
from .lora import QUERY_AND_VALUE, LoraOptions, linear_layers
from .registry import CONTEXT, TEXT, CommonOptions, register_tuning

# Where the class name is in a prompt with a trained context.
CONTEXT_POSITIONS = ("end", "middle", "front")


class ContextEmbedding(nn.Module):
    """A token embedding with trained vectors in some places (CoOp, Zhou et al., arXiv 2109.01134).

    Args:
        embedding (`nn.Module`): Token ids (C, T) to (C, T, D).
        places (`Tensor` of shape (C, P)): Which tokens of each row are trained vectors.
        context (`Tensor` of shape (P, D) or (C, P, D)): Their start, one context for all rows or one for each.
    """

    places: Tensor

    def __init__(self, embedding: nn.Module, places: Tensor, context: Tensor):
        super().__init__()
        self.embedding = embedding
        self.register_buffer("places", places, persistent=False)
        self.context = nn.Parameter(context)

    def forward(self, ids: Tensor) -> Tensor:
        """(C, T) to (C, T, D)."""
        tokens = self.embedding(ids)
        context = self.context.to(tokens.dtype).expand(len(ids), -1, -1)
        return tokens.scatter(1, self.places[..., None].expand_as(context), context)


def text_head(model: LongTailClassifier) -> TextHead:
    """The head of a classifier, made a `TextHead` from the prompts in its configuration if it is none yet.

    Raises:
        ValueError: If the backbone has no text tower, or the head is not a cosine head.
    """
    config = model.config
    if isinstance(model.head, TextHead):
        return model.head
    if not model.family.has_text_tower:
        raise ValueError(
            f"The backbone '{config.backbone}' ({config.backbone_family}) has no text tower to tune; choose a tuning "
            "method for the image side."
        )
    if config.head != "cosine":
        raise ValueError(
            f"The head is {config.head!r}, and tuned texts are compared with images by their cosine; set head to "
            "cosine."
        )
    templates = config.prompt_templates or [DEFAULT_TEMPLATE]
    tower = load_text_tower(config.backbone)
    model.head = TextHead(tower, prompt_names(config), templates, config.head_scale)
    return model.head


@torch.no_grad()
def merge_text_head(model: LongTailClassifier) -> None:
    """The cosine head with the class vectors that the text tower gives now, in the place of a `TextHead`."""
    if isinstance(model.head, TextHead):
        vectors, config = model.head.class_vectors(), model.config
        head = CosineHead(config.feature_size, len(config.class_names), config.head_scale)
        head.start_from(vectors)
        model.head = head


@register_inserted("text_lora", merge=merge_text_head)
def insert_text_lora(
    model: LongTailClassifier, *, rank: int, alpha: float, dropout: float, target_modules: list[str]
) -> None:
    """LoRA, by peft, around the text tower."""
    tower = text_head(model).tower
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides it by r: any number will do
        lora_dropout=dropout,
        target_modules=list(target_modules),
    )
    tower.model = wrap_with_peft(tower.model, config, base=model.config.backbone)


@register_inserted("context", merge=merge_text_head)
def insert_context(
    model: LongTailClassifier, *, length: int, position: str, words: str | None, per_class: bool
) -> None:
    """A `ContextEmbedding` in the text tower, and prompts that are class names with places for the context.

    Args:
        length (`int`, >= 1): P; that of `words` where they are given.
        position (`str`): "front", "middle" or "end": where the class name is in the prompt.
        words (`str`, *optional*): What the context starts as, else normal noise of deviation 0.02.
        per_class (`bool`): One context for each class, not one for all.

    Raises:
        ValueError: If a name and the context do not fit into the text tower.
    """
    head = text_head(model)
    names = [name.replace("_", " ") for name in prompt_names(model.config)]
    if words is not None:
        length = len(_content(head.tower, words))
    tokens, places = insert_places(head.tower, names, length=length, position=position)
    embedding = head.tower.embedding
    weight = next(embedding.parameters())
    if words is None:
        context = 0.02 * torch.randn(length, weight.shape[1])
    else:
        context = embedding(_content(head.tower, words).to(weight.device)).detach().float().cpu()
    if per_class:
        context = context.repeat(len(names), 1, 1)
    head.set_tokens(tokens)
    head.tower.replace_embedding(ContextEmbedding(embedding, places, context))


def insert_places(
    tower: TextTower, names: list[str], *, length: int, position: str
) -> tuple[dict[str, Tensor], Tensor]:
    """Tokens of the prompts "name." with places for a context.

    Returns:
        The tokens by name, as `tower` takes them, and the columns of the context, shape (C, `length`).

    Raises:
        ValueError: If a name and the context do not fit into the text tower.
    """
    before = {"front": 0, "middle": length // 2, "end": length}[position]  # of the class name
    there = min(before, 1)  # a word "a" that keeps the first place, so that the name is tokenized as one behind a word
    texts = [f"a {name}" if there else name for name in names]
    bare = tower.tokenize([f"{text}." for text in texts])
    size = next(iter(bare.values())).shape[1]
    start = _first_column(tower)
    filler = {key: value[0, start] for key, value in tower.tokenize(["a"]).items()}
    rows, places = [], []
    for index, text in enumerate(texts):
        behind = start + len(_content(tower, text))
        gaps = {start + there: before - there, behind: length - before}  # column -> places in front of it
        rows.append({key: _insert(value[index], gaps, filler[key]) for key, value in bare.items()})
        if start + len(_content(tower, f"{text}.")) + sum(gaps.values()) >= size:
            raise ValueError(
                f"The class name '{names[index]}' and a context of {length} do not fit into the {size} tokens of the "
                "text tower; set context_length lower."
            )
        end = behind + before - there
        places.append(torch.tensor([*range(start, start + before), *range(end, end + length - before)]))
    return {key: torch.stack([row[key] for row in rows]) for key in bare}, torch.stack(places)


def _insert(row: Tensor, gaps: dict[int, int], filler: Tensor) -> Tensor:
    """A row of tokens with copies of `filler` in front of some columns, cut to its length."""
    parts, last = [], 0
    for column, count in gaps.items():
        parts += [row[last:column], filler.expand(count)]
        last = column
    return torch.cat([*parts, row[last:]])[: len(row)]


def _ids(tower: TextTower, text: str) -> Tensor:
    return next(iter(tower.tokenize([text]).values()))[0]


def _first_column(tower: TextTower) -> int:
    """How many special tokens are in front of a text."""
    return int((_ids(tower, "a") != _ids(tower, "b")).nonzero()[0])


def _content(tower: TextTower, text: str) -> Tensor:
    """The token ids of a text without special tokens: up to where another word behind it would begin.

    Raises:
        ValueError: If the text is longer than the text tower takes.
    """
    differ = (_ids(tower, text) != _ids(tower, f"{text} a")).nonzero()
    if len(differ) == 0:
        raise ValueError(f"The text '{text}' is longer than the text tower takes; shorten it.")
    return _ids(tower, text)[_first_column(tower) : int(differ[0])]


@register_tuning("text_lora", stage=TEXT, keeps_backbone=True, options=LoraOptions)
def text_lora(model: LongTailClassifier, options: LoraOptions) -> None:
    """LoRA in the text tower; with "lora", both towers have it. The prompts are those that the head was started from.

    Raises:
        ValueError: If the text tower has no layers of the usual names.
    """
    names = linear_layers(text_head(model).tower)
    targets = [name for name in QUERY_AND_VALUE if name in names]
    if not targets:
        raise ValueError(
            f"The text tower of '{model.config.backbone}' has no linear layers called {', '.join(QUERY_AND_VALUE)} "
            "for text_lora; choose context_prompts."
        )
    model.insert(
        "text_lora",
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
        target_modules=targets,
    )


@dataclass
class ContextOptions(CommonOptions):
    """Of a trained context of the class names.

    Args:
        context_length (`int`, >= 1): Trained vectors beside a class name; that of `context_init` where it is given.
        context_position (`str`): Place of the class name among them: end, middle or front.
        context_init (`str`, *optional*): Words that the context starts as, e.g. "a photo of a"; by default noise.
        context_per_class (`bool`): One context for each class, not one for all.
    """

    context_length: Annotated[int, Range(1)] = field(
        default=16, metadata={"help": "Number of trained vectors beside a class name."}
    )
    context_position: str = field(
        default="end", metadata={"help": "Position of the class name in the context: end, middle or front."}
    )
    context_init: str | None = field(
        default=None,
        metadata={"help": "Words that the context is initialised with, e.g. 'a photo of a'; by default noise."},
    )
    context_per_class: bool = field(
        default=False, metadata={"help": "Train one context per class instead of one for all."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_position not in CONTEXT_POSITIONS:
            raise ValueError(
                f"context_position is {self.context_position!r}; choose one of {', '.join(CONTEXT_POSITIONS)}."
            )


@register_tuning("context_prompts", stage=CONTEXT, keeps_backbone=True, options=ContextOptions)
def context_prompts(model: LongTailClassifier, options: ContextOptions) -> None:
    """Trained vectors beside the class names in the place of a template (CoOp, Zhou et al., arXiv 2109.01134)."""
    model.insert(
        "context",
        length=options.context_length,
        position=options.context_position,
        words=options.context_init,
        per_class=options.context_per_class,
    )
