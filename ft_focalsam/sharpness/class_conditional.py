"""CC-SAM: class-conditional sharpness-aware minimization (Zhou et al., CVPR 2023), first stage.

Each class i of a batch perturbs the classifier's weights w by the gradient g_i of its own mean loss, and its samples
are classified there:

    eps_i = rho_i g_i / ||g_i||,    rho_i = rho sqrt(||w|| / ||g_i||) / (n_i - 1)^(1/4)
    loss  = (1 - r) L(w) + r 1/B sum_n l_n(w + eps_{y_n})

so that rare classes get the larger radius. The features that reach the classifier are computed once; all classes of
the batch are perturbed together, by `torch.func.vmap`, and one backward pass goes through the backbone.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial, reduce
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from .classifier_input import ClassifierInput
from .constants import Constant
from .evaluations import Run
from .hyperparameters import Hyperparameter, check_hyperparameters
from .passes import LossContractError, check_per_sample
from .schedules import check_rho
from .step_statistics import StepStatistics
from .weights import as_class_counts, register_sharpness_method

CC_SAM = "cc_sam"
Ratio = Annotated[
    float,
    Hyperparameter("Share r of the perturbed loss in CC-SAM.", argument="cc_sam_ratio", low=0, high=1, symbol="r"),
]


@register_sharpness_method(CC_SAM, title="CC-SAM")
class ClassConditionalSAM:
    """The loss of CC-SAM, for one backward pass of which the base optimizer steps:

        cc_sam = ClassConditionalSAM(model, class_counts=counts, rho=0.05)
        for x, y in loader:
            with cc_sam.watch():
                losses = cc_sam.losses(model(x), y, lambda logits: F.cross_entropy(logits, y, reduction="none"))
            losses.mean().backward()
            optimizer.step()

    The gradients g_i are those of the batch at hand, on each process its own.

    Args:
        model (`nn.Module`): The model that `watch` surrounds a call of. Its classifier is the innermost module with
            trained parameters whose output is the logits, found in the first forward pass.
        class_counts (sequence of `int`, shape (C,)): Training samples n_i per class. Classes with one or two samples
            share a radius.
        rho (`float`, >= 0): Factor of every radius.
        ratio (`float`, 0 to 1): r, the share of the perturbed loss.

    Attributes:
        statistics (`StepStatistics`): Mean ||eps_i|| over classes, and perturbed minus plain loss.
        is_watching (`bool`): Whether a `watch` block is open.
        was_used (`bool`): Whether `losses` was called in the latest `watch` block.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, model: nn.Module, *, class_counts, rho: float = 0.05, ratio: Ratio = 0.5):
        check_rho(rho)
        check_hyperparameters(type(self), {"ratio": ratio})
        self.rho = rho
        self.ratio = ratio
        self.statistics = StepStatistics()
        self._rarity = Constant((as_class_counts(class_counts) - 1).clamp(min=1) ** -0.25)
        self.was_used = False
        self._input = ClassifierInput(model, trained=True)

    @property
    def is_watching(self) -> bool:
        return self._input.is_watching

    def watch(self) -> AbstractContextManager[None]:
        """Note what reaches the classifier in the forward pass inside the block, for `losses` there."""
        self.was_used = False
        return self._input.watch()

    def micro_batch(self, labels: Tensor, run: Run, *, number: int, is_last: bool = True) -> Tensor:
        """The pass over a batch, as an `Evaluation` has it; `losses` is to be called in it."""
        with self.watch():
            loss = run.whole()
        if not self.was_used:
            raise LossContractError(
                "compute_loss returned a loss that is not made of the losses of the samples, which cc_sam needs; let "
                "it call super().compute_loss(...), or set sharpness to 'none'."
            )
        return loss

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing is carried from step to step."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing is."""

    def losses(self, logits: Tensor, labels: Tensor, losses_of: Callable[[Tensor], Tensor]) -> Tensor:
        """(1 - r) l_n(w) + r l_n(w + eps_{y_n}) of each sample.

        Args:
            logits (`Tensor` of shape (B, C)): What the watched forward pass returned.
            labels (`Tensor` of shape (B,)): Class indices.
            losses_of (`Callable`): Logits of shape (B, C) -> losses of the samples, shape (B,).

        Returns:
            `Tensor` of shape (B,).

        Raises:
            ValueError: If labels are class probabilities, no module of the model gives the logits, or there is not one
                loss per sample.
        """
        if labels.ndim != 1:
            raise ValueError(
                f"The labels have shape {tuple(labels.shape)}; CC-SAM perturbs by one class per sample, so train it "
                "without mixup or cutmix."
            )
        self.was_used = True
        plain = losses_of(logits)
        check_per_sample(plain, len(labels))
        classifier, features = self._classifier_and_input(logits)
        signals = torch.autograd.grad(plain.sum(), logits, retain_graph=True)[0]  # d l_n / d logits_n, (B, C)
        perturbed_logits, radii = self._perturbed_logits(classifier, features, signals, labels)
        perturbed = losses_of(perturbed_logits.to(logits.dtype))
        self.statistics.add_perturbation([radii.mean()])
        self.statistics.add_sharpness((perturbed - plain).detach().mean())
        return (1 - self.ratio) * plain + self.ratio * perturbed

    def _classifier_and_input(self, logits: Tensor) -> tuple[nn.Module, Tensor]:
        """The classifier, which the first watched pass finds, and its input in this one."""
        features = self._input.find(logits)
        if features is None or self._input.classifier is None:
            raise ValueError(
                "No module with trained parameters gives the model's logits as its output; CC-SAM perturbs such a "
                "classifier, so let one train, or choose another method."
            )
        return self._input.classifier, features

    def _perturbed_logits(
        self, classifier: nn.Module, features: Tensor, signals: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits at w + eps_{y_n}, (B, C), and the radius of each class that is present, (K,)."""
        weights: dict[str, Tensor] = {name: p for name, p in classifier.named_parameters() if p.requires_grad}
        classes, group, sizes = labels.unique(return_inverse=True, return_counts=True)
        # Samples sorted into rows of one class each, (K, m); places that stay empty hold sample 0 with no signal.
        order = group.argsort(stable=True)
        column = torch.empty_like(group)
        column[order] = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[group[order]]
        samples = torch.zeros(len(classes), int(sizes.max()), dtype=torch.long, device=labels.device)
        samples[group, column] = torch.arange(len(labels), device=labels.device)
        shares = torch.zeros_like(samples, dtype=signals.dtype)
        shares[group, column] = 1 / sizes[group].to(signals.dtype)
        features = features.to(next(iter(weights.values())).dtype)
        rarity = self._rarity.on(features.device, features.dtype)[classes]
        one_class = partial(_one_class, classifier, weights, self.rho)
        logits, radii = vmap(one_class, randomness="different")(
            features[samples], (signals[samples] * shares[..., None]).to(features.dtype), rarity
        )
        return logits[group, column], radii


def _one_class(
    classifier: nn.Module, weights: dict[str, Tensor], rho: float, features: Tensor, signals: Tensor, rarity: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits of a class's samples at w + eps_i, and ||eps_i||; eps_i is a constant of the backward pass.

    Args:
        features (`Tensor` of shape (m, ...)): What reaches the classifier.
        signals (`Tensor` of shape (m, C)): Derivative of the class's mean loss in the logits.
        rarity (`Tensor`): (n_i - 1)^(-1/4).
    """
    at_w = {name: value.detach() for name, value in weights.items()}
    pull_back = vjp(lambda w: functional_call(classifier, w, (features.detach(),)), at_w)[1]
    (gradient,) = pull_back(signals)
    norm, norm_of_weights = (reduce(torch.add, ((t * t).sum() for t in d.values())).sqrt() for d in (gradient, at_w))
    radius = rho * rarity * (norm_of_weights / norm).sqrt()
    usable = torch.isfinite(radius) & torch.isfinite(norm)
    moved = {
        name: value + torch.where(usable, radius / norm * gradient[name], 0.0).detach()
        for name, value in weights.items()
    }
    return functional_call(classifier, moved, (features,)), torch.where(usable, radius, 0.0).detach()
