"""The images of `composed_digits` as files, and a list of them."""

import json
from pathlib import Path

from ft_focalsam.data.sources import DIGIT_NAMES as NAMES
from ft_focalsam.data.sources import composed_digits


def write_images(folder: Path, *, train: int = 600, test: int = 300, separator: str | None = "|") -> Path:
    """Write the first images of each split and a list of them with the column `split`; its path. With a separator it
    is a CSV file, without one JSON lines with lists."""
    folder.mkdir(parents=True, exist_ok=True)
    data, rows = composed_digits(), []
    for split, number in (("train", train), ("test", test)):
        for row, item in enumerate(data.parts[split].select(range(number))):
            name = f"{split}{row}.png"
            item["image"].save(folder / name)
            rows.append((name, [NAMES[label] for label in item["labels"]], split))
    if separator is None:
        path = folder / "images.jsonl"
        lines = [json.dumps({"path": name, "labels": classes, "split": split}) for name, classes, split in rows]
    else:
        path = folder / "images.csv"
        lines = ["path,labels,split", *(f"{name},{separator.join(classes)},{split}" for name, classes, split in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
