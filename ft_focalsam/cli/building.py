"""From the description of a run to its images, its model and its trainer."""

import copy
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import BaseImageProcessor

from ..data import (
    ByteCollator,
    DataArguments,
    DeviceImages,
    ImageData,
    StreamedData,
    TransformedImages,
    collate_ready,
    content_digest,
    eval_transform,
    prepare_images,
    read_preprocessing,
    stream_images,
    train_transform,
    training_set,
)
from ..data.prepare import SPLITS
from ..models import (
    FeatureCache,
    LongTailClassifier,
    choose_head_start,
    encode_images,
    init_head,
    keep_batch_norms_in_eval,
    load_image_processor,
    read_prompt_names,
    set_attention,
)
from ..trainer import FocalSAMTrainer, FocalSAMTrainingArguments
from ..tuning import TuningOptions, apply_tuning
from .arguments import ModelArguments


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
        head_options=model_args.head_options,
        image_size=data_args.image_size,
        dtype=model_args.backbone_dtype,
        features=model_args.backbone_features,
        multi_label=data.is_multi_label,
    ).to(args.device)
    if model_args.attn_implementation is not None:
        set_attention(model, model_args.attn_implementation)
    if model_args.batch_norm_eval:
        keep_batch_norms_in_eval(model)
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

    init_head(
        model,
        choose_head_start(model_args.backbone, model_args.head_start),
        batches=batches,
        templates=model_args.prompt_templates,
        class_names=read_prompt_names(model_args.prompt_names, data.num_classes),
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
        raise ValueError(f"on_device keeps all images on the device; set {key} to {value} with it.")
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
    draw: Callable | None = None,
) -> tuple[FocalSAMTrainer, Dataset]:
    """The trainer of a run, which evaluates on validation images where there are some, and the images to test on.

    Args:
        data: The images.
        options: The description of the run.
        trainer_type: Its class.
        build: What makes the model, as `build_model` does.
        restarts: Let each training begin with a copy of the same started model, as `hyperparameter_search` asks.
        draw: What sets the options of a trial; with it that model is built anew for each.
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

    def restart(trial) -> LongTailClassifier:
        if draw is None or trial is None:
            return copy.deepcopy(model)
        draw(trial)
        return build(data, plain, collate, options)[0]

    trainer = trainer_type(
        None if restarts else model,
        args,
        model_init=restart if restarts else None,
        class_counts=data.class_counts if data_args.streaming else None,
        train_dataset=images["train"],
        eval_dataset=images.get("validation", images["test"]),
        data_collator=collate_ready if data_args.on_device or data_args.cache_features else collate,
        processing_class=processor,
    )
    trainer.describe_run_by(options, **({} if data_args.streaming else {"images": content_digest(data.train)}))
    return trainer, images["test"]
