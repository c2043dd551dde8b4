"""Which files of a folder go to the Hub: a model in safetensors, what is told about it, and nothing else."""

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..base.finding import did_you_mean
from ..models.checkpoints import PICKLES
from .card import CARD_NAME
from .run_file import RUN_NAME

# By pattern, relative to the folder; a name without * has to be just that.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "text_adapter/adapter_config.json",
    "text_adapter/*.safetensors",
)
REPORT_FILES = (
    CARD_NAME,
    RUN_NAME,
    "metrics.json",
    "per_class.csv",
    "accuracy_by_frequency.png",
    "average_precision_by_frequency.png",
    "report.html",
    "report.md",
    "report_images/*.png",
    "report_images/*.jpg",
)
# Of the Trainer, not of the model: they may hold pickles, and the optimizer's state or the token.
TRAINER_FILES = (
    "training_args.bin",
    "optimizer.*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "sharpness_direction.safetensors",
)


def files_to_push(folder: str | os.PathLike, *, patterns: tuple[str, ...] = MODEL_FILES + REPORT_FILES) -> list[str]:
    """The files of a saved model that may be published, by their path in the folder.

    Args:
        folder (`str` or path): What `save_pretrained` or `recipes/finetune.py` wrote.
        patterns (`tuple[str]`): Which of them to look for.

    Raises:
        FileNotFoundError: If there is no such folder or no weights in it.
        ValueError: If weights are pickled, or a file that says it is safetensors is not.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"The folder '{folder}' does not exist; give one that recipes/finetune.py wrote.{did_you_mean(folder)}"
        )
    pickled = pickled_weights(folder)
    if pickled:
        raise ValueError(
            f"'{folder / pickled[0]}' is a pickle, which runs code where it is loaded; save the model again by its "
            "save_pretrained, which writes safetensors, and remove the file."
        )
    found = [name for name in _names(folder) if any(_fits(name, pattern) for pattern in patterns)]
    weights = [name for name in found if name.endswith(".safetensors")]
    if not weights:
        raise FileNotFoundError(f"'{folder}' has no *.safetensors; give a folder that save_pretrained wrote.")
    for name in weights:
        try:
            with safe_open(folder / name, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"'{folder / name}' is not in the format safetensors; save the model again.") from error
    return found


def pickled_weights(folder: Path) -> list[str]:
    """Pickles beside a model, or its weights in that format; what the Trainer keeps for itself does not count."""
    return [name for name in _names(folder) if is_pickled_weights(name)]


def is_pickled_weights(name: str) -> bool:
    """Whether a name is that of weights in a pickle, and not of a file of the Trainer."""
    return name.endswith(PICKLES) and not any(fnmatch(name, pattern) for pattern in TRAINER_FILES)


def check_holds_no_token(folder: Path, names: list[str], token: str) -> None:
    """Raise a `ValueError` where one of the text files has the token in it."""
    for name in names:
        if not name.endswith((".safetensors", ".png", ".jpg")) and token.encode() in (folder / name).read_bytes():
            raise ValueError(f"'{folder / name}' holds your token of the Hub; take it out of there.")


def _names(folder: Path) -> Iterator[str]:
    """Files of a folder and of the folders that belong to a model in it, not of the Trainer's checkpoints."""
    for place in ("", "text_adapter", "report_images"):
        for path in sorted((folder / place).glob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _fits(name: str, pattern: str) -> bool:
    if any(fnmatch(name, own) for own in TRAINER_FILES):
        return False
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)
