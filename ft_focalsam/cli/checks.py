"""What a run is refused for before it takes its time."""

from pathlib import Path

from transformers.trainer_utils import SaveStrategy

from ..base.errors import first_fault, unknown
from ..data import DataArguments
from ..evaluation import METRICS, MULTI_LABEL_METRICS
from ..hub import read_run
from ..hub.run_file import RUN_NAME
from ..losses import is_multi_label
from ..trainer import FocalSAMTrainingArguments
from ..trainer.checkpointing import checkpoints
from ..trainer.run_settings import describe_differences, differences, settings_of
from ..tuning import check_keeps_backbone
from .arguments import ModelArguments

CHOOSING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # they follow what is evaluated


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
    metric, known = (
        (args.metric_for_best_model or "loss").removeprefix("eval_"),
        ("loss", *(MULTI_LABEL_METRICS if is_multi_label(args.loss) else METRICS)),
    )
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


def refuse_several_classes(args: FocalSAMTrainingArguments, what: str) -> None:
    """Raise a `ValueError` where the loss is one for several classes an image.

    Args:
        args (`FocalSAMTrainingArguments`): Of a run.
        what (`str`): What is for one class an image, and what to do instead.
    """
    if is_multi_label(args.loss):
        raise ValueError(f"loss is {args.loss!r}, for several classes an image, and {what}.")


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
