"""Which numbers a key takes, `rho: Annotated[float, Range(0)]`, and one check for all keys."""

import dataclasses
import math
import sys
import typing
from collections.abc import Container, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Range:
    """Numbers between two ends.

    Args:
        low, high (`float`): The ends; by default any finite number.
        open_low, open_high (`bool`): The end itself is outside.
        otherwise (`str`): What else a user may want, for the error message: "or leave it out to ...".
    """

    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    open_low: bool = False
    open_high: bool = False
    otherwise: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        has_low, has_high = abs(self.low) < sys.float_info.max, abs(self.high) < sys.float_info.max
        if has_low and has_high and not (self.open_low or self.open_high):
            return f"from {self.low:g} to {self.high:.10g}"
        low = f"above {self.low:g}" if self.open_low else f"{self.low:g} or more"
        high = f"below {self.high:g}" if self.open_high else f"at most {self.high:g}"
        return " and ".join(text for text, has in ((low, has_low), (high, has_high)) if has) or "that is finite"


SEED = Range(0, 2**32 - 1)  # what NumPy takes


def check_numbers(arguments: Any, further: Mapping[str, Range] = {}) -> None:
    """See that the numbers of a dataclass are in the ranges of their fields; defaults always are.

    Args:
        arguments (dataclass instance): Its numeric fields may be annotated by a `Range`, or by a `Hyperparameter`,
            which is one too; any finite number fits the others.
        further (mapping of `str` to `Range`): Ranges of fields that another library declares.

    Raises:
        ValueError: If one is not; names the key, the value and the range.
    """
    hints = typing.get_type_hints(type(arguments), include_extras=True)
    for field in dataclasses.fields(arguments):
        hint, value = hints[field.name], getattr(arguments, field.name)
        ranges = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Container)]
        hint = hint.__origin__ if ranges else hint
        kinds = {hint, *typing.get_args(hint)}
        if not kinds & {int, float} or value is None or value == field.default:
            continue
        allowed: Any = further.get(field.name) or next(iter(ranges), Range())
        is_whole = float not in kinds
        for number in value if isinstance(value, (list, tuple)) else [value]:
            is_number = isinstance(number, Integral if is_whole else Real) and not isinstance(number, bool)
            if is_number and not math.isnan(number) and number in allowed:
                continue
            wanted = str(allowed)
            if not wanted[0].isdigit() or not is_number:
                comma = "," if wanted[0].isdigit() else ""
                wanted = f"a {'whole ' if is_whole else ''}number{comma} {wanted}"
            otherwise = allowed.otherwise or (", or leave it out" if field.default is None else "")
            raise ValueError(f"{field.name} is {value!r}; set it to {wanted}{otherwise}.")
