"""Cheaper schedules: updates that leave out a part of the sharpness-aware step, for those who trade it for time.

All are off by default. What each costs, and what it does to the gradient and to accuracy, is measured in
`recipes/RESULTS.md`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

ECONOMIES = ("none", "every_k", "look_sam", "split_batch")


@dataclass(frozen=True)
class Economy:
    """How updates are made cheaper.

    Args:
        name (`str`): "none": every step takes both passes.
            "every_k": one step in `interval` does, the others are plain.
            "look_sam": as "every_k", but the plain steps in between add the part of the last sharpness-aware gradient
            g that is orthogonal to the plain one, v = g - (g . grad L / ||grad L||^2) grad L, as
            grad L + look_alpha ||grad L|| v / ||v|| (LookSAM: Liu et al., arXiv 2203.02714, algorithm 1).
            "split_batch": epsilon comes from a running average of grad L_c(w + epsilon); each sample n is evaluated
            once, at w + epsilon with a probability q_n proportional to c(n) and weight c(n) / q_n, else at w with
            weight (1 - c(n)) / (1 - q_n), so that the expectation over the draw is the gradient of the exact step
            for that epsilon.
        interval (`int`, >= 1): k of "every_k" and "look_sam".
        look_alpha (`float`, >= 0): alpha of "look_sam".
        average_decay (`float`, 0 to below 1): Share of the old average that "split_batch" keeps in a step.

    Raises:
        ValueError: If the name is unknown or a value is out of range.
    """

    name: str = "none"
    interval: int = 5
    look_alpha: float = 0.7
    average_decay: float = 0.9

    def __post_init__(self):
        if self.name not in ECONOMIES:
            raise ValueError(f"economy is {self.name!r}; choose one of {', '.join(ECONOMIES)}.")
        if self.interval != int(self.interval) or self.interval < 1:
            raise ValueError(f"economy_interval is {self.interval}; set it to a number of steps, 1 or more.")
        if not (self.look_alpha >= 0 and math.isfinite(self.look_alpha)):
            raise ValueError(f"look_alpha is {self.look_alpha}; set it to 0 or more.")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; set it to 0 or more, and below 1.")

    @property
    def keeps_direction(self) -> bool:
        """Whether a direction is carried from step to step, and into checkpoints."""
        return self.name in ("look_sam", "split_batch")

    def check_scope(self, scope: str) -> None:
        """Raise a `ValueError` where every process would carry another direction."""
        if self.keeps_direction and scope == "local":
            raise ValueError(
                f"The economy {self.name} carries one direction for all processes; set perturbation_scope to "
                "'global', or choose the economy every_k."
            )


def orthogonal_part(gradient: list[Tensor], plain: list[Tensor]) -> list[Tensor]:
    """Unit vector along what of `gradient` is orthogonal to `plain`; 0 where that is nothing or not finite.

    Args:
        gradient, plain (lists of `Tensor`): The sharpness-aware and the plain gradient, of the same shapes.
    """
    along = sum((g * p).sum() for g, p in zip(gradient, plain, strict=True))
    norm2 = sum((p * p).sum() for p in plain)
    part = [g - along / norm2 * p for g, p in zip(gradient, plain, strict=True)]
    length = sum((v * v).sum() for v in part).sqrt()
    usable = torch.isfinite(length) & (length > 0)
    return [torch.where(usable, v / length, 0.0) for v in part]


def perturbed_probabilities(weights: Tensor, largest: float) -> Tensor:
    """Probability q_n, proportional to c(n), that a sample is evaluated at w + epsilon.

    q_n = c(n) where no class has a weight above 1: every sample then counts with weight 1. Else q_n = 0.9 c(n) /
    max_i c_i, so that each sample with c(n) above 1 is still evaluated at w now and then, where it has a part too.

    Args:
        weights (`Tensor` of shape (B,)): c(n).
        largest (`float`): max_i c_i over all classes.
    """
    return weights if largest <= 1 else weights * (0.9 / largest)


def systematic_draw(probabilities: Tensor, offset: float) -> Tensor:
    """Draw each sample with its probability, and their number as evenly as possible (systematic sampling).

    Args:
        probabilities (`Tensor` of shape (B,)): Each from 0 to 1.
        offset (`float`): A random number, uniform from 0 to below 1; it makes the whole draw.

    Returns:
        `Tensor` of bools, shape (B,): P(n is drawn) is exactly its probability; floor or ceil of their sum are drawn.
    """
    ends = probabilities.double().cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return (torch.floor(ends - offset) > torch.floor(starts - offset)) | (probabilities >= 1)
