"""What of a head can be retrained."""

import torch
from torch import nn

from ..models import HEADS, LongTailClassifier
from ..models.text_head import TextHead

TEXTS_ALONE = (
    "The class vectors of the classifier are computed from texts (tuning text_lora or context_prompts), so that its "
    "head has no weights to retrain; give a run of another tuning."
)


def check_has_weights(head: nn.Module) -> None:
    """Raise a `ValueError` where class vectors are computed from texts."""
    if isinstance(head, TextHead):
        raise ValueError(TEXTS_ALONE)


def class_layer(head: nn.Module, name: str, *, method: str) -> nn.Linear:
    """The layer of a head whose rows are the class vectors, where their lengths count.

    Args:
        head (`nn.Module`): A "linear", "l2_normalized" or "layer_norm" one.
        name (`str`): Which it is, for the error message.
        method (`str`): What it is for, for the error message.

    Raises:
        ValueError: If the head has no such layer.
    """
    check_has_weights(head)
    layer = head if isinstance(head, nn.Linear) else getattr(head, "linear", None)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"The head '{name}' does not depend on the lengths of its class vectors, which is all that "
            f"{method} changes; choose the method crt or cc_sam, or a run with the head linear, l2_normalized or "
            "layer_norm."
        )
    return layer


def new_head(model: LongTailClassifier, *, seed: int) -> nn.Module:
    """A head like that of a classifier with random weights, on its device."""
    config, device = model.config, next(model.head.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = HEADS.choose(config.head)(config.feature_size, config.num_labels, config.head_scale)
    return head.to(device)
