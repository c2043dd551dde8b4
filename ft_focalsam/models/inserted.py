"""Modules that are inserted into a frozen backbone: what there is, and how a checkpoint notes what was inserted."""

from collections.abc import Callable

from ..registry import Registry

# An entry is a function (backbone, family, **settings) that puts new modules into a backbone, trainable and in
# float32. `LongTailClassifier.insert` calls it, and so does loading a checkpoint, with the settings that were saved.
INSERTED_MODULES: Registry[Callable[..., None]] = Registry("kind of inserted modules")
register_inserted = INSERTED_MODULES.register

# Of the note in config.json: {"format": 1, "name": a name in INSERTED_MODULES, "settings": {name: value}}. To be
# raised when a checkpoint of today could not be read by the code of tomorrow, or the other way round.
FORMAT = 1


def describe_inserted(name: str, settings: dict) -> dict:
    """The note for `config.json`."""
    return {"format": FORMAT, "name": name, "settings": settings}


def read_inserted(note: dict | None, *, source: str) -> tuple[str, dict] | None:
    """Name and settings from a note; None where nothing was inserted.

    Raises:
        ValueError: If the note has another format than this version of the package writes.
    """
    if note is None:
        return None
    if note.get("format") != FORMAT:
        raise ValueError(
            f"'{source}' notes its inserted modules in format {note.get('format')!r}, and this version of ft_focalsam "
            f"reads format {FORMAT}; install the version that wrote it."
        )
    return note["name"], note["settings"]
