"""Modules that are inserted into a classifier: what there is, and how a checkpoint notes what was inserted."""

from collections.abc import Callable
from dataclasses import dataclass

from ..base.registry import Registry


@dataclass(frozen=True)
class InsertedKind:
    """
    Attributes:
        insert (`Callable`): (model, **settings) -> None; puts new modules into a `LongTailClassifier`, trainable
            and in float32. `LongTailClassifier.insert` calls it, and so does loading a checkpoint, with the settings
            that were saved.
        merge (`Callable`, *optional*): (model) -> None; folds them into plain weights and takes them out. It finds
            what was inserted before folded already, and peft's adapter not yet. Without it, a model that has them
            cannot be merged.
        stays (`bool`): Whether there is nothing to fold, so that they are part of a merged model as they are.
    """

    insert: Callable[..., None]
    merge: Callable[..., None] | None = None
    stays: bool = False

    def __call__(self, model, **settings) -> None:
        self.insert(model, **settings)


INSERTED_MODULES: Registry[Callable[..., None]] = Registry("kind of inserted modules")


def register_inserted(name: str, *, merge: Callable[..., None] | None = None, stays: bool = False) -> Callable:
    """Register a function (model, **settings) as a kind of inserted modules; see `InsertedKind`.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(insert: Callable[..., None]) -> Callable[..., None]:
        INSERTED_MODULES.register(name)(InsertedKind(insert, merge, stays))
        return insert

    return decorate


def choose_inserted(name: str) -> InsertedKind:
    """The kind of that name; a plain function in `INSERTED_MODULES` is one that cannot be merged.

    Raises:
        ValueError: If there is none.
    """
    from ..tuning import methods  # noqa: F401  (which registers what it inserts, and imports this package)

    kind = INSERTED_MODULES.choose(name)
    return kind if isinstance(kind, InsertedKind) else InsertedKind(kind)


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
