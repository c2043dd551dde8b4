"""`FocalSAMTrainer`: the Hugging Face Trainer with a sharpness-aware training step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from .data.labels import dataset_labels
from .evaluation import LongTailMetrics
from .losses import make_loss
from .sharpness import SharpnessStep, class_weights
from .training_args import FocalSAMTrainingArguments


class FocalSAMTrainer(Trainer):
    """Trains any model that returns logits with Focal-SAM (arXiv 2505.01660) or another method of its family.

    The model may be one of transformers, a `PeftModel`, a `LongTailClassifier`, or any `nn.Module` whose output has
    `logits` (or is a tuple that begins with them). Labels reach the loss, not the model. What the Trainer does goes on
    working: mixed precision, accumulation, clipping, schedules, resuming, reporting.

    Beside the loss it logs `rho`, `perturbation_norm` (||epsilon||), `sharpness` (class-weighted loss at w + epsilon
    minus at w) and `skipped_perturbations`.

    Args:
        model (`nn.Module`, *optional*): The model; or give `model_init`.
        args (`FocalSAMTrainingArguments`, *optional*): Defaults to output in "tmp_trainer".
        class_counts (sequence of `int`, shape (C,), *optional*): Training samples per class; by default counted from
            the labels of `train_dataset`.
        compute_loss_func (`Callable`, *optional*): (outputs, labels) -> losses of shape (B,), instead of `args.loss`.
        compute_metrics (`Callable`, *optional*): Defaults to `LongTailMetrics` of the class counts.
        data_collator, train_dataset, eval_dataset, processing_class, model_init, callbacks, optimizers,
        optimizer_cls_and_kwargs, preprocess_logits_for_metrics: As in `transformers.Trainer`.

    Raises:
        TypeError: If `args` are plain `TrainingArguments`.
        ValueError: If a class has no training sample, a label is out of range, or the model is wrapped or sharded in a
            way that the step cannot be exact in.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: FocalSAMTrainingArguments | None = None,
        *,
        class_counts: Sequence[int] | Tensor | None = None,
        data_collator: Callable | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        model_init: Callable[..., nn.Module] | None = None,
        compute_loss_func: Callable[[Any, Tensor], Tensor] | None = None,
        compute_metrics: Callable | None = None,
        callbacks: list | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple | None = None,
        preprocess_logits_for_metrics: Callable | None = None,
    ):
        if isinstance(model, nn.DataParallel):
            raise ValueError(
                "The model is wrapped in nn.DataParallel, inside which per-class gradients cannot be collected; pass "
                "the bare model and start the script with `accelerate launch`."
            )
        args = FocalSAMTrainingArguments("tmp_trainer") if args is None else args
        if not isinstance(args, FocalSAMTrainingArguments):
            raise TypeError(
                f"args is a {type(args).__name__}; use FocalSAMTrainingArguments, which has all of its fields."
            )
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=self._reduced_loss,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.add_callback(_SetEpoch(train_dataset))
        self._refuse_what_is_not_exact()
        self.class_counts = self._count_classes(class_counts)
        self._losses_of = compute_loss_func
        if self.class_counts is not None:
            if self._losses_of is None:
                self._losses_of = self._default_loss()
            if self.compute_metrics is None:
                self.compute_metrics = LongTailMetrics(
                    self.class_counts, many=args.many_shot_threshold, few=args.few_shot_threshold
                )
        self._step: SharpnessStep | None = None
        self._micro_batches: list[tuple[dict, Any]] = []  # of the optimizer step under way, for the second passes

    # ---- what the Trainer calls ----

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """Both passes over one batch, or, where gradients are accumulated and the perturbation is global, the first
        pass over it and, with the last batch of the optimizer step, the second passes over all of them.

        Returns:
            `Tensor` without dimensions: L(w), detached, of this batch.
        """
        if self._step is None or self._step.model is not model:
            self._step = self._make_step(model)
        step = self._step
        if step.is_plain:
            return super().training_step(model, inputs, num_items_in_batch)
        if "labels" not in inputs:
            raise ValueError(f"A batch has {sorted(inputs)} and no 'labels'; let the data collator keep the classes.")
        is_local = step.scope == "local"
        if is_local or not self._micro_batches:
            step.start()
        self._micro_batches.append((inputs, num_items_in_batch))
        one_pass = super().training_step
        try:
            step.calibrate(inputs["labels"], partial(one_pass, model, inputs, num_items_in_batch))
            with step.first_pass(inputs["labels"]):
                loss = one_pass(model, inputs, num_items_in_batch)
            if not (is_local or self.accelerator.sync_gradients):
                return loss
            step.ascend()
            if step.needs_second_pass:
                for index, (held_inputs, held_count) in enumerate(self._micro_batches):
                    with step.second_pass(index):
                        one_pass(model, held_inputs, held_count)
        except BaseException:
            self._micro_batches.clear()
            raise
        self._micro_batches.clear()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and beside a training loss what the sharpness step did since the last time."""
        if self._step is not None and not self._step.is_plain and "loss" in logs:
            logs = {**logs, "rho": self._step.rho, **self._step.statistics.pop()}
        super().log(logs, start_time)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load as `from_pretrained` does: transformers saves some of its models under other names than they have in
        memory (ViT, as of 5.23), which the Trainer's own loading leaves behind as missing and unexpected keys."""
        model = self.model if model is None else model
        if not type(model).__module__.startswith("transformers."):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model.load_state_dict(type(model).from_pretrained(resume_from_checkpoint).state_dict())

    def _load_best_model(self) -> None:
        """As above, for `load_best_model_at_end`."""
        if not type(self.model).__module__.startswith("transformers."):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    # ---- details ----

    def _reduced_loss(self, outputs, labels: Tensor | None, num_items_in_batch=None) -> Tensor:
        """The Trainer's `compute_loss_func`: losses per sample, reduced as the pass under way asks for."""
        if labels is None:
            raise ValueError("A batch has no 'labels'; let the data collator keep the classes.")
        if self._losses_of is None:
            raise ValueError("Without a training set the loss needs class_counts; give them to FocalSAMTrainer.")
        losses = self._losses_of(outputs, labels)
        count = num_items_in_batch
        if count is not None and labels.ndim == 2:
            count = count / labels.shape[1]  # the Trainer counts entries, and a soft label has C of them
        if self._step is None:
            return losses.sum() / (losses.numel() if count is None else count)
        return self._step.reduce(losses, count)

    def _default_loss(self) -> Callable[[Any, Tensor], Tensor]:
        loss = make_loss(
            self.args.loss,
            self.class_counts,
            tau=self.args.logit_adjustment_tau,
            label_smoothing=self.args.label_smoothing_factor,
        )
        return lambda outputs, labels: loss(outputs["logits"] if isinstance(outputs, dict) else outputs[0], labels)

    def _make_step(self, model: nn.Module) -> SharpnessStep:
        args = self.args
        hyperparameters = {"gamma": args.focal_gamma, "lam": args.focal_lambda, "eta": args.imbsam_eta}
        return SharpnessStep(
            model,
            class_weights(args.sharpness, self.class_counts, hyperparameters),
            rho=args.rho,
            adaptive=args.adaptive_rho,
            scope=args.perturbation_scope,
        )

    def _count_classes(self, class_counts) -> np.ndarray | None:
        """Class counts as given, or counted from the training set; None where there is neither."""
        num_labels = getattr(getattr(self.model, "config", None), "num_labels", None)
        if class_counts is None:
            if self.train_dataset is None:
                return None
            labels = dataset_labels(self.train_dataset)
            num_classes = num_labels or int(labels.max()) + 1
            outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
            if outside.size:
                raise ValueError(
                    f"Row {outside[0]} of the training set has the label {labels[outside[0]]}, outside "
                    f"0..{num_classes - 1} for the model's {num_classes} classes; correct it, or set the model's "
                    "num_labels."
                )
            class_counts = np.bincount(labels, minlength=num_classes)
        class_counts = np.asarray(class_counts)
        if num_labels is not None and len(class_counts) != num_labels:
            raise ValueError(
                f"class_counts has {len(class_counts)} entries and the model {num_labels} classes; give one count a "
                "class."
            )
        if (class_counts <= 0).any():
            empty = int(np.flatnonzero(class_counts <= 0)[0])
            raise ValueError(
                f"Class {empty} has no training sample; give it some, or leave the class out of the labels."
            )
        return class_counts

    def _refuse_what_is_not_exact(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"{self.args.n_gpu} GPUs are visible to one process, which would train in nn.DataParallel; start the "
                "script with `accelerate launch`, or show it one GPU with CUDA_VISIBLE_DEVICES."
            )
        for enabled, name in ((self.is_fsdp_enabled, "FSDP"), (self.is_deepspeed_enabled, "DeepSpeed")):
            if enabled and self.args.sharpness != "none":
                raise ValueError(
                    f"{name} shards the parameters that the sharpness step perturbs, which is not supported; use "
                    "accelerate_configs/multi_gpu.yaml (plain data parallelism)."
                )


class _SetEpoch(TrainerCallback):
    """Tells the training set the epoch, also with several processes, where Accelerate tells it to the sampler only."""

    def __init__(self, dataset):
        self.dataset = dataset

    def on_epoch_begin(self, args, state, control, **kwargs):
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(int(state.epoch))
