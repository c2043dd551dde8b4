"""Ways to the gradients of L and of the class-weighted loss L_c: `scaled.py` where all classes have one weight,
`single_backward.py` by one backward pass, `second_backward.py` by one more, and `verified.py`, which compares the
latter two and chooses."""

from .base import BatchLosses, GradientPair
from .rules import weighted_grad_rule
from .scaled import ScaledGradient
from .verified import WeightedGradient

__all__ = [
    "BatchLosses",
    "GradientPair",
    "ScaledGradient",
    "WeightedGradient",
    "weighted_grad_rule",
]
