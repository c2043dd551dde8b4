"""Curvature of a class's loss: the largest eigenvalue of its Hessian, by Lanczos, and the trace, by Hutchinson."""

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from ..sharpness.directions import Parts
from ..sharpness.targets import Target
from .class_loss import ClassLoss, gaussian, random_parts

LANCZOS_VECTORS = 20  # in memory at a time
MOST_RESTARTS = 30  # each takes nearly as many products with the Hessian as there are vectors


def largest_eigenvalue(loss: ClassLoss, *, tolerance: float = 1e-3, seed: int = 0) -> float:
    """The largest eigenvalue (not the largest in size) of the Hessian at w, by ARPACK's restarted Lanczos.

    Args:
        loss (`ClassLoss`): L_i; at least two weights are perturbed.
        tolerance (`float`): Relative error.
        seed (`int`): Of the vector that it starts from.

    Returns:
        `float`: NaN where it does not converge.
    """
    target = loss.target

    def product(vector: np.ndarray) -> np.ndarray:
        return _flat(loss.hessian_vector(_unflat(vector, target)))

    start = _flat(random_parts(target, gaussian, seed=seed))
    if not product(start).any():
        return 0.0  # of a loss without curvature, which ARPACK refuses
    operator = LinearOperator((len(start), len(start)), matvec=product, dtype=start.dtype)
    vectors = min(len(start), LANCZOS_VECTORS)
    try:
        found = eigsh(
            operator, 1, which="LA", v0=start, ncv=vectors, maxiter=MOST_RESTARTS, tol=tolerance,
            return_eigenvectors=False,
        )  # fmt: skip
    except ArpackNoConvergence:
        return float("nan")
    return float(found[0])


def trace_probes(loss: ClassLoss, *, probes: int = 20, seed: int = 0) -> np.ndarray:
    """v^T H v for random signs v (Hutchinson, 1989), whose mean estimates the trace of the Hessian H at w.

    Args:
        loss (`ClassLoss`): L_i.
        probes (`int`): Number of v, each of which takes one product with the Hessian.
        seed (`int`): Of the v, which are the same for all classes, and for all runs that perturb tensors of the same
            shapes.

    Returns:
        `np.ndarray`: float64 of shape (probes,).
    """
    values = []
    for number in range(probes):
        probe = random_parts(loss.target, _signs, seed=(seed << 20) + number)
        product = loss.hessian_vector(probe)
        values.append(sum(float((probe[tensor] * part).sum(dtype=torch.float64)) for tensor, part in product.items()))
    return np.array(values)


def standard_error(probes: np.ndarray) -> float:
    """Of the mean of probes, shape (P,): their standard deviation over the root of their number; NaN of one."""
    return float(np.std(probes, ddof=1) / len(probes) ** 0.5) if len(probes) > 1 else float("nan")


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


def _flat(parts: Parts) -> np.ndarray:
    return torch.cat([part.detach().reshape(-1) for part in parts.values()]).cpu().numpy()


def _unflat(vector: np.ndarray, target: Target) -> Parts:
    parts = torch.from_numpy(vector.reshape(-1)).split([tensor.numel() for tensor in target.names])
    return {
        tensor: part.view(tensor.shape).to(tensor.device, torch.promote_types(tensor.dtype, torch.float32))
        for tensor, part in zip(target.names, parts, strict=True)
    }
