"""What losses over a softmax are made of."""

import torch
from torch import Tensor


def expectation(class_losses: Tensor, targets: Tensor) -> Tensor:
    """sum_k q_k l(z, k) of each sample."""
    return (class_losses * targets).sum(dim=1)


def log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p_k) from log p_k, exact also where p_k rounds to 1: there as the sum of the other probabilities."""
    top = log_p.argmax(dim=1, keepdim=True)
    others = log_p.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.log1p(-log_p.exp().scatter(1, top, 0.0)).scatter(1, top, others)
