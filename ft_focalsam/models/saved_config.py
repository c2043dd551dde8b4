"""What a folder says it holds, checked before anything is built from it: it may be damaged, or made to do harm."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..base.errors import one_line, printable
from ..base.parsing import read_json_object
from .backbones.protocol import DTYPES

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification")
MOST_FEATURES = 2**20
MOST_PIXELS = 2**14  # on a side
MOST_CLASSES = 2**20
MOST_TEMPLATES = 1000
MOST_HEAD_WEIGHTS = 2**28  # classes times features: a gigabyte
MOST_SIZE = 2**14  # of an inserted module: its width, length, ...


def _is_count(most: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and 0 < value <= most


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_name(value) -> bool:
    return isinstance(value, str) and value == printable(value)


def _are_texts(value) -> bool:
    return isinstance(value, list) and len(value) <= MOST_CLASSES and all(isinstance(entry, str) for entry in value)


def _are_templates(value) -> bool:
    return _are_texts(value) and len(value) <= MOST_TEMPLATES


def _is_note(value) -> bool:
    """Whether `read_inserted` can read it, or say that it is of another version."""
    if not isinstance(value, dict):
        return False
    modules = value.get("modules") if "modules" in value else [value]
    return isinstance(modules, list) and all(
        isinstance(module, dict) and _is_text(module.get("name")) and _are_settings(module.get("settings"))
        for module in modules
    )


def _are_settings(value) -> bool:
    """Whether the sizes in the settings of an inserted module are ones that memory has room for."""
    if not isinstance(value, dict):
        return False
    sizes = [size for key, size in value.items() if key != "seed" and type(size) in (int, float)]
    layers = value.get("layers") or ()
    return all(abs(size) <= MOST_SIZE for size in sizes) and isinstance(layers, (list, tuple)) and len(layers) < 2**10


# Key of config.json -> (whether it has to be there, what it may be, whether None is another value).
KEYS: dict[str, tuple[bool, Callable[[object], bool], bool]] = {
    "backbone": (True, _is_text, False),
    "backbone_family": (True, _is_text, False),
    "backbone_features": (False, _is_text, True),
    "backbone_dtype": (False, lambda value: value in DTYPES, False),
    "feature_size": (True, _is_count(MOST_FEATURES), False),
    "head": (True, _is_text, False),
    "head_scale": (False, lambda value: type(value) in (int, float) and 0 < value < math.inf, False),
    "head_options": (False, _are_settings, True),
    "image_size": (False, _is_count(MOST_PIXELS), True),
    "prompt_templates": (False, _are_templates, True),
    "prompt_names": (False, _are_texts, True),
    "inserted": (False, _is_note, True),
    "problem_type": (False, lambda value: value in PROBLEM_TYPES, True),
    "id2label": (False, lambda value: isinstance(value, dict) and all(map(_is_name, value.values())), False),
}


def read_saved_config(path: Path, *, source: str) -> dict[str, Any]:
    """What `LongTailClassifierConfig` takes, from `config.json` in a folder; other keys are left out.

    Raises:
        ValueError: If it is not one that `LongTailClassifier` wrote.
    """
    content = read_object(path / "config.json")
    for key, (is_needed, is_valid, may_be_none) in KEYS.items():
        if key not in content and not is_needed:
            continue
        value = content.get(key)
        if not (is_valid(value) or (value is None and may_be_none)):
            raise ValueError(
                f"The key '{key}' in config.json of '{source}' cannot be {printable(value)[:80]!r}; give a folder "
                "that save_pretrained wrote, unchanged."
            )
    numbers = content.get("id2label", {}).keys()  # not noted where it is the usual one
    if set(numbers) != {str(index) for index in range(len(numbers))} or "num_labels" in content:
        raise ValueError(
            f"The key 'id2label' in config.json of '{source}' does not number its classes 0 to {len(numbers) - 1}; "
            "give a folder that save_pretrained wrote, unchanged."
        )
    if len(numbers) > MOST_CLASSES or len(numbers) * content["feature_size"] > MOST_HEAD_WEIGHTS:
        raise ValueError(
            f"The config.json of '{source}' asks for a head of {len(numbers):,} classes and "
            f"{content['feature_size']:,} features, which no data set needs; give a folder that save_pretrained wrote."
        )
    known = {key: content[key] for key in KEYS if key in content}
    if "id2label" in content:
        known["label2id"] = {name: int(index) for index, name in content["id2label"].items()}
    return known


@contextmanager
def damage_as_value_error(source: str) -> Iterator[None]:
    """Turn what libraries raise on damaged files into one sentence; `OSError`s and missing packages stay."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # each library has its own on a configuration that it did not write
        said = one_line(error)
        if isinstance(error, ValueError) and source in said and str(error).isprintable():
            raise
        raise ValueError(
            f"'{source}' holds no classifier that can be loaded ({type(error).__name__}: {said[:300]}); its files are "
            "damaged or of another program: copy it again, or train it anew."
        ) from error


def read_object(file: Path) -> dict:
    """The object in a JSON file.

    Raises:
        ValueError: If it is no JSON, or holds something else.
    """
    return read_json_object(file, called=f"'{file}'", remedy="copy the folder again")
