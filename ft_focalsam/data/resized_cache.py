"""Training images made smaller once and kept on disk, instead of in every epoch."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from ..base.files import atomic_write, check_writable
from .images import REDUCTIONS, StoredImage, record_name, upright_size
from .scan import map_images, record_signature

QUALITY = 95  # of the JPEGs


def resize_into_cache(
    dataset: datasets.Dataset, folder: str | Path, *, side: int, num_workers: int | None = None
) -> datasets.Dataset:
    """The same data set with images whose shorter side is at most `side`, stored as files.

    A file is named by the hash of what it was made from, and is made once for all data sets that hold the image; one
    that is smaller already is kept as it is. An index of paths, sizes and times of change spares reading the sources
    again, and a source that changed is made anew. Several processes may fill the same folder.

    Args:
        dataset (`datasets.Dataset`): Columns `"image"` and `"labels"`.
        folder (`str` or `Path`): Where the files go; it may hold other sizes, too.
        side (`int`): In pixels, at least 16; no smaller than what the model sees, or images are enlarged again.
        num_workers (`int`, *optional*): Processes; by default up to 8, for a large data set.

    Raises:
        BadImageError: If an image is broken.
        ValueError: If `side` is below 16.
    """
    if side < 16:
        raise ValueError(f"cache_resized_side is {side}; set it to 16 pixels or more, e.g. 256.")
    folder = Path(folder).expanduser() / f"side{side}-jpeg{QUALITY}"
    check_writable(folder, option="--cache_resized")
    index = folder / "index.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    made = list(map_images(dataset, _Resize(folder, side, known), num_workers=num_workers, desc="Resizing the images"))
    new = {signature: digest for signature, digest in made if signature != digest}
    if new.keys() - known.keys():
        atomic_write(index, json.dumps(known | new).encode())
    labels = dataset.select_columns(["labels"]).with_format(None)["labels"][:]
    columns = {"image": [str(_path(folder, digest)) for _, digest in made], "labels": labels}
    features = datasets.Features({"image": datasets.Image(), "labels": dataset.features["labels"]})
    return datasets.Dataset.from_dict(columns, features=features)


class _Resize:
    """Makes the file of one image unless it is there; returns the signature and the hash of the source."""

    def __init__(self, folder: Path, side: int, known: dict[str, str]):
        self.folder = folder
        self.side = side
        self.known = known

    def __call__(self, record: dict[str, Any], row: int) -> tuple[str, str]:
        signature = record_signature(record)
        digest = signature if record["bytes"] is not None else self.known.get(signature)
        if digest is not None and _path(self.folder, digest).is_file():
            return signature, digest
        stored = StoredImage.read(record, row=row)
        digest = hashlib.blake2b(stored.content, digest_size=16).hexdigest()
        path = _path(self.folder, digest)
        if not path.is_file():
            atomic_write(path, self._smaller(StoredImage(stored.content, record_name(record, row=row))))
        return signature, digest

    def _smaller(self, stored: StoredImage) -> bytes:
        full = upright_size(stored.open())
        shorter = min(full)
        if shorter <= self.side:
            return stored.content
        reduction = next((by for by in REDUCTIONS if 2 * by * self.side <= shorter), 1)  # made once: exact enough
        pixels = stored.decode(reduction=reduction)
        size = [length * self.side // shorter for length in full]
        pixels = tvf.resize(pixels, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


def _path(folder: Path, digest: str) -> Path:
    return folder / digest[:2] / digest
