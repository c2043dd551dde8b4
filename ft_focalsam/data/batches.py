"""Batches on their way to the model: images as bytes until they are on its device, samples taken from a batch, and
what fills up the last one left out again."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import default_collate

from .labels import IGNORED
from .preprocessing import Normalise, Preprocessing


class ByteCollator:
    """A collator for images that a transform leaves as bytes (`as_bytes`), a quarter of what they are as floats.

    Worker processes stack and ship them so; `finish` normalises a batch on the device, as the transform would have.

    Args:
        preprocessing (`Preprocessing`): Whose normalisation the transform has left out.
    """

    def __init__(self, preprocessing: Preprocessing):
        self._normalise = Normalise(preprocessing)

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """`"pixel_values"`, uint8 of shape (B, 3, H, W), and `"labels"`, int64 of shape (B,)."""
        batch = default_collate(items)
        if batch["pixel_values"].dtype != torch.uint8:  # of an augmentation that makes floats of them
            batch["pixel_values"] = self._normalise(batch["pixel_values"])
        return batch

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with bytes made the floats that the model takes, on the device where they are."""
        if "pixel_values" not in batch or batch["pixel_values"].dtype != torch.uint8:
            return batch
        return {**batch, "pixel_values": self._normalise(batch["pixel_values"])}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._normalise})"


def finished(batch: dict[str, Any], collate: Callable) -> dict[str, Any]:
    """A batch as the model takes it: what its collator leaves to be done on the device is done (`finish`)."""
    finish = getattr(collate, "finish", None)
    return batch if finish is None else finish(batch)


class RenamedLabels:
    """A collator whose batches have their labels under "labels".

    Args:
        collate (`Callable`): Items -> batch.
        name (`str`): What the items call their label.
    """

    def __init__(self, collate: Callable[[list], dict[str, Any]], name: str):
        self.collate = collate
        self.name = name

    def __call__(self, items: list) -> dict[str, Any]:
        batch = self.collate(items)
        return {("labels" if key == self.name else key): value for key, value in batch.items()}

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As the collator inside does on the device."""
        return finished(batch, self.collate)


def select_samples(batch: dict[str, Any], index: Tensor | None) -> dict[str, Any]:
    """The samples of a batch that an index tensor names; all for None."""
    if index is None:
        return batch
    size = len(batch["labels"])
    return {
        name: value[index.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == (size,) else value
        for name, value in batch.items()
    }


def without_padding(
    batches: Iterator[dict[str, Any]], accelerator: Accelerator, *, total: tuple[int, int] | None
) -> Iterator[dict[str, Any]]:
    """The batches of this process without the samples that Accelerate repeats where the last ones come out uneven.

    So that all processes do as many steps with as many samples, it fills the last batches up with samples that have
    been seen. What is left for this process of the last N samples is found as `gather_for_metrics` does: the first b
    are those of the first process, the next b those of the second. A process for which nothing is left has to take
    part in the all-reduce nevertheless: it gets one sample with the label `IGNORED`.

    Args:
        batches (iterator of `dict`): Of the accelerator's data loader, on one process of several.
        accelerator (`Accelerator`): Whose data loader is being read.
        total (`tuple[int, int]`, *optional*): Samples of an epoch and of a batch of all processes; None for a stream,
            at whose end Accelerate knows what is left. Where it skips batches to resume, it does not.
    """
    state = accelerator.gradient_state
    for batch in batches:
        if state.end_of_dataloader and "labels" in batch:
            remainder = state.remainder if total is None else total[0] % total[1]
            size = len(batch["labels"])
            left = min(size, remainder - accelerator.process_index * size) if remainder > 0 else size
            if left < size:
                batch = select_samples(batch, torch.arange(max(1, left)))
            if left <= 0:
                batch = {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}
        yield batch
