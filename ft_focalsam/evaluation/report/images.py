"""Example images: what is confused most often, and how an image gets into a page."""

import base64
import io
from dataclasses import dataclass

import datasets
import numpy as np
from PIL import Image

from ...data.images import StoredImage, to_rgb, undecoded
from ..sample_results import SampleResults

THUMBNAIL, LARGE = 112, 448  # pixels of the longer side of an example


@dataclass(frozen=True)
class Confusion:
    """Images of one class that are taken for another.

    Args:
        label, predicted (`int`): The class, and what it is taken for.
        rows (`np.ndarray`): The images, int64, the most confident mistake first.
        share (`float`): Of the class's images, 0..1.
    """

    label: int
    predicted: int
    rows: np.ndarray
    share: float


def worst_confusions(outcomes: SampleResults, most: int | None = 6) -> list[Confusion]:
    """The pairs of classes with the most mistakes, of equally many those with the larger share of their class;
    with `most` None, all of them."""
    wrong = np.flatnonzero(~outcomes.is_hit & (outcomes.predicted >= 0))
    pairs = np.stack([outcomes.labels[wrong], outcomes.predicted[wrong]], axis=1)
    found, places = np.unique(pairs, axis=0, return_inverse=True)
    sizes = np.bincount(outcomes.labels, minlength=outcomes.num_classes)
    confusions = []
    for index, (label, predicted) in enumerate(found):
        rows = wrong[places == index]
        if outcomes.confidence is not None:
            rows = rows[np.argsort(-outcomes.confidence[rows], kind="stable")]
        confusions.append(Confusion(int(label), int(predicted), rows, len(rows) / sizes[label]))
    return sorted(confusions, key=lambda pair: (-len(pair.rows), -pair.share, pair.label, pair.predicted))[:most]


def example(dataset: datasets.Dataset, row: int) -> Image.Image:
    """One image of a data set, upright, in RGB, as large as a report shows it."""
    stored = StoredImage.read(undecoded(dataset)[int(row)]["image"], row=int(row))
    return scaled(to_rgb(stored.open()), LARGE)


def scaled(image: Image.Image, side: int) -> Image.Image:
    """An image with its longer side scaled to a number of pixels; a small one by a whole factor, without smoothing."""
    longer = max(image.size)
    if longer * 2 <= side:
        factor = side // longer
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    width, height = (max(1, round(length * side / longer)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def image_uri(image: Image.Image) -> str:
    """An image as JPEG inside a data URI."""
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
