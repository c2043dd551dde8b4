"""How many worker processes read images."""

import os

from torch.utils.data import Dataset

from .training_sets import TransformedImages

WORTH_PROCESSES = 2000  # images; fewer are read sooner than worker processes start
MOST = 16  # worker processes of one training process; each holds some batches in memory


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_num_workers(dataset: Dataset | None, *, processes: int = 1) -> int:
    """Worker processes for each training process: the cores of this machine divided by its training processes, at
    most `MOST`.

    0 where there is nothing to gain: with one core for a training process, for fewer than `WORTH_PROCESSES` images,
    and for a data set that decodes no images, as tensors in memory are; also for a stream, whose order depends on it.

    Args:
        dataset (`Dataset`, *optional*): To train on.
        processes (`int`): Training processes of this machine.
    """
    each = min(available_cores() // processes, MOST)
    is_worth = isinstance(dataset, TransformedImages) and len(dataset) >= WORTH_PROCESSES
    return each if is_worth and each > 1 else 0
