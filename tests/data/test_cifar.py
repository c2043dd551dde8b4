"""CIFAR from a folder: the binary version, torchvision's checked pickles where asked for, and no other pickle."""

import hashlib
import os
import pickle

import datasets
import numpy as np
import pytest
import torchvision

from ft_focalsam.data import label_array, load_image_data
from ft_focalsam.data.cifar import read_binary_cifar


@pytest.fixture
def cifar100(shared, tmp_path):
    """(pixels, fine, coarse labels) of 40 real images, and their feature."""
    path = str(shared / "data" / "cifar100" / "test-00000-of-00001.parquet")
    part = datasets.Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache")).select(range(40))
    pixels = np.stack([np.asarray(image) for image in part["img"]])
    return pixels, label_array(part, "fine_label"), part.features["fine_label"]


def as_binary(folder, file, labels, pixels):
    rows = np.concatenate([np.stack(labels, axis=1), pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)], axis=1)
    rows.astype(np.uint8).tofile(folder / file)


def test_binary_cifar100(cifar100, tmp_path):
    pixels, fine, feature = cifar100
    folder = tmp_path / "my cifar"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("\n".join(feature.names) + "\n")
    as_binary(folder, "train.bin", [fine[:30] // 5, fine[:30]], pixels[:30])
    as_binary(folder, "test.bin", [fine[30:] // 5, fine[30:]], pixels[30:])
    data = load_image_data(str(folder))
    assert data.class_names == feature.names
    assert label_array(data.train).tolist() == fine[:30].tolist()
    assert label_array(data.test).tolist() == fine[30:].tolist()
    assert np.array_equal(np.stack([np.asarray(image) for image in data.train["image"]]), pixels[:30])


def test_binary_cifar10_from_five_files(cifar100, tmp_path):
    pixels, fine, _ = cifar100
    (tmp_path / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    for number in range(5):
        rows = slice(5 * number, 5 * number + 5)
        as_binary(tmp_path, f"data_batch_{number + 1}.bin", [fine[rows] % 10], pixels[rows])
    as_binary(tmp_path, "test_batch.bin", [fine[25:] % 10], pixels[25:])
    data = load_image_data(str(tmp_path))
    assert label_array(data.train).tolist() == (fine[:25] % 10).tolist() and len(data.test) == 15
    assert np.array_equal(np.asarray(data.train[23]["image"]), pixels[23])
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(5000))
    with pytest.raises(ValueError, match=r"data_batch_3.bin' has 5,000 bytes, which are no whole images; unpack it"):
        load_image_data(str(tmp_path))
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_3.bin' does not exist; unpack the whole archive"):
        load_image_data(str(tmp_path))


def test_a_folder_of_something_else_is_no_binary_cifar(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not hold the binary version of CIFAR; unpack the whole arch"):
        read_binary_cifar(tmp_path)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (self.folder,))


def pickled(folder, name, content) -> list[str]:
    data = pickle.dumps(content)
    (folder / name).write_bytes(data)
    return [name, hashlib.md5(data).hexdigest()]


def test_pickles_are_refused_and_the_safe_ways_named(tmp_path):
    inner = tmp_path / "cifar-100-python"
    inner.mkdir()
    for name in ("train", "test", "meta"):
        pickled(inner, name, Bomb(str(tmp_path / "boom")))
    for folder in (tmp_path, inner):
        with pytest.raises(
            ValueError, match=r"holds CIFAR as Python pickles.*--dataset torchvision:cifar100 --image_r"
        ):
            load_image_data(str(folder))
    with pytest.raises(FileNotFoundError, match=r"not hold the published files of torchvision:cifar100 .*checksum"):
        load_image_data("torchvision:cifar100", image_root=str(tmp_path))
    with pytest.raises(ValueError, match=r"'torchvision:cifar100' is read from the folder .*; set --image_root"):
        load_image_data("torchvision:cifar100")
    assert not (tmp_path / "boom").exists()


def test_torchvisions_own_folder(cifar100, tmp_path, monkeypatch):
    """Files with the checksums that torchvision knows; here it is told those of a small copy."""
    pixels, fine, feature = cifar100
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    published = torchvision.datasets.CIFAR100
    for split, rows in (("train", slice(0, 30)), ("test", slice(30, 40))):
        content = {"data": flat[rows], "fine_labels": fine[rows].tolist()}
        monkeypatch.setattr(published, f"{split}_list", [pickled(folder, split, content)])
    name, checksum = pickled(folder, "meta", {"fine_label_names": feature.names})
    monkeypatch.setattr(published, "meta", {**published.meta, "filename": name, "md5": checksum})
    data = load_image_data("torchvision:cifar100", image_root=str(tmp_path))
    assert data.class_names == feature.names
    assert label_array(data.test).tolist() == fine[30:].tolist()
    assert np.array_equal(np.asarray(data.train[7]["image"]), pixels[7])
