"""`measure`: everything that is measured of one model, class by class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
from tqdm.auto import tqdm

from ..base.errors import unknown
from ..base.ranges import SEED, Range, check_numbers
from ..evaluation import group_means
from ..sharpness.targets import TARGETS, Target
from .ascent import measure_sharpness
from .class_loss import ClassLoss
from .hessian import largest_eigenvalue, standard_error, trace_probes
from .landscape import filter_normalised, line, offsets, plane, weight_norm

# What is measured of each class: column of the table -> what the page calls it.
MEASURES = {
    "ascent": "sharpness",
    "first_order": "sharpness, one SAM step",
    "eigenvalue": "largest eigenvalue",
    "trace": "trace of the Hessian",
    "loss": "loss",
    "gradient_norm": "norm of the gradient",
}


@dataclass(frozen=True)
class MeasureOptions:
    """What is measured, and how thoroughly.

    Args:
        perturb (`str`): A name in `TARGETS`: "trained", "norms" or "merged".
        rho (`float`, > 0): Radius of the sharpness.
        ascent_steps (`int`, >= 0): Steps of projected gradient ascent.
        hessian (`bool`): Whether to measure the largest eigenvalue and the trace.
        trace_probes (`int`, >= 2): Products with the Hessian that the trace is estimated by.
        line_points, plane_points (`int`, odd or 0): Points a side of the loss landscapes; 0 for none.
        extent (`float`, > 0): The landscapes reach from -extent to extent; at 1 every filter moves by its own norm.
        seed (`int`): Of images, directions and probes.

    Raises:
        ValueError: If a value is out of range.
    """

    perturb: str = field(
        default="trained", metadata={"help": "Which weights: trained, norms or merged (with their adapters)."}
    )
    rho: Annotated[float, Range(0, open_low=True)] = field(default=0.05, metadata={"help": "Radius of the sharpness."})
    ascent_steps: Annotated[int, Range(0)] = field(
        default=5, metadata={"help": "Steps of projected gradient ascent behind the SAM step."}
    )
    hessian: bool = field(
        default=True, metadata={"help": "Measure the largest eigenvalue and the trace of the Hessian."}
    )
    trace_probes: Annotated[int, Range(2)] = field(
        default=20, metadata={"help": "Products with the Hessian that the trace is estimated by."}
    )
    line_points: Annotated[int, Range(0)] = field(
        default=21, metadata={"help": "Points of the one-dimensional loss landscapes, an odd number; 0 for none."}
    )
    plane_points: Annotated[int, Range(0)] = field(
        default=11, metadata={"help": "Points a side of the two-dimensional ones, an odd number; 0 for none."}
    )
    extent: Annotated[float, Range(0, open_low=True)] = field(
        default=0.5, metadata={"help": "Reach of the landscapes; at 1 every filter moves by its own norm."}
    )
    seed: Annotated[int, SEED] = field(default=0, metadata={"help": "Of images, directions and probes."})

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.perturb not in TARGETS:
            raise ValueError(unknown("perturb", self.perturb, TARGETS))
        for name in ("line_points", "plane_points"):
            value = getattr(self, name)
            if (value % 2 == 0 and value != 0) or value == 1:
                raise ValueError(f"{name} is {value}; set it to an odd number from 3 on, so that w is in the middle.")


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model; NaN of classes without an image.

    Args:
        name (`str`): Of the run.
        accuracies (`np.ndarray`): Test accuracy of each class, fractions 0..1, shape (C,).
        groups (`Mapping[str, np.ndarray]`): Classes of many, medium and few.
        images (`np.ndarray`): Images of each class that were measured on, shape (C,).
        measures (`Mapping[str, np.ndarray]`): A name in `MEASURES` -> values, float64 of shape (C,).
        probes (`np.ndarray`): v^T H v, shape (C, P); P is 0 where the Hessian was not measured.
        weights, weight_norm (`int`, `float`): Number and norm of the weights that are perturbed.
        line, plane (`np.ndarray`): Losses along one direction, (C, P), and along two, (C, P, P); P may be 0.
    """

    name: str
    accuracies: np.ndarray
    groups: Mapping[str, np.ndarray]
    images: np.ndarray
    measures: Mapping[str, np.ndarray]
    probes: np.ndarray
    weights: int
    weight_norm: float
    line: np.ndarray
    plane: np.ndarray

    @cached_property
    def measured_groups(self) -> dict[str, np.ndarray]:
        """The classes that were measured, all and by group, without empty groups."""
        measured = np.flatnonzero(self.images)
        groups = {"all": measured} | {name: np.intersect1d(classes, measured) for name, classes in self.groups.items()}
        return {name: classes for name, classes in groups.items() if classes.size}

    def by_group(self, values: np.ndarray) -> dict[str, float]:
        """Means over the classes of each group of values of shape (C,)."""
        return group_means(values, self.measured_groups)

    def trace_error(self, classes: np.ndarray) -> float:
        """Standard error, over the probes, of the mean trace of some classes."""
        return standard_error(self.probes[classes].mean(axis=0))


def measure(
    model_target: Target,
    class_loss: Callable[[int], ClassLoss],
    *,
    images: np.ndarray,
    options: MeasureOptions,
    accuracies: np.ndarray,
    groups: Mapping[str, np.ndarray],
    name: str = "model",
) -> Measurement:
    """Measure each class.

    Args:
        model_target (`Target`): What is perturbed.
        class_loss (`Callable`): Class index -> its loss; called when the class's turn has come.
        images (`np.ndarray`): Images of each class, shape (C,); classes that have none are left out.
        options (`MeasureOptions`): What to measure.
        accuracies, groups: Of the run, as in [`Measurement`].
        name (`str`): Of the run, for the progress bar and the result.

    Raises:
        ValueError: If a loss is not finite, or a landscape is asked for where nothing perturbed has filters.
    """
    num_classes, at = len(images), {p: offsets(p, options.extent) for p in (options.line_points, options.plane_points)}
    directions = []
    if options.line_points or options.plane_points:
        directions = [filter_normalised(model_target, seed=options.seed + number) for number in range(2)]
    measures = {measured: np.full(num_classes, np.nan) for measured in MEASURES}
    probes = np.full((num_classes, options.trace_probes if options.hessian else 0), np.nan)
    lines = np.full((num_classes, options.line_points), np.nan)
    planes = np.full((num_classes, options.plane_points, options.plane_points), np.nan)
    progress = tqdm(np.flatnonzero(images), desc=name, unit=" classes")
    for index in progress:
        loss = class_loss(int(index))
        progress.set_postfix_str("sharpness")
        found = measure_sharpness(loss, rho=options.rho, steps=options.ascent_steps, seed=options.seed)
        for measured, value in vars(found).items():
            measures[measured][index] = value
        if options.hessian:
            progress.set_postfix_str("eigenvalue")
            measures["eigenvalue"][index] = largest_eigenvalue(loss, seed=options.seed)
            progress.set_postfix_str("trace")
            probes[index] = trace_probes(loss, probes=options.trace_probes, seed=options.seed)
            measures["trace"][index] = probes[index].mean()
        if options.line_points:
            progress.set_postfix_str("line")
            lines[index] = line(loss, directions[0], at[options.line_points])
        if options.plane_points:
            progress.set_postfix_str("plane")
            planes[index] = plane(loss, directions[0], directions[1], at[options.plane_points])
    return Measurement(
        name=name,
        accuracies=accuracies,
        groups=groups,
        images=images,
        measures=measures,
        probes=probes,
        weights=sum(tensor.numel() for tensor in model_target.names),
        weight_norm=weight_norm(model_target),
        line=lines,
        plane=planes,
    )
