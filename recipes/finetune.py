"""Fine-tune a vision foundation model on long-tailed images.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune.py recipes/configs/quickstart.yaml

The YAML file holds the defaults of the run; every key can be overridden on the command line (`--rho 0.1`); `--help`
lists them. Writes to `output_dir`: the model, metrics.json, per_class.csv, accuracy_by_frequency.png and checkpoints.
"""

import json
import sys
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader
from transformers import default_data_collator, set_seed

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.config import DataArguments, ModelArguments, parse_config
from ft_focalsam.data import (
    ImageData,
    TransformedImages,
    describe_groups,
    eval_transform,
    label_array,
    load_image_data,
    long_tail_indices,
    take_per_class,
    train_transform,
)
from ft_focalsam.evaluation import format_table, per_class_rows, plot_accuracy_by_frequency, write_per_class_csv
from ft_focalsam.models import choose_head_start, load_image_processor, start_head
from ft_focalsam.tuning import describe_parameters

ROW_BEFORE = {"text": "zero-shot", "class_means": "class means", "random": "random head"}


def load_data(args: DataArguments) -> ImageData:
    """The images of a run, cut to the profile and the sizes asked for."""
    data = load_image_data(
        args.dataset,
        image_column=args.image_column,
        label_column=args.label_column,
        train_split=args.train_split,
        test_split=args.test_split,
        test_fraction=args.test_fraction,
        config_name=args.dataset_config,
    )
    cut = {"seed": args.long_tail_seed}
    if args.imbalance_factor is not None:
        cut |= {"imbalance_factor": args.imbalance_factor, "max_count": args.max_train_per_class}
        data.train = data.train.select(long_tail_indices(label_array(data.train), data.num_classes, **cut))
    elif args.max_train_per_class is not None:
        cut["per_class"] = args.max_train_per_class
        data.train = data.train.select(take_per_class(label_array(data.train), data.num_classes, **cut))
    if args.max_test_per_class is not None:
        cut = {"per_class": args.max_test_per_class, "seed": args.long_tail_seed}
        data.test = data.test.select(take_per_class(label_array(data.test), data.num_classes, **cut))
    return data


def write_results(folder: Path, trainer: FocalSAMTrainer, data: ImageData, accuracies: dict, metrics: dict) -> None:
    """Metrics of each row, per-class table of the last one, and the plot of all."""
    thresholds = {"many": trainer.args.many_shot_threshold, "few": trainer.args.few_shot_threshold}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    test_counts = np.bincount(label_array(data.test), minlength=data.num_classes)
    rows = per_class_rows(
        data.class_names,
        trainer.class_counts,
        per_class_accuracy=list(accuracies.values())[-1],
        test_counts=test_counts,
        **thresholds,
    )
    write_per_class_csv(folder / "per_class.csv", rows)
    plot_accuracy_by_frequency(
        folder / "accuracy_by_frequency.png",
        trainer.class_counts,
        accuracies=accuracies,
        class_names=data.class_names,
        **thresholds,
    )


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Run the recipe; returns the metrics before and after fine-tuning, by name of the row."""
    data_args, model_args, tuning_options, args = parse_config(
        (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments), argv
    )
    say = print if args.process_index == 0 else lambda *_: None
    head_start = choose_head_start(model_args.backbone, model_args.head_start)
    processor = load_image_processor(model_args.backbone)
    with args.main_process_first(desc="loading the images"):
        data = load_data(data_args)
    set_seed(args.seed)

    say(f"\n{data.name}: {len(data.train):,} training and {len(data.test):,} test images, {data.num_classes} classes")
    plain = eval_transform(processor, image_size=data_args.image_size)
    augmented = train_transform(processor, image_size=data_args.image_size, augmentation=data_args.augmentation)
    test = TransformedImages(data.test, plain)
    model = LongTailClassifier.from_backbone(
        model_args.backbone,
        data.class_names,
        head=model_args.head,
        head_scale=model_args.head_scale,
        image_size=data_args.image_size,
        dtype=model_args.backbone_dtype,
    ).to(args.device)
    start_head(
        model,
        head_start,
        batches=lambda: DataLoader(
            TransformedImages(data.train, plain),
            batch_size=args.per_device_eval_batch_size,
            collate_fn=default_data_collator,
        ),
        templates=model_args.prompt_templates,
    )
    apply_tuning(model, model_args.tuning, tuning_options)
    trainer = FocalSAMTrainer(
        model,
        args,
        train_dataset=TransformedImages(data.train, augmented, seed=args.seed),
        eval_dataset=test,
        processing_class=processor,
    )
    say(describe_groups(trainer.class_counts, many=args.many_shot_threshold, few=args.few_shot_threshold))
    say(describe_parameters(model))

    accuracies, metrics = {}, {}
    for row in (ROW_BEFORE[head_start], args.sharpness.replace("none", "plain")):
        if accuracies:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        prediction = trainer.predict(test, metric_key_prefix="test")
        metrics[row] = {name.removeprefix("test_"): value for name, value in prediction.metrics.items()}
        accuracies[row] = trainer.compute_metrics.per_class(prediction.predictions, prediction.label_ids)
        say(f"\n{format_table(metrics)}\n")

    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_results(folder, trainer, data, accuracies, metrics)
        say(f"The model, metrics.json, per_class.csv and accuracy_by_frequency.png are in {folder}.")
    return metrics


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
