"""Errors as one sentence: those of other libraries inside our own, and unknown names with the nearest known ones."""

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


def one_line(error: BaseException) -> str:
    """What an error says, on one line and without the stop at its end."""
    return " ".join(str(error).split()).rstrip(".;")


def nearest(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """The known names that a misspelt one is most like, the best first; empty where none is like it."""
    return difflib.get_close_matches(name, list(known), n=count)


def unknown(key: str, value: str, known: Iterable[str]) -> str:
    """A sentence for a value that is none of those known."""
    known = list(known)
    choose = "".join(f"did you mean '{name}'? Choose" for name in nearest(value, known)) or "choose"
    return f"{key} is {value!r}; {choose} one of {', '.join(known)}."


@contextmanager
def told_in_one_sentence() -> Iterator[None]:
    """End a script with one sentence where what the user asked for cannot be done, without a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit("Error: " + " ".join(line.strip() for line in str(error).splitlines()))
