"""Paths of image files: kept inside their folder, and known to be regular files before any training."""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..base.errors import printable

LEADS_OUT = "a link that leads out of"


class ForeignFileError(ValueError):
    """A data set that names a file which is not its own."""


def read_file(path: str | os.PathLike[str], *, most: int) -> bytes:
    """The content of a regular file; a device or a pipe, which may have no end, is not waited for.

    Args:
        path (`str` or path): Of the file.
        most (`int`): Bytes that it may have.

    Raises:
        OSError: If it cannot be read, is no regular file, or has more bytes.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    with open(path, "rb", opener=lambda name, mode: os.open(name, mode | flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        if status.st_size > most:
            raise OSError(f"it has more than {most:,} bytes")
        return file.read(most)


def resolve_paths(names: Sequence[str], lines: Sequence[int], *, list_file: Path, root: Path) -> list[str]:
    """Absolute paths of the images that a list file names relative to a folder.

    Each folder is listed once instead of asking for each file, which on network storage is much faster.

    Args:
        names (sequence of `str`): As the list file has them, `/` between folders.
        lines (sequence of `int`): The line of each name, counted from 1, for error messages.
        list_file (`Path`): Where they were read, for error messages.
        root (`Path`): Folder that they are relative to.

    Raises:
        FileNotFoundError: If the folder or an image does not exist; says how many are missing.
        ValueError: If a path is absolute or leads out of the folder, by `..` or by a link.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"The folder '{root}' of the images in '{list_file}' does not exist; set --image_root to the folder "
            f"that their paths start from."
        )
    top = Path(os.path.realpath(root))
    folders: dict[str, Folder] = {}
    paths, missing = [], []
    for name, line in zip(names, lines, strict=True):
        where = f"Line {line} of '{list_file}' names '{printable(name)}'"
        parts = name.split("/")
        if os.path.isabs(name) or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise ValueError(f"{where}, which leads out of '{root}'; write paths relative to --image_root.")
        parent, _, file = name.rpartition("/")
        if parent not in folders:
            folders[parent] = Folder(top / parent)
        folder = folders[parent]
        fault = folder.fault_of(file, top)
        if fault == LEADS_OUT:
            raise ValueError(f"{where}, {fault} '{root}'; set --image_root to a folder that holds it.")
        if fault is not None:
            raise ValueError(f"{where}, {fault}; list regular files alone.")
        if not folder.has(file):
            missing.append((where, line))
        paths.append(os.path.join(folder.path, file))
    if missing:
        raise FileNotFoundError(
            f"{missing[0][0]}, which is not in '{root}' ({len(missing):,} of {len(paths):,} images are missing); "
            f"set --image_root to the folder that the paths start from, or complete it."
        )
    return paths


def refuse_paths_outside(
    records: Iterable[tuple[int, str]], *, roots: Sequence[str | os.PathLike[str]], where: str
) -> None:
    """Let a table of images name no file of this machine that is not its own, and no address.

    Args:
        records (iterable of (`int`, `str`)): Row and path of the images that have no bytes in the table.
        roots (sequence of paths): Folders that belong to the data set.
        where (`str`): What the rows are of, for error messages.

    Raises:
        ForeignFileError: If a path is an address, leads out of all of these folders, or is that of no regular file.
    """
    tops = [os.path.realpath(root) for root in roots]
    folders: dict[str, Folder | None] = {}
    for row, path in records:
        parent, file = os.path.split(path)
        if parent not in folders:
            within = "://" not in parent and any(is_inside(os.path.realpath(parent), top) for top in tops)
            folders[parent] = Folder(parent) if within else None
        folder = folders[parent]
        if folder is None or all(folder.fault_of(file, top) for top in tops):
            raise ForeignFileError(
                f"Row {row} of {where} has no image but names '{printable(path)}', which is no file of the data set; "
                "store the bytes of the images, or list your own files in a .csv file and set --image_root."
            )


class Folder:
    """What one folder holds, listed once.

    Attributes:
        files, folders (`list[str]`): Names in it, sorted; links among them.

    Args:
        path (`str` or path): Of the folder.
        real (`str`, *optional*): The same without links, where it is known.
    """

    def __init__(self, path: str | os.PathLike[str], *, real: str | None = None):
        self.path = str(path)
        self.real = os.path.realpath(path) if real is None else real
        try:
            with os.scandir(path) as entries:
                kinds = {entry.name: _kind(entry) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            kinds = {}
        self.folders = sorted(name for name, (_, is_folder) in kinds.items() if is_folder)
        self.files = sorted(name for name, (_, is_folder) in kinds.items() if not is_folder)
        self._kinds = {name: kind for name, (kind, _) in kinds.items()}

    def inner(self, name: str) -> "Folder":
        """A folder in it."""
        is_link = self._kinds[name] == "link"
        return Folder(os.path.join(self.path, name), real=None if is_link else os.path.join(self.real, name))

    def fault_of(self, file: str, top: str | os.PathLike[str]) -> str | None:
        """Why a file of it is not to be read in a data set whose folder is `top`; None for no reason."""
        kind, path = self._kinds.get(file), os.path.join(self.path, file)
        if not is_inside(self.real, top) or (kind == "link" and not is_inside(os.path.realpath(path), top)):
            return LEADS_OUT
        if kind == "other" or (kind == "link" and os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)):
            return "which is no regular file"
        return None

    def has(self, file: str) -> bool:
        """Whether a file exists; a file system may know it under another spelling than it lists."""
        is_listed = self._kinds.get(file) == "file"
        return bool(file) and (is_listed or os.path.isfile(os.path.join(self.path, file)))


def _kind(entry: os.DirEntry[str]) -> tuple[str, bool]:
    """Its kind, "link", "file", "folder" or "other", and whether it is or leads to a folder."""
    if entry.is_symlink():
        try:
            return "link", entry.is_dir()
        except OSError:  # it leads to itself
            return "link", False
    is_folder = entry.is_dir(follow_symlinks=False)
    return "folder" if is_folder else "file" if entry.is_file(follow_symlinks=False) else "other", is_folder


def is_text(path: str) -> bool:
    """Whether the bytes of a path are text in UTF-8, as tables hold it."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def is_inside(path: str | os.PathLike[str], top: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder or in it; both of them resolved."""
    path, top = str(path), str(top)
    return path == top or path.startswith(top.rstrip(os.sep) + os.sep)
