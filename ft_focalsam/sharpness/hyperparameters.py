"""Hyperparameters where a method is defined: in its signature, with all there is to say of them.

    def focal_sam(class_counts, *, gamma: Annotated[float, Hyperparameter("Focusing parameter.", low=0)] = 1.0): ...

Arguments, checks, model cards, reports and searches read them from there.
"""

import inspect
import math
import sys
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, make_dataclass, replace
from functools import cache
from typing import Any


@dataclass(frozen=True)
class Search:
    """Where a search of hyperparameters looks.

    Args:
        low, high (`float`): The lowest and the highest value that are tried.
        log (`bool`): Draw on a log scale.
        key (`str`, *optional*): The option that sets the two; by default the name of the argument and "_range".
    """

    low: float
    high: float
    log: bool = False
    key: str = ""


@dataclass(frozen=True)
class Hyperparameter:
    """What a method says of a parameter, as a note of its type. It contains the values that the parameter takes.

    Args:
        help (`str`): A sentence for `--help`.
        argument (`str`, *optional*): Its name as a training argument; by default that of the parameter.
        low, high (`float`): The ends of its range; by default any finite number.
        open_low, open_high (`bool`): The end itself is outside.
        symbol (`str`): The letter that its paper has for it, for cards and reports.
        search ([`Search`], *optional*): Where a search looks; without it a search leaves the parameter as it is.

    Attributes:
        default: The default in the signature.
        kind (`type`): The type in the signature.
    """

    help: str
    argument: str = ""
    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    open_low: bool = False
    open_high: bool = False
    symbol: str = ""
    search: Search | None = None
    default: Any = None
    kind: Any = float

    otherwise = ""  # as `ft_focalsam.base.ranges.Range` has it

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        has_low, has_high = self.low > -sys.float_info.max, self.high < sys.float_info.max
        if has_low and has_high and not (self.open_low or self.open_high):
            return f"from {self.low:g} to {self.high:g}"
        low = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        high = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        return " and ".join(text for text, has in ((low, has_low), (high, has_high)) if has) or "that is finite"

    @property
    def title(self) -> str:
        """What a reader finds it by: "γ (focal_gamma)"."""
        return f"{self.symbol} ({self.argument})" if self.symbol else self.argument

    def check(self, name: str, value: Any) -> None:
        """Raise a `ValueError` unless the value is in the range, or is a default of None."""
        if value is None and self.default is None:
            return
        if math.isnan(value) or value not in self:
            raise ValueError(f"{name} is {value}; set it to {'' if str(self)[0].isdigit() else 'a number '}{self}.")


@cache
def hyperparameters_of(method: Callable) -> dict[str, Hyperparameter]:
    """The hyperparameters of a function or of a class, by the name of the parameter."""
    constructor = method.__init__ if inspect.isclass(method) else method
    hints = typing.get_type_hints(constructor, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        kind, *notes = typing.get_args(hints.get(name)) if hasattr(hints.get(name), "__metadata__") else (None,)
        for note in notes:
            if isinstance(note, Hyperparameter):
                argument = note.argument or name
                found[name] = replace(note, argument=argument, default=parameter.default, kind=kind)
    return found


def check_hyperparameters(method: Callable, values: dict[str, Any]) -> None:
    """Check values by the name of the parameter.

    Raises:
        ValueError: If one is out of its range.
    """
    for name, known in hyperparameters_of(method).items():
        if name in values:
            known.check(name, values[name])


def by_argument(methods: Iterable[Callable]) -> dict[str, Hyperparameter]:
    """The hyperparameters of methods by the names of the arguments; several may share one.

    Raises:
        ValueError: If two methods say different things of one argument.
    """
    found: dict[str, Hyperparameter] = {}
    for method in methods:
        for known in hyperparameters_of(method).values():
            if found.setdefault(known.argument, known) != known:
                raise ValueError(
                    f"The argument {known.argument!r} of {method.__qualname__} has another default, range or help "
                    "than that of another method; give it another name, or the same declaration."
                )
    return found


def values_for(method: Callable, arguments: Any) -> dict[str, Any]:
    """The hyperparameters of a method as arguments have them, by the name of the parameter."""
    return {
        name: getattr(arguments, known.argument, known.default) for name, known in hyperparameters_of(method).items()
    }


def with_hyperparameters(base: type, methods: Iterable[Callable], *, name: str) -> Any:
    """A dataclass with the fields of `base` and one for each hyperparameter of methods.

    Args:
        base (dataclass type): Its docstring gets an entry for each.
        methods (iterable of functions or classes): With [`Hyperparameter`]s.
        name (`str`): Of the new class.
    """
    known = by_argument(methods)
    fields = [
        (argument, typing.Annotated[each.kind, each], field(default=each.default, metadata={"help": each.help}))
        for argument, each in known.items()
    ]
    made = make_dataclass(name, fields, bases=(base,))
    made.__module__ = base.__module__
    text, raises, rest = inspect.cleandoc(base.__doc__ or "").partition("\n\nRaises:")
    entries = [f"    {each.argument} ({_documented(each)}):\n        {each.help}\n" for each in known.values()]
    if not known:
        made.__doc__ = base.__doc__
        return made
    made.__doc__ = f"{text}\n\n> Hyperparameters of the methods\n\nArgs:\n{''.join(entries)}".rstrip() + raises + rest
    return made


def _documented(known: Hyperparameter) -> str:
    """ "`float`, >= 0, defaults to `1.0`"."""
    kind = getattr(known.kind, "__name__", str(known.kind))
    optional = ["*optional*"] if known.default is None else []
    bounds = [] if str(known) == "that is finite" else [str(known)]
    return ", ".join([f"`{kind}`", *bounds, *optional, f"defaults to `{known.default}`"])
