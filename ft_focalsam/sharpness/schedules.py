"""Schedules over training, of rho and of the class-wise weights c: a new one is one entry of `SCHEDULES`."""

import math
from collections.abc import Callable

from torch import Tensor

# (progress from 0 to 1, fraction at which a step happens) -> share of the way from the initial value to the final one.
SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, step_at: 1.0,
    "linear": lambda progress, step_at: progress,
    "cosine": lambda progress, step_at: (1 - math.cos(math.pi * progress)) / 2,
    "step": lambda progress, step_at: float(progress >= step_at),
}


def check_rho(rho: float, *, name: str = "rho") -> None:
    """Raise a `ValueError` unless rho is a finite number, 0 or more."""
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"{name} is {rho}; set the radius of the perturbation to 0 (plain training) or more.")


def scheduled_rho(schedule: str, rho: float, *, progress: float, initial: float = 0.0, step_at: float = 0.5) -> float:
    """Radius of the perturbation at a moment of training.

    Steps at rho = 0 are plain ones and cost what these cost: "step" from an initial 0 starts the method at a fraction
    of training.

    Args:
        schedule (`str`): "constant": rho; "linear": from `initial` to rho over the whole training; "cosine": the same
            along half a cosine; "step": `initial` before the fraction `step_at` of training, rho from there on.
        rho (`float`, >= 0): The radius that is reached.
        progress (`float`, 0 to 1): Share of the optimizer steps that have been taken.
        initial (`float`, >= 0): The radius at the beginning, for all but "constant".
        step_at (`float`, 0 to 1): See "step".

    Raises:
        ValueError: If the schedule is unknown or a value is out of range.
    """
    check_rho(rho)
    check_rho(initial, name="rho_initial")
    return initial + (rho - initial) * _share("rho", schedule, progress, step_at)


def scheduled_weights(
    schedule: str, class_weights: Tensor, *, progress: float, initial: Tensor, step_at: float = 0.5
) -> Tensor:
    """Class-wise sharpness weights c at a moment of training: (1 - s) c_initial + s c, with s from 0 to 1.

    Args:
        schedule (`str`): As for [`scheduled_rho`].
        class_weights (`Tensor` of shape (C,)): c that is reached, see `class_weights`.
        progress (`float`, 0 to 1): Share of the optimizer steps that have been taken.
        initial (`Tensor` of shape (C,)): c at the beginning, for all but "constant".
        step_at (`float`, 0 to 1): See "step".

    Returns:
        `Tensor` of shape (C,); exactly `initial` where s is 0 and `class_weights` where it is 1.

    Raises:
        ValueError: If the schedule is unknown, a value is out of range, or the two have another shape.
    """
    if initial.shape != class_weights.shape:
        raise ValueError(
            f"The initial class weights have shape {tuple(initial.shape)} and the final ones "
            f"{tuple(class_weights.shape)}; give one weight per class in both."
        )
    share = _share("sharpness", schedule, progress, step_at)
    return (1 - share) * initial + share * class_weights


def _share(what: str, schedule: str, progress: float, step_at: float) -> float:
    """Share of the way from the initial value of `what` to the final one."""
    if schedule not in SCHEDULES:
        raise ValueError(f"{what}_schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}.")
    for name, value in (("progress", progress), (f"{what}_step_at", step_at)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a fraction of training, from 0 to 1.")
    return SCHEDULES[schedule](progress, step_at)
