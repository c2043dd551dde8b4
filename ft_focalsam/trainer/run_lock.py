"""One writer per output folder: a lock that dies with the process that holds it."""

import logging
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..base.errors import first_fault, one_line

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_NAME = ".run.lock"

_held: dict[Path, tuple[int, int]] = {}  # lock files of this process -> file descriptor, thread


@contextmanager
def one_writer(folder: str | os.PathLike, *, is_writer: bool = True, name: str = LOCK_NAME) -> Iterator[None]:
    """Keep other runs out of an output folder while the block runs; the thread that holds it may enter again.

    All processes of a run call this. The lock is released when its process ends, however it ends. Where the file
    system has no file locks, the log says so and nothing is locked.

    Args:
        folder (`str` or path): The output folder; it exists.
        is_writer (`bool`): Whether this process takes the lock for the others: the one that writes.
        name (`str`): Of the lock file, which is removed in the end.

    Raises:
        BlockingIOError: On all processes, if another run holds the lock; an `OSError`.
    """
    path, fault, taken = Path(folder).expanduser().resolve() / name, None, False
    if is_writer:
        try:
            taken = _take(path)
        except OSError as error:
            fault = str(error)
    try:
        fault = first_fault(fault)
        if fault is not None:
            raise BlockingIOError(fault)
        yield
    finally:
        if taken:
            _release(path)


def _take(path: Path) -> bool:
    """Whether the lock was taken just now, and is to be released; it is not where this thread has it already."""
    if path in _held:
        if _held[path][1] != threading.get_ident():
            raise BlockingIOError(_refusal(path, "another thread of this process"))
        return False
    if fcntl is None:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(_refusal(path, holder or "another process")) from None
        except OSError as error:
            logger.warning(
                "'%s' has no file locks (%s): see that no other run writes there.", path.parent, one_line(error)
            )
            break
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # removed by the run that held it, between opening and locking
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    _held[path] = descriptor, threading.get_ident()
    return True


def _release(path: Path) -> None:
    descriptor, _ = _held.pop(path)
    with suppress(OSError):
        path.unlink()
    os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _refusal(path: Path, holder: str) -> str:
    return (
        f"Another run writes to '{path.parent}' ({holder}); wait until it has ended, or set --output_dir to another "
        "folder."
    )


def _forget_in_child() -> None:
    """A worker that was forked must not hold the lock on when its run was killed."""
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
