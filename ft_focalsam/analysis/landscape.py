"""Loss landscapes along filter-normalised random directions (Li et al., arXiv 1712.09913)."""

import numpy as np
import torch
from torch import Tensor, nn

from ..sharpness.collectives import total_norm
from ..sharpness.directions import Parts
from ..sharpness.targets import Target, base_layer
from .class_loss import ClassLoss, combined, gaussian, random_parts


def filter_normalised(target: Target, *, seed: int) -> Parts:
    """A random direction whose filters, the rows of a weight, have the norms of the filters of the weights. As in the
    paper, vectors (biases, scales of normalisation layers) stay where they are.

    The same seed draws the same noise for all models with tensors of the same shapes.

    Raises:
        ValueError: If all that is perturbed are vectors.
    """
    if all(tensor.ndim < 2 for tensor in target.names):
        raise ValueError(
            "All that is perturbed are vectors, which have no filters to normalise a direction by; set line_points "
            "and plane_points to 0, or perturb to 'trained'."
        )
    values = weight_values(target)
    noise = random_parts(target, gaussian, seed=seed)
    return {tensor: _normalised(part, values[tensor]) for tensor, part in noise.items()}


def weight_values(target: Target) -> Parts:
    """The weights that are perturbed; merged ones, which the model holds nowhere, are read off the adapted layer."""
    merged = {weight: _merged_value(layer) for layer, weight in target.layers.items()}
    return {tensor: merged.get(tensor, tensor).detach() for tensor in target.names}


def weight_norm(target: Target) -> float:
    """||w||, of the weights that are perturbed."""
    return float(total_norm(list(weight_values(target).values())))


def offsets(points: int, extent: float) -> np.ndarray:
    """Evenly spaced from -extent to extent, float64 of shape (points,); with an odd number, the middle is 0."""
    return np.linspace(-extent, extent, points)


def line(loss: ClassLoss, direction: Parts, at: np.ndarray) -> np.ndarray:
    """L(w + a d) for each a of `at`, shape (P,)."""
    return np.array([loss.value(combined((float(a), direction))) for a in at])


def plane(loss: ClassLoss, first: Parts, second: Parts, at: np.ndarray) -> np.ndarray:
    """L(w + a d + b e) for each a and b of `at`, shape (P, P): a row for each a."""
    return np.array([[loss.value(combined((float(a), first), (float(b), second))) for b in at] for a in at])


def _normalised(noise: Tensor, weight: Tensor) -> Tensor:
    if noise.ndim < 2:
        return torch.zeros_like(noise)
    length = torch.linalg.vector_norm(noise.flatten(1), dim=1)
    wanted = torch.linalg.vector_norm(weight.to(noise.dtype).flatten(1), dim=1)
    return noise * (wanted / length).view(-1, *[1] * (noise.ndim - 1))


@torch.no_grad()
def _merged_value(layer: nn.Module) -> Tensor:
    """W of shape (out, in), whatever the adapter makes of it: what the layer makes of the unit vectors, less its
    bias."""
    base = base_layer(layer)
    weight = base.weight
    unit = torch.eye(base.in_features, dtype=weight.dtype, device=weight.device)
    return (layer(unit) - layer(torch.zeros_like(unit[:1]))).T
