"""Every export is compared with the classifier it was made from, on random images."""

import torch
from torch import Tensor

from ..models import LongTailClassifier

TOLERANCE = 1e-4  # of logits, absolute up to 1 and relative to the largest one above


def input_size(model: LongTailClassifier) -> tuple[int, int]:
    """(height, width) in pixels of the images that a classifier was trained on."""
    size = model.config.image_size
    return model.family.input_size(model.backbone) if size is None else (size, size)


def random_images(model: LongTailClassifier, *, count: int = 2, size: tuple[int, int] | None = None) -> Tensor:
    """Normalised noise of shape (count, 3, H, W), the same whenever it is drawn."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *(size or input_size(model)), generator=generator)


@torch.no_grad()
def logits_of(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Logits of shape (B, C) of images of shape (B, 3, H, W)."""
    return model(pixel_values=images).logits


def check_same(expected: Tensor, got: Tensor, *, what: str, remedy: str) -> None:
    """Raise a `ValueError` where two tensors differ by more than `TOLERANCE`.

    Args:
        what (`str`): What gave the second, as "the merged classifier".
        remedy (`str`): What to do instead.
    """
    difference = float((expected - got).abs().max()) if expected.shape == got.shape else float("inf")
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ValueError(
            f"What {what} gives on random images differs by {difference:.2g} from what the tuned one gives; {remedy}."
        )
