"""Which class of a model is which class of a test set: by names, by WordNet synsets, by a class index."""

import csv
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.parsing import parse_json
from ..models.text import find_synset
from .cells import from_cell


def match_classes(
    test_names: Sequence[str],
    model_names: Sequence[str],
    *,
    class_index: Mapping[int, Sequence[str]] | None = None,
    source: str = "the test set",
) -> np.ndarray:
    """The model's class of each class of a test set.

    A class is found by, in this order: its name as it is; the WordNet synset that it begins with ("n01440764",
    "n01440764 tench"); its name without regard to case, underscores and outer spaces; one of the synonyms that commas
    separate ("tench, Tinca tinca"). The model knows a class by its own name and, with a class index, by all that the
    index says of it. A key that several of the model's classes share ("crane") finds none of them.

    Args:
        test_names (sequence of `str`): K names of the test set's classes.
        model_names (sequence of `str`): C names of the model's classes, in index order.
        class_index (mapping, *optional*): Class of the model -> its synset, its names; of [`read_class_index`].
        source (`str`): What the error calls the test set.

    Returns:
        `np.ndarray`: int64 of shape (K,), values 0..C-1, all different.

    Raises:
        ValueError: If a class of the test set is none of the model's, or two are the same one.
    """
    known = [(name, *(class_index or {}).get(index, ())) for index, name in enumerate(model_names)]
    tables = [_table(known, keys) for keys in _KEYS]
    matched: dict[int, str] = {}
    for name in test_names:
        index = next((t[k] for t, keys in zip(tables, _KEYS, strict=True) for k in keys(name) if k in t), None)
        if index is None:
            raise ValueError(_no_match(name, model_names, source=source, has_index=class_index is not None))
        if index in matched:
            raise ValueError(
                f"The classes {matched[index]!r} and {name!r} of {source} are both the model's class {index}, "
                f"{model_names[index]!r}; merge them or give a class index that tells them apart."
            )
        matched[index] = name
    return np.array(list(matched), dtype=np.int64)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


# Name -> keys by which it may be found, the surest first.
_KEYS = (
    lambda name: [name],
    find_synset,
    lambda name: [_plain(name)],
    lambda name: [_plain(part) for part in name.split(",")],
)


def _table(known: Sequence[Sequence[str]], keys: Callable[[str], Iterable[str]]) -> dict[str, int]:
    """Key -> class, of the keys that belong to one class only."""
    owners: dict[str, set[int]] = {}
    for index, names in enumerate(known):
        for name in names:
            for key in keys(name):
                owners.setdefault(key, set()).add(index)
    return {key: next(iter(classes)) for key, classes in owners.items() if len(classes) == 1}


def _no_match(name: str, model_names: Sequence[str], *, source: str, has_index: bool) -> str:
    nearest = difflib.get_close_matches(name, model_names, n=1, cutoff=0.0)[0]
    remedy = "correct the name" if has_index or not find_synset(name) else "give --class_index, which says what it is"
    return (
        f"The class {name!r} of {source} is none of the model's {len(model_names)} classes (the nearest name is "
        f"{nearest!r}); {remedy}."
    )


def read_class_index(path: str | Path) -> dict[int, tuple[str, ...]]:
    """Read what a model's classes are called elsewhere.

    Args:
        path (`str` or `Path`): JSON: either class -> names, as `{"0": ["n01440764", "tench"]}` or
            `{"0": "n01440764"}`, or a list in index order, or name -> class, as `{"n01440764": 0}`.

    Returns:
        `dict[int, tuple[str, ...]]`: Class of the model -> its names.

    Raises:
        ValueError: If the file is missing or holds something else.
    """
    content = _read_json(path)
    if isinstance(content, list):
        content = dict(enumerate(content))
    result: dict[int, tuple[str, ...]] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        if isinstance(value, int) and not isinstance(value, bool):
            key, value = value, key
        names = [value] if isinstance(value, str) else value
        if not str(key).isdecimal() or not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise ValueError(
                f"The class index '{path}' has the entry {key!r}: {value!r}; write class number -> names, as "
                '"0": ["n01440764", "tench"].'
            )
        result[int(key)] = (*result.get(int(key), ()), *names)
    if not result:
        raise ValueError(f"The class index '{path}' names no class; write class number -> names.")
    return result


def read_train_counts(path: str | Path, model_names: Sequence[str]) -> np.ndarray:
    """Training images of each class of a model.

    Args:
        path (`str` or `Path`): The per_class.csv of a run, or any CSV with the columns name and train_images (names as
            [`to_cell`] writes them), or JSON name -> images. Names that occur more than once are told apart by their
            order, where it is the model's.
        model_names (sequence of `str`): C names in index order.

    Returns:
        `np.ndarray`: int64 of shape (C,).

    Raises:
        ValueError: If the file is missing or of another kind, lacks a class, or gives two counts for one name.
    """
    rows = _read_count_rows(path)
    names, counts = [name for name, _ in rows], dict(rows)
    missing = [name for name in model_names if name not in counts]
    if missing:
        raise ValueError(
            f"The training counts '{path}' lack {missing[0]!r} and {len(missing) - 1} others of the model's "
            f"{len(model_names)} classes; write one count a class, by its name."
        )
    twice = [name for name in model_names if names.count(name) > 1] if len(counts) < len(names) else []
    if twice and names != list(model_names):
        raise ValueError(
            f"The training counts '{path}' have {twice[0]!r} more than once; write the classes in the model's order."
        )
    found = [count for _, count in rows] if twice else [counts[name] for name in model_names]
    for name, count in zip(model_names, found, strict=True):
        if not (str(count).isdecimal() and len(str(count)) < 16):
            raise ValueError(
                f"The training counts '{path}' give {name!r} {str(count)[:40]!r} images; write a whole number."
            )
    return np.array([int(count) for count in found], dtype=np.int64)


def _read_count_rows(path: str | Path) -> list[tuple[str, Any]]:
    """Name and count of each entry, none where a JSON file holds something else."""
    if Path(path).suffix.lower() != ".csv":
        content = _read_json(path)
        return list(content.items()) if isinstance(content, dict) else []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:  # a spreadsheet writes a mark before the text
            return [(_named(row["name"]), row["train_images"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ValueError(
            f"The training counts '{path}' cannot be read ({error}); give a CSV file with the columns name and "
            "train_images."
        ) from error


def _named(cell: str | None) -> str:
    """The name in a cell, which a row that is too short does not have."""
    if cell is None:
        raise ValueError("a row has no name")
    return from_cell(cell)


def _read_json(path: str | Path) -> Any:
    try:
        return parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' cannot be read as JSON ({error}); check the path and the file.") from error
