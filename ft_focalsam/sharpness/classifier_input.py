"""What reaches the classifier of a model: the features of its images, whatever the model calls them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ClassifierInput:
    """Notes the features in forward passes inside `watch`, and gives them to `find`:

        classifier_input = ClassifierInput(model)
        with classifier_input.watch():
            logits = model(x)
            features = classifier_input.find(logits)

    The classifier is the innermost module whose output is the logits, found in the first forward pass.

    Args:
        model (`nn.Module`): The model, wrapped or not, that is called inside `watch`.
        trained (`bool`): Whether only modules with trained parameters come into question.

    Attributes:
        classifier (`nn.Module` or `None`): The module, once it is found.
        is_watching (`bool`): Whether a `watch` block is open.
    """

    def __init__(self, model: nn.Module, *, trained: bool = False):
        self.model = model
        self.trained = trained
        self.classifier: nn.Module | None = None
        self.is_watching = False
        self._calls: list[tuple[nn.Module, Tensor, Tensor]] = []  # candidates, inner before outer: input and output

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note what reaches the classifier in the forward pass inside the block, for `find` there."""
        self._calls.clear()
        self.is_watching = True
        watched = self.model.modules() if self.classifier is None else [self.classifier]
        hooks = [
            module.register_forward_hook(self._note, with_kwargs=True)
            for module in watched
            if not self.trained or any(p.requires_grad for p in module.parameters())
        ]
        try:
            yield
        finally:
            self.is_watching = False
            self._calls.clear()
            for hook in hooks:
                hook.remove()

    def _note(self, module: nn.Module, args: tuple, kwargs: dict, output) -> None:
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if inputs and isinstance(output, Tensor) and output.ndim == 2:
            self._calls.append((module, inputs[0], output))

    def find(self, logits: Tensor) -> Tensor | None:
        """Input of the classifier, shape (B, ...), in the watched pass, which returned `logits`, shape (B, C); None
        where no module gives the logits as its output."""
        for module, features, output in self._calls:
            if module is self.classifier or _are_equal(output, logits):
                self.classifier = module
                return features
        return None


def _are_equal(output: Tensor, logits: Tensor) -> bool:
    return output.shape == logits.shape and torch.allclose(
        output.detach().to(logits.dtype), logits.detach(), rtol=0, atol=0, equal_nan=True
    )
