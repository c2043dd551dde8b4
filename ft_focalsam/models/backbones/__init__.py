"""Backbones: any vision model as a map from images to one feature vector each.

`protocol.py` says what the toolkit asks of one; each library is a file: `transformers_models.py`,
`open_clip_models.py`, `timm_models.py`, and `scratch_models.py` for random weights.
"""

from .transformers_models import BACKBONE_FAMILIES, TransformersFamily, quiet_loading, resolve_name  # isort: skip  (names without prefix)
from . import open_clip_models, scratch_models, timm_models  # noqa: F401  (importing a file registers its library)
from .protocol import (
    LIBRARIES,
    BackboneFamily,
    Library,
    check_image_size,
    choose_family,
    find_family,
    has_text_tower,
    is_pretrained,
    load_backbone,
    load_image_processor,
    load_text_tower,
    register_library,
    split_name,
)
from .text_tower import TextTower

__all__ = [
    "BACKBONE_FAMILIES",
    "LIBRARIES",
    "BackboneFamily",
    "Library",
    "TextTower",
    "TransformersFamily",
    "check_image_size",
    "choose_family",
    "find_family",
    "has_text_tower",
    "is_pretrained",
    "load_backbone",
    "load_image_processor",
    "load_text_tower",
    "quiet_loading",
    "register_library",
    "resolve_name",
    "split_name",
]
