"""Sharpness of a class: max over ||epsilon|| <= rho of L_i(w + epsilon) - L_i(w) (Focal-SAM, arXiv 2505.01660)."""

from dataclasses import dataclass

from torch import Tensor

from ..sharpness.collectives import total_norm
from ..sharpness.directions import Parts, unit_direction
from .class_loss import ClassLoss, combined, gaussian, random_parts


@dataclass(frozen=True)
class Sharpness:
    """Two lower bounds of the maximum, the second one never below the first.

    Args:
        loss (`float`): L_i(w).
        gradient_norm (`float`): ||grad L_i(w)||.
        first_order (`float`): L_i(w + rho g / ||g||) - L_i(w), the perturbation of a SAM step; may be below 0.
        ascent (`float`, >= 0): The largest L_i(w + epsilon) - L_i(w) that projected gradient ascent came across.
    """

    loss: float
    gradient_norm: float
    first_order: float
    ascent: float


def measure_sharpness(loss: ClassLoss, *, rho: float, steps: int = 5, seed: int = 0) -> Sharpness:
    """Sharpness by one SAM step, and by projected gradient ascent from there.

    A step of the ascent is as long as the radius: epsilon <- P(epsilon + rho g / ||g||) with g the gradient at
    w + epsilon and P the projection on the ball. Where the gradient at w is 0, it begins in a random direction.

    Args:
        loss (`ClassLoss`): L_i.
        rho (`float`, > 0): The radius.
        steps (`int`, >= 0): Of the ascent.
        seed (`int`): Of that random direction.

    Raises:
        ValueError: If a loss is not finite.
    """
    at_w, gradient = loss.gradient()
    direction, norm = unit_direction(gradient)
    if not norm > 0:
        direction, _ = unit_direction(random_parts(loss.target, gaussian, seed=seed))
    epsilon = combined((rho, direction))
    increases = []
    for _ in range(steps):
        value, gradient = loss.gradient(epsilon)
        increases.append(value - at_w)
        direction, _ = unit_direction(gradient)
        epsilon = _project(combined((1.0, epsilon), (rho, direction)), rho)
    increases.append(loss.value(epsilon) - at_w)
    return Sharpness(at_w, float(norm), increases[0], max(0.0, *increases))


def _project(epsilon: Parts, rho: float) -> Parts:
    """The nearest point of the ball."""
    norm: Tensor = total_norm(list(epsilon.values()))
    return combined((float(rho / norm), epsilon)) if norm > rho else epsilon
