"""What is done to an image before the model sees it, in the terms of other libraries."""

from torchvision.transforms import InterpolationMode
from transformers import BaseImageProcessor, CLIPImageProcessor

from ..data.preprocessing import Preprocessing, read_preprocessing
from ..models import LongTailClassifier, load_image_processor

RESAMPLE = {  # PIL's numbers
    InterpolationMode.NEAREST: 0,
    InterpolationMode.LANCZOS: 1,
    InterpolationMode.BILINEAR: 2,
    InterpolationMode.BICUBIC: 3,
    InterpolationMode.BOX: 4,
    InterpolationMode.HAMMING: 5,
}


def preprocessing_of(model: LongTailClassifier, processor: BaseImageProcessor | None = None) -> Preprocessing:
    """What `ft_focalsam.data.eval_transform` does for a classifier.

    Args:
        model (`LongTailClassifier`): Whose image size is used.
        processor (`BaseImageProcessor`, *optional*): By default that of the backbone.

    Raises:
        ValueError: As `eval_transform`.
        OSError: If the backbone has no image processor.
    """
    if processor is None:
        processor = load_image_processor(model.config.backbone)
    return read_preprocessing(processor, image_size=model.config.image_size)


def mean_and_std(preprocessing: Preprocessing) -> tuple[list[float], list[float]]:
    """One a channel, of values from 0 to 1."""
    return [value / 255 for value in preprocessing.mean], [value / 255 for value in preprocessing.std]


def to_image_processor(preprocessing: Preprocessing) -> BaseImageProcessor:
    """An image processor of transformers that does the same."""
    resize, crop = preprocessing.resize, preprocessing.crop
    mean, std = mean_and_std(preprocessing)
    sizes = {}
    if resize is not None:
        sizes["size"] = {"shortest_edge": resize} if isinstance(resize, int) else _height_and_width(resize)
    if crop is not None:
        sizes["crop_size"] = _height_and_width(crop)
    return CLIPImageProcessor(
        do_resize=resize is not None,
        do_center_crop=crop is not None,
        resample=RESAMPLE[preprocessing.interpolation],
        rescale_factor=1 / 255,
        image_mean=mean,
        image_std=std,
        **sizes,
    )


def to_open_clip(preprocessing: Preprocessing) -> dict:
    """The "preprocess_cfg" of open_clip that does the same.

    Raises:
        ValueError: If it crops a part out of the middle, which open_clip does not.
    """
    resize, crop = preprocessing.resize, preprocessing.crop
    mean, std = mean_and_std(preprocessing)
    mode = "shortest" if isinstance(resize, int) else "squash"
    resized = (resize, resize) if isinstance(resize, int) else resize
    if resized != preprocessing.output_size or preprocessing.interpolation.value not in ("bicubic", "bilinear"):
        raise ValueError(
            f"The images are resized to {resize} pixels ({preprocessing.interpolation.value}) and cropped to "
            f"{crop}, and open_clip resizes (bicubic or bilinear) to just what the model sees; export to onnx."
        )
    return {
        "size": list(preprocessing.output_size),
        "mean": mean,
        "std": std,
        "interpolation": preprocessing.interpolation.value,
        "resize_mode": mode,
    }


def to_json(preprocessing: Preprocessing) -> dict:
    """The steps in order, for a program that has neither library: resize, crop, divide by 255, normalise."""
    mean, std = mean_and_std(preprocessing)
    resize = preprocessing.resize
    return {
        "resize": {"shortest_edge": resize} if isinstance(resize, int) else _height_and_width(resize),
        "interpolation": preprocessing.interpolation.value,
        "center_crop": _height_and_width(preprocessing.crop),
        "rescale_factor": 1 / 255,
        "mean": mean,
        "std": std,
        "channels": "RGB",
    }


def _height_and_width(size: tuple[int, int] | None) -> dict[str, int] | None:
    return None if size is None else {"height": size[0], "width": size[1]}
