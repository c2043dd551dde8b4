"""`FocalSAMTrainer`: the Hugging Face Trainer with a sharpness-aware training step."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

from ..averaging.ema import WeightEMACallback
from ..base.files import check_writable
from ..data.batches import RenamedLabels, finished, select_samples, without_padding
from ..data.labels import dataset_labels
from ..data.mixing import MixingCollator
from ..data.samplers import ClassSampler
from ..evaluation import LongTailMetrics, MultiLabelMetrics
from ..sharpness import (
    ClassConditionalSAM,
    Evaluation,
    GradientCheck,
    SharpnessStep,
)
from ..sharpness.evaluations import Run
from ..sharpness.step_statistics import StepStatistics
from .arguments import FocalSAMTrainingArguments
from .checks import label_counts_of, refuse_what_is_not_exact
from .epochs import SetEpoch
from .learning_rates import has_own_rates, learning_rates, split_groups
from .loss import TrainerLoss, as_targets, logits_of
from .multi_label import has_several_classes, refuse_other_kind
from .nonfinite import NonFiniteSteps, finite_loss
from .progress import ProgressLines
from .resumable import ResumableTrainer
from .sharding import choose_layers_to_shard, frozen_without_state, saved_whole, shard_without_optimizer

logger = logging.getLogger(__name__)

# In a checkpoint: what the direction of the perturbation carries from step to step.
DIRECTION_NAME = "sharpness_direction.safetensors"


class FocalSAMTrainer(ResumableTrainer):
    """Trains any model that returns logits with Focal-SAM (arXiv 2505.01660) or another method of its family.

    The model may be one of transformers, a `PeftModel`, a `LongTailClassifier`, or any `nn.Module` whose output has
    `logits`, is a tuple that begins with them, or is the logits. Labels are class indices, or, from a collator that
    mixes images, class probabilities, or rows with a 1 for each class of an image, where the model's `problem_type` is
    "multi_label_classification"; they reach the loss, not the model. Samples with the label -100 are left out.
    All Trainer features keep working: mixed precision, accumulation, clipping, schedules, resuming, reporting, and
    FSDP of version 2 with every class-wise method.

    A sharpness step needs one loss per sample. A subclass may override `compute_loss` and add a penalty on the weights
    to what `super().compute_loss(...)` returns: it is trained on, and not perturbed. A loss that is not made of the
    losses of the samples is refused in the first step.

    Beside the loss it logs `rho`, `perturbation_norm` (||epsilon||), `sharpness` (class-weighted loss at w + epsilon
    minus at w), `skipped_perturbations` (the gradient of the weighted loss was 0 or not finite) and `skipped_steps`
    (the gradient was not finite, and the weights were left as they were).

    Attributes:
        is_multi_label (`bool`): Whether images have several classes, by their labels or the config of the model.
        progress (`ProgressLines`): What it prints while it trains, in place of the Trainer's dictionaries.

    Args:
        model (`nn.Module`, *optional*): The model; or give `model_init`.
        args (`FocalSAMTrainingArguments`, *optional*): Defaults to output in "tmp_trainer".
        class_counts (sequence of `int`, shape (C,), *optional*): Training samples per class; by default counted from
            the labels of `train_dataset`.
        compute_loss_func (`Callable`, *optional*): Instead of `args.loss`: (outputs, labels) -> losses of shape (B,);
            with `sharpness="none"` it may return the mean. A third argument gets `num_items_in_batch`.
        compute_metrics (`Callable`, *optional*): Defaults to `LongTailMetrics` of the class counts, for several
            classes an image to `MultiLabelMetrics`.
        data_collator, train_dataset, eval_dataset, processing_class, model_init: As in `transformers.Trainer`.
        callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics: As there, too.

    Raises:
        TypeError: If `args` are plain `TrainingArguments`.
        ValueError: If a class has no training sample, labels are no classes, or the model is wrapped or sharded in a
            way that the step cannot be exact in. From `train`, a `LossContractError` if the loss is not made of the
            losses of the samples.
    """

    model: nn.Module
    _gradient_check: GradientCheck  # of the run under way

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
        compute_loss_func: Callable[..., Tensor] | None = None,
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
        check_writable(args.output_dir)
        args.choose_num_workers(train_dataset)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,  # type: ignore[arg-type]  # it makes any module
            compute_loss_func=self._reduced_loss,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.progress = ProgressLines()
        callbacks_of_all = self.callback_handler.callbacks
        if type(callbacks_of_all[-1]) in (ProgressCallback, PrinterCallback):  # the Trainer's, not that of notebooks
            callbacks_of_all[-1] = self.progress
        (label_name,) = args.label_names or ["labels"]
        if label_name != "labels":
            self.data_collator = RenamedLabels(self.data_collator, label_name)
            self.label_names = ["labels"]
        self._set_epoch = SetEpoch(train_dataset)
        self.add_callback(self._set_epoch)
        refuse_what_is_not_exact(self)
        if self.is_fsdp_enabled:
            choose_layers_to_shard(self.accelerator.state.fsdp_plugin, self.model)
        found = label_counts_of(self, class_counts)
        self.class_counts = None if found is None else found.counts
        self.num_samples = None if found is None else found.num_samples
        self.is_multi_label = has_several_classes(self, found)
        refuse_other_kind(args, multi_label=self.is_multi_label, own_loss=compute_loss_func is not None)
        self._makes_loss = compute_loss_func is None and self.class_counts is not None
        self._loss: TrainerLoss | None = None
        if compute_loss_func is not None:
            self._loss = TrainerLoss(compute_loss_func, multi_label=self.is_multi_label)
            args.check_loss_is_default()
        if self._makes_loss:
            self._make_loss()
        if self.class_counts is not None and self.compute_metrics is None:
            self.compute_metrics = (MultiLabelMetrics if self.is_multi_label else LongTailMetrics)(
                self.class_counts, many=args.many_shot_threshold, few=args.few_shot_threshold
            )
        if args.early_stopping_patience:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience))
        self._nonfinite_steps = NonFiniteSteps(self)
        self._trained_model: nn.Module | None = None  # with its wrappers, in the run under way or the latest one
        self._evaluation: Evaluation | ClassConditionalSAM | None = None  # None for plain training
        self._statistics = StepStatistics()
        self._resumed_from: str | None = None
        self._ema: WeightEMACallback | None = None
        if args.ema_decay is not None:
            self._ema = WeightEMACallback(args.ema_decay)
            self.add_callback(self._ema)

    @property
    def sharpness_step(self) -> SharpnessStep | None:
        """The step of the run under way, or of the latest one; None before a run, in plain training and in CC-SAM."""
        return getattr(self._evaluation, "step", None)

    # ---- what the Trainer calls ----

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device
    ) -> tuple[list, Tensor | int | None]:
        """The batches of an optimizer step, each sample once, and how many samples they are on all processes."""
        if self.args.world_size > 1:
            loader, stored = (
                self.callback_handler.train_dataloader,
                not isinstance(self.train_dataset, IterableDataset),
            )
            total = (loader.total_dataset_length, loader.total_batch_size) if stored else None
            epoch_iterator = without_padding(epoch_iterator, self.accelerator, total=total)
        epoch_iterator = (finished(batch, self.data_collator) for batch in epoch_iterator)  # once for all passes
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """All passes over one batch, or, where gradients are accumulated and the perturbation is global, the first
        pass over it and, with the last batch of the optimizer step, the second passes over all of them.

        Returns:
            `Tensor` without dimensions: L(w), detached, of this batch; in CC-SAM and in one pass, the loss that was
            differentiated.
        """
        model.train()  # before the step looks for batch normalisation that is in training mode
        if self._trained_model is not model:
            self._make_evaluation(model)
        whole_pass = super().training_step

        def whole() -> Tensor:
            return whole_pass(model, inputs, num_items_in_batch)

        def forward(rows: Tensor | None) -> None:
            batch = self._prepare_inputs(select_samples(inputs, rows))
            with self.compute_loss_context_manager():
                self.compute_loss(model, batch, num_items_in_batch=num_items_in_batch)

        if self._evaluation is None:
            return self._end_step(whole(), inputs)
        if "labels" not in inputs:
            raise ValueError(f"A batch has {sorted(inputs)} and no 'labels'; let the data collator keep the classes.")
        self._follow_schedules(self._evaluation)
        loss = self._evaluation.micro_batch(
            as_targets(inputs["labels"]),
            Run(whole, forward, takes_rows=True),
            number=self.state.global_step,
            is_last=self.accelerator.sync_gradients,
        )
        return self._end_step(loss, inputs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As the Trainer does; images that came to the device as bytes, to be evaluated, are normalised there."""
        return finished(super()._prepare_inputs(inputs), self.data_collator)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None
    ) -> Tensor | tuple[Tensor, Any]:
        """As the Trainer does, with the logits of any model among the outputs."""
        with nullcontext() if self._loss is None else self._loss.watch(self.model):
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if not return_outputs or isinstance(result[1], dict):
            return result
        return result[0], {"logits": logits_of(result[1])}

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys=None):
        """As the Trainer does, also without labels where the model returns a tuple or the logits themselves."""
        if inputs.get("labels") is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self._prepare_inputs(inputs))
        return None, None if prediction_loss_only else logits_of(outputs).detach(), None

    def get_train_dataloader(self) -> DataLoader:
        """Batches to train on, mixed if the arguments ask for it; those to evaluate on are never mixed."""
        mixing = self.args.make_mixing()
        if not mixing.is_on:
            return super().get_train_dataloader()
        if self.class_counts is None:
            raise ValueError("Mixing needs class_counts; give them to FocalSAMTrainer.")
        collate = self.data_collator
        self.data_collator = MixingCollator(collate, mixing, self.class_counts, seed=self.args.seed)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collate

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        args, train_dataset = self.args, self.train_dataset if train_dataset is None else train_dataset
        if args.train_sampler == "instance" or train_dataset is None:
            return super()._get_train_sampler(train_dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        self._set_epoch.sampler = ClassSampler(
            dataset_labels(train_dataset), args.train_sampler, seed=seed, beta=args.effective_number_beta
        )
        return self._set_epoch.sampler

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As the Trainer does, with learning rates by layer and for the head where the arguments ask for them."""
        is_given, args = self.optimizer is not None, self.args
        optimizer = super().create_optimizer(model)
        if has_own_rates(args) and not is_given:
            split_groups(optimizer, self.model, learning_rates(self.model, args), first=args.learning_rate)
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that weight decay acts on."""
        everything = [name for name, _ in model.named_parameters()]
        return everything if self.args.decay_norms_and_biases else super().get_decay_parameter_names(model)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, and beside a training loss what the sharpness step did since the last time."""
        if self._trained_model is not None and "loss" in logs:
            statistics = self._statistics.pop()
            if self._evaluation is None:
                logs = {**logs, "skipped_steps": statistics["skipped_steps"]}
            else:
                logs = {**logs, "rho": self._evaluation.rho, **statistics}
            if self.args.schedules_weights and self.sharpness_step is not None:
                logs["mean_class_weight"] = float(self.sharpness_step.class_weights.mean())
        super().log(logs, start_time)

    def _prepare_for_training(self, *args):
        """Evaluation marks the model as prepared, as it is (Accelerate 1.15): where it comes before training, several
        processes would each train a model of their own, for want of `DistributedDataParallel`."""
        if self.model_wrapped is self.model and self.model.__dict__.pop("_is_accelerate_prepared", False):
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return super()._prepare_for_training(*args)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save, beside the optimizer's state, what the direction carries from step to step."""
        super()._save_optimizer_and_scheduler(output_dir)
        direction = {} if self._evaluation is None else self._evaluation.state_dict()
        if direction and self.args.should_save:
            save_file({n: t.contiguous() for n, t in direction.items()}, Path(output_dir) / DIRECTION_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        is_whole = checkpoint is None or not self.accelerator.is_fsdp2
        with nullcontext() if is_whole else frozen_without_state(self.model, Path(str(checkpoint))):
            super()._load_optimizer_and_scheduler(checkpoint)
        self._trained_model = self._evaluation = None  # every run begins with a step of its own
        self._resumed_from = checkpoint
        if self._ema is not None:
            self._ema.resume_from = checkpoint

    def evaluation_loop(self, *args, **kwargs):
        """As the Trainer does, also before training where FSDP2 shards the model; with `ema_decay`, while training, of
        the averaged weights."""
        if self.accelerator.is_fsdp2 and not self.accelerator._models:
            self.model = self.model_wrapped = shard_without_optimizer(self.accelerator, self.model)
        with nullcontext() if self._ema is None else self._ema.applied():
            return super().evaluation_loop(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer does; one whole model also where checkpoints are sharded, where it would write nothing."""
        if not self.accelerator.is_fsdp2 or _internal_call:
            super().save_model(output_dir, _internal_call)
            if output_dir and _internal_call and self._ema is not None and self.args.should_save:  # into a checkpoint
                self._ema.save(Path(output_dir))
            return
        with saved_whole(self.accelerator.state.fsdp_plugin):
            super().save_model(output_dir)

    # ---- details ----

    def _hp_search_setup(self, trial) -> None:
        super()._hp_search_setup(trial)
        if self._makes_loss:  # by the trial's values
            self._make_loss()

    def _make_loss(self) -> None:
        head_scale = getattr(getattr(self.model, "head", None), "scale", 1.0)
        loss = self.args.make_loss(self.class_counts, head_scale=head_scale, num_samples=self.num_samples)
        self._loss = TrainerLoss(loss, multi_label=self.is_multi_label)

    def _reduced_loss(self, outputs, labels: Tensor | None, num_items_in_batch=None) -> Tensor:
        """The Trainer's `compute_loss_func`: losses per sample, reduced as the pass under way asks for."""
        if labels is None:
            raise ValueError("A batch has no 'labels'; let the data collator keep the classes.")
        if self._loss is None:
            raise ValueError("Without a training set the loss needs class_counts; give them to FocalSAMTrainer.")
        return self._loss.reduced(
            outputs, labels, progress=self._progress(), count=num_items_in_batch, evaluation=self._evaluation
        )

    def _make_evaluation(self, model: nn.Module) -> None:
        self._trained_model, self._statistics = model, StepStatistics()
        self._gradient_check = GradientCheck(model)
        reason = None if self._loss is None else self._loss.interaction
        self._evaluation = self.args.make_evaluation(model, self.class_counts, separate_reason=reason)
        if self._evaluation is None:
            return
        self._evaluation.statistics = self._statistics
        path = None if self._resumed_from is None else Path(self._resumed_from) / DIRECTION_NAME
        if path is not None and path.is_file():
            self._evaluation.load_state_dict(load_file(path))

    def _follow_schedules(self, evaluation: Evaluation | ClassConditionalSAM) -> None:
        """Take rho and the class weights of this moment of training."""
        progress = self._progress()
        evaluation.rho = self.args.rho_at(progress)
        if self.args.schedules_weights and self.sharpness_step is not None:
            self.sharpness_step.set_class_weights(self.args.class_weights_at(progress, self.class_counts))

    def _progress(self) -> float:
        """Share of training that is done, 0 to 1."""
        return min(1.0, self.state.global_step / max(1, self.state.max_steps))

    def _end_step(self, loss: Tensor, inputs: dict[str, Any]) -> Tensor:
        """After the passes over a batch: when the optimizer is about to step, see that it has something to step on."""
        if not self.accelerator.sync_gradients:
            return finite_loss(self, loss)
        # Loss scaling has to see what overflowed, to shrink.
        is_scaled = self.accelerator.scaler is not None
        if self.sharpness_step is None:
            is_skipped = self._gradient_check.drop_if_not_finite(self._statistics, drop=not is_scaled)
        else:
            is_skipped = self.sharpness_step.drop_if_not_finite(drop=not is_scaled)
        if is_skipped:
            logger.warning(
                "Step %d is skipped: its gradient is not finite%s.",
                self.state.global_step + 1,
                " at this loss scale" if is_scaled else "; the learning rate may be too high",
            )
        self._nonfinite_steps.add(not is_skipped, loss, inputs.get("labels"))
        return finite_loss(self, loss)
