"""Folders of saved models: where they are, and how tensors get into them."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from ..base.errors import one_line, printable
from ..base.finding import check_repository

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


def find_folder(folder: str | os.PathLike, *, revision: str | None = None) -> Path:
    """A local folder, or the download of the JSON and safetensors files of a Hub repository.

    Raises:
        FileNotFoundError: If it is neither; says whether the name, the revision or the network is at fault.
    """
    path = Path(folder).expanduser()
    if path.exists():
        return path
    check_repository("The classifier", str(folder))
    try:
        return Path(snapshot_download(str(folder), revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"The repository '{folder}' has no revision '{revision}'; give a branch, a tag or a commit that it has."
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"The classifier '{folder}' could not be fetched from the Hub ({one_line(error)}); check the network."
        ) from error


def list_names(folder: str | os.PathLike, *, revision: str | None = None) -> list[str]:
    """All files of a local folder, or of a Hub repository, by their path there."""
    path = Path(folder).expanduser()
    if path.exists():
        return [file.relative_to(path).as_posix() for file in path.glob("*")]
    try:
        return HfApi().list_repo_files(str(folder), revision=revision)
    except (HTTPError, OSError):  # gone offline since
        return []


def check_has_weights(path: Path, *, source: str | os.PathLike, revision: str | None = None) -> None:
    """Raise a `FileNotFoundError`, with the remedy, where a folder lacks the two files of a saved classifier.

    Args:
        path (`Path`): Where the files are on this machine.
        source (`str` or path): What the user gave: a folder, or a repository with its `revision`.
    """
    for name in ("config.json", SAFE_WEIGHTS_NAME):
        if not (path / name).is_file():
            refuse_pickles(source, revision=revision)
            raise FileNotFoundError(f"'{source}' has no {name}; give a folder that save_pretrained wrote.")


def refuse_pickles(source: str | os.PathLike, *, revision: str | None = None) -> None:
    """Raise a `FileNotFoundError`, with the remedy, where weights that are missing are there as a pickle."""
    pickles = [name for name in list_names(source, revision=revision) if name.endswith(PICKLES)]
    if pickles:
        raise FileNotFoundError(
            f"'{source}' has its weights as a pickle ({pickles[0]}), which runs code where it is loaded and is not "
            f"read; have them saved as safetensors ({SAFE_WEIGHTS_NAME}), by save_pretrained."
        )


def load_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Args:
        path (`Path`): Of the file.
        expected (mapping): What they are for, by name; those that are not in it are for floating-point weights.

    Raises:
        ValueError: If one is of another kind, such as complex numbers for floating-point weights, or has entries that
            are no finite numbers.
    """
    tensors = load_file(path)
    for name, value in tensors.items():
        own = expected[name].dtype if name in expected else torch.float32
        fits = value.dtype in FLOATS if own.is_floating_point else value.dtype == own
        if not fits or not torch.isfinite(value).all():
            what = "has entries that are no finite numbers" if fits else f"holds {value.dtype}, not {own}"
            raise ValueError(
                f"The tensor '{printable(name)}' in '{path}' {what}".replace("torch.", "")
                + "; train the classifier anew, or copy it again."
            )
    return tensors


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors by name, from any device, to a safetensors file."""
    contiguous: dict[str, Tensor] = {}
    places = set()  # in memory, as safetensors takes no two tensors in the same
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        contiguous[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    save_file(contiguous, path, metadata={"format": "pt"})
