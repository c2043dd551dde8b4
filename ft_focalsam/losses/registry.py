"""The losses by name."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from ..base.registry import Registry

T = TypeVar("T", bound=Callable[..., Tensor])

LOSSES: Registry[Callable[..., Tensor]] = Registry("loss")
CONTEXT = ("class_counts", "num_samples", "features", "progress", "head_scale")
_MULTI_LABEL: set[str] = set()


def register_loss(name: str, *, multi_label: bool = False) -> Callable[[T], T]:
    """Enter a loss under the name users write as `--loss name`.

    Args:
        name (`str`): The name.
        multi_label (`bool`): Whether it is for several classes a sample, with a 1 for each of them in `targets`.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(loss: T) -> T:
        LOSSES.register(name)(loss)
        if multi_label:
            _MULTI_LABEL.add(name)
        return loss

    return decorate


def is_multi_label(name: str) -> bool:
    """Whether a loss is for several classes a sample; False for an unknown name."""
    return name in _MULTI_LABEL


def same_kind(*, multi_label: bool) -> list[str]:
    """Names of the losses for several classes a sample, or of those for one."""
    return [name for name in LOSSES if is_multi_label(name) == multi_label]


def loss_hyperparameters(name: str) -> dict[str, float | None]:
    """Names and defaults of what can be set of a loss.

    Raises:
        ValueError: If there is no loss of that name.
    """
    taken = inspect.signature(LOSSES.choose(name)).parameters.values()
    return {p.name: p.default for p in taken if p.kind == p.KEYWORD_ONLY and p.name not in CONTEXT}
