"""From the bytes of an image file to RGB pixels: upright, 8 bits a channel, or refused by name."""

import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms.v2 import functional as tvf

from ..base.errors import printable
from .paths import read_file

try:
    from torchcodec.decoders import decode_jpeg  # from 0.16
except (ImportError, OSError, RuntimeError):  # not there, too old, or not made for this torch
    from torchvision.io import decode_jpeg  # deprecated from 0.29

# What PIL may open, with the most pixels: decoding these takes below a second and below 0.6 GB.
FORMATS = {
    "JPEG": 2**26,
    **dict.fromkeys(("PNG", "BMP", "TIFF", "PPM", "GIF"), 2**25),
    **dict.fromkeys(("WEBP", "AVIF", "JPEG2000"), 2**24),
}
MAX_BYTES = 2**28  # of a file
MAX_RATIO = 100  # longer to shorter side: a resize by the shorter one makes the longer one as many times longer
MAX_JPEG_SCANS = 50  # each goes over the whole image; encoders write about 10
JPEG_PIXELS_PER_BYTE = 512  # a block of 64 pixels takes at least one bit
REDUCTIONS = (8, 4, 2)  # a JPEG decodes at 1/8, 1/4 and 1/2 of its size for a fraction of the work


class BadImageError(ValueError):
    """An image that cannot be used; the message names it and says what to do."""

    def __init__(self, message: str):
        # A worker process of a DataLoader hands the whole traceback on as the message; its end is the sentence.
        super().__init__(message.rpartition("BadImageError: ")[2].strip())


@dataclass(frozen=True)
class StoredImage:
    """The bytes of one image file, not decoded.

    Args:
        content (`bytes`): The file.
        name (`str`): What error messages call it: its path, or its row.
    """

    content: bytes
    name: str

    @classmethod
    def read(cls, record: Mapping[str, Any], *, row: int) -> "StoredImage":
        """Read a value of an `Image(decode=False)` column.

        Args:
            record (mapping): `"bytes"` and `"path"`, one of them may be None.
            row (`int`): Where it stands, for error messages.

        Raises:
            BadImageError: If the file cannot be read.
        """
        content, path = record["bytes"], record["path"]
        name = record_name(record, row=row)
        if content is None and path is None:
            raise BadImageError(f"The image {name} has neither bytes nor a path; remove the row.")
        try:
            if content is None:
                content = read_file(path, most=MAX_BYTES) if "://" not in path else _remote_bytes(path)
        except OSError as error:
            raise _bad(name, error) from error
        return cls(content, name)

    def open(self) -> Image.Image:
        """The image with its size and mode known and its pixels not decoded yet.

        Raises:
            BadImageError: If it is no image of one of `FORMATS`, or one made to exhaust the memory or the time.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = Image.open(io.BytesIO(self.content), formats=tuple(FORMATS))
        except Image.DecompressionBombError as error:
            most = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where that is None, nothing is a bomb
            raise self._too_much(f"has more than {most:,} pixels") from error
        except Exception as error:  # a decoder may raise anything on a broken file
            raise _bad(self.name, error) from error
        self._check_header(image)
        return image

    def _check_header(self, image: Image.Image) -> None:
        (shorter, longer), pixels = sorted(image.size), image.width * image.height
        # PIL has names of its own for some JPEGs.
        kind = "JPEG" if isinstance(image, JpegImageFile) else str(image.format)
        if pixels > FORMATS[kind]:
            raise self._too_much(f"has {pixels:,} pixels, more than the {FORMATS[kind]:,} that are read of a {kind}")
        if longer > MAX_RATIO * shorter:
            raise self._too_much(
                f"has {longer:,} x {shorter:,} pixels, more than {MAX_RATIO} times as many along one side"
            )
        if kind == "JPEG":
            if self.content.count(b"\xff\xda") > MAX_JPEG_SCANS:
                raise self._too_much(f"has more than {MAX_JPEG_SCANS} scans")
            if pixels > JPEG_PIXELS_PER_BYTE * len(self.content):
                raise self._too_much(
                    f"claims {image.width:,} x {image.height:,} pixels, too many for its {len(self.content):,} bytes"
                )

    def _too_much(self, what: str) -> BadImageError:
        return BadImageError(
            f"The image {self.name} {what}, which may be meant to exhaust the memory; shrink or remove it, or set "
            "--on_bad_image skip."
        )

    def decode(self, *, reduction: int = 1, opened: Image.Image | None = None) -> torch.Tensor:
        """The RGB pixels.

        Args:
            reduction (`int`, defaults to 1): 2, 4 or 8 decode a JPEG at that fraction of its size (rounded up).
            opened (`Image.Image`, *optional*): What [`StoredImage.open`] gave, which this uses up.

        Returns:
            `torch.Tensor`: uint8 of shape (3, H, W).

        Raises:
            BadImageError: If the file is broken, or holds pixels that have no one way to become RGB.
        """
        image = self.open() if opened is None else opened
        try:
            if reduction == 1 and image.format == "JPEG" and image.mode in ("RGB", "L") and orientation(image) == 1:
                encoded = torch.frombuffer(bytearray(self.content), dtype=torch.uint8)
                pixels = decode_jpeg(encoded, mode="RGB")  # the pixels of PIL, a quarter sooner
                if pixels.shape[1:] != (image.height, image.width):
                    raise ValueError(f"its header says {image.size}, and its pixels are {tuple(pixels.shape[:0:-1])}")
                return pixels
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            return tvf.pil_to_tensor(to_rgb(image))
        except Exception as error:
            raise _bad(self.name, error) from error


def record_name(record: Mapping[str, Any], *, row: int) -> str:
    """What error messages call an image: its path, or, where its bytes are stored in a table, its row."""
    path = printable(record["path"] or "")
    if record["bytes"] is None and path:
        return f"'{path}'"
    return f"in row {row}" + (f" ('{path}')" if path else "")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 5 and above exchange width and height."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of a file whose pixels cannot be read either
        return 1
    return value if value in range(1, 9) else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an image after its EXIF orientation is applied."""
    return (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF orientation and make it RGB, transparency on a white ground.

    Of an animation the first frame counts; 16 bits of grey are scaled to 8.

    Raises:
        ValueError: For 32-bit integers and floating-point numbers, whose range is not known.
    """
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image.load()
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if has_16_bits:
        image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} holds numbers of unknown range; save it with 8 bits a channel")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same data set whose column `"image"` gives `"bytes"` and `"path"` instead of decoded images."""
    return dataset.cast_column("image", datasets.Image(decode=False))


def paths_without_bytes(dataset: datasets.Dataset) -> Iterator[tuple[int, str]]:
    """Row and path of the images that a data set names and does not hold."""
    row = 0
    for part in undecoded(dataset.select_columns(["image"])).with_format("arrow").iter(1000):
        images = part["image"].combine_chunks()
        images = images if isinstance(images, pa.Array) else images.chunk(0)
        names_alone = pc.and_(pc.is_null(images.field("bytes")), pc.is_valid(images.field("path")))
        for index in np.flatnonzero(names_alone.to_numpy(zero_copy_only=False)):
            yield row + int(index), images.field("path")[int(index)].as_py()
        row += len(images)


def _remote_bytes(path: str) -> bytes:
    with datasets.utils.file_utils.xopen(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OSError(f"it has more than {MAX_BYTES:,} bytes")
    return content


def _bad(name: str, error: Exception) -> BadImageError:
    reason = printable(str(error).strip().splitlines()[0].rstrip(".")) if str(error).strip() else type(error).__name__
    reason = reason.rpartition(".cpp:")[2].partition(", ")[2] or reason  # the decoder names its own source file
    if "cannot identify image file" in reason:
        reason = "no image format that is known"
    return BadImageError(
        f"The image {name} cannot be read ({reason}); replace or remove it, or set --on_bad_image skip."
    )
