"""Run folders of recipes/finetune.py: what they say of themselves, their images, and the losses of their classes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..base.errors import unknown
from ..base.finding import did_you_mean
from ..base.ranges import Range, check_numbers
from ..data import (
    DataArguments,
    ImageData,
    TransformedImages,
    class_counts,
    content_digest,
    eval_transform,
    label_array,
    prepare_images,
    take_per_class,
)
from ..data.prepare import SPLITS
from ..evaluation import PREDICTIONS, EvalResult, Predictions, short_name
from ..hub import read_run
from ..hub.run_file import RUN_NAME
from ..losses import LOSSES, PerSampleLoss, loss_hyperparameters
from ..models import Classifier, LongTailClassifier, load_classifier
from ..sharpness.classifier_input import ClassifierInput
from ..sharpness.targets import Target
from ..trainer import FocalSAMTrainingArguments
from .class_loss import ClassLoss


@dataclass(frozen=True)
class ImageOptions:
    """Which images and which loss a run is measured on.

    Args:
        split (`str`): "train", "test" or "validation".
        max_images (`int`, >= 1): Images of a class; of more, some are drawn.
        batch_size (`int`, >= 1): Images at a time.
        loss (`str`, *optional*): A name in `LOSSES`; the run's own by default.
        dataset, test_dataset, image_root (`str`, *optional*): Where the images of the run are now.
        backbone (`str`, *optional*): Where its backbone is now.

    Raises:
        ValueError: If a value is out of range.
    """

    split: str = field(default="train", metadata={"help": "Images to measure on: train, test or validation."})
    max_images: Annotated[int, Range(1)] = field(
        default=64, metadata={"help": "Images of a class; of more, so many are drawn."}
    )
    batch_size: Annotated[int, Range(1)] = field(default=64, metadata={"help": "Images at a time."})
    loss: str | None = field(
        default=None, metadata={"help": "Loss, as in recipes/finetune.py; that of the training by default."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Where the data set of the runs is now, if not under the name it had."}
    )
    test_dataset: str | None = field(default=None, metadata={"help": "The same for test images of their own."})
    image_root: str | None = field(default=None, metadata={"help": "The same for the folder of a list's images."})
    backbone: str | None = field(
        default=None, metadata={"help": "Where the backbone of the runs is now, if not under the name it had."}
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.split not in SPLITS:
            raise ValueError(unknown("split", self.split, SPLITS))
        if self.loss is not None and self.loss not in LOSSES:
            raise ValueError(unknown("loss", self.loss, LOSSES))


@dataclass(frozen=True)
class SavedRun:
    """A run as its folder describes it, without its weights.

    Args:
        folder (`Path`): Of the run.
        record (`dict`): What is in its run.json.
        result (`EvalResult`): On its test images.
    """

    folder: Path
    record: dict
    result: EvalResult

    @classmethod
    def read(cls, folder: str | Path) -> "SavedRun":
        """Read run.json and the predictions of a run.

        Raises:
            FileNotFoundError: If there is no run.
            ValueError: If a file is damaged.
        """
        folder = Path(folder).expanduser()
        if not (folder / RUN_NAME).is_file():
            guess = "" if folder.is_dir() else did_you_mean(str(folder))
            raise FileNotFoundError(
                f"'{folder}' holds no run ({RUN_NAME}); give a folder that recipes/finetune.py wrote.{guess}"
            )
        record = read_run(folder)
        paths = sorted((folder / PREDICTIONS).glob("*.safetensors"))
        if not paths or not record.get("resolved") or not record["data"].get("class_counts"):
            raise FileNotFoundError(
                f"The run in '{folder}' is not complete (predictions and settings in {RUN_NAME}); train it again with "
                "recipes/finetune.py."
            )
        predictions = Predictions.load(paths[0])
        if predictions.is_multi_label:
            raise ValueError(
                f"The images of '{folder}' have several classes each, and the sharpness of a class is measured on "
                "images of that class alone; analyse a run with one class an image."
            )
        thresholds = {name: record["data"][f"{name}_shot_threshold"] for name in ("many", "few")}
        counts = np.array(record["data"]["class_counts"])
        return cls(folder, record, EvalResult(predictions, counts, **thresholds))

    @property
    def name(self) -> str:
        """What the page calls it."""
        return short_name(str(self.folder))

    @property
    def class_names(self) -> list[str]:
        """C names in index order."""
        return self.result.predictions.class_names

    def loss_settings(self, loss: str | None) -> dict[str, Any]:
        """Settings of its loss, or, with the same hyperparameters, of another one."""
        settings = self.record["resolved"]
        name = loss or settings["loss"]
        names = ["label_smoothing_factor", "drw_start", "effective_number_beta"]
        names += [key for key in loss_hyperparameters(name) if key in settings]
        return {"loss": name} | {key: settings[key] for key in names}

    def make_loss(self, model: LongTailClassifier, loss: str | None) -> PerSampleLoss:
        """Its loss, or another one, as it is at the end of training.

        Raises:
            ValueError: If the loss of an image depends on its batch.
        """
        arguments = FocalSAMTrainingArguments(
            output_dir=str(self.folder), report_to="none", **self.loss_settings(loss)
        )
        found = arguments.make_loss(self.result.class_counts, head_scale=getattr(model.head, "scale", 1.0))
        if found.samples_interact:
            raise ValueError(
                f"The loss of an image depends on its batch with {found.name}, so that a class has none of its own; "
                "set --loss balanced_softmax or cross_entropy."
            )
        return found

    def load_images(self, options: ImageOptions) -> ImageData:
        """The images that it was trained and tested on.

        Raises:
            FileNotFoundError: If they are not where they were.
            ValueError: If they are not these, or were streamed.
        """
        known = {each.name for each in dataclasses.fields(DataArguments)}
        values = {key: value for key, value in self.record["settings"].items() if key in known}
        given = {key: getattr(options, key) for key in ("dataset", "test_dataset", "image_root")}
        values |= {key: value for key, value in given.items() if value is not None}
        for key in given:
            if str(values.get(key, "")).startswith("path/to/"):  # of a folder outside of where the run was started
                raise FileNotFoundError(
                    f"{RUN_NAME} in '{self.folder}' names the {key} '{values[key]}' without its place; set --{key} to "
                    "where it is."
                )
        if values.get("streaming") and options.dataset is None:
            raise ValueError(f"The run in '{self.folder}' was trained on a stream; set --dataset to a stored copy.")
        checked = values.get("on_bad_image") != "skip"  # the training has decoded all images then
        resized = values.get("cache_resized") is not None
        values |= {"streaming": False, "cache_resized": None, "cache_features": False}
        data = prepare_images(DataArguments(**values | ({"on_bad_image": "unchecked"} if checked else {})))
        expected = None if resized else self.record["resolved"].get("images")
        counts, trained = class_counts(label_array(data.train), data.num_classes), self.result.class_counts
        is_same = data.class_names == self.class_names and trained is not None and np.array_equal(counts, trained)
        if not is_same or (expected is not None and content_digest(data.train) != expected):
            raise ValueError(
                f"The images of '{data.name}' are not those that the run in '{self.folder}' was trained on; set "
                "--dataset to the same ones."
            )
        if options.split not in data.parts:
            raise ValueError(f"The run in '{self.folder}' has no {options.split} images; set --split to another.")
        return data


def read_runs(folders: Sequence[str | Path], options: ImageOptions) -> list[SavedRun]:
    """Read runs that are to be compared.

    Raises:
        ValueError: If two have one name, or differ in their classes, training images or loss.
    """
    first, *others = runs = [SavedRun.read(folder) for folder in folders]
    for index, run in enumerate(others, start=1):
        if run.name in [other.name for other in runs[:index]]:
            raise ValueError(f"Two of the runs are called '{run.name}'; give each once, or rename a folder.")
        pair = f"The runs '{first.name}' and '{run.name}'"
        same = ("images", "class_counts")
        if run.class_names != first.class_names or any(
            run.record["resolved"].get(key) != first.record["resolved"].get(key) for key in same
        ):
            raise ValueError(f"{pair} have not the same training images; compare runs that have.")
        settings = [each.loss_settings(options.loss) for each in (first, run)]
        if settings[0] != settings[1]:
            raise ValueError(
                f"{pair} were trained with other losses ({settings[0]['loss']}, {settings[1]['loss']}, or settings of "
                "these); set --loss cross_entropy to measure all of them by one."
            )
    return runs


class RunLosses:
    """A run's model with the losses of its classes.

    Args:
        run (`SavedRun`): The run.
        data (`ImageData`): Of [`SavedRun.load_images`].
        options (`ImageOptions`): Which images, which loss.
        seed (`int`): Of the draw of images.
        device (`torch.device`): Where to run.

    Raises:
        ValueError: If the model is no `LongTailClassifier`, or as [`SavedRun.make_loss`].
    """

    def __init__(self, run: SavedRun, data: ImageData, options: ImageOptions, *, seed: int, device: torch.device):
        classifier: Classifier = load_classifier(str(run.folder), backbone=options.backbone)
        if not isinstance(classifier.model, LongTailClassifier):
            raise ValueError(
                f"The model in '{run.folder}' is a {type(classifier.model).__name__}; give a folder that "
                "recipes/finetune.py wrote."
            )
        self.model = classifier.model.eval().to(device)
        self._device, self._batch_size = device, options.batch_size
        self._class_names = run.class_names
        self._loss = run.make_loss(self.model, options.loss)
        self._input = ClassifierInput(self.model)
        images = data.parts[options.split]
        transform = eval_transform(classifier.processor, image_size=classifier.image_size)
        self._images = TransformedImages(images, transform)
        labels = self._images.targets
        self._rows = take_per_class(labels, data.num_classes, per_class=options.max_images, seed=seed)
        self._labels = labels[self._rows]

    @cached_property
    def images(self) -> np.ndarray:
        """Images of each class that are measured on, shape (C,)."""
        return class_counts(self._labels, len(self._class_names))

    def of_class(self, index: int, target: Target) -> ClassLoss:
        """The loss of a class, with its images in memory."""
        items = [self._images[int(row)] for row in self._rows[self._labels == index]]
        size = self._batch_size
        collated = [default_collate(items[first : first + size]) for first in range(0, len(items), size)]
        batches = [{name: value.to(self._device) for name, value in batch.items()} for batch in collated]
        return ClassLoss(target, self._losses_of, batches, name=f"class '{self._class_names[index]}'")

    def _losses_of(self, batch: dict[str, Tensor]) -> Tensor:
        if not self._loss.needs_features:
            return self._loss(self.model(batch["pixel_values"]).logits, batch["labels"], progress=1.0)
        with self._input.watch():
            logits = self.model(batch["pixel_values"]).logits
            features = self._input.find(logits)
            return self._loss(logits, batch["labels"], features=features, progress=1.0)
