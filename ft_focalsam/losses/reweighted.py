"""Cross-entropy, and losses that weigh it by class or by sample."""

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sharpness.hyperparameters import Hyperparameter
from .pieces import expectation, log_complement
from .registry import register_loss


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_i), scaled to a mean of 1 over the classes (Cui et al., arXiv 1901.05555).

    Args:
        class_counts (`Tensor` of shape (C,)): n_i, all above 0.
        beta (`float`, 0 to below 1): 0 weighs all classes alike; towards 1 the weights approach 1 / n_i.

    Raises:
        ValueError: If `beta` is out of range.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"effective_number_beta is {beta}; set it to at least 0 and below 1.")
    log_beta = math.log(beta) if beta > 0 else -math.inf
    weights = -1 / torch.expm1(class_counts * log_beta)
    return weights / weights.mean()


@register_loss("cross_entropy")
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy: l(z, k) = -log softmax(z)_k."""
    return expectation(-F.log_softmax(logits, dim=1), targets)


Beta = Annotated[
    float,
    Hyperparameter(
        "Parameter beta of the effective number of samples, in the loss class_balanced, in deferred re-weighting and "
        "in the sampler effective_number.",
        low=0,
        high=1,
        open_high=True,
    ),
]


@register_loss("class_balanced")
def class_balanced(
    logits: Tensor, targets: Tensor, *, class_counts: Tensor, effective_number_beta: Beta = 0.9999
) -> Tensor:
    """Cross-entropy weighted by the inverse effective number of samples (Cui et al., arXiv 1901.05555).

    l(z, k) = -w_k log softmax(z)_k with w of `effective_number_weights`; beta = 0 is cross-entropy.
    """
    weights = effective_number_weights(class_counts, effective_number_beta)
    return expectation(-weights * F.log_softmax(logits, dim=1), targets)


@register_loss("grw")
def grw(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    grw_exponent: Annotated[
        float, Hyperparameter("Exponent of the inverse class frequency in the weights of grw.", low=0)
    ] = 1.2,
) -> Tensor:
    """Generalised re-weighting (Zhang et al., arXiv 2103.16370): cross-entropy weighted by (1 / pi_k)^a.

    l(z, k) = -w_k log softmax(z)_k with w scaled to a mean of 1 over the classes; a = 0 is cross-entropy, a = 1
    weighs by inverse frequency.
    """
    weights = (class_counts.min() / class_counts) ** grw_exponent
    return expectation(-weights / weights.mean() * F.log_softmax(logits, dim=1), targets)


@register_loss("focal")
def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    focal_loss_gamma: Annotated[
        float,
        Hyperparameter("Focusing parameter gamma of the focal loss; focal_gamma is that of Focal-SAM.", low=0),
    ] = 2.0,
) -> Tensor:
    """Focal loss over a softmax (Lin et al., arXiv 1708.02002, eq. 4): l(z, k) = -(1 - p_k)^gamma log p_k.

    The gamma of this loss is not that of Focal-SAM; 0 is cross-entropy.
    """
    log_p = F.log_softmax(logits, dim=1)
    return expectation(-(focal_loss_gamma * log_complement(log_p)).exp() * log_p, targets)


@register_loss("influence_balanced")
def influence_balanced(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    features: Tensor,
    progress: float,
    ib_alpha: Annotated[float, Hyperparameter("Factor alpha of influence_balanced.", low=0, open_low=True)] = 1000.0,
    ib_start: Annotated[
        float,
        Hyperparameter(
            "Fraction of training after which influence_balanced takes the place of cross-entropy.", low=0, high=1
        ),
    ] = 0.5,
) -> Tensor:
    """Influence-balanced loss (Park et al., arXiv 2110.02444), after cross-entropy for a share of training.

    l(z, k) = -lambda_k log p_k / (||p - e_k||_1 ||h||_1 + 0.001) from progress `ib_start` on, with h the `features`
    and lambda_k proportional to 1 / n_k, of mean `ib_alpha` over the classes. As in the public code, the denominator
    is differentiated too.
    """
    if progress < ib_start:
        return cross_entropy(logits, targets)
    rarity = class_counts.min() / class_counts
    log_p = F.log_softmax(logits, dim=1)
    influence = 2 * log_complement(log_p).exp() * features.abs().flatten(1).sum(dim=1, keepdim=True)
    return expectation(-ib_alpha * rarity / rarity.mean() * log_p / (influence + 1e-3), targets)
