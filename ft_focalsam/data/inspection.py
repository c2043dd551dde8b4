"""What is wrong with a data set, or worth knowing, before a model is trained on it."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .columns import label_array
from .long_tail import class_counts, describe_groups
from .scan import ImageFacts, scan_images
from .sources import ImageData

EXTREME_RATIO = 5  # longer to shorter side of a picture
EXTREME_SIZE = 8  # a picture's shorter side to the median of its split, or the other way round
_LISTED = 5


@dataclass(frozen=True)
class Inspection:
    """Class counts and findings of a data set.

    Args:
        class_names (`list[str]`): In index order.
        train_counts, test_counts (`np.ndarray`): Pictures of each class, shape (C,), broken ones included; those put
            aside for validation are in neither.
        findings (`dict[str, list[str]]`): Heading -> one line a case; a heading without cases is not there.
        sizes (`dict[str, str]`): Split -> what its pictures measure.
    """

    class_names: list[str]
    train_counts: np.ndarray
    test_counts: np.ndarray
    findings: dict[str, list[str]]
    sizes: dict[str, str]

    def summary(self, *, many: int = 100, few: int = 20) -> str:
        """All of it as text; of each finding the first cases."""
        counts = self.train_counts
        least = int(counts.min())
        ratio = f"{counts.max() / least:.1f}" if least else "without bound"
        lines = [
            f"{counts.sum():,} training images of {len(counts):,} classes, {counts.max():,} to {least:,} a class "
            f"(imbalance {ratio}); {self.test_counts.sum():,} test images",
            "",
            describe_groups(counts, many=many, few=few),
            "",
            *(f"{split} images: {text}" for split, text in self.sizes.items()),
        ]
        for heading, cases in self.findings.items():
            lines += ["", f"{heading}: {len(cases):,}", *(f"  {case}" for case in cases[:_LISTED])]
            if len(cases) > _LISTED:
                lines.append(f"  and {len(cases) - _LISTED:,} more")
        return "\n".join([*lines, "", "Nothing found that needs attention." if not self.findings else ""]).rstrip()


def inspect_images(data: ImageData, *, num_workers: int | None = None) -> Inspection:
    """Decode every picture once and compare them.

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
    return Inspection(
        class_names=names,
        train_counts=counts["training"],
        test_counts=counts["test"],
        findings={heading: cases for heading, cases in findings.items() if cases},
        sizes={split.capitalize(): _sizes(images) for split, images in facts.items()},
    )


def _duplicates(facts: dict[str, list[ImageFacts]], labels: dict[str, np.ndarray], names: list[str]):
    """The same pixels twice, within and between splits; between splits also pictures that look the same."""
    train = facts["training"]

    def told(split: str, row: int) -> str:
        return f"{split} image {facts[split][row].name} ({names[labels[split][row]]})"

    same = _rows_by(train, "pixels")
    twice, conflicting, found = [], [], {}
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
            is_conflict = labels["training"][rows[0]] != labels["training"][other]
            case = f"{told('training', other)} is the same as {told('training', rows[0])}"
            (conflicting if is_conflict else twice).append(case)
    return found | {
        "Training images of several classes": conflicting,
        "Training images that are there twice": twice,
    }


def _rows_by(images: list[ImageFacts], field: str) -> dict[str, list[int]]:
    rows = defaultdict(list)
    for row, image in enumerate(images):
        if getattr(image, field):
            rows[getattr(image, field)].append(row)
    return rows


def _shortest_sides(images: list[ImageFacts]) -> np.ndarray:
    return np.array([min(image.height, image.width) for image in images if image.error is None])


def _sizes(images: list[ImageFacts]) -> str:
    sides = _shortest_sides(images)
    if not sides.size:
        return "none can be read"
    formats = defaultdict(int)
    for image in images:
        if image.error is None:
            formats[f"{image.format or 'no file'} {image.mode}"] += 1
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
