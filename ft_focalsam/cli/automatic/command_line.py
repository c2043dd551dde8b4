"""Between keys with values and the words of a command line."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...hub.run_file import RUN_NAME
from ..arguments import TYPES
from ..config import config_parser
from .choose import choose
from .layout import find_layout


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


def settings_of_folder(argv: Sequence[str], *, data_only: bool = False) -> tuple[list[str], list[str]]:
    """A command line that begins with a folder of images, with the settings chosen for it in the place of the folder;
    and the reasons. Any other command line stays as it is.

    Args:
        argv (sequence of `str`): `FOLDER [--key value ...]`; keys that it sets win.
        data_only (`bool`): Only find the images.

    Raises:
        FileNotFoundError: If there is no backbone.
        ValueError: If the folder holds no images of at least two classes, or is the folder of a run.
    """
    argv = list(argv)
    if not argv or argv[0].startswith("-") or not Path(argv[0]).expanduser().is_dir():
        return argv, []
    folder = Path(argv.pop(0)).expanduser()
    if (folder / RUN_NAME).is_file():
        raise ValueError(
            f"'{folder}' is the folder of a run; to run it again, give '{folder / 'config.yaml'}' and another "
            "--output_dir, or give a folder of images."
        )
    if data_only:
        layout = find_layout(folder, given_keys(argv))
        return [*as_words(layout.settings), *argv], layout.reasons
    choice = choose(folder, given_keys(argv))
    where = {"output_dir": f"runs/{folder.resolve().name}"}
    return [*as_words(where | choice.settings), *argv], choice.reasons
