"""The keys of every command, known without importing torch: for `--help`, and to tell a mistyped key at once.

`keys.json` holds them as the parsers have them. `python -m ft_focalsam.cli.build_index` writes it, and a test compares
the two. Of the Trainer's own keys it holds those of one version of transformers; with another version, a key that is
not in it is left to the parser.
"""

import functools
import json
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..base.errors import nearest
from .config_files import ConfigError, find_config, read_with_bases, unknown_key

INDEX = Path(__file__).with_name("keys.json")
COMMON = {  # of the many keys of a run, those that most users set
    *("dataset", "test_fraction", "validation_fraction", "backbone", "tuning", "sharpness", "rho", "focal_gamma"),
    *(
        "focal_lambda",
        "loss",
        "output_dir",
        "num_train_epochs",
        "per_device_train_batch_size",
        "learning_rate",
        "seed",
    ),
    *("resume_from_checkpoint", "overwrite"),
}
ALL = "all"


@functools.cache
def read_index() -> dict[str, Any]:
    """{"transformers": version, "sections": {name: {"title", "keys": [{"name", "takes", "help", "default"}]}},
    "commands": {name: {"usage", "description", "positionals", "sections", "reads_config"}}}."""
    return json.loads(INDEX.read_text(encoding="utf-8"))


def keys_of(command: str) -> dict[str, dict]:
    """What the index says of each key of a command, by its name without dashes."""
    index = read_index()
    sections = index["commands"][command]["sections"]
    return {key["name"]: key for section in sections for key in index["sections"][section]["keys"]}


def check_command_line(command: str, argv: Sequence[str]) -> list[str]:
    """The command line with keys as parsers have them (`--output-dir` is `--output_dir`), after a look at its keys and
    at the configuration file.

    Raises:
        ConfigError: If a key is unknown, on the command line or in the file, or the file cannot be read.
    """
    known = keys_of(command)
    known |= {alias: key for key in known.values() for alias in key.get("aliases", ())}
    is_complete = version("transformers") == read_index()["transformers"]
    words = []
    for word in argv:
        key, equals, value = word.removeprefix("--").partition("=")
        key = key.replace("-", "_")
        if word.startswith("--") and key:
            if key not in known and is_complete:
                raise ConfigError(unknown_key(key, known, where="on the command line"))
            word = f"--{key}{equals}{value}"
        words.append(word)
    reads_config = read_index()["commands"][command]["reads_config"]
    if reads_config and words and not words[0].startswith("-") and not Path(words[0]).is_dir():
        for _ in read_with_bases(find_config(words[0]), known if is_complete else _Anything(known)):
            pass
    return words


class _Anything(set):
    """Keys of which it is not known whether they are all."""

    def __contains__(self, key: object) -> bool:
        return True


def help_asked_for(command: str, argv: Sequence[str]) -> str | None:
    """What a command line asks for by `--help`, `--help SECTION` or `--help KEY`; None where it asks for nothing.

    Raises:
        ValueError: If there is no such section or key.
    """
    place = next((place for place, word in enumerate(argv) if word in ("-h", "--help")), None)
    if place is None:
        return None
    topic = argv[place + 1].removeprefix("--").replace("-", "_") if place + 1 < len(argv) else None
    return describe(command, topic)


def describe(command: str, topic: str | None = None) -> str:
    """The help on a command, or on one of its sections or keys."""
    index, known = read_index(), keys_of(command)
    entry = index["commands"][command]
    sections = {name: index["sections"][name] for name in entry["sections"]}
    if topic in sections:
        return _section(sections[topic])
    if topic in known:
        return "\n".join(_key(known[topic]))
    if topic not in (None, ALL):
        like = "".join(f" Did you mean '{each}'?" for each in nearest(topic, [*sections, *known]))
        raise ValueError(
            f"There is no section or key '{topic}'; ft-focalsam {command} --help lists the sections: "
            f"{', '.join(sections)}.{like}"
        )
    text = [f"usage: {entry['usage']}", "", entry["description"].strip(), ""]
    text += [line for each in entry["positionals"] for line in _key(each, dashes="")]
    if topic == ALL or len(known) < 40:
        return "\n".join([*text, *(_section(section) for section in sections.values())])
    title = "Keys that are set most often"
    common = [
        key for key in known.values() if key["name"] in COMMON or key in sections.get(command, {"keys": ()})["keys"]
    ]
    width = max(map(len, sections)) + 2
    text += [_section({"title": title, "keys": common}), "Sections"]
    text += [f"  {name:{width}}{section['title']} ({len(section['keys'])})" for name, section in sections.items()]
    text += ["", f"  ft-focalsam {command} --help SECTION, --help KEY or --help {ALL} says more."]
    return "\n".join(text)


def _section(section: dict) -> str:
    return "\n".join([section["title"], *(line for key in section["keys"] for line in _key(key)), ""])


def _key(key: dict, dashes: str = "--") -> Iterable[str]:
    """The lines on one key: what it takes, what it does, its default."""
    columns = min(shutil.get_terminal_size().columns, 120)
    yield f"  {dashes}{key['name']} {key['takes']}".rstrip()
    default = "" if key["default"] is None else f" (default: {key['default']})"
    text = " ".join(key["help"].split()) + default
    indent = " " * 6
    yield from textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent)
