"""Images on the device against the transform of one image at a time."""

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as tvf

from ft_focalsam.data import (
    DeviceImages,
    collate_ready,
    eval_transform,
    load_image_data,
    read_preprocessing,
)
from ft_focalsam.data.images import StoredImage, undecoded
from ft_focalsam.models import load_image_processor

PROCESSOR = load_image_processor("scratch:resnet32")
PREPROCESSING = read_preprocessing(PROCESSOR)


@pytest.fixture(scope="module")
def digits():
    return load_image_data("digits").test.select(range(40))


def one_by_one(dataset, drawn):
    """Each image resized, padded with black, cut out, flipped and normalised by torchvision's own functions."""
    plain = eval_transform(PROCESSOR)
    mean, std = (torch.tensor(values)[:, None, None] for values in (PREPROCESSING.mean, PREPROCESSING.std))
    images = []
    for row, item in enumerate(undecoded(dataset)):
        bytes_of_image = (plain(StoredImage.read(item["image"], row=row)) * std + mean).round()
        top, left, flip = (int(each[row]) for each in drawn)
        moved = tvf.crop(tvf.pad(bytes_of_image, [4, 4]), top, left, 32, 32)
        images.append(((tvf.horizontal_flip(moved) if flip else moved) - mean) / std)
    return torch.stack(images)


def test_a_batch_is_what_the_evaluation_transform_gives(digits):
    images, plain = DeviceImages(digits, PREPROCESSING), eval_transform(PROCESSOR)
    batch = images.__getitems__([7, 0, 39])
    for image, row in zip(batch["pixel_values"], (7, 0, 39), strict=True):
        assert torch.equal(image, plain(StoredImage.read(undecoded(digits)[row]["image"], row=row)))
    assert batch["labels"].tolist() == [digits[row]["labels"] for row in (7, 0, 39)]
    assert batch["pixel_values"].is_contiguous(memory_format=torch.channels_last)


def test_an_augmented_batch_is_what_torchvision_gives_one_by_one(digits):
    images = DeviceImages(digits, PREPROCESSING, augmentation="cifar", seed=3)
    images.set_epoch(2)
    expected = one_by_one(digits, images._drawn)
    torch.testing.assert_close(images.__getitems__(range(40))["pixel_values"], expected, rtol=0, atol=1e-5)


def test_shifts_and_flips_are_uniform(digits):
    images = DeviceImages(digits, PREPROCESSING, augmentation="cifar")
    draws = []
    for epoch in range(200):
        images.set_epoch(epoch)
        draws.append(torch.stack(images._drawn))
    tops, lefts, flips = torch.cat(draws, dim=1)
    for shifts in (tops, lefts):
        counts = torch.bincount(shifts, minlength=9)
        assert len(counts) == 9
        assert ((counts - 8000 / 9).abs() < 5 * (8000 / 9) ** 0.5).all()
    assert abs(flips.float().mean() - 0.5) < 0.03
    assert abs(torch.corrcoef(torch.stack([tops, lefts, flips]).float())[0, 1:]).max() < 0.05


def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(digits):
    images, again = (DeviceImages(digits, PREPROCESSING, augmentation="cifar", seed=1) for _ in range(2))
    images.set_epoch(4)
    again.set_epoch(1)
    assert not torch.equal(images[5]["pixel_values"], again[5]["pixel_values"])
    again.set_epoch(4)
    for order in ([5, 3], [3, 9, 5]):
        batch = again.__getitems__(order)
        assert torch.equal(batch["pixel_values"][order.index(5)], images[5]["pixel_values"])
    other = DeviceImages(digits, PREPROCESSING, augmentation="cifar", seed=2)
    other.set_epoch(4)
    assert not all(torch.equal(a, b) for a, b in zip(other._drawn, images._drawn, strict=True))


def test_a_data_loader_hands_batches_out_as_they_are(digits):
    images = DeviceImages(digits, PREPROCESSING)
    batches = list(DataLoader(images, batch_size=16, collate_fn=collate_ready))
    assert [len(batch["labels"]) for batch in batches] == [16, 16, 8]
    assert torch.equal(torch.cat([b["labels"] for b in batches]), torch.as_tensor(images.targets))


def test_an_augmentation_that_is_not_there(digits):
    with pytest.raises(ValueError, match="'randaugment' is not one of those on the device, none and cifar; set one"):
        DeviceImages(digits, PREPROCESSING, augmentation="randaugment")
