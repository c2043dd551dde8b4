"""Fine-tune a vision foundation model on long-tailed images.

    ft-focalsam train path/to/images
    ft-focalsam train quickstart --rho 0.1
    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune.py recipes/configs/quickstart.yaml

The YAML file holds the defaults of the run; every key can be overridden on the command line (`--rho 0.1`); `--help`
lists them. Writes to `output_dir`: the model, report.html, report.md, metrics.json, per_class.csv,
accuracy_by_frequency.png, run.json, config.yaml (runs it again), train.log, predictions/ and checkpoints. A run that
was killed goes on with `--resume_from_checkpoint true`; at SIGTERM it saves a checkpoint and exits with 143. A folder
that holds a run is overwritten with `--overwrite true` only. `--validation_fraction` puts images aside to choose by
while training; the table is of the test set. `--push_to_hub true --hub_model_id user/name` publishes all of it but
predictions and checkpoints, with a card.
"""

import errno
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import HfArgumentParser, set_seed
from transformers.trainer_utils import IntervalStrategy

from ..base.errors import one_line
from ..base.files import atomic_dir, check_writable
from ..data import ImageData, StreamedData, describe_groups
from ..evaluation import (
    PREDICTIONS,
    Predictions,
    Result,
    file_name,
    format_table,
    image_ids,
    make_result,
    short_name,
    title_name,
    write_page,
    write_results,
)
from ..hub import describe_run, write_run
from ..models import choose_head_start
from ..models.backbones import find_family
from ..trainer import FocalSAMTrainer
from ..trainer.checkpointing import check_checkpoint, checkpoints
from ..trainer.multi_label import refuse_other_kind
from ..trainer.run_config import CONFIG_NAME, write_config
from ..trainer.run_lock import one_writer
from ..trainer.run_log import run_log, tell
from ..tuning import describe_methods, describe_parameters
from .arguments import TYPES, ModelArguments
from .automatic import settings_of_folder
from .building import build_model, load_data, make_trainer
from .checks import refuse_overwriting, refuse_what_cannot_be_meant
from .config import config_parser, parse_config
from .main import run_command

READS_CONFIG = True
USAGE = "ft-focalsam train FOLDER|CONFIG [--key value ...]"
ROW_BEFORE = {
    "text": "zero-shot",
    "class_means": "class means",
    "linear_probe": "linear probe",
    "random": "random head",
    "kaiming": "random weights",
}


def make_parser() -> HfArgumentParser:
    """The parser of its keys, for the index of keys."""
    return config_parser(TYPES)


def train_and_evaluate(
    trainer: FocalSAMTrainer, data: ImageData | StreamedData, test: Dataset, *, before: str, say: Callable
) -> tuple[dict[str, dict[str, float]], dict[str, Result]]:
    """Metrics and results on the test images by name of the row: `before`, and after training if anything trains."""
    args, name = trainer.args, short_name(data.name)
    thresholds = {"many": args.many_shot_threshold, "few": args.few_shot_threshold}
    counted = "labels" if trainer.is_multi_label else "images"
    say(describe_groups(trainer.class_counts, **thresholds, counted=counted))
    say(describe_parameters(trainer.model))
    metrics, results = {}, {}
    trains = any(parameter.requires_grad for parameter in trainer.model.parameters())
    for row in (before, args.sharpness.replace("none", "plain")) if trains else (before,):
        if metrics:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        prediction = trainer.predict(test, metric_key_prefix="test")
        metrics[row] = {name.removeprefix("test_"): value for name, value in prediction.metrics.items()}
        predictions = Predictions.of_logits(
            prediction.predictions,
            prediction.label_ids,
            ids=image_ids(data.test),
            class_names=data.class_names,
            dataset=name,
        )
        results[row] = make_result(predictions, trainer.class_counts, **thresholds)
        say(f"\n{format_table({name: result.record() for name, result in results.items()})}\n")
    return metrics, results


def save(
    trainer: FocalSAMTrainer,
    weights: dict[str, Tensor],
    data: ImageData | StreamedData,
    metrics: dict,
    results: dict[str, Result],
    record: dict,
) -> None:
    """Write the model with these weights, its predictions, and the report on the run of this record to the output
    folder."""
    args, name = trainer.args, short_name(data.name)
    records = {row: {**metrics[row], **result.record()} for row, result in results.items()}  # with intervals
    with atomic_dir(args.output_dir) as folder:
        trainer.model.save_pretrained(folder, state_dict=weights)
        trainer.processing_class.save_pretrained(folder)
        predictions = list(results.values())[-1].predictions
        predictions.save(Path(folder, PREDICTIONS, file_name(name, ".safetensors")))
        write_results(folder, records, results)
        title = f"{title_name(trainer.model.config.backbone)} on {title_name(data.name)}"
        images, log = {name: data.test}, trainer.state.log_history
        write_page(folder, results, title=title, images=images, log_history=log, run=record)


def describe_next(folder: str) -> str:
    """Where the results of a run are, and what to do with them."""
    config, others = shlex.quote(f"{folder}/config.yaml"), shlex.quote(f"{folder}_methods")
    return "\n".join(
        [
            f"The model, metrics.json and per_class.csv are in {folder}; the report is {folder}/report.html.",
            "Next:",
            f"  ft-focalsam predict {shlex.quote(folder)} path/to/new/images --output predictions.csv",
            f"  ft-focalsam compare {config} --output_dir {others} --methods none sam focal_sam",
        ]
    )


@contextmanager
def named_full_disk(folder: str) -> Iterator[None]:
    """A disk that is full while a run is under way, in whatever writes there, as one sentence."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            f"No space is left for '{folder}' ({one_line(error)}); make room there, and run the command again, with "
            "--resume_from_checkpoint true where there is a checkpoint."
        ) from error


@contextmanager
def named_failure(folder: str) -> Iterator[None]:
    """What fails while results are written, as where the disk is full, as one sentence that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        last = next((path.name for path in checkpoints(Path(folder))), None)
        again = f" with --resume_from_checkpoint true, which begins at '{last}'" if last else ""
        raise OSError(
            f"The model and its report cannot be written to '{folder}' ({one_line(error)}), whose earlier files are "
            f"intact; make room there, and run the command again{again}."
        ) from error


def main(
    argv: list[str] | None = None,
    *,
    trainer_type: type[FocalSAMTrainer] = FocalSAMTrainer,
    build: Callable = build_model,
    before: str | None = None,
    check: Callable[[ModelArguments], None] = lambda model_args: None,
) -> dict[str, dict[str, float]]:
    """Run the command; returns the metrics before and after fine-tuning, by name of the row.

    Args:
        argv: The command line, if not that of the running script.
        trainer_type: The trainer's class.
        build: What makes the model, as `build_model` does.
        before: Name of the row before fine-tuning; by default that of the head's start.
        check: Raises a `ValueError` where a model is not one for the script, before anything is loaded.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    words, reasons = settings_of_folder(argv)
    options = parse_config(TYPES, words, epilog=describe_methods())
    data_args, model_args, _, args = options
    check(model_args)
    refuse_what_cannot_be_meant(data_args, model_args, args)
    if str(args.resume_from_checkpoint or False).lower() not in ("true", "false"):
        check_checkpoint(args.resume_from_checkpoint)
    check_writable(args.output_dir)
    with one_writer(args.output_dir, is_writer=args.should_save):
        refuse_overwriting(options)
        resumes = str(args.resume_from_checkpoint or False).lower() != "false"
        with run_log(args.output_dir, appends=resumes, is_writer=args.process_index == 0, own=(CONFIG_NAME,)):
            if args.process_index == 0:
                write_config(options)
                for reason in reasons:
                    tell(f"- {reason}")
            with named_full_disk(args.output_dir):
                return run(options, argv, trainer_type=trainer_type, build=build, before=before)


def run(
    options: tuple, argv: list[str], *, trainer_type: type[FocalSAMTrainer], build: Callable, before: str | None
) -> dict[str, dict[str, float]]:
    """The recipe itself, of checked options."""
    data_args, model_args, _, args = options
    began = time.monotonic()
    say = tell if args.process_index == 0 else lambda *_: None
    data_notes = []  # which the report shows too

    def note(text: str) -> None:
        data_notes.append(text)
        say(text)

    find_family(model_args.backbone, model_args.backbone_features)  # known before images are loaded
    head_start = choose_head_start(model_args.backbone, model_args.head_start)
    with args.main_process_first(desc="loading the images"):
        data = load_data(data_args, args, say=say if data_args.streaming else note)
    set_seed(args.seed)
    refuse_other_kind(args, multi_label=data.is_multi_label)

    aside = "" if not data_args.has_validation else f", {len(data.validation):,} put aside for validation"
    classes = f"{data.num_classes} classes" + (", several an image" if data.is_multi_label else "")
    sizes = f"{data.num_train:,} training and {len(data.test):,} test images, {classes}"
    say(f"\n{data.name}: {sizes}{aside}")
    args.choose_eval_strategy(has_validation=data_args.has_validation)
    if args.eval_strategy != IntervalStrategy.NO and not data_args.has_validation:
        say("While training, the test set is evaluated on: for reporting alone, nothing is chosen by it.")
    trainer, test = make_trainer(data, options, trainer_type=trainer_type, build=build)
    trainer.progress.shows_evaluation = data_args.has_validation
    before = before or ROW_BEFORE[head_start]
    metrics, results = train_and_evaluate(trainer, data, test, before=before, say=say)
    weights = trainer.accelerator.get_state_dict(trainer.model)  # by all processes, each of which may hold a part
    if trainer.is_world_process_zero():
        with named_failure(args.output_dir):
            told = {"argv": argv, "data_notes": data_notes, "seconds": time.monotonic() - began}
            record = describe_run(trainer, options=options, **told)
            save(trainer, weights, data, metrics, results, record)
            write_run(args.output_dir, record)
        say(describe_next(args.output_dir))
        if args.push_to_hub:
            say(f"The model is on the Hub: {trainer.push_output().commit_url}")
    return metrics


if __name__ == "__main__":
    run_command("train", sys.argv[1:])
