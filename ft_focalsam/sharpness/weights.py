"""Class-wise sharpness weights c: how much flatness each class is asked for.

Every method of the family minimises

    L(w) + sum_i c_i * [ max over ||eps|| <= rho of  L_i(w + eps) - L_i(w) ]

and differs from the others only in the vector c, computed here from the number of training samples per class. A new
method of the family is one decorated function in this file.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor

from .hyperparameters import Hyperparameter, Search, check_hyperparameters, hyperparameters_of

# The label of a sample without weight, whose loss has to be 0, as in torch.nn.functional.cross_entropy
IGNORED = -100
RHO = Hyperparameter(
    "Radius of the perturbation.", argument="rho", low=0, symbol="ρ", search=Search(0.01, 0.5, log=True)
)
T = TypeVar("T", bound=Callable)


@dataclass(frozen=True)
class SharpnessMethod:
    """
    Attributes:
        make (`Callable`): `(class_counts, *, hyperparameters...) -> c`; for a method beside the family a class whose
            instances are called in the place of a `SharpnessStep`, `(model, *, class_counts, rho,
            hyperparameters...)`.
        title (`str`): What cards and reports call it.
    """

    make: Callable[..., Any]
    title: str

    @property
    def hyperparameters(self) -> list[Hyperparameter]:
        """Rho, and those of its own; none of plain training."""
        return [] if self.make is plain else [RHO, *hyperparameters_of(self.make).values()]

    @property
    def is_of_the_family(self) -> bool:
        """Whether it is a vector of class-wise weights."""
        return not isinstance(self.make, type)


SHARPNESS_METHODS: dict[str, SharpnessMethod] = {}


def register_sharpness_method(name: str, *, title: str | None = None) -> Callable[[T], T]:
    """Register a function `(class_counts, *, hyperparameters...) -> c` under `name`; see [`SharpnessMethod`].

    Its hyperparameters have a default and a note, `gamma: Annotated[float, Hyperparameter("...")] = 1.0`. Those of
    methods that are registered before `ft_focalsam.trainer` is imported are arguments of the Trainer.

    Args:
        name (`str`): What users write as `--sharpness name`.
        title (`str`, *optional*): What cards and reports call it; by default the name.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(make: T) -> T:
        if name in SHARPNESS_METHODS:
            raise ValueError(f"The sharpness method {name!r} is registered already; choose another name.")
        SHARPNESS_METHODS[name] = SharpnessMethod(make, title or name)
        return make

    return decorate


def as_class_counts(class_counts) -> Tensor:
    """Check the number of training samples per class and return it as a float64 tensor.

    Args:
        class_counts (sequence of `int`, shape (C,)): Training samples of each class, all at least 0.

    Raises:
        ValueError: If it is not a non-empty vector of non-negative finite numbers, or if all of them are 0.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64).cpu()
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f"class_counts has shape {tuple(counts.shape)}; give one number of samples per class.")
    if not torch.isfinite(counts).all() or (counts < 0).any() or counts.sum() == 0:
        raise ValueError(f"class_counts is {counts.tolist()}; every count must be at least 0, and one above 0.")
    return counts


@register_sharpness_method("none", title="Plain training")
def plain(class_counts: Tensor) -> Tensor:
    """Plain training: c_i = 0."""
    return torch.zeros_like(class_counts)


@register_sharpness_method("sam", title="SAM")
def sam(class_counts: Tensor) -> Tensor:
    """SAM (Foret et al., arXiv 2010.01412): c_i = 1."""
    return torch.ones_like(class_counts)


Lambda = Annotated[
    float,
    Hyperparameter(
        "Weight lambda of the sharpness term in Focal-SAM and weighted SAM.",
        argument="focal_lambda",
        low=0,
        symbol="λ",
        search=Search(0.2, 1.5, key="lambda_range"),
    ),
]
Gamma = Annotated[
    float,
    Hyperparameter(
        "Focusing parameter gamma of Focal-SAM: how strongly flatness is asked of rare classes.",
        argument="focal_gamma",
        low=0,
        symbol="γ",
        search=Search(0.0, 6.0, key="gamma_range"),
    ),
]
Eta = Annotated[
    float,
    Hyperparameter(
        "ImbSAM perturbs classes with fewer training samples than this.",
        argument="imbsam_eta",
        low=0,
        open_low=True,
        high=math.inf,
        symbol="η",
    ),
]


@register_sharpness_method("weighted_sam", title="SAM with the weight λ")
def weighted_sam(class_counts: Tensor, *, lam: Lambda = 0.8) -> Tensor:
    """Weighted SAM (Yue et al., arXiv 2305.15817): a constant c_i = lam."""
    return torch.full_like(class_counts, lam)


@register_sharpness_method("imbsam", title="ImbSAM")
def imbsam(class_counts: Tensor, *, eta: Eta = 100) -> Tensor:
    """ImbSAM (Zhou et al., arXiv 2308.07815): c_i = 1 for classes with fewer than `eta` samples, else 0."""
    return (class_counts < eta).to(class_counts.dtype)


@register_sharpness_method("focal_sam", title="Focal-SAM")
def focal_sam(class_counts: Tensor, *, gamma: Gamma = 1.0, lam: Lambda = 0.8) -> Tensor:
    """Focal-SAM (Li et al., arXiv 2505.01660): c_i = lam * (1 - pi_i)^gamma, with pi_i = n_i / sum_j n_j.

    Args:
        class_counts (`Tensor` of shape (C,)): Training samples per class n_i.
        gamma (`float`, >= 0): How strongly the focus moves to rare classes; 0 is weighted SAM.
        lam (`float`, >= 0): Overall weight of the sharpness term; values above 1 are allowed.
    """
    return lam * (1 - class_counts / class_counts.sum()) ** gamma


def class_weights(method: str, class_counts, hyperparameters: Mapping[str, float] | None = None) -> Tensor:
    """Class-wise sharpness weights c of a method.

    Args:
        method (`str`): A name in `SHARPNESS_METHODS`: "none", "sam", "weighted_sam", "imbsam" or "focal_sam".
        class_counts (sequence of `int`, shape (C,)): Training samples per class.
        hyperparameters (mapping, *optional*): Values by name; the method takes those it has, by their names
            (`gamma`, `lam`, `eta`), and leaves the rest.

    Returns:
        `Tensor` of shape (C,), float64, on the CPU, every entry >= 0.

    Raises:
        ValueError: If the method is unknown, or the counts or a hyperparameter are out of range.
    """
    if method not in SHARPNESS_METHODS:
        raise ValueError(f"Unknown sharpness method {method!r}; choose one of {', '.join(SHARPNESS_METHODS)}.")
    if not SHARPNESS_METHODS[method].is_of_the_family:
        raise ValueError(f"The sharpness method {method!r} has no class-wise weights; choose another one.")
    function = SHARPNESS_METHODS[method].make
    own = hyperparameters_of(function)
    chosen = {name: value for name, value in (hyperparameters or {}).items() if name in own}
    check_hyperparameters(function, chosen)
    return function(as_class_counts(class_counts), **chosen)


def sample_weights(class_weights: Tensor, labels: Tensor) -> Tensor:
    """c(n) of each sample.

    Args:
        class_weights (`Tensor` of shape (C,)): c.
        labels (`Tensor` of shape (B,) or (B, C)): Class indices, or class probabilities (mixup), or a 1 for each of
            several classes; `IGNORED` for samples without weight. Of a row y_n, c(n) = sum_k y_nk c_k / max(1, sum_k
            y_nk): the expectation for probabilities, the mean over the classes that are there for several, and 0 for
            none.

    Returns:
        `Tensor` of shape (B,).

    Raises:
        ValueError: If the labels are neither.
    """
    if labels.ndim == 2:
        labels = labels.masked_fill(labels == IGNORED, 0).to(class_weights.dtype)
        return (labels @ class_weights) / labels.sum(dim=1).clamp(min=1)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"The labels are {labels.dtype} of shape {tuple(labels.shape)}; give class indices, integers of shape "
            "(B,), or class probabilities, or a 1 for each of several classes, of shape (B, C)."
        )
    labels = labels.long()
    ignored = labels == IGNORED
    return class_weights[labels.masked_fill(ignored, 0)].masked_fill(ignored, 0)
