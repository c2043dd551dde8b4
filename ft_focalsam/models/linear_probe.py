"""A linear probe in closed form: class-balanced ridge regression on the features of the frozen backbone."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # times the mean eigenvalue of the covariance
TEMPERATURES = tuple(2.0**power for power in range(9))
CHOOSING = 20_000_000  # at most so many logits are looked at for the choice of the two
ROWS = 8192  # of features in float64 at a time


class LinearFit(NamedTuple):
    """
    Attributes:
        weight (`Tensor` of shape (C, D)): W, float64.
        bias (`Tensor` of shape (C,), *optional*): b, float64.
        penalty (`float`): The chosen ridge, in units of the mean eigenvalue of the covariance.
        temperature (`float`): What the regression was multiplied by to give logits.
    """

    weight: Tensor
    bias: Tensor | None
    penalty: float
    temperature: float


def fit_linear_probe(features: Tensor, labels: Tensor, num_classes: int, *, has_bias: bool = True) -> LinearFit:
    """Logits W x + b that start a head, as good for the rare classes as for the frequent ones.

    W and b minimise sum_n c_n |W x_n + b - e_{y_n}|^2 + penalty * |W|^2 with e_y the one-hot vector of class y and
    c_n = 1 / (C n_{y_n}), so that every class weighs the same however many images it has. As in Fisher's
    discriminant a covariance takes part: unlike class means it is not misled by what all features have in common. The
    fit is multiplied by a temperature, as regression on one-hot targets gives flat probabilities.
    Penalty and temperature are those with the least class-balanced cross-entropy on left-out images; leaving out
    one at a time needs no second fit (Allen, 1974, the PRESS statistic).

    Args:
        features (`Tensor` of shape (N, D)): x, on any device; the fit runs on the CPU, in float64.
        labels (`Tensor` of shape (N,)): y, 0 to C - 1.
        num_classes (`int`): C.
        has_bias (`bool`): Whether there is a b.

    Raises:
        ValueError: If a class has no image, or a feature is not finite.
    """
    features, labels = features.detach().cpu(), labels.cpu()
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise ValueError(f"Class {int((counts == 0).nonzero()[0])} has no image to fit the head to.")
    if not features.isfinite().all():
        raise ValueError("The backbone gives features that are not finite; load it with backbone_dtype float32.")
    weights = 1 / (num_classes * counts.double()[labels])
    mean, gram, targets = _moments(features, labels, weights, num_classes, centre=has_bias)
    eigenvalues, axes = torch.linalg.eigh(gram)
    eigenvalues, targets = eigenvalues.clamp(min=0), targets @ axes
    ridges = eigenvalues.mean().clamp(min=torch.finfo(torch.float64).tiny) * torch.tensor(PENALTIES).double()
    base = 1 / num_classes if has_bias else 0.0  # the mean target, which b is where x is at its mean
    rows = _rows_to_choose_on(labels, counts, num_classes)
    x = (features[rows].double() - mean) @ axes
    found = []
    for penalty, ridge in zip(PENALTIES, ridges, strict=True):
        loss, temperature = _left_out_loss(x, labels[rows], weights[rows], targets, 1 / (eigenvalues + ridge), base)
        found.append((loss, penalty, temperature, ridge))
    _, penalty, temperature, ridge = min(found)
    weight = temperature * (targets / (eigenvalues + ridge)) @ axes.T
    return LinearFit(weight, temperature * base - weight @ mean if has_bias else None, penalty, temperature)


def _moments(
    features: Tensor, labels: Tensor, weights: Tensor, num_classes: int, *, centre: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean of the features, 0 if not `centre`, shape (D,); around it their weighted second moments, shape
    (D, D), and sum_n c_n e_{y_n} x_n^T, shape (C, D); in float64."""
    size = features.shape[1]
    mean = torch.zeros(size, dtype=torch.float64)
    if centre:
        for rows in _chunks(len(features)):
            mean += weights[rows] @ features[rows].double()
    gram = torch.zeros(size, size, dtype=torch.float64)
    targets = torch.zeros(num_classes, size, dtype=torch.float64)
    for rows in _chunks(len(features)):
        x = features[rows].double() - mean
        weighted = x * weights[rows, None]
        gram += weighted.T @ x
        targets.index_add_(0, labels[rows], weighted)
    return mean, gram, targets


def _chunks(length: int) -> Iterable[slice]:
    return (slice(start, start + ROWS) for start in range(0, length, ROWS))


def _rows_to_choose_on(labels: Tensor, counts: Tensor, num_classes: int) -> Tensor:
    """Numbers of images, evenly over the classes' images; of classes with two or more where there are any."""
    order = labels.argsort(stable=True)
    if (counts > 1).any():
        order = order[counts[labels[order]] > 1]
    few = min(len(order), max(2000, CHOOSING // num_classes))
    return order[torch.linspace(0, len(order) - 1, few).long()]


def _left_out_loss(
    x: Tensor, labels: Tensor, weights: Tensor, targets: Tensor, shrink: Tensor, base: float
) -> tuple[float, float]:
    """Least class-balanced cross-entropy over the temperatures, each image left out of the fit, and its temperature.

    Args:
        x (`Tensor` of shape (n, D)): Centred features along the axes of the covariance.
        labels, weights (`Tensor` of shape (n,)): y and c.
        targets (`Tensor` of shape (C, D)): sum_n c_n e_{y_n} x_n^T along the axes.
        shrink (`Tensor` of shape (D,)): Inverse of the penalised eigenvalues.
        base (`float`): b at the mean of x, 0 without.
    """
    outputs = (x * shrink) @ targets.T + base
    leverage = weights * (x.square() @ shrink + float(base > 0))
    rows = torch.arange(len(x))
    outputs[rows, labels] -= leverage
    outputs /= (1 - leverage).clamp(min=1e-9)[:, None]
    best = (float("inf"), 1.0)
    for temperature in TEMPERATURES:
        losses = F.cross_entropy(temperature * outputs, labels, reduction="none")
        best = min(best, (float((weights * losses).sum() / weights.sum()), temperature))
    return best
