"""Fine-tune a vision foundation model on long-tailed images.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune.py recipes/configs/quickstart.yaml

The YAML file holds the defaults of the run; every key can be overridden on the command line (`--rho 0.1`); `--help`
lists them. Writes to `output_dir`: the model, report.html, report.md, metrics.json, per_class.csv,
accuracy_by_frequency.png, run.json, predictions/ and checkpoints. A run that was killed goes on with
`--resume_from_checkpoint true`; at SIGTERM it saves a checkpoint and exits with 143. `--push_to_hub true
--hub_model_id user/name` publishes all of it but predictions and checkpoints, with a card.
"""

import copy
import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import PartialState
from torch.utils.data import DataLoader
from transformers import BaseImageProcessor, default_data_collator, set_seed

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.config import ModelArguments, parse_config
from ft_focalsam.data import (
    DataArguments,
    DeviceImages,
    ImageData,
    StreamedData,
    TransformedImages,
    collate_ready,
    describe_groups,
    eval_transform,
    prepare_images,
    read_preprocessing,
    stream_images,
    train_transform,
    training_set,
)
from ft_focalsam.evaluation import (
    PREDICTIONS,
    Predictions,
    Verdict,
    file_name,
    format_table,
    image_ids,
    short_name,
    write_page,
    write_report,
)
from ft_focalsam.files import check_writable, written_aside
from ft_focalsam.hub import describe_run, write_run
from ft_focalsam.models import choose_head_start, load_image_processor, read_class_names, start_head
from ft_focalsam.preemption import TrainingTerminated
from ft_focalsam.tuning import describe_methods, describe_parameters

TYPES = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
ROW_BEFORE = {
    "text": "zero-shot",
    "class_means": "class means",
    "linear_probe": "linear probe",
    "random": "random head",
    "kaiming": "random weights",
}


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
    options: tuple[DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments],
) -> LongTailClassifier:
    """The classifier as training finds it: its backbone, its head started, and what of it is tuned.

    Args:
        data: The images.
        plain: Their transform without augmentation, for starts from features.
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
    start_head(
        model,
        choose_head_start(model_args.backbone, model_args.head_start),
        batches=lambda: DataLoader(
            training_set(data.train, plain),
            batch_size=args.per_device_eval_batch_size,
            collate_fn=default_data_collator,
        ),
        templates=model_args.prompt_templates,
        class_names=read_class_names(model_args.prompt_names, data.num_classes),
    )
    apply_tuning(model, model_args.tuning, tuning_options)
    return model


def images_on_device(
    data: ImageData | StreamedData,
    processor: BaseImageProcessor,
    data_args: DataArguments,
    args: FocalSAMTrainingArguments,
) -> tuple[DeviceImages, DeviceImages]:
    """Training and test images, kept on the device (`--on_device`)."""
    if data_args.streaming or args.dataloader_num_workers:
        key, value = ("streaming", "false") if data_args.streaming else ("dataloader_num_workers", "0")
        raise ValueError(f"on_device keeps all pictures on the device; set {key} to {value} with it.")
    args.dataloader_pin_memory = False
    preprocessing = read_preprocessing(processor, image_size=data_args.image_size)
    augmented = {"augmentation": data_args.augmentation, "seed": args.seed}
    return (
        DeviceImages(data.train, preprocessing, device=args.device, **augmented),
        DeviceImages(data.test, preprocessing, device=args.device),
    )


def make_trainer(
    data: ImageData | StreamedData,
    options: tuple[DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments],
    *,
    trainer_type: type[FocalSAMTrainer] = FocalSAMTrainer,
    restarts: bool = False,
) -> FocalSAMTrainer:
    """The trainer of a run.

    Args:
        data: The images.
        options: The description of the run.
        trainer_type: Its class.
        restarts: Let each training begin with a copy of the same started model, as `hyperparameter_search` asks.
    """
    data_args, model_args, _, args = options
    processor = load_image_processor(model_args.backbone)
    plain = eval_transform(processor, image_size=data_args.image_size)
    augmented = train_transform(
        processor,
        image_size=data_args.image_size,
        augmentation=data_args.augmentation,
        fast_decode=data_args.fast_decode,
    )
    if data_args.on_device:
        train, test = images_on_device(data, processor, data_args, args)
    else:
        train = training_set(
            data.train,
            augmented,
            seed=args.seed,
            num_epochs=math.ceil(args.num_train_epochs),
            shuffle_buffer=data_args.shuffle_buffer,
        )
        test = TransformedImages(data.test, plain)
    model = build_model(data, plain, options)
    return trainer_type(
        None if restarts else model,
        args,
        model_init=(lambda: copy.deepcopy(model)) if restarts else None,
        class_counts=data.class_counts if data_args.streaming else None,
        train_dataset=train,
        eval_dataset=test,
        data_collator=collate_ready if data_args.on_device else None,
        processing_class=processor,
    )


def train_and_judge(
    trainer: FocalSAMTrainer, data: ImageData | StreamedData, *, before: str, say: Callable
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
        prediction = trainer.predict(trainer.eval_dataset, metric_key_prefix="test")
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
    trainer: FocalSAMTrainer, data: ImageData | StreamedData, metrics: dict, verdicts: dict[str, Verdict]
) -> None:
    """Write the model, its predictions and the report to the output folder."""
    args, name = trainer.args, short_name(data.name)
    records = {row: {**metrics[row], **verdict.record()} for row, verdict in verdicts.items()}  # with intervals
    with written_aside(args.output_dir) as folder:
        trainer.model.save_pretrained(folder)
        trainer.processing_class.save_pretrained(folder)
        predictions = list(verdicts.values())[-1].predictions
        predictions.save(Path(folder, PREDICTIONS, file_name(name, ".safetensors")))
        write_report(
            folder,
            records,
            accuracies={row: verdict.class_accuracies for row, verdict in verdicts.items()},
            class_names=data.class_names,
            class_counts=trainer.class_counts,
            test_counts=np.bincount(trainer.eval_dataset.targets, minlength=data.num_classes),
            many=args.many_shot_threshold,
            few=args.few_shot_threshold,
        )
        title = f"{trainer.model.config.backbone} on {name}"
        pictures, log = {name: data.test}, trainer.state.log_history
        write_page(folder, verdicts, title=title, pictures=pictures, log_history=log)


def main(
    argv: list[str] | None = None,
    *,
    trainer_type: type[FocalSAMTrainer] = FocalSAMTrainer,
    check: Callable[[ModelArguments], None] = lambda model_args: None,
) -> dict[str, dict[str, float]]:
    """Run the recipe; returns the metrics before and after fine-tuning, by name of the row.

    Args:
        argv: The command line, if not that of the running script.
        trainer_type: The trainer's class.
        check: Raises a `ValueError` where a model is not one for the script, before anything is loaded.
    """
    options = parse_config(TYPES, argv, epilog=describe_methods())
    data_args, model_args, _, args = options
    check(model_args)
    check_writable(args.output_dir)
    args.dataloader_persistent_workers &= args.dataloader_num_workers > 0  # torch refuses it without workers
    say = print if args.process_index == 0 else lambda *_: None
    head_start = choose_head_start(model_args.backbone, model_args.head_start)
    with args.main_process_first(desc="loading the images"):
        data = load_data(data_args, args, say=say)
    set_seed(args.seed)

    say(f"\n{data.name}: {data.num_train:,} training and {len(data.test):,} test images, {data.num_classes} classes")
    trainer = make_trainer(data, options, trainer_type=trainer_type)
    metrics, verdicts = train_and_judge(trainer, data, before=ROW_BEFORE[head_start], say=say)
    if trainer.is_world_process_zero():
        save(trainer, data, metrics, verdicts)
        write_run(args.output_dir, describe_run(trainer, options=options, argv=sys.argv[1:] if argv is None else argv))
        say(f"The model, report.html, metrics.json and per_class.csv are in {args.output_dir}.")
        if args.push_to_hub:
            say(f"The model is on the Hub: {trainer.push_output().commit_url}")
    return metrics


def run_script(main: Callable[[], object]) -> None:
    """Run the main function of a script that trains, and let it end as users expect: on an error with one sentence, at
    SIGTERM with 143."""
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    except TrainingTerminated:  # on all processes
        PartialState().destroy_process_group()
        raise
    PartialState().destroy_process_group()


if __name__ == "__main__":
    run_script(main)
