"""Folders of runs that are averaged, and the folder of an average, which is one of a run too."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..base.files import atomic_dir
from ..data import DataArguments, ImageData, label_array, prepare_images
from ..data.long_tail import class_counts
from ..evaluation import (
    PREDICTIONS,
    EvalConfig,
    EvalDataset,
    EvalResult,
    evaluate,
    file_name,
    run_folder,
    short_name,
    write_page,
    write_results,
)
from ..hub import read_run, write_run
from ..models import Classifier, LongTailClassifier, load_image_processor
from .config import parse_config

SECTIONS = ("method", "settings", "resolved")  # of run.json: of an average, what all of its runs have in common
# Settings that decide which images are held out to choose by.
HELD_OUT = (
    *("dataset", "train_split", "test_split", "test_fraction", "validation_fraction", "dataset_config"),
    *("validation_split", "class_names", "image_root", "test_dataset", "label_separator"),
)


def data_of_runs(
    names: Sequence[str],
    *,
    further: Sequence[str] = (),
    needs_validation: bool = False,
    otherwise: str = "make a uniform soup",
) -> ImageData:
    """The images of runs, as run.json of the first one describes them.

    Args:
        names (sequence of `str`): Folders of runs or of their checkpoints.
        further (sequence of `str`): `--key value` pairs of [`DataArguments`] that take the place of what it says, as
            where the data set has moved.
        needs_validation (`bool`): Something is to be chosen by held-out images.
        otherwise (`str`): What needs no held-out images, for the error message.

    Raises:
        ValueError: If there is no run.json, or, with `needs_validation`, the runs held no images out, or not the same
            ones. What [`prepare_images`] raises.
    """
    described = [read_run(run_folder(name)) for name in names]
    for name, run in zip(names, described, strict=True):
        if not run["settings"]:
            raise ValueError(f"'{run_folder(name)}' has no run.json of ft-focalsam train; give folders of its runs.")
        held_out = (run["settings"].get(key) for key in ("validation_fraction", "validation_split"))
        if needs_validation and not any(held_out):
            raise ValueError(
                f"The run in '{run_folder(name)}' held no images out to choose by; train with --validation_fraction "
                f"0.1, or {otherwise}."
            )
        for key in HELD_OUT if needs_validation else ():
            first, other = described[0]["settings"].get(key), run["settings"].get(key)
            if first != other:
                raise ValueError(
                    f"The runs in '{run_folder(names[0])}' and '{run_folder(name)}' held out other images ({key} is "
                    f"{first!r} and {other!r}), so that one trained on what another is chosen by; give runs of "
                    "one split."
                )
    keys = {field.name for field in dataclasses.fields(DataArguments)}
    command = []
    for key, value in described[0]["settings"].items():
        if key in keys:
            command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    (args,) = parse_config((DataArguments,), [*command, *further])
    return prepare_images(args)


def options_of_run(name: str, *, batch_size: int) -> EvalConfig:
    """How to evaluate: with the thresholds of the many- and few-shot classes of a run."""
    saved = read_run(run_folder(name))["data"]
    many, few = saved.get("many_shot_threshold", 100), saved.get("few_shot_threshold", 20)
    return EvalConfig(batch_size=batch_size, many=many, few=few)


def evaluate_on(model: LongTailClassifier, data: ImageData, split: str, options: EvalConfig) -> EvalResult:
    """How good a classifier is on the images of a split of `data`: "test" or "validation"."""
    config = model.config
    names = [config.id2label[index] for index in range(config.num_labels)]
    classifier = Classifier(model, names, load_image_processor(config.backbone), config.image_size)
    test = EvalDataset(data.parts[split], data.class_names, short_name(data.name))
    counts = class_counts(label_array(data.train), data.num_classes)
    return evaluate(classifier, test, options=options, model=config.backbone, class_counts=counts)[0]


def saved_results(names: Sequence[str], like: EvalResult) -> dict[str, EvalResult]:
    """Of runs, those that saved predictions of the test images of a result, by the names of their folders."""
    file = file_name(like.predictions.dataset, ".safetensors")
    paths = {name: Path(name, PREDICTIONS, file) for name in names}
    return {short_name(str(name)): like.of_earlier(path) for name, path in paths.items() if path.is_file()}


def write_average(
    folder: str | Path,
    model: LongTailClassifier,
    *,
    names: Sequence[str],
    description: Mapping,
    data: ImageData,
    results: Mapping[str, EvalResult],
    section: str = "average",
) -> None:
    """Write what was made of runs as ft-focalsam train writes a run: model, predictions, report.

    Args:
        folder (`str` or `Path`): Made where it does not exist.
        model (`LongTailClassifier`): The average, or the run with another head.
        names (sequence of `str`): Folders of what it was made of.
        description (mapping): How, with its "kind", for the section of run.json.
        data (`ImageData`): The images.
        results (mapping): Name of a row of the report -> [`EvalResult`] on the test images; that of the model last.
        section (`str`): "average" or "retraining".
    """
    result = list(results.values())[-1]
    with atomic_dir(folder) as aside:
        model.save_pretrained(aside)
        load_image_processor(model.config.backbone).save_pretrained(aside)
        result.predictions.save(aside / PREDICTIONS / file_name(short_name(data.name), ".safetensors"))
        write_results(aside, {row: each.record() for row, each in results.items()}, results)
        title = f"{description['kind']} on {short_name(data.name)}"
        write_page(aside, results, title=title, images={short_name(data.name): data.test})
        write_run(aside, _describe(names, {section: dict(description)}))


def _describe(names: Sequence[str], description: Mapping) -> dict:
    """run.json of the first run with what all runs have in common, and a section on what was made of them."""
    first, *others = [read_run(run_folder(name)) for name in names]
    for section in SECTIONS:
        values = [each.get(section, {}) for each in others]
        own = first.get(section, {})
        first[section] = {key: own[key] for key in own if all(each.get(key) == own[key] for each in values)}
    first.pop("fingerprint", None)
    return {**first, "command": None, "changes": [], "seconds": None, **description}
