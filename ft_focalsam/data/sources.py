"""Sources of labelled images: registered ones by name, anything else from the Hub, a folder or a file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from .image_folder import read_image_folder, refuse_without_classes
from .images import paths_without_bytes
from .list_files import FILE_FORMATS, FileOptions, read_prompt_names
from .long_tail import long_tail_indices, stratified_split, take_per_class
from .paths import ForeignFileError, refuse_paths_outside
from .splits import select_splits

SPLIT_SEED = 0  # a test set cut from the training split is the same one in every run


@dataclass
class ImageData:
    """Labelled images, ready for a transform and a Trainer.

    Args:
        train (`datasets.Dataset`): Columns `"image"` (an `Image` feature, decoded on access) and `"labels"` (int64,
            0..C-1), and no other.
        test (`datasets.Dataset`): The same columns.
        class_names (`list[str]`): The C class names in index order, as the data set spells them.
        name (`str`): What the user called the data set.
        validation (`datasets.Dataset`, *optional*): The same columns; images to choose by while training, which are
            neither trained on nor tested on.

    Raises:
        ValueError: If the columns differ from these two, or a label is outside 0..C-1.
    """

    train: datasets.Dataset
    test: datasets.Dataset
    class_names: list[str]
    name: str
    validation: datasets.Dataset | None = None

    def __post_init__(self):
        for split, dataset in self.parts.items():
            if sorted(dataset.column_names) != ["image", "labels"]:
                raise ValueError(f"Split '{split}' has the columns {dataset.column_names}, not 'image' and 'labels'.")
            check_labels(dataset, self.num_classes, split=split)

    @property
    def parts(self) -> dict[str, datasets.Dataset]:
        """The splits that there are, by the names of the attributes."""
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        return {split: dataset for split, dataset in parts.items() if dataset is not None}

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.class_names)

    @property
    def num_train(self) -> int:
        """Training images."""
        return len(self.train)

    def rename(self, class_names: list[str]) -> "ImageData":
        """The same data with other names of the classes, in index order.

        Raises:
            ValueError: If their number is another.
        """
        if len(class_names) != self.num_classes:
            raise ValueError(
                f"--class_names has {len(class_names)} names and the data set {self.num_classes} classes; name all."
            )
        feature = datasets.ClassLabel(names=class_names)
        parts = {split: part.cast_column("labels", feature) for split, part in self.parts.items()}
        return replace(self, **parts, class_names=class_names)

    def cut(
        self,
        *,
        imbalance_factor: float | None = None,
        profile: str = "exponential",
        max_train_per_class: int | None = None,
        max_test_per_class: int | None = None,
        seed: int = 0,
    ) -> "ImageData":
        """The same data with fewer images.

        Args:
            imbalance_factor (`float`, >= 1, *optional*): Ratio of the most frequent to the rarest class of the
                long-tail profile that the training set is cut to; by default it keeps its own imbalance.
            profile (`str`, defaults to `"exponential"`): `"exponential"`, `"step"` or `"pareto"`.
            max_train_per_class (`int`, *optional*): Training images of the most frequent class.
            max_test_per_class (`int`, *optional*): Test images a class.
            seed (`int`, defaults to 0): Which images are taken.

        Raises:
            ValueError: If a value is out of range, or a class has too few images for the profile.
        """
        train, test = self.train, self.test
        labels, num_classes = label_array(train), self.num_classes
        if imbalance_factor is not None:
            shape = {"imbalance_factor": imbalance_factor, "profile": profile, "max_count": max_train_per_class}
            train = train.select(long_tail_indices(labels, num_classes, seed=seed, **shape))
        elif max_train_per_class is not None:
            train = train.select(take_per_class(labels, num_classes, per_class=max_train_per_class, seed=seed))
        if max_test_per_class is not None:
            labels = label_array(test)
            test = test.select(take_per_class(labels, num_classes, per_class=max_test_per_class, seed=seed))
        return replace(self, train=train, test=test)

    def limit_imbalance(self, most: float, *, seed: int = 0) -> "ImageData":
        """The same data with at most `most` times the training images of the rarest class in each class.

        Args:
            most (`float`, >= 1): 1 balances the classes.
            seed (`int`, defaults to 0): Which images are taken.

        Raises:
            ValueError: If a class has no training image.
        """
        labels = label_array(self.train)
        counts = np.bincount(labels, minlength=self.num_classes)
        if counts.min() == 0:
            raise ValueError(
                f"The class '{self.class_names[int(counts.argmin())]}' has no training image for max_imbalance to "
                "count by; give it one, or leave max_imbalance out."
            )
        rows = take_per_class(labels, self.num_classes, per_class=int(most * counts.min()), seed=seed)
        return replace(self, train=self.train.select(rows))

    def hold_out(self, fraction: float, *, seed: int = 0) -> "ImageData":
        """The same data with a part of the training images as validation images, for choices that the test set must
        not make.

        Args:
            fraction (`float`): Share of each class, inside (0, 1), rounded; one image of a class stays in training.
            seed (`int`, defaults to 0): Which images are taken.

        Raises:
            ValueError: If the fraction is outside (0, 1), or no class can give an image.
        """
        kept, held = stratified_split(label_array(self.train), self.num_classes, test_fraction=fraction, seed=seed)
        return replace(self, train=self.train.select(kept), validation=self.train.select(held))


# A source is a function without arguments that returns an ImageData.
SOURCES: Registry[Callable[[], ImageData]] = Registry("source")
register_source = SOURCES.register


@register_source("digits")
def digits() -> ImageData:
    """1,797 handwritten digits of 8 x 8 grey pixels that scikit-learn ships, split 70/30 class by class.

    They need no download, and they are small enough to train on without an accelerator.
    """
    bunch = load_digits()
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.ClassLabel(names=names)})
    columns = {"image": [Image.fromarray(image) for image in pixels], "labels": bunch.target}
    train, test = _cut_test_split(datasets.Dataset.from_dict(columns, features=features), 0.3)
    return ImageData(train=train, test=test, class_names=names, name="digits")


def load_image_data(
    name: str,
    *,
    test_dataset: str | None = None,
    image_root: str | None = None,
    class_names: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
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
        label_column (`str`, *optional*): By default the one `ClassLabel` column, else the one with a usual name.
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
    given = {"image_root": image_root, "test_dataset": test_dataset, "test_split": test_split}
    given |= {"image_column": image_column, "label_column": label_column, "dataset_config": config_name}
    given |= {"train_split": None if train_split == "train" else train_split, "test_fraction": test_fraction}
    given |= {"validation_split": validation_split}
    names = None if class_names is None else read_prompt_names(class_names)
    path = Path(name).expanduser()
    if name in SOURCES:
        _refuse(f"The registered source '{name}' has fixed columns and splits", given)
        data = SOURCES[name]()
        return data if names is None else data.rename(names)
    splits = read_splits(
        name,
        test_dataset=test_dataset,
        image_root=image_root,
        image_column=image_column,
        label_column=label_column,
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
    train_split: str = "train",
    config_name: str | None = None,
) -> datasets.DatasetDict:
    """All splits of what is no registered source, with the columns that they have.

    Args and raises: As in [`load_image_data`].
    """
    path = Path(name).expanduser()
    if not path.is_file():
        _refuse(f"'{name}' is no file that lists images", {"test_dataset": test_dataset})
        return _read_splits(name, config_name, image_root, train_split=train_split)
    _refuse(f"'{name}' is a file", {"dataset_config": config_name})
    root = path.parent if image_root is None else Path(image_root).expanduser()
    return _read_files(path, test_dataset, FileOptions(root, image_column, label_column))


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
    check_labels(train, train.features["labels"].num_classes, split=train_split)
    if test_fraction is not None:
        train, test = _cut_test_split(train, test_fraction)
    else:
        test = splits["test"]
    names = train.features["labels"].names
    return ImageData(train=train, test=test, class_names=names, name=name, validation=splits.get("validation"))


def _refuse(what: str, options: dict[str, object]) -> None:
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
    num_classes = dataset.features["labels"].num_classes
    train, test = stratified_split(label_array(dataset), num_classes, test_fraction=fraction, seed=SPLIT_SEED)
    return dataset.select(train), dataset.select(test)
