"""Stored and streamed images as tensors: the transform's own, seeded by image and epoch, decoded no larger than
needed."""

import io
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from transformers import CLIPImageProcessor

from ft_focalsam.data import (
    BadImageError,
    StoredImage,
    StreamedImages,
    TransformedImages,
    eval_transform,
    load_image_data,
    train_transform,
)

CLIP = CLIPImageProcessor()
FEATURES = datasets.Features({"image": datasets.Image(), "labels": datasets.Value("int64")})


def dataset_of(contents) -> datasets.Dataset:
    columns = {"image": [{"bytes": c, "path": None} for c in contents], "labels": list(range(len(contents)))}
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def enlarged(content: bytes, factor: int) -> bytes:
    """A photograph as a camera would give it, `factor` times as large."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=95
    )
    return buffer.getvalue()


def test_evaluation_is_exact_on_stored_images(photographs):
    contents = [*photographs[:4], enlarged(photographs[0], 4)]
    images = TransformedImages(dataset_of(contents), eval_transform(CLIP))
    for index, content in enumerate(contents):
        expected = CLIP(Image.open(io.BytesIO(content)).convert("RGB"), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(images[index]["pixel_values"], expected, rtol=0, atol=1e-5)
        assert images[index]["labels"] == index


@pytest.mark.parametrize(
    "augmentation", ["none", "crop_flip", "crop", "randaugment", "imagenet", "cifar", "minimalist"]
)
def test_fast_decoding_changes_nothing_where_a_image_is_small(augmentation, photographs):
    """No photograph of the sample is reduced for 224 pixels where its crop is below 448."""
    small = [c for c in photographs[:30] if min(Image.open(io.BytesIO(c)).size) < 448][:6]
    dataset = dataset_of(small)
    fast, full = (
        TransformedImages(dataset, train_transform(CLIP, augmentation=augmentation, fast_decode=fast))
        for fast in (True, False)
    )
    for index in range(len(dataset)):
        assert torch.equal(fast[index]["pixel_values"], full[index]["pixel_values"])


@pytest.mark.parametrize("orientation", [1, 6], ids=["upright", "on_its_side"])
@pytest.mark.parametrize(
    ("box", "reduction"),
    [
        ({"top": 64, "left": 128, "height": 900, "width": 1016}, 4),
        ({"top": 8, "left": 800, "height": 224, "width": 1200}, 1),
        ({"top": 256, "left": 16, "height": 480, "width": 456}, 2),
    ],
    ids=["large", "flat", "small"],
)
def test_fast_decoding_shows_the_same_crop_of_a_large_image(orientation, box, reduction, photographs, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    enlarged_image = Image.open(io.BytesIO(enlarged(photographs[0], 4)))
    enlarged_image.save(buffer, "JPEG", quality=95, exif=exif)
    stored, crop = StoredImage(buffer.getvalue(), "x"), train_transform(CLIP).transforms[0]
    decoded = []
    decode = StoredImage.decode
    monkeypatch.setattr(StoredImage, "decode", lambda self, **k: decoded.append(k["reduction"]) or decode(self, **k))
    monkeypatch.setattr(crop.crop, "make_params", lambda flat_inputs: dict(box))
    full = crop.crop.transform(stored.decode(reduction=1), dict(box)).float()
    difference = (crop(stored).float() - full).abs()
    assert decoded == [1, reduction]
    shifted = crop.crop.transform(stored.decode(reduction=1), box | {"top": box["top"] + 4}).float()
    assert difference.mean() < min(1.5, (shifted - full).abs().mean() / 2)  # of 255 grey levels


def test_a_random_crop_of_a_large_image_stays_inside_it(photographs):
    images = TransformedImages(dataset_of([enlarged(photographs[1], 3)]), train_transform(CLIP))
    for epoch in range(20):
        images.set_epoch(epoch)
        assert images[0]["pixel_values"].shape == (3, 224, 224)


def test_crop_flip_draws_boxes_as_the_released_code_of_lift_does():
    """Its training transform is torchvision's random resized crop and flip with their defaults."""
    crop = train_transform(CLIP, augmentation="crop_flip").transforms[0].crop
    theirs = transforms.RandomResizedCrop(224)
    for seed in range(20):
        torch.manual_seed(seed)
        box = crop.make_params([torch.empty((1, 300, 500), device="meta")])
        torch.manual_seed(seed)
        assert tuple(box.values()) == theirs.get_params(torch.empty(3, 300, 500), theirs.scale, theirs.ratio)


def naive_box(height, width, progress, area_draw):
    """The minimalist crop's side, in Python's own numbers."""
    s = 0.08 + (1 - 0.08) * (1 - (1 - progress**2) ** 0.5)
    square = min(height, width) ** 2
    low, high = min(s * height * width, square), min(1.0 * height * width, square)
    return round((low + (high - low) * area_draw) ** 0.5)


@pytest.mark.parametrize("progress", [0.0, 0.5, 0.9, 1.0])
def test_minimalist_crops_are_square_and_grow(progress):
    crop = train_transform(CLIP, augmentation="minimalist").transforms[0].crop
    crop.progress = progress
    for seed in range(50):
        torch.manual_seed(seed)
        draw = float(torch.rand(1))
        torch.manual_seed(seed)
        box = crop.make_params([torch.empty((1, 300, 500), device="meta")])
        assert box["height"] == box["width"] == naive_box(300, 500, progress, draw)
        assert 0 <= box["top"] <= 300 - box["height"] and 0 <= box["left"] <= 500 - box["width"]
    assert progress < 1 or box["height"] == 300


def test_progress_follows_the_epoch_also_in_worker_processes(photographs):
    images = TransformedImages(
        dataset_of([photographs[0]] * 2), train_transform(CLIP, augmentation="minimalist"), num_epochs=5
    )
    crop = images.transform.transforms[0].crop
    loader = DataLoader(images, batch_size=2, num_workers=1, persistent_workers=True)
    for epoch, progress in ((0, 0.0), (2, 0.5), (4, 1.0), (7, 1.0)):
        images.set_epoch(epoch)
        from_worker = next(iter(loader))["pixel_values"]
        here = torch.stack([images[0]["pixel_values"], images[1]["pixel_values"]])
        assert crop.progress == progress
        assert torch.equal(from_worker, here)


def test_cifar_augmentation_shifts_by_an_eighth_and_flips():
    """Pixel (y, x) holds its own position, so that each result tells its shift."""
    y, x = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    image = Image.fromarray(np.stack([y + 1, x + 1, 0 * x], axis=-1).astype(np.uint8))
    processor = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_normalize=False, do_rescale=False
    )
    transform = train_transform(processor, augmentation="cifar")
    shifts, flips = set(), set()
    for seed in range(200):
        torch.manual_seed(seed)
        got = transform(image).numpy()
        flipped = got[1, 16, 8] > got[1, 16, 24]
        got = got[:, :, ::-1] if flipped else got
        dy, dx = int(got[0, 16, 16]) - 17, int(got[1, 16, 16]) - 17
        expected = np.zeros((32, 32, 3))
        inside = (y + dy >= 0) & (y + dy < 32) & (x + dx >= 0) & (x + dx < 32)
        expected[inside] = np.stack([y + dy + 1, x + dx + 1, 0 * x], axis=-1)[inside]
        assert np.array_equal(got.transpose(1, 2, 0), expected)
        shifts.add((dy, dx))
        flips.add(bool(flipped))
    assert flips == {True, False} and len(shifts) > 50
    assert {max(abs(v) for v in axis) for axis in zip(*shifts, strict=True)} == {4}


def test_imagenet_augmentation_changes_colours_of_its_crop():
    grey = Image.new("RGB", (300, 300), (128, 64, 32))
    transform = train_transform(CLIP, augmentation="imagenet")
    colours = {tuple(transform(grey)[:, 5, 5].tolist()) for _ in range(10)}
    assert len(colours) > 5


def test_a_broken_image_is_named_also_from_a_worker_process(photographs):
    images = TransformedImages(dataset_of([photographs[0], photographs[1][:900]]), eval_transform(CLIP))
    for num_workers in (0, 1):
        with pytest.raises(BadImageError, match=r"^The image in row 1 cannot be read \(.*--on_bad_image skip\.$"):
            list(DataLoader(images, batch_size=2, num_workers=num_workers))


def test_a_stream_gives_the_same_images_and_draws_anew_each_epoch(photographs):
    dataset = dataset_of(photographs[:8])
    stream = dataset.cast_column("image", datasets.Image(decode=False)).to_iterable_dataset(num_shards=4)
    plain = StreamedImages(stream, eval_transform(CLIP))
    stored = TransformedImages(dataset, eval_transform(CLIP))
    for index, item in enumerate(plain):
        assert item["labels"] == index and torch.equal(item["pixel_values"], stored[index]["pixel_values"])
    augmented = StreamedImages(stream, train_transform(CLIP, image_size=64), seed=3, shuffle_buffer=4)
    epochs = []
    for epoch in (0, 1, 0):
        augmented.set_epoch(epoch)
        epochs.append({item["labels"]: item["pixel_values"] for item in augmented})
        assert sorted(epochs[-1]) == list(range(8))
    assert list(epochs[0]) != list(epochs[1]) or list(epochs[0]) != list(range(8))
    assert all(torch.equal(epochs[0][label], epochs[2][label]) for label in range(8))
    assert not any(torch.equal(epochs[0][label], epochs[1][label]) for label in range(8))
    augmented.set_epoch(0)
    shared = list(DataLoader(augmented, batch_size=2, num_workers=2))
    labels = torch.cat([batch["labels"] for batch in shared])
    assert sorted(labels.tolist()) == list(range(8))  # each worker process reads its own files
    for label, values in zip(labels.tolist(), torch.cat([b["pixel_values"] for b in shared]), strict=True):
        assert torch.equal(values, epochs[0][label])


def test_transformed_images_survive_pickling_with_their_transform():
    data = load_image_data("digits")
    images = TransformedImages(data.train, train_transform(CLIP, augmentation="minimalist"), seed=2, num_epochs=3)
    images.set_epoch(1)
    copy = pickle.loads(pickle.dumps(images))
    assert torch.equal(copy[3]["pixel_values"], images[3]["pixel_values"])
