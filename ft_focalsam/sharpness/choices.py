"""Which choices of an update go together."""

from .collectives import PERTURBATION_SCOPES
from .directions import Direction, Gradient
from .targets import TARGETS


def check_choices(*, scope: str, perturb: str, direction: Direction, adaptive: bool) -> None:
    """Raise a `ValueError` for choices that are unknown or do not go together."""
    if scope not in PERTURBATION_SCOPES:
        raise ValueError(f"perturbation_scope is {scope!r}; choose one of {', '.join(PERTURBATION_SCOPES)}.")
    if perturb not in TARGETS:
        raise ValueError(f"perturb is {perturb!r}; choose one of {', '.join(TARGETS)}.")
    name = type(direction).__name__.lower()
    if direction.learns and scope == "local":
        raise ValueError(
            f"ascent is '{name}', which carries one direction for all processes, and perturbation_scope is 'local'; "
            "set it to 'global'."
        )
    if adaptive and (perturb == "merged" or name == "gaussian"):
        what = "perturb is 'merged', whose weights stand nowhere" if perturb == "merged" else "ascent is 'gaussian'"
        raise ValueError(f"adaptive_rho measures the radius relative to each weight, and {what}; set it to false.")


def check_sharded(scope: str, perturb: str, direction: Direction) -> None:
    """Raise a `ValueError` for what a model that is sharded over processes cannot have."""
    if scope == "local":
        raise ValueError(
            "perturbation_scope is 'local' and the model is sharded over processes, none of which has a gradient of "
            "its own; set it to 'global'."
        )
    if perturb != "trained" or not isinstance(direction, Gradient):
        raise ValueError(
            f"perturb is {perturb!r} and ascent '{type(direction).__name__.lower()}', and the model is sharded over "
            "processes; set them to 'trained' and 'gradient', or use plain data parallelism."
        )
