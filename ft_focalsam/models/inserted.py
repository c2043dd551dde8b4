"""Modules that are inserted into a classifier: what there is, and how a checkpoint notes what was inserted."""

from collections.abc import Callable

from ..registry import Registry

# An entry is a function (model, **settings) that puts new modules into a `LongTailClassifier`, trainable and in
# float32. `LongTailClassifier.insert` calls it, and so does loading a checkpoint, with the settings that were saved.
INSERTED_MODULES: Registry[Callable[..., None]] = Registry("kind of inserted modules")
register_inserted = INSERTED_MODULES.register

# Of the note in config.json: {"format": 2, "modules": [{"name": a name in INSERTED_MODULES, "settings": {...}}, ...]},
# in the order of insertion. To be raised when a checkpoint of today could not be read by the code of tomorrow, or the
# other way round. Format 1 noted one kind: {"format": 1, "name": ..., "settings": ...}.
FORMAT = 2


def add_inserted(note: dict | None, name: str, settings: dict) -> dict:
    """The note for `config.json` with one more kind in it."""
    return {"format": FORMAT, "modules": [*(note or {}).get("modules", ()), {"name": name, "settings": settings}]}


def read_inserted(note: dict | None, *, source: str) -> list[tuple[str, dict]]:
    """Names and settings from a note, in the order of insertion; empty where nothing was inserted.

    Raises:
        ValueError: If this version of the package does not read the format of the note.
    """
    if note is None:
        return []
    if note.get("format") == 1:
        return [(note["name"], note["settings"])]
    if note.get("format") != FORMAT:
        raise ValueError(
            f"'{source}' notes its inserted modules in format {note.get('format')!r}, and this version of ft_focalsam "
            f"reads formats 1 to {FORMAT}; install the version that wrote it."
        )
    return [(module["name"], module["settings"]) for module in note["modules"]]
