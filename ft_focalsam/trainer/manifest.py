"""checkpoint.json: which run a checkpoint is of, and the digests by which damage to its files is found."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..base.parsing import parse_json
from .run_settings import fingerprint

MANIFEST_NAME = "checkpoint.json"
FORMAT = 1
CHUNK = 2**20  # bytes


@dataclass(frozen=True)
class Manifest:
    """What checkpoint.json holds.

    Args:
        run (`str`): Of the run, the same in all of its checkpoints, also when it was resumed.
        step (`int`): Its optimizer steps so far.
        settings (`dict`): What the run computes, see `run_settings.py`.
        optimizer (`str`): Class of the optimizer.
        changes (list of `dict`): Settings that were changed at a resume: "step" and "changed", key -> [before, now].
        files (`dict[str, str]`): Path in the checkpoint -> SHA-256 in hexadecimal.
        written (`int`): Nanoseconds since 1970.
        fingerprint (`str`): Of the settings.
        format (`int`): Of this file.
    """

    run: str
    step: int
    settings: dict[str, Any]
    optimizer: str = ""
    changes: list[dict] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    written: int = field(default_factory=time.time_ns)
    fingerprint: str = ""
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write checkpoint.json, with the digests of all that is in the folder."""
        own = folder / MANIFEST_NAME
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != own]
        content = asdict(self) | {
            "fingerprint": fingerprint(self.settings),
            "files": {path.relative_to(folder).as_posix(): digest(path) for path in paths},
        }
        text = json.dumps(content, indent=1, ensure_ascii=False)
        own.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """What checkpoint.json holds; None where there is none, as in checkpoints of earlier versions.

        Raises:
            ValueError: If it is damaged.
        """
        path = folder / MANIFEST_NAME
        if not path.is_file():
            return None
        try:
            found = cls(**parse_json(path.read_bytes()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{MANIFEST_NAME} is cut short or damaged ({error})") from error
        kinds = {"run": str, "step": int, "settings": dict, "changes": list, "files": dict, "written": int}
        wrong = [name for name, kind in kinds.items() if type(getattr(found, name)) is not kind]
        if wrong or found.fingerprint != fingerprint(found.settings):
            raise ValueError(f"{MANIFEST_NAME} is cut short or damaged (its {(wrong or ['settings'])[0]})")
        return found

    def find_fault(self, folder: Path) -> str | None:
        """The first file that is missing or is not as it was written; None for none."""
        for name, expected in self.files.items():
            path = folder / name
            if not path.is_file():
                return f"it has no {name}"
            if digest(path) != expected:
                return f"{name} is cut short or damaged (its SHA-256 is not the one in {MANIFEST_NAME})"
        return None


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()
