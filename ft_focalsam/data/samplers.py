"""How often training images of each class are drawn. A new strategy is one decorated function in this file."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from ..base.registry import Registry
from ..losses import effective_number_weights

# A strategy is a function (class_counts, *, progress, beta) -> probability of each class, up to a factor: class_counts
# and the probabilities are float64 of shape (C,), progress is the share of training that is done at the beginning of
# the epoch, beta the parameter of the effective number of samples.
SAMPLERS: Registry[Callable[..., np.ndarray]] = Registry("sampler")
register_sampler = SAMPLERS.register


@register_sampler("instance")
def instance(class_counts: np.ndarray, *, progress: float, beta: float) -> np.ndarray:
    """Every image alike: p_i = pi_i. In `FocalSAMTrainer`, every image once an epoch."""
    return class_counts


@register_sampler("class_balanced")
def class_balanced(class_counts: np.ndarray, *, progress: float, beta: float) -> np.ndarray:
    """Every class alike: p_i = 1 / C (Kang et al., arXiv 1910.09217, eq. 1 with q = 0)."""
    return np.ones_like(class_counts)


@register_sampler("square_root")
def square_root(class_counts: np.ndarray, *, progress: float, beta: float) -> np.ndarray:
    """p_i proportional to sqrt(n_i) (Kang et al., arXiv 1910.09217, eq. 1 with q = 1/2)."""
    return np.sqrt(class_counts)


@register_sampler("progressively_balanced")
def progressively_balanced(class_counts: np.ndarray, *, progress: float, beta: float) -> np.ndarray:
    """From instance-balanced to class-balanced (Kang et al., arXiv 1910.09217, eq. 2): (1 - t/T) pi_i + t/T 1/C.

    t is the epoch, counted from 0, of T.
    """
    return (1 - progress) * class_counts / class_counts.sum() + progress / len(class_counts)


@register_sampler("effective_number")
def effective_number(class_counts: np.ndarray, *, progress: float, beta: float) -> np.ndarray:
    """Every image in inverse proportion to its class's effective number: p_i proportional to n_i / (1 - beta^n_i).

    The weights of Cui et al. (arXiv 1901.05555) as a sampler: between instance-balanced (beta = 0) and class-balanced
    (beta towards 1).
    """
    return class_counts * effective_number_weights(torch.from_numpy(class_counts), beta).numpy()


class ClassSampler(Sampler[int]):
    """As many draws an epoch as there are images; the class of each by a strategy, the image by turns in its class.

    The images of a class come in random order, all of them before one comes again. The order depends on nothing but
    the labels, the seed and the epoch, so that several processes, each taking its part of it, see together what one
    sees, and a resumed run goes on as if it had not stopped.

    It decides what is seen, not what is rare: class counts for the sharpness weights, the loss and the metrics stay
    those of the training set.

    Args:
        labels (`np.ndarray` of shape (N,)): Class of each image.
        strategy (`str`): A name in `SAMPLERS`.
        seed (`int`): Of the random order.
        beta (`float`, 0 to below 1): Of the strategy "effective_number".

    Attributes:
        epoch (`int`): Which order comes next; set it by `set_epoch`.
        num_epochs (`int`): T of the strategy "progressively_balanced".

    Raises:
        ValueError: If the strategy is unknown or `beta` is out of range.
    """

    def __init__(self, labels: np.ndarray, strategy: str, *, seed: int = 0, beta: float = 0.9999):
        self._probabilities = SAMPLERS.choose(strategy)
        _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        self._members = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
        self.seed = seed
        self.beta = beta
        self.epoch = 0
        self.num_epochs = 1
        self.class_probabilities()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch, counted from 0."""
        self.epoch = epoch

    def class_probabilities(self) -> np.ndarray:
        """Probability of each class that has images, in this epoch; float64, of sum 1."""
        counts = np.array([len(members) for members in self._members], dtype=np.float64)
        progress = min(1.0, self.epoch / self.num_epochs)
        probabilities = self._probabilities(counts, progress=progress, beta=self.beta)
        return probabilities / probabilities.sum()

    def __len__(self) -> int:
        return sum(len(members) for members in self._members)

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch])
        classes = rng.choice(len(self._members), size=len(self), p=self.class_probabilities())
        draws = np.bincount(classes, minlength=len(self._members))
        by_class = [
            np.concatenate([rng.permutation(members) for _ in range(-(-drawn // len(members)))])[:drawn]
            for members, drawn in zip(self._members, draws, strict=True)
            if drawn
        ]
        order = np.empty(len(self), dtype=np.int64)
        order[np.argsort(classes, kind="stable")] = np.concatenate(by_class)
        return iter(order.tolist())
