"""Losses with margins."""

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from ..sharpness.hyperparameters import Hyperparameter
from .pieces import expectation, log_complement
from .registry import register_loss


@register_loss("ldam")
def ldam(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    head_scale: float = 1.0,
    ldam_max_margin: Annotated[
        float, Hyperparameter("Margin of the rarest class in ldam, between cosines.", low=0)
    ] = 0.5,
    ldam_scale: Annotated[
        float | None,
        Hyperparameter(
            "Scale s of the logits in ldam; by default that of the model's head, 1 where the head has none.",
            low=0,
            open_low=True,
        ),
    ] = None,
) -> Tensor:
    """Label-distribution-aware margins (Cao et al., arXiv 1906.07413).

    l(z, k) = -log softmax(z - m_k e_k)_k with m_k = s Delta_k and Delta_k proportional to n_k^(-1/4), the largest
    being `ldam_max_margin`. The margins are those of cosines, and the logits are s times cosines: a cosine head's
    scale is `ldam_scale`, s. The public code has s = 30.
    """
    scale = head_scale if ldam_scale is None else ldam_scale
    margins = scale * ldam_max_margin * (class_counts.min() / class_counts) ** 0.25
    log_p = F.log_softmax(logits, dim=1)
    return expectation(-F.logsigmoid(log_p - log_complement(log_p) - margins), targets)
