"""From a classifier and a test set to a result: match the classes, predict, correct the logits, score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import datasets
import numpy as np
from accelerate import Accelerator

from ..data import TransformedImages, stratified_split
from ..models import Classifier
from ..models.text import readable_names
from .class_matching import match_classes
from .classifiers import restrict
from .eval_datasets import EvalDataset
from .eval_result import EvalResult
from .multi_label_result import Result, make_result
from .post_hoc import adjust_logits, fit_temperature
from .predictions import AVERAGES, Predictions, image_ids, predict
from .views import VIEWS, view_transform

SPLIT_SEED = 0  # which images the temperature is fitted on is the same in every run


@dataclass(frozen=True)
class EvalConfig:
    """How a classifier is evaluated.

    Args:
        views (`str`): A name in `VIEWS`: center, flip, zoomed_center, five_crop, ten_crop or expanded_crops.
        average (`str`): Over the views: logits or probabilities.
        tau (`float`, *optional*): Of the logit adjustment after training, see [`adjust_logits`]; none by default.
        temperature_fraction (`float`, *optional*): Share of each class's test images, inside (0, 1), that is held
            out to fit a temperature on, see [`fit_temperature`]; these are not scored.
        all_classes (`bool`): Keep the logits of classes that a test set has not.
        batch_size (`int`): Images at a time and process.
        num_workers (`int`): Processes that read images.
        many, few (`int`): As in [`~ft_focalsam.data.frequency_groups`].

    Raises:
        ValueError: If a value is unknown or out of range.
    """

    views: str = "center"
    average: str = "logits"
    tau: float | None = None
    temperature_fraction: float | None = None
    all_classes: bool = False
    batch_size: int = 64
    num_workers: int = 0
    many: int = 100
    few: int = 20

    def __post_init__(self) -> None:
        VIEWS.choose(self.views)
        if self.average not in AVERAGES:
            raise ValueError(f"Unknown average {self.average!r}; choose one of {', '.join(AVERAGES)}.")
        if self.temperature_fraction is not None and not 0 < self.temperature_fraction < 1:
            raise ValueError(f"temperature_fraction is {self.temperature_fraction}; set it between 0 and 1.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; set it to 1 or more.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers is {self.num_workers}; set it to 0 or more.")
        if not 0 <= self.few <= self.many:
            raise ValueError(
                f"few_shot_threshold is {self.few} and many_shot_threshold {self.many}; set 0 <= few <= many."
            )

    def result(self, predictions: Predictions, class_counts: np.ndarray | None, notes: Sequence[str] = ()) -> Result:
        """A result on predictions with the thresholds of these options."""
        return make_result(predictions, class_counts, many=self.many, few=self.few, notes=tuple(notes))


def check_classes(
    classifier: Classifier, tests: Sequence[EvalDataset], class_index: Mapping[int, Sequence[str]] | None = None
) -> None:
    """Raise a `ValueError`, before anything is predicted, where a classifier does not know a class of a test set."""
    for test in tests:
        if classifier.is_zero_shot:
            readable_names(test.class_names, class_index)
        else:
            match_classes(test.class_names, classifier.class_names, class_index=class_index, source=f"'{test.name}'")


def check_kind(classifier: Classifier, test: EvalDataset, options: EvalConfig) -> None:
    """Raise a `ValueError` where the model or an option is for one class an image and the test set has several, or the
    other way round."""
    if test.is_multi_label != classifier.is_multi_label and not classifier.is_zero_shot:
        kinds = ("several classes", "one class")
        given, wanted = kinds if test.is_multi_label else kinds[::-1]
        raise ValueError(
            f"The images of '{test.name}' have {given} each, and the model is for {wanted} an image; evaluate it on a "
            "test set of its kind."
        )
    alternatives = {
        "logit_adjustment_tau": options.tau is not None,
        "temperature_fraction": options.temperature_fraction is not None,
        "average": options.average != "logits",
    }
    for name, is_set in alternatives.items():
        if is_set and test.is_multi_label:
            raise ValueError(
                f"{name} is for one class an image, and those of '{test.name}' have several; leave {name} out."
            )


def evaluate(
    classifier: Classifier,
    test: EvalDataset,
    *,
    options: EvalConfig,
    model: str,
    class_counts: np.ndarray | None = None,
    class_index: Mapping[int, Sequence[str]] | None = None,
    accelerator: Accelerator | None = None,
) -> tuple[Result, datasets.Dataset]:
    """Evaluate a classifier on a test set.

    Args:
        classifier (`Classifier`): Of [`~ft_focalsam.models.load_classifier`].
        test (`EvalDataset`): Of [`load_eval_dataset`].
        options (`EvalConfig`): How.
        model (`str`): What to call the classifier.
        class_counts (`np.ndarray`, *optional*): Training images of each of its classes, shape (C,).
        class_index (mapping, *optional*): What else its classes are called, of [`read_class_index`].
        accelerator (`Accelerator`, *optional*): As in [`predict`].

    Returns:
        The result, among the classes that were kept, and the images that were scored.

    Raises:
        ValueError: If a class of the test set is none of the model's, a logit adjustment has no training counts, or
            the model or an option is for one class an image and the test set has several, or the other way round.
    """
    check_kind(classifier, test, options)
    if options.tau is not None and class_counts is None:
        raise ValueError(
            f"The logit adjustment (tau {options.tau:g}) needs the training images of each class, and '{model}' came "
            "without; give --train_counts."
        )
    names, source = classifier.class_names, f"'{test.name}'"
    classes = match_classes(test.class_names, names, class_index=class_index, source=source)
    transform = view_transform(
        classifier.processor, options.views, image_size=classifier.image_size, patch_size=classifier.patch_size
    )
    images = TransformedImages(test.images, transform)
    logits = predict(
        classifier.model,
        images,
        batch_size=options.batch_size,
        average=options.average,
        num_workers=options.num_workers,
        accelerator=accelerator,
    )
    logits, labels, kept = restrict(logits, images.targets, classes=classes, keep_all=options.all_classes)
    counts = None if class_counts is None else class_counts[kept]
    notes = [test.note] if test.note else []
    if len(kept) < len(names):
        notes.append(f"{test.name}: logits restricted to its {len(kept):,} of the model's {len(names):,} classes.")
    if options.views != "center":
        notes.append(f"Averaged over views: {options.views}, {options.average}.")
    if options.tau is not None and counts is not None:
        logits = adjust_logits(logits, counts, tau=options.tau)
        notes.append(f"Logits adjusted by the class frequencies after training, tau {options.tau:g}.")
    kept_names = [names[index] for index in kept]
    predictions = Predictions.of_logits(
        logits, labels, ids=image_ids(test.images), class_names=kept_names, dataset=test.name, model=model
    )
    scored = test.images
    if options.temperature_fraction is not None:
        predictions, rows, note = scale_temperature(predictions, options.temperature_fraction)
        scored, notes = scored.select(rows), [*notes, note]
    result = options.result(predictions, counts, notes)
    if options.temperature_fraction is not None and isinstance(result, EvalResult):
        result = replace(result, is_temperature_scaled=True)
    return result, scored


def scale_temperature(predictions: Predictions, fraction: float) -> tuple[Predictions, np.ndarray, str]:
    """Fit a temperature on a part of the images of each class, and apply it to the others.

    Args:
        predictions (`Predictions`): Of a test set.
        fraction (`float`): Share that is held out, inside (0, 1); of a class with one image, none.

    Returns:
        The others with the temperature applied, their rows, and a note for the reader.
    """
    rows, held_out = stratified_split(
        predictions.labels, len(predictions.class_names), test_fraction=fraction, seed=SPLIT_SEED
    )
    fitted_on = predictions.select(held_out)
    temperature = fit_temperature(fitted_on.logits, fitted_on.labels)
    scored = predictions.select(rows)
    note = (
        f"{predictions.dataset}: temperature {temperature:.3f}, fitted on {len(held_out):,} images that were held "
        f"out and are not scored; the other {len(rows):,} are."
    )
    return scored.with_logits(scored.logits / temperature), rows, note
