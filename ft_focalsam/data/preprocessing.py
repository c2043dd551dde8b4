"""What a backbone's own `transformers` image processor does to an image, read from its settings, as a transform."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf
from transformers import BaseImageProcessor

from ..base.errors import one_line
from .images import REDUCTIONS, StoredImage, to_rgb, upright_size

MAX_SIDE = 4096  # pixels of what a model sees
_PROCESSOR_TOLERANCE = 2.5  # grey levels of 255; two roundings of a resize may differ by this, a missed step does not

_INTERPOLATION = {
    Image.Resampling.NEAREST: InterpolationMode.NEAREST,
    Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS: InterpolationMode.LANCZOS,
    Image.Resampling.BOX: InterpolationMode.BOX,
    Image.Resampling.HAMMING: InterpolationMode.HAMMING,
}


@runtime_checkable
class _Settings(Protocol):
    """What an image processor of `transformers` has, which `BaseImageProcessor` does not declare."""

    do_resize: bool | None
    size: Mapping[str, int] | None
    resample: int
    do_rescale: bool | None
    rescale_factor: float
    do_normalize: bool | None
    image_mean: float | Sequence[float] | None
    image_std: float | Sequence[float] | None


@dataclass(frozen=True)
class Preprocessing:
    """What an image processor does to an RGB image of 0..255: resize, central crop, normalise.

    Args:
        resize (`int` or `tuple[int, int]`, *optional*): Shortest edge, or (height, width), in pixels.
        crop (`tuple[int, int]`, *optional*): (height, width) of the central crop.
        interpolation (`InterpolationMode`): Of the resize, with antialiasing.
        mean (`tuple[float, ...]`): Subtracted, one a channel, in grey levels (0..255).
        std (`tuple[float, ...]`): Divided by, one a channel, in grey levels.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int] | None
    interpolation: InterpolationMode
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def output_size(self) -> tuple[int, int]:
        """(height, width) of what the model sees.

        Raises:
            ValueError: If images of several shapes would keep them: there is no crop, and no resize to both sides.
        """
        if self.crop is not None:
            return self.crop
        if isinstance(self.resize, tuple):
            return self.resize
        raise ValueError(
            f"A preprocessing with resize={self.resize} and no crop does not give images of one fixed size; set crop, "
            "or resize to a height and a width."
        )

    def resize_and_crop(self) -> list[v2.Transform]:
        """The geometry of evaluation."""
        transforms: list[v2.Transform] = []
        if self.resize is not None:
            transforms.append(v2.Resize(self.resize, interpolation=self.interpolation, antialias=True))
        if self.crop is not None:
            transforms.append(CenterCrop(self.crop))
        return transforms

    def random_resized_crop(self, *, scale: tuple[float, float], ratio: tuple[float, float]) -> v2.Transform:
        """A random part of the image, resized to the size that the model sees.

        Args:
            scale (`tuple[float, float]`): Range of the part's area, as a fraction of the image's area.
            ratio (`tuple[float, float]`): Range of the part's width / height.
        """
        return v2.RandomResizedCrop(
            self.output_size, scale=scale, ratio=ratio, interpolation=self.interpolation, antialias=True
        )

    def compose(
        self, geometry: list[v2.Transform], *, fast_decode: bool = False, as_bytes: bool = False
    ) -> v2.Compose:
        """Image -> RGB bytes -> `geometry` -> normalised float32 tensor (3, H, W).

        Args:
            geometry (`list[v2.Transform]`): Of uint8 tensors (3, H, W).
            fast_decode (`bool`, defaults to `False`): Where `geometry` begins with a random resized crop, decode a
                JPEG at 1/2, 1/4 or 1/8 of its size, if its crop is then still as large as what the model sees.
            as_bytes (`bool`, defaults to `False`): Leave the last step out, for [`ByteCollator`].
        """
        decode: nn.Module = Decode()
        if fast_decode and geometry and isinstance(geometry[0], v2.RandomResizedCrop):
            decode, geometry = DecodeCrop(geometry[0]), geometry[1:]
        normalise = [] if as_bytes else [Normalise(self)]
        return v2.Compose([decode, *geometry, v2.Lambda(torch.Tensor.contiguous, torch.Tensor), *normalise])


class Normalise:
    """Grey levels, (..., 3, H, W) of 0..255 in any type -> normalised float32, on the device where they are.

    Mean and deviation are copied to a device once, and nothing waits for it.

    Args:
        preprocessing (`Preprocessing`): Whose `mean` and `std` are taken.
    """

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing
        constants = [torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std)]
        self._constants = {torch.device("cpu"): constants}

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """A new tensor of the same shape."""
        if pixels.device not in self._constants:
            constants = self._constants[torch.device("cpu")]
            self._constants[pixels.device] = [value.to(pixels.device) for value in constants]
        mean, std = self._constants[pixels.device]
        return pixels.to(torch.float32, copy=True).sub_(mean).div_(std)

    def __reduce__(self):
        """To other processes without what is on a device."""
        return type(self), (self.preprocessing,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mean={self.preprocessing.mean}, std={self.preprocessing.std})"


class Decode(nn.Module):
    """Stored or PIL image -> RGB bytes, uint8 of shape (3, H, W)."""

    def forward(self, image: StoredImage | Image.Image) -> torch.Tensor:
        """Decode the whole image at its full size."""
        return image.decode() if isinstance(image, StoredImage) else tvf.pil_to_tensor(to_rgb(image))


class DecodeCrop(nn.Module):
    """Stored or PIL image -> a random crop of it, resized: uint8 of shape (3, *size).

    The crop is drawn first, so that a JPEG is decoded no larger than it needs to be.

    Args:
        crop (`v2.RandomResizedCrop`): Which crop, and its size.
    """

    def __init__(self, crop: v2.RandomResizedCrop):
        super().__init__()
        self.crop = crop

    def forward(self, image: StoredImage | Image.Image) -> torch.Tensor:
        """Draw, decode, cut out and resize."""
        if not isinstance(image, StoredImage):
            return self.crop(Decode()(image))
        opened = image.open()
        height, width = upright_size(opened)
        box = self.crop.make_params([torch.empty((1, height, width), device="meta")])
        wanted = [box[side] // size for side, size in zip(("height", "width"), self.crop.size, strict=True)]
        reduction = next((by for by in REDUCTIONS if by <= min(wanted)), 1)
        pixels = image.decode(reduction=reduction, opened=opened)
        by = [full / got for full, got in zip((height, width), pixels.shape[-2:], strict=True)]  # 1 if not a JPEG
        return self.crop.transform(
            pixels,
            {
                "top": round(box["top"] / by[0]),
                "left": round(box["left"] / by[1]),
                "height": max(1, round(box["height"] / by[0])),
                "width": max(1, round(box["width"] / by[1])),
            },
        )


class CenterCrop(v2.Transform):
    """Central crop that rounds an odd border as `transformers` does: down (torchvision rounds to the even number).

    Args:
        size (`tuple[int, int]`): (height, width) in pixels; a smaller image is padded with zeros first.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def transform(self, inpt: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
        """Crop one tensor of shape (..., H, W)."""
        missing = [max(wanted - got, 0) for wanted, got in zip(self.size, inpt.shape[-2:], strict=True)]
        if any(missing):
            (high, wide) = missing
            inpt = tvf.pad(inpt, [wide // 2, high // 2, (wide + 1) // 2, (high + 1) // 2])
        top, left = ((got - wanted) // 2 for wanted, got in zip(self.size, inpt.shape[-2:], strict=True))
        return tvf.crop(inpt, top, left, *self.size)


def read_preprocessing(image_processor: BaseImageProcessor, *, image_size: int | None = None) -> Preprocessing:
    """Read the settings of an image processor, and make sure that they are all it does.

    Args:
        image_processor (`BaseImageProcessor`): Of the backbone.
        image_size (`int`, *optional*): As in [`eval_transform`].

    Raises:
        ValueError: As in [`eval_transform`].
    """
    if not isinstance(image_processor, _Settings):
        missing = [name for name in _Settings.__annotations__ if not hasattr(image_processor, name)]
        raise ValueError(
            f"{type(image_processor).__name__} keeps its settings out of sight (no {', '.join(missing)}); use an "
            "image processor of transformers that has them."
        )
    try:
        resize, crop = _read_sizes(image_processor)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{type(image_processor).__name__} has no usable size, crop_size or crop_pct ({one_line(error)}); correct "
            "its configuration."
        ) from error
    for size in (resize, crop):
        sides = [size] if isinstance(size, int) else [] if size is None else list(size)
        if not all(type(side) is int and 0 < side <= MAX_SIDE for side in sides):
            raise ValueError(
                f"{type(image_processor).__name__} resizes or crops to {size} pixels, and a side can have 1 to "
                f"{MAX_SIDE:,}; correct its size and crop_size."
            )
    try:
        mean, std = _read_mean_and_std(image_processor)
        interpolation = _INTERPOLATION[Image.Resampling(image_processor.resample)]
    except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(
            f"{type(image_processor).__name__} has no usable rescale_factor, image_mean, image_std or resample "
            f"({one_line(error)}); correct its configuration."
        ) from error
    preprocessing = Preprocessing(resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)
    _check_reproduces(preprocessing, image_processor)
    return preprocessing if image_size is None else _with_image_size(preprocessing, image_size)


def _read_mean_and_std(settings: _Settings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation, one a channel, in grey levels."""
    scale = settings.rescale_factor if settings.do_rescale else 1.0
    values = (settings.image_mean, settings.image_std) if settings.do_normalize else (0.0, 1.0)
    mean, std = (torch.as_tensor(value, dtype=torch.float32).expand(3) * (1.0 / scale) for value in values)
    if not (mean.isfinite().all() and std.isfinite().all() and (std > 0).all()):
        raise ValueError(f"a mean of {mean.tolist()} and a deviation of {std.tolist()} grey levels")
    return tuple(mean.tolist()), tuple(std.tolist())


def _read_sizes(settings: _Settings) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """(resize, crop) in the terms of [`Preprocessing`]."""
    size = dict(settings.size or {}) if settings.do_resize else {}
    crop_size = dict(getattr(settings, "crop_size", None) or {}) if getattr(settings, "do_center_crop", False) else {}
    crop_share = getattr(settings, "crop_pct", None)
    if set(crop_size) == {"height", "width"}:
        crop = (crop_size["height"], crop_size["width"])
        if not size:
            return None, crop
        if set(size) == {"height", "width"}:
            return (size["height"], size["width"]), crop
        if set(size) == {"shortest_edge"}:
            return size["shortest_edge"], crop
    elif not crop_size and set(size) == {"height", "width"}:
        return (size["height"], size["width"]), None
    elif not crop_size and set(size) == {"shortest_edge"} and crop_share:
        edge = size["shortest_edge"]  # ConvNeXT and ResNet: a crop of this size after a resize to edge / crop_pct
        return (edge, edge) if edge >= 384 else int(edge / crop_share), (edge, edge)
    raise ValueError(
        f"{type(settings).__name__} with size={size or None} and crop_size={crop_size or None} does not give "
        f"images of one fixed size, which a batch needs; set its size to a height and a width, or turn on its "
        f"do_center_crop."
    )


def _with_image_size(preprocessing: Preprocessing, image_size: int) -> Preprocessing:
    """The same preprocessing for a square of another size; a resize keeps its ratio to the crop."""
    if image_size < 1:
        raise ValueError(f"image_size={image_size} must be at least 1 pixel.")
    square = (image_size, image_size)
    if preprocessing.crop is None:
        return replace(preprocessing, resize=square)
    crop_height, crop_width = preprocessing.crop
    resize: int | tuple[int, int] = image_size
    if isinstance(preprocessing.resize, int):
        resize = round(preprocessing.resize * image_size / min(crop_height, crop_width))
    elif preprocessing.resize is not None:
        height, width = preprocessing.resize
        resize = (round(height * image_size / crop_height), round(width * image_size / crop_width))
    return replace(preprocessing, resize=resize, crop=square)


def _check_reproduces(preprocessing: Preprocessing, image_processor: BaseImageProcessor) -> None:
    """Compare with the processor on a smooth image, so that a step that its settings do not show is not lost."""
    x, y = np.meshgrid(np.linspace(0, 1, 333), np.linspace(0, 1, 300))
    image = Image.fromarray(np.rint(255 * np.stack([x, y, (x + y) / 2], axis=-1)).astype(np.uint8))
    expected = image_processor(image, return_tensors="pt")["pixel_values"][0]
    got = preprocessing.compose(preprocessing.resize_and_crop())(image)
    difference = float("inf")
    if got.shape == expected.shape:
        difference = float(((got - expected).abs() * torch.tensor(preprocessing.std)[:, None, None]).max())
    if difference > _PROCESSOR_TOLERANCE:
        raise ValueError(
            f"{type(image_processor).__name__} does more to an image than resize, crop, rescale and normalise (shape "
            f"{tuple(expected.shape)} against {tuple(got.shape)}, difference {difference:.3g} of 255 grey levels), so "
            f"its settings cannot be turned into a transform; use an image processor that does only these."
        )
