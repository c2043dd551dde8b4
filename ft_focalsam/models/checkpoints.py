"""Folders of saved models: where they are, and how tensors get into them."""

import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import save_file
from torch import Tensor


def find_folder(folder: str | os.PathLike, *, revision: str | None = None) -> Path:
    """A local folder, or the download of a Hub repository.

    Raises:
        FileNotFoundError: If it is neither.
    """
    path = Path(folder).expanduser()
    if path.exists():
        return path
    try:
        return Path(snapshot_download(str(folder), revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (HFValidationError, OSError) as error:
        raise FileNotFoundError(
            f"The classifier '{folder}' is neither a local folder nor to be had from the Hub; check the path, or the "
            "name and the network."
        ) from error


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors by name, from any device, to a safetensors file."""
    contiguous: dict[str, Tensor] = {}
    places = set()  # in memory, as safetensors takes no two tensors in the same
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        contiguous[name] = value.clone() if value.data_ptr() in places else value
        places.add(value.data_ptr())
    save_file(contiguous, path, metadata={"format": "pt"})
