"""The configurations that ship with the package.

    ft-focalsam config list
    ft-focalsam config show quickstart
    ft-focalsam config show cifar100_lt/clip_vit_b16_lora > mine.yaml

`list` prints their names, each with the first line of its comment. `show` prints one with all that it inherits, which
is a file to begin with. A name does where a command takes a configuration file: ft-focalsam train quickstart.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from .config_files import CONFIGS, config_names, find_config, read_with_bases
from .key_index import keys_of
from .parsers import command_parser


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser("config", __doc__)
    parser.add_argument("action", choices=("list", "show"), help="what to print")
    parser.add_argument("name", nargs="?", metavar="NAME", help="of the configuration to show, or its path")
    return parser


def first_comment(path: Path) -> str:
    """The first line of the comment that a file begins with."""
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def show(name: str) -> str:
    """One configuration with all that it inherits, as YAML."""
    content: dict = {}
    for _, values in read_with_bases(find_config(name), keys_of("train")):
        content |= values
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    args = make_parser().parse_args(argv)
    if (args.action == "show") != (args.name is not None):
        raise ValueError("Write ft-focalsam config list, or ft-focalsam config show NAME.")
    if args.action == "show":
        print(show(args.name), end="")
        return
    width = max(map(len, config_names())) + 2
    for name in config_names():
        print(f"{name:{width}}{first_comment(CONFIGS / f'{name}.yaml')}".rstrip())
