"""What the Trainer's own arguments are checked for before anything is loaded; the Trainer notices it later, or not."""

import inspect
from collections.abc import Iterable
from importlib.util import find_spec

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import OptimizerNames

from ...base.errors import one_line, unknown
from ...base.ranges import SEED, Range, check_numbers

POSITIVE = Range(0, open_low=True)
SHARE = Range(0, 1, open_high=True)
# Of numbers that transformers declares; those of FocalSAMTrainingArguments stand beside their fields.
TRAINER_RANGES = {
    "per_device_train_batch_size": Range(1),
    "per_device_eval_batch_size": Range(1),
    "gradient_accumulation_steps": Range(1),
    "num_train_epochs": Range(0, open_low=True, otherwise=", or tuning to zero_shot to train nothing"),
    "max_steps": Range(1, otherwise=", or to -1 to train for num_train_epochs"),
    "learning_rate": Range(0),
    "warmup_steps": Range(0, otherwise=" steps, or to a share of all steps below 1"),
    "weight_decay": Range(0),
    "adam_beta1": SHARE,
    "adam_beta2": SHARE,
    "adam_epsilon": Range(0),
    "max_grad_norm": Range(0, otherwise=", where 0 clips nothing"),
    "label_smoothing_factor": Range(0, 1),
    "neftune_noise_alpha": Range(0),
    "torch_empty_cache_steps": Range(1),
    "eval_delay": Range(0),
    "eval_accumulation_steps": Range(1),
    "save_total_limit": Range(1),
    "seed": SEED,
    "data_seed": SEED,
    "dataloader_prefetch_factor": Range(1),
    "ddp_bucket_cap_mb": Range(1),
    "ddp_timeout": Range(1),
}
# Which package a value of report_to needs, where it is not called like it.
REPORT_PACKAGES = {"azure_ml": "azureml.core", "flyte": "flytekit"}
# Optimizers that are built from nothing but parameters; the others need packages or the model.
PLAIN_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")


def check_allowed(args: TrainingArguments, **allowed: Iterable[str]) -> None:
    """See that each of these arguments is one of its choices.

    Raises:
        ValueError: If one is not.
    """
    for name, choices in allowed.items():
        if getattr(args, name) not in list(choices):
            raise ValueError(f"{name} is {getattr(args, name)!r}; choose one of {', '.join(choices)}.")


def check_trainer_numbers(args: TrainingArguments) -> None:
    """See that all numbers are in their ranges, before the Trainer's own `__post_init__`.

    Raises:
        ValueError: If one is not.
    """
    by_steps = [name for name in ("logging", "eval", "save") if getattr(args, f"{name}_strategy") == "steps"]
    intervals = {f"{n}_steps": Range(0, open_low=True, otherwise=f", or set {n}_strategy to no") for n in by_steps}
    check_numbers(args, TRAINER_RANGES | intervals)
    if 0 < args.max_steps < args.warmup_steps:
        raise ValueError(
            f"warmup_steps is {args.warmup_steps:g} and max_steps {args.max_steps}, so that the learning rate would "
            "never be reached; set warmup_steps to fewer, or to a share of all steps below 1."
        )


def check_report_to(args: TrainingArguments) -> None:
    """See that each tracker of `report_to`, a list by now, is known and installed.

    Raises:
        ValueError: If one is not.
    """
    for name in args.report_to or ():
        if name not in list(INTEGRATION_TO_CALLBACK):
            raise ValueError(unknown("report_to", str(name), [*INTEGRATION_TO_CALLBACK, "none", "all"]))
        package = REPORT_PACKAGES.get(name, name)
        variants = (package, "tensorboardX") if name == "tensorboard" else (package,)
        if name != "kubeflow" and not any(_is_installed(variant) for variant in variants):
            raise ValueError(
                f"report_to is '{name}', and its package is not installed; run pip install "
                f"{package.replace('.', '-')}, or set report_to to none."
            )


def check_optimizer(args: TrainingArguments) -> None:
    """See that optimizer and schedule can be built, by building them for one number.

    Raises:
        ValueError: If a package is missing, or they do not take what they are given.
    """
    from transformers import Trainer  # not before it is needed: it imports much

    parameters, name = [torch.nn.Parameter(torch.zeros(1))], OptimizerNames(args.optim).value
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, torch.nn.Linear(1, 1))  # type: ignore[arg-type]  # a module will do
        if name in PLAIN_OPTIMIZERS:
            kind(parameters, **options)
            if name == "sgd":  # the others read no optim_args, and may find those of an inherited file
                _check_names(args.optim_args, kind)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"optim is '{name}', which cannot be built here: {one_line(error)}.") from error
    except (ValueError, TypeError, KeyError) as error:
        if name in PLAIN_OPTIMIZERS:
            raise ValueError(
                f"optim is '{name}' and optim_args {args.optim_args!r}, which do not fit ({one_line(error)}); write "
                "optim_args as key=value,key=value, with what that optimizer takes, or leave it out."
            ) from error
    try:
        get_scheduler(
            args.lr_scheduler_type,
            torch.optim.SGD(parameters, lr=args.learning_rate),
            num_warmup_steps=0,
            num_training_steps=1,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,  # type: ignore[arg-type]  # no string any more
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"lr_scheduler_type is '{SchedulerType(args.lr_scheduler_type).value}' and lr_scheduler_kwargs "
            f"{args.lr_scheduler_kwargs!r}, which do not fit ({one_line(error)}); set lr_scheduler_kwargs to a "
            "mapping of what that schedule takes."
        ) from error


def _check_names(optim_args: str | None, kind: type) -> None:
    """Refuse names that the optimizer does not take, which the Trainer leaves out without a word."""
    known = inspect.signature(kind).parameters
    for part in optim_args.replace(" ", "").split(",") if optim_args else ():
        if part.partition("=")[0] not in known:
            raise ValueError(f"it takes no {part.partition('=')[0]}")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # what holds it is missing
        return False
