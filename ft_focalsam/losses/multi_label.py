"""Losses for several classes a sample: a sum of one two-way decision a class, over the sigmoid of each logit.

All are means over the C classes, as `torch.nn.BCEWithLogitsLoss` has it; a sum would only scale the learning rate.
"""

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sharpness.hyperparameters import Hyperparameter
from .registry import register_loss


@register_loss("bce", multi_label=True)
def bce(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy: l(z, y) = -1/C sum_k [y_k log p_k + (1 - y_k) log(1 - p_k)] with p = sigmoid(z)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)


@register_loss("asymmetric", multi_label=True)
def asymmetric(
    logits: Tensor,
    targets: Tensor,
    *,
    asymmetric_gamma_positive: Annotated[
        float, Hyperparameter("Focusing parameter of the asymmetric loss for the classes of an image.", low=0)
    ] = 1.0,
    asymmetric_gamma_negative: Annotated[
        float,
        Hyperparameter("Focusing parameter of the asymmetric loss for the classes that an image has not.", low=0),
    ] = 4.0,
    asymmetric_margin: Annotated[
        float,
        Hyperparameter(
            "Probability below which the asymmetric loss drops a class that an image has not.",
            low=0,
            high=1,
            open_high=True,
        ),
    ] = 0.05,
) -> Tensor:
    """Asymmetric loss (Ridnik et al., arXiv 2009.14119): focal, stronger for classes that an image has not.

        l(z, y) = -1/C sum_k [y_k (1 - p_k)^g+ log p_k + (1 - y_k) m_k^g- log(1 - m_k)],  m_k = max(p_k - margin, 0)

    with p = sigmoid(z). Both gammas and the margin at 0 are binary cross-entropy. The defaults are those of the public
    code (g+ = 1, g- = 4, margin 0.05), which sums over the classes and the batch and can stop the gradient of the
    focusing factors; here it flows, as in the formula.
    """
    p = logits.sigmoid()
    positive = _power(1 - p, asymmetric_gamma_positive) * F.logsigmoid(logits)
    if asymmetric_margin:
        shifted = (p - asymmetric_margin).clamp(min=0)
        log_complement = torch.log1p(-shifted)
    else:  # exact also where p rounds to 1
        shifted, log_complement = p, F.logsigmoid(-logits)
    negative = _power(shifted, asymmetric_gamma_negative) * log_complement
    return -(targets * positive + (1 - targets) * negative).mean(dim=1)


def _power(base: Tensor, exponent: float) -> Tensor:
    """base^exponent, with a finite gradient where the base is 0 and the exponent below 1."""
    if exponent == 0:
        return torch.ones_like(base)
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent


@register_loss("distribution_balanced", multi_label=True)
def distribution_balanced(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    num_samples: float,
    db_alpha: Annotated[
        float, Hyperparameter("Lift alpha of the weights of the distribution-balanced loss.", low=0)
    ] = 0.1,
    db_beta: Annotated[
        float, Hyperparameter("Steepness beta of the weights of the distribution-balanced loss.", low=0)
    ] = 10.0,
    db_mu: Annotated[
        float, Hyperparameter("Position mu of the weights of the distribution-balanced loss, between 0 and 1.")
    ] = 0.2,
    db_kappa: Annotated[
        float,
        Hyperparameter(
            "Size kappa of the shift of logits by class frequency in the distribution-balanced loss.", low=0
        ),
    ] = 0.05,
    db_lambda: Annotated[
        float,
        Hyperparameter(
            "Scale lambda of the logits of classes that an image has not in the distribution-balanced loss.",
            low=0,
            open_low=True,
        ),
    ] = 2.0,
) -> Tensor:
    """Distribution-balanced loss (Wu et al., arXiv 2007.09654): rebalanced weights, and tolerance to negatives.

        l(z, y) = 1/C sum_k w_k [y_k log(1 + e^-(z_k - v_k)) + (1 - y_k) / lambda log(1 + e^(lambda (z_k - v_k)))]
        w_k = alpha + sigmoid(beta (r_k - mu)),  r_k = (1 / n_k) / sum_j y_j / n_j
        v_k = kappa / lambda log(N / n_k - 1)

    r_k is the chance of drawing a sample for class k by that of drawing it for any of its classes, where classes are
    drawn alike: a rare class counts in full also beside frequent ones. v shifts the logits by the class frequency in
    training alone, as a bias does; lambda saturates the loss of the classes that an image has not, of which there are
    many. A sample of no class has r = infinity, so that w = alpha + 1. A class that all samples have has v = -kappa /
    lambda log(N), as if one had it not. The formula of v (with its lambda) and the defaults are those of the public
    code for COCO-MLT; the focal factor that it adds is left out.
    """
    inverse = 1 / class_counts
    ratio = inverse / (targets @ inverse)[:, None]
    weights = db_alpha + torch.sigmoid(db_beta * (ratio - db_mu))
    others = (num_samples - class_counts).clamp(min=1)  # samples that do not have the class
    shifted = logits - db_kappa / db_lambda * (others / class_counts).log()
    positive = targets * F.softplus(-shifted)
    negative = (1 - targets) * F.softplus(db_lambda * shifted) / db_lambda
    return (weights * (positive + negative)).mean(dim=1)
