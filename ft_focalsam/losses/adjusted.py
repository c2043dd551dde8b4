"""Losses that adjust logits by the class frequencies."""

import math
from typing import Annotated

import torch
from torch import Tensor

from ..sharpness.hyperparameters import Hyperparameter
from .registry import register_loss
from .reweighted import cross_entropy


@register_loss("balanced_softmax")
def balanced_softmax(logits: Tensor, targets: Tensor, *, class_counts: Tensor) -> Tensor:
    """Balanced softmax (Ren et al., arXiv 2007.10740): cross-entropy of z + log n, logit adjustment of tau 1."""
    return cross_entropy(logits + class_counts.log(), targets)


Tau = Annotated[float, Hyperparameter("Strength tau of logit adjustment, also in vs.")]


@register_loss("logit_adjusted")
def logit_adjusted(
    logits: Tensor, targets: Tensor, *, class_counts: Tensor, logit_adjustment_tau: Tau = 1.0
) -> Tensor:
    """Logit-adjusted cross-entropy (Menon et al., arXiv 2007.07314, eq. 10): of z + tau log pi.

    It trains on logits shifted by the class frequencies, so that the unshifted ones are right for balanced classes.
    tau = 1 is consistent for the balanced error, 0 is cross-entropy.
    """
    prior = class_counts / class_counts.sum()
    return cross_entropy(logits + logit_adjustment_tau * prior.log(), targets)


@register_loss("vs")
def vs(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    vs_gamma: Annotated[
        float, Hyperparameter("Exponent gamma of the class frequency by which vs scales logits.", low=0)
    ] = 0.15,
    logit_adjustment_tau: Tau = 1.0,
) -> Tensor:
    """Vector scaling (Kini et al., arXiv 2103.01550): cross-entropy of Delta z + tau log pi.

    Delta_k = (n_k / max n)^gamma scales the logits of rare classes down in training; gamma = 0 is logit adjustment.
    """
    scales = (class_counts / class_counts.max()) ** vs_gamma
    return logit_adjusted(
        scales * logits, targets, class_counts=class_counts, logit_adjustment_tau=logit_adjustment_tau
    )


@register_loss("lade")
def lade(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    lade_alpha: Annotated[float, Hyperparameter("Weight alpha of the regulariser of lade.", low=0)] = 0.1,
    lade_lambda: Annotated[
        float, Hyperparameter("Weight lambda of the squared term inside the regulariser of lade.", low=0)
    ] = 0.1,
) -> Tensor:
    """LADE (Hong et al., arXiv 2012.00321): balanced softmax and a regulariser over the batch.

        mean_n l_n = CE(z + log pi, y) + alpha sum_c pi_c (-1/N_c sum_{y_n = c} z_nc + S_c + lambda S_c^2)
        S_c = log 1/B sum_n (1 / C) / pi_{y_n} exp(z_nc)

    with N_c samples of class c in the batch. It pins every logit z_c to the log density ratio of p(x | c) to a
    balanced p(x). (The public code weighs the terms of S_c by class c, not by the label y_n.) The first part of the
    regulariser counts towards the sample it is of, S_c towards all alike. So the samples of a batch interact, the
    value depends on the batch, and a sharpness step needs a backward pass more.
    """
    size = len(logits)
    prior = class_counts / class_counts.sum()
    importance = targets @ (1 / (len(prior) * prior))
    log_means = (logits + importance.log()[:, None]).logsumexp(dim=0) - math.log(size)  # S_c
    shares = targets / targets.sum(dim=0).clamp(min=torch.finfo(logits.dtype).tiny)  # 1/N_c of the samples of c
    own = size * (shares * logits) @ prior
    shared = prior @ (log_means + lade_lambda * log_means**2)
    return balanced_softmax(logits, targets, class_counts=class_counts) + lade_alpha * (shared - own)
