"""Image transforms built from the settings of a backbone's own `transformers` image processor.

Evaluation reproduces the processor's `pixel_values`; training changes the crop and adds random transforms, with the
same final normalisation. Every random transform draws from torch's global generator, which `TransformedImages` seeds.
Both take an image that is stored (a file that a worker process decodes) or a PIL image.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2
from transformers import BaseImageProcessor

from ..base.registry import Registry
from .preprocessing import Preprocessing, read_preprocessing

# An augmentation is a function from a Preprocessing to transforms of uint8 tensors.
AUGMENTATIONS: Registry[Callable[[Preprocessing], list[v2.Transform]]] = Registry("augmentation")
register_augmentation = AUGMENTATIONS.register


@register_augmentation("none")
def none(preprocessing: Preprocessing) -> list[v2.Transform]:
    """The evaluation transform: the same image in every epoch."""
    return preprocessing.resize_and_crop()


@register_augmentation("crop_flip")
def crop_flip(preprocessing: Preprocessing) -> list[v2.Transform]:
    """Random crop of 8 to 100 % of the area and horizontal flip: what LIFT and Focal-SAM fine-tune CLIP with.

    Shi et al., Long-Tail Learning with Foundation Model, 2024 (https://arxiv.org/abs/2309.10019). Their code resizes
    the crop bilinearly; here the interpolation is that of the image processor, which is bicubic for CLIP.
    """
    return [preprocessing.random_resized_crop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)), v2.RandomHorizontalFlip()]


@register_augmentation("crop")
def crop(preprocessing: Preprocessing) -> list[v2.Transform]:
    """Random crop of 70 to 100 % of the area and no flip, for characters and digits: a flip would change the class."""
    return [preprocessing.random_resized_crop(scale=(0.7, 1.0), ratio=(0.9, 1 / 0.9))]


@register_augmentation("randaugment")
def randaugment(preprocessing: Preprocessing) -> list[v2.Transform]:
    """`crop_flip`, then two random operations of magnitude 9 (Cubuk et al., 2020, https://arxiv.org/abs/1909.13719)."""
    return [*crop_flip(preprocessing), v2.RandAugment(num_ops=2, magnitude=9)]


@register_augmentation("imagenet")
def imagenet(preprocessing: Preprocessing) -> list[v2.Transform]:
    """`crop_flip`, then brightness, contrast and saturation by up to 40 %: what ImageNet-LT is trained with.

    Liu et al., OLTR, 2019 (https://arxiv.org/abs/1904.05160).
    """
    return [*crop_flip(preprocessing), v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)]


@register_augmentation("cifar")
def cifar(preprocessing: Preprocessing) -> list[v2.Transform]:
    """Shift by up to an eighth of the side, black behind it, and flip: 4 pixels of 32, what CIFAR is trained with."""
    height, width = preprocessing.output_size
    shift = v2.RandomCrop((height, width), padding=[width // 8, height // 8])
    return [*preprocessing.resize_and_crop(), shift, v2.RandomHorizontalFlip()]


@register_augmentation("minimalist")
def minimalist(preprocessing: Preprocessing) -> list[v2.Transform]:
    """Square random crops that grow over training up to the whole image, without flip (see [`MinimalistCrop`])."""
    return [MinimalistCrop(preprocessing.output_size, interpolation=preprocessing.interpolation, antialias=True)]


def eval_transform(
    image_processor: BaseImageProcessor, *, image_size: int | None = None, as_bytes: bool = False
) -> v2.Compose:
    """The processor's own preprocessing as a transform of one PIL image.

    Args:
        image_processor (`BaseImageProcessor`): Of the backbone, e.g. `AutoImageProcessor.from_pretrained(...)`.
        image_size (`int`, *optional*): Side of the square that the model sees, in pixels, instead of the processor's
            own; a resize before a crop keeps its ratio (256 before 224 becomes 512 before 448).
        as_bytes (`bool`, defaults to `False`): Leave out the normalisation, which [`ByteCollator`] does for a batch.

    Returns:
        `v2.Compose`: [`StoredImage`] or PIL image of any mode -> float32 tensor (3, H, W), equal to the processor's
        `pixel_values`; uint8 with `as_bytes`.

    Raises:
        ValueError: If the processor does something else than resize, crop, rescale and normalise to one fixed size.
    """
    preprocessing = read_preprocessing(image_processor, image_size=image_size)
    return preprocessing.compose(preprocessing.resize_and_crop(), as_bytes=as_bytes)


def train_transform(
    image_processor: BaseImageProcessor,
    *,
    image_size: int | None = None,
    augmentation: str = "crop_flip",
    fast_decode: bool = True,
    as_bytes: bool = False,
) -> v2.Compose:
    """Random augmentation, then the processor's own normalisation.

    Args:
        image_processor (`BaseImageProcessor`): Of the backbone.
        image_size (`int`, *optional*): Side of the square that the model sees, in pixels.
        augmentation (`str`, defaults to `"crop_flip"`): `"none"`, `"crop_flip"`, `"crop"`, `"randaugment"`,
            `"imagenet"`, `"cifar"` or `"minimalist"`, or the name of one added with [`register_augmentation`].
        fast_decode (`bool`, defaults to `True`): Decode a JPEG file at 1/2, 1/4 or 1/8 of its size where a random crop
            of it is then still as large as what the model sees.
        as_bytes: As in [`eval_transform`].

    Returns:
        `v2.Compose`: [`StoredImage`] or PIL image of any mode -> float32 tensor (3, H, W); uint8 with `as_bytes`.

    Raises:
        ValueError: If the augmentation is unknown, or as in [`eval_transform`].
    """
    augment = AUGMENTATIONS.choose(augmentation)
    preprocessing = read_preprocessing(image_processor, image_size=image_size)
    return preprocessing.compose(augment(preprocessing), fast_decode=fast_decode, as_bytes=as_bytes)


class MinimalistCrop(v2.RandomResizedCrop):
    """Random square crop of s to 100 % of the image's area, where s grows from 8 to 100 % over training.

    At progress t (0 in the first epoch, 1 in the last) s = 0.08 + 0.92 (1 - sqrt(1 - t^2)); a crop is never larger
    than the largest square in the image. This is the minimalist data augmentation of Shi et al., LIFT+, 2025
    (https://arxiv.org/abs/2504.13282), with the convex schedule of its code.
    """

    progress: float = 0.0  # set by TransformedImages

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the crop: top, left, height and width in pixels."""
        height, width = flat_inputs[0].shape[-2:]
        area, largest = height * width, min(height, width) ** 2
        low, high = self.scale
        low += (high - low) * (1 - math.sqrt(1 - self.progress**2))
        low, high = (min(area * share, largest) for share in (low, high))
        side = max(1, round(math.sqrt(low + (high - low) * float(torch.rand(1)))))
        top, left = (int(torch.randint(0, full - side + 1, (1,))) for full in (height, width))
        return {"top": top, "left": left, "height": side, "width": side}
