"""What a run is described by: a YAML file of defaults, overridden on the command line."""

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import HfArgumentParser

from ..errors import one_line
from ..finding import did_you_mean
from ..parsing import parse_yaml

# In a YAML file: another one that it inherits from, by its path relative to the folder of the file.
BASE_KEY = "base"


class ConfigError(ValueError):
    """A run description that cannot be used; the message says what to change."""


class _OrNull:
    """The type of a key that may be unset: on the command line, as in YAML, by `null`."""

    def __init__(self, kind: Callable[[str], object]):
        self.kind, self.__name__ = kind, kind.__name__

    def __call__(self, text: str) -> object:
        return None if text == "null" else self.kind(text)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind the help of each key, and an epilog as it is written."""


def parse_config(argument_types: Sequence[type], argv: Sequence[str] | None = None, *, epilog: str = "") -> tuple:
    """Read `[config.yaml] [--key value ...]` into dataclasses: YAML sets the defaults, the command line wins.

    With the line `base: other.yaml` a file inherits from another one in or near its folder, and its own keys win. A
    key without a default is unset by `null`, in a file and on the command line.

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
    parser = HfArgumentParser(
        argument_types,
        allow_abbrev=False,
        usage="%(prog)s [config.yaml] [--key value ...]",
        epilog=epilog,
        formatter_class=_HelpFormatter,
    )
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    keys = set(actions)
    for action in actions.values():
        if action.default is None and action.nargs is None and action.choices is None and action.type is not None:
            action.type = _OrNull(action.type)
    if argv and not argv[0].startswith("-"):
        defaults = {}
        for path, content in _read_with_bases(argv.pop(0), keys | {BASE_KEY}):
            defaults |= {k: _convert(parser, actions[k], v, where=path) for k, v in content.items()}
        parser.set_defaults(**defaults)
    *parsed, remaining = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if remaining and not remaining[0].startswith("-"):
        raise ConfigError(f"Stray '{remaining[0]}' on the command line; write [config.yaml] [--key value ...].")
    if remaining and remaining[0].lstrip("-") in keys:
        raise ConfigError(f"'{remaining[0]}' on the command line has one dash; write '-{remaining[0]}'.")
    if remaining:
        raise ConfigError(_unknown(remaining[0].lstrip("-").partition("=")[0], keys, where="on the command line"))
    return tuple(parsed)


def _read_with_bases(path: str, keys: set[str], *, heirs: tuple[str, ...] = ()) -> list[tuple[str, dict]]:
    """Path and content of a file and of all it inherits from, these first; `heirs` are the files that led to it."""
    if Path(path).resolve() in [Path(heir).resolve() for heir in heirs]:
        circle = "' -> '".join([*heirs, path])
        raise ConfigError(f"Configuration files inherit in a circle: '{circle}'; take '{BASE_KEY}' out of one.")
    content = _read_yaml(path, keys, whose=f", the base of '{heirs[-1]}'," if heirs else "")
    if BASE_KEY not in content:
        return [(path, content)]
    base = content.pop(BASE_KEY)
    if not isinstance(base, str):
        raise ConfigError(f"The key '{BASE_KEY}' in '{path}' cannot be {base!r}; set it to the path of one YAML file.")
    return [*_read_with_bases(str(Path(path).parent / base), keys, heirs=(*heirs, path)), (path, content)]


def _read_yaml(path: str, keys: set[str], *, whose: str) -> dict:
    if not Path(path).is_file():
        is_folder = Path(path).is_dir()
        problem = "is a folder; give a file in it." if is_folder else "does not exist; check the path."
        raise ConfigError(f"The configuration file '{path}'{whose} {problem}{'' if is_folder else did_you_mean(path)}")
    try:
        content = parse_yaml(Path(path).read_bytes()) or {}
    except OSError as error:
        raise ConfigError(f"The configuration file '{path}' cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(
            f"The configuration file '{path}' is not valid YAML: {one_line(error)}; correct it."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"The configuration file '{path}' holds a {type(content).__name__}; write `key: value` lines."
        )
    for key in content:
        if key not in keys:
            raise ConfigError(_unknown(str(key), keys, where=f"in '{path}'"))
    return content


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


def _unknown(key: str, keys: set[str], *, where: str) -> str:
    if key in ("config", "config_file", "yaml"):
        return f"Unknown key '{key}' {where}; the configuration file comes first and without a key."
    nearest = difflib.get_close_matches(key.replace("-", "_"), keys, n=1, cutoff=0.0)[0]
    return f"Unknown key '{key}' {where}; did you mean '{nearest}'? --help lists all keys."
