"""Errors as one sentence: those of other libraries inside our own, and unknown names with the nearest known ones."""

import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def one_line(error: BaseException) -> str:
    """What an error says, on one line and without the stop at its end."""
    return " ".join(str(error).split()).rstrip(".;")


def nearest(name: str, known: Iterable[str], *, count: int = 1) -> list[str]:
    """The known names that a misspelt one is most like, the best first; empty where none is like it."""
    return difflib.get_close_matches(name, list(known), n=count)


def nearest_path(path: str | os.PathLike) -> str | None:
    """The existing path that a mistyped one is most like, part by part; None where none is like it."""
    found = Path()
    for part in Path(path).expanduser().parts:
        try:
            like = [part] if (found / part).exists() else nearest(part, (child.name for child in found.iterdir()))
        except OSError:
            return None
        if not like:
            return None
        found /= like[0]
    return str(found)


def did_you_mean(path: str | os.PathLike) -> str:
    """A question for the end of a sentence on a path that does not exist; empty where no other is like it."""
    like = nearest_path(path)
    return f" Did you mean '{like}'?" if like else ""


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
