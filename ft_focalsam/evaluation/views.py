"""Test-time views: several crops of each image, whose predictions are averaged. A new kind is one function here."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf
from transformers import BaseImageProcessor

from ..base.registry import Registry
from ..data.preprocessing import CenterCrop, Preprocessing, read_preprocessing

# Views are a function (preprocessing, side of a patch in pixels) -> transforms of a uint8 tensor (3, H, W), the last
# of which gives a tuple of tensors (3, height, width).
VIEWS: Registry[Callable[[Preprocessing, int], list[Callable]]] = Registry("kind of views")
register_views = VIEWS.register


@register_views("center")
def center(preprocessing: Preprocessing, patch_size: int) -> list[Callable]:
    """One view, the processor's own."""
    return [*preprocessing.resize_and_crop(), lambda image: (image,)]


@register_views("flip")
def flip(preprocessing: Preprocessing, patch_size: int) -> list[Callable]:
    """The processor's own view and its mirror image; not for characters, which a flip would change."""
    return [*preprocessing.resize_and_crop(), lambda image: (image, tvf.horizontal_flip(image))]


@register_views("zoomed_center")
def zoomed_center(preprocessing: Preprocessing, patch_size: int) -> list[Callable]:
    """The centre of the image at 8/7 of the size, as 224 of 256 pixels: what LIFT and LIFT+ test on where they do
    not ensemble."""
    resize = _resize(preprocessing, extra=_in_proportion(preprocessing, 32))
    return [resize, CenterCrop(preprocessing.output_size), lambda image: (image,)]


@register_views("five_crop")
def five_crop(preprocessing: Preprocessing, patch_size: int) -> list[Callable]:
    """Four corners and the centre of the image at 8/7 of the size, as 224 of 256 pixels."""
    return [_resize(preprocessing, extra=_in_proportion(preprocessing, 32)), v2.FiveCrop(preprocessing.output_size)]


@register_views("ten_crop")
def ten_crop(preprocessing: Preprocessing, patch_size: int) -> list[Callable]:
    """The views of `five_crop`, of the image and of its mirror image."""
    return [_resize(preprocessing, extra=_in_proportion(preprocessing, 32)), v2.TenCrop(preprocessing.output_size)]


@register_views("expanded_crops")
def expanded_crops(preprocessing: Preprocessing, patch_size: int) -> list[Callable]:
    """Test-time ensembling of LIFT (Shi et al., 2024, https://arxiv.org/abs/2309.10019): four corners and the centre
    of the image at its size and 24 pixels more (of 224, and in proportion).

    The corners then lie off the grid of patches by half a patch of 16, so that what one view cuts in two is whole in
    another. Where the extra pixels are a multiple of the patch, which would lay the grid on itself, half a patch is
    added.
    """
    extra = _in_proportion(preprocessing, 24)
    if extra % patch_size == 0:
        extra += max(patch_size // 2, 1)
    return [_resize(preprocessing, extra=extra), v2.FiveCrop(preprocessing.output_size)]


def view_transform(
    image_processor: BaseImageProcessor, views: str = "center", *, image_size: int | None = None, patch_size: int = 16
) -> v2.Compose:
    """Views of one image, with the processor's own normalisation.

    Args:
        image_processor (`BaseImageProcessor`): Of the backbone.
        views (`str`): A name in `VIEWS`: "center", "flip", "zoomed_center", "five_crop", "ten_crop" or
            "expanded_crops".
        image_size (`int`, *optional*): Side of the square that the model sees, in pixels.
        patch_size (`int`, defaults to 16): Side of the model's patches, in pixels.

    Returns:
        `v2.Compose`: PIL image of any mode -> float32 tensor (V, 3, H, W).

    Raises:
        ValueError: If the name is unknown, or as in [`~ft_focalsam.data.eval_transform`].
    """
    make_views = VIEWS.choose(views)
    preprocessing = read_preprocessing(image_processor, image_size=image_size)
    return preprocessing.compose([*make_views(preprocessing, patch_size), torch.stack])


def _in_proportion(preprocessing: Preprocessing, of_224: int) -> int:
    """Pixels at the size that the model sees for so many at 224, at least one."""
    return max(1, round(min(preprocessing.output_size) * of_224 / 224))


def _resize(preprocessing: Preprocessing, *, extra: int) -> v2.Transform:
    """The processor's resize to the size that the model sees and so many pixels more: of the shortest edge, or, where
    the processor stretches an image to a height and a width, of both."""
    height, width = preprocessing.output_size
    stretches = isinstance(preprocessing.resize, tuple)
    size = (height + extra, width + extra) if stretches else max(height, width) + extra
    (resize,) = replace(preprocessing, resize=size, crop=None).resize_and_crop()
    return resize
