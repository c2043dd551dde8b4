"""The second stage of CC-SAM (Zhou et al., CVPR 2023), as the authors' code has it; `sharpness/class_conditional.py`
is the first.

The head is trained on with class-balanced sampling. In each batch every class i shifts the features f_n of its samples
together by a vector of length strength * omega_i along the gradient of its loss:

    omega_i = log(n_max / n_i + 0.01) / 2
    f'_n    = f_n + strength * omega_i g_n / sqrt(sum_m |g_m|^2),    g_n = d l_n / d f_n, m over class i in the batch
    loss    = (1 - a) 1/B sum_n l_n(f_n) + a 1/B sum_n omega_{y_n} l_n(f'_n)

with a = min((e + 1) / epochs, max_share) in epoch e = 0, 1, ...
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from ..base.ranges import Range
from .registry import BalancedTraining, register_retraining

if TYPE_CHECKING:
    from torch import Tensor


@register_retraining("cc_sam")
@dataclass
class AdversarialFeatures(BalancedTraining):
    """The head trained on, with adversarially shifted features. For every head but those computed from texts."""

    title = "CC-SAM, second stage"
    epochs: Annotated[int, Range(1)] = field(default=30, metadata={"help": "epochs, of as many draws as images"})
    train_batch_size: Annotated[int, Range(1)] = field(default=64, metadata={"help": "features a step"})
    learning_rate: Annotated[float, Range(0, open_low=True)] = field(
        default=0.01, metadata={"help": "of the first step"}
    )
    weight_decay: Annotated[float, Range(0)] = field(default=2e-4, metadata={"help": "of what is trained"})
    strength: Annotated[float, Range(0)] = field(
        default=1.0, metadata={"help": "factor of the length of the shifts, in units of the features"}
    )
    max_share: Annotated[float, Range(0, 1)] = field(
        default=0.3, metadata={"help": "highest share of the loss on shifted features"}
    )

    def retrain(self, model, data, *, say) -> dict:
        import torch

        from .training import train_balanced

        features, labels = data.of("train")
        counts = torch.as_tensor(data.counts, dtype=features.dtype, device=features.device)
        weights = class_weights(counts)
        parameters = list(model.head.parameters())
        trained = [p.requires_grad for p in parameters]
        model.head.requires_grad_(True)

        def loss_of(x, y, epoch):
            share = min((epoch + 1) / self.epochs, self.max_share)
            return shifted_loss(model.head, x, y, weights, strength=self.strength, share=share)

        loss = train_balanced(parameters, loss_of, features, labels, self)
        for parameter, is_trained in zip(parameters, trained, strict=True):
            parameter.requires_grad_(is_trained)
            parameter.grad = None
        return {"final_loss": loss}


def class_weights(counts: "Tensor") -> "Tensor":
    """omega of each class, from its training images."""
    return (counts.max() / counts + 0.01).log() / 2


def shifted_loss(
    head: Callable[["Tensor"], "Tensor"],
    features: "Tensor",
    labels: "Tensor",
    weights: "Tensor",
    *,
    strength: float,
    share: float,
) -> "Tensor":
    """The loss of a batch.

    Args:
        head (`Callable`): Features of shape (B, D) -> logits of shape (B, C), of each sample alone.
        features (`Tensor` of shape (B, D)): f.
        labels (`Tensor` of shape (B,)): y.
        weights (`Tensor` of shape (C,)): omega.
        strength (`float`): Factor of the length of the shifts.
        share (`float`, 0 to 1): a.
    """
    import torch
    from torch.nn.functional import cross_entropy

    features = features.detach().requires_grad_()
    losses = cross_entropy(head(features), labels, reduction="none")
    (gradient,) = torch.autograd.grad(losses.sum(), features, retain_graph=True)
    squares = torch.zeros_like(weights).index_add_(0, labels, gradient.square().sum(dim=1))
    lengths = squares.sqrt()[labels]  # of the gradients of a sample's class together
    factors = torch.where(lengths > 0, strength * weights[labels] / lengths, 0.0)
    shifted = features.detach() + factors[:, None] * gradient
    shifted_losses = weights[labels] * cross_entropy(head(shifted), labels, reduction="none")
    return (1 - share) * losses.mean() + share * shifted_losses.mean()
