"""Paths that a list file names: kept inside their folder, and known to exist before any training."""

import os
from collections.abc import Sequence
from pathlib import Path


def resolve_paths(names: Sequence[str], lines: Sequence[int], *, list_file: Path, root: Path) -> list[str]:
    """Absolute paths of the pictures that a list file names relative to a folder.

    Each folder is listed once instead of asking for each file, which on network storage is much faster.

    Args:
        names (sequence of `str`): As the list file has them, `/` between folders.
        lines (sequence of `int`): The line of each name, counted from 1, for error messages.
        list_file (`Path`): Where they were read, for error messages.
        root (`Path`): Folder that they are relative to.

    Raises:
        FileNotFoundError: If the folder or a picture does not exist; says how many are missing.
        ValueError: If a path is absolute or leads out of the folder, by `..` or by a link.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"The folder '{root}' of the pictures in '{list_file}' does not exist; set --image_root to the folder "
            f"that their paths start from."
        )
    top = Path(os.path.realpath(root))
    folders: dict[str, _Folder] = {}
    paths, missing = [], []
    for name, line in zip(names, lines, strict=True):
        where = f"Line {line} of '{list_file}' names '{name}'"
        parts = name.split("/")
        if os.path.isabs(name) or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise ValueError(f"{where}, which leads out of '{root}'; write paths relative to --image_root.")
        parent, _, file = name.rpartition("/")
        if parent not in folders:
            folders[parent] = _Folder(top / parent)
        folder = folders[parent]
        if not _is_inside(folder.real, top) or (folder.is_link(file) and not _is_inside(folder.target(file), top)):
            raise ValueError(
                f"{where}, a link that leads out of '{root}'; set --image_root to a folder that holds it."
            )
        if not folder.has(file):
            missing.append((where, line))
        paths.append(os.path.join(folder.path, file))
    if missing:
        raise FileNotFoundError(
            f"{missing[0][0]}, which is not in '{root}' ({len(missing):,} of {len(paths):,} pictures are missing); "
            f"set --image_root to the folder that the paths start from, or complete it."
        )
    return paths


class _Folder:
    """What one folder holds, listed once."""

    def __init__(self, path: Path):
        self.path = str(path)
        self.real = os.path.realpath(path)
        try:
            with os.scandir(path) as entries:
                files = [entry for entry in entries if not entry.is_dir(follow_symlinks=False)]
                self._links = {entry.name: entry.is_symlink() for entry in files}
        except (FileNotFoundError, NotADirectoryError):
            self._links = {}

    def is_link(self, file: str) -> bool:
        """Whether a file of it is a symbolic link."""
        return self._links.get(file, False)

    def target(self, file: str) -> str:
        """Where a link of it leads."""
        return os.path.realpath(os.path.join(self.path, file))

    def has(self, file: str) -> bool:
        """Whether a file exists; a file system may know it under another spelling than it lists."""
        is_listed = self._links.get(file) is False
        return bool(file) and (is_listed or os.path.isfile(os.path.join(self.path, file)))


def _is_inside(path: str, top: Path) -> bool:
    return path == str(top) or path.startswith(str(top).rstrip(os.sep) + os.sep)
