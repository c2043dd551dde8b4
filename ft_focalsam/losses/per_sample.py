"""A loss and a training set: [`make_loss`]."""

import difflib
import inspect
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sharpness.hyperparameters import check_hyperparameters
from .registry import LOSSES, is_multi_label, loss_hyperparameters
from .reweighted import effective_number_weights


class PerSampleLoss:
    """A loss bound to the class counts of a training set; `make_loss` builds it.

    Called as `loss(logits, labels, *, features=None, progress=0.0)` with logits of shape (B, C) and labels of shape
    (B,), class indices, or (B, C), class probabilities, it returns losses of shape (B,), float32 or wider also for
    logits in half precision. Labels of a loss for several classes a sample, shape (B, C), have a 1 for each of them.
    `progress` is the share of training that is done, 0 to 1.

    Attributes:
        name (`str`): Its name in `LOSSES`.
        is_multi_label (`bool`): Whether it is for several classes a sample.
        needs_features (`bool`): Whether calls need `features`, shape (B, D): what reaches the model's classifier.
        samples_interact (`bool`): Whether the loss of a sample depends on the rest of its batch.
    """

    def __init__(
        self,
        name: str,
        class_counts: Tensor,
        hyperparameters: Mapping[str, float | None],
        *,
        label_smoothing: float,
        drw_start: float | None,
        drw_beta: float,
        head_scale: float,
        num_samples: float,
    ):
        self.name = name
        self.is_multi_label = is_multi_label(name)
        self._function = LOSSES.choose(name)
        self._takes = set(inspect.signature(self._function).parameters)
        self._hyperparameters = hyperparameters
        self._fixed = {"head_scale": head_scale, "num_samples": num_samples}
        self._class_counts = class_counts
        self._label_smoothing = label_smoothing
        self._drw_start = drw_start
        self._drw_weights = effective_number_weights(class_counts, drw_beta)
        self.needs_features = "features" in self._takes
        self.samples_interact = self._try_out()

    def __call__(
        self, logits: Tensor, labels: Tensor, *, features: Tensor | None = None, progress: float = 0.0
    ) -> Tensor:
        if self.needs_features and features is None:
            raise ValueError(f"The loss {self.name!r} needs the features that reach the classifier; give features=.")
        logits = _at_least_float32(logits)
        if (self._class_counts.device, self._class_counts.dtype) != (logits.device, logits.dtype):
            self._class_counts = self._class_counts.to(logits)
            self._drw_weights = self._drw_weights.to(logits)
        size = logits.shape[1]
        probabilities = (labels if labels.ndim == 2 else F.one_hot(labels, size)).to(logits.dtype)
        targets = probabilities
        if self._label_smoothing:
            evenly = 2 if self.is_multi_label else size  # a class is there or not
            targets = (1 - self._label_smoothing) * targets + self._label_smoothing / evenly
        context = {**self._fixed, "class_counts": self._class_counts, "progress": progress}
        if features is not None:
            context["features"] = _at_least_float32(features)
        context = {name: value for name, value in context.items() if name in self._takes}
        losses = self._function(logits, targets, **context, **self._hyperparameters)
        if self._drw_start is not None and progress >= self._drw_start:
            losses = losses * (probabilities @ self._drw_weights)
        return losses

    @torch.enable_grad()
    def _try_out(self) -> bool:
        """Run the loss on three samples, for it to refuse its hyperparameters now; whether they interact."""
        size = len(self._class_counts)
        logits = torch.linspace(-1, 1, 3 * size, dtype=torch.float64).reshape(3, size).requires_grad_()
        features = torch.arange(1.0, 4, dtype=torch.float64)[:, None]
        losses = self(logits, torch.tensor([0, size - 1, 0]), features=features, progress=1.0)
        if losses.shape != (3,):
            raise ValueError(
                f"The loss {self.name!r} returns the shape {tuple(losses.shape)} for 3 samples; let it return one "
                "loss a sample."
            )
        return bool(torch.autograd.grad(losses[0], logits)[0][1:].any())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def make_loss(
    name: str,
    class_counts: Sequence[int],
    hyperparameters: Mapping[str, float] | None = None,
    *,
    label_smoothing: float = 0.0,
    drw_start: float | None = None,
    head_scale: float = 1.0,
    num_samples: int | None = None,
) -> PerSampleLoss:
    """A loss by name, bound to the class counts of a training set.

    Args:
        name (`str`): A name in `LOSSES`: "cross_entropy", "class_balanced", "grw", "focal", "ldam",
            "balanced_softmax", "logit_adjusted", "vs", "lade" or "influence_balanced"; for several classes a sample
            "bce", "asymmetric" or "distribution_balanced".
        class_counts (sequence of `int`, shape (C,)): Training samples per class, all above 0.
        hyperparameters (mapping, *optional*): Values by name; the loss takes those it has (`loss_hyperparameters`)
            and leaves those of the other losses.
        label_smoothing (`float`, 0 to 1): Share of the target spread evenly over all classes; of a loss for several
            classes a sample, over having and not having each class.
        drw_start (`float`, 0 to 1, *optional*): Deferred re-weighting (Cao et al., arXiv 1906.07413, algorithm 1):
            from this share of training on, the loss of a sample of class k is multiplied by w_k of
            `effective_number_weights`, whose beta is the hyperparameter `effective_number_beta`, by default 0.9999.
            (The public code then divides by the sum of the weights in the batch, where this divides by its size.)
        head_scale (`float`, > 0): Scale of the logits of the model's head, which ldam takes where it is given none.
        num_samples (`int`, *optional*): Training samples N, where one may have several classes; by default the sum of
            `class_counts`.

    Returns:
        `PerSampleLoss`: (logits, labels) -> losses.

    Raises:
        ValueError: If the loss is unknown, a class has no sample, a hyperparameter is unknown or out of range, or
            `drw_start` is set for a loss for several classes a sample.
    """
    given = dict(hyperparameters or {})
    own = loss_hyperparameters(name)
    known = {hyperparameter for loss in LOSSES for hyperparameter in loss_hyperparameters(loss)}
    for unknown in given.keys() - known:
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"No loss has a hyperparameter {unknown!r}; did you mean {nearest!r}?")
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if (counts <= 0).any():
        empty = int((counts <= 0).nonzero()[0])
        raise ValueError(f"Class {empty} has no training sample; give it some, or leave the class out of the labels.")
    if drw_start is not None and not 0 <= drw_start <= 1:
        raise ValueError(f"drw_start is {drw_start}; set it to a share of training, from 0 to 1.")
    if drw_start is not None and is_multi_label(name):
        raise ValueError(
            f"drw_start is {drw_start}, which weighs a sample by its one class, and the loss {name!r} is for several "
            "classes a sample; leave drw_start out."
        )
    values = {hyperparameter: given.get(hyperparameter, default) for hyperparameter, default in own.items()}
    check_hyperparameters(LOSSES[name], values)
    return PerSampleLoss(
        name,
        counts,
        values,
        label_smoothing=label_smoothing,
        drw_start=drw_start,
        drw_beta=given.get("effective_number_beta", 0.9999),
        head_scale=head_scale,
        num_samples=float(counts.sum()) if num_samples is None else num_samples,
    )
