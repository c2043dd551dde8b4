"""A folder of images: a sub-folder a class, or splits of such folders; a class has its images at any depth."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import datasets
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from ..base.errors import printable
from .paths import LEADS_OUT, Folder, is_inside, is_text
from .splits import role_of

EXTENSIONS = {*ImageFolder.EXTENSIONS, ".avif"}
# Of files that `datasets` reads as tables or archives.
TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".tar", ".zip", ".gz", ".zst", ".h5")


def read_image_folder(path: Path, *, train_split: str = "train") -> datasets.DatasetDict | None:
    """The splits of a folder, with the columns `"image"` and `"label"`; None where the layout is another.

    Sub-folders that hold images are classes (one of CIFAR-100 is called "train"). Where images lie deeper, they
    are splits if one of them is called like a split, else classes too. `datasets` itself goes by words in the names of
    folders and files, and takes the innermost folder for the class.

    Args:
        path (`Path`): The folder.
        train_split (`str`, defaults to `"train"`): A name that marks splits, beside the usual ones.

    Raises:
        ValueError: If an image is in a split but in no class, or as in [`find_images`].
    """
    folders = shown_folders(path)
    if any(_holds_metadata(folder) for folder in (path, *folders)):
        return None
    images = {folder: list(find_images(folder, root=path)) for folder in folders}
    folders = [folder for folder in folders if images[folder]]
    if not folders:
        return None
    direct = [p for folder in folders for p in images[folder] if Path(p).parent == folder]
    like_splits = [_split_name(folder, train_split) is not None for folder in folders]
    if direct and all(like_splits) and len(direct) < sum(map(len, images.values())):
        raise ValueError(f"The image '{direct[0]}' is in no class; move it into the folder of one, or remove it.")
    if len(folders) == 1 and not direct and any(_split_name(f, train_split) for f in shown_folders(folders[0])):
        raise ValueError(f"'{path}' has its splits in the folder '{folders[0].name}'; give '{folders[0]}'.")
    if direct or not any(like_splits):
        splits = {"train": {folder.name: images[folder] for folder in folders}}
    else:
        splits = {_split_name(f, train_split) or f.name: _by_class(f, images[f]) for f in folders}
    names = sorted({name for classes in splits.values() for name in classes})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {
                    "image": [image for name in names for image in classes.get(name, ())],
                    "label": [label for label, name in enumerate(names) for _ in classes.get(name, ())],
                },
                features=features,
            )
            for split, classes in splits.items()
        }
    )


def refuse_without_classes(path: Path) -> None:
    """Raise a `ValueError` for a folder that holds no data, or images without classes; `read_image_folder` has found
    no classes in it."""
    if any(_holds_metadata(folder) for folder in (path, *shown_folders(path))):
        return
    files = [name for _, _, names in os.walk(path) for name in names if not _is_hidden(name)]
    if any(name.lower().endswith(TABLES) for name in files):
        return
    remedy = "give a folder with one sub-folder of images per class, or a file that lists paths and labels"
    images = sum(1 for _ in find_images(path))
    if images:
        raise ValueError(f"'{path}' has {images:,} images and no sub-folders, which would be the classes; {remedy}.")
    found = f"{len(files):,} files and no image among them (such as '{files[0]}')" if files else "nothing in it"
    raise ValueError(f"The data set folder '{path}' has {found}; {remedy}.")


def find_images(folder: Path, *, root: Path | None = None) -> Iterator[str]:
    """Paths of the files that are images by their extension, at any depth, in order.

    Links to folders are followed, each folder once; what is hidden is left out.

    Args:
        folder (`Path`): Where to look.
        root (`Path`, *optional*): What links may not lead out of; by default the folder.

    Raises:
        ValueError: If an image is a link that leads out of the root, or a device, a pipe or a socket.
    """
    top = os.path.realpath(folder if root is None else root)
    seen, waiting = set(), [Folder(folder)]
    while waiting:
        inner = waiting.pop()
        if inner.real in seen:
            continue
        seen.add(inner.real)
        if not is_inside(inner.real, top):
            _refuse(inner.path, LEADS_OUT, top)
        for name in (name for name in inner.files if not _is_hidden(name)):
            if Path(name).suffix.lower() in EXTENSIONS:
                path = os.path.join(inner.path, name)
                fault = inner.fault_of(name, top) or (None if is_text(path) else "whose name is no text in UTF-8")
                if fault is not None:
                    _refuse(path, fault, top)
                yield path
        shown = [name for name in inner.folders if not _is_hidden(name)]
        waiting += [inner.inner(name) for name in reversed(shown)]


def _refuse(path: str, fault: str, top: str) -> NoReturn:
    of = f" '{top}'" if fault == LEADS_OUT else ""
    raise ValueError(
        f"The folder of images holds '{printable(path)}', {fault}{of}; put a copy of what is meant in its place, or "
        "remove it."
    )


def shown_folders(path: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones."""
    return sorted(child for child in path.iterdir() if child.is_dir() and not _is_hidden(child.name))


def _holds_metadata(folder: Path) -> bool:
    return any(child.stem == "metadata" for child in folder.iterdir())


def _split_name(folder: Path, train_split: str) -> str | None:
    """The split that a folder is called like, in small letters where it is a usual one; None for none."""
    if folder.name == train_split:
        return train_split
    return folder.name.lower() if role_of(folder.name) else None


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _by_class(folder: Path, images: list[str]) -> dict[str, list[str]]:
    """Class -> images, the class being the first folder on the way to an image."""
    classes: dict[str, list[str]] = {}
    for image in images:
        classes.setdefault(Path(image).relative_to(folder).parts[0], []).append(image)
    return classes
