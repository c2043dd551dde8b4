"""Every image of a data set looked at once, in worker processes: broken ones, sizes, and hashes of the pixels."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..base.files import atomic_write
from .images import BadImageError, StoredImage, record_name, undecoded, upright_size
from .workers import WORTH_PROCESSES, available_cores

T = TypeVar("T")
_BATCH = 32


@dataclass(frozen=True)
class ImageFacts:
    """What one image is.

    Args:
        name (`str`): Its path, or its row.
        error (`str`, *optional*): Why it cannot be used; the fields below are then empty.
        height, width (`int`): In pixels, upright.
        format, mode (`str`): As PIL names them.
        pixels (`str`): Hash of the RGB pixels and the size, the same for the same image in another lossless file.
        gradient (`str`): Signs of the differences of neighbours in 9 x 9 grey pixels (dHash, along both axes), the
            same for most images that were only resized or compressed; empty for an image without structure.
    """

    name: str
    error: str | None = None
    height: int = 0
    width: int = 0
    format: str = ""
    mode: str = ""
    pixels: str = ""
    gradient: str = ""


def scan_images(
    dataset: datasets.Dataset, *, num_workers: int | None = None, desc: str = "Images"
) -> list[ImageFacts]:
    """Decode every image and describe it; a broken one is a fact like others.

    Args:
        dataset (`datasets.Dataset`): With the column `"image"`.
        num_workers (`int`, *optional*): Processes; by default up to 8, for a large data set.
        desc (`str`): Beside the progress bar.
    """
    return list(map_images(dataset, _facts, num_workers=num_workers, desc=desc))


def find_broken(dataset: datasets.Dataset, *, num_workers: int | None = None, desc: str = "Images") -> dict[int, str]:
    """The rows whose image cannot be read, each with the reason. JPEGs are decoded at an eighth of their size.

    The result is kept in the cache of `datasets` until a file or its time of change, or stored bytes, differ.

    Args:
        dataset, num_workers, desc: As in [`scan_images`].
    """
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "ft_focalsam" / f"scan2-{signature(dataset)}.json"
    if cache.is_file():
        return {int(row): error for row, error in json.loads(cache.read_text(encoding="utf-8")).items()}
    errors = map_images(dataset, _error, num_workers=num_workers, desc=desc)
    broken = {row: error for row, error in enumerate(errors) if error is not None}
    atomic_write(cache, json.dumps(broken).encode())
    return broken


def map_images(
    dataset: datasets.Dataset,
    function: Callable[[dict[str, Any], int], T],
    *,
    num_workers: int | None = None,
    desc: str = "Images",
) -> Iterator[T]:
    """The results of `function(record, row)` for every image, in order, computed in worker processes.

    Args:
        dataset (`datasets.Dataset`): With the column `"image"`, whose values (`"bytes"` and `"path"`) are the records.
        function (`Callable`): Picklable, as its results must be.
        num_workers, desc: As in [`scan_images`].
    """
    if num_workers is None:
        num_workers = 8 if len(dataset) >= WORTH_PROCESSES else 0
    loader = DataLoader(
        _Mapped(undecoded(dataset.select_columns(["image"])), function),
        batch_size=_BATCH,
        num_workers=min(num_workers, available_cores()),
        collate_fn=list,
        worker_init_fn=_one_thread,
    )
    with tqdm(
        total=len(dataset), desc=desc, unit=" images", disable=True if len(dataset) < WORTH_PROCESSES else None
    ) as bar:
        for results in loader:
            yield from results
            bar.update(len(results))


def signature(dataset: datasets.Dataset) -> str:
    """Hash of what the images are stored as: paths, sizes and times of change of files, and stored bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in undecoded(dataset.select_columns(["image"])).with_format("arrow").iter(batch_size=256):
        for record in batch["image"].to_pylist():
            digest.update(record_signature(record).encode())
    return digest.hexdigest()


def record_signature(record: dict[str, Any]) -> str:
    """The same of one image; changes when the image does."""
    if record["bytes"] is not None:
        return hashlib.blake2b(record["bytes"], digest_size=16).hexdigest()
    try:
        status = os.stat(record["path"])
    except (OSError, TypeError):
        return f"{record['path']}|missing"
    return f"{os.path.abspath(record['path'])}|{status.st_size}|{status.st_mtime_ns}"


class _Mapped(Dataset):
    def __init__(self, dataset: datasets.Dataset, function: Callable[[dict[str, Any], int], Any]):
        self.dataset = dataset
        self.function = function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int):
        return self.function(self.dataset[row]["image"], row)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def _error(record: dict[str, Any], row: int) -> str | None:
    try:
        StoredImage.read(record, row=row).decode(reduction=8)
    except BadImageError as error:
        return str(error)
    return None


def _facts(record: dict[str, Any], row: int) -> ImageFacts:
    name = record_name(record, row=row)
    try:
        stored = StoredImage.read(record, row=row)
        image = stored.open()
        pixels = stored.decode()
    except BadImageError as error:
        return ImageFacts(name, str(error))
    height, width = upright_size(image)
    digest = hashlib.blake2b(f"{height}x{width}|".encode(), digest_size=16)
    digest.update(pixels.permute(1, 2, 0).contiguous().numpy().data)
    return ImageFacts(
        name,
        height=height,
        width=width,
        format=image.format or "",
        mode=image.mode,
        pixels=digest.hexdigest(),
        gradient=_gradient(pixels),
    )


def _gradient(pixels: torch.Tensor) -> str:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), dtype=np.int16)
    along = np.concatenate([np.diff(grey[:8], axis=1).ravel(), np.diff(grey[:, :8], axis=0).ravel()])
    is_flat = np.abs(along).max() < 8 or not (along > 0).any()
    return "" if is_flat else np.packbits(along > 0).tobytes().hex()
