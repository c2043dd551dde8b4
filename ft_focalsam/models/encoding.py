"""Features of a whole data set from the frozen backbone; several processes share the work."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm
from transformers import default_data_collator

from ..data.batches import finished
from .classifier import LongTailClassifier


@torch.no_grad()
def encode_images(
    model: LongTailClassifier,
    dataset: Dataset,
    *,
    batch_size: int,
    num_workers: int = 0,
    collate: Callable = default_data_collator,
    autocast: torch.dtype | None = None,
    desc: str = "Features",
) -> Iterator[dict[str, Tensor]]:
    """The backbone's features of all images of a data set, in its order, as it is now and in evaluation mode.

    Each image is read once: several processes take a part of every batch each, and all get the features of all. A
    stream is read by the main process, and the others get nothing. torch's random state stays as it was.

    Args:
        model (`LongTailClassifier`): Left in the mode it is in.
        dataset (`Dataset`): Gives `"pixel_values"` and `"labels"`.
        batch_size (`int`): Images of a batch on one process.
        num_workers (`int`): Processes that read images, for each process here.
        collate (`Callable`): Items -> batch, e.g. a `ByteCollator`.
        autocast (`torch.dtype`, *optional*): Of mixed precision, in which the backbone runs.
        desc (`str`): Beside the progress bar, which the main process shows.

    Yields:
        `dict`: `"image_features"` of shape (B, D) and `"labels"` of shape (B,), on the model's device; B is up to
        `batch_size` times the number of processes.
    """
    state, device = PartialState(), next(model.head.parameters()).device
    is_stream = isinstance(dataset, IterableDataset)
    if is_stream and not state.is_main_process:
        return
    processes = 1 if is_stream else state.num_processes
    batches = {"batch_size": batch_size}
    if not is_stream:
        batches = {"batch_sampler": own_batches(len(dataset), batch_size, processes, state.process_index)}
    loader = DataLoader(dataset, num_workers=num_workers, collate_fn=collate, generator=torch.Generator(), **batches)
    left = None if is_stream else len(dataset)
    was_training = model.training
    model.eval()
    precision = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    try:
        with tqdm(
            total=left, desc=desc, unit=" images", leave=False, disable=None if state.is_main_process else True
        ) as bar:
            for batch in loader:
                batch = finished({name: value.to(device) for name, value in batch.items()}, collate)
                with precision:
                    features = model.image_features(batch["pixel_values"])
                labels = batch["labels"]
                if processes > 1:
                    features, labels = gather((features.contiguous(), labels))
                features, labels = features[:left], labels[:left]
                left = None if is_stream else left - len(labels)
                bar.update(len(labels))
                yield {"image_features": features, "labels": labels}
    finally:
        model.train(was_training)


def own_batches(count: int, batch_size: int, processes: int, process: int) -> list[list[int]]:
    """Which images one process reads: an equal part of each run of `batch_size` times `processes` images, in their
    order; the last part repeats the last image where they do not come out even.

    Args:
        count (`int`): Number of images.
        batch_size (`int`): Most images of a part.
        processes, process (`int`): How many there are, and which of them, from 0.
    """
    parts = []
    for block in torch.arange(count).split(batch_size * processes):
        size = -(-len(block) // processes)
        start = int(block[0]) + process * size
        parts.append(torch.arange(start, start + size).clamp(max=count - 1).tolist())
    return parts


def refuse_trained_backbone(model: LongTailClassifier) -> None:
    """Raise a `ValueError` where parameters of the backbone train, so that its features change with every step."""
    trained = next((name for name, p in model.backbone.named_parameters() if p.requires_grad), None)
    if trained is not None:
        raise ValueError(
            f"'{trained}' of the backbone trains, so that its features change with every step; choose a tuning method "
            "that leaves the backbone as it is, or set cache_features to false."
        )


@torch.no_grad()
def refuse_random_features(model: LongTailClassifier, pixel_values: Tensor) -> None:
    """Raise a `ValueError` where the backbone gives other features in training mode, as dropout, drop path and batch
    normalisation make them, so that they cannot be computed once.

    Args:
        model (`LongTailClassifier`): Left as it is.
        pixel_values (`Tensor` of shape (B, 3, H, W)): Some of its images.
    """
    was_training, kept = model.training, [buffer.clone() for buffer in model.backbone.buffers()]
    pixel_values = pixel_values.to(next(model.head.parameters()).device)
    try:
        expected = model.eval().image_features(pixel_values)
        with torch.random.fork_rng(devices=[]):
            features = model.train().image_features(pixel_values)
    finally:
        model.train(was_training)
        for buffer, value in zip(model.backbone.buffers(), kept, strict=True):
            buffer.copy_(value)
    tolerance = torch.finfo(expected.dtype).eps ** 0.5  # of another order of the same sums
    if not (features - expected).norm() <= tolerance * expected.norm():
        raise ValueError(
            f"The backbone '{model.config.backbone}' gives other features in training than in evaluation (dropout, "
            "drop path or batch normalisation), so that they cannot be computed once; set cache_features to false."
        )
