"""`TuningOptions`: the options of all tuning methods, which each declares in its own file."""

import inspect
from dataclasses import make_dataclass
from typing import Any

from .methods import TUNING_METHODS
from .registry import CommonOptions


def _entries(kind: type) -> str:
    """What its docstring says of its fields."""
    return inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]


_KINDS: list[type[CommonOptions]] = list(
    dict.fromkeys([CommonOptions, *(method.options for method in TUNING_METHODS.values())])
)
# Any: what the methods declare is not seen by type checkers. The fields of the last base come first.
TuningOptions: Any = make_dataclass("TuningOptions", [], bases=tuple(reversed(_KINDS)))
TuningOptions.__module__ = __name__
_DOCUMENTED = "\n".join(map(_entries, _KINDS))
TuningOptions.__doc__ = f"""Sizes and places of what is tuned; each method reads its own.

Args:
{_DOCUMENTED}

Raises:
    ValueError: If a value is out of range.
"""
