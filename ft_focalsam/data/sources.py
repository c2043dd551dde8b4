"""Sources of labelled images: registered ones by name, anything else from the Hub, a folder or a file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub import constants
from PIL import Image
from sklearn.datasets import load_digits

from ..base.errors import one_line
from ..base.finding import check_repository, did_you_mean
from ..base.registry import Registry
from .cifar import TORCHVISION, binary_cifar_version, read_binary_cifar, read_torchvision_cifar, refuse_pickled_cifar
from .columns import check_class_names, check_labels, find_image_column, find_label_column, label_array, normalise
from .image_data import ImageData
from .image_folder import read_image_folder, refuse_without_classes
from .images import paths_without_bytes
from .list_files import FILE_FORMATS, FileOptions, read_prompt_names
from .long_tail import stratified_split
from .multi_label import class_label_of
from .paths import ForeignFileError, refuse_paths_outside
from .splits import select_splits

SPLIT_SEED = 0  # a test set cut from the training split is the same one in every run


# A source is a function without arguments that returns an ImageData.
SOURCES: Registry[Callable[[], ImageData]] = Registry("source")
register_source = SOURCES.register


DIGIT_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@register_source("digits")
def digits() -> ImageData:
    """1,797 handwritten digits of 8 x 8 grey pixels that scikit-learn ships, split 70/30 class by class.

    They need no download, and they are small enough to train on without an accelerator.
    """
    bunch = load_digits()
    dataset = _grey_images(bunch.images, bunch.target, datasets.ClassLabel(names=DIGIT_NAMES))
    train, test = _cut_test_split(dataset, 0.3)
    return ImageData(train=train, test=test, class_names=DIGIT_NAMES, name="digits")


@register_source("composed_digits")
def composed_digits() -> ImageData:
    """Images of one to three of these digits, 24 x 24 pixels, which have several classes: 600 to train on, of a long
    tail (zero is drawn with a chance 50 times that of nine), and 300 of other digits to test on, all alike."""
    bunch, rng, place = load_digits(), np.random.RandomState(0), 12
    is_train = rng.permutation(len(bunch.target)) < 1200
    parts = []
    for number, decay, mask in ((600, 0.65, is_train), (300, 1.0, ~is_train)):
        chances = decay ** np.arange(10) / (decay ** np.arange(10)).sum()
        images, sets = np.zeros((number, 2 * place, 2 * place)), []
        for image in images:
            sets.append(sorted(rng.choice(10, rng.randint(1, 4), replace=False, p=chances).tolist()))
            for corner, label in zip(rng.permutation(4), sets[-1], strict=False):
                top, left = place * (corner // 2) + 2, place * (corner % 2) + 2
                digit = bunch.images[rng.choice(np.flatnonzero(mask & (bunch.target == label)))]
                image[top : top + 8, left : left + 8] = digit
        parts.append(_grey_images(images, sets, datasets.List(datasets.ClassLabel(names=DIGIT_NAMES))))
    return ImageData(train=parts[0], test=parts[1], class_names=DIGIT_NAMES, name="composed_digits")


def _grey_images(values: np.ndarray, labels, feature) -> datasets.Dataset:
    """A data set of images of values 0 to 16."""
    pixels = np.rint(values * (255 / 16)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "labels": feature})
    columns = {"image": [Image.fromarray(image) for image in pixels], "labels": labels}
    return datasets.Dataset.from_dict(columns, features=features)


def load_image_data(
    name: str,
    *,
    test_dataset: str | None = None,
    image_root: str | None = None,
    class_names: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    test_fraction: float | None = None,
    validation_split: str | None = None,
    config_name: str | None = None,
) -> ImageData:
    """Load labelled images: a registered source, a data set of the Hugging Face Hub, a local folder or a file.

    A folder may hold what `datasets.load_dataset` reads (parquet, Arrow, ...), what `Dataset.save_to_disk` wrote,
    images in one sub-folder per class, with or without `train/` and `test/` folders around them, or the binary version
    of CIFAR. A file may be a list of `path label` lines (.txt), a table (.csv, .tsv, .jsonl), iNaturalist's JSON
    (.json) or NumPy arrays (.npz).

    Args:
        name (`str`): A registered source (`"digits"`), a Hub name (`"uoft-cs/cifar100"`), a path, or
            `"torchvision:cifar10"` for the folder that torchvision downloaded CIFAR to.
        test_dataset (`str`, *optional*): File to test on, where `name` is a file.
        image_root (`str`, *optional*): Folder that the paths in a file are relative to, by default the file's own.
        class_names (`str`, *optional*): File of class names in index order, see [`read_prompt_names`].
        image_column (`str`, *optional*): By default the one column with an `Image` feature.
        label_column (`str`, *optional*): By default the one of `ClassLabel`s, or of lists of them, else the one with a
            usual name.
        label_separator (`str`, *optional*): What separates the classes of an image in a cell of a table.
        train_split (`str`, defaults to `"train"`): Split to train on.
        test_split (`str`, *optional*): Split to test on, by default `test`, else `validation` or `val`.
        test_fraction (`float`, *optional*): Cut this share of each class from the training split, always the same
            images, and test on it instead of on another split; 1 leaves no image to train on.
        validation_split (`str`, *optional*): Split with the images to choose by while training.
        config_name (`str`, *optional*): Configuration of a Hub data set that has several.

    Returns:
        [`ImageData`]: With checked labels and existing files; no image has been decoded.

    Raises:
        FileNotFoundError: If there is no such source, folder, file or Hub data set, the Hub cannot be reached, or a
            image that a file lists is missing.
        ValueError: If a split or a column is missing or ambiguous, a label is out of range, a path leads out of its
            folder, or options contradict.
    """
    names = None if class_names is None else read_prompt_names(class_names)
    path = Path(name).expanduser()
    if name in SOURCES:
        given = {
            "image_root": image_root,
            "test_dataset": test_dataset,
            "test_split": test_split,
            "image_column": image_column,
            "label_column": label_column,
            "dataset_config": config_name,
            "label_separator": label_separator,
            "train_split": None if train_split == "train" else train_split,
            "test_fraction": test_fraction,
            "validation_split": validation_split,
        }
        _refuse(f"The registered source '{name}' has fixed columns and splits", given)
        data = SOURCES[name]()
        return data if names is None else data.rename(names)
    splits = read_splits(
        name,
        test_dataset=test_dataset,
        image_root=image_root,
        image_column=image_column,
        label_column=label_column,
        label_separator=label_separator,
        train_split=train_split,
        config_name=config_name,
    )
    if path.is_file():
        image_column, label_column = "image", "labels"
    splits = select_splits(splits, train_split, test_split, test_fraction, validation_split)
    features = splits["train"].features
    image_column = find_image_column(features, image_column)
    label_column = find_label_column(features, label_column)
    splits = normalise(splits, image_column=image_column, label_column=label_column, class_names=names)
    if not path.is_file():
        for split, dataset in splits.items():
            refuse_paths_outside(paths_without_bytes(dataset), roots=own_folders(name), where=f"split '{split}'")
    data = _image_data(name, splits, test_fraction, train_split=train_split)
    data = data if names is None else data.rename(names)
    check_class_names(data.class_names)
    return data


def read_splits(
    name: str,
    *,
    test_dataset: str | None = None,
    image_root: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    train_split: str = "train",
    config_name: str | None = None,
) -> datasets.DatasetDict:
    """All splits of what is no registered source, with the columns that they have.

    Args and raises: As in [`load_image_data`].
    """
    path = Path(name).expanduser()
    if not path.is_file():
        needing_file = {"test_dataset": test_dataset, "label_separator": label_separator}
        _refuse(f"'{name}' is no file that lists images", needing_file)
        return _read_splits(name, config_name, image_root, train_split=train_split)
    _refuse(f"'{name}' is a file", {"dataset_config": config_name})
    root = path.parent if image_root is None else Path(image_root).expanduser()
    return _read_files(path, test_dataset, FileOptions(root, image_column, label_column, label_separator))


@contextmanager
def absence_told(name: str, what: str) -> Iterator[None]:
    """Turn what `datasets` raises where a data set is not found into one sentence, which says `what` is so."""
    try:
        yield
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise FileNotFoundError(
            f"The data set '{name}' {what} ({reason}); check its name, or the connection."
        ) from error


@contextmanager
def damage_told(name: str) -> Iterator[None]:
    """Turn what `datasets` raises on damaged files into one sentence; `OSError`s and missing packages stay."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except Exception as error:  # pyarrow, pandas and `datasets` have theirs
        cause = error.__cause__ if isinstance(error, datasets.exceptions.DatasetsError) else None
        cause = cause or error
        if isinstance(cause, ForeignFileError):
            raise cause from None
        raise ValueError(
            f"The data set '{name}' cannot be read ({type(cause).__name__}: {one_line(cause)[:300]}); check its files "
            "and --dataset_config, or download it again."
        ) from error


def own_folders(name: str) -> list[str]:
    """Where the files of a folder or a Hub data set may be: in the folder, and where `datasets` puts its downloads."""
    path = Path(name).expanduser()
    caches = [str(datasets.config.HF_DATASETS_CACHE), constants.HF_HUB_CACHE]
    return [str(path), *caches] if path.is_dir() else caches


def _image_data(
    name: str, splits: datasets.DatasetDict, test_fraction: float | None, *, train_split: str
) -> ImageData:
    """The training split, and the test split or a cut of the training split."""
    train = splits["train"]
    names = class_label_of(train.features["labels"]).names
    check_labels(train, len(names), split=train_split)
    if test_fraction is not None:
        train, test = _cut_test_split(train, test_fraction)
    else:
        test = splits["test"]
    return ImageData(train=train, test=test, class_names=names, name=name, validation=splits.get("validation"))


def _refuse(what: str, options: Mapping[str, object]) -> None:
    given = [f"--{option}" for option, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{what}; drop {', '.join(given)}.")


def _read_files(path: Path, test_dataset: str | None, options: FileOptions) -> datasets.DatasetDict:
    """The splits of a file, and the test split from another one."""

    def read(file: Path) -> datasets.DatasetDict:
        if file.suffix.lower() not in FILE_FORMATS:
            raise ValueError(
                f"The data set '{file}' is a file of no known format ({', '.join(FILE_FORMATS)}); give one of these, "
                f"or the folder that holds it."
            )
        return FILE_FORMATS[file.suffix.lower()](file, options)

    splits = read(path)
    if test_dataset is not None:
        test = Path(test_dataset).expanduser()
        if not test.is_file():
            raise FileNotFoundError(f"The file '{test_dataset}' to test on does not exist; check --test_dataset.")
        if "test" in splits:
            raise ValueError(f"'{path}' has a test split of its own; drop --test_dataset {test_dataset}.")
        splits["test"] = read(test)["train"]
    return splits


def _read_splits(
    name: str, config_name: str | None, image_root: str | None, *, train_split: str
) -> datasets.DatasetDict:
    """All splits of a folder or Hub data set, whatever its layout."""
    if name in TORCHVISION:
        if image_root is None:
            raise ValueError(f"'{name}' is read from the folder that torchvision downloaded to; set --image_root.")
        return read_torchvision_cifar(name, Path(image_root).expanduser())
    _refuse(f"'{name}' is no file that lists images", {"image_root": image_root})
    path = Path(name).expanduser()
    kind = "file" if path.suffix.lower() in FILE_FORMATS else "folder"
    is_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or kind == "file"
    if is_local and not path.exists():
        raise FileNotFoundError(f"The data set {kind} '{name}' does not exist; check the path.{did_you_mean(name)}")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        with damage_told(name):
            stored = datasets.load_from_disk(str(path))
        return stored if isinstance(stored, datasets.DatasetDict) else datasets.DatasetDict({"train": stored})
    if path.is_dir():
        refuse_pickled_cifar(path)
        if binary_cifar_version(path) is not None:
            return read_binary_cifar(path)
        images = read_image_folder(path, train_split=train_split)
        if images is not None:
            return images
        refuse_without_classes(path)
    elif not Path(datasets.config.HF_DATASETS_CACHE, name.replace("/", "___")).is_dir():
        check_repository("The data set", name, known=(*SOURCES, *TORCHVISION), repo_type="dataset")
    sources = ", ".join(sorted(SOURCES))
    what = f"is no registered source ({sources}) and could not be read from a file, a folder or the Hub"
    with absence_told(name, what), damage_told(name):
        return datasets.load_dataset(str(path) if path.is_dir() else name, config_name)


def _cut_test_split(dataset: datasets.Dataset, fraction: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    if fraction == 1:  # nothing to train on: a data set that is for testing alone
        return dataset.select([]), dataset
    num_classes = class_label_of(dataset.features["labels"]).num_classes
    train, test = stratified_split(label_array(dataset), num_classes, test_fraction=fraction, seed=SPLIT_SEED)
    return dataset.select(train), dataset.select(test)
