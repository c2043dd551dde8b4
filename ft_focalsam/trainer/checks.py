"""What a `FocalSAMTrainer` checks before it trains: its model, its training set and the samples of each class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import datasets
import numpy as np
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.utils.data import IterableDataset

from ..data.labels import LABEL_KEYS, LabelCounts, count_labels
from ..sharpness.class_conditional import CC_SAM
from .learning_rates import has_own_rates, learning_rates
from .multi_label import has_several_classes, problem_type_of

if TYPE_CHECKING:
    from .trainer import FocalSAMTrainer


def label_counts_of(trainer: "FocalSAMTrainer", given: Sequence[int] | Tensor | None) -> LabelCounts | None:
    """Class counts as given, or counted from the training set; None where there is neither.

    Raises:
        ValueError: If they do not fit the model, a class has no sample, or labels are no classes.
    """
    num_labels = getattr(getattr(trainer.model, "config", None), "num_labels", None)
    if given is not None:
        found = _given_counts(trainer, np.asarray(given))
    elif trainer.train_dataset is None:
        return None
    else:
        keys = tuple(dict.fromkeys([*(trainer.args.label_names or ()), *LABEL_KEYS]))
        found = count_labels(trainer.train_dataset, num_classes=num_labels, keys=keys)
    counts = found.counts
    if num_labels is not None and len(counts) != num_labels:
        raise ValueError(
            f"class_counts has {len(counts)} entries and the model {num_labels} classes; give one count a class."
        )
    if (counts <= 0).any():
        empty = int(np.flatnonzero(counts <= 0)[0])
        raise ValueError(f"Class {empty} has no training sample; give it some, or leave the class out of the labels.")
    return found


def _given_counts(trainer: "FocalSAMTrainer", counts: np.ndarray) -> LabelCounts:
    """Counts that were given: the config of the model says whether images have several classes, and then their number
    is the length of the training set, where it has one."""
    if not has_several_classes(trainer, None):
        return LabelCounts(counts, int(counts.sum()), is_multi_label=False)
    dataset = trainer.train_dataset
    number = len(dataset) if dataset is not None and hasattr(dataset, "__len__") else int(counts.sum())
    return LabelCounts(counts, number, is_multi_label=True)


def refuse_what_is_not_exact(trainer: "FocalSAMTrainer") -> None:
    """Raise a `ValueError` for a model, a training set or a way to share the work that the step cannot be exact in."""
    args, dataset = trainer.args, trainer.train_dataset
    problem_type_of(trainer)
    if args.train_sampler != "instance" and isinstance(dataset, IterableDataset):
        raise ValueError(
            f"train_sampler is {args.train_sampler!r} and the training set a stream, whose images cannot be drawn by "
            "class; set train_sampler to 'instance'."
        )
    _refuse_raw_images(trainer)
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process, which would train in nn.DataParallel; start the script "
            "with `accelerate launch`, or show it one GPU with CUDA_VISIBLE_DEVICES."
        )
    if args.ema_decay is not None and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            f"ema_decay is {args.ema_decay:g}, and each process holds a part of the weights to average; use "
            "accelerate_configs/multi_gpu.yaml (plain data parallelism), or leave ema_decay out."
        )
    _check_learning_rates(trainer)
    if args.sharpness != "none":
        _refuse_sharding(trainer)


def _check_learning_rates(trainer: "FocalSAMTrainer") -> None:
    """Raise a `ValueError` where learning rates by layer would come to nothing, or the model has no layers to tell."""
    args = trainer.args
    if not has_own_rates(args) or trainer.model is None:
        return
    key = "layer_decay" if args.layer_decay != 1 else "head_learning_rate"
    told = f"{key} is {getattr(args, key):g}, and"
    if trainer.optimizer is not None:
        raise ValueError(f"{told} FocalSAMTrainer was given an optimizer; set its learning rates there, or leave one.")
    is_fsdp1 = trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version != 2
    if trainer.is_deepspeed_enabled or is_fsdp1:
        raise ValueError(
            f"{told} {'FSDP of version 1' if is_fsdp1 else 'DeepSpeed'} steps on parameters that have lost their "
            "names; use accelerate_configs/multi_gpu.yaml or fsdp2.yaml, or leave it out."
        )
    learning_rates(trainer.model, args)


def _refuse_sharding(trainer: "FocalSAMTrainer") -> None:
    """FSDP2 leaves the gradient of each backward pass in `p.grad`. Other ways to shard do not, and some methods need
    more than that."""
    args = trainer.args
    if trainer.is_deepspeed_enabled:
        raise ValueError(
            "DeepSpeed reduces gradients into buffers of its own in the backward pass, where those at w and at "
            "w + epsilon cannot be taken apart; use accelerate_configs/multi_gpu.yaml or fsdp2.yaml, or set sharpness "
            "to 'none'."
        )
    if not trainer.is_fsdp_enabled:
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP of version 1 flattens the parameters that the sharpness step perturbs one by one; set fsdp_version "
            "to 2, as in accelerate_configs/fsdp2.yaml."
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError(
            "fsdp_offload_params keeps parameters on the CPU, where the sharpness step cannot weigh losses that are "
            "on the GPU; set it to false."
        )
    unsharded = "use accelerate_configs/multi_gpu.yaml (plain data parallelism)"
    if args.sharpness == CC_SAM:
        raise ValueError(
            f"cc_sam runs the classifier head by itself, of which FSDP leaves a part on each process; {unsharded}, or "
            "another sharpness."
        )
    if args.perturbation_scope == "local":
        raise ValueError(
            "perturbation_scope is 'local', and under FSDP no process has a whole gradient of its own; set it to "
            f"'global', or {unsharded}."
        )
    for name, value in (("perturb", "trained"), ("ascent", "gradient"), ("evaluation", "two_point")):
        if getattr(args, name) != value:
            raise ValueError(
                f"{name} is {getattr(args, name)!r}, and FSDP leaves a part of what that needs on each process; set "
                f"it to {value!r}, or {unsharded}."
            )


def _refuse_raw_images(trainer: "FocalSAMTrainer") -> None:
    """A data set of the Hub gives PIL images until it has a transform, and the usual collator makes no tensors."""
    dataset = trainer.train_dataset
    is_usual = getattr(trainer.data_collator, "__module__", "").startswith("transformers.")
    if not (isinstance(dataset, datasets.Dataset) and is_usual) or dataset.format["type"] == "custom":
        return
    raw = [name for name, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    if raw:
        raise ValueError(
            f"The column '{raw[0]}' of the training set holds images that no transform makes tensors of; give it one "
            "that returns pixel_values and labels (dataset.with_transform), or a data_collator."
        )
