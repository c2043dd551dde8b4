"""Every kind of image file that PIL can make comes out as the expected pixels, or is refused by name."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ft_focalsam.data import BadImageError, StoredImage, images
from ft_focalsam.data.images import upright_size

X, Y = np.meshgrid(np.arange(48), np.arange(32))
COLOURS = np.stack([5 * X, 7 * Y, 255 - 2 * X - 3 * Y], axis=-1).clip(0, 255).astype(np.uint8)  # 32 high, 48 wide
GREY = (3 * X + 2 * Y).astype(np.uint8)


def stored(image: Image.Image, format: str, **options) -> StoredImage:
    """The image as a file of that format."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return StoredImage(buffer.getvalue(), "'a b/ü.x'")


def pixels(image: StoredImage, **options) -> np.ndarray:
    decoded = image.decode(**options)
    assert decoded.dtype == torch.uint8 and decoded.shape[0] == 3
    return decoded.permute(1, 2, 0).numpy()


def grey_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=-1)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_colours_and_grey_without_loss(format):
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(pixels(stored(Image.fromarray(COLOURS), format, **options)), COLOURS)
    if format != "WEBP":
        assert np.array_equal(pixels(stored(Image.fromarray(GREY), format)), grey_rgb(GREY))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}], ids=str)
@pytest.mark.parametrize("values", [COLOURS, GREY], ids=["colours", "grey"])
def test_a_jpeg_has_the_pixels_that_pil_decodes(values, options):
    image = stored(Image.fromarray(values), "JPEG", **options)
    assert np.array_equal(pixels(image), np.asarray(Image.open(io.BytesIO(image.content)).convert("RGB")))


def test_real_jpegs_have_the_pixels_that_pil_decodes(photographs):
    for photograph in photographs:
        expected = np.asarray(Image.open(io.BytesIO(photograph)).convert("RGB"))
        assert np.array_equal(pixels(StoredImage(photograph, "x")), expected)


def test_torchcodec_decodes_where_it_is_installed():
    try:
        from torchcodec.decoders import decode_jpeg
    except ImportError:
        from torchvision.io import decode_jpeg
    assert images.decode_jpeg is decode_jpeg


def test_palette_and_black_and_white():
    palette = Image.fromarray(COLOURS).quantize(64, dither=Image.Dither.NONE)
    for format in ("PNG", "GIF"):
        assert np.array_equal(pixels(stored(palette, format)), np.asarray(palette.convert("RGB")))
    black_white = Image.fromarray(np.where(X > 20, 255, 0).astype(np.uint8)).convert("1")
    assert np.array_equal(pixels(stored(black_white, "PNG")), grey_rgb(np.where(X > 20, 255, 0)))


def test_cmyk_is_turned_into_light():
    """Ink that covers nothing is white; PIL's own conversion is the complement of ink plus black."""
    ink = np.stack([COLOURS[..., 0], COLOURS[..., 1], COLOURS[..., 2], np.full_like(GREY, 40)], axis=-1)
    expected = (255 - ink[..., :3].astype(float)) * (255 - 40) / 255
    image = Image.fromarray(ink, mode="CMYK")
    assert np.abs(pixels(stored(image, "TIFF")) - expected).max() <= 1
    assert np.abs(pixels(stored(image, "JPEG", quality=100, subsampling=0)) - expected).max() <= 6
    assert (
        np.abs(pixels(stored(image, "JPEG", quality=95), reduction=2).mean(axis=(0, 1)) - expected.mean((0, 1))).max()
        < 2
    )


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_are_scaled_to_eight(format):
    values = (X * 1300 + Y * 100).astype(np.uint16)
    expected = np.rint(values.astype(float) * 255 / 65535).astype(np.uint8)
    assert expected.max() > 200 and expected.min() == 0
    assert np.array_equal(pixels(stored(Image.fromarray(values), format)), grey_rgb(expected))


def test_transparency_lies_on_white():
    alpha = np.where(X < 24, 0, 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([COLOURS, alpha]))
    expected = np.where(alpha[..., None] == 0, 255, COLOURS)
    assert np.array_equal(pixels(stored(rgba, "PNG")), expected)
    grey = Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(alpha)))
    assert np.array_equal(pixels(stored(grey, "PNG")), np.where(alpha[..., None] == 0, 255, grey_rgb(GREY)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("reduction", [1, 2])
def test_exif_orientation(orientation, reduction):
    """The stored pixels, turned as the tag says; the file is saved in colours that JPEG keeps."""
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = stored(Image.fromarray(COLOURS), "JPEG", quality=100, subsampling=0, exif=exif)
    upright = turned(COLOURS)
    assert upright_size(image.open()) == upright.shape[:2]
    height, width = (side // reduction for side in upright.shape[:2])
    expected = upright.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3))
    assert np.abs(pixels(image, reduction=reduction) - expected).max() <= 10


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_is_the_mean_of_its_blocks(photographs, reduction):
    for photograph in photographs[:6]:
        image = StoredImage(photograph, "x")
        full = pixels(image).astype(float)
        reduced = pixels(image, reduction=reduction)
        assert reduced.shape == (*(-(-side // reduction) for side in full.shape[:2]), 3)
        height, width = (side // reduction for side in full.shape[:2])
        cut = full[: height * reduction, : width * reduction]
        expected = cut.reshape(height, reduction, width, reduction, 3).mean(axis=(1, 3))
        assert np.abs(reduced[:height, :width] - expected).mean() < 3


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.fromarray(grey_rgb(np.full_like(GREY, value))) for value in (10, 200, 90)]
    for format in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        image = stored(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert image.open().n_frames == 3
        assert (pixels(image) == 10).all()


@pytest.mark.parametrize("kind", [np.int32, np.float32], ids=["integers", "floats"])
def test_numbers_of_unknown_range_are_refused_by_name(kind):
    with pytest.raises(
        BadImageError, match=r"image 'a b/ü.x' cannot be read \(its mode [IF] holds .*8 bits a channel"
    ):
        stored(Image.fromarray(X.astype(kind)), "TIFF").decode()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("reduction", [1, 8])
def test_a_file_that_is_cut_off_is_refused_by_name(format, reduction):
    content = stored(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), format).content
    with pytest.raises(BadImageError, match=r"image 'x' cannot be read \(.+\); replace or remove it, or set --on_bad"):
        StoredImage(content[: len(content) // 2], "'x'").decode(reduction=reduction)


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n" + b"\0" * 60])
def test_what_is_no_image_is_refused_by_name(content):
    with pytest.raises(BadImageError, match=r"image 'x' cannot be read .*replace or remove it") as error:
        StoredImage(content, "'x'").decode()
    assert "\n" not in str(error.value)


def test_reading_records(tmp_path):
    path = tmp_path / "ein Bild ü.png"
    Image.fromarray(COLOURS).save(path)
    from_file = StoredImage.read({"bytes": None, "path": str(path)}, row=3)
    assert np.array_equal(pixels(from_file), COLOURS)
    from_bytes = StoredImage.read({"bytes": path.read_bytes(), "path": "a.png"}, row=3)
    assert from_bytes.content == from_file.content and from_bytes.name == "in row 3 ('a.png')"
    with pytest.raises(BadImageError, match=r"image '.*gone.png' cannot be read .*No such file"):
        StoredImage.read({"bytes": None, "path": str(tmp_path / "gone.png")}, row=3)
    with pytest.raises(BadImageError, match="row 3 has neither bytes nor a path"):
        StoredImage.read({"bytes": None, "path": None}, row=3)


def test_from_a_worker_process_comes_the_sentence_alone():
    loader = torch.utils.data.DataLoader([StoredImage(b"no", "'x'")], collate_fn=_decode, num_workers=1)
    with pytest.raises(BadImageError) as error:
        list(loader)
    assert str(error.value).startswith("The image 'x' cannot be read") and "\n" not in str(error.value)


def _decode(images):
    return [image.decode() for image in images]
