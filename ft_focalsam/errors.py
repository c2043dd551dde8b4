"""Errors of other libraries, and names that others chose, inside our own sentences; one error for all processes."""

import unicodedata

from accelerate.utils import gather_object

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
    return next((found for found in gather_object([fault]) if found is not None), None)
