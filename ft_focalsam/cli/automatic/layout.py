"""What a folder of images looks like, and the settings by which it is read."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.finding import did_you_mean
from ...data.image_folder import EXTENSIONS, TABLES, find_images, shown_folders
from ...data.list_files import FILE_FORMATS
from ...data.sources import read_splits
from ...data.splits import role_of

LISTS = (".csv", ".tsv", ".jsonl", ".json", ".txt", ".npz")  # list files, those that leave least doubt first
STORED = (".parquet", ".arrow")
TEST_FRACTION = 0.2
_REMEDY = "give a folder with one sub-folder of images per class, or with a CSV file that lists paths and labels"


@dataclass(frozen=True)
class Layout:
    """How images lie in a folder.

    Args:
        settings (`dict`): Keys of `DataArguments`: where the images are, and which of them are tested on.
        reasons (`list[str]`): What was found, a sentence each.
        splits (`list[str]`): Names of all splits.
    """

    settings: dict[str, object]
    reasons: list[str]
    splits: list[str]


def find_layout(folder: str | os.PathLike, given: Mapping[str, object] | None = None) -> Layout:
    """Recognise sub-folders per class, train/test/validation folders of them, list files beside images (with a column
    `split`, or one file a split) and stored data sets (parquet, Arrow, `save_to_disk`, binary CIFAR).

    No image is opened. A test split is used where there is one (of train and val alone, val is it, as with ImageNet);
    otherwise a fifth of each class is tested on. That share is rounded for each class, so that classes of one or two
    images keep all of them for training, and one of three gives one.

    Args:
        folder (`str` or path): Where the images are; a list file does too.
        given (mapping, *optional*): Keys of `DataArguments` that the user has set, with their values, which win.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no images with classes; says what it holds.
    """
    given, path = given or {}, Path(folder).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"The folder of images '{folder}' does not exist; check the path.{did_you_mean(folder)}"
        )
    settings, reasons = _find_file(path) if path.is_file() else _find_source(path, given)
    settings |= {key: value for key, value in given.items() if key in _READING}
    splits = list(read_splits(str(settings["dataset"]), **{k: v for k, v in settings.items() if k in _READING}))
    roles, more = _choose_splits(splits, given, where=path)
    return Layout(settings | roles, [*reasons, *more], splits)


# Arguments of `read_splits`
_READING = ("test_dataset", "image_root", "image_column", "label_column", "label_separator", "train_split")


def _find_file(path: Path) -> tuple[dict[str, object], list[str]]:
    if path.suffix.lower() in FILE_FORMATS:
        return {"dataset": str(path)}, [f"'{path.name}' lists the images"]
    archive = path.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")
    remedy = "unpack it and give the folder" if archive else f"give the folder that holds it, or {_REMEDY}"
    raise ValueError(f"'{path}' is {'an archive' if archive else 'a file, not a folder of images'}; {remedy}.")


def _find_source(path: Path, given: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """What the key `dataset` has to name, and how its paths are read."""
    if _is_stored(path):
        return {"dataset": str(path)}, ["the folder is a stored data set"]
    inner = _descend(path)
    classes = [folder for folder in shown_folders(inner) if _has_images(folder)]
    unlabelled = [f for f in classes if role_of(f.name) and not any(_has_images(g) for g in shown_folders(f))]
    are_splits = any(role_of(folder.name) for folder in classes) and len(unlabelled) < len(classes)
    by_folders = len(classes) > 1 and len(unlabelled) < len(classes)
    found = _find_lists(inner, given, is_needed=not by_folders) or _find_lists(path, given, is_needed=not by_folders)
    if found and (not by_folders or (not are_splits and _says_splits(found[0], given))):
        return found
    if not by_folders:
        _refuse(path, classes)
    loose = sum(child.suffix.lower() in EXTENSIONS for child in inner.iterdir() if child.is_file())
    reasons = [f"{_count(loose, 'image')} beside the folders: in no class, and left out"] if loose else []
    if are_splits and unlabelled:  # as in competitions, whose test images have no classes
        names = ", ".join(f"'{folder.name}'" for folder in unlabelled)
        reasons.append(f"the images in {names} are in no class and are left out")
        left = [folder for folder in classes if folder not in unlabelled]
        if len(left) == 1:
            inner, are_splits = left[0], False
        else:
            raise ValueError(f"{names} in '{inner}' holds images without classes; move it out of the folder.")
    kind = "splits with a sub-folder per class" if are_splits else "one sub-folder per class"
    return {"dataset": str(inner)}, [f"'{inner.name}' holds {kind}", *reasons]


def _says_splits(settings: Mapping[str, object], given: Mapping[str, object]) -> bool:
    """Whether list files say which images are for testing, which folders of classes do not."""
    reading = {key: value for key, value in {**settings, **given}.items() if key in _READING}
    return len(read_splits(str(settings["dataset"]), **reading)) > 1


def _is_stored(path: Path) -> bool:
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return True
    inside = [child for folder in (path, *shown_folders(path)) for child in folder.iterdir() if child.is_file()]
    return any(
        child.suffix.lower() in STORED or re.fullmatch(r"(data|test)_batch.*|(train|test)\.bin", child.name)
        for child in inside
    )


def _descend(path: Path) -> Path:
    """The folder of the classes or splits, where it is the only one with images inside others."""
    while True:
        folders = [folder for folder in shown_folders(path) if _has_images(folder)]
        if len(folders) != 1 or not any(_has_images(inner) for inner in shown_folders(folders[0])):
            return path
        path = folders[0]


def _has_images(folder: Path) -> bool:
    return next(find_images(folder), None) is not None


def _find_lists(
    path: Path, given: Mapping[str, object], *, is_needed: bool
) -> tuple[dict[str, object], list[str]] | None:
    """A list file of a folder, or one to train and one to test on, and the folder that their paths start from.

    Raises, where `is_needed`, if none can be read, or it is not clear which one to train on.
    """
    files = sorted(
        (
            child
            for child in path.iterdir()
            if child.is_file() and child.suffix.lower() in LISTS and child.name[0] != "."
        ),
        key=lambda file: (LISTS.index(file.suffix.lower()), file.name),
    )
    options = {key: given[key] for key in ("image_column", "label_column", "label_separator") if key in given}
    read: dict[Path, str | None] = {}
    first_fault = None
    for file in files:
        try:
            read[file] = _find_root(file, path, given.get("image_root"), options)
        except (ValueError, OSError) as error:
            first_fault = first_fault or (error if file.suffix.lower() in LISTS[:3] else None)
    if not read:
        if first_fault is not None and is_needed:
            raise first_fault
        return None
    roles = {role: file for file in reversed(read) for role in [_role_of_file(file)] if role}
    if len(read) > 1 and "train" not in roles:
        if not is_needed:
            return None
        names = ", ".join(f"'{file.name}'" for file in read)
        raise ValueError(f"'{path}' holds several lists of images ({names}); give the one to train on.")
    train = roles.get("train", next(iter(read)))
    test = next((roles[role] for role in ("test", "validation") if role in roles and roles[role] != train), None)
    settings: dict[str, object] = {"dataset": str(train)}
    reasons = [f"'{train.name}' lists the images"]
    if read[train] is not None:
        settings["image_root"] = read[train]
    if test is not None and read[test] == read[train] and "test_fraction" not in given:
        settings["test_dataset"] = str(test)
        reasons.append(f"'{test.name}' lists the test images")
    for file in files:
        if _role_of_file(file) and file not in (train, test if "test_dataset" in settings else None):
            why = "paths start from another folder" if file in read else "lines are no images with classes"
            reasons.append(f"'{file.name}' is left out" + ("" if file in read and file != test else f": its {why}"))
    return settings, reasons


def _role_of_file(file: Path) -> str | None:
    """The role that a word of its name says: "train" for ImageNet_LT_train.txt."""
    return next(filter(None, map(role_of, re.split(r"[\W_]+", file.stem))), None)


def _find_root(file: Path, folder: Path, root: object, options: Mapping[str, object]) -> str | None:
    """The folder that the paths of a list start from: its own (None), or a sub-folder with images.

    Raises what reading the list from its own folder does, where it can be read from none.
    """
    roots = [root] if root is not None else [None, *(str(f) for f in shown_folders(folder) if _has_images(f))]
    fault: Exception | None = None
    for candidate in roots:
        try:
            read_splits(str(file), image_root=candidate, **options)
        except (ValueError, OSError) as error:
            fault = fault or error
        else:
            return candidate
    raise fault


def _choose_splits(
    splits: Sequence[str], given: Mapping[str, object], *, where: Path
) -> tuple[dict[str, object], list[str]]:
    """The keys that say which splits are trained, tested and validated on, and why."""
    by_role: dict[str, str] = {}
    for split in splits:
        role = role_of(split)
        if role is not None:
            by_role.setdefault(role, split)
    train = given.get("train_split") or by_role.get("train") or (splits[0] if len(splits) == 1 else None)
    if train is None:
        names = ", ".join(f"'{split}'" for split in splits)
        raise ValueError(f"'{where}' has the splits {names} and none to train on; name one with --train_split.")
    settings: dict[str, object] = {} if train == "train" else {"train_split": train}
    test, validation = (given.get(f"{role}_split") or by_role.get(role) for role in ("test", "validation"))
    if test is None and "validation_split" not in given:
        test, validation = validation, None
    if "test_fraction" in given or test in (None, train):
        test = None
        settings["test_fraction"] = given.get("test_fraction", TEST_FRACTION)
        reasons = [
            f"{settings['test_fraction']:.0%} of each class is put aside for testing; of a class of one or two "
            "images all are trained on"
        ]
    else:
        settings["test_split"] = test
        reasons = [f"the images of '{test}' are tested on"]
    if validation not in (None, train, test) and "validation_fraction" not in given:
        settings["validation_split"] = validation
        reasons.append(f"the images of '{validation}' are for validation while training")
    used = (train, test, settings.get("validation_split"))
    unused = [f"'{split}'" for split in splits if split not in used]
    return settings, reasons + ([f"the images of {', '.join(unused)} are not used"] if unused else [])


def _refuse(path: Path, classes: Sequence[Path]) -> None:
    """Say what a folder without classes holds."""
    images = sum(1 for _ in find_images(path))
    if not images:
        files = sorted(name for _, _, names in os.walk(path) for name in names if not name.startswith("."))
        tables = [name for name in files if name.lower().endswith(TABLES)]
        found = (
            f"{_count(len(files), 'file')} and no image among them (such as '{(tables or files)[0]}')"
            if files
            else "nothing in it"
        )
    elif not classes:
        found = f"{_count(images, 'image')} and no sub-folders, which would be the classes"
    elif len(classes) == 1:
        found = f"images in the one folder '{classes[0].name}' alone, and a classifier needs two classes"
    else:
        names = " and ".join(f"'{folder.name}'" for folder in classes[:3])
        found = f"images in {names}, without sub-folders, which would be the classes"
    raise ValueError(f"'{path}' has {found}; {_REMEDY}.")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
