"""The ends of the scale: nothing at all, nothing of the backbone, and all of it."""

from ..models import LongTailClassifier
from .registry import WHOLE, CommonOptions, register_tuning


@register_tuning("zero_shot", stage=WHOLE, keeps_backbone=True)
def zero_shot(model: LongTailClassifier, options: CommonOptions) -> None:
    """Nothing trains: the head stays where it started, from texts for zero-shot classification."""
    model.head.requires_grad_(False)


@register_tuning("linear_probe", stage=WHOLE, keeps_backbone=True)
def linear_probe(model: LongTailClassifier, options: CommonOptions) -> None:
    """Only the head trains."""


@register_tuning("full", stage=WHOLE)
def full(model: LongTailClassifier, options: CommonOptions) -> None:
    """Every parameter of the backbone trains, in float32."""
    model.backbone.float().requires_grad_(True)
    model.config.backbone_dtype = "float32"
