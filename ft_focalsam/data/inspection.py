"""What is wrong with a data set, or worth knowing, before a model is trained on it."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .columns import label_array
from .image_data import ImageData
from .long_tail import class_counts, describe_groups
from .scan import ImageFacts, scan_images

EXTREME_RATIO = 5  # longer to shorter side of an image
EXTREME_SIZE = 8  # an image's shorter side to the median of its split, or the other way round
_LISTED = 5


@dataclass(frozen=True)
class Inspection:
    """Class counts and findings of a data set.

    Args:
        class_names (`list[str]`): In index order.
        train_counts, test_counts (`np.ndarray`): Images of each class, shape (C,), broken ones included; those put
            aside for validation are in neither.
        validation_counts (`np.ndarray`, *optional*): The same of those.
        broken, duplicates (`np.ndarray`): Images of each class in all splits that cannot be read, and that have the
            pixels of another one, shape (C,).
        smallest_sides (`np.ndarray`): Shorter side in pixels of the smallest image of each class, 0 where none can be
            read, shape (C,).
        num_train, num_test (`int`): Images; where these have several classes, less than the sum of the counts.
        findings (`dict[str, list[str]]`): Heading -> one line a case; a heading without cases is not there.
        sizes (`dict[str, str]`): Split -> what its images measure.
    """

    class_names: list[str]
    train_counts: np.ndarray
    test_counts: np.ndarray
    validation_counts: np.ndarray | None
    broken: np.ndarray
    duplicates: np.ndarray
    smallest_sides: np.ndarray
    num_train: int
    num_test: int
    findings: dict[str, list[str]]
    sizes: dict[str, str]

    def summary(self, *, many: int = 100, few: int = 20) -> str:
        """All of it as text; of each finding the first cases."""
        counts = self.train_counts
        least = int(counts.min())
        ratio = f"{counts.max() / least:.1f}" if least else "without bound"
        lines = [
            f"{self.num_train:,} training images of {len(counts):,} classes, {counts.max():,} to {least:,} a class "
            f"(imbalance {ratio}); {self.num_test:,} test images",
            "",
            describe_groups(
                counts, many=many, few=few, counted="images" if counts.sum() == self.num_train else "labels"
            ),
            "",
            self.class_table(),
            "",
            *(f"{split} images: {text}" for split, text in self.sizes.items()),
        ]
        for heading, cases in self.findings.items():
            lines += ["", f"{heading}: {len(cases):,}", *(f"  {case}" for case in cases[:_LISTED])]
            if len(cases) > _LISTED:
                lines.append(f"  and {len(cases) - _LISTED:,} more")
        return "\n".join([*lines, "", "Nothing found that needs attention." if not self.findings else ""]).rstrip()

    def class_table(self, *, most: int = 100) -> str:
        """A row per class, the most frequent first: images by split, broken ones, duplicates, the smallest side.

        Args:
            most (`int`, defaults to 100): Rows; of more classes, the most frequent and the rarest half of them.
        """
        columns = {"training": self.train_counts}
        if self.validation_counts is not None:
            columns["validation"] = self.validation_counts
        columns |= {"test": self.test_counts, "broken": self.broken, "duplicates": self.duplicates}
        columns["smallest side"] = self.smallest_sides
        order = np.argsort(-self.train_counts, kind="stable")
        left_out = max(0, len(order) - most)
        shown = np.concatenate([order[: most - most // 2], order[len(order) - most // 2 :]]) if left_out else order
        width = min(40, max(len("class"), *(len(self.class_names[i]) for i in shown)))
        rows = ["  ".join([f"{'class':<{width}}", *columns])]
        for index in shown:
            name = self.class_names[index]
            name = name if len(name) <= width else name[: width - 3] + "..."
            cells = (f"{values[index]:>{len(heading)},}" for heading, values in columns.items())
            rows.append("  ".join([f"{name:<{width}}", *cells]))
        if left_out:
            rows.insert(1 + most - most // 2, f"... {left_out:,} classes ...")
        return "\n".join(rows)

    def record(self) -> dict[str, Any]:
        """All of it, with every case, as JSON takes it."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values}


def inspect_images(data: ImageData, *, num_workers: int | None = None) -> Inspection:
    """Decode every image once and compare them.

    Args:
        data (`ImageData`): Training, test and, where there are some, validation images.
        num_workers (`int`, *optional*): Processes; by default up to 8, for a large data set.
    """
    splits = {"training" if split == "train" else split: part for split, part in data.parts.items()}
    facts = {n: scan_images(d, num_workers=num_workers, desc=f"Reading the {n} images") for n, d in splits.items()}
    labels = {name: label_array(dataset) for name, dataset in splits.items()}
    counts = {name: class_counts(labels[name], data.num_classes) for name in splits}
    names = [data.class_names[i] for i in range(data.num_classes)]
    findings: dict[str, list[str]] = {}
    for split, images in facts.items():
        findings[f"Broken {split} images"] = [image.error for image in images if image.error is not None]
    for split, few in (("training", 1), ("test", 0)):
        for number in range(few + 1):
            heading = f"Classes with {'no' if number == 0 else 'a single'} {split} image"
            findings[heading] = [names[i] for i in np.flatnonzero(counts[split] == number)]
    findings |= _duplicates(facts, labels, names)
    for split, images in facts.items():
        findings[f"{split.capitalize()} images of extreme size"] = list(_extremes(images))
    images, classes = [image for each in facts.values() for image in each], np.concatenate(list(labels.values()))
    copies = Counter(image.pixels for image in images if image.pixels)
    return Inspection(
        class_names=names,
        train_counts=counts["training"],
        test_counts=counts["test"],
        validation_counts=counts.get("validation"),
        broken=class_counts(classes[[image.error is not None for image in images]], data.num_classes),
        duplicates=class_counts(classes[[copies[image.pixels] > 1 for image in images]], data.num_classes),
        smallest_sides=_smallest_sides(images, classes, data.num_classes),
        num_train=len(data.train),
        num_test=len(data.test),
        findings={heading: cases for heading, cases in findings.items() if cases},
        sizes={split.capitalize(): _sizes(images) for split, images in facts.items()},
    )


def _duplicates(
    facts: dict[str, list[ImageFacts]], labels: dict[str, np.ndarray], names: list[str]
) -> dict[str, list[str]]:
    """The same pixels twice, within and between splits; between splits also images that look the same."""
    train = facts["training"]

    def told(split: str, row: int) -> str:
        classes = ", ".join(names[index] for index in _classes_of(labels[split][row])) or "no class"
        return f"{split} image {facts[split][row].name} ({classes})"

    same = _rows_by(train, "pixels")
    twice: list[str] = []
    conflicting: list[str] = []
    found: dict[str, list[str]] = {}
    alike = _rows_by(train, "gradient")
    for split in [split for split in facts if split != "training"]:
        between, near = [], []
        for row, image in enumerate(facts[split]):
            for other in same.get(image.pixels, []):
                between.append(f"{told(split, row)} is the same as {told('training', other)}")
            looks = [other for other in alike.get(image.gradient, []) if train[other].pixels != image.pixels]
            near += [f"{told(split, row)} looks like {told('training', other)}" for other in looks]
        found[f"{split.capitalize()} images that are also training images"] = between
        found[f"{split.capitalize()} images that look like training images"] = near
    for rows in same.values():
        for other in rows[1:]:
            is_conflict = not np.array_equal(labels["training"][rows[0]], labels["training"][other])
            case = f"{told('training', other)} is the same as {told('training', rows[0])}"
            (conflicting if is_conflict else twice).append(case)
    return found | {
        "Training images of several classes": conflicting,
        "Training images that are there twice": twice,
    }


def _classes_of(label: np.ndarray) -> np.ndarray:
    """The classes of an image, by its class or a row of 0 and 1."""
    return np.atleast_1d(label) if np.ndim(label) == 0 else np.flatnonzero(label)


def _rows_by(images: list[ImageFacts], field: str) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, image in enumerate(images):
        if getattr(image, field):
            rows[getattr(image, field)].append(row)
    return rows


def _shortest_sides(images: list[ImageFacts]) -> np.ndarray:
    return np.array([min(image.height, image.width) for image in images if image.error is None])


def _smallest_sides(images: list[ImageFacts], classes: np.ndarray, num_classes: int) -> np.ndarray:
    smallest = np.zeros(num_classes, dtype=np.int64)
    for label, image in zip(classes, images, strict=True):
        for index in _classes_of(label) if image.error is None else ():
            side = min(image.height, image.width)
            smallest[index] = min(smallest[index] or side, side)
    return smallest


def _sizes(images: list[ImageFacts]) -> str:
    sides = _shortest_sides(images)
    if not sides.size:
        return "none can be read"
    formats = Counter(f"{image.format or 'no file'} {image.mode}" for image in images if image.error is None)
    listed = ", ".join(f"{number:,} {name}" for name, number in sorted(formats.items(), key=lambda item: -item[1]))
    return f"shorter side {sides.min():,} to {sides.max():,} pixels, median {int(np.median(sides)):,}; {listed}"


def _extremes(images: list[ImageFacts]) -> Iterable[str]:
    sides = _shortest_sides(images)
    median = np.median(sides) if sides.size else 0
    for image in images:
        if image.error is None:
            short, long = sorted((image.height, image.width))
            if long > EXTREME_RATIO * short or short * EXTREME_SIZE < median or short > EXTREME_SIZE * median:
                yield f"{image.name} has {image.width:,} x {image.height:,} pixels"
