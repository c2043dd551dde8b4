"""Features of images as a data set: read from files, a batch at a time."""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import datasets
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ..base.errors import one_line
from ..base.files import atomic_open
from .columns import label_array
from .multi_label import as_label_tensor

NAME = "image_features"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


class CachedFeatures(Dataset):
    """Features in the place of images, one tensor for each view of them; a `DataLoader` of this data set needs
    [`collate_ready`] and no worker process.

    Args:
        dataset (`datasets.Dataset`): With the column `"labels"`; N images.
        views (sequence of `Tensor` of shape (N, D)): Their features; epoch e takes view e mod the number of views.
    """

    items_have_targets = True

    def __init__(self, dataset: datasets.Dataset, views: Sequence[Tensor]):
        self.targets = label_array(dataset)
        self.views = views
        self._labels = as_label_tensor(self.targets)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the view; `FocalSAMTrainer` calls it before each epoch."""
        self._features = self.views[epoch % len(self.views)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: `"image_features"` of shape (B, D), and `"labels"`, int64 of shape (B,), or float32 of shape (B,
        C) for several classes per image."""
        index = torch.as_tensor(indices)
        return {NAME: self._features[index], "labels": self._labels[index]}

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One image, shapes without B."""
        return {name: value[0] for name, value in self.__getitems__([int(index)]).items()}

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All images in order, `size` at a time."""
        return (self.__getitems__(rows) for rows in torch.arange(len(self)).split(size))


def write_features(path: Path, parts: Iterable[Tensor], *, count: int, key: str) -> None:
    """Write features to a safetensors file as they come, whole or not at all.

    Args:
        path (`Path`): Of the file.
        parts (iterable of `Tensor` of shape (B, D)): In order, on any device.
        count (`int`): N, how many rows they are together.
        key (`str`): What they are features of, for `find_fault`.
    """
    written = 0
    with atomic_open(path) as file:
        for part in parts:
            if not written:
                size = count * part[0].numel() * part.element_size()
                tensor = {"dtype": _CODES[part.dtype], "shape": [count, part.shape[1]], "data_offsets": [0, size]}
                header = json.dumps({"__metadata__": {"key": key}, NAME: tensor}).encode()
                header += b" " * (-len(header) % 8)  # so that the numbers are aligned
                file.write(struct.pack("<Q", len(header)) + header)
            file.write(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
            written += len(part)
        if written != count:
            raise ValueError(f"Features of {written:,} images came for '{path}', which is to hold {count:,}.")


def find_fault(path: Path, *, count: int, key: str) -> str | None:
    """Why a file does not hold the features of `count` images with this key, as for `write_features`; None where it
    does."""
    try:
        with safe_open(path, framework="pt") as file:
            shape = file.get_slice(NAME).get_shape() if NAME in file.keys() else []  # noqa: SIM118
            if (file.metadata() or {}).get("key") != key or len(shape) != 2 or shape[0] != count:
                return "it holds something else"
    except FileNotFoundError:
        return "there is no such file"
    except (OSError, SafetensorError) as error:
        return one_line(error)
    return None


def read_features(path: Path) -> Tensor:
    """The features in a file, shape (N, D), mapped into memory: what is not used is not read."""
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(NAME)
