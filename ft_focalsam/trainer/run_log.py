"""train.log: what a run tells its user, kept beside its model."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from ..base.errors import one_line
from .run_lock import LOCK_NAME

LOG_NAME = "train.log"
_PACKAGE = logging.getLogger("ft_focalsam")  # its warnings
_TOLD = logging.getLogger("ft_focalsam.told")  # lines that `tell` prints
_TOLD.propagate = False
_TOLD.setLevel(logging.INFO)


def tell(text: str) -> None:
    """Print a text, above a progress bar where there is one, and write it to the log of the run that is open."""
    with tqdm.external_write_mode():
        print(text, flush=True)
    _TOLD.info(text)


@contextmanager
def run_log(
    folder: str | os.PathLike, *, appends: bool, is_writer: bool = True, own: tuple[str, ...] = ()
) -> Iterator:
    """Keep, while the block runs, all that `tell` prints, the warnings of this package, and the error that ends the
    block, in train.log, each line with its time. Warnings still go to stderr.

    A block that fails before there is anything else in the folder leaves nothing there.

    Args:
        folder (`str` or path): Output folder of the run, which exists.
        appends (`bool`): Go on with the log that is there, as of a run that is resumed.
        is_writer (`bool`): Whether this process writes.
        own (tuple of `str`): Names of other files that a run begins with.
    """
    if not is_writer:
        yield
        return
    path = Path(folder).expanduser() / LOG_NAME
    to_file = _ToFile(path, mode="a" if appends else "w", encoding="utf-8")
    to_file.setFormatter(_Lines())
    handlers: dict[logging.Logger, list[logging.Handler]] = {_TOLD: [to_file], _PACKAGE: [to_file]}
    if not (_PACKAGE.handlers or logging.getLogger().handlers):  # else Python's last resort, which has no more say
        handlers[_PACKAGE] = [to_file, _AboveBar()]
    for logger, new in handlers.items():
        for handler in new:
            logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        _TOLD.error("%s: %s", type(error).__name__, one_line(error))
        if not {each.name for each in path.parent.iterdir()} - {LOG_NAME, LOCK_NAME, *own}:
            for name in (LOG_NAME, *own):
                (path.parent / name).unlink(missing_ok=True)
        raise
    finally:
        for logger, new in handlers.items():
            for handler in new:
                logger.removeHandler(handler)
        with suppress(OSError):
            to_file.close()


class _Lines(logging.Formatter):
    """Each line of a text with its time; empty ones left out."""

    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        level = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        lines = [line for line in record.getMessage().splitlines() if line.strip()]
        return "\n".join(f"{time} {level}{line}" for line in lines)


class _ToFile(logging.FileHandler):
    """A file that may become impossible to write to, as on a full disk: a run does not end for its log."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class _AboveBar(logging.Handler):
    """Warnings on stderr, above a progress bar."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            print(record.getMessage(), file=sys.stderr, flush=True)
