"""`FocalSAM`: sharpness-aware updates for hand-written training loops, around any torch optimizer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .step import SharpnessStep, check_rho
from .weights import class_weights as weights_of


class FocalSAM(torch.optim.Optimizer):
    """Focal-SAM (arXiv 2505.01660) around a base optimizer. A training loop is

        optimizer = FocalSAM(torch.optim.AdamW(params), model, class_counts=counts, rho=0.05, gamma=1.5, lam=0.7)
        for x, y in loader:
            loss = optimizer.step(lambda: F.cross_entropy(model(x), y, reduction="none"), labels=y)

    `step` does the whole update: it clears the gradients, runs the closure at w and at w + epsilon with the backward
    passes, and lets the base optimizer step. Parameter groups and state are the base optimizer's, so learning-rate
    schedulers and `state_dict` work on either; each group also holds `rho`, `gamma` and `lam`, for the record and for
    schedules of `rho`, which is read anew in every step.

    Args:
        base_optimizer (`torch.optim.Optimizer`): What steps on the sharpness-aware gradient, over all of the model's
            trained parameters.
        model (`nn.Module`): The model the closure calls (the `DistributedDataParallel` one where there is one).
        class_counts (sequence of `int`, shape (C,), *optional*): Training samples per class.
        rho (`float`, >= 0): Radius of the perturbation.
        gamma (`float`, >= 0): Focusing parameter; 0 weighs all classes alike.
        lam (`float`, >= 0): Weight of the sharpness term.
        class_weights (`Tensor` of shape (C,), *optional*): Class-wise sharpness weights of another method of the
            family, instead of `class_counts`, `gamma` and `lam`; see `ft_focalsam.class_weights`.
        adaptive (`bool`): ASAM's element-wise radius.
        perturbation_scope (`str`): "global" or "local", see `SharpnessStep`.

    Raises:
        ValueError: If a value is out of range, or not exactly one of `class_counts` and `class_weights` is given.
    """

    def __init__(
        self,
        base_optimizer: torch.optim.Optimizer,
        model: nn.Module,
        *,
        class_counts: Sequence[int] | Tensor | None = None,
        rho: float = 0.05,
        gamma: float = 1.0,
        lam: float = 0.8,
        class_weights: Tensor | None = None,
        adaptive: bool = False,
        perturbation_scope: str = "global",
    ):
        if (class_counts is None) == (class_weights is None):
            raise ValueError("Give FocalSAM either class_counts or class_weights.")
        if class_weights is None:
            class_weights = weights_of("focal_sam", class_counts, {"gamma": gamma, "lam": lam})
        self.sharpness_step = SharpnessStep(model, class_weights, rho=rho, adaptive=adaptive, scope=perturbation_scope)
        self.base_optimizer = base_optimizer
        super().__init__(base_optimizer.param_groups, {"rho": rho, "gamma": gamma, "lam": lam})
        self._share_base()

    def _share_base(self) -> None:
        for group in self.base_optimizer.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state

    def step(self, closure: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """One update.

        Args:
            closure (`Callable`): Runs the model and returns the losses of the samples, shape (B,); without backward.
            labels (`Tensor` of shape (B,) or (B, C)): Class indices of the samples, or class probabilities.

        Returns:
            `Tensor` without dimensions: the mean loss at w, detached.
        """
        step = self.sharpness_step
        step.rho = self._current_rho()
        self.zero_grad()
        if step.is_plain:
            loss = step.reduce(closure())
            loss.backward()
        else:
            step.start()
            step.calibrate(labels, lambda: step.reduce(closure()).backward())
            with step.first_pass(labels):
                loss = step.reduce(closure())
                loss.backward()
            step.ascend()
            if step.needs_second_pass:
                with step.second_pass(0):
                    step.reduce(closure()).backward()
        self.base_optimizer.step()
        return loss.detach()

    def _current_rho(self) -> float:
        radii = {group["rho"] for group in self.param_groups}
        if len(radii) > 1:
            raise ValueError(f"The parameter groups have rho {sorted(radii)}; epsilon has one radius, set one rho.")
        rho = radii.pop()
        check_rho(rho)
        return rho

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self.base_optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """State of the base optimizer, with `rho`, `gamma` and `lam` in its parameter groups."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` returned, or the state of a bare base optimizer."""
        self.base_optimizer.load_state_dict(state_dict)
        self._share_base()
