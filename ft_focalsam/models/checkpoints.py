"""Folders of saved models: where they are, and how tensors get into them."""

import os
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HTTPError, RevisionNotFoundError
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from ..errors import one_line
from ..finding import check_repository

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


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors by name, from any device, to a safetensors file."""
    contiguous: dict[str, Tensor] = {}
    places = set()  # in memory, as safetensors takes no two tensors in the same
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        contiguous[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    save_file(contiguous, path, metadata={"format": "pt"})
