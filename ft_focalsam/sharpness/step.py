"""One sharpness-aware update as one object: the Trainer and the optimizer both drive it.

With c(n) the sharpness weight of sample n's class and L_c(w) = 1/B sum_n c(n) l_n(w), the base optimizer steps on

    g = grad L(w) - grad L_c(w) + grad L_c(w + eps),     eps = rho * grad L_c(w) / ||grad L_c(w)||

(Focal-SAM, arXiv 2505.01660, algorithm 1), which takes two forward and two backward passes: the first backward pass
gives both gradients at w (`weighted_grad.py`).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .perturbation import PERTURBATION_SCOPES, ascent_direction, average_over_ranks, perturbed
from .weighted_grad import WeightedGradient


@dataclass
class _MicroBatch:
    """What the second pass over a batch needs to know of the first."""

    weights: Tensor  # c(n), (B,)
    rng_state: dict[str, Tensor]
    loss: Tensor | None = None  # L_c(w)


class SharpnessStep:
    """The two passes of an update. For each optimizer step, a driver does

        step.start()
        for batch in micro_batches:
            step.calibrate(labels, lambda: step.reduce(losses(batch)).backward())
            with step.first_pass(labels):
                step.reduce(losses(batch)).backward()      # p.grad += grad L(w)
        step.ascend()                                      # p.grad -= grad L_c(w)
        for index, batch in enumerate(micro_batches):
            with step.second_pass(index):
                step.reduce(losses(batch)).backward()      # p.grad += grad L_c(w + eps), at w again afterwards

    and then lets the base optimizer step. `losses` runs the model and returns one loss per sample, shape (B,).
    `calibrate` acts on the first few steps only, and makes the others cheap. Both passes over a batch draw the same
    random numbers (dropout, drop path); running statistics of batch normalisation move in the first pass only. With
    several processes, gradients are all-reduced once, in the last second pass.

    Args:
        model (`nn.Module`): The model that `losses` calls, wrapped in `DistributedDataParallel` or not.
        class_weights (`Tensor` of shape (C,)): Class-wise sharpness weights c, see `class_weights`.
        rho (`float`, >= 0): Radius of the perturbation.
        adaptive (`bool`): ASAM's element-wise radius (arXiv 2102.11600).
        scope (`str`): "global" perturbs by the gradient of all samples of the step, on all processes, so that N
            processes of b samples do what one of N * b does; "local" perturbs each process by its own gradient,
            without communication.

    Attributes:
        separate_reason (`str` or `None`): Why a separate backward pass is used for L_c; None while one is enough.

    Raises:
        ValueError: If an argument is out of range, or the model is wrapped in `nn.DataParallel`.
    """

    def __init__(
        self,
        model: nn.Module,
        class_weights: Tensor,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        scope: str = "global",
    ):
        check_rho(rho)
        if scope not in PERTURBATION_SCOPES:
            raise ValueError(f"perturbation_scope is {scope!r}; choose one of {', '.join(PERTURBATION_SCOPES)}.")
        if isinstance(model, nn.DataParallel):
            raise ValueError(
                "nn.DataParallel replicates the model inside one process, where per-class gradients cannot be "
                "collected; start one process per device with `accelerate launch`."
            )
        self.model = model
        self.class_weights = class_weights
        self._class_weights = class_weights  # where and as the model needs them
        self._has_weights = bool(class_weights.any())
        self.rho = rho
        self.adaptive = adaptive
        self.scope = scope
        self.statistics = StepStatistics()
        self._collector = WeightedGradient(model)
        self._micro_batches: list[_MicroBatch] = []
        self._epsilon: list[Tensor] | None = None
        self._pass: str | None = None
        self._current: _MicroBatch | None = None

    @property
    def separate_reason(self) -> str | None:
        return self._collector.separate_reason

    @property
    def backward_passes(self) -> int:
        """Backward passes the latest first pass took: 1, or 2 where L_c had one of its own."""
        return self._collector.backward_passes

    @property
    def is_plain(self) -> bool:
        """Whether the update is that of plain training (c = 0 or rho = 0), for which one pass does."""
        return self.rho == 0 or not self._has_weights

    def start(self) -> None:
        """Begin an optimizer step."""
        self._micro_batches.clear()
        self._epsilon = None
        self._collector.clear()

    def calibrate(self, labels: Tensor, run: Callable[[], object]) -> None:
        """Before a first pass over a batch: find out how one backward pass can give both gradients exactly.

        On the first few steps the pass is run and thrown away, as often as it takes; later, nothing happens. Without
        calibration the update is the same, but L_c gets a backward pass of its own.

        Args:
            labels (`Tensor`): As for `first_pass`.
            run (`Callable`): Does what the driver does in a first pass, backward pass included.
        """
        if not self._collector.needs_comparison(len(labels)):
            return
        self._current = _MicroBatch(self._sample_weights(labels), self._get_rng_state())
        self._pass = "first"
        try:
            while self._collector.needs_comparison(len(labels)):
                with (
                    self._no_sync(),
                    self._forked_rng(self._current.rng_state),
                    _kept_running_statistics(self.model),
                    self._collector.compare(self._current.weights),
                ):
                    run()
        finally:
            self._pass = self._current = None

    @contextmanager
    def first_pass(self, labels: Tensor) -> Iterator[None]:
        """Forward and backward of L at w, without gradient synchronisation.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices, or class probabilities (mixup), for which
                c(n) = sum_k y_nk c_k.
        """
        self._current = _MicroBatch(self._sample_weights(labels), self._get_rng_state())
        self._pass = "first"
        try:
            with self._no_sync(), self._collector.collect(self._current.weights):
                yield
            self._micro_batches.append(self._current)
        finally:
            self._pass = self._current = None

    def ascend(self) -> bool:
        """Turn the collected gradient of L_c into epsilon, and take it out of `p.grad`.

        Returns:
            `bool`: Whether the weights will be perturbed. They are not where ||grad L_c|| is 0 or not finite; the
            step is then that of plain training, `p.grad` holds it already, and second passes are needed only to
            synchronise it (`needs_second_pass`).
        """
        parameters, gradients = self._collector.parameters, self._collector.gradients()
        ascent = average_over_ranks(gradients) if self.scope == "global" else gradients
        direction, norm = ascent_direction(parameters, ascent, adaptive=self.adaptive)
        if not (float(norm) > 0 and math.isfinite(float(norm))):
            self.statistics.skipped += 1
            return False
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad -= gradient
        self._collector.release()
        torch._foreach_mul_(direction, self.rho)
        self._epsilon = direction
        self.statistics.add_perturbation(self._epsilon)
        return True

    @property
    def needs_second_pass(self) -> bool:
        """Whether second passes have something to do: to perturb, or at least to synchronise the processes."""
        return self._epsilon is not None or _world_size() > 1

    @contextmanager
    def second_pass(self, index: int) -> Iterator[None]:
        """Forward and backward of L_c at w + epsilon, over micro-batch `index` of this step; at w again afterwards.

        The last one synchronises the gradients. After a skipped ascent it contributes nothing but that.
        """
        self._current = self._micro_batches[index]
        self._pass = "second"
        is_last = index == len(self._micro_batches) - 1
        try:
            with ExitStack() as stack:
                stack.enter_context(nullcontext() if is_last else self._no_sync())
                stack.enter_context(self._forked_rng(self._current.rng_state))
                stack.enter_context(_kept_running_statistics(self.model))
                if self._epsilon is not None:
                    stack.enter_context(perturbed(self._collector.parameters, self._epsilon))
                yield
        finally:
            self._pass = self._current = None

    def reduce(self, losses: Tensor, count: Tensor | float | None = None) -> Tensor:
        """The loss whose backward pass the driver is to run: L in the first pass, L_c in the second, else the mean.

        Args:
            losses (`Tensor` of shape (B,)): One loss per sample.
            count (`Tensor` or `float`, *optional*): What sums over samples are divided by; B if not given. Under
                gradient accumulation, the number of samples of the whole step.

        Returns:
            `Tensor` without dimensions.

        Raises:
            ValueError: If there is not one loss per sample.
        """
        count = losses.numel() if count is None else count
        if self._pass is None:
            return losses.sum() / count
        weights = self._current.weights.to(losses.dtype)
        if losses.shape != weights.shape:
            raise ValueError(
                f"The losses have shape {tuple(losses.shape)} for {len(weights)} labels; return one loss per sample "
                '(reduction="none").'
            )
        if self._pass == "first":
            self._current.loss = losses.detach() @ weights / count
            return self._collector.mean(losses, count)
        if self._epsilon is None:
            return losses.sum() * 0
        loss = losses @ weights / count
        self.statistics.add_sharpness(loss.detach() - self._current.loss)
        return loss

    # ---- details ----

    def _sample_weights(self, labels: Tensor) -> Tensor:
        parameter = next((p for p in self.model.parameters() if p.requires_grad), None)
        if parameter is None:
            raise ValueError("The model has no parameter that requires a gradient; make the ones to train do so.")
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        if (self._class_weights.device, self._class_weights.dtype) != (parameter.device, dtype):
            self._class_weights = self.class_weights.to(parameter.device, dtype)
        labels = labels.to(parameter.device)
        return labels.to(dtype) @ self._class_weights if labels.ndim == 2 else self._class_weights[labels]

    def _no_sync(self):
        return self.model.no_sync() if hasattr(self.model, "no_sync") else nullcontext()

    def _devices(self) -> list[torch.device]:
        return list({p.device for p in self.model.parameters() if p.device.type not in ("cpu", "meta")})

    def _get_rng_state(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        for device in self._devices():
            states[str(device)] = torch.get_device_module(device).get_rng_state(device)
        return states

    @contextmanager
    def _forked_rng(self, states: dict[str, Tensor]) -> Iterator[None]:
        devices = self._devices()
        with ExitStack() as stack:
            if devices:
                stack.enter_context(torch.random.fork_rng(devices, device_type=devices[0].type))
            else:
                stack.enter_context(torch.random.fork_rng([]))
            torch.set_rng_state(states["cpu"])
            for device in devices:
                torch.get_device_module(device).set_rng_state(states[str(device)], device)
            yield


class StepStatistics:
    """What the updates since the last `pop` did, kept on the device until it is asked for.

    Attributes:
        skipped (`int`): Perturbations skipped since the beginning of training.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self._steps = 0
        self._norm: Tensor | float = 0.0
        self._sharpness: Tensor | float = 0.0

    def add_perturbation(self, epsilon: list[Tensor]) -> None:
        self._steps += 1
        self._norm = self._norm + torch.linalg.vector_norm(torch.stack(torch._foreach_norm(epsilon)))

    def add_sharpness(self, value: Tensor) -> None:
        self._sharpness = self._sharpness + value

    def pop(self) -> dict[str, float]:
        """Means over the steps since the last call: "perturbation_norm", ||eps||, and "sharpness", the class-weighted
        loss at w + eps minus at w; and "skipped_perturbations" so far. Without the means if no step was perturbed.
        """
        means = {}
        if self._steps:
            means = {
                "perturbation_norm": float(self._norm) / self._steps,
                "sharpness": float(self._sharpness) / self._steps,
            }
        self._steps, self._norm, self._sharpness = 0, 0.0, 0.0
        return {**means, "skipped_perturbations": self.skipped}


def check_rho(rho: float) -> None:
    """Raise a `ValueError` unless rho is a finite number, 0 or more."""
    if not (rho >= 0 and math.isfinite(rho)):
        raise ValueError(f"rho is {rho}; set the radius of the perturbation to 0 (plain training) or more.")


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def _kept_running_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation may normalise inside the block, but its running statistics come out as they went in."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)
