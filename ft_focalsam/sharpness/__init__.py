"""The sharpness-aware step; needs torch and nothing of the rest of the package."""

from .optimizer import FocalSAM
from .rules import weighted_grad_rule
from .step import SharpnessStep
from .weighted_grad import WeightedGradient
from .weights import SHARPNESS_METHODS, class_weights, register_sharpness_method

__all__ = [
    "SHARPNESS_METHODS",
    "FocalSAM",
    "SharpnessStep",
    "WeightedGradient",
    "class_weights",
    "register_sharpness_method",
    "weighted_grad_rule",
]
