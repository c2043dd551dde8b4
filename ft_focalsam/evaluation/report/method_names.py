"""What the methods and their hyperparameters are called where people read about a run."""

from collections.abc import Iterable, Mapping
from typing import Any

METHOD_NAMES = {
    "none": "Plain training",
    "sam": "SAM",
    "weighted_sam": "SAM with the weight λ",
    "imbsam": "ImbSAM",
    "focal_sam": "Focal-SAM",
    "cc_sam": "CC-SAM",
}
SEVERAL = "several"  # a setting in which the runs of an average differ
SYMBOLS = {"rho": "ρ", "focal_gamma": "γ", "focal_lambda": "λ", "imbsam_eta": "η", "cc_sam_ratio": "r"}
HYPERPARAMETERS = {
    "sam": ("rho",),
    "weighted_sam": ("rho", "focal_lambda"),
    "imbsam": ("rho", "imbsam_eta"),
    "focal_sam": ("rho", "focal_gamma", "focal_lambda"),
    "cc_sam": ("rho", "cc_sam_ratio"),
}


def describe_values(method: Mapping[str, Any], names: Iterable[str]) -> str:
    """ "ρ (rho) = 0.05, γ (focal_gamma) = 1.5"."""
    titles = {name: f"{SYMBOLS[name]} ({name})" if name in SYMBOLS else name for name in names}
    return ", ".join(f"{titles[name]} = {method[name]:g}" for name in names if name in method)


def describe_length(method: Mapping[str, Any]) -> str:
    """ "20 epochs", or "300 steps" where max_steps is set."""
    if not {"num_train_epochs", "max_steps"} <= method.keys():
        return f"{SEVERAL} lengths"
    return f"{method['num_train_epochs']:g} epochs" if method["max_steps"] <= 0 else f"{method['max_steps']:,} steps"
