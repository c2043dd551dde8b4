"""Data sets too large for the disk: read from beginning to end, with class counts that are given or counted once."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from tqdm.auto import tqdm

from ..base.errors import one_line
from ..base.files import atomic_write
from ..base.parsing import parse_json
from .arguments import DataArguments
from .columns import check_class_names, find_image_column, find_label_column
from .image_folder import read_image_folder
from .list_files import read_prompt_names
from .multi_label import holds_lists
from .paths import refuse_paths_outside
from .sources import SOURCES, absence_told, damage_told, own_folders
from .splits import TEST_SPLITS

SHARDS = 64  # of a folder of images, for worker processes and training processes to share

# Keys of DataArguments that a stream has no use for, and the value that leaves them out.
_NOT_STREAMED = {
    "test_dataset": None,
    "image_root": None,
    "label_separator": None,
    "test_fraction": None,
    "validation_split": None,
    "validation_fraction": None,
    "imbalance_factor": None,
    "max_imbalance": None,
    "max_train_per_class": None,
    "cache_resized": None,
}


@dataclass
class StreamedData:
    """Labelled images whose training split is a stream.

    Args:
        train (`datasets.IterableDataset`): Columns `"image"` (not decoded) and `"labels"` (0..C-1).
        test (`datasets.Dataset`): The same columns, stored.
        class_names (`list[str]`): The C class names in index order.
        class_counts (`np.ndarray`): Training images of each class, int64 of shape (C,).
        name (`str`): What the user called the data set.
    """

    train: datasets.IterableDataset
    test: datasets.Dataset
    class_names: list[str]
    class_counts: np.ndarray
    name: str

    is_multi_label = False  # as of [`ImageData`]

    @property
    def parts(self) -> dict[str, datasets.IterableDataset | datasets.Dataset]:
        """As in [`ImageData`]."""
        return {"train": self.train, "test": self.test}

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Training images."""
        return int(self.class_counts.sum())


def stream_images(
    args: DataArguments, *, counts_path: Path, recount: bool, say: Callable[[str], object] = print
) -> StreamedData:
    """Open a parquet folder, an image folder or a Hub data set as a stream; its test split is stored on disk.

    Args:
        args (`DataArguments`): Of the run. With `class_counts` the counts come from that file where it exists.
        counts_path (`Path`): Where counts are written to otherwise.
        recount (`bool`): Whether to count although `counts_path` exists.
        say (`Callable`, defaults to `print`): Takes what is being done.

    Raises:
        FileNotFoundError: If there is no such data set.
        ValueError: If a split or column is missing, the classes have no names, an option needs a stored data set, or
            the counts are not of these classes.
    """
    given = [key for key, unused in _NOT_STREAMED.items() if getattr(args, key) != unused]
    if args.on_bad_image == "skip":
        given.append("on_bad_image skip")
    if given or args.dataset in SOURCES or Path(args.dataset).is_file():
        what = ", ".join(f"--{key}" for key in given) or f"--dataset {args.dataset}"
        raise ValueError(f"{what} needs a stored data set; drop it, or --streaming.")
    splits = _open(args)
    test_split = _test_split(args, list(splits))
    train, test = splits[args.train_split], splits[test_split]
    names = check_class_names(_class_names(args, train))
    train, test = (_normalise(stream, args, len(names), split=s) for stream, s in ((train, "train"), (test, "test")))
    if args.class_counts is not None:
        counts_path, recount = Path(args.class_counts).expanduser(), False
    if recount or not counts_path.is_file():
        say(f"Counting the classes of the stream once; --class_counts {counts_path} spares it the next time.")
        counts = _count(train, len(names))
        atomic_write(counts_path, json.dumps(dict(zip(names, counts.tolist(), strict=True)), indent=1).encode())
    counts = read_class_counts(counts_path, names)
    train, test = (stream.map(_OwnFiles(args.dataset), features=stream.features) for stream in (train, test))
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(names=names)})
    with damage_told(args.dataset):
        stored = datasets.Dataset.from_generator(
            _items, features=features, gen_kwargs={"stream": test, "version": _version(args.dataset)}
        )
    return StreamedData(train=train, test=stored, class_names=names, class_counts=counts, name=args.dataset)


def read_class_counts(path: Path, class_names: list[str]) -> np.ndarray:
    """Class counts from JSON: a mapping of every class name to its number of images, or a list in index order.

    Returns:
        `np.ndarray`: int64 of shape (C,).

    Raises:
        ValueError: If it is no JSON, or not of these classes.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"The class counts '{path}' are not valid JSON ({one_line(error)}); correct or delete them."
        ) from error
    if isinstance(content, dict) and set(content) == set(class_names):
        content = [content[name] for name in class_names]
    if (
        not isinstance(content, list)
        or len(content) != len(class_names)
        or not all(type(n) is int and 0 <= n < 2**48 for n in content)
    ):
        raise ValueError(
            f"The class counts '{path}' are not those of the {len(class_names)} classes '{class_names[0]}' to "
            f"'{class_names[-1]}'; give a mapping of each name to its number of images, or delete the file."
        )
    return np.array(content, dtype=np.int64)


def _open(args: DataArguments) -> datasets.IterableDatasetDict:
    path = Path(args.dataset).expanduser()
    images = read_image_folder(path, train_split=args.train_split) if path.is_dir() else None
    if images is not None:
        return datasets.IterableDatasetDict(
            {split: part.to_iterable_dataset(num_shards=min(len(part), SHARDS)) for split, part in images.items()}
        )
    name = str(path) if path.is_dir() else args.dataset
    with absence_told(args.dataset, "could not be opened as a stream"), damage_told(args.dataset):
        return datasets.load_dataset(name, args.dataset_config, streaming=True)


def _test_split(args: DataArguments, available: list[str]) -> str:
    listed = ", ".join(f"'{split}'" for split in available)
    if args.train_split not in available:
        raise ValueError(f"There is no split '{args.train_split}' to train on; set --train_split to one of {listed}.")
    chosen = [args.test_split] if args.test_split else [split for split in TEST_SPLITS if split in available]
    if not chosen or chosen[0] not in available or chosen[0] == args.train_split:
        raise ValueError(f"A stream needs a split to test on; set --test_split to another one of {listed}.")
    return chosen[0]


def _class_names(args: DataArguments, stream: datasets.IterableDataset) -> list[str]:
    column = find_label_column(stream.features, args.label_column)
    feature = stream.features[column]
    if holds_lists(feature):
        raise ValueError(
            f"The column '{column}' of the stream has several classes per image, which a stream is not read for; drop "
            "--streaming."
        )
    if args.class_names is not None:
        return read_prompt_names(args.class_names)
    if not isinstance(feature, datasets.ClassLabel):
        raise ValueError("The classes of the stream have no names, which it is not read for; give --class_names.")
    return list(feature.names)


def _normalise(
    stream: datasets.IterableDataset, args: DataArguments, num_classes: int, *, split: str
) -> datasets.IterableDataset:
    """Only the columns `"image"`, not decoded, and `"labels"`."""
    image = find_image_column(stream.features, args.image_column)
    label = find_label_column(stream.features, args.label_column)
    feature = stream.features[label]
    is_integer = isinstance(feature, datasets.ClassLabel) or "int" in str(getattr(feature, "dtype", ""))
    if not is_integer:
        raise ValueError(
            f"The labels '{label}' of the stream are {feature}; integers 0..{num_classes - 1} are needed."
        )
    stream = stream.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    names = {old: new for old, new in ((image, "image"), (label, "labels")) if old != new}
    return stream.rename_columns(names) if names else stream


class _OwnFiles:
    """Lets a row of a stream name no file but one of the data set itself."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, item: dict) -> dict:
        record = item["image"]
        if record["bytes"] is None and record["path"] is not None:
            place = record["path"].rpartition("::")[2]  # of the archive that it is in
            if not place.startswith((f"hf://datasets/{self.name}@", f"hf://datasets/{self.name}/")):
                refuse_paths_outside([(0, place)], roots=own_folders(self.name), where="a stream")
        return item


def _count(stream: datasets.IterableDataset, num_classes: int) -> np.ndarray:
    counts = np.zeros(num_classes, dtype=np.int64)
    for row, item in enumerate(
        tqdm(stream.select_columns(["labels"]), desc="Counting classes", unit=" images", disable=None)
    ):
        if item["labels"] is None or not 0 <= item["labels"] < num_classes:
            raise ValueError(
                f"Row {row} of the stream has the label {item['labels']}, outside 0..{num_classes - 1} for the "
                f"{num_classes} classes; correct it, or --class_names."
            )
        counts[item["labels"]] += 1
    return counts


def _items(stream: datasets.IterableDataset, version: str) -> Iterator[dict]:
    """The test images; `version` tells `datasets` when those it has prepared are out of date."""
    yield from stream


def _version(dataset: str) -> str:
    path = Path(dataset).expanduser()
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    return str([(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files])
