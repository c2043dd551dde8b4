"""In which direction the weights are perturbed: epsilon = rho d / ||d||. A new direction is one class in this file."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from .collectives import total_norm
from .hyperparameters import Hyperparameter, check_hyperparameters
from .targets import Target

Parts = dict[Tensor, Tensor]  # a tensor of the target -> its part of a direction
Decay = Annotated[
    float,
    Hyperparameter(
        "Share of the moving average of gradients that friendly and momentum keep in a step.",
        argument="ascent_decay",
        low=0,
        high=1,
        open_high=True,
    ),
]
Sigma = Annotated[
    float,
    Hyperparameter(
        "Share sigma of that average that friendly subtracts from the gradient.", argument="friendly_sigma", low=0
    ),
]


class Direction(ABC):
    """One instance serves one run; what it carries from step to step is saved with the run.

    Attributes:
        is_known_before (`bool`): Whether d is known before the batch is seen, as the one-pass evaluation needs it.
        learns (`bool`): Whether d depends on gradients of earlier steps.
    """

    is_known_before = False
    learns = False

    @abstractmethod
    def choose(self, target: Target, gradients: Parts | None) -> Parts | None:
        """d for a step.

        Args:
            target (`Target`): What is perturbed.
            gradients (`Parts`, *optional*): grad L_c(w) of this step; None where d has to be known before.

        Returns:
            `Parts`, of any length; None where no direction is known yet.
        """

    def learn(self, target: Target, gradients: Parts) -> None:
        """Take note of the gradient of L_c of a step; it comes after `choose`."""
        return

    def state_dict(self) -> dict[str, Tensor]:
        """What is carried to the next step; empty where there is nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor], target: Target) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            ValueError: If it does not fit what is perturbed.
        """
        return


class Gradient(Direction):
    """d = grad L_c(w), as in SAM (arXiv 2010.01412, eq. 2)."""

    def choose(self, target: Target, gradients: Parts | None) -> Parts | None:
        return gradients


class _Average(Direction):
    """m, the moving average of grad L_c over steps: m <- decay m + (1 - decay) grad L_c, from 0. A gradient that is
    not finite leaves it as it was.

    Args:
        decay (`float`, 0 to below 1): Share of the old average.

    Raises:
        ValueError: If the decay is out of range.
    """

    learns = True

    def __init__(self, decay: Decay = 0.9):
        check_hyperparameters(type(self), {"decay": decay})
        self.decay = decay
        self.average: dict[str, Tensor] = {}  # by names, as states are saved

    def learn(self, target: Target, gradients: Parts) -> None:
        before = self._parts(target) or {tensor: torch.zeros_like(gradient) for tensor, gradient in gradients.items()}
        is_finite = torch.isfinite(total_norm(list(gradients.values())))
        self.average = {
            target.names[tensor]: torch.where(is_finite, self.decay * old + (1 - self.decay) * gradients[tensor], old)
            for tensor, old in before.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor], target: Target) -> None:
        shapes = {name: tensor.shape for tensor, name in target.names.items()} if state else {}
        wrong = sorted(shapes.keys() ^ state.keys()) or [n for n in shapes if shapes[n] != state[n].shape]
        if wrong:
            raise ValueError(f"The saved direction does not fit what is perturbed, at {wrong[0]!r}.")
        self.average = dict(state)

    def _parts(self, target: Target) -> Parts | None:
        if any(name not in self.average or self.average[name].shape != t.shape for t, name in target.names.items()):
            return None  # nothing was learned yet, or other tensors are perturbed now
        return {tensor: self.average[name].to(tensor.device) for tensor, name in target.names.items()}


class Friendly(_Average):
    """d = grad L_c - sigma m, without what the gradients of all batches share; m includes this batch (F-SAM, arXiv
    2403.12350, algorithm 1).

    Args:
        sigma (`float`, >= 0): Share of the average that is taken out.
        decay (`float`, 0 to below 1): Of the average.
    """

    def __init__(self, sigma: Sigma = 1.0, decay: Decay = 0.9):
        super().__init__(decay)
        check_hyperparameters(type(self), {"sigma": sigma})
        self.sigma = sigma

    def choose(self, target: Target, gradients: Parts | None) -> Parts | None:
        assert gradients is not None  # the direction is not known before
        super().learn(target, gradients)
        return {t: g - self.sigma * self.average[target.names[t]] for t, g in gradients.items()}

    def learn(self, target: Target, gradients: Parts) -> None:
        """It has, in `choose`."""


class Momentum(_Average):
    """d = m of the earlier steps (MSAM, arXiv 2401.12033); the first step has none and is a plain one."""

    is_known_before = True

    def choose(self, target: Target, gradients: Parts | None) -> Parts | None:
        return self._parts(target)


class Gaussian(Direction):
    """d = noise, each entry of standard deviation ||row|| / sqrt(entries of the row), so that the perturbation has the
    same relative size in every row of a weight (GNM-PT, arXiv 2410.21042; Flat-LoRA, arXiv 2409.14396, eq. 8). The row
    of a vector is the whole vector. A merged weight has the rows of the adapted layer's own weight.

    Args:
        seed (`int`): Of the noise, which is drawn anew in every step, the same on all processes.
    """

    is_known_before = True

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.draws = 0

    def choose(self, target: Target, gradients: Parts | None) -> Parts | None:
        device = next(iter(target.names)).device
        generator = torch.Generator(device).manual_seed((self.seed << 32) + self.draws)
        self.draws += 1
        return {tensor: _row_noise(values, generator) for tensor, values in target.values().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"draws": torch.tensor(self.draws)}

    def load_state_dict(self, state: Mapping[str, Tensor], target: Target) -> None:
        self.draws = int(state["draws"]) if state else 0


def _row_noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    rows = weight.to(torch.promote_types(weight.dtype, torch.float32)).reshape(
        len(weight) if weight.ndim > 1 else 1, -1
    )
    scale = torch.linalg.vector_norm(rows, dim=1, keepdim=True) / rows.shape[1] ** 0.5
    noise = torch.randn(rows.shape, generator=generator, dtype=rows.dtype, device=rows.device)
    return (noise * scale).view(weight.shape)


DIRECTIONS: dict[str, type[Direction]] = {
    "gradient": Gradient,
    "friendly": Friendly,
    "momentum": Momentum,
    "gaussian": Gaussian,
}


def make_direction(name: str, settings: Mapping[str, float] | None = None) -> Direction:
    """A direction by its name.

    Args:
        name (`str`): One of `DIRECTIONS`.
        settings (mapping, *optional*): Values by name; the direction takes those it has (`sigma`, `decay`, `seed`) and
            leaves the rest.

    Raises:
        ValueError: If the direction is unknown or a value out of range.
    """
    if name not in DIRECTIONS:
        raise ValueError(f"ascent is {name!r}; choose one of {', '.join(DIRECTIONS)}.")
    kind = DIRECTIONS[name]
    known = inspect.signature(kind).parameters
    return kind(**{key: value for key, value in (settings or {}).items() if key in known})


def unit_direction(parts: Parts, *, adaptive: bool = False) -> tuple[Parts, Tensor]:
    """d / ||d||, so that epsilon = rho times it.

    With `adaptive` it is ASAM's T^2 d / ||T d|| with T = |w| element-wise (arXiv 2102.11600, eq. 5), so that the
    radius is measured relative to each weight. The scale of d cancels, and with it fp16 loss scaling.

    Args:
        parts (`Parts`): d by the tensors w.
        adaptive (`bool`): Use ASAM's radius.

    Returns:
        The direction, and the norm it was divided by (a float tensor without dimensions). Where that norm is 0 or not
        finite, the direction is 0.
    """
    tensors, values = list(parts), tuple(parts.values())
    if adaptive:
        magnitudes = torch._foreach_abs([tensor.detach() for tensor in tensors])
        values = torch._foreach_mul(magnitudes, values)
    norm = total_norm(values)
    usable = torch.isfinite(norm) & (norm > 0)
    inverse = torch.where(usable, 1 / norm, 0.0)
    values = torch._foreach_mul(_without_nan(values, usable), inverse)
    if adaptive:
        values = torch._foreach_mul(magnitudes, values)
    return dict(zip(tensors, values, strict=True)), norm


@dataclass(frozen=True)
class Perturbation:
    """
    Attributes:
        parts (`Parts`): epsilon, 0 where it is not usable.
        is_usable (`Tensor` without dimensions): Whether epsilon could be formed: ||d|| is finite and above 0.
    """

    parts: Parts
    is_usable: Tensor

    @classmethod
    def along(cls, direction: Parts, *, rho: float, adaptive: bool = False) -> "Perturbation":
        """epsilon = rho d / ||d||, or ASAM's, see `unit_direction`."""
        unit, norm = unit_direction(direction, adaptive=adaptive)
        parts = dict(zip(unit, torch._foreach_mul(list(unit.values()), rho), strict=True))
        return cls(parts, torch.isfinite(norm) & (norm > 0))


def _without_nan(values: Sequence[Tensor], usable: Tensor) -> list[Tensor]:
    """0 for everything where `usable` is False, without waiting for the device."""
    return [torch.where(usable, value, 0.0) for value in values]
