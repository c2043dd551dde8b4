"""Errors of other libraries inside our own sentences."""


def one_line(error: BaseException) -> str:
    """What an error says, on one line and without the stop at its end."""
    return " ".join(str(error).split()).rstrip(".;")
