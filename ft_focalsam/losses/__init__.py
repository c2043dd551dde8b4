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
probabilities every loss but LADE takes the expectation, l(z, q) = sum_k q_k l(z, k): so `class_losses` below are the
l(z, k), shape (B, C).

Losses for several classes a sample (`multi_label.py`) are registered with `multi_label=True`. Their `targets` hold a
1 for each class that a sample has.
"""

from .adjusted import balanced_softmax as balanced_softmax
from .adjusted import lade as lade
from .adjusted import logit_adjusted as logit_adjusted
from .adjusted import vs as vs
from .margins import ldam as ldam
from .multi_label import asymmetric as asymmetric
from .multi_label import bce as bce
from .multi_label import distribution_balanced as distribution_balanced
from .per_sample import PerSampleLoss as PerSampleLoss
from .per_sample import make_loss as make_loss
from .registry import LOSSES as LOSSES
from .registry import is_multi_label as is_multi_label
from .registry import loss_hyperparameters as loss_hyperparameters
from .registry import register_loss as register_loss
from .registry import same_kind as same_kind
from .reweighted import class_balanced as class_balanced
from .reweighted import cross_entropy as cross_entropy
from .reweighted import effective_number_weights as effective_number_weights
from .reweighted import focal as focal
from .reweighted import grw as grw
from .reweighted import influence_balanced as influence_balanced
