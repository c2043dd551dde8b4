"""Schedules of rho over training: a new one is one entry of `RHO_SCHEDULES`."""

import math
from collections.abc import Callable

# (progress from 0 to 1, fraction at which a step happens) -> share of the way from the initial rho to rho.
RHO_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, step_at: 1.0,
    "linear": lambda progress, step_at: progress,
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
        schedule (`str`): "constant": rho; "linear": from `initial` to rho over the whole training; "step": `initial`
            before the fraction `step_at` of training, rho from there on.
        rho (`float`, >= 0): The radius that is reached.
        progress (`float`, 0 to 1): Share of the optimizer steps that have been taken.
        initial (`float`, >= 0): The radius at the beginning, for "linear" and "step".
        step_at (`float`, 0 to 1): See "step".

    Raises:
        ValueError: If the schedule is unknown or a value is out of range.
    """
    if schedule not in RHO_SCHEDULES:
        raise ValueError(f"rho_schedule is {schedule!r}; choose one of {', '.join(RHO_SCHEDULES)}.")
    check_rho(rho)
    check_rho(initial, name="rho_initial")
    for name, value in (("progress", progress), ("rho_step_at", step_at)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; it is a fraction of training, from 0 to 1.")
    return initial + (rho - initial) * RHO_SCHEDULES[schedule](progress, step_at)
