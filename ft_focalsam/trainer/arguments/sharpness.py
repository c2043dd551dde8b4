"""Arguments of the sharpness step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from torch import Tensor, nn
from transformers import TrainingArguments

from ...base.parsing import mapping_argument
from ...base.ranges import Range
from ...base.registry import listed
from ...sharpness import (
    DIRECTIONS,
    EVALUATIONS,
    SCHEDULES,
    SHARPNESS_METHODS,
    TARGETS,
    ClassConditionalSAM,
    Direction,
    Evaluation,
    SharpnessStep,
    class_weights,
    scheduled_rho,
    scheduled_weights,
)
from ...sharpness.choices import check_choices
from ...sharpness.collectives import PERTURBATION_SCOPES
from ...sharpness.directions import make_direction
from ...sharpness.hyperparameters import hyperparameters_of, values_for, with_hyperparameters
from .checks import check_allowed

WEIGHTS = [name for name, method in SHARPNESS_METHODS.items() if method.is_of_the_family]


@dataclass
class _SharpnessArguments(TrainingArguments):
    """Which method trains, and how it perturbs.

    > Parameters that control the sharpness step

    Args:
        sharpness (`str`, defaults to `"focal_sam"`):
            Sharpness-aware method, a name in `SHARPNESS_METHODS`.
        rho (`float`, >= 0, defaults to `0.05`):
            Radius of the perturbation.
        rho_schedule (`str`, defaults to `"constant"`):
            Course of rho over training: constant, linear, cosine or step; all but constant begin at rho_initial.
        rho_initial (`float`, >= 0, defaults to `0.0`):
            Radius at the beginning of a schedule; steps at 0 are plain ones and cost as little.
        rho_step_at (`float`, 0 to 1, defaults to `0.5`):
            Fraction of training after which a step schedule takes rho.
        sharpness_schedule (`str`, defaults to `"constant"`):
            Course of the class weights of the method over training: constant, linear, cosine or step; all but constant
            begin with those of sharpness_initial.
        sharpness_initial (`str`, defaults to `"none"`):
            Method whose class weights a schedule begins with: none, sam, weighted_sam, imbsam or focal_sam.
        sharpness_initial_values (`dict`, or `str` of JSON, *optional*, defaults to `None`):
            Hyperparameters of sharpness_initial by their arguments, where they are not those of the end.
        sharpness_step_at (`float`, 0 to 1, defaults to `0.5`):
            Fraction of training after which a step schedule takes the class weights of sharpness.
        adaptive_rho (`bool`, defaults to `False`):
            Measure the radius relative to each weight, as ASAM does.
        perturbation_scope (`str`, defaults to `"global"`):
            Perturb by the gradient of all samples of a step (global), or each process and micro-batch by its own
            (local, less communication).
        reuse_frozen_prefix (`bool`, defaults to `True`):
            Compute the part of the model before the first trainable layer once per step instead of in both passes.

    > Parameters that choose another perturbation

    Args:
        perturb (`str`, defaults to `"trained"`):
            What is perturbed: trained, norms or merged; norms are scales and shifts of normalisation layers, merged
            the weights of linear layers with an adapter such as LoRA.
        ascent (`str`, defaults to `"gradient"`):
            Direction of the perturbation: gradient, friendly, momentum or gaussian.
        evaluation (`str`, defaults to `"two_point"`):
            How the perturbed loss is evaluated: two_point or one_pass; one_pass takes one pass a step and needs ascent
            momentum or gaussian.
        ascent_interval (`int`, >= 1, defaults to `1`):
            Perturb the weights in one of this many steps; the others are plain.

    Raises:
        ValueError: If a choice is unknown or a value is out of range.
    """

    sharpness: str = field(
        default="focal_sam",
        metadata={"help": f"Sharpness-aware method: {listed(SHARPNESS_METHODS)}."},
    )
    rho: float = field(default=0.05, metadata={"help": "Radius of the perturbation."})
    rho_schedule: str = field(
        default="constant",
        metadata={"help": f"Course of rho over training: {listed(SCHEDULES)}; all but constant begin at rho_initial."},
    )
    rho_initial: float = field(
        default=0.0,
        metadata={"help": "Radius at the beginning of a schedule; steps at 0 are plain ones and cost as little."},
    )
    rho_step_at: float = field(
        default=0.5, metadata={"help": "Fraction of training after which a step schedule takes rho."}
    )
    sharpness_schedule: str = field(
        default="constant",
        metadata={
            "help": f"Course of the class weights of the method over training: {listed(SCHEDULES)}; all but constant "
            "begin with those of sharpness_initial."
        },
    )
    sharpness_initial: str = field(
        default="none",
        metadata={"help": f"Method whose class weights a schedule begins with: {listed(WEIGHTS)}."},
    )
    sharpness_initial_values: dict | str | None = field(
        default=None,
        metadata={
            "help": "Hyperparameters of sharpness_initial by their arguments, where they are not those of the end."
        },
    )
    sharpness_step_at: Annotated[float, Range(0, 1)] = field(
        default=0.5,
        metadata={"help": "Fraction of training after which a step schedule takes the class weights of sharpness."},
    )
    adaptive_rho: bool = field(
        default=False, metadata={"help": "Measure the radius relative to each weight, as ASAM does."}
    )
    perturbation_scope: str = field(
        default="global",
        metadata={
            "help": "Perturb by the gradient of all samples of a step (global), or each process and micro-batch by "
            "its own (local, less communication)."
        },
    )
    reuse_frozen_prefix: bool = field(
        default=True,
        metadata={
            "help": "Compute the part of the model before the first trainable layer once per step instead of in both "
            "passes."
        },
    )
    perturb: str = field(
        default="trained",
        metadata={
            "help": "What is perturbed: trained, norms or merged; norms are scales and shifts of normalisation "
            "layers, merged the weights of linear layers with an adapter such as LoRA."
        },
    )
    ascent: str = field(
        default="gradient",
        metadata={"help": "Direction of the perturbation: gradient, friendly, momentum or gaussian."},
    )
    evaluation: str = field(
        default="two_point",
        metadata={
            "help": "How the perturbed loss is evaluated: two_point or one_pass; one_pass takes one pass a step and "
            "needs ascent momentum or gaussian."
        },
    )
    ascent_interval: Annotated[int, Range(1)] = field(
        default=1, metadata={"help": "Perturb the weights in one of this many steps; the others are plain."}
    )

    def __post_init__(self):
        check_allowed(
            self,
            sharpness=SHARPNESS_METHODS,
            perturbation_scope=PERTURBATION_SCOPES,
            perturb=TARGETS,
            ascent=DIRECTIONS,
            evaluation=EVALUATIONS,
            sharpness_schedule=SCHEDULES,
            sharpness_initial=WEIGHTS,
        )
        self.rho_at(0.0)
        self._check_schedule_of_weights()
        self._check_perturbation()
        self._check_optimizer_steps_late()
        super().__post_init__()

    def rho_at(self, progress: float) -> float:
        """The radius after a share of training, 0 to 1."""
        return scheduled_rho(
            self.rho_schedule, self.rho, progress=progress, initial=self.rho_initial, step_at=self.rho_step_at
        )

    @property
    def schedules_weights(self) -> bool:
        """Whether the class weights change over training."""
        return self.sharpness_schedule != "constant"

    def class_weights_at(self, progress: float, class_counts) -> Tensor:
        """The class-wise sharpness weights after a share of training, 0 to 1.

        Args:
            progress (`float`, 0 to 1): The share.
            class_counts (sequence of `int`, shape (C,)): Training samples per class.
        """
        final = self._weights_of(self.sharpness, {}, class_counts)
        if not self.schedules_weights:
            return final
        values = cast(dict[str, float], self.sharpness_initial_values or {})  # as the check has read them
        initial = self._weights_of(self.sharpness_initial, values, class_counts)
        return scheduled_weights(
            self.sharpness_schedule, final, progress=progress, initial=initial, step_at=self.sharpness_step_at
        )

    def _weights_of(self, method: str, values: dict[str, float], class_counts) -> Tensor:
        """Class weights of a method, with these values, by argument, instead of the run's own."""
        make = SHARPNESS_METHODS[method].make
        own = {known.argument: name for name, known in hyperparameters_of(make).items()}
        chosen = {own[argument]: value for argument, value in values.items()}
        return class_weights(method, class_counts, values_for(make, self) | chosen)

    def make_direction(self) -> Direction:
        """The direction of the perturbation that these arguments describe."""
        return make_direction(self.ascent, values_for(DIRECTIONS[self.ascent], self) | {"seed": self.seed})

    def make_evaluation(
        self, model: nn.Module, class_counts, *, separate_reason: str | None = None
    ) -> Evaluation | ClassConditionalSAM | None:
        """The sharpness-aware update that these arguments describe; None for plain training.

        Args:
            model (`nn.Module`): The model that the loss calls, with its wrappers.
            class_counts (sequence of `int`, shape (C,)): Training samples per class.
            separate_reason (`str`, *optional*): See `SharpnessStep`.
        """
        if self.sharpness == "none":
            return None
        method = SHARPNESS_METHODS[self.sharpness]
        if not method.is_of_the_family:
            return method.make(model, class_counts=class_counts, rho=self.rho, **values_for(method.make, self))
        step = SharpnessStep(
            model,
            self.class_weights_at(1.0, class_counts),
            rho=self.rho,
            adaptive=self.adaptive_rho,
            scope=self.perturbation_scope,
            perturb=self.perturb,
            direction=self.make_direction(),
            separate_reason=separate_reason,
            reuse_prefix=self.reuse_frozen_prefix,
        )
        return EVALUATIONS[self.evaluation](step, interval=self.ascent_interval)

    def _check_perturbation(self) -> None:
        """Raise a `ValueError` for choices of the perturbation that do not go together."""
        direction = self.make_direction()
        check_choices(
            scope=self.perturbation_scope, perturb=self.perturb, direction=direction, adaptive=self.adaptive_rho
        )
        EVALUATIONS[self.evaluation].check(direction)
        for name, value, otherwise in (("perturb", "merged", "trained"), ("evaluation", "one_pass", "two_point")):
            if self.torch_compile and getattr(self, name) == value:
                raise ValueError(
                    f"{name} is {value!r}, which acts beside the layers of the model, and torch_compile is True; set "
                    f"it to False, or {name} to {otherwise!r}."
                )
        if not SHARPNESS_METHODS[self.sharpness].is_of_the_family:
            self._check_choices_are_default()

    def _check_choices_are_default(self) -> None:
        names = ("perturb", "ascent", "evaluation", "ascent_interval", "sharpness_schedule")
        for name, value, default in self._not_at_default(names):
            raise ValueError(
                f"{name} is {value!r}, which {self.sharpness} does not read; leave {name} at {default!r}, or choose "
                "another sharpness."
            )

    def _not_at_default(self, names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
        """Name, value and default of each argument that is not at its default."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                yield name, value, default

    def _check_schedule_of_weights(self) -> None:
        """Read `sharpness_initial_values`, and raise a `ValueError` for a schedule that cannot be followed."""
        for name, value, default in self._not_at_default(("sharpness_initial", "sharpness_initial_values")):
            if not self.schedules_weights:
                raise ValueError(
                    f"{name} is {value!r}, and sharpness_schedule is 'constant', which does not read it; set "
                    f"sharpness_schedule to linear, cosine or step, or leave {name} at {default!r}."
                )
        if not self.schedules_weights:
            return
        if self.sharpness == "none":
            raise ValueError(
                f"sharpness is 'none' and sharpness_schedule is {self.sharpness_schedule!r}, which would end in plain "
                "training; set sharpness to the method that training ends with, or, to end in plain training, let "
                "rho_schedule lead from rho_initial to a rho of 0."
            )
        self.sharpness_initial_values = mapping_argument(
            "sharpness_initial_values", self.sharpness_initial_values, example={"focal_gamma": 0.5}
        )
        self._check_initial_values(self.sharpness_initial_values or {})

    def _check_initial_values(self, values: dict[str, Any]) -> None:
        known = {
            each.argument: each for each in hyperparameters_of(SHARPNESS_METHODS[self.sharpness_initial].make).values()
        }
        for argument, value in values.items():
            name = f"{argument!r} in sharpness_initial_values"
            if argument not in known:
                raise ValueError(
                    f"{name} is no hyperparameter of the class weights of {self.sharpness_initial}, which has "
                    f"{', '.join(known) or 'none'}; leave it out, or choose another sharpness_initial."
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name} is {value!r}; set it to a number.")
            known[argument].check(name, value)

    def _check_optimizer_steps_late(self) -> None:
        optimizer = getattr(self.optim, "value", self.optim)
        steps_early = optimizer in ("lomo", "adalomo") or str(optimizer).endswith("layerwise")
        if steps_early and self.sharpness != "none":
            raise ValueError(
                f"optim is {optimizer!r}, which steps in the backward pass, and the sharpness step needs the "
                "gradients of two; choose another optimizer, or set sharpness to 'none'."
            )


# Any: what the methods declare is not seen by type checkers.
SharpnessArguments: Any = with_hyperparameters(
    _SharpnessArguments,
    [*(method.make for method in SHARPNESS_METHODS.values()), *DIRECTIONS.values()],
    name="SharpnessArguments",
)
