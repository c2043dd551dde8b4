"""Evaluation transforms equal the backbones' own image processors on real images; training ones obey torch's seed."""

import pickle
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BaseImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DINOv3ViTImageProcessor,
    EfficientNetImageProcessor,
    SiglipImageProcessor,
    ViTImageProcessor,
)

from ft_focalsam.data import (
    AUGMENTATIONS,
    TransformedImages,
    eval_transform,
    load_image_data,
    read_preprocessing,
    register_augmentation,
    train_transform,
)

PROCESSORS = {
    "clip": CLIPImageProcessor(),
    "vit": ViTImageProcessor(),
    "siglip": SiglipImageProcessor(size={"height": 96, "width": 96}),
    "bit_dinov2": BitImageProcessor(size={"shortest_edge": 256}, image_mean=[0.485, 0.456, 0.406]),
    "resnet": ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875),
    "square_then_crop": CLIPImageProcessor(size={"height": 120, "width": 160}, crop_size={"height": 111, "width": 97}),
    "smaller_than_crop": CLIPImageProcessor(size={"shortest_edge": 50}, crop_size={"height": 77, "width": 64}),
    "crop_only": CLIPImageProcessor(do_resize=False, crop_size={"height": 31, "width": 64}),
    "no_normalise": ViTImageProcessor(do_normalize=False),
}


@pytest.fixture(scope="module")
def real_images(shared, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    images = []
    for folder, column in (("imagenet_sample", "image"), ("cifar10", "img")):
        path = str(shared / "data" / folder / "test-00000-of-00001.parquet")
        split = datasets.Dataset.from_parquet(path, cache_dir=cache)
        images += [row[column] for row in split.select(range(24))]
    return images + [image.convert("L") for image in images[:6]]


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_the_processor(name, real_images):
    processor, transform = PROCESSORS[name], eval_transform(PROCESSORS[name])
    for image in real_images:
        expected = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        got = transform(image)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_equals_the_processor_of_a_real_backbone(shared, real_images):
    processor = BitImageProcessor.from_pretrained(shared / "models" / "dinov2_vits14")
    transform = eval_transform(processor)
    for image in real_images:
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(transform(image), expected, rtol=0, atol=1e-5)


def test_a_processor_that_resizes_floats_is_met_within_a_rounding(real_images):
    processor = DINOv3ViTImageProcessor()
    transform = eval_transform(processor)
    for image in real_images:
        expected = processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(transform(image), expected, rtol=0, atol=0.02)


def test_what_settings_cannot_say_is_refused():
    with pytest.raises(ValueError, match=r"EfficientNetImageProcessor does more .* use an image processor that"):
        eval_transform(EfficientNetImageProcessor())
    with pytest.raises(
        ValueError, match=r"CLIPImageProcessor .*'shortest_edge': 224.* one fixed size.*do_center_crop"
    ):
        eval_transform(CLIPImageProcessor(do_center_crop=False))


class BareProcessor(BaseImageProcessor):
    do_resize, size = True, None


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (BareProcessor(), r"BareProcessor keeps its settings out of sight \(no resample, do_rescale, .*image_std\)"),
        (CLIPImageProcessor(crop_size={"shortest_edge": 5}), r"crop_size=\{'shortest_edge': 5\} does not give images"),
        (ConvNextImageProcessor(size={"shortest_edge": 9}, crop_pct="x"), r"no usable size, crop_size or crop_pct"),
        (ConvNextImageProcessor(size={"shortest_edge": "x"}), r"no usable size, crop_size or crop_pct"),
    ],
    ids=["bare", "crop_size", "crop_pct", "size"],
)
def test_settings_of_another_kind_are_one_sentence(processor, message):
    with pytest.raises(ValueError, match=message):
        eval_transform(processor)


def test_the_size_of_what_keeps_several_shapes_is_refused():
    preprocessing = replace(read_preprocessing(PROCESSORS["clip"]), crop=None)
    with pytest.raises(ValueError, match=r"resize=224 and no crop does not give images of one fixed size; set crop"):
        preprocessing.output_size  # noqa: B018


@pytest.mark.parametrize(
    ("name", "resized"), [("clip", 98), ("bit_dinov2", 112), ("vit", 98), ("resnet", 112), ("crop_only", 98)]
)
def test_image_size_keeps_the_ratio_of_resize_to_crop(name, resized):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
    transform = eval_transform(PROCESSORS[name], image_size=98)
    assert transform(image).shape == (3, 98, 98)
    other = {"size": {"shortest_edge": resized}, "crop_size": {"height": 98, "width": 98}}
    if name == "vit":
        other = {"size": {"height": 98, "width": 98}}
    if name == "resnet":
        other = {"size": {"shortest_edge": 98}}
    if name == "crop_only":
        other |= {"do_resize": True}
    expected = PROCESSORS[name](image, return_tensors="pt", **other)["pixel_values"][0]
    torch.testing.assert_close(transform(image), expected, rtol=0, atol=1e-5)


def test_image_size_must_be_a_size():
    with pytest.raises(ValueError, match="image_size=0 must be at least 1"):
        eval_transform(PROCESSORS["clip"], image_size=0)


@pytest.mark.parametrize("augmentation", ["crop_flip", "crop", "randaugment"])
def test_training_is_random_and_follows_torch_seed_alone(augmentation, real_images):
    transform = train_transform(PROCESSORS["clip"], image_size=64, augmentation=augmentation)
    image = real_images[0]
    torch.manual_seed(5)
    np.random.seed(1)
    first = [transform(image) for _ in range(6)]
    torch.manual_seed(5)
    np.random.seed(2)
    again = [transform(image) for _ in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[1:])
    assert all(tensor.shape == (3, 64, 64) and tensor.dtype == torch.float32 for tensor in first)


def test_augmentation_none_is_evaluation(real_images):
    processor = PROCESSORS["clip"]
    for image in real_images[:3]:
        assert torch.equal(train_transform(processor, augmentation="none")(image), eval_transform(processor)(image))


def test_crop_flip_mirrors_and_crop_and_minimalist_do_not():
    """On a horizontal ramp a crop keeps the slope's sign, a flip turns it."""
    ramp = Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))

    def directions(augmentation):
        transform = train_transform(PROCESSORS["vit"], image_size=32, augmentation=augmentation)
        return {bool(tensor[0, 16, 31] > tensor[0, 16, 0]) for tensor in (transform(ramp) for _ in range(20))}

    torch.manual_seed(0)
    assert directions("crop") == directions("minimalist") == {True}
    assert directions("crop_flip") == {True, False}


def test_training_normalises_like_the_processor():
    grey = Image.new("RGB", (40, 40), (128, 128, 128))
    for name in ("clip", "vit", "bit_dinov2"):
        expected = PROCESSORS[name](grey, return_tensors="pt")["pixel_values"][0].mean(dim=(1, 2))
        for augmentation in ("crop_flip", "crop"):
            got = train_transform(PROCESSORS[name], augmentation=augmentation)(grey)
            torch.testing.assert_close(got.mean(dim=(1, 2)), expected, rtol=0, atol=1e-4)


def test_unknown_augmentation_names_the_known():
    with pytest.raises(ValueError, match="Unknown augmentation 'flip'; choose one of none, crop_flip, crop, rand"):
        train_transform(PROCESSORS["clip"], augmentation="flip")


def test_a_new_augmentation_is_one_function(request, real_images):
    request.addfinalizer(lambda: AUGMENTATIONS.pop("middle"))

    @register_augmentation("middle")
    def middle(preprocessing):
        return preprocessing.resize_and_crop()

    transform = train_transform(PROCESSORS["clip"], augmentation="middle")
    assert torch.equal(transform(real_images[0]), eval_transform(PROCESSORS["clip"])(real_images[0]))
    with pytest.raises(ValueError, match="'crop' is already registered"):
        register_augmentation("crop")(middle)


def test_every_mode_becomes_rgb_and_transparency_white():
    transform = eval_transform(PROCESSORS["no_normalise"])
    for mode in ("1", "L", "P", "CMYK", "RGBA", "LA"):
        assert transform(Image.new(mode, (20, 30))).shape == (3, 224, 224)
    assert transform(Image.new("RGBA", (20, 30), (0, 0, 0, 0))).min() == pytest.approx(1.0)
    palette = Image.new("P", (20, 30))
    palette.info["transparency"] = 0
    assert transform(palette).min() == pytest.approx(1.0)


def test_exif_orientation_is_applied():
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[:10] = 255
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 3  # stored upside down
    got = eval_transform(PROCESSORS["no_normalise"])(image)
    assert got[:, :100].max() == 0
    assert got[:, 124:].min() == pytest.approx(1.0)


def test_transformed_images_are_those_of_the_transform():
    data = load_image_data("digits")
    transform = eval_transform(PROCESSORS["clip"], image_size=32)
    train = pickle.loads(pickle.dumps(TransformedImages(data.train, transform)))
    assert len(train) == len(data.train)
    assert train.targets.tolist() == data.train["labels"]
    for index in (0, 5, len(train) - 1):
        assert torch.equal(train[index]["pixel_values"], transform(data.train[index]["image"]))
        assert train[index]["labels"] == data.train[index]["labels"]


def test_augmentation_depends_on_seed_epoch_and_image_alone():
    data = load_image_data("digits")
    transform = train_transform(PROCESSORS["clip"], image_size=32, augmentation="crop")
    train = TransformedImages(data.train, transform, seed=3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [train[index]["pixel_values"] for index in range(6)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(train[4]["pixel_values"], first[4])
    loader = torch.utils.data.DataLoader(train, batch_size=3, num_workers=2)
    assert torch.equal(next(iter(loader))["pixel_values"], torch.stack(first[:3]))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Value("int64")})
    images = datasets.Dataset.from_dict({"image": [Image.fromarray(pixels)] * 6, "labels": [0] * 6}, features)
    same_image = TransformedImages(images, transform, seed=3)
    variants = [same_image[index]["pixel_values"] for index in range(6)]
    same_image.set_epoch(1)
    variants.append(same_image[0]["pixel_values"])
    variants.append(TransformedImages(images, transform, seed=4)[0]["pixel_values"])
    assert len({tensor.numpy().tobytes() for tensor in variants}) == len(variants)
