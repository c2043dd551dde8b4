"""Losses with closed forms, and a tiny adapted model, for the tests of the analysis."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ft_focalsam.analysis import ClassLoss
from ft_focalsam.sharpness.targets import Target


class Quadratic:
    """l_n(w) = g_n w + 1/2 w A_n w, whose mean over n has gradient g + A w and Hessian A; w in two tensors.

    Attributes:
        weights (`list[Tensor]`): Of shapes (2, 3) and (2,), at which L is looked at.
        gradient, hessian (`Tensor`): Of the mean loss at w = 0, shape (8,), and anywhere, (8, 8).
    """

    def __init__(self, *, images: int = 5, convex: bool = True, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.slopes = torch.randn(images, 8, generator=generator, dtype=torch.float64)
        roots = torch.randn(images, 8, 8, generator=generator, dtype=torch.float64)
        self.curvatures = roots @ roots.mT if convex else roots + roots.mT
        self.gradient, self.hessian = self.slopes.mean(dim=0), self.curvatures.mean(dim=0)
        self.weights = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (2,))]

    def loss(self, *, batch_size: int = 2) -> ClassLoss:
        """The mean over all images, in batches of which the last one is smaller."""
        target = Target(dict(zip(self.weights, ("matrix", "vector"), strict=True)))
        return ClassLoss(target, self.losses_of, torch.arange(len(self.slopes)).split(batch_size))

    def losses_of(self, rows: Tensor) -> Tensor:
        w = torch.cat([weight.reshape(-1) for weight in self.weights])
        return self.slopes[rows] @ w + 0.5 * torch.einsum("i,nij,j->n", w, self.curvatures[rows], w)


def largest_increase(gradient: Tensor, hessian: Tensor, rho: float) -> float:
    """max over ||e|| <= rho of g e + 1/2 e A e for a positive definite A: (mu - A) e = g with mu above all eigenvalues
    of A such that ||e|| = rho, found by bisection (Moré and Sorensen, 1983)."""
    eigenvalues, axes = torch.linalg.eigh(hessian)
    slope = axes.T @ gradient
    low, high = float(eigenvalues[-1]), float(eigenvalues[-1] + gradient.norm() / rho)
    for _ in range(200):
        mu = (low + high) / 2
        if float((slope / (mu - eigenvalues)).norm()) > rho:
            low = mu
        else:
            high = mu
    e = slope / (high - eigenvalues)
    return float(slope @ e + 0.5 * e @ (eigenvalues * e))


class Regression(nn.Module):
    """Logistic regression of 4 features to 3 classes, float64."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3, dtype=torch.float64)

    def loss(self, features: Tensor, labels: Tensor) -> ClassLoss:
        """Cross-entropy in batches of 4."""
        batches = list(zip(features.split(4), labels.split(4), strict=True))
        return ClassLoss(
            Target({p: name for name, p in self.named_parameters()}),
            lambda batch: F.cross_entropy(self.layer(batch[0]), batch[1], reduction="none"),
            batches,
        )
