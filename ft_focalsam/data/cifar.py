"""CIFAR-10 and CIFAR-100 from a folder on disk: the binary version, or torchvision's folder where it is asked for."""

from pathlib import Path

import datasets
import numpy as np
import torchvision

from .list_files import from_pixels, read_prompt_names

PIXELS = 3 * 32 * 32
# folder -> (label bytes an image, file of the class names, training files, test file)
BINARY_VERSIONS = {
    "cifar-10-batches-bin": (1, "batches.meta.txt", [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin"),
    "cifar-100-binary": (2, "fine_label_names.txt", ["train.bin"], "test.bin"),
}
PICKLED_VERSIONS = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
TORCHVISION = {"torchvision:cifar10": "CIFAR10", "torchvision:cifar100": "CIFAR100"}


def binary_cifar_version(folder: Path) -> tuple[int, str, list[str], str] | None:
    """Which binary version a folder holds, whatever its own name; None for another data set."""
    versions = BINARY_VERSIONS.values()
    return next((v for v in versions if (folder / v[1]).is_file() and (folder / v[3]).is_file()), None)


def read_binary_cifar(folder: Path) -> datasets.DatasetDict:
    """The splits of the binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, unpacked).

    Raises:
        FileNotFoundError: If one of its files is missing.
        ValueError: If a file is cut off.
    """
    version = binary_cifar_version(folder)
    if version is None:
        raise FileNotFoundError(f"'{folder}' does not hold the binary version of CIFAR; unpack the whole archive.")
    label_bytes, names_file, train_files, test_file = version
    classes = datasets.ClassLabel(names=read_prompt_names(str(folder / names_file)))
    splits = datasets.DatasetDict()
    for split, files in (("train", train_files), ("test", [test_file])):
        rows = np.concatenate([_records(folder / file, label_bytes) for file in files])
        pixels = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        splits[split] = from_pixels(np.ascontiguousarray(pixels), rows[:, label_bytes - 1], classes)
    return splits


def refuse_pickled_cifar(folder: Path) -> None:
    """Point to the safe ways where a folder holds the Python version, whose files run code when they are unpickled.

    Raises:
        ValueError: If it does.
    """
    for inner, name in PICKLED_VERSIONS.items():
        if folder.name == inner or (folder / inner).is_dir():
            root = folder.parent if folder.name == inner else folder
            raise ValueError(
                f"'{folder}' holds CIFAR as Python pickles, which can run code when they are read; use "
                f"--dataset uoft-cs/{name}, the binary version, or --dataset torchvision:{name} --image_root {root}, "
                f"which unpickles files of the published checksums only."
            )


def read_torchvision_cifar(name: str, root: Path) -> datasets.DatasetDict:
    """The splits of torchvision's folder, which torchvision compares with the published MD5 sums before it reads it.

    Args:
        name (`str`): A key of `TORCHVISION`.
        root (`Path`): The `root` of `torchvision.datasets.CIFAR10`, which holds cifar-10-batches-py. Nothing is
            downloaded.

    Raises:
        FileNotFoundError: If the folder is missing, or a file is not the published one.
    """
    splits = datasets.DatasetDict()
    for split in ("train", "test"):
        try:
            stored = getattr(torchvision.datasets, TORCHVISION[name])(root, train=split == "train", download=False)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"'{root}' does not hold the published files of {name} (some are missing or have another checksum); "
                f"set --image_root to the folder that torchvision downloaded to."
            ) from error
        splits[split] = from_pixels(stored.data, np.asarray(stored.targets), datasets.ClassLabel(names=stored.classes))
    return splits


def _records(file: Path, label_bytes: int) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(f"'{file}' does not exist; unpack the whole archive.")
    content = np.fromfile(file, dtype=np.uint8)
    if content.size == 0 or content.size % (label_bytes + PIXELS):
        raise ValueError(f"'{file}' has {content.size:,} bytes, which are no whole images; unpack it again.")
    return content.reshape(-1, label_bytes + PIXELS)
