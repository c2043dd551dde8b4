"""Exponential moving average of the weights of a run (Polyak and Juditsky, 1992), with the warm-up of TensorFlow's
`ExponentialMovingAverage`.

After optimizer step t the average is a <- d_t a + (1 - d_t) w with d_t = min(decay, (1 + t) / (10 + t)): the weights
of the first steps are soon forgotten. It covers what trains and the running statistics of batch normalisation.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import broadcast
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback

from ..models.checkpoints import save_tensors

logger = logging.getLogger(__name__)

EMA_NAME = "ema.safetensors"  # in a checkpoint, beside the weights that go on training


class WeightEMA:
    """An average beside a model that trains.

    The average is float32 at least, and on each process of data-parallel training the same, as the weights are; only
    the statistics of batch normalisation, of which each process has its own, are taken from the main process.

    Args:
        model (`nn.Module`): Without wrappers; the average begins with its weights.
        decay (`float`, 0 to below 1): d.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.sources: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.statistics = [
            f"{place}.{name}" if place else name
            for place, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_floating_point()
        ]
        buffers = dict(model.named_buffers())
        self.sources |= {name: buffers[name] for name in self.statistics}
        self.averages = {name: _raised(value).clone() for name, value in self.sources.items()}

    def decay_at(self, step: int) -> float:
        """d_t for the optimizer step t, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after an optimizer step into the average."""
        by_kind: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
        for name, value in self.sources.items():
            mean = self.averages[name]
            means, values = by_kind.setdefault((mean.dtype, mean.device), ([], []))
            means.append(mean)
            values.append(_raised(value))
        average = get_ema_multi_avg_fn(self.decay_at(step))
        for means, values in by_kind.values():
            average(means, values, step)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the averages, in the dtype of its weights."""
        for name in self.statistics:
            broadcast(self.averages[name])
        for name, value in self.sources.items():
            value.copy_(self.averages[name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with the averages; with its own weights again, bit for bit, when the block ends."""
        own = {name: value.detach().clone() for name, value in self.sources.items()}
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.sources.items():
                    value.copy_(own[name])

    def save(self, folder: Path) -> None:
        """Write the averages into the folder of a checkpoint."""
        save_tensors(self.averages, folder / EMA_NAME)

    def load(self, folder: Path) -> None:
        """Go on with the averages of a checkpoint.

        Raises:
            FileNotFoundError: If it has none.
            ValueError: If they are of other weights.
        """
        path = folder / EMA_NAME
        if not path.is_file():
            raise FileNotFoundError(f"'{folder}' has no {EMA_NAME}; it was written without --ema_decay.")
        saved = load_file(path)
        odd = [name for name in {**saved, **self.averages} if _shape(saved, name) != _shape(self.averages, name)]
        if odd:
            raise ValueError(
                f"'{path}' is of other weights than those that train, at '{odd[0]}'; train the same ones."
            )
        for name, value in saved.items():
            self.averages[name].copy_(value)


class WeightEMACallback(TrainerCallback):
    """Averages while a Trainer trains, and leaves the model with the averages at the end: those of the last step, or
    of the best checkpoint where that is loaded.

    While training, evaluations are of the averages (by [`WeightEMACallback.applied`]), and each checkpoint has them in
    a file of its own, beside the weights that training goes on with.

    Args:
        decay (`float`, 0 to below 1): d.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.resume_from: str | None = None  # the checkpoint that the next training goes on from
        self._ema: WeightEMA | None = None  # while training

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._ema, folder = WeightEMA(model, self.decay), self.resume_from
        if folder is None:
            return
        if (Path(folder) / EMA_NAME).is_file():
            self._ema.load(Path(folder))
        else:
            logger.warning("'%s' has no %s: the average begins with its weights.", folder, EMA_NAME)

    def on_step_end(self, args, state, control, **kwargs):
        self._ema.update(state.global_step)

    def on_train_end(self, args, state, control, **kwargs):
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self._ema.load(Path(state.best_model_checkpoint))
        self._ema.apply()
        self._ema = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """While training, the model with the averages; otherwise as it is."""
        if self._ema is None:
            yield
        else:
            with self._ema.applied():
                yield

    def save(self, folder: Path) -> None:
        """Write the averages into the folder of a checkpoint."""
        if self._ema is not None:
            self._ema.save(folder)


def _raised(value: Tensor) -> Tensor:
    """A tensor in float32 at least."""
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None
