"""Losses of the samples, from what a model returns and the labels of a batch."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..data.labels import IGNORED
from ..losses import PerSampleLoss
from ..sharpness import ClassConditionalSAM, Evaluation, SharpnessStep
from ..sharpness.classifier_input import ClassifierInput
from ..sharpness.passes import check_per_sample
from .multi_label import check_multi_hot


def logits_of(outputs: Any) -> Tensor:
    """The logits, shape (B, C), of what a model returned: a mapping or an object with `logits`, a tuple that begins
    with them, or themselves.

    Raises:
        ValueError: If there are none.
    """
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, dict):
        logits = outputs.get("logits")
    elif isinstance(outputs, (tuple, list)):
        logits = outputs[0] if outputs else None
    else:
        logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        what = f"the keys {sorted(outputs)}" if isinstance(outputs, dict) else f"a {type(outputs).__name__}"
        raise ValueError(f"The model returned {what} and no logits; let it return them, under 'logits' or first.")
    return logits


def with_logits(outputs: Any, logits: Tensor) -> Any:
    """The same outputs with other logits."""
    if isinstance(outputs, Tensor):
        return logits
    if isinstance(outputs, dict):
        return type(outputs)(**{**outputs, "logits": logits})
    return (logits, *outputs[1:])


def as_targets(labels: Tensor) -> Tensor:
    """Labels of a batch as the losses take them: int64 of shape (B,), or class probabilities of shape (B, C).

    Raises:
        ValueError: If they are neither.
    """
    if labels.ndim == 2:
        return labels
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"The labels of a batch are {labels.dtype} of shape {tuple(labels.shape)}; give class indices (integers "
            "of shape (B,)) or class probabilities (shape (B, C)). Regression is not supported."
        )
    return labels.long()


def check_probabilities(labels: Tensor) -> None:
    """Raise a `ValueError` unless the rows of labels, shape (B, C), are class probabilities."""
    sums = labels.double().sum(dim=1)
    if not torch.allclose(sums, torch.ones_like(sums), atol=1e-2) or bool((labels < 0).any()):
        raise ValueError(
            f"Labels of shape {tuple(labels.shape)} are class probabilities, and a row of a batch sums to "
            f"{float(sums[(sums - 1).abs().argmax()]):g}; let each sum to 1, or, for several classes an image, set "
            "the model's problem_type to 'multi_label_classification'."
        )


class TrainerLoss:
    """The loss of a Trainer: the user's function, or one of `ft_focalsam.losses`.

    Args:
        loss (`PerSampleLoss` or `Callable`): A function takes (outputs, labels), and `num_items_in_batch` if it has a
            third argument. It returns losses of shape (B,), or, for plain training, a scalar.
        multi_label (`bool`): Whether labels have a 1 for each of several classes.
    """

    def __init__(self, loss: PerSampleLoss | Callable, *, multi_label: bool = False):
        self.loss = loss if isinstance(loss, PerSampleLoss) else None
        self.function: Callable = loss
        self.takes_count = self.loss is None and _takes_count(loss)
        self._input: ClassifierInput | None = None
        self._has_rows = multi_label
        self._has_checked_rows = False

    @property
    def interaction(self) -> str | None:
        """Why the samples of a batch interact; None where the loss is not known to make them."""
        if self.loss is None or not self.loss.samples_interact:
            return None
        return f"the loss {self.loss.name!r} makes the samples of a batch interact"

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Note what reaches the classifier in a forward pass inside the block, where the loss needs it."""
        if self.loss is None or not self.loss.needs_features:
            yield
            return
        if self._input is None or self._input.model is not model:
            self._input = ClassifierInput(model)
        with self._input.watch():
            yield

    def reduced(
        self,
        outputs: Any,
        labels: Tensor,
        *,
        progress: float,
        count: Tensor | int | None,
        evaluation: Evaluation | ClassConditionalSAM | None,
    ) -> Tensor:
        """The loss of a batch, reduced as the pass under way asks for; samples with the label -100 are left out.

        Args:
            outputs, labels, progress, count: As for a call.
            evaluation (`Evaluation` or `ClassConditionalSAM`, *optional*): None for plain training.

        Returns:
            `Tensor` without dimensions.

        Raises:
            ValueError: If the labels are no classes, or class probabilities that do not sum to 1.
            LossContractError: If a sharpness step would be trained on something else than one loss per sample.
        """
        labels = as_targets(labels)
        is_left_out = labels == IGNORED  # of a process for which nothing was left of the last batch, or of the data
        kept = labels.masked_fill(is_left_out, 0)
        if (labels.ndim == 2 or self._has_rows) and not self._has_checked_rows:
            check_multi_hot(kept) if self._has_rows else check_probabilities(labels)
            self._has_checked_rows = True
        if isinstance(evaluation, ClassConditionalSAM) and evaluation.is_watching:
            losses = evaluation.losses(
                logits_of(outputs), kept, lambda z: self(with_logits(outputs, z), kept, progress=progress, count=count)
            )
        else:
            losses = self(outputs, kept, progress=progress, count=count)
        is_left_out = is_left_out.reshape(len(labels), -1).all(dim=1)
        divisor: Tensor | float | None = count
        if count is not None and labels.ndim == 2:
            divisor = count / labels.shape[1]  # the Trainer counts entries, and a soft label has C of them
        if losses.ndim == 0 and evaluation is None:
            if divisor is None or self.takes_count:
                return losses
            return losses * (~is_left_out).sum().to(losses.dtype) / divisor  # the share of a mean in that of the step
        check_per_sample(losses, len(labels))
        losses = losses.masked_fill(is_left_out, 0)
        step: SharpnessStep | None = getattr(evaluation, "step", None)
        if step is not None:
            return step.reduce(losses, divisor)
        return losses.sum() / (losses.numel() if divisor is None else divisor)

    def __call__(self, outputs: Any, labels: Tensor, *, progress: float, count=None) -> Tensor:
        """Losses of the samples, shape (B,), or what the user's function returns instead.

        Args:
            outputs: What the model returned.
            labels (`Tensor` of shape (B,) or (B, C)): Class indices or probabilities.
            progress (`float`, 0 to 1): Share of training that is done.
            count (`Tensor` or `int`, *optional*): `num_items_in_batch` of the Trainer.
        """
        if self.loss is None:
            return self.function(outputs, labels, count) if self.takes_count else self.function(outputs, labels)
        logits, features = logits_of(outputs), None
        if self.loss.needs_features:
            assert self._input is not None  # a watched pass has made it
            features = self._input.find(logits)
            if features is None:
                raise ValueError(
                    f"The loss {self.loss.name!r} needs the features that reach the classifier, and no module of "
                    f"{type(self._input.model).__name__} gives its logits as the output; choose another loss."
                )
        return self.loss(logits, labels, features=features, progress=progress)


def _takes_count(function: Callable) -> bool:
    """Whether a loss function has a third argument, as the Trainer's own contract has it."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a builtin
        return False
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(positional) > 2 or any(p.kind == p.VAR_POSITIONAL for p in parameters)
