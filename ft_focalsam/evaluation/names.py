"""Names of classes, runs and data sets where they are shown or written; they come from folders and data sets, and may
hold anything."""

import unicodedata

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control characters, direction marks, lone surrogates, line separators
_JOINERS = "\u200c\u200d"  # of Persian, Indic scripts and emoji, which are read with them
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet takes for the start of a formula


def printable(text: str) -> str:
    """Text on one line without a character that moves the cursor, turns the direction or hides: each is spelled out,
    as `\\x1b` or `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _HIDDEN and char not in _JOINERS
        else char
        for char in text
    )


def to_cell(text: str) -> str:
    """Text as a cell of a CSV file that no spreadsheet takes for a formula: `=1+1` becomes `'=1+1`."""
    return f"'{text}" if _is_formula(text) else text


def from_cell(cell: str) -> str:
    """The text that [`to_cell`] was given."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell) else cell


def _is_formula(text: str) -> bool:
    return text.lstrip("' ").startswith(_FORMULA)
