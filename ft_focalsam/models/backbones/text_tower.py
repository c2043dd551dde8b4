"""A text tower: prompts in, text features out, with or without gradients."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BATCH = 256  # prompts that are encoded at a time


class TextTower(nn.Module):
    """The text side of a contrastive model.

    Args:
        model (`nn.Module`): Takes what `tokenize` gives as keyword arguments.
        tokenize (`Callable`): Prompts -> tensors of shape (number of prompts, T) by name, the token ids first, padded
            to the full length of the model.
        read (`Callable`): Output of the model -> features of shape (number of prompts, D), not normalised.
        embedding (`nn.Module`): The part of `model` that embeds the token ids.
        may_trim (`bool`): Whether padding has no influence, so that columns which have nothing else can be left out;
            the tokens then have an "attention_mask".
    """

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[Sequence[str]], dict[str, Tensor]],
        *,
        read: Callable[..., Tensor] = lambda output: output,
        embedding: nn.Module,
        may_trim: bool = False,
    ):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenize = tokenize
        self.may_trim = may_trim
        self._read = read
        self._embedding = next(name for name, module in model.named_modules() if module is embedding)

    def forward(self, **tokens: Tensor) -> Tensor:
        """Features of shape (number of prompts, D), not normalised, of what `tokenize` gave."""
        return self._read(self.model(**tokens))

    def trim(self, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tokens without the columns at the end that have no influence."""
        length = int(tokens["attention_mask"].sum(dim=1).max()) if self.may_trim else None
        return {name: value[:, :length] for name, value in tokens.items()}

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Features of prompts, shape (number of prompts, D), not normalised, without gradient."""
        device = next(self.parameters()).device
        parts = [self.trim(self.tokenize(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)]
        return torch.cat([self(**{name: ids.to(device) for name, ids in part.items()}) for part in parts])

    @property
    def embedding(self) -> nn.Module:
        """The module that embeds token ids: (C, T) to (C, T, D')."""
        return self.model.get_submodule(self._embedding)

    def replace_embedding(self, module: nn.Module) -> None:
        """Put another module in the place of `embedding`."""
        parent, _, name = self._embedding.rpartition(".")
        setattr(self.model.get_submodule(parent), name, module)
