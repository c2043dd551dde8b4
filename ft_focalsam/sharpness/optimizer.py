"""`FocalSAM`: sharpness-aware updates for hand-written training loops, around any torch optimizer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .economy import Economy
from .schedules import check_rho
from .step import SharpnessStep
from .update import Run, SharpnessUpdate
from .weights import class_weights as weights_of

# Of what FocalSAM adds to the base optimizer's state.
STATE_KEY = "sharpness"


class FocalSAM(torch.optim.Optimizer):
    """Focal-SAM (arXiv 2505.01660) around a base optimizer. With a closure, `step` does the whole update: it clears
    the gradients, runs the closure at w and at w + epsilon with the backward passes, and lets the base optimizer step:

        optimizer = FocalSAM(torch.optim.AdamW(params), model, class_counts=counts, rho=0.05, gamma=1.5, lam=0.7)
        for x, y in loader:
            loss = optimizer.step(lambda: F.cross_entropy(model(x), y, reduction="none"), labels=y)

    Without one, the loop runs both passes itself, and `step` is the base optimizer's. So it goes in Lightning's manual
    optimization too (`automatic_optimization = False`), with `optimizer = self.optimizers()` and
    `self.manual_backward(loss)` for `loss.backward()`:

        for x, y in loader:
            optimizer.zero_grad()
            with optimizer.first_pass(y):
                optimizer.reduce(F.cross_entropy(model(x), y, reduction="none")).backward()
            with optimizer.second_pass():
                optimizer.reduce(F.cross_entropy(model(x), y, reduction="none")).backward()
            optimizer.step()

    and with Accelerate, where what `prepare` returns takes the step and FocalSAM the passes:

        model = accelerator.prepare(model)
        focal_sam = FocalSAM(torch.optim.AdamW(model.parameters()), model, class_counts=counts)
        optimizer, loader, scheduler = accelerator.prepare(focal_sam, loader, scheduler)
        for x, y in loader:
            optimizer.zero_grad()
            with focal_sam.first_pass(y):
                accelerator.backward(focal_sam.reduce(F.cross_entropy(model(x), y, reduction="none")))
            with focal_sam.second_pass():
                accelerator.backward(focal_sam.reduce(F.cross_entropy(model(x), y, reduction="none")))
            optimizer.step()
            scheduler.step()

    Gradients accumulate over several batches by a first pass over each, then `second_pass(0)`, `second_pass(1)`, ...

    Parameter groups and state are the base optimizer's, so learning-rate schedulers work on either; each group also
    holds `rho`, `gamma` and `lam`, for the record and for schedules of `rho`, which is read anew in every step (see
    `scheduled_rho`). A step whose gradient is not finite is skipped and counted.

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
        economy (`Economy`, *optional*): A cheaper schedule; it needs the closure.

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
        economy: Economy | None = None,
    ):
        if (class_counts is None) == (class_weights is None):
            raise ValueError("Give FocalSAM either class_counts or class_weights.")
        if class_weights is None:
            class_weights = weights_of("focal_sam", class_counts, {"gamma": gamma, "lam": lam})
        self.sharpness_step = SharpnessStep(model, class_weights, rho=rho, adaptive=adaptive, scope=perturbation_scope)
        self._update = SharpnessUpdate(self.sharpness_step, economy)
        # In a mapping, because Lightning's wrapper shares attributes by copying them.
        self._counts = {"steps": 0, "first_passes": 0}
        self.base_optimizer = base_optimizer
        super().__init__(base_optimizer.param_groups, {"rho": rho, "gamma": gamma, "lam": lam})
        self._share_base()

    def _share_base(self) -> None:
        for group in self.base_optimizer.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state

    def step(self, closure: Callable[..., Tensor] | None = None, labels: Tensor | None = None) -> Tensor | None:
        """One update with `labels`; without, the base optimizer's step on what the passes left in `p.grad`.

        Args:
            closure (`Callable`, *optional*): With `labels`: runs the model and returns the losses of the samples,
                shape (B,), without backward; with the economy "split_batch" it is called with a tensor of indices and
                returns the losses of those samples. Without `labels`: torch's usual closure, run once before the step.
            labels (`Tensor` of shape (B,) or (B, C), *optional*): Class indices or probabilities of the samples.

        Returns:
            With `labels`, a `Tensor` without dimensions: the mean loss at w, detached (see
            `SharpnessUpdate.micro_batch` for "split_batch"); without, what the closure returned.
        """
        loss = None
        if labels is not None:
            loss = self._whole_update(closure, labels)
        elif closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._counts["first_passes"] = 0
        self._counts["steps"] += 1
        if not self.sharpness_step.drop_if_not_finite():
            self.base_optimizer.step()
        return loss

    def _whole_update(self, closure: Callable[..., Tensor], labels: Tensor) -> Tensor:
        def forward(index: Tensor | None) -> Tensor:
            splits = self._update.economy.name == "split_batch"
            everything = torch.arange(len(labels), device=labels.device)
            return self.reduce(closure(everything if index is None else index) if splits else closure())

        def whole(index: Tensor | None) -> Tensor:
            loss = forward(index)
            loss.backward()
            return loss

        self.sharpness_step.rho = self._current_rho()
        self.zero_grad()
        return self._update.micro_batch(labels, Run(whole, forward), number=self._counts["steps"]).detach()

    @contextmanager
    def first_pass(self, labels: Tensor) -> Iterator[None]:
        """Without a closure: run the model, and backward of `reduce(losses)`, at w inside the block.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices of the samples, or class probabilities.
        """
        if self._update.economy.name != "none":
            raise ValueError(
                f"The economy {self._update.economy.name} needs a closure; call optimizer.step(closure, labels)."
            )
        if self._counts["first_passes"] == 0:
            self.sharpness_step.rho = self._current_rho()
            self.sharpness_step.start()
        with self.sharpness_step.first_pass(labels):
            yield
        self._counts["first_passes"] += 1

    @contextmanager
    def second_pass(self, index: int = 0) -> Iterator[None]:
        """Without a closure: run the same, for batch `index` of this step, at w + epsilon inside the block."""
        if index == 0 and not self.sharpness_step.is_plain:
            self.sharpness_step.ascend()
        with self.sharpness_step.second_pass(index):
            yield

    def reduce(self, losses: Tensor, count: Tensor | float | None = None) -> Tensor:
        """The loss whose backward pass is to be run, for losses of shape (B,); see `SharpnessStep.reduce`."""
        return self.sharpness_step.reduce(losses, count)

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
        """State of the base optimizer, with `rho`, `gamma` and `lam` in its parameter groups, and under "sharpness"
        the number of steps taken and what an economy carries from step to step."""
        own = {"steps": self._counts["steps"], "direction": self._update.state_dict()}
        return {**self.base_optimizer.state_dict(), STATE_KEY: own}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` returned, or the state of a bare base optimizer."""
        base = {name: value for name, value in state_dict.items() if name != STATE_KEY}
        own = state_dict.get(STATE_KEY, {"steps": 0, "direction": {}})
        self.base_optimizer.load_state_dict(base)
        self._share_base()
        self._counts["steps"] = own["steps"]
        self._update.load_state_dict(own["direction"])
