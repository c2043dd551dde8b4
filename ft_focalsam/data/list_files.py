"""Data sets that are described by one file: lists of paths and labels, tables, iNaturalist's JSON, NumPy arrays."""

import csv
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from ..base.errors import one_line, printable
from ..base.parsing import parse_json
from ..base.registry import Registry
from .columns import LABEL_NAMES
from .image_folder import EXTENSIONS
from .multi_label import flatten, is_nested
from .paths import resolve_paths

_MAX_ARRAYS, _MAX_COMPRESSION = 2**28, 100  # bytes; of more than these, how many a byte of the file may be
_DIGITS = 9  # of the largest class number
SPLIT_NAME = "split"
PATH_NAMES = ("path", "image", "image_path", "file", "file_name", "filename", "img")


@dataclass(frozen=True)
class FileOptions:
    """How a file that describes a data set is to be read.

    Args:
        image_root (`Path`): Folder that the paths in it are relative to.
        image_column, label_column (`str`, *optional*): Columns of a table; found by usual names by default.
        label_separator (`str`, *optional*): What separates the classes of an image in a cell of a table.
    """

    image_root: Path
    image_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None


# A format is a function from a file and its options to splits with a column of images and one of labels.
FILE_FORMATS: Registry[Callable[[Path, FileOptions], datasets.DatasetDict]] = Registry("file format")
register_file_format = FILE_FORMATS.register


@register_file_format(".txt")
def path_and_label_lines(file: Path, options: FileOptions) -> datasets.DatasetDict:
    """Lines `path label`, as ImageNet_LT_train.txt and Places_LT_train.txt have them; labels are integers."""
    names, labels, lines = [], [], []
    for line, text in enumerate(_text(file).splitlines(), start=1):
        if not text.strip():
            continue
        name, label = ("", *text.rsplit(maxsplit=1))[-2:]
        if not name or not label.isascii() or not label.isdigit():
            raise ValueError(
                f"Line {line} of '{file}' is '{printable(text[:80])}'; write a path, a space and the class number."
            )
        names.append(name.strip())
        labels.append(_class_number(label, line, file))
        lines.append(line)
    return datasets.DatasetDict({"train": _from_paths(file, options, names=names, lines=lines, labels=labels)})


@register_file_format(".tsv")
@register_file_format(".csv")
def table(file: Path, options: FileOptions) -> datasets.DatasetDict:
    """A table with a header, a column of paths, one of labels and, where it has one, the column `split`.

    Columns are found by usual names; else paths are the column whose first value ends like an image file, and labels
    the only column that is left. It is separated by commas; by semicolons or tabs where the header has no comma. With
    a `label_separator` an image has the classes that it separates, or none where the cell is empty.
    """
    text = _text(file)
    blank = len(text) - len(text.lstrip("\r\n"))
    header = text[blank:].partition("\n")[0]
    delimiter = next((sign for sign in ",;\t" if sign in header), ",")
    reader = csv.DictReader(io.StringIO(text[blank:], newline=""), delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = names = [name.strip() for name in reader.fieldnames or ()]
    images = [name for name in names if Path(name).suffix.lower() in EXTENSIONS]
    if images:
        raise ValueError(f"'{file}' begins with '{images[0]}' where its header should be; write 'path,label' above.")

    def rows() -> Iterator[tuple[int, dict]]:
        for row in reader:
            line = reader.line_num + text[:blank].count("\n")
            if None in row:
                raise ValueError(
                    f"Line {line} of '{file}' has {len(row) - 1 + len(row[None])} fields and the header "
                    f"{len(names)}; put a field that holds {delimiter!r} in double quotes."
                )
            yield line, row

    try:
        return _from_rows(file, options, rows())
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of '{file}' is no line of a table ({error}); correct it.") from error


@register_file_format(".jsonl")
def json_lines(file: Path, options: FileOptions) -> datasets.DatasetDict:
    """The same as one JSON object a line; a label may be a list of the classes of an image."""

    def rows() -> Iterator[tuple[int, dict]]:
        for line, text in enumerate(_text(file).splitlines(), start=1):
            if text.strip():
                row = _json(text, where=f"Line {line} of '{file}'")
                if not isinstance(row, dict):
                    raise ValueError(f"Line {line} of '{file}' is no JSON object; write {{\"path\": ..., ...}}.")
                yield line, row

    return _from_rows(file, options, rows())


@register_file_format(".json")
def inaturalist(file: Path, options: FileOptions) -> datasets.DatasetDict:
    """iNaturalist's train2018.json and val2018.json (https://github.com/visipedia/inat_comp): the keys `images` (id,
    file_name), `annotations` (image_id, category_id) and `categories` (id, name). Where some image has several
    annotations, as in COCO, images have the classes of theirs, each once."""
    content = _json(_text(file), where=f"'{file}'")
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        raise ValueError(f"'{file}' has no lists {', '.join(keys)}; give iNaturalist's JSON, or a .csv or .jsonl.")
    try:
        categories = {_id(c, "id"): str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        annotations = [(_id(a, "image_id"), _id(a, "category_id")) for a in content["annotations"]]
        images = [(_id(image, "id"), str(image["file_name"])) for image in content["images"]]
    except (KeyError, TypeError) as error:
        fault = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read ({one_line(error)})"
        raise ValueError(f"An entry of '{file}' {fault}; give iNaturalist's JSON as it is published.") from error
    index = {category: position for position, category in enumerate(categories)}
    names, lines = [name for _, name in images], range(1, len(images) + 1)
    feature = datasets.ClassLabel(names=_distinct(list(categories.values()), file))
    category_of = dict(annotations)
    if len(category_of) != len(annotations):
        sets = _class_sets(file, [image for image, _ in images], annotations, index)
        dataset = _from_paths(file, options, names=names, lines=lines, labels=sets, feature=datasets.List(feature))
        return datasets.DatasetDict({"train": dataset})
    unlabelled = [name for image, name in images if category_of.get(image) not in categories]
    if unlabelled:
        raise ValueError(
            f"The image '{unlabelled[0]}' of '{file}' has no category ({len(unlabelled):,} of {len(images):,} have "
            f"none); give a file with annotations, such as train2018.json."
        )
    labels = [index[category_of[image]] for image, _ in images]
    dataset = _from_paths(file, options, names=names, lines=lines, labels=labels, feature=feature)
    return datasets.DatasetDict({"train": dataset})


def _id(entry: dict, key: str) -> Hashable:
    """What entries are told apart by: a number or a text."""
    if isinstance(entry[key], (dict, list)):
        raise TypeError(f"its {key} is no number or text")
    return entry[key]


def _class_sets(
    file: Path, images: list[Hashable], annotations: list[tuple[Hashable, Hashable]], index: dict[Hashable, int]
) -> list[list[int]]:
    """The classes of each image, in order; none of an image without an annotation."""
    found: dict[Hashable, set[int]] = {image: set() for image in images}
    for image, category in annotations:
        if category not in index:
            raise ValueError(
                f"'{file}' has an annotation of the category {category!r}, which it does not list; correct it."
            )
        if image in found:
            found[image].add(index[category])
    return [sorted(found[image]) for image in images]


@register_file_format(".npz")
def arrays(file: Path, options: FileOptions) -> datasets.DatasetDict:
    """NumPy arrays x (uint8, (N, H, W) or (N, H, W, 3)) and y (integers, (N,)), or x_train, y_train, x_test, y_test.

    Pickled objects are never read.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > _MAX_ARRAYS and size > _MAX_COMPRESSION * file.stat().st_size:
            raise ValueError(f"its {size:,} bytes are packed into {file.stat().st_size:,}, to exhaust the memory")
        with np.load(file, allow_pickle=False) as content:
            stored = {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, MemoryError, LookupError, zipfile.error, zlib.error, struct.error) as error:
        raise ValueError(
            f"'{file}' is no archive of plain NumPy arrays ({one_line(error)}); write it with np.savez."
        ) from error
    suffixes = {"train": "_train", "test": "_test"} if "x_train" in stored else {"train": ""}
    splits = datasets.DatasetDict()
    for split, suffix in suffixes.items():
        pixels, labels = stored.get("x" + suffix), stored.get("y" + suffix)
        if pixels is None or labels is None:
            raise ValueError(
                f"'{file}' holds {', '.join(sorted(stored))}; name its arrays x and y, or x_train, y_train, x_test "
                f"and y_test."
            )
        is_image = pixels.dtype == np.uint8 and (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3))
        if not is_image or labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                f"'{file}' has x{suffix} of {pixels.dtype} {pixels.shape} and y{suffix} of {labels.dtype} "
                f"{labels.shape}; give uint8 (N, H, W) or (N, H, W, 3), and N integers."
            )
        largest = int(labels.max(initial=0))
        if largest >= 10**_DIGITS:
            raise ValueError(f"'{file}' has the label {largest} in y{suffix}, no class number; number classes from 0.")
        splits[split] = from_pixels(pixels, labels)
    return splits


def from_pixels(pixels: np.ndarray, labels: np.ndarray, feature: datasets.Features | None = None) -> datasets.Dataset:
    """A data set of images in memory.

    Args:
        pixels (`np.ndarray`): uint8 of shape (N, H, W) or (N, H, W, 3).
        labels (`np.ndarray`): Integers of shape (N,).
        feature (*optional*): Of the labels, e.g. a `datasets.ClassLabel`.
    """
    features = {"image": datasets.Image(), "labels": feature or datasets.Value("int64")}
    columns = {"image": [Image.fromarray(image) for image in pixels], "labels": labels.astype(np.int64)}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def read_prompt_names(path: str) -> list[str]:
    """Class names in index order: one a line, a JSON list of names, or one of objects with `id` and `name`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else, or a name twice.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"The file of class names '{path}' does not exist; check --class_names.")
    if file.suffix != ".json":
        return _distinct([line.strip() for line in _text(file).splitlines() if line.strip()], file)
    content = _json(_text(file), where=f"'{file}'")
    if isinstance(content, list) and all(
        isinstance(entry, dict) and {"id", "name"} <= set(entry) for entry in content
    ):
        if any(type(entry["id"]) is not int for entry in content):
            raise ValueError(f"'{file}' has an id that is no whole number; number the classes from 0.")
        content = [entry["name"] for entry in sorted(content, key=lambda entry: entry["id"])]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"'{file}' holds no list of class names; write one a line, or a JSON list of them.")
    return _distinct(content, file)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"'{file}' is no text in UTF-8 ({error.reason} at byte {error.start}); convert it."
        ) from error


def _json(text: str, *, where: str):
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON ({one_line(error)}); correct it.") from error


def _distinct(names: list[str], file: Path) -> list[str]:
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if name in seen:
            raise ValueError(f"'{file}' names the classes {seen[name]} and {index} '{name}'; give each its own name.")
        seen[name] = index
    return names


def _from_paths(
    file: Path,
    options: FileOptions,
    *,
    names: Sequence[str],
    lines: Sequence[int],
    labels: Sequence[int | str | list[int] | list[str]],
    feature=None,
) -> datasets.Dataset:
    """A data set of image files; none is opened."""
    paths = resolve_paths(names, lines, list_file=file, root=options.image_root)
    if not paths:
        raise ValueError(f"'{file}' lists no image; give one with lines.")
    if feature is None:
        values = pa.array(labels)
        feature = datasets.Value("string" if pa.types.is_string(flatten(values).type) else "int64")
        feature = datasets.List(feature) if is_nested(values) else feature
    features = datasets.Features({"image": datasets.Image(), "labels": feature})
    return datasets.Dataset.from_dict({"image": paths, "labels": labels}, features=features)


def _from_rows(file: Path, options: FileOptions, rows: Iterable[tuple[int, dict]]) -> datasets.DatasetDict:
    """Splits from (line, row) pairs; labels are numbers where all of them are, else names."""
    splits: dict[str, list[tuple[int, str, str | list[str]]]] = {}
    separator = options.label_separator
    columns = None
    for line, row in rows:
        if columns is None:
            like_paths = [name for name, value in row.items() if Path(str(value)).suffix.lower() in EXTENSIONS]
            image_column = _column(file, row, options.image_column, PATH_NAMES, like_paths, option="--image_column")
            others = [name for name in row if name not in (image_column, SPLIT_NAME, None)]
            label_column = _column(file, row, options.label_column, LABEL_NAMES, others, option="--label_column")
            columns = image_column, label_column
        path, label = (row.get(column) for column in columns)
        if path in (None, "") or label is None or (label == "" and separator is None):
            raise ValueError(f"Line {line} of '{file}' has no {' or no '.join(columns)}; complete or remove it.")
        splits.setdefault(str(row.get(SPLIT_NAME) or "train"), []).append(
            (line, str(path), _classes(label, separator))
        )
    if columns is None:
        raise ValueError(f"'{file}' lists no image; give one with lines.")
    found = [label for entries in splits.values() for *_, label in entries]
    are_lists = any(isinstance(label, list) for label in found)
    classes = [name for label in found for name in (label if isinstance(label, list) else [label])]
    if not classes:
        raise ValueError(f"No image of '{file}' has a class; check --label_column and --label_separator.")
    are_numbers = all(name.isascii() and name.isdigit() for name in classes)
    result = datasets.DatasetDict()
    for split, entries in splits.items():
        lines, names, labels = zip(*entries, strict=True)
        alike = [[label] if are_lists and isinstance(label, str) else label for label in labels]
        if are_numbers:
            alike = [_class_numbers(label, line, file) for label, line in zip(alike, lines, strict=True)]
        result[split] = _from_paths(file, options, names=names, lines=lines, labels=alike)
    return result


def _classes(label: object, separator: str | None) -> str | list[str]:
    """What a cell says: one class, or a list of them."""
    if isinstance(label, list):
        return [str(name) for name in label]
    if separator is None:
        return str(label)
    return [name.strip() for name in str(label).split(separator) if name.strip()]


def _class_numbers(label: str | list[str], line: int, file: Path) -> int | list[int]:
    if isinstance(label, str):
        return _class_number(label, line, file)
    return [_class_number(name, line, file) for name in label]


def _class_number(text: str, line: int, file: Path) -> int:
    if len(text) > _DIGITS:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(f"Line {line} of '{file}' has the label '{shown}', no class number; number classes from 0.")
    return int(text)


def _column(
    file: Path, row: dict, chosen: str | None, usual: tuple[str, ...], likely: list[str], *, option: str
) -> str:
    """The column that was chosen, else the first with a usual name, else the only likely one."""
    found = [name for name in usual if name in row] if chosen is None else [chosen]
    if not found and len(likely) == 1:
        found = likely
    if not found or found[0] not in row:
        listed = ", ".join(f"'{name}'" for name in row if name is not None)
        wanted = f"'{chosen}'" if chosen is not None else f"one called {', '.join(usual[:-1])} or {usual[-1]}"
        raise ValueError(f"'{file}' has the columns {listed}, not {wanted}; set {option} to one that it has.")
    return found[0]
