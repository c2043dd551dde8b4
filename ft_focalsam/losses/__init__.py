"""Losses per sample for long-tailed classes. A new loss is one decorated function in a file of its family.

A loss is a function `(logits, targets, *, ...) -> losses`. `logits`, shape (B, C), are float32 or wider; `targets`,
shape (B, C), hold the class probabilities of each sample: one-hot for a class index, with label smoothing put in
already. One loss a sample comes out, shape (B,). By keyword it names what else it takes:

    class_counts    training samples per class, shape (C,), in the dtype of the logits
    num_samples     training samples; for one class a sample the sum of class_counts
    features        what reaches the model's classifier, shape (B, D), float32 or wider
    progress        the share of training that is done, 0 to 1
    head_scale      the scale of the logits of the model's head, 1 where it has none

and its hyperparameters, each with a default and a note, under the names they have as training arguments, which are
made of them: `focal_loss_gamma: Annotated[float, Hyperparameter("...", low=0)] = 2.0`. Of a sample with class
probabilities every loss but LADE takes the expectation, l(z, q) = sum_k q_k l(z, k) (`pieces.expectation`).

Losses for several classes a sample (`multi_label.py`) are registered with `multi_label=True`. Their `targets` hold a
1 for each class that a sample has.
"""

from .adjusted import balanced_softmax, lade, logit_adjusted, vs
from .margins import ldam
from .multi_label import asymmetric, bce, distribution_balanced
from .per_sample import PerSampleLoss, make_loss
from .registry import LOSSES, is_multi_label, loss_hyperparameters, register_loss, same_kind
from .reweighted import class_balanced, cross_entropy, effective_number_weights, focal, grw, influence_balanced

__all__ = [
    "LOSSES",
    "PerSampleLoss",
    "asymmetric",
    "balanced_softmax",
    "bce",
    "class_balanced",
    "cross_entropy",
    "distribution_balanced",
    "effective_number_weights",
    "focal",
    "grw",
    "influence_balanced",
    "is_multi_label",
    "lade",
    "ldam",
    "logit_adjusted",
    "loss_hyperparameters",
    "make_loss",
    "register_loss",
    "same_kind",
    "vs",
]
