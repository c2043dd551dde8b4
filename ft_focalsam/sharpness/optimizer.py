"""`FocalSAM`: sharpness-aware updates for hand-written training loops, around any torch optimizer."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from .collectives import world_size
from .directions import Direction
from .evaluations import EVALUATIONS, Run
from .passes import LossContractError
from .schedules import check_rho
from .step import SharpnessStep
from .weights import class_weights as weights_of

T = TypeVar("T")

# Of what FocalSAM adds to the base optimizer's state.
STATE_KEY = "sharpness"


class FocalSAM(torch.optim.Optimizer):
    """Focal-SAM (arXiv 2505.01660) around a base optimizer. With a closure, `step` does the whole update: it clears
    the gradients, runs the closure at w and at w + epsilon with the backward passes, and lets the base optimizer step:

        optimizer = FocalSAM(torch.optim.AdamW(params), model, class_counts=counts, rho=0.05, gamma=1.5, lam=0.7)
        for x, y in loader:
            loss = optimizer.step(lambda: F.cross_entropy(model(x), y, reduction="none"), labels=y)

    Without one, the loop runs both passes itself, and `step` is the base optimizer's. This works in Lightning's manual
    optimization (`automatic_optimization = False`) too, with `optimizer = self.optimizers()` and
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
    `zero_grad` begins a step anew, so that one that was given up leaves nothing behind.

    Parameter groups and state are the base optimizer's, so learning-rate schedulers work on either; each group also
    holds `rho`, and `gamma` and `lam` where class counts were given. They are read anew in every step, for schedules
    (see `scheduled_rho`) and after `load_state_dict`; `class_weights` are set anew by `set_class_weights` (see
    `scheduled_weights`). A step whose gradient is not finite is skipped and counted.

    Args:
        base_optimizer (`torch.optim.Optimizer`): What steps on the sharpness-aware gradient, over all of the model's
            trained parameters and no others.
        model (`nn.Module`): The model the closure calls (the `DistributedDataParallel` one where there is one).
        class_counts (sequence of `int`, shape (C,), *optional*): Training samples per class.
        rho (`float`, >= 0): Radius of the perturbation.
        gamma (`float`, >= 0): Focusing parameter; 0 weighs all classes alike.
        lam (`float`, >= 0): Weight of the sharpness term.
        class_weights (`Tensor` of shape (C,), *optional*): Class-wise sharpness weights of another method of the
            family, instead of `class_counts`, `gamma` and `lam`; see `ft_focalsam.class_weights`.
        adaptive (`bool`): ASAM's element-wise radius.
        perturbation_scope (`str`): "global" or "local", see `SharpnessStep`.
        perturb (`str`): What is perturbed, see `SharpnessStep`.
        direction (`Direction`, *optional*): In which direction, one of `DIRECTIONS`; by default that of grad L_c.
        evaluation (`str`): "two_point", the paper's, or "one_pass", which needs the closure and a direction that is
            known before the batch.
        ascent_interval (`int`, >= 1): With a closure, one step in so many perturbs the weights, the others are plain.
        reuse_prefix (`bool`): See `SharpnessStep`.

    Raises:
        ValueError: If a value is out of range, not exactly one of `class_counts` and `class_weights` is given, or the
            base optimizer runs closures of its own (LBFGS). From a step, if the base optimizer has other parameters
            than the model trains.
        LossContractError: A `ValueError`: from `step`, if the passes before it are not complete; from a pass, if what
            is differentiated is not made of the losses of the samples.
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
        perturb: str = "trained",
        direction: Direction | None = None,
        evaluation: str = "two_point",
        ascent_interval: int = 1,
        reuse_prefix: bool = True,
    ):
        if (class_counts is None) == (class_weights is None):
            raise ValueError("Give FocalSAM either class_counts or class_weights.")
        _refuse_needing_closure(base_optimizer)
        self._class_counts = class_counts
        self._reuse_prefix = reuse_prefix
        settings = {"gamma": gamma, "lam": lam} if class_weights is None else {}
        self._settings = settings  # of the class weights in use
        if class_weights is None:
            class_weights = weights_of("focal_sam", class_counts, settings)
        self.sharpness_step = SharpnessStep(
            model,
            class_weights,
            rho=rho,
            adaptive=adaptive,
            scope=perturbation_scope,
            perturb=perturb,
            direction=direction,
            reuse_prefix=reuse_prefix,
        )
        if evaluation not in EVALUATIONS:
            raise ValueError(f"evaluation is {evaluation!r}; choose one of {', '.join(EVALUATIONS)}.")
        self._evaluation_name = evaluation
        self._evaluation = EVALUATIONS[evaluation](self.sharpness_step, interval=ascent_interval)
        # In a mapping, because Lightning's wrapper shares attributes by copying them.
        self._counts = {"steps": 0, "second_passes": 0}
        self.base_optimizer = base_optimizer
        super().__init__(base_optimizer.param_groups, {"rho": rho, **settings})
        self._share_base()

    def _share_base(self) -> None:
        for group in self.base_optimizer.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        self.param_groups = self.base_optimizer.param_groups
        self.state = self.base_optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, as for layers that are unfrozen on the way."""
        if self.__dict__.get("param_groups") is not self.base_optimizer.param_groups:
            super().add_param_group(param_group)  # from the constructor, for a group that the base optimizer has
            return
        self.base_optimizer.add_param_group(param_group)
        self._share_base()

    def __getstate__(self) -> dict[str, Any]:
        """For `copy.deepcopy` and `pickle`: base optimizer, model and settings; a copy begins between two steps."""
        step = self.sharpness_step
        return {
            "base_optimizer": self.base_optimizer,
            "model": step.model,
            "class_counts": self._class_counts,
            "class_weights": None if self._class_counts is not None else step.class_weights,
            **self._settings,
            "rho": self.defaults["rho"],
            "adaptive": step.adaptive,
            "perturbation_scope": step.scope,
            "perturb": step.perturb,
            "direction": step.direction,
            "evaluation": self._evaluation_name,
            "ascent_interval": self._evaluation.interval,
            "reuse_prefix": self._reuse_prefix,
            STATE_KEY: self._own_state(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base_optimizer" not in state:  # of the constructor of `torch.optim.Optimizer`
            super().__setstate__(state)
            return
        own = state.pop(STATE_KEY)
        type(self).__init__(self, state.pop("base_optimizer"), state.pop("model"), **state)
        self._load_own_state(own)

    def set_class_weights(self, class_weights: Tensor) -> None:
        """Take other `class_weights`, shape (C,), from the next step on. They are no part of the state: a loop that
        goes on from a checkpoint sets those of its moment.

        Raises:
            ValueError: If the optimizer was given `class_counts`, or weights of another number of classes.
            LossContractError: Between the passes of a step.
        """
        if self._class_counts is not None:
            raise ValueError(
                "FocalSAM computes its class weights from class_counts, gamma and lam; change those in the parameter "
                "groups, or give it class_weights instead of class_counts."
            )
        if class_weights.shape != self.sharpness_step.class_weights.shape:
            raise ValueError(
                f"The class weights have shape {tuple(class_weights.shape)} and were of shape "
                f"{tuple(self.sharpness_step.class_weights.shape)}; give one weight per class."
            )
        if self.sharpness_step.num_micro_batches > 0:
            raise LossContractError(
                "The class weights were set between the passes of a step; set them before its first pass."
            )
        self.sharpness_step.set_class_weights(class_weights)

    @overload
    def step(self, closure: None = None, labels: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], T], labels: None = None) -> T: ...
    @overload
    def step(self, closure: Callable[[], Tensor], labels: Tensor) -> Tensor: ...
    def step(self, closure: Callable[[], Any] | None = None, labels: Tensor | None = None) -> Any:
        """One update with `labels`; without, the base optimizer's step on what the passes left in `p.grad`.

        Args:
            closure (`Callable`, *optional*): With `labels`: runs the model and returns the losses of the samples,
                shape (B,), without backward. Without `labels`: torch's usual closure, run once before the step.
            labels (`Tensor` of shape (B,) or (B, C), *optional*): Class indices or probabilities of the samples, or
                a 1 for each of their classes.

        Returns:
            With `labels`, a `Tensor` without dimensions: the mean loss at w (with "one_pass", where the samples were
            evaluated), detached; without, what the closure returned.

        Raises:
            ValueError: If there are labels and no closure.
            LossContractError: If there are no labels, and the passes before it are not complete.
        """
        loss = None
        if labels is None:
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            self._check_passes()
        elif closure is None:
            raise ValueError("FocalSAM.step got labels without a closure; give it one that returns their losses.")
        else:
            loss = self._whole_update(closure, labels)
        self._begin_anew()
        self._counts["steps"] += 1
        if not self.sharpness_step.drop_if_not_finite():
            self.base_optimizer.step()
            torch.clear_autocast_cache()  # of the weights as they were
        return loss

    def _check_passes(self) -> None:
        """That the passes of a step are complete, or none is needed."""
        first, second = self.sharpness_step.num_micro_batches, self._counts["second_passes"]
        if first == second > 0 or (self.sharpness_step.is_plain and world_size() == 1):
            return
        happened = f"after {first} first and {second} second passes" if first else "without a first and a second pass"
        raise LossContractError(
            f"FocalSAM.step was called {happened}, which would train without sharpness; give it a closure and labels, "
            "run second_pass over each batch of the first passes, or, with transformers' Trainer, use FocalSAMTrainer."
        )

    def _begin_anew(self) -> None:
        """Forget the passes of a step that is done or given up."""
        self._counts["second_passes"] = 0
        self.sharpness_step.forget()

    def _whole_update(self, closure: Callable[[], Tensor], labels: Tensor) -> Tensor:
        def forward(rows: Tensor | None = None) -> Tensor:
            return self.reduce(closure())

        def whole() -> Tensor:
            loss = forward()
            loss.backward()
            return loss

        self.zero_grad()
        self._begin_step()
        return self._evaluation.micro_batch(labels, Run(whole, forward), number=self._counts["steps"]).detach()

    @contextmanager
    def first_pass(self, labels: Tensor) -> Iterator[None]:
        """Without a closure: run the model, and backward of `reduce(losses)`, at w inside the block.

        Args:
            labels (`Tensor` of shape (B,) or (B, C)): Class indices of the samples, class probabilities, or a 1 for
                each of several classes.
        """
        if self._evaluation_name != "two_point" or self._evaluation.interval > 1:
            raise ValueError(
                f"The evaluation {self._evaluation_name} with ascent_interval {self._evaluation.interval} needs a "
                "closure; call optimizer.step(closure, labels)."
            )
        if self._counts["second_passes"] > 0:
            self._begin_anew()  # of a step that was never taken
        if self.sharpness_step.num_micro_batches == 0:
            self._begin_step()
        try:
            with self.sharpness_step.first_pass(labels):
                yield
        except BaseException:
            self._begin_anew()
            raise

    @contextmanager
    def second_pass(self, index: int = 0) -> Iterator[None]:
        """Without a closure: run the same, for batch `index` of this step, at w + epsilon inside the block."""
        if index != self._counts["second_passes"] or index >= self.sharpness_step.num_micro_batches:
            raise LossContractError(
                f"second_pass({index}) came after {self.sharpness_step.num_micro_batches} first passes and "
                f"{self._counts['second_passes']} second ones since zero_grad; run it once for each first pass, in "
                "their order, and clear the gradients before the first pass only."
            )
        try:
            if index == 0 and not self.sharpness_step.is_plain:
                self.sharpness_step.ascend()
            with self.sharpness_step.second_pass(index):
                yield
        except BaseException:
            self._begin_anew()
            raise
        self._counts["second_passes"] += 1

    def reduce(self, losses: Tensor, count: Tensor | float | None = None) -> Tensor:
        """The loss whose backward pass is to be run, for losses of shape (B,); see `SharpnessStep.reduce`."""
        return self.sharpness_step.reduce(losses, count)

    def _begin_step(self) -> None:
        """Take the settings of the parameter groups, and see that what trains is what the base optimizer steps on."""
        step = self.sharpness_step
        step.rho = self._shared("rho")
        check_rho(step.rho)
        settings = {name: self._shared(name) for name in self._settings}
        if settings != self._settings:
            step.set_class_weights(weights_of("focal_sam", self._class_counts, settings))
            self._settings = settings
        step.start()
        stepped = {p for group in self.param_groups for p in group["params"]}
        left_out = [n for n, p in step.bare_model.named_parameters() if p.requires_grad and p not in stepped]
        if left_out:
            raise ValueError(
                f"The base optimizer of FocalSAM has not {left_out[0]!r} and {len(left_out) - 1} more parameters that "
                "the model trains; give it all of them, or freeze them (requires_grad_(False))."
            )
        foreign = [p for p in stepped.difference(step.parameters) if p.requires_grad]
        if foreign:
            raise ValueError(
                f"The base optimizer of FocalSAM has a parameter of shape {tuple(foreign[0].shape)} that is not of "
                "the model, whose gradient would be wrong; make it a parameter of the model, or give it an optimizer "
                "of its own."
            )

    def _shared(self, name: str) -> float:
        """A setting that all parameter groups have to agree on."""
        values = {group[name] for group in self.param_groups}
        if len(values) > 1:
            raise ValueError(
                f"The parameter groups have {name} {sorted(values)}; the step has one {name} for all, set one."
            )
        return values.pop()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters, and begin a step anew."""
        self._begin_anew()
        self.base_optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """State of the base optimizer, with `rho`, `gamma` and `lam` in its parameter groups, and under "sharpness"
        the number of steps taken and what the direction carries from step to step."""
        return {**self.base_optimizer.state_dict(), STATE_KEY: self._own_state()}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` returned, or the state of a bare base optimizer. The settings in the parameter groups
        are those of the steps from now on."""
        base = {name: value for name, value in state_dict.items() if name != STATE_KEY}
        self.base_optimizer.load_state_dict(base)
        self._share_base()
        self._load_own_state(state_dict.get(STATE_KEY, {"steps": 0, "direction": {}}))

    def _own_state(self) -> dict[str, Any]:
        return {"steps": self._counts["steps"], "direction": self._evaluation.state_dict()}

    def _load_own_state(self, own: dict[str, Any]) -> None:
        self._begin_anew()
        self._counts["steps"] = own["steps"]
        self._evaluation.load_state_dict(own["direction"])


def _refuse_needing_closure(optimizer: torch.optim.Optimizer) -> None:
    """Raise a `ValueError` for an optimizer that evaluates the model by itself."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} evaluates the model several times a step by a closure of its own, which has "
            "no sharpness-aware gradient; choose an optimizer that steps on gradients, such as SGD or AdamW."
        )
