"""Small images that stay on the device: cut out, augmented and normalised there, a batch at a time.

For networks that take less time for a batch than a CPU takes to prepare one, as ResNets for CIFAR do on a GPU.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from tqdm.auto import tqdm

from .columns import label_array
from .images import StoredImage, undecoded
from .multi_label import as_label_tensor
from .preprocessing import Decode, Normalise, Preprocessing
from .training_sets import seed_of

# Augmentation of `transforms.py` -> by how much of a side it shifts images, and whether it flips them.
DEVICE_AUGMENTATIONS = {"none": (0, False), "cifar": (1 / 8, True)}


class DeviceImages(Dataset):
    """Images as the batches a model takes, already on its device, in the layout of memory "channels last".

    As in [`TransformedImages`], random numbers depend on nothing but seed, epoch and image: they are drawn on the CPU
    for all images of an epoch at once. A `DataLoader` of this data set needs [`collate_ready`], no worker process and
    no pinned memory.

    Args:
        dataset (`datasets.Dataset`): Columns `"image"` and `"labels"`, as in [`ImageData`].
        preprocessing (`Preprocessing`): Resize, crop and normalisation.
        augmentation (`str`, defaults to `"none"`): `"none"`, or `"cifar"`: shift by up to an eighth of the side, black
            behind it, and flip.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where the images are kept: H * W * 3 bytes each, a
            little more with the margin of a shift.
        seed (`int`, defaults to 0): Of the random numbers.
        num_views (`int`, *optional*): As in [`TransformedImages`].

    Raises:
        ValueError: If the augmentation is another one.
        BadImageError: If an image is broken.
    """

    items_have_targets = True  # no transform changes them

    def __init__(
        self,
        dataset: datasets.Dataset,
        preprocessing: Preprocessing,
        *,
        augmentation: str = "none",
        device: torch.device | str = "cpu",
        seed: int = 0,
        num_views: int | None = None,
    ):
        if augmentation not in DEVICE_AUGMENTATIONS:
            raise ValueError(
                f"The augmentation {augmentation!r} is not one of those on the device, "
                f"{' and '.join(DEVICE_AUGMENTATIONS)}; set one of these, or on_device to false."
            )
        share, self._flips = DEVICE_AUGMENTATIONS[augmentation]
        self.size = preprocessing.output_size
        self._margin = [int(side * share) for side in self.size]
        self.targets = label_array(dataset)
        self.device = torch.device(device)
        self.seed = seed
        self.num_views = num_views
        self._labels = as_label_tensor(self.targets).to(self.device)
        self._normalise = Normalise(preprocessing)
        self._images = self._load(dataset, preprocessing)  # (N, H + margins, W + margins, 3), uint8
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew; `FocalSAMTrainer` calls it before each epoch."""
        view = epoch if self.num_views is None else epoch % self.num_views
        generator = torch.Generator().manual_seed(seed_of([self.seed, view]))
        count = len(self)
        tops, lefts = (torch.randint(0, 2 * most + 1, (count,), generator=generator) for most in self._margin)
        flips = torch.rand(count, generator=generator) < (0.5 if self._flips else 0.0)
        self._drawn = [each.to(self.device) for each in (tops, lefts, flips)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """A batch: `"pixel_values"`, float32 of shape (B, 3, H, W), and `"labels"`, int64 of shape (B,)."""
        index = torch.as_tensor(indices, device=self.device)
        tops, lefts, flips = (drawn[index, None] for drawn in self._drawn)
        across, down = (torch.arange(side, device=self.device) for side in reversed(self.size))
        rows = tops + down
        columns = lefts + torch.where(flips, len(across) - 1 - across, across)
        pixels = self._images[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        return {"pixel_values": self._normalise(pixels.permute(0, 3, 1, 2)), "labels": self._labels[index]}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image, shapes without B."""
        return {name: value[0] for name, value in self.__getitems__([int(index)]).items()}

    def _load(self, dataset: datasets.Dataset, preprocessing: Preprocessing) -> Tensor:
        geometry = v2.Compose([Decode(), *preprocessing.resize_and_crop()])
        (height, width), (above, beside) = self.size, self._margin
        images = torch.zeros(len(dataset), height + 2 * above, width + 2 * beside, 3, dtype=torch.uint8)
        inside = images[:, above : above + height, beside : beside + width]
        for row, item in enumerate(tqdm(undecoded(dataset), desc="Decoding", leave=False, disable=None)):
            inside[row] = geometry(StoredImage.read(item["image"], row=row)).permute(1, 2, 0)
        return images.to(self.device)


def collate_ready(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The data collator of [`DeviceImages`], whose batches are ready."""
    return batch
