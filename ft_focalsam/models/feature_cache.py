"""Features of a frozen backbone, computed once for all epochs and for all runs, and kept on disk."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch import Tensor
from transformers import default_data_collator

from ..base.errors import first_fault, one_line
from ..base.files import check_writable
from ..data.batches import finished
from ..data.cached_features import NAME, CachedFeatures, find_fault, read_features, write_features
from ..data.scan import signature
from ..data.training_sets import TransformedImages
from .classifier import LongTailClassifier
from .encoding import encode_images, refuse_random_features, refuse_trained_backbone

logger = logging.getLogger(__name__)

COMPARED = 8  # images on which training and evaluation mode are compared
FORMAT = 1  # to be raised when the same key would stand for other features


class FeatureCache:
    """Gives the features of images from files in the cache of `datasets`, which it writes where they are missing.

    A file is named by a hash of all that its features depend on: the backbone's weights, the images, their transform
    with its random numbers, and the precision. Several processes compute it together, and several runs may use it.

    Args:
        model (`LongTailClassifier`): Whose backbone stays as it is from now on.
        batch_size, num_workers, collate, autocast: As in `encode_images`.
        in_training (`bool`): Whether the features stand for those in training mode too, which is then checked.
    """

    def __init__(
        self,
        model: LongTailClassifier,
        *,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable = default_data_collator,
        autocast: torch.dtype | None = None,
        in_training: bool = True,
    ):
        self.model = model
        self.folder = Path(datasets.config.HF_DATASETS_CACHE) / "ft_focalsam"
        self._encoding = {"batch_size": batch_size, "num_workers": num_workers, "collate": collate}
        self._encoding |= {"autocast": autocast}
        self._backbone: dict | None = None  # what tells it from others, once it is needed
        self._is_compared = not in_training

    def features(self, images: TransformedImages, *, num_views: int = 1, desc: str = "images") -> CachedFeatures:
        """The features of images, computed unless they are in the cache.

        Args:
            images (`TransformedImages`): Which, and how they become tensors.
            num_views (`int`): The views of the epochs 0 to `num_views` - 1.
            desc (`str`): What the images are, for the progress bar.

        Raises:
            ValueError: If the backbone trains, or gives other features in training than in evaluation.
            OSError: If the cache cannot be written to.
        """
        refuse_trained_backbone(self.model)
        if not self._is_compared:
            collate = self._encoding["collate"]
            few = finished(collate([images[row] for row in range(min(COMPARED, len(images)))]), collate)
            refuse_random_features(self.model, few["pixel_values"])
            self._is_compared = True
        views = []
        for view in range(num_views):
            images.set_epoch(view)
            of = "" if num_views == 1 else f", view {view + 1} of {num_views}"
            views.append(self._view(images, view, desc=f"Features of the {desc}{of}"))
        return CachedFeatures(images.dataset, views)

    def _view(self, images: TransformedImages, view: int, *, desc: str) -> Tensor:
        """The features of one view, shape (N, D)."""
        key = self._key(images, view)
        path, expected = self.folder / f"features-{key}.safetensors", {"count": len(images), "key": key}
        fault = find_fault(path, **expected)
        if fault is not None and path.exists() and PartialState().is_local_main_process:
            logger.warning("The features in '%s' cannot be used (%s) and are computed anew.", path, fault)
        if first_fault(fault) is not None:  # on some process: all of them take part
            self._compute(path, images, expected, desc=desc)
        return read_features(path)

    def _compute(self, path: Path, images: TransformedImages, expected: dict, *, desc: str) -> None:
        """Compute features on all processes, and write them on one of each machine."""
        check_writable(self.folder, option="HF_DATASETS_CACHE")
        parts: Iterator[Tensor] = (
            batch[NAME] for batch in encode_images(self.model, images, desc=desc, **self._encoding)
        )
        fault = None
        if PartialState().is_local_main_process:
            try:
                write_features(path, parts, **expected)
            except OSError as error:
                fault = one_line(error)
        for _ in parts:  # on the other processes, and where writing has failed: the work is shared
            pass
        fault = first_fault(fault)
        if fault is not None:
            raise OSError(
                f"The features of the images cannot be written to '{self.folder}' ({fault}); make room there, set "
                "HF_DATASETS_CACHE to another folder, or cache_features to false."
            )

    def _key(self, images: TransformedImages, view: int) -> str:
        """A hash of all that the features depend on, the same on all processes."""
        answer = [None]
        if PartialState().is_main_process:
            self._backbone = self._backbone or describe_backbone(self.model)
            transform = re.sub(r" at 0x[0-9a-f]+", "", f"{images.transform!r}, {self._encoding['collate']!r}")
            draws = None if images.num_views is None else [images.seed, view, images.num_views]
            description = {
                "format": FORMAT,
                **self._backbone,
                "images": signature(images.dataset),
                "transform": transform,
                "draws": draws,
                "autocast": str(self._encoding["autocast"]),
            }
            answer[0] = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
        broadcast_object_list(answer)
        return answer[0]


def describe_backbone(model: LongTailClassifier) -> dict[str, Any]:
    """What tells the features of a backbone from those of others: what is read of it, and a hash of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config = model.config
    adapter = {}
    if isinstance(model.backbone, PeftModel):  # whose scales are not among the weights
        adapter["peft"] = json.dumps(model.backbone.active_peft_config.to_dict(), sort_keys=True, default=_in_order)
    return {
        **adapter,
        "family": config.backbone_family,
        "features": config.backbone_features,
        "image_size": config.image_size,
        "dtype": config.backbone_dtype,
        "weights": digest.hexdigest(),
    }


def _in_order(value: Any) -> Any:
    return sorted(map(str, value)) if isinstance(value, (set, frozenset)) else str(value)
