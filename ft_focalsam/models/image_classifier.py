"""Images in, class names and probabilities out: `ImageClassifier`."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data import BadImageError, StoredImage, eval_transform
from .loading import Classifier, load_classifier

Predictions = list[dict[str, Any]]  # [{"label": "cat", "score": 0.97}, ...], the most probable first
THRESHOLD = 0.5  # of the probability that an image has a class, where it may have several
ImageInput = str | Path | Image.Image


class ImageClassifier:
    """A saved classifier that takes images, like transformers' `pipeline("image-classification")`.

    ```python
    classify = ImageClassifier.from_pretrained("user/name")
    classify("cat.jpg")  # [{"label": "cat", "score": 0.97}, {"label": "lynx", "score": 0.02}, ...]
    ```

    Images are read as in training: upright, as RGB, with the preprocessing that was saved. A score is the probability
    of a class by the softmax of the logits; of a classifier for several classes an image (`problem_type`
    "multi_label_classification"), by the sigmoid of its logit.

    Attributes:
        is_multi_label (`bool`): Whether an image may have several classes.

    Args:
        classifier (`Classifier`): Of [`~ft_focalsam.models.load_classifier`].
        device (`str` or `torch.device`, *optional*): Where to run; by default an accelerator where there is one.
    """

    def __init__(self, classifier: Classifier, *, device: str | torch.device | None = None):
        if not isinstance(classifier, Classifier):
            raise TypeError(
                f"classifier is a {type(classifier).__name__}; load one by name with ImageClassifier.from_pretrained."
            )
        self.device = choose_device(device)
        self.model = classifier.model.eval().to(self.device)
        self.class_names = classifier.class_names
        self.is_multi_label = classifier.is_multi_label
        self.transform = eval_transform(classifier.processor, image_size=classifier.image_size)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        backbone: str | None = None,
        class_names: Sequence[str] = (),
        device: str | torch.device | None = None,
    ) -> "ImageClassifier":
        """Load a classifier, from safetensors alone.

        Args:
            name (`str` or path): A folder or Hub repository with a `LongTailClassifier` or an image classifier of
                transformers, or a backbone with a text tower, which tells `class_names` apart.
            revision (`str`, *optional*): Branch, tag or commit of the repository.
            backbone (`str`, *optional*): Where the backbone is now, if not under the name it had in training.
            class_names (sequence of `str`): For a backbone alone.
            device: As in [`ImageClassifier`].

        Raises:
            FileNotFoundError: If there is no such folder or repository, or its weights are no safetensors.
            ValueError: If it is no classifier, or there is no such device.
        """
        device = choose_device(device)
        classifier = load_classifier(str(name), class_names, revision=revision, backbone=backbone)
        return cls(classifier, device=device)

    def __call__(
        self, images: ImageInput | Sequence[ImageInput], *, top_k: int = 5, batch_size: int = 32
    ) -> Predictions | list[Predictions]:
        """The most probable classes of one image or of several.

        Args:
            images (path, PIL image, or sequence of these): What to classify.
            top_k (`int`, >= 1): Number of classes to name; no more than there are.
            batch_size (`int`, >= 1): Images at a time.

        Returns:
            `list[dict]` with "label" and "score" (a probability) for one image, a list of these for several.

        Raises:
            BadImageError: If an image cannot be read; names it.
        """
        is_one = isinstance(images, (str, Path, Image.Image))
        results = list(self.stream([images] if is_one else images, top_k=top_k, batch_size=batch_size))
        for result in results:
            if isinstance(result, BadImageError):
                raise result
        return results[0] if is_one else results

    def stream(
        self, images: Iterable[ImageInput], *, top_k: int = 5, batch_size: int = 32, num_workers: int = 0
    ) -> Iterator[Predictions | BadImageError]:
        """The same one by one, in order; what cannot be read gives its error and stops nothing.

        Of an iterator no more is held in memory than a few batches.

        Args:
            images (iterable of paths or PIL images): What to classify.
            top_k, batch_size: As in [`ImageClassifier.__call__`].
            num_workers (`int`): Processes that read images.

        Raises:
            ValueError: If `top_k` or `batch_size` is below 1, or `num_workers` below 0.
        """
        least = {"top_k": (top_k, 1), "batch_size": (batch_size, 1), "num_workers": (num_workers, 0)}
        for name, (value, lowest) in least.items():
            if value < lowest:
                raise ValueError(f"{name} is {value}; set it to {lowest} or more.")
        loader = DataLoader(
            _Images(self.transform),
            batch_sampler=_Batches(images, batch_size),  # (row, image) pairs are what the data set is asked for
            num_workers=num_workers,
            collate_fn=list,
        )
        for batch in loader:
            predictions = iter(self._predict([item for item in batch if isinstance(item, Tensor)], top_k))
            for item in batch:
                yield next(predictions) if isinstance(item, Tensor) else BadImageError(item)

    @torch.inference_mode()
    def _predict(self, pixel_values: list[Tensor], top_k: int) -> list[Predictions]:
        if not pixel_values:
            return []
        logits = self.model(torch.stack(pixel_values).to(self.device)).logits
        scores = logits.float().sigmoid() if self.is_multi_label else logits.float().softmax(dim=1)
        scores, classes = scores.topk(min(top_k, logits.shape[1]), dim=1)
        return [
            [{"label": self.class_names[index], "score": score} for index, score in zip(*row, strict=True)]
            for row in zip(classes.tolist(), scores.tolist(), strict=True)
        ]


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device of that name; without one, an accelerator where there is one.

    Raises:
        ValueError: If the name is none, or this machine has no such device.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return here or torch.device("cpu")
    known = "cpu" if here is None else f"cpu or {here.type}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device is '{name}', which PyTorch does not know; set it to {known}.") from error
    if device.type != "cpu" and (here is None or device.type != here.type):
        raise ValueError(f"device is '{name}', and PyTorch finds no such device here; set it to {known}.")
    if device.type != "cpu" and (device.index or 0) >= torch.accelerator.device_count():
        count = torch.accelerator.device_count()
        raise ValueError(f"device is '{name}', and PyTorch finds {count} here; number them from 0 to {count - 1}.")
    return device


class _Batches:
    """(row, image) pairs in lists of a length, made as they are asked for."""

    def __init__(self, images: Iterable[ImageInput], size: int):
        self.images = images
        self.size = size

    def __iter__(self) -> Iterator[list[tuple[int, ImageInput]]]:
        rows = enumerate(self.images)
        while batch := list(itertools.islice(rows, self.size)):
            wrong = [image for _, image in batch if not isinstance(image, (str, Path, Image.Image))]
            if wrong:
                raise TypeError(
                    f"An image is a {type(wrong[0]).__name__}; give paths or PIL images (Image.fromarray)."
                )
            yield batch


class _Images(Dataset):
    """What the model sees of each image, or why it sees nothing."""

    def __init__(self, transform):
        self.transform = transform

    def __getitem__(self, item: tuple[int, ImageInput]) -> Tensor | str:
        row, image = item
        try:
            if isinstance(image, Image.Image):
                return self.transform(image)
            return self.transform(StoredImage.read({"bytes": None, "path": str(image)}, row=row))
        except BadImageError as error:
            return str(error)
        except (ValueError, OSError) as error:  # of a PIL image, which is decoded only here
            return f"The image in row {row} cannot be read ({str(error).rstrip('.')}); replace or remove it."
