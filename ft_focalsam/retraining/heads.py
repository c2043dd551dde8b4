"""What of a head can be retrained."""

import torch
from torch import nn

from ..models import HEADS, LongTailClassifier
from ..models.text_head import TextHead


def check_has_weights(model: LongTailClassifier) -> None:
    """Raise a `ValueError` where class vectors are computed from texts."""
    if isinstance(model.head, TextHead):
        raise ValueError(
            "The class vectors of the classifier are computed from texts (tuning text_lora or context_prompts), so "
            "that its head has no weights to retrain; give a run of another tuning."
        )


def class_layer(model: LongTailClassifier, method: str) -> nn.Linear:
    """The layer of a head whose rows are the class vectors, where their lengths count.

    Args:
        model (`LongTailClassifier`): Whose head is "linear", "l2_normalized" or "layer_norm".
        method (`str`): What it is for, for the error message.

    Raises:
        ValueError: If the head has no such layer.
    """
    check_has_weights(model)
    layer = model.head if isinstance(model.head, nn.Linear) else getattr(model.head, "linear", None)
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"The head '{model.config.head}' does not depend on the lengths of its class vectors, which is all that "
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
