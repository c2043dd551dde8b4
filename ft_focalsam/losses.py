"""Losses per sample for long-tailed classes. A new loss is one decorated function in this file.

A loss is a function `(logits, targets, *, ...) -> losses`. `logits`, shape (B, C), are float32 or wider; `targets`,
shape (B, C), hold the class probabilities of each sample: one-hot for a class index, with label smoothing put in
already. One loss a sample comes out, shape (B,). By keyword it names what else it takes:

    class_counts    training samples per class, shape (C,), in the dtype of the logits
    features        what reaches the model's classifier, shape (B, D), float32 or wider
    progress        the share of training that is done, 0 to 1
    head_scale      the scale of the logits of the model's head, 1 where it has none

and its hyperparameters, each with a default and a note, under the names they have as training arguments, which are
made of them: `focal_loss_gamma: Annotated[float, Hyperparameter("...", low=0)] = 2.0`. Of a sample with class
probabilities every loss but LADE takes the expectation, l(z, q) = sum_k q_k l(z, k): so `class_losses` below are the
l(z, k), shape (B, C).
"""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from .base.registry import Registry
from .sharpness.hyperparameters import Hyperparameter, check_hyperparameters

LOSSES: Registry[Callable[..., Tensor]] = Registry("loss")
register_loss = LOSSES.register

CONTEXT = ("class_counts", "features", "progress", "head_scale")


def loss_hyperparameters(name: str) -> dict[str, float | None]:
    """Names and defaults of what can be set of a loss.

    Raises:
        ValueError: If there is no loss of that name.
    """
    taken = inspect.signature(LOSSES.choose(name)).parameters.values()
    return {p.name: p.default for p in taken if p.kind == p.KEYWORD_ONLY and p.name not in CONTEXT}


# ---- pieces ----


def _expectation(class_losses: Tensor, targets: Tensor) -> Tensor:
    """sum_k q_k l(z, k) of each sample."""
    return (class_losses * targets).sum(dim=1)


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p_k) from log p_k, exact also where p_k rounds to 1: there as the sum of the other probabilities."""
    top = log_p.argmax(dim=1, keepdim=True)
    others = log_p.scatter(1, top, -torch.inf).logsumexp(dim=1, keepdim=True)
    return torch.log1p(-log_p.exp().scatter(1, top, 0.0)).scatter(1, top, others)


def effective_number_weights(class_counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_i), scaled to a mean of 1 over the classes (Cui et al., arXiv 1901.05555).

    Args:
        class_counts (`Tensor` of shape (C,)): n_i, all above 0.
        beta (`float`, 0 to below 1): 0 weighs all classes alike; towards 1 the weights approach 1 / n_i.

    Raises:
        ValueError: If `beta` is out of range.
    """
    if not 0 <= beta < 1:
        raise ValueError(f"effective_number_beta is {beta}; set it to at least 0 and below 1.")
    log_beta = math.log(beta) if beta > 0 else -math.inf
    weights = -1 / torch.expm1(class_counts * log_beta)
    return weights / weights.mean()


# ---- the losses ----


@register_loss("cross_entropy")
def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy: l(z, k) = -log softmax(z)_k."""
    return _expectation(-F.log_softmax(logits, dim=1), targets)


Beta = Annotated[
    float,
    Hyperparameter(
        "Parameter beta of the effective number of samples, in the loss class_balanced, in deferred re-weighting and "
        "in the sampler effective_number.",
        low=0,
        high=1,
        open_high=True,
    ),
]


@register_loss("class_balanced")
def class_balanced(
    logits: Tensor, targets: Tensor, *, class_counts: Tensor, effective_number_beta: Beta = 0.9999
) -> Tensor:
    """Cross-entropy weighted by the inverse effective number of samples (Cui et al., arXiv 1901.05555).

    l(z, k) = -w_k log softmax(z)_k with w of `effective_number_weights`; beta = 0 is cross-entropy.
    """
    weights = effective_number_weights(class_counts, effective_number_beta)
    return _expectation(-weights * F.log_softmax(logits, dim=1), targets)


@register_loss("grw")
def grw(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    grw_exponent: Annotated[
        float, Hyperparameter("Exponent of the inverse class frequency in the weights of grw.", low=0)
    ] = 1.2,
) -> Tensor:
    """Generalised re-weighting (Zhang et al., arXiv 2103.16370): cross-entropy weighted by (1 / pi_k)^a.

    l(z, k) = -w_k log softmax(z)_k with w scaled to a mean of 1 over the classes; a = 0 is cross-entropy, a = 1
    weighs by inverse frequency.
    """
    weights = (class_counts.min() / class_counts) ** grw_exponent
    return _expectation(-weights / weights.mean() * F.log_softmax(logits, dim=1), targets)


@register_loss("focal")
def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    focal_loss_gamma: Annotated[
        float,
        Hyperparameter("Focusing parameter gamma of the focal loss; focal_gamma is that of Focal-SAM.", low=0),
    ] = 2.0,
) -> Tensor:
    """Focal loss over a softmax (Lin et al., arXiv 1708.02002, eq. 4): l(z, k) = -(1 - p_k)^gamma log p_k.

    The gamma of this loss is not that of Focal-SAM; 0 is cross-entropy.
    """
    log_p = F.log_softmax(logits, dim=1)
    return _expectation(-(focal_loss_gamma * _log_complement(log_p)).exp() * log_p, targets)


@register_loss("ldam")
def ldam(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    head_scale: float = 1.0,
    ldam_max_margin: Annotated[
        float, Hyperparameter("Margin of the rarest class in ldam, between cosines.", low=0)
    ] = 0.5,
    ldam_scale: Annotated[
        float | None,
        Hyperparameter(
            "Scale s of the logits in ldam; by default that of the model's head, 1 where the head has none.",
            low=0,
            open_low=True,
        ),
    ] = None,
) -> Tensor:
    """Label-distribution-aware margins (Cao et al., arXiv 1906.07413).

    l(z, k) = -log softmax(z - m_k e_k)_k with m_k = s Delta_k and Delta_k proportional to n_k^(-1/4), the largest
    being `ldam_max_margin`. The margins are those of cosines, and the logits are s times cosines: a cosine head's
    scale is `ldam_scale`, s. The public code has s = 30.
    """
    scale = head_scale if ldam_scale is None else ldam_scale
    margins = scale * ldam_max_margin * (class_counts.min() / class_counts) ** 0.25
    log_p = F.log_softmax(logits, dim=1)
    return _expectation(-F.logsigmoid(log_p - _log_complement(log_p) - margins), targets)


@register_loss("balanced_softmax")
def balanced_softmax(logits: Tensor, targets: Tensor, *, class_counts: Tensor) -> Tensor:
    """Balanced softmax (Ren et al., arXiv 2007.10740): cross-entropy of z + log n, logit adjustment of tau 1."""
    return cross_entropy(logits + class_counts.log(), targets)


Tau = Annotated[float, Hyperparameter("Strength tau of logit adjustment, also in vs.")]


@register_loss("logit_adjusted")
def logit_adjusted(
    logits: Tensor, targets: Tensor, *, class_counts: Tensor, logit_adjustment_tau: Tau = 1.0
) -> Tensor:
    """Logit-adjusted cross-entropy (Menon et al., arXiv 2007.07314, eq. 10): of z + tau log pi.

    It trains on logits shifted by the class frequencies, so that the unshifted ones are right for balanced classes.
    tau = 1 is consistent for the balanced error, 0 is cross-entropy.
    """
    prior = class_counts / class_counts.sum()
    return cross_entropy(logits + logit_adjustment_tau * prior.log(), targets)


@register_loss("vs")
def vs(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    vs_gamma: Annotated[
        float, Hyperparameter("Exponent gamma of the class frequency by which vs scales logits.", low=0)
    ] = 0.15,
    logit_adjustment_tau: Tau = 1.0,
) -> Tensor:
    """Vector scaling (Kini et al., arXiv 2103.01550): cross-entropy of Delta z + tau log pi.

    Delta_k = (n_k / max n)^gamma scales the logits of rare classes down in training; gamma = 0 is logit adjustment.
    """
    scales = (class_counts / class_counts.max()) ** vs_gamma
    return logit_adjusted(
        scales * logits, targets, class_counts=class_counts, logit_adjustment_tau=logit_adjustment_tau
    )


@register_loss("lade")
def lade(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    lade_alpha: Annotated[float, Hyperparameter("Weight alpha of the regulariser of lade.", low=0)] = 0.1,
    lade_lambda: Annotated[
        float, Hyperparameter("Weight lambda of the squared term inside the regulariser of lade.", low=0)
    ] = 0.1,
) -> Tensor:
    """LADE (Hong et al., arXiv 2012.00321): balanced softmax and a regulariser over the batch.

        mean_n l_n = CE(z + log pi, y) + alpha sum_c pi_c (-1/N_c sum_{y_n = c} z_nc + S_c + lambda S_c^2)
        S_c = log 1/B sum_n (1 / C) / pi_{y_n} exp(z_nc)

    with N_c samples of class c in the batch. It pins every logit z_c to the log density ratio of p(x | c) to a
    balanced p(x). (The public code weighs the terms of S_c by class c, not by the label y_n.) The first part of the
    regulariser counts towards the sample it is of, S_c towards all alike. So the samples of a batch interact, the
    value depends on the batch, and a sharpness step needs a backward pass more.
    """
    size = len(logits)
    prior = class_counts / class_counts.sum()
    importance = targets @ (1 / (len(prior) * prior))
    log_means = (logits + importance.log()[:, None]).logsumexp(dim=0) - math.log(size)  # S_c
    shares = targets / targets.sum(dim=0).clamp(min=torch.finfo(logits.dtype).tiny)  # 1/N_c of the samples of c
    own = size * (shares * logits) @ prior
    shared = prior @ (log_means + lade_lambda * log_means**2)
    return balanced_softmax(logits, targets, class_counts=class_counts) + lade_alpha * (shared - own)


@register_loss("influence_balanced")
def influence_balanced(
    logits: Tensor,
    targets: Tensor,
    *,
    class_counts: Tensor,
    features: Tensor,
    progress: float,
    ib_alpha: Annotated[float, Hyperparameter("Factor alpha of influence_balanced.", low=0, open_low=True)] = 1000.0,
    ib_start: Annotated[
        float,
        Hyperparameter(
            "Fraction of training after which influence_balanced takes the place of cross-entropy.", low=0, high=1
        ),
    ] = 0.5,
) -> Tensor:
    """Influence-balanced loss (Park et al., arXiv 2110.02444), after cross-entropy for a share of training.

    l(z, k) = -lambda_k log p_k / (||p - e_k||_1 ||h||_1 + 0.001) from progress `ib_start` on, with h the `features`
    and lambda_k proportional to 1 / n_k, of mean `ib_alpha` over the classes. As in the public code, the denominator
    is differentiated too.
    """
    if progress < ib_start:
        return cross_entropy(logits, targets)
    rarity = class_counts.min() / class_counts
    log_p = F.log_softmax(logits, dim=1)
    influence = 2 * _log_complement(log_p).exp() * features.abs().flatten(1).sum(dim=1, keepdim=True)
    return _expectation(-ib_alpha * rarity / rarity.mean() * log_p / (influence + 1e-3), targets)


# ---- a loss and a training set ----


class PerSampleLoss:
    """A loss bound to the class counts of a training set; `make_loss` builds it.

    Called as `loss(logits, labels, *, features=None, progress=0.0)` with logits of shape (B, C) and labels of shape
    (B,), class indices, or (B, C), class probabilities, it returns losses of shape (B,), float32 or wider also for
    logits in half precision. `progress` is the share of training that is done, 0 to 1.

    Attributes:
        name (`str`): Its name in `LOSSES`.
        needs_features (`bool`): Whether calls need `features`, shape (B, D): what reaches the model's classifier.
        samples_interact (`bool`): Whether the loss of a sample depends on the rest of its batch.
    """

    def __init__(
        self,
        name: str,
        class_counts: Tensor,
        hyperparameters: Mapping[str, float | None],
        *,
        label_smoothing: float,
        drw_start: float | None,
        drw_beta: float,
        head_scale: float,
    ):
        self.name = name
        self._function = LOSSES.choose(name)
        self._takes = set(inspect.signature(self._function).parameters)
        self._hyperparameters = hyperparameters
        self._head_scale = head_scale
        self._class_counts = class_counts
        self._label_smoothing = label_smoothing
        self._drw_start = drw_start
        self._drw_weights = effective_number_weights(class_counts, drw_beta)
        self.needs_features = "features" in self._takes
        self.samples_interact = self._try_out()

    def __call__(
        self, logits: Tensor, labels: Tensor, *, features: Tensor | None = None, progress: float = 0.0
    ) -> Tensor:
        if self.needs_features and features is None:
            raise ValueError(f"The loss {self.name!r} needs the features that reach the classifier; give features=.")
        logits = _at_least_float32(logits)
        if (self._class_counts.device, self._class_counts.dtype) != (logits.device, logits.dtype):
            self._class_counts = self._class_counts.to(logits)
            self._drw_weights = self._drw_weights.to(logits)
        size = logits.shape[1]
        probabilities = (labels if labels.ndim == 2 else F.one_hot(labels, size)).to(logits.dtype)
        targets = probabilities
        if self._label_smoothing:
            targets = (1 - self._label_smoothing) * targets + self._label_smoothing / size
        context = {"class_counts": self._class_counts, "progress": progress, "head_scale": self._head_scale}
        if features is not None:
            context["features"] = _at_least_float32(features)
        context = {name: value for name, value in context.items() if name in self._takes}
        losses = self._function(logits, targets, **context, **self._hyperparameters)
        if self._drw_start is not None and progress >= self._drw_start:
            losses = losses * (probabilities @ self._drw_weights)
        return losses

    @torch.enable_grad()
    def _try_out(self) -> bool:
        """Run the loss on three samples, for it to refuse its hyperparameters now; whether they interact."""
        size = len(self._class_counts)
        logits = torch.linspace(-1, 1, 3 * size, dtype=torch.float64).reshape(3, size).requires_grad_()
        features = torch.arange(1.0, 4, dtype=torch.float64)[:, None]
        losses = self(logits, torch.tensor([0, size - 1, 0]), features=features, progress=1.0)
        if losses.shape != (3,):
            raise ValueError(
                f"The loss {self.name!r} returns the shape {tuple(losses.shape)} for 3 samples; let it return one "
                "loss a sample."
            )
        return bool(torch.autograd.grad(losses[0], logits)[0][1:].any())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def make_loss(
    name: str,
    class_counts: Sequence[int],
    hyperparameters: Mapping[str, float] | None = None,
    *,
    label_smoothing: float = 0.0,
    drw_start: float | None = None,
    head_scale: float = 1.0,
) -> PerSampleLoss:
    """A loss by name, bound to the class counts of a training set.

    Args:
        name (`str`): A name in `LOSSES`: "cross_entropy", "class_balanced", "grw", "focal", "ldam",
            "balanced_softmax", "logit_adjusted", "vs", "lade" or "influence_balanced".
        class_counts (sequence of `int`, shape (C,)): Training samples per class, all above 0.
        hyperparameters (mapping, *optional*): Values by name; the loss takes those it has (`loss_hyperparameters`)
            and leaves those of the other losses.
        label_smoothing (`float`, 0 to 1): Share of the target spread evenly over all classes.
        drw_start (`float`, 0 to 1, *optional*): Deferred re-weighting (Cao et al., arXiv 1906.07413, algorithm 1):
            from this share of training on, the loss of a sample of class k is multiplied by w_k of
            `effective_number_weights`, whose beta is the hyperparameter `effective_number_beta`, by default 0.9999.
            (The public code then divides by the sum of the weights in the batch, where this divides by its size.)
        head_scale (`float`, > 0): Scale of the logits of the model's head, which ldam takes where it is given none.

    Returns:
        `PerSampleLoss`: (logits, labels) -> losses.

    Raises:
        ValueError: If the loss is unknown, a class has no sample, or a hyperparameter is unknown or out of range.
    """
    given = dict(hyperparameters or {})
    own = loss_hyperparameters(name)
    known = {hyperparameter for loss in LOSSES for hyperparameter in loss_hyperparameters(loss)}
    for unknown in given.keys() - known:
        nearest = difflib.get_close_matches(unknown, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"No loss has a hyperparameter {unknown!r}; did you mean {nearest!r}?")
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if (counts <= 0).any():
        empty = int((counts <= 0).nonzero()[0])
        raise ValueError(f"Class {empty} has no training sample; give it some, or leave the class out of the labels.")
    if drw_start is not None and not 0 <= drw_start <= 1:
        raise ValueError(f"drw_start is {drw_start}; set it to a share of training, from 0 to 1.")
    values = {hyperparameter: given.get(hyperparameter, default) for hyperparameter, default in own.items()}
    check_hyperparameters(LOSSES[name], values)
    return PerSampleLoss(
        name,
        counts,
        values,
        label_smoothing=label_smoothing,
        drw_start=drw_start,
        drw_beta=given.get("effective_number_beta", 0.9999),
        head_scale=head_scale,
    )
