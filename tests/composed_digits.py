"""Images of several handwritten digits each, long-tailed, as files and a list."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SIDE, MOST = 24, 3  # pixels; digits an image
PLACES = [(0, 0), (0, 12), (12, 0), (12, 12)]


def draw_sets(count: int, *, decay: float, rng: np.random.Generator) -> list[list[int]]:
    """Classes of each image, one to three; the chance to draw class k falls by `decay` from class to class."""
    chances = decay ** np.arange(len(NAMES))
    sizes = rng.integers(1, MOST + 1, count)
    return [sorted(rng.choice(len(NAMES), size, replace=False, p=chances / chances.sum()).tolist()) for size in sizes]


def write_images(
    folder: Path, *, train: int = 600, test: int = 300, decay: float = 0.65, separator: str | None = "|"
) -> Path:
    """Write the images and a list of them with the column `split`; its path. Digits of test images are of other
    writers. With a separator it is a CSV file, without one JSON lines with lists."""
    digits, rng = load_digits(), np.random.default_rng(0)
    is_train = rng.permutation(len(digits.target)) < 1200
    rows = []
    for split, count, fall, mask in (("train", train, decay, is_train), ("test", test, 1.0, ~is_train)):
        for number, classes in enumerate(draw_sets(count, decay=fall, rng=rng)):
            canvas = np.zeros((SIDE, SIDE))
            for (top, left), label in zip(rng.permutation(PLACES), classes, strict=False):
                source = rng.choice(np.flatnonzero(mask & (digits.target == label)))
                canvas[top + 2 : top + 10, left + 2 : left + 10] = digits.images[source]
            name = f"{split}{number}.png"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rint(canvas * (255 / 16)).astype(np.uint8)).save(folder / name)
            rows.append((name, [NAMES[label] for label in classes], split))
    if separator is None:
        path = folder / "images.jsonl"
        lines = [json.dumps({"path": name, "labels": classes, "split": split}) for name, classes, split in rows]
    else:
        path = folder / "images.csv"
        lines = ["path,labels,split", *(f"{name},{separator.join(classes)},{split}" for name, classes, split in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
