"""Output folders, written aside and renamed when they are whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import give_ordinary_permissions


def check_is_free(folder: str | os.PathLike) -> Path:
    """The path of a folder that is to be made.

    Raises:
        FileExistsError: If there is something there that is not an empty folder.
    """
    path = Path(folder).expanduser().absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"The output '{folder}' exists and is not an empty folder; choose another one.")
    return path


@contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to write to, which gets its name when the block ends, and is removed when the block fails.

    Raises:
        FileExistsError: As `check_is_free`.
    """
    path = check_is_free(folder)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.mkdir(parents=True)
    try:
        yield aside
        give_ordinary_permissions(aside)
        if path.exists():
            path.rmdir()
        aside.rename(path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
