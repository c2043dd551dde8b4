"""Losses per sample: class counts in, one loss a sample out. A new loss is one decorated function in this file."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .registry import Registry

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
# A loss is a function (logits, labels, *, prior, tau, label_smoothing) -> losses.
LOSSES: Registry[Callable[..., Tensor]] = Registry("loss")
register_loss = LOSSES.register


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@register_loss("cross_entropy")
def cross_entropy(logits: Tensor, labels: Tensor, *, prior: Tensor, tau: float, label_smoothing: float) -> Tensor:
    """Cross-entropy: l_n = -log softmax(z_n)[y_n]; `prior` and `tau` are not used."""
    return F.cross_entropy(_at_least_float32(logits), labels, reduction="none", label_smoothing=label_smoothing)


@register_loss("logit_adjusted")
def logit_adjusted(logits: Tensor, labels: Tensor, *, prior: Tensor, tau: float, label_smoothing: float) -> Tensor:
    """Logit-adjusted cross-entropy (Menon et al., arXiv 2007.07314, eq. 10): of z + tau * log pi.

    It trains on logits shifted by the class frequencies, so that the unshifted ones are right for balanced classes.
    """
    logits = _at_least_float32(logits)
    shift = tau * prior.to(logits).log()
    return F.cross_entropy(logits + shift, labels, reduction="none", label_smoothing=label_smoothing)


def make_loss(
    name: str, class_counts: Sequence[int], *, tau: float = 1.0, label_smoothing: float = 0.0
) -> PerSampleLoss:
    """A loss by name, bound to the class counts of a training set.

    Args:
        name (`str`): A name in `LOSSES`: "cross_entropy" or "logit_adjusted".
        class_counts (sequence of `int`, shape (C,)): Training samples per class, all above 0.
        tau (`float`): Strength of logit adjustment; 1 is consistent for the balanced error, 0 is cross-entropy.
        label_smoothing (`float`, 0 to 1): Share of the target spread evenly over all classes.

    Returns:
        A function (logits of shape (B, C), labels of shape (B,) or (B, C)) -> losses of shape (B,), float32 or wider.

    Raises:
        ValueError: If the loss is unknown, or a class has no sample.
    """
    loss = LOSSES.choose(name)
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if (counts <= 0).any():
        empty = int((counts <= 0).nonzero()[0])
        raise ValueError(f"Class {empty} has no training sample; give it some, or leave the class out of the labels.")
    return partial(loss, prior=counts / counts.sum(), tau=tau, label_smoothing=label_smoothing)
