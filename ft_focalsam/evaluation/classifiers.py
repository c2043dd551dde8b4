"""What an evaluation needs of a classifier beside its logits: its classes in a test set, what its run left behind."""

from pathlib import Path

import numpy as np

from ..base.parsing import parse_json


def restrict(
    logits: np.ndarray, labels: np.ndarray, *, classes: np.ndarray, keep_all: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits among the classes of a test set, and labels that count in them.

    Args:
        logits (`np.ndarray`): Of all C classes of the model, shape (N, C).
        labels (`np.ndarray`): In the test set's own numbers 0..K-1, shape (N,); or 0 and 1, of shape (N, K).
        classes (`np.ndarray`): The model's class of each of them, shape (K,), of [`match_classes`].
        keep_all (`bool`): Leave the logits of classes that the test set has not.

    Returns:
        Logits, labels, and the model's classes that the columns stand for, in the model's order.
    """
    kept = np.arange(logits.shape[1]) if keep_all else np.sort(classes)
    places = np.searchsorted(kept, classes)
    if labels.ndim == 1:
        return logits[:, kept], places[labels], kept
    placed = np.zeros((len(labels), len(kept)), dtype=labels.dtype)
    placed[:, places] = labels
    return logits[:, kept], placed, kept


def saved_counts(name: str) -> Path | None:
    """The per_class.csv beside a model, or beside the run that it is a checkpoint of; None where there is none."""
    path = run_folder(name) / "per_class.csv"
    return path if path.is_file() else None


def saved_history(name: str) -> list[dict]:
    """What was logged in the training of a model in a folder: the log history of its last trainer_state.json, which
    lies beside it or in its checkpoints; empty where there is none."""
    states = [
        *run_folder(name).glob("checkpoint-*/trainer_state.json"),
        *run_folder(name).glob("trainer_state.json"),
    ]
    contents = [parse_json(path.read_bytes()) for path in states]
    return max(contents, key=lambda state: state["global_step"])["log_history"] if contents else []


def run_folder(name: str) -> Path:
    """The folder of the run that a model belongs to: its own, or that which holds its checkpoint."""
    folder = Path(name).expanduser()
    return folder.parent if folder.name.startswith("checkpoint-") else folder
