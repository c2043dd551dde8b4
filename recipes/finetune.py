"""Fine-tune a vision foundation model on long-tailed images.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune.py recipes/configs/quickstart.yaml

The YAML file holds the defaults of the run; every key can be overridden on the command line (`--rho 0.1`); `--help`
lists them. Writes to `output_dir`: the model, report.html, report.md, metrics.json, per_class.csv,
accuracy_by_frequency.png, run.json, predictions/ and checkpoints. A run that was killed goes on with
`--resume_from_checkpoint true`; at SIGTERM it saves a checkpoint and exits with 143. A folder that holds a run is
overwritten with `--overwrite true` only. `--validation_fraction` puts images aside to choose by while training; the
table is of the test set. `--push_to_hub true --hub_model_id user/name` publishes all of it but predictions and
checkpoints, with a card.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import BaseImageProcessor, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.cli.arguments import ModelArguments
from ft_focalsam.cli.config import parse_config
from ft_focalsam.data import (
    ByteCollator,
    DataArguments,
    DeviceImages,
    ImageData,
    StreamedData,
    TransformedImages,
    collate_ready,
    content_digest,
    describe_groups,
    eval_transform,
    label_array,
    prepare_images,
    read_preprocessing,
    stream_images,
    train_transform,
    training_set,
)
from ft_focalsam.data.prepare import SPLITS
from ft_focalsam.errors import first_fault, one_line, told_in_one_sentence, unknown
from ft_focalsam.evaluation import (
    METRICS,
    PREDICTIONS,
    Predictions,
    Verdict,
    file_name,
    format_table,
    image_ids,
    short_name,
    title_name,
    write_page,
    write_report,
)
from ft_focalsam.files import check_writable, written_aside
from ft_focalsam.hub import describe_run, read_run, write_run
from ft_focalsam.hub.run_file import RUN_NAME
from ft_focalsam.models import (
    FeatureCache,
    choose_head_start,
    encode_images,
    load_image_processor,
    read_class_names,
    start_head,
)
from ft_focalsam.models.backbones import find_family
from ft_focalsam.trainer.checkpointing import check_checkpoint, checkpoints
from ft_focalsam.trainer.preemption import TrainingTerminated
from ft_focalsam.trainer.run_lock import one_writer
from ft_focalsam.trainer.run_settings import describe_differences, differences, settings_of
from ft_focalsam.tuning import check_keeps_backbone, describe_methods, describe_parameters

TYPES = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
CHOOSING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # they follow what is evaluated
ROW_BEFORE = {
    "text": "zero-shot",
    "class_means": "class means",
    "linear_probe": "linear probe",
    "random": "random head",
    "kaiming": "random weights",
}


def refuse_what_cannot_be_meant(
    data_args: DataArguments, model_args: ModelArguments, args: FocalSAMTrainingArguments
) -> None:
    """Raise a `ValueError`, before any image is read, for a run that would choose by its test set or cannot train on
    features that are computed once."""
    if data_args.cache_features:
        check_keeps_backbone(model_args.tuning)
        for key in ("mixup_alpha", "cutmix_alpha"):
            if getattr(args, key):
                raise ValueError(
                    f"{key} is {getattr(args, key):g}, which mixes images anew in every batch, and cache_features "
                    f"computes the features of each image once; set {key} to 0, or cache_features to false."
                )
    metric, known = (args.metric_for_best_model or "loss").removeprefix("eval_"), ("loss", *METRICS)
    if metric not in known:
        raise ValueError(unknown("metric_for_best_model", metric, known))
    values = args.to_dict()
    chosen = {
        "load_best_model_at_end": args.load_best_model_at_end,
        "save_strategy": args.save_strategy == SaveStrategy.BEST,
        "lr_scheduler_type": values["lr_scheduler_type"] in CHOOSING_SCHEDULES,
        "metric_for_best_model": args.metric_for_best_model is not None,
    }
    for key, is_set in chosen.items():
        if is_set and not data_args.has_validation:
            raise ValueError(
                f"{key} is {values[key]!r}, which chooses by the images that are evaluated on, and these are the test "
                "set; put some aside with --validation_fraction 0.1 (of each class), or leave the key out."
            )


def refuse_overwriting(options: tuple) -> None:
    """Raise a `ValueError` where the output folder holds a run, and the run is not to go on or to be overwritten."""
    args = options[-1]
    folder, fault = Path(args.output_dir).expanduser(), None
    resumes = str(args.resume_from_checkpoint or False).lower() != "false"
    held = [RUN_NAME] if (folder / RUN_NAME).is_file() else []
    held += [] if resumes else [path.name for path in checkpoints(folder)[:1]]
    if args.should_save and held and not args.overwrite:
        changed = differences(read_run(folder).get("resolved", {}), settings_of(args, options[:-1]))
        if not resumes:
            fault = "go on with --resume_from_checkpoint true, or begin anew with --overwrite true"
        elif changed and not args.resume_changed:
            fault = f"its settings are others: {describe_differences(changed)}; set these back"
    fault = first_fault(fault and f"The output folder '{folder}' holds a run ({held[0]}); {fault}")
    if fault is not None:
        raise ValueError(f"{fault}, or set --output_dir to another folder.")


def load_data(data_args: DataArguments, args: FocalSAMTrainingArguments, *, say: Callable) -> ImageData | StreamedData:
    """The images of the run, stored or, with `--streaming`, streamed."""
    if not data_args.streaming:
        return prepare_images(data_args, say=say)
    is_main = args.process_index == 0
    data = stream_images(data_args, counts_path=Path(args.output_dir) / "class_counts.json", recount=is_main, say=say)
    if args.max_steps <= 0:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = math.ceil(data.num_train * args.num_train_epochs / batch)
        raise ValueError(
            f"A stream has no length to tell the number of steps from; set --max_steps, for the {data.num_train:,} "
            f"images and num_train_epochs {args.num_train_epochs:g} to {steps}."
        )
    return data


def build_model(
    data: ImageData | StreamedData,
    plain: Callable,
    collate: ByteCollator,
    options: tuple[DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments],
) -> tuple[LongTailClassifier, FeatureCache | None]:
    """The classifier as training finds it: its backbone, its head started, and what of it is tuned; with
    `--cache_features`, the features of its backbone.

    Args:
        data: The images.
        plain: Their transform without augmentation, as bytes, for starts from features.
        collate: What makes batches of these.
        options: The description of the run.
    """
    data_args, model_args, tuning_options, args = options
    model = LongTailClassifier.from_backbone(
        model_args.backbone,
        data.class_names,
        head=model_args.head,
        head_scale=model_args.head_scale,
        image_size=data_args.image_size,
        dtype=model_args.backbone_dtype,
        features=model_args.backbone_features,
    ).to(args.device)
    reading = {"batch_size": args.per_device_eval_batch_size, "num_workers": args.dataloader_num_workers}
    reading["collate"] = collate
    cache = None
    if data_args.cache_features:
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)
        cache = FeatureCache(model, **reading, autocast=autocast)

    def batches() -> Iterable[dict[str, torch.Tensor]]:
        images = training_set(data.train, plain)
        if cache is not None:
            return cache.features(images, desc="training images").batches(args.per_device_eval_batch_size)
        return encode_images(model, images, **reading, desc="Features that the head starts from")

    start_head(
        model,
        choose_head_start(model_args.backbone, model_args.head_start),
        batches=batches,
        templates=model_args.prompt_templates,
        class_names=read_class_names(model_args.prompt_names, data.num_classes),
    )
    apply_tuning(model, model_args.tuning, tuning_options)
    return model, cache


def images_on_device(
    data: ImageData | StreamedData,
    processor: BaseImageProcessor,
    data_args: DataArguments,
    args: FocalSAMTrainingArguments,
) -> dict[str, DeviceImages]:
    """The images by split, kept on the device (`--on_device`)."""
    if data_args.streaming or args.dataloader_num_workers:
        key, value = ("streaming", "false") if data_args.streaming else ("dataloader_num_workers", "0")
        raise ValueError(f"on_device keeps all pictures on the device; set {key} to {value} with it.")
    args.dataloader_pin_memory = False
    preprocessing = read_preprocessing(processor, image_size=data_args.image_size)
    augmented = {"augmentation": data_args.augmentation, "num_views": data_args.num_views, "seed": args.seed}
    return {
        split: DeviceImages(part, preprocessing, device=args.device, **(augmented if split == "train" else {}))
        for split, part in data.parts.items()
    }


def make_trainer(
    data: ImageData | StreamedData,
    options: tuple[DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments],
    *,
    trainer_type: type[FocalSAMTrainer] = FocalSAMTrainer,
    build: Callable = build_model,
    restarts: bool = False,
) -> tuple[FocalSAMTrainer, Dataset]:
    """The trainer of a run, which evaluates on validation images where there are some, and the images to test on.

    Args:
        data: The images.
        options: The description of the run.
        trainer_type: Its class.
        build: What makes the model, as `build_model` does.
        restarts: Let each training begin with a copy of the same started model, as `hyperparameter_search` asks.
    """
    data_args, model_args, _, args = options
    processor = load_image_processor(model_args.backbone)
    plain = eval_transform(processor, image_size=data_args.image_size, as_bytes=True)
    augmented = train_transform(
        processor,
        image_size=data_args.image_size,
        augmentation=data_args.augmentation,
        fast_decode=data_args.fast_decode,
        as_bytes=True,
    )
    collate = ByteCollator(read_preprocessing(processor, image_size=data_args.image_size))
    num_epochs = math.ceil(args.num_train_epochs)
    if data_args.on_device:
        images = images_on_device(data, processor, data_args, args)
    else:
        images = {split: TransformedImages(part, plain) for split, part in data.parts.items() if split != "train"}
        images["train"] = training_set(
            data.train,
            augmented,
            seed=args.seed,
            num_epochs=num_epochs,
            num_views=data_args.num_views,
            shuffle_buffer=data_args.shuffle_buffer,
        )
    args.choose_num_workers(images["train"])
    args.dataloader_persistent_workers &= args.dataloader_num_workers > 0  # torch refuses it without workers
    model, cache = build(data, plain, collate, options)
    if cache is not None:
        views = data_args.num_views or 1
        views = {"train": views if args.max_steps > 0 else min(views, num_epochs)}
        images = {
            split: cache.features(part, num_views=views.get(split, 1), desc=f"{SPLITS[split]} images")
            for split, part in images.items()
        }
        args.dataloader_num_workers = 0  # what there is to read are rows of tensors
        args.dataloader_persistent_workers, args.dataloader_prefetch_factor = False, None
    trainer = trainer_type(
        None if restarts else model,
        args,
        model_init=(lambda: copy.deepcopy(model)) if restarts else None,
        class_counts=data.class_counts if data_args.streaming else None,
        train_dataset=images["train"],
        eval_dataset=images.get("validation", images["test"]),
        data_collator=collate_ready if data_args.on_device or data_args.cache_features else collate,
        processing_class=processor,
    )
    trainer.describe_run_by(options, **({} if data_args.streaming else {"images": content_digest(data.train)}))
    return trainer, images["test"]


def train_and_judge(
    trainer: FocalSAMTrainer, data: ImageData | StreamedData, test: Dataset, *, before: str, say: Callable
) -> tuple[dict[str, dict[str, float]], dict[str, Verdict]]:
    """Metrics and verdicts on the test images by name of the row: `before`, and after training if anything trains."""
    args, name = trainer.args, short_name(data.name)
    thresholds = {"many": args.many_shot_threshold, "few": args.few_shot_threshold}
    say(describe_groups(trainer.class_counts, **thresholds))
    say(describe_parameters(trainer.model))
    metrics, verdicts = {}, {}
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
        verdicts[row] = Verdict(predictions, trainer.class_counts, **thresholds)
        say(f"\n{format_table({name: verdict.record() for name, verdict in verdicts.items()})}\n")
    return metrics, verdicts


def save(
    trainer: FocalSAMTrainer,
    weights: dict[str, Tensor],
    data: ImageData | StreamedData,
    metrics: dict,
    verdicts: dict[str, Verdict],
    record: dict,
) -> None:
    """Write the model with these weights, its predictions, and the report on the run of this record to the output
    folder."""
    args, name = trainer.args, short_name(data.name)
    records = {row: {**metrics[row], **verdict.record()} for row, verdict in verdicts.items()}  # with intervals
    with written_aside(args.output_dir) as folder:
        trainer.model.save_pretrained(folder, state_dict=weights)
        trainer.processing_class.save_pretrained(folder)
        predictions = list(verdicts.values())[-1].predictions
        predictions.save(Path(folder, PREDICTIONS, file_name(name, ".safetensors")))
        write_report(
            folder,
            records,
            accuracies={row: verdict.class_accuracies for row, verdict in verdicts.items()},
            class_names=data.class_names,
            class_counts=trainer.class_counts,
            test_counts=np.bincount(label_array(data.test), minlength=data.num_classes),
            many=args.many_shot_threshold,
            few=args.few_shot_threshold,
        )
        title = f"{title_name(trainer.model.config.backbone)} on {title_name(data.name)}"
        pictures, log = {name: data.test}, trainer.state.log_history
        write_page(folder, verdicts, title=title, pictures=pictures, log_history=log, run=record)


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
    """Run the recipe; returns the metrics before and after fine-tuning, by name of the row.

    Args:
        argv: The command line, if not that of the running script.
        trainer_type: The trainer's class.
        build: What makes the model, as `build_model` does.
        before: Name of the row before fine-tuning; by default that of the head's start.
        check: Raises a `ValueError` where a model is not one for the script, before anything is loaded.
    """
    options = parse_config(TYPES, argv, epilog=describe_methods())
    data_args, model_args, _, args = options
    check(model_args)
    refuse_what_cannot_be_meant(data_args, model_args, args)
    if str(args.resume_from_checkpoint or False).lower() not in ("true", "false"):
        check_checkpoint(args.resume_from_checkpoint)
    check_writable(args.output_dir)
    with one_writer(args.output_dir, is_writer=args.should_save):
        refuse_overwriting(options)
        argv = sys.argv[1:] if argv is None else argv
        return run(options, argv, trainer_type=trainer_type, build=build, before=before)


def run(
    options: tuple, argv: list[str], *, trainer_type: type[FocalSAMTrainer], build: Callable, before: str | None
) -> dict[str, dict[str, float]]:
    """The recipe itself, of checked options."""
    data_args, model_args, _, args = options
    say = print if args.process_index == 0 else lambda *_: None
    data_notes = []  # which the report shows too

    def note(text: str) -> None:
        data_notes.append(text)
        say(text)

    find_family(model_args.backbone, model_args.backbone_features)  # known before images are loaded
    head_start = choose_head_start(model_args.backbone, model_args.head_start)
    with args.main_process_first(desc="loading the images"):
        data = load_data(data_args, args, say=say if data_args.streaming else note)
    set_seed(args.seed)

    aside = "" if not data_args.has_validation else f", {len(data.validation):,} put aside for validation"
    sizes = f"{data.num_train:,} training and {len(data.test):,} test images, {data.num_classes} classes"
    say(f"\n{data.name}: {sizes}{aside}")
    if args.eval_strategy != IntervalStrategy.NO and not data_args.has_validation:
        say("While training, the test set is evaluated on: for reporting alone, nothing is chosen by it.")
    trainer, test = make_trainer(data, options, trainer_type=trainer_type, build=build)
    before = before or ROW_BEFORE[head_start]
    metrics, verdicts = train_and_judge(trainer, data, test, before=before, say=say)
    weights = trainer.accelerator.get_state_dict(trainer.model)  # by all processes, each of which may hold a part
    if trainer.is_world_process_zero():
        with named_failure(args.output_dir):
            record = describe_run(trainer, options=options, argv=argv, data_notes=data_notes)
            save(trainer, weights, data, metrics, verdicts, record)
            write_run(args.output_dir, record)
        say(f"The model, report.html, metrics.json and per_class.csv are in {args.output_dir}.")
        if args.push_to_hub:
            say(f"The model is on the Hub: {trainer.push_output().commit_url}")
    return metrics


def run_script(main: Callable[[], object]) -> None:
    """Run the main function of a script that trains, and let it end as users expect: on an error with one sentence, at
    SIGTERM with 143."""
    try:
        with told_in_one_sentence():
            main()
    except TrainingTerminated:  # on all processes
        PartialState().destroy_process_group()
        raise
    PartialState().destroy_process_group()


if __name__ == "__main__":
    run_script(main)
