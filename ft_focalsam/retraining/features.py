"""Features of a run's images from its frozen, tuned backbone."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from ..data import ByteCollator, ImageData, TransformedImages, eval_transform, label_array, read_preprocessing
from ..data.long_tail import class_counts
from ..models import FeatureCache, LongTailClassifier, load_image_processor
from ..models.head_start import collect_features


class FrozenFeatures:
    """What reaches the head of a classifier for the images of a run, without augmentation, each image once.

    Features are kept in the cache of `datasets`, see `FeatureCache`, so that a second method finds them there.

    Args:
        model (`LongTailClassifier`): Its backbone, and what is inserted in front of the head, in evaluation mode.
        data (`ImageData`): The images.
        batch_size (`int`): Images at a time.

    Attributes:
        counts (`np.ndarray` of shape (C,)): Training images of each class.
    """

    def __init__(self, model: LongTailClassifier, data: ImageData, *, batch_size: int = 64):
        self._model, self._data, self._batch_size = model, data, batch_size
        self.counts: np.ndarray = class_counts(label_array(data.train), data.num_classes)

    def of(self, split: str) -> tuple[Tensor, Tensor]:
        """Features of shape (N, D), float32, and labels of shape (N,), on the device of the model.

        Args:
            split (`str`): "train" or "validation".
        """
        model = self._model
        processor, size = load_image_processor(model.config.backbone), model.config.image_size
        images = TransformedImages(self._data.parts[split], eval_transform(processor, image_size=size, as_bytes=True))
        collate = ByteCollator(read_preprocessing(processor, image_size=size))
        with _frozen(model.backbone):
            cache = FeatureCache(model, batch_size=self._batch_size, collate=collate, in_training=False)
            cached = cache.features(images, desc="training images" if split == "train" else f"{split} images")
        features, labels = collect_features(model, cached.batches(8192))
        device = next(model.head.parameters()).device
        return features.to(device), labels.to(device)


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """With parameters that do not train inside the block."""
    trained = [p for p in module.parameters() if p.requires_grad]
    try:
        module.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def mean_class_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Mean over the classes that are present of the share that is right, 0 to 1."""
    right = (logits.argmax(dim=1) == labels).double()
    images = torch.bincount(labels)
    hits = torch.zeros(len(images), dtype=torch.float64, device=labels.device).index_add_(0, labels, right)
    return float((hits / images)[images > 0].mean())
