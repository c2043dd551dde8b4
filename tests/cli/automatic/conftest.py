"""Folders of real image files, as users have them."""

import datasets
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what `datasets` prepares out of the user's cache, and the tests off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def write_images():
    """A function (folder, number, side=40, suffix=".png") that writes noise, a file an image."""
    random = np.random.default_rng(0)

    def write(folder, number, *, side=40, suffix=".png"):
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(number):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03}{suffix}")

    return write


@pytest.fixture
def animals(tmp_path, write_images):
    """Eight classes of 300 to 2 images, and what lies about in folders that people collect images in."""
    root = tmp_path / "Meine Tiere ü"
    names = ("Luchs", "große Katze", "Ñandú", "owl", "red fox", "yak", "猫 (cat)", "zebra")
    for name, number in zip(names, (300, 120, 60, 30, 15, 8, 4, 2), strict=True):
        write_images(root / name, number)
    with Image.open(root / "owl" / "000.png") as image:
        image.convert("L").save(root / "Luchs" / "grey.JPG")
        image.convert("CMYK").save(root / "Luchs" / "cmyk.jpg")
        image.convert("RGBA").save(root / "Luchs" / "alpha.png")
        image.save(root / "beside.jpg")
    (root / "owl" / "half.jpg").write_bytes((root / "beside.jpg").read_bytes()[:500])
    (root / "owl" / "notes.txt").write_text("owl/000.png 1\n")
    (root / "owl" / "Thumbs.db").write_bytes(b"\0" * 64)
    (root / "owl" / "._000.png").write_bytes(b"\0")
    (root / ".cache").mkdir()
    (root / "to sort" / "later").mkdir(parents=True)
    return root
