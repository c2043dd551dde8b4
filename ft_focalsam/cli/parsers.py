"""Parsers of command lines, whose errors are one sentence."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """A parser of a command: keys are written out, and an error is a `ValueError` that says where the help is."""

    def error(self, message: str) -> NoReturn:
        """Raise the error instead of ending the process with the usage."""
        raise ValueError(f"{message[:1].upper()}{message[1:]}; --help lists all keys.")


def command_parser(name: str, description: str) -> CommandParser:
    """The parser of `ft-focalsam NAME`, with the docstring of its file as the description."""
    return CommandParser(
        prog=f"ft-focalsam {name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
