"""Errors of other libraries, and names that others chose, inside our own sentences; one error for all processes."""

import difflib
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_JOINERS = "\u200c\u200d"  # which Persian, Hindi and emoji are written with
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format, half of a character, line and paragraph separator


def printable(text: object) -> str:
    """A text that a terminal shows and does not obey: control characters, line breaks, and what turns the direction of
    writing, as escapes (`\\x1b`)."""
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _UNPRINTABLE and character not in _JOINERS
        else character
        for character in text
    )


def one_line(error: BaseException) -> str:
    """What an error says, printable, on one line and without the stop at its end."""
    return printable(" ".join(str(error).split()).rstrip(".;"))


def first_fault(fault: str | None) -> str | None:
    """What went wrong on the first process on which something did; None where nothing did on any."""
    from accelerate.utils import gather_object  # which imports torch; a mistyped key is told without it

    return next((found for found in gather_object([fault]) if found is not None), None)


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
        sys.exit("Error: " + printable(" ".join(line.strip() for line in str(error).splitlines())))
