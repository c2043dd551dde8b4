"""Training on features with class-balanced sampling."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..data.samplers import ClassSampler
from .registry import BalancedTraining


def train_balanced(
    parameters: Sequence[Tensor],
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    features: Tensor,
    labels: Tensor,
    options: BalancedTraining,
) -> float:
    """Train by SGD with momentum 0.9 and a cosine schedule, on batches in which every class is drawn alike.

    Args:
        parameters (sequence of `Tensor`): What is trained.
        loss_of (`Callable`): (features of shape (B, D), labels of shape (B,), epoch from 0) -> loss, without
            dimensions.
        features (`Tensor` of shape (N, D)), labels (`Tensor` of shape (N,)): All images.
        options (`BalancedTraining`): Epochs, batch size, learning rate, weight decay, seed.

    Returns:
        Mean loss of the last epoch.

    Raises:
        ValueError: If the loss is not finite.
    """
    sampler = ClassSampler(labels.cpu().numpy(), "class_balanced", seed=options.seed)
    optimizer = torch.optim.SGD(parameters, lr=options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)
    steps = options.epochs * -(-len(labels) // options.train_batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    mean = torch.zeros(())
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        losses = []
        for rows in torch.tensor(list(sampler)).split(options.train_batch_size):
            rows = rows.to(labels.device)
            loss = loss_of(features[rows], labels[rows], epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        if not torch.isfinite(mean):
            raise ValueError(
                f"The loss is {float(mean)} in epoch {epoch + 1} at learning_rate {options.learning_rate:g}; set it "
                "to less."
            )
    return float(mean)
