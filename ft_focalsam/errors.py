"""Errors of other libraries inside our own sentences, and one error for all processes."""

from accelerate.utils import gather_object


def one_line(error: BaseException) -> str:
    """What an error says, on one line and without the stop at its end."""
    return " ".join(str(error).split()).rstrip(".;")


def first_fault(fault: str | None) -> str | None:
    """What went wrong on the first process on which something did; None where nothing did on any."""
    return next((found for found in gather_object([fault]) if found is not None), None)
