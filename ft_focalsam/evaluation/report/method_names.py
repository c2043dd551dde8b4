"""What the methods and their hyperparameters are called where people read about a run."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...sharpness import SCHEDULES, SHARPNESS_METHODS, Hyperparameter
from ...sharpness.hyperparameters import hyperparameters_of

SEVERAL = "several"  # a setting in which the runs of an average differ


def method_title(name: str) -> str:
    """Of a sharpness method: "Focal-SAM"; one that is not registered here keeps its own."""
    return SHARPNESS_METHODS[name].title if name in SHARPNESS_METHODS else name


def method_hyperparameters(name: str) -> list[Hyperparameter]:
    """Of a sharpness method, rho first; none of one that is not registered here."""
    return SHARPNESS_METHODS[name].hyperparameters if name in SHARPNESS_METHODS else []


def describe_weights_schedule(method: Mapping[str, Any]) -> str:
    """ "step from SAM, sharpness_step_at = 0.6"; nothing where the class weights stay as they are."""
    schedule, initial = method.get("sharpness_schedule"), method.get("sharpness_initial")
    if schedule not in SCHEDULES.keys() - {"constant"} or initial not in SHARPNESS_METHODS:
        return ""
    known = hyperparameters_of(SHARPNESS_METHODS[initial].make).values()
    values = describe_values({**method, **(method.get("sharpness_initial_values") or {})}, known)
    parts = [f"{schedule} from {method_title(initial)}{f' ({values})' if values else ''}"]
    parts += [f"sharpness_step_at = {method['sharpness_step_at']:g}"] if schedule == "step" else []
    return ", ".join(parts)


def declared(registry: Mapping[str, Callable], name: str) -> list[Hyperparameter]:
    """What a loss, a direction or a head declares; nothing where it is not registered here."""
    return list(hyperparameters_of(registry[name]).values()) if name in registry else []


def describe_values(method: Mapping[str, Any], known: Iterable[Hyperparameter]) -> str:
    """ "ρ (rho) = 0.05, γ (focal_gamma) = 1.5", of those that a run.json has a value for."""
    values = [(each.title, method.get(each.argument)) for each in known]
    return ", ".join(f"{title} = {value:g}" for title, value in values if value is not None)


def describe_length(method: Mapping[str, Any]) -> str:
    """ "20 epochs", or "300 steps" where max_steps is set."""
    if not {"num_train_epochs", "max_steps"} <= method.keys():
        return f"{SEVERAL} lengths"
    return f"{method['num_train_epochs']:g} epochs" if method["max_steps"] <= 0 else f"{method['max_steps']:,} steps"
