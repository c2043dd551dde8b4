"""What a Trainer reads: images, stored or streamed, as the tensors that a model takes."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms import v2

from .columns import label_array
from .images import StoredImage, undecoded
from .multi_label import as_label_tensor, class_label_of, holds_lists, multi_hot_rows


@runtime_checkable
class _ChangesOverTraining(Protocol):
    """A transform that is told how far training is: 0 in the first epoch, 1 in the last."""

    progress: float


class TransformedImages(Dataset):
    """Images as the tensors a model takes, with random numbers that depend on nothing but seed, epoch and image.

    The same image is therefore augmented in the same way whatever was drawn before it: in a resumed run, with any
    number of worker processes and of training processes.

    Args:
        dataset (`datasets.Dataset`): Columns `"image"` and `"labels"`, as in [`ImageData`].
        transform (`Callable`): [`StoredImage`] -> tensor, e.g. of [`train_transform`].
        seed (`int`, defaults to 0): Of the random numbers.
        num_epochs (`int`, defaults to 1): Of the training, for an augmentation that changes over it.
        num_views (`int`, *optional*): Repeat the random numbers of the first `num_views` epochs: epoch e takes those
            of epoch e mod `num_views`, so that there are so many fixed views of each image.
    """

    items_have_targets = True  # no transform changes them

    def __init__(
        self,
        dataset: datasets.Dataset,
        transform: Callable[[StoredImage], torch.Tensor],
        *,
        seed: int = 0,
        num_epochs: int = 1,
        num_views: int | None = None,
    ):
        self.dataset = undecoded(dataset)
        feature = dataset.features["labels"]
        self._num_classes = class_label_of(feature).num_classes if holds_lists(feature) else None
        self.transform = transform
        self.seed = seed
        self.num_epochs = num_epochs if num_views is None else num_views
        self.num_views = num_views
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by persistent worker processes too

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; `FocalSAMTrainer` calls it before each epoch."""
        self._epoch.fill_(epoch if self.num_views is None else epoch % self.num_views)

    @property
    def targets(self) -> np.ndarray:
        """Labels as [`label_array`] gives them, of shape (N,) or (N, C), read without decoding an image."""
        return label_array(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`"pixel_values"`, float32 of shape (3, H, W), and `"labels"`, `int`, or, for several classes per image,
        float32 of shape (C,) with a 1 for each.

        Raises:
            BadImageError: If the image is broken.
        """
        item = self.dataset[int(index)]
        epoch = int(self._epoch)
        _set_progress(self.transform, epoch, self.num_epochs)
        image = StoredImage.read(item["image"], row=int(index))
        pixel_values = _seeded(self.transform, image, [self.seed, epoch, int(index)])
        labels = item["labels"]
        if self._num_classes is not None:
            labels = as_label_tensor(multi_hot_rows([labels], self._num_classes))[0]
        return {"pixel_values": pixel_values, "labels": labels}


class StreamedImages(IterableDataset):
    """The same for a data set that is read from beginning to end and has no length.

    Random numbers depend on nothing but seed, epoch and the bytes of the image. Each worker process reads its own
    share of the files. Of several training processes the first reads them, and hands each its part of every batch.

    Args:
        dataset (`datasets.IterableDataset`): Columns `"image"` (not decoded) and `"labels"`.
        transform, seed: As in [`TransformedImages`].
        shuffle_buffer (`int`, defaults to 0): Images among which the next one is drawn; 0 keeps the order.
        num_views: As in [`TransformedImages`].
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        transform: Callable[[StoredImage], torch.Tensor],
        *,
        seed: int = 0,
        shuffle_buffer: int = 0,
        num_views: int | None = None,
    ):
        self.dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer) if shuffle_buffer else dataset
        self.transform = transform
        self.seed = seed
        self.num_views = num_views
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Draw and shuffle anew."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch = int(self._epoch)
        self.dataset.set_epoch(epoch)
        view = epoch if self.num_views is None else epoch % self.num_views
        for row, item in enumerate(self.dataset):
            image = StoredImage.read(item["image"], row=row)
            content = int.from_bytes(hashlib.blake2b(image.content, digest_size=8).digest(), "little")
            pixel_values = _seeded(self.transform, image, [self.seed, view, content])
            yield {"pixel_values": pixel_values, "labels": item["labels"]}


def training_set(
    dataset: datasets.Dataset | datasets.IterableDataset,
    transform: Callable[[StoredImage], torch.Tensor],
    *,
    seed: int = 0,
    num_epochs: int = 1,
    shuffle_buffer: int = 0,
    num_views: int | None = None,
) -> TransformedImages | StreamedImages:
    """[`TransformedImages`] of a stored data set, [`StreamedImages`] of a stream."""
    if isinstance(dataset, datasets.IterableDataset):
        return StreamedImages(dataset, transform, seed=seed, shuffle_buffer=shuffle_buffer, num_views=num_views)
    return TransformedImages(dataset, transform, seed=seed, num_epochs=num_epochs, num_views=num_views)


def seed_of(entropy: list[int]) -> int:
    """A seed for torch, of 63 bits, that depends on all of the numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


def _seeded(transform: Callable, image: StoredImage, entropy: list[int]) -> torch.Tensor:
    """The transform's result with random numbers of its own, torch's global state left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed_of(entropy))
        return transform(image)


def _set_progress(transform: Callable, epoch: int, num_epochs: int) -> None:
    """Tell the transforms that have a `progress` how far training is."""
    stages = transform.transforms if isinstance(transform, v2.Compose) else [transform]
    for stage in stages:
        for module in stage.modules() if isinstance(stage, nn.Module) else ():
            if isinstance(module, _ChangesOverTraining):
                module.progress = min(1.0, epoch / max(1, num_epochs - 1))
