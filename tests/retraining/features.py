"""Features and heads to retrain, and the training written out in NumPy, in float64."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tuning.tiny import NAMES

from ft_focalsam import LongTailClassifier
from ft_focalsam.data.samplers import ClassSampler

COUNTS = (30, 14, 7, 3, 1)


@dataclass
class GivenFeatures:
    """Features of some images, in the place of `FrozenFeatures`."""

    parts: dict[str, tuple[Tensor, Tensor]]
    counts: np.ndarray = field(default_factory=lambda: np.array(COUNTS))
    asked: list[str] = field(default_factory=list)

    def of(self, split: str) -> tuple[Tensor, Tensor]:
        self.asked.append(split)
        return self.parts[split]


def given_features(size: int, *, seed: int = 0) -> GivenFeatures:
    """Of 55 training images, and of 40 held-out ones."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, size, generator=generator)
    parts = {}
    for split, counts in (("train", COUNTS), ("validation", (20, 10, 5, 3, 2))):
        labels = torch.arange(5).repeat_interleave(torch.tensor(counts))
        parts[split] = centres[labels] + 0.8 * torch.randn(len(labels), size, generator=generator), labels
    return GivenFeatures(parts)


def classifier(backbone: str, head: str, *, seed: int = 1) -> LongTailClassifier:
    """With rows of different lengths in its head."""
    torch.manual_seed(seed)
    model = LongTailClassifier.from_backbone(backbone, NAMES, head=head, head_scale=5.0).eval()
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for parameter in model.head.parameters():
            if parameter.ndim == 2:
                parameter *= torch.tensor([3.0, 2.0, 1.0, 0.7, 0.4])[:, None]
    return model


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def sgd(start, gradient_of, features: Tensor, labels: Tensor, options) -> list[np.ndarray]:
    """Momentum 0.9 and a cosine schedule over the steps, from (weights, f, y) -> gradients of the mean loss."""
    x, y = features.double().numpy(), labels.numpy()
    weights = [np.array(each, dtype=np.float64) for each in start]
    velocities = [np.zeros_like(each) for each in weights]
    sampler = ClassSampler(y, "class_balanced", seed=options.seed)
    size, step = options.train_batch_size, 0
    steps = options.epochs * int(np.ceil(len(y) / size))
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        order = list(sampler)
        for begin in range(0, len(order), size):
            rows = order[begin : begin + size]
            rate = options.learning_rate * (1 + np.cos(np.pi * step / steps)) / 2
            for i, gradient in enumerate(gradient_of(weights, x[rows], y[rows])):
                velocities[i] = 0.9 * velocities[i] + gradient + options.weight_decay * weights[i]
            weights = [w - rate * v for w, v in zip(weights, velocities, strict=True)]
            step += 1
    return weights
