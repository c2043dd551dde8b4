"""What a search draws, and between which ends: what the methods of a run declare."""

from collections.abc import Callable, Iterable
from dataclasses import field, make_dataclass
from typing import Any

from ..losses import LOSSES
from ..models import HEADS
from ..sharpness import SHARPNESS_METHODS, Hyperparameter
from ..sharpness.hyperparameters import hyperparameters_of
from ..tuning import TUNING_METHODS, choose_methods

SMALLEST = 1e-6  # on a log scale


def _with_search(declared: Iterable[Hyperparameter]) -> dict[str, Hyperparameter]:
    return {known.argument: known for known in declared if known.search is not None}


def searchable(options: tuple) -> dict[str, tuple[Any, Hyperparameter]]:
    """What the methods of a run declare a range for, by argument, each with the options that it is a field of.

    Args:
        options: The description of the run, of the types `TYPES`.
    """
    _, model_args, tuning_options, args = options
    owned = [(args, SHARPNESS_METHODS[args.sharpness].hyperparameters)]
    owned += [(args, hyperparameters_of(LOSSES[args.loss]).values())]
    owned += [(model_args, hyperparameters_of(HEADS[model_args.head]).values())]
    for method in choose_methods(model_args.tuning):
        owned += [(tuning_options, hyperparameters_of(method.options).values())]
    return {key: (owner, known) for owner, each in owned for key, known in _with_search(each).items()}


def _all_searchable() -> dict[str, Hyperparameter]:
    makers = [*LOSSES.values(), *HEADS.values(), *(method.options for method in TUNING_METHODS.values())]
    declared = [known for method in SHARPNESS_METHODS.values() for known in method.hyperparameters]
    return _with_search([*declared, *(known for make in makers for known in hyperparameters_of(make).values())])


def range_key(known: Hyperparameter) -> str:
    """The option that sets the ends of a hyperparameter."""
    return known.search.key or f"{known.argument}_range"


def with_ranges(base: type, *, name: str) -> type:
    """A dataclass with the fields of `base` and the ends of all that can be searched."""
    fields = []
    for known in _all_searchable().values():
        ends = [known.search.low, known.search.high]
        text = f"Lowest and highest {known.argument}{', searched on a log scale' if known.search.log else ''}."
        fields.append((range_key(known), list[float], field(default_factory=ends.copy, metadata={"help": text})))
    made = make_dataclass(name, fields, bases=(base,))
    made.__module__, made.__doc__ = base.__module__, base.__doc__
    return made


def check_ranges(search: Any) -> None:
    """Raise a `ValueError` unless all ends are in the range of their hyperparameter, the lower one first."""
    for known in _all_searchable().values():
        ends = getattr(search, range_key(known))
        is_in_range = all(end in known and not (known.search.log and end < SMALLEST) for end in ends)
        if len(ends) != 2 or not is_in_range or ends[0] > ends[1]:
            allowed = f"{SMALLEST:g} or more" if known.search.log else str(known)
            raise ValueError(f"{range_key(known)} is {ends}; give two numbers, {allowed}, the lower one first.")


def search_space(search: Any, options: tuple) -> Callable:
    """What a trial draws: the `hp_space` of the Trainer. Values of the model are set in their options; those of the
    Trainer it sets itself."""
    *_, args = options

    def draw(trial) -> dict[str, float]:
        values = {}
        for key, (owner, known) in searchable(options).items():
            low, high = getattr(search, range_key(known))
            if known.kind is int:
                value = trial.suggest_int(key, int(low), int(high), log=known.search.log)
            else:
                value = trial.suggest_float(key, low, high, log=known.search.log)
            if owner is args:
                values[key] = value
            else:
                setattr(owner, key, value)
        return values

    return draw


def searches_the_model(options: tuple) -> bool:
    """Whether a trial has another model, and not just another training."""
    return any(owner is not options[-1] for owner, _ in searchable(options).values())
