"""Backbones, heads, text features, and the classifier made of them."""

from .backbones import (
    BACKBONE_FAMILIES,
    LIBRARIES,
    BackboneFamily,
    TextTower,
    TransformersFamily,
    choose_family,
    load_backbone,
    load_image_processor,
    load_text_tower,
    register_library,
)
from .classifier import LongTailClassifier, LongTailClassifierConfig
from .encoding import encode_images
from .feature_cache import FeatureCache
from .head_start import HEAD_STARTS, choose_head_start, class_means, collect_features, start_head
from .heads import HEADS, register_head
from .image_classifier import ImageClassifier
from .inserted import INSERTED_MODULES, register_inserted
from .linear_probe import fit_linear_probe
from .loading import Classifier, is_zero_shot, load_classifier
from .text import prompt_names, read_class_names, text_features
from .text_head import TextHead

__all__ = [
    "BACKBONE_FAMILIES",
    "HEADS",
    "HEAD_STARTS",
    "INSERTED_MODULES",
    "LIBRARIES",
    "BackboneFamily",
    "Classifier",
    "FeatureCache",
    "ImageClassifier",
    "LongTailClassifier",
    "LongTailClassifierConfig",
    "TextHead",
    "TextTower",
    "TransformersFamily",
    "choose_family",
    "choose_head_start",
    "class_means",
    "collect_features",
    "encode_images",
    "fit_linear_probe",
    "is_zero_shot",
    "load_backbone",
    "load_classifier",
    "load_image_processor",
    "load_text_tower",
    "prompt_names",
    "read_class_names",
    "register_head",
    "register_inserted",
    "register_library",
    "start_head",
    "text_features",
]
