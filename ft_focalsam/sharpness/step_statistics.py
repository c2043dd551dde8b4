"""What the updates did, for the log."""

from torch import Tensor

from .perturbation import total_norm


class StepStatistics:
    """What the updates since the last `pop` did, kept on the device until it is asked for.

    Attributes:
        skipped_perturbations (`int`): Perturbations skipped since the beginning, for a gradient that was 0 or not
            finite.
        skipped_steps (`int`): Optimizer steps skipped since the beginning, for a gradient that was not finite.
    """

    def __init__(self) -> None:
        self.skipped_perturbations = 0
        self.skipped_steps = 0
        self._sums: dict[str, Tensor | float] = {}
        self._perturbations = 0

    def add_perturbation(self, epsilon: list[Tensor]) -> None:
        self._perturbations += 1
        self._add("perturbation_norm", total_norm(epsilon))

    def add_sharpness(self, value: Tensor) -> None:
        self._add("sharpness", value)

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value

    def pop(self) -> dict[str, float]:
        """Means over the perturbations since the last call: "perturbation_norm", ||eps||, and "sharpness", the
        class-weighted loss at w + eps minus at w, as far as they were measured; and both counts so far.
        """
        means = {name: float(value) / self._perturbations for name, value in self._sums.items()}
        self._sums, self._perturbations = {}, 0
        counts = {"skipped_perturbations": self.skipped_perturbations, "skipped_steps": self.skipped_steps}
        return {**means, **counts}
