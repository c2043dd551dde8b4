"""Files that are there whole or not at all: written aside, flushed to the disk, then given their names."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

# Beside what is meant to stay; uploads to the Hub leave out names that begin like this.
TMP_PREFIX = "_tmp-"


@contextmanager
def atomic_dir(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to write to, whose files go to `folder`, under the same names, when the block ends.

    Until then `folder` is as it was, also where the block fails or the process is killed. Weights go last, and old
    ones first, so that no other configuration is ever beside them.

    Args:
        folder (`str` or path): It is made where it does not exist; what else it holds stays.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{TMP_PREFIX}files"
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    try:
        yield aside
        give_ordinary_permissions(aside)
        flush(aside)
        files = [path.relative_to(aside) for path in sorted(aside.rglob("*")) if path.is_file()]
        weights = [file for file in files if file.suffix == ".safetensors"]
        for file in weights:
            (folder / file).unlink(missing_ok=True)
        for file in [file for file in files if file not in weights] + weights:
            (folder / file.parent).mkdir(parents=True, exist_ok=True)
            os.replace(aside / file, folder / file)
        flush(folder, recursive=False)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
        flush(aside)
        if path.exists():
            path.rmdir()
        aside.rename(path)
        flush(path.parent, recursive=False)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


@contextmanager
def atomic_open(path: Path, mode: str = "wb", **options) -> Iterator[IO]:
    """A file to write to, which goes to `path` when the block ends, so that no other process ever sees a part of it;
    where the block fails, `path` is as it was.

    Args:
        path (`Path`): Its folder is made where it does not exist.
        mode (`str`), options: As for `open`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with aside.open(mode, **options) as file:
            yield file
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file as `atomic_open` does."""
    with atomic_open(path) as file:
        file.write(content)


def give_ordinary_permissions(folder: Path) -> None:
    """Let the weights in a folder be as readable as other files that the user makes: safetensors writes them for the
    owner alone."""
    probe = folder / f"{TMP_PREFIX}permissions"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        with suppress(PermissionError):  # of another user
            path.chmod(mode)


def flush(folder: Path, *, recursive: bool = True) -> None:
    """Have a folder, and all that is in it, on the disk and not only in the memory of the operating system."""
    if os.name != "posix":
        return
    for path in [*(folder.rglob("*") if recursive else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: str | os.PathLike, *, option: str = "--output_dir", make: bool = True) -> None:
    """Try to write to an output folder.

    Args:
        folder (`str` or path): It need not exist yet.
        option (`str`): What names it on the command line.
        make (`bool`): Make it where it does not exist; else the folder that it would be made in is tried.

    Raises:
        OSError: If that fails; says why and what to do.
    """
    place = Path(folder).expanduser()
    try:
        if make:
            place.mkdir(parents=True, exist_ok=True)
        place = next(path for path in (place, *place.parents) if path.exists())
        with tempfile.TemporaryFile(dir=place, prefix=TMP_PREFIX) as file:
            file.write(b"0")
    except OSError as error:
        raise OSError(
            f"The output folder '{folder}' cannot be written to ({error.strerror or error}); set {option} to "
            "another one, or make room or get the right to write there."
        ) from error
