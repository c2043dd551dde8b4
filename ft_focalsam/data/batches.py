"""Batches as a Trainer hands them out: samples taken from one, and what fills up the last one left out again."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..sharpness.step import IGNORED


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
