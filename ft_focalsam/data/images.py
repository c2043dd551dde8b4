"""From the bytes of a picture file to RGB pixels: upright, 8 bits a channel, or refused by name."""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tvf

REDUCTIONS = (8, 4, 2)  # a JPEG decodes at 1/8, 1/4 and 1/2 of its size for a fraction of the work


class BadImageError(ValueError):
    """A picture that cannot be used; the message names it and says what to do."""

    def __init__(self, message: str):
        # A worker process of a DataLoader hands the whole traceback on as the message; its end is the sentence.
        super().__init__(message.rpartition("BadImageError: ")[2].strip())


@dataclass(frozen=True)
class StoredImage:
    """The bytes of one picture file, not decoded.

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
            raise BadImageError(f"The picture {name} has neither bytes nor a path; remove the row.")
        try:
            if content is None:
                content = Path(path).read_bytes() if "://" not in path else _remote_bytes(path)
        except OSError as error:
            raise _bad(name, error) from error
        return cls(content, name)

    def open(self) -> Image.Image:
        """The picture with its size and mode known and its pixels not decoded yet.

        Raises:
            BadImageError: If it is no picture, or larger than `PIL.Image.MAX_IMAGE_PIXELS` (89 million pixels).
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                return Image.open(io.BytesIO(self.content))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise BadImageError(
                f"The picture {self.name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which may be meant to "
                f"exhaust the memory; shrink or remove it, or set --on_bad_image skip."
            ) from error
        except Exception as error:  # a decoder may raise anything on a broken file
            raise _bad(self.name, error) from error

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
                return decode_jpeg(encoded, mode=ImageReadMode.RGB)  # the pixels of PIL, a quarter sooner
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            return tvf.pil_to_tensor(to_rgb(image))
        except Exception as error:
            raise _bad(self.name, error) from error


def record_name(record: Mapping[str, Any], *, row: int) -> str:
    """What error messages call a picture: its path, or, where its bytes are stored in a table, its row."""
    if record["bytes"] is None and record["path"] is not None:
        return f"'{record['path']}'"
    return f"in row {row}" + (f" ('{record['path']}')" if record["path"] else "")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 5 and above exchange width and height."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of a picture after its EXIF orientation is applied."""
    return (image.width, image.height) if orientation(image) >= 5 else (image.height, image.width)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF orientation and make it RGB, transparency on a white ground.

    Of an animation the first frame counts; 16 bits of grey are scaled to 8.

    Raises:
        ValueError: For 32-bit integers and floating-point numbers, whose range is not known.
    """
    has_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image = ImageOps.exif_transpose(image)
    if has_16_bits:
        image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its mode {image.mode} holds numbers of unknown range; save it with 8 bits a channel")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same data set whose column `"image"` gives `"bytes"` and `"path"` instead of decoded pictures."""
    return dataset.cast_column("image", datasets.Image(decode=False))


def _remote_bytes(path: str) -> bytes:
    with datasets.utils.file_utils.xopen(path, "rb") as file:
        return file.read()


def _bad(name: str, error: Exception) -> BadImageError:
    reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    reason = reason.rpartition(".cpp:")[2].partition(", ")[2] or reason  # torchvision names its own source file
    if "cannot identify image file" in reason:
        reason = "no image format that is known"
    return BadImageError(
        f"The picture {name} cannot be read ({reason}); replace or remove it, or set --on_bad_image skip."
    )
