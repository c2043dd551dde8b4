"""Between keys with values and the words of a command line."""

import argparse
import json
from collections.abc import Mapping, Sequence

from ..arguments import TYPES
from ..config import config_parser


def given_keys(words: Sequence[str]) -> dict[str, object]:
    """The keys that a command line sets, with values of the types of their arguments; unknown ones are left out.

    Args:
        words (sequence of `str`): `--key value ...`, without the folder in front.
    """
    parser = config_parser(TYPES)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return vars(parser.parse_known_args(list(words))[0])


def as_words(settings: Mapping[str, object]) -> list[str]:
    """Keys and values as a command line has them."""
    words = []
    for key, value in settings.items():
        words.append(f"--{key}")
        if isinstance(value, (list, tuple)):
            words += map(str, value)
        elif isinstance(value, (bool, dict)) or value is None:
            words.append(json.dumps(value))
        else:
            words.append(str(value))
    return words
