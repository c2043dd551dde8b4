"""What the updates did, for the log."""

import torch
from torch import Tensor

from .collectives import total_norm


class StepStatistics:
    """What the updates since the last `pop` did, kept on the device until it is asked for.

    Attributes:
        skipped_steps (`int`): Optimizer steps skipped since the beginning, for a gradient that was not finite.
    """

    def __init__(self) -> None:
        self.skipped_steps = 0
        self._skipped_perturbations: Tensor | int = 0
        self._perturbations: Tensor | int = 0
        self._sums: dict[str, Tensor | float] = {}

    @property
    def skipped_perturbations(self) -> int:
        """Perturbations skipped since the beginning, for a gradient that was 0 or not finite."""
        return int(self._skipped_perturbations)

    def add_perturbation(self, epsilon: list[Tensor], usable: Tensor | bool = True) -> None:
        """Count a perturbation, or, where it was not `usable`, one that was skipped."""
        usable = torch.as_tensor(usable).detach()
        self._perturbations = self._perturbations + usable
        self._skipped_perturbations = self._skipped_perturbations + ~usable
        self._add("perturbation_norm", total_norm(epsilon))

    def add_sharpness(self, value: Tensor) -> None:
        """Add a class-weighted loss at w + eps minus at w."""
        self._add("sharpness", value)

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def pop(self) -> dict[str, float]:
        """Means over the perturbations since the last call: "perturbation_norm", ||eps||, and "sharpness", the
        class-weighted loss at w + eps minus at w, as far as they were measured; and both counts so far.
        """
        count = int(self._perturbations)
        means = {name: float(value) / count for name, value in self._sums.items() if count}
        self._sums, self._perturbations = {}, 0
        counts = {"skipped_perturbations": self.skipped_perturbations, "skipped_steps": self.skipped_steps}
        return {**means, **counts}
