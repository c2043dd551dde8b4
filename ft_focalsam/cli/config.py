"""What a run is described by: a YAML file of defaults, overridden on the command line."""

import argparse
import sys
from collections.abc import Callable, Sequence

from transformers import HfArgumentParser

from .config_files import ConfigError, find_config, read_with_bases, unknown_key
from .parsers import CommandParser

__all__ = ["ConfigError", "DataclassParser", "config_parser", "parse_config"]


class _OrNull:
    """The type of a key that may be unset: on the command line, as in YAML, by `null`."""

    def __init__(self, kind: Callable[[str], object]):
        self.kind, self.__name__ = kind, kind.__name__

    def __call__(self, text: str) -> object:
        return None if text == "null" else self.kind(text)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind the help of each key, and texts as they are written."""


class DataclassParser(HfArgumentParser, CommandParser):
    """The keys of dataclasses, with errors in one sentence."""


def config_parser(argument_types: Sequence[type], *, epilog: str = "") -> HfArgumentParser:
    """A parser of `[config.yaml] [--key value ...]` whose keys are the fields of dataclasses."""
    parser = DataclassParser(
        argument_types,
        allow_abbrev=False,
        usage="%(prog)s [config.yaml] [--key value ...]",
        epilog=epilog,
        formatter_class=_HelpFormatter,
    )
    for action in parser._actions:
        if action.default is None and action.nargs is None and action.choices is None and action.type is not None:
            action.type = _OrNull(action.type)
    return parser


def parse_config(argument_types: Sequence[type], argv: Sequence[str] | None = None, *, epilog: str = "") -> tuple:
    """Read `[config.yaml] [--key value ...]` into dataclasses: YAML sets the defaults, the command line wins.

    The file is given by its path, or by its name where it ships with the package. With the line `base: other.yaml` a
    file inherits from another one in or near its folder, and its own keys win. A key without a default is unset by
    `null`, in a file and on the command line.

    Args:
        argument_types (sequence of dataclass types): Their fields are the keys.
        argv (sequence of `str`, *optional*): Defaults to the arguments of the running script.
        epilog (`str`): What `--help` says below the keys.

    Returns:
        One instance of each type.

    Raises:
        ConfigError: If the file or one it inherits from is missing or no mapping, files inherit from each other in a
            circle, a key is unknown (with the nearest known one), or a value is not of the kind its key takes.
        ValueError: What the dataclasses themselves raise.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = config_parser(argument_types, epilog=epilog)
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    keys = set(actions)
    if argv and not argv[0].startswith("-"):
        defaults = {}
        for path, content in read_with_bases(find_config(argv.pop(0)), keys):
            defaults |= {k: _convert(parser, actions[k], v, where=path) for k, v in content.items()}
        parser.set_defaults(**defaults)
    *parsed, remaining = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if remaining and not remaining[0].startswith("-"):
        raise ConfigError(f"Stray '{remaining[0]}' on the command line; write [config.yaml] [--key value ...].")
    if remaining and remaining[0].lstrip("-") in keys:
        raise ConfigError(f"'{remaining[0]}' on the command line has one dash; write '-{remaining[0]}'.")
    if remaining:
        raise ConfigError(unknown_key(remaining[0].lstrip("-").partition("=")[0], keys, where="on the command line"))
    return tuple(parsed)


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, value, *, where: str):
    """A value from YAML, checked and converted as the same one on the command line would be."""
    is_list = action.nargs == "+"
    kind = action.type.kind if isinstance(action.type, _OrNull) else action.type
    if isinstance(value, dict) or (isinstance(value, list) and kind is str and not is_list):
        return value  # of the Trainer's own arguments that take more than the command line can say
    if value is None and action.default is None:
        return None
    values = value if isinstance(value, list) else [value]
    try:
        if value is None or (isinstance(value, list) and not is_list):
            raise argparse.ArgumentError(action, "it takes one value" if value else "it has no value")
        return parser._get_values(action, [str(v) for v in values]) if values else []
    except argparse.ArgumentError as error:
        raise ConfigError(
            f"The key '{action.dest}' in '{where}' cannot be {value!r}: {error.message}; correct it, or leave the key "
            "out for its default."
        ) from error
