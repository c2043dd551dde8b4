"""What a comparison needs of its finished runs, in one small file that outlives their folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..base.files import atomic_write
from ..base.parsing import parse_json
from .predictions import Predictions

FORMAT = "ft_focalsam run record 1"
SHARED = ("labels", "train_images")  # tensors that are of all runs


class RunRecord:
    """Runs on the same images: the predicted classes, the seconds of training, and how each was made.

    A run takes 2 bytes per test image.

    Args:
        path (`str` or `Path`): A safetensors file; read where it exists.

    Raises:
        ValueError: If it exists and is another file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._tensors: dict[str, np.ndarray] = {}
        self._ids: list[str] = []
        self._class_names: list[str] = []
        self._dataset = ""
        self._made: dict[str, dict] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="numpy") as file:
                texts = file.metadata() or {}
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            if texts.get("format") != FORMAT:
                raise ValueError(f"its format is {texts.get('format', 'not named')!r}")
            self._ids, self._class_names = parse_json(texts["ids"]), parse_json(texts["class_names"])
            self._dataset = parse_json(texts["dataset"])
            self._made = parse_json(texts["runs"])
            if set(self._made) | set(SHARED) != set(self._tensors):
                raise ValueError("its runs are not those that it has predictions of")
        except (OSError, KeyError, SafetensorError, ValueError) as error:
            raise ValueError(
                f"'{self.path}' is no record of runs ({error}); give one that compare --record wrote, or a new one."
            ) from error

    def __contains__(self, run: str) -> bool:
        return run in self._made

    def made(self, run: str) -> dict:
        """How a run was made, as `add` was told."""
        return self._made[run]

    def add(self, run: str, predictions: Predictions, train_images: Sequence[int], made: Mapping) -> None:
        """Keep a run, and write the file.

        Args:
            run (`str`): Its name, new.
            predictions (`Predictions`): Of N images.
            train_images (sequence of `int`): Training images of each class, C numbers.
            made (mapping): How it was made, of what JSON has.

        Raises:
            ValueError: If its images, classes or training images are not those of the other runs.
        """
        counts = np.asarray(train_images, dtype=np.int64)
        if self._made:
            predictions.check_same_images(self.predictions(next(iter(self._made))), source=run)
            if not np.array_equal(counts, self.train_images):
                raise ValueError(
                    f"The run '{run}' has other numbers of training images than those in '{self.path}'; give it "
                    "another --record."
                )
        shared = dict(zip(SHARED, (predictions.labels, counts), strict=True))
        predicted = predictions.outcomes().predicted.astype(np.int16)
        tensors = self._tensors | shared | {run: predicted}
        ids, class_names, runs = list(predictions.ids), list(predictions.class_names), self._made | {run: dict(made)}
        named = {"ids": ids, "class_names": class_names, "dataset": predictions.dataset, "runs": runs}
        texts = {name: json.dumps(value) for name, value in named.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, save(tensors, {"format": FORMAT, **texts}))
        self._tensors, self._made = tensors, runs
        self._ids, self._class_names, self._dataset = ids, class_names, predictions.dataset

    @property
    def train_images(self) -> np.ndarray:
        """Training images of each class, shape (C,)."""
        return self._tensors["train_images"]

    def predictions(self, run: str) -> Predictions:
        """What a run says to the images: the predicted classes, without probabilities."""
        return Predictions(
            None,
            self._tensors["labels"],
            list(self._ids),
            list(self._class_names),
            self._dataset,
            predicted=self._tensors[run].astype(np.int64),
        )
