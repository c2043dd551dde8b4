"""Mixup and CutMix of training batches, with labels in proportion or, by Remix, in favour of rare classes."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from .batches import finished


@dataclass(frozen=True)
class Mixing:
    """How images of a batch are mixed with one another, and their labels.

    Args:
        mixup_alpha (`float`, >= 0): Of the Beta distribution of lambda in mixup (Zhang et al., arXiv 1710.09412); 0 is
            no mixup.
        cutmix_alpha (`float`, >= 0): The same in CutMix (Yun et al., arXiv 1905.04899). Where both are above 0, each
            batch is mixed by one of the two, chosen at random.
        remix (`bool`): Whether labels favour rare classes, see `mixed_labels`.
        kappa (`float`, >= 1): Ratio of class counts from which Remix acts.
        tau (`float`, 0 to 1): Remix acts on images that are more than 1 - tau of the rarer class.

    Raises:
        ValueError: If a value is out of range, or there is nothing for Remix to act on.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    remix: bool = False
    kappa: float = 3.0
    tau: float = 0.5

    def __post_init__(self):
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; set it to 0 (off) or more.")
        if not self.kappa >= 1:
            raise ValueError(f"remix_kappa is {self.kappa}; set it to a ratio of class counts, 1 or more.")
        if not 0 <= self.tau <= 1:
            raise ValueError(f"remix_tau is {self.tau}; set it to a share of the image, from 0 to 1.")
        if self.remix and not self.is_on:
            raise ValueError("remix changes the labels of mixed images; set mixup_alpha or cutmix_alpha above 0.")

    @property
    def is_on(self) -> bool:
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def transform(self) -> v2.Transform:
        """(images (B, 3, H, W), probabilities (B, K)) -> both mixed."""
        chosen = [(v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha)]
        return v2.RandomChoice([kind(alpha=alpha) for kind, alpha in chosen if alpha > 0])

    def mixed_labels(self, shares: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
        """Class probabilities of mixed images.

        An image that is lambda of class i and 1 - lambda of class j has the label lambda e_i + (1 - lambda) e_j. By
        Remix (Chou et al., arXiv 2007.03943, eq. 8), lambda of the label is 0 where n_i / n_j >= kappa and lambda <
        tau, and 1 where n_i / n_j <= 1 / kappa and 1 - lambda < tau: the rarer class takes the whole label, as long as
        the image is more than 1 - tau of it.

        Args:
            shares (`Tensor` of shape (B, B)): Which share of image m is in mixed image n; rows of sum 1, with
                lambda on the diagonal and at most one entry beside it.
            labels (`Tensor` of shape (B,)): Class indices.
            class_counts (`Tensor` of shape (C,)): Training samples per class.

        Returns:
            `Tensor` of shape (B, C), float32.
        """
        share = shares.diagonal()
        partner = labels[(shares - shares.diag().diag()).argmax(dim=1)]
        if self.remix:
            ratio = class_counts[labels] / class_counts[partner]
            rare_partner = (ratio >= self.kappa) & (share < self.tau)
            is_rare = (ratio <= 1 / self.kappa) & (1 - share < self.tau)
            share = share.masked_fill(rare_partner, 0.0).masked_fill(is_rare, 1.0)
        size = len(class_counts)
        return share[:, None] * F.one_hot(labels, size) + (1 - share)[:, None] * F.one_hot(partner, size)


class MixingCollator:
    """A data collator whose batches come out mixed: "pixel_values" of (B, 3, H, W), "labels" of (B, C), not (B,).

    Random numbers depend on nothing but the seed and the batch, so that a resumed run mixes it in the same way.

    Args:
        collate (`Callable`): The collator for plain batches.
        mixing (`Mixing`): How to mix.
        class_counts (sequence of `int`, shape (C,)): Training samples per class.
        seed (`int`): Of the random numbers.
    """

    def __init__(self, collate: Callable, mixing: Mixing, class_counts: Sequence[int] | np.ndarray, *, seed: int = 0):
        self.collate = collate
        self.mixing = mixing
        self.class_counts = torch.as_tensor(class_counts, dtype=torch.float64)
        self.seed = seed
        self._transform = mixing.transform()

    def __call__(self, items: list[Any]) -> dict[str, Any]:
        batch = finished(self.collate(items), self.collate)  # floats, which are what is mixed
        if not {"pixel_values", "labels"} <= set(batch):
            raise ValueError(
                f"A batch has {sorted(batch)}; mixup and CutMix need its 'pixel_values' and 'labels', so let the data "
                "collator give them, or set mixup_alpha and cutmix_alpha to 0."
            )
        images, labels = batch["pixel_values"], batch["labels"].cpu()
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(self._seed_of(images))
            images, shares = self._transform(images, torch.eye(len(labels)))
        labels = self.mixing.mixed_labels(shares, labels, self.class_counts)
        return {**batch, "pixel_values": images, "labels": labels}

    def _seed_of(self, images: Tensor) -> int:
        """A number that tells this batch from others, from every 97th value of its images."""
        sample = images.flatten()[::97].contiguous().cpu()
        return zlib.crc32(sample.view(torch.uint8).numpy().tobytes(), self.seed % 2**32)
