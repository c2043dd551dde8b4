"""Callback that passes the epoch to the data set and the sampler."""

from transformers import TrainerCallback

from ..data.samplers import ClassSampler


class SetEpoch(TrainerCallback):
    """Tells the training set and a sampler the epoch, also where Accelerate does not: with several processes it tells
    a training set nothing, and a sampler nothing in the epoch they resume in."""

    def __init__(self, dataset) -> None:
        self.dataset = dataset
        self.sampler: ClassSampler | None = None
        self.passes = 0  # over a stream, whose epochs the Trainer does not know

    def on_epoch_begin(self, args, state, control, **kwargs):
        epoch = int(state.epoch)
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch if hasattr(self.dataset, "__len__") else self.passes)
        self.passes += 1
        if self.sampler is not None:
            self.sampler.num_epochs = state.num_train_epochs
            self.sampler.set_epoch(epoch)
