"""What a model says to each image of a test set: computed, saved, loaded, restricted to some classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import default_data_collator

from ..base.files import give_ordinary_permissions
from ..base.parsing import parse_json
from ..data import TransformedImages
from .sample_results import SampleResults, whole_numbers

AVERAGES = ("logits", "probabilities")
FORMAT = "ft_focalsam predictions 1"
PREDICTIONS = "predictions"  # folder of a run or an evaluation that holds them, one file a test set


@dataclass(frozen=True)
class Predictions:
    """What a model says to each of N images.

    Args:
        log_probabilities (`np.ndarray`, *optional*): float32 of shape (N, C); they stand in for logits wherever these
            are asked. None where only the predicted classes were kept. Of several classes an image they are the
            logits, which no sigmoid has rounded to 0 or 1.
        labels (`np.ndarray`): int64 of shape (N,), values 0..C-1; of several classes an image, 0 and 1 in uint8, of
            shape (N, C).
        ids (`list[str]`): What tells the images apart, see [`image_ids`].
        class_names (`list[str]`): The C class names in index order.
        dataset (`str`): Name of the test set.
        model (`str`): Name of the model.
        predicted (`np.ndarray`, *optional*): int64 of shape (N,), the predicted classes, -1 for none, in place of
            log_probabilities.
    """

    log_probabilities: np.ndarray | None
    labels: np.ndarray
    ids: list[str]
    class_names: list[str]
    dataset: str = ""
    model: str = ""
    predicted: np.ndarray | None = None

    @classmethod
    def of_logits(
        cls,
        logits: np.ndarray,
        labels: np.ndarray,
        *,
        ids: Sequence[str],
        class_names: Sequence[str],
        dataset: str = "",
        model: str = "",
    ) -> "Predictions":
        """From logits of shape (N, C), or, for one class an image, log-probabilities.

        Raises:
            ValueError: If the numbers of images or of classes differ, or a label is no whole number.
        """
        labels, logits = whole_numbers(np.asarray(labels), "test labels"), np.asarray(logits)
        if labels.ndim == 2:
            labels, found = labels.astype(np.uint8), logits.astype(np.float32)
        else:
            found = _log_probabilities(logits)
        return cls(found, labels, list(ids), list(class_names), dataset, model)

    def __post_init__(self) -> None:
        num_labels = len(self.labels)
        shape: tuple[int, ...] = () if self.predicted is None else self.predicted.shape
        expected: tuple[int, ...] = (num_labels,)
        if self.log_probabilities is not None:
            shape, expected = self.log_probabilities.shape, (num_labels, len(self.class_names))
        fits = shape == expected and self.labels.shape in ((num_labels,), shape)
        if not fits or len(self.ids) != num_labels:
            raise ValueError(
                f"Logits of shape {shape} do not fit {num_labels} labels, {len(self.ids)} ids and "
                f"{len(self.class_names)} class names."
            )

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.labels.ndim == 2

    @property
    def logits(self) -> np.ndarray:
        """`log_probabilities`, where they are needed.

        Raises:
            ValueError: If only the predicted classes were kept.
        """
        if self.log_probabilities is None:
            raise ValueError(
                f"Of the predictions on '{self.dataset}' only the predicted classes were kept; evaluate the model "
                "again to have its logits."
            )
        return self.log_probabilities

    def outcomes(self, groups: dict[str, np.ndarray] | None = None) -> SampleResults:
        """Compared with the labels, one an image, by frequency groups where these are given."""
        only_classes = self.predicted if self.log_probabilities is None else None
        said = self.logits if only_classes is None else only_classes
        return SampleResults.of(said, self.labels, num_classes=len(self.class_names), groups=groups)

    def select(self, rows: np.ndarray) -> "Predictions":
        """Some of the images, by their rows."""
        return replace(
            self,
            log_probabilities=None if self.log_probabilities is None else self.log_probabilities[rows],
            labels=self.labels[rows],
            ids=[self.ids[row] for row in rows],
            predicted=None if self.predicted is None else self.predicted[rows],
        )

    def check_same_images(self, other: "Predictions", *, source: str) -> None:
        """Raise a `ValueError` where another run has other images, labels or classes, which cannot be paired."""
        for what in ("class_names", "ids", "labels"):
            if not np.array_equal(getattr(self, what), getattr(other, what)):
                raise ValueError(
                    f"The {what.replace('_', ' ')} in '{source}' are not those of the other run on '{other.dataset}', "
                    "so the two cannot be paired; evaluate both on the same test set with the same options."
                )

    def with_logits(self, logits: np.ndarray) -> "Predictions":
        """The same images, of one class each, with other logits, of shape (N, C)."""
        return replace(self, log_probabilities=_log_probabilities(logits))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; names and ids are in its header, as JSON.

        Raises:
            ValueError: If only the predicted classes were kept.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        texts = {"format": FORMAT, "dataset": self.dataset, "model": self.model}
        texts |= {name: json.dumps(getattr(self, name)) for name in ("ids", "class_names")}
        arrays = {"log_probabilities": np.ascontiguousarray(self.logits), "labels": self.labels}
        save_file(arrays, path, metadata=texts)
        give_ordinary_permissions(path.parent)

    @classmethod
    def load(cls, path: str | Path) -> "Predictions":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is another file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f"There are no predictions at '{path}'; give what recipes/finetune.py or ft-focalsam evaluate wrote."
            )
        try:
            with safe_open(path, framework="numpy") as file:
                texts = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        except SafetensorError as error:
            raise ValueError(
                f"'{path}' is no safetensors file ({error}); give what recipes/finetune.py or ft-focalsam evaluate "
                "wrote."
            ) from error
        if texts.get("format") != FORMAT:
            raise ValueError(
                f"'{path}' holds {texts.get('format', 'no format name')!r}, not {FORMAT!r}; give predictions that "
                "this version of ft-focalsam evaluate wrote."
            )
        try:
            ids, class_names = (parse_json(texts[name]) for name in ("ids", "class_names"))
            found = arrays["log_probabilities"], arrays["labels"], ids, class_names, texts["dataset"], texts["model"]
            return cls(*found)
        except (KeyError, ValueError) as error:
            raise ValueError(f"'{path}' is damaged ({error}); evaluate the model again.") from error


def _log_probabilities(logits: np.ndarray) -> np.ndarray:
    """float32; NaN somewhere in the row of an image whose logits hold NaN or infinity."""
    with np.errstate(invalid="ignore"):
        return log_softmax(logits.astype(np.float64), axis=-1).astype(np.float32)


def image_ids(dataset: datasets.Dataset) -> list[str]:
    """What tells the images of a data set apart: the last three parts of an image's path (corruption or split,
    class, file) where it has one, else its row.

    Args:
        dataset (`datasets.Dataset`): With the column "image"; no image is decoded.
    """
    paths = []
    for part in dataset.select_columns(["image"]).with_format("arrow").iter(1000):
        paths += pc.struct_field(part["image"], "path").to_pylist()
    return [str(row) if path is None else "/".join(Path(path).parts[-3:]) for row, path in enumerate(paths)]


@torch.no_grad()
def predict(
    model: nn.Module,
    images: TransformedImages,
    *,
    batch_size: int = 64,
    average: str = "logits",
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """Logits of images, averaged over their views.

    With several processes each looks at a part of the images, and all get the logits of all; what the last batch is
    filled up with does not count twice.

    Args:
        model (`nn.Module`): pixel_values of shape (B, 3, H, W) -> an output with `logits` of shape (B, C).
        images (`TransformedImages`): With the transform of [`view_transform`], or with an [`eval_transform`].
        batch_size (`int`, defaults to 64): Images, with all their views, at a time and process.
        average (`str`, defaults to "logits"): Over the views; "logits", as LIFT does, or "probabilities".
        num_workers (`int`, defaults to 0): Processes that read images.
        accelerator (`Accelerator`, *optional*): Says on which device, in which precision and in how many processes.

    Returns:
        `np.ndarray`: float32 of shape (N, C), in the order of the images; with "probabilities", their logarithms.

    Raises:
        ValueError: If `average` is unknown.
    """
    if average not in AVERAGES:
        raise ValueError(f"Unknown average {average!r}; choose one of {', '.join(AVERAGES)}.")
    accelerator = accelerator or Accelerator()
    model = accelerator.prepare_model(model.eval(), evaluation_mode=True)
    loader = DataLoader(images, batch_size, collate_fn=default_data_collator, num_workers=num_workers)
    parts = []
    shown = accelerator.is_main_process
    for batch in tqdm(
        accelerator.prepare_data_loader(loader), desc="Predicting", leave=False, disable=None if shown else True
    ):
        views = batch["pixel_values"]
        views = views[:, None] if views.ndim == 4 else views
        logits = model(pixel_values=views.flatten(0, 1)).logits.float()
        parts.append(accelerator.gather_for_metrics(_averaged(logits.unflatten(0, views.shape[:2]), average)).cpu())
    return torch.cat(parts).numpy()


def _averaged(logits: Tensor, average: str) -> Tensor:
    """(B, V, C) to (B, C)."""
    if average == "logits" or logits.shape[1] == 1:
        return logits.mean(dim=1)
    return F.log_softmax(logits, dim=-1).logsumexp(dim=1) - np.log(logits.shape[1])
