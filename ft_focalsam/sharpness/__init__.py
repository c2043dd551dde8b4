"""The sharpness-aware step; needs torch and nothing of the rest of the package."""

from .class_conditional import ClassConditionalSAM
from .economy import ECONOMIES, Economy
from .gradients import WeightedGradient, weighted_grad_rule
from .optimizer import FocalSAM
from .passes import LossContractError
from .schedules import RHO_SCHEDULES, scheduled_rho
from .step import SharpnessStep
from .update import SharpnessUpdate
from .weights import SHARPNESS_METHODS, class_weights, register_sharpness_method

__all__ = [
    "ECONOMIES",
    "RHO_SCHEDULES",
    "SHARPNESS_METHODS",
    "ClassConditionalSAM",
    "Economy",
    "FocalSAM",
    "LossContractError",
    "SharpnessStep",
    "SharpnessUpdate",
    "WeightedGradient",
    "class_weights",
    "register_sharpness_method",
    "scheduled_rho",
    "weighted_grad_rule",
]
