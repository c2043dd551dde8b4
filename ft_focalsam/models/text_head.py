"""A head whose class vectors are text features, computed by a text tower in every pass, so that it can be tuned."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import TextTower
from .heads import at_least_float32, without_autocast
from .text import class_prompts


class TextHead(nn.Module):
    """z_i = scale * cos(f, t_i), with t_i the text features of class i: what a cosine head from texts gives.

    Args:
        tower (`TextTower`): Frozen but for what is tuned of it.
        class_names (sequence of `str`): C names.
        templates (sequence of `str`): Prompts with {} where the name goes; t_i is their mean direction.
        scale (`float`, > 0): Of the logits.
    """

    def __init__(self, tower: TextTower, class_names: Sequence[str], templates: Sequence[str], scale: float):
        super().__init__()
        self.tower = tower
        self.scale = scale
        prompts = class_prompts(class_names, templates)
        self.set_tokens(tower.tokenize([prompt for row in prompts for prompt in row]), templates=len(templates))

    def set_tokens(self, tokens: dict[str, Tensor], *, templates: int = 1) -> None:
        """Take over the tokens of the prompts, the C classes of the first template first."""
        self.templates = templates
        self._token_names = list(tokens)
        for name, value in self.tower.trim(tokens).items():
            self.register_buffer(name, value, persistent=False)

    def class_vectors(self) -> Tensor:
        """t, shape (C, D), of length 1."""
        features = at_least_float32(self.tower(**{name: getattr(self, name) for name in self._token_names}))
        rows = F.normalize(features, dim=-1).unflatten(0, (self.templates, -1))
        return F.normalize(rows.mean(dim=0), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, C): in float32 at least, but for the text tower, which runs as the backbone does."""
        vectors, features = self.class_vectors(), at_least_float32(features)
        with without_autocast(features.device):
            return F.linear(F.normalize(features, dim=-1), vectors.to(features.dtype)) * self.scale
