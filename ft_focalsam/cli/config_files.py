"""YAML files that describe runs: where they are, what they inherit, and which of their keys are unknown.

Nothing here imports torch, so that a wrong path or key is told at once.
"""

import difflib
from collections.abc import Collection, Iterator
from pathlib import Path

from ..base.errors import one_line
from ..base.finding import did_you_mean
from ..base.parsing import parse_yaml

CONFIGS = Path(__file__).parents[1] / "configs"  # those that ship with the package
BASE_KEY = "base"  # in a file: another one that it inherits from, by its path relative to the folder of the file


class ConfigError(ValueError):
    """A run description that cannot be used; the message says what to change."""


def config_names() -> list[str]:
    """The configurations that ship with the package, as `train` and `config show` take them: "quickstart",
    "cifar10_lt/clip_vit_b16_lora", ..."""
    return sorted(path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml"))


def find_config(name: str) -> str:
    """The path of a YAML file, given by its path or as one of `config_names`.

    Raises:
        ConfigError: If there is none; names the nearest.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return name
    if path.is_dir():
        raise ConfigError(f"The configuration file '{name}' is a folder; give a file in it.")
    names = config_names()
    if name.removesuffix(".yaml") in names:
        return str(CONFIGS / f"{name.removesuffix('.yaml')}.yaml")
    raise ConfigError(f"The configuration file '{name}' does not exist; check the path.{did_you_mean(name, names)}")


def read_with_bases(path: str, keys: Collection[str], *, heirs: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Path and content of a file and of all it inherits from, these first; `heirs` are the files that led to it.

    Args:
        path (`str`): The file.
        keys (collection of `str`): What it may hold, `BASE_KEY` beside.

    Raises:
        ConfigError: If a file is missing or no mapping, files inherit from each other in a circle, or a key is unknown
            (with the nearest known one).
    """
    if Path(path).resolve() in [Path(heir).resolve() for heir in heirs]:
        circle = "' -> '".join([*heirs, path])
        raise ConfigError(f"Configuration files inherit in a circle: '{circle}'; take '{BASE_KEY}' out of one.")
    content = _read_yaml(path, keys, whose=f", the base of '{heirs[-1]}'," if heirs else "")
    if BASE_KEY in content:
        base = content.pop(BASE_KEY)
        if not isinstance(base, str):
            raise ConfigError(
                f"The key '{BASE_KEY}' in '{path}' cannot be {base!r}; set it to the path of one YAML file."
            )
        yield from read_with_bases(str(Path(path).parent / base), keys, heirs=(*heirs, path))
    yield path, content


def _read_yaml(path: str, keys: Collection[str], *, whose: str) -> dict:
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
        if key not in keys and key != BASE_KEY:
            raise ConfigError(unknown_key(str(key), {*keys, BASE_KEY}, where=f"in '{path}'"))
    return content


def unknown_key(key: str, keys: Collection[str], *, where: str) -> str:
    """A sentence for a key that is none of those known, with the nearest of these."""
    if key in ("config", "config_file", "yaml"):
        return f"Unknown key '{key}' {where}; the configuration file comes first and without a key."
    nearest = difflib.get_close_matches(key.replace("-", "_"), sorted(keys), n=1, cutoff=0.0)[0]
    return f"Unknown key '{key}' {where}; did you mean '{nearest}'? --help lists all keys."
