"""What the methods and their hyperparameters are called where people read about a run."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...sharpness import SHARPNESS_METHODS, Hyperparameter
from ...sharpness.hyperparameters import hyperparameters_of

SEVERAL = "several"  # a setting in which the runs of an average differ


def method_title(name: str) -> str:
    """Of a sharpness method: "Focal-SAM"; one that is not registered here keeps its own."""
    return SHARPNESS_METHODS[name].title if name in SHARPNESS_METHODS else name


def method_hyperparameters(name: str) -> list[Hyperparameter]:
    """Of a sharpness method, rho first; none of one that is not registered here."""
    return SHARPNESS_METHODS[name].hyperparameters if name in SHARPNESS_METHODS else []


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
