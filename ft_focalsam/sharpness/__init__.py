"""The sharpness-aware step; needs torch and nothing of the rest of the package."""

from .class_conditional import ClassConditionalSAM
from .directions import DIRECTIONS, Direction
from .evaluations import EVALUATIONS, Evaluation
from .gradient_check import GradientCheck
from .gradients import WeightedGradient, weighted_grad_rule
from .hyperparameters import Hyperparameter, Search
from .optimizer import FocalSAM
from .passes import LossContractError
from .per_sample import per_sample_rule
from .schedules import RHO_SCHEDULES, scheduled_rho
from .step import SharpnessStep
from .targets import TARGETS, register_target
from .weights import SHARPNESS_METHODS, class_weights, register_sharpness_method

__all__ = [
    "DIRECTIONS",
    "EVALUATIONS",
    "RHO_SCHEDULES",
    "SHARPNESS_METHODS",
    "TARGETS",
    "ClassConditionalSAM",
    "Direction",
    "Evaluation",
    "FocalSAM",
    "GradientCheck",
    "Hyperparameter",
    "LossContractError",
    "Search",
    "SharpnessStep",
    "WeightedGradient",
    "class_weights",
    "per_sample_rule",
    "register_sharpness_method",
    "register_target",
    "scheduled_rho",
    "weighted_grad_rule",
]
