"""Class-wise sharpness weights from class counts."""

import math
from collections.abc import Mapping

import numpy as np

RATIO = 0.5  # weight of the most frequent class by that of the rarest
RAREST = 0.8  # weight of the rarest class
MOST_GAMMA = 5.5  # the largest published for fine-tuning
BALANCED = 2  # imbalance below which all classes have the same weight


def choose_sharpness(class_counts: np.ndarray, given: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Sharpness method, gamma and lambda of Focal-SAM for these classes, and why.

    Focal-SAM (arXiv 2505.01660) weighs the sharpness of class i by c_i = lambda (1 - pi_i)^gamma, with pi_i its share
    of the training images. What a gamma does depends on these shares, so that one data set's gamma is no use on
    another one: gamma 5.5 gives the most frequent class 0.77 of the weight of the rarest where that has 4.6 % of the
    images (CIFAR-100-LT), and 0.06 where it has 40 % (CIFAR-10-LT). Fixed is what the weights shall be instead:

        c_most / c_rarest = ((1 - pi_max) / (1 - pi_min))^gamma = 1/2:  gamma = -ln 2 / ln((1 - pi_max) / (1 - pi_min))
        c_rarest = lambda (1 - pi_min)^gamma = 0.8:  lambda = 0.8 / (1 - pi_min)^gamma

    with gamma at most 5.5, the largest published value for fine-tuning: with hundreds of classes no share is large,
    and a ratio of 1/2 would take exponents that nobody has tried. 0.8 is the lambda published for CIFAR-100-LT and
    ImageNet-LT; as the weight of the rarest class it keeps its meaning where classes are few and (1 - pi_min)^gamma is
    far below 1.

    Against the published values, on imbalance 100: CIFAR-10-LT gives gamma 1.35 and lambda 0.80 (published 1.5 and
    0.7), CIFAR-100-LT gamma 5.5 and lambda 0.80 (published 5.5 and 0.8), the former by the rule and the latter by its
    limit, without which gamma would be 14.8. ImageNet-LT also gives 5.5 (published 0.5), with 0.94 of the weight for
    the most frequent class instead of 0.99. RESULTS.md finds no difference between gamma 0 and 5.5 on CIFAR-100-LT.

    Classes whose counts differ by less than a factor of 2 all get 0.8: gamma 0. rho is 0.05, published for all data
    sets but iNaturalist; RESULTS.md gains nothing by 0.1.

    Args:
        class_counts (`np.ndarray`): Training images of each class, shape (C,); classes without any are left out.
        given (mapping): Keys that the user has set, which win; lambda goes by a given gamma.
    """
    method = given.get("sharpness", "focal_sam")
    if method != "focal_sam":
        return {}, []
    shares = class_counts[class_counts > 0] / class_counts.sum()
    most, least = float(shares.max()), float(shares.min())
    gamma = float(given.get("focal_gamma", focal_gamma(most, least)))
    scale = float(given.get("focal_lambda", round(RAREST / (1 - least) ** gamma, 2)))
    settings: dict[str, object] = {"sharpness": method, "rho": 0.05, "focal_gamma": gamma, "focal_lambda": scale}
    weights = [scale * (1 - share) ** gamma for share in (most, least)]
    if most < BALANCED * least and "focal_gamma" not in given:
        return settings, [f"Focal-SAM with gamma 0: the classes are balanced, and all get the weight {scale:g}"]
    limit = ", the largest gamma published for fine-tuning" if gamma == MOST_GAMMA else ""
    return settings, [
        f"Focal-SAM with gamma {gamma:g}, lambda {scale:g}: the sharpness of the most frequent class counts "
        f"{weights[0]:.2f}, that of the rarest {weights[1]:.2f}{limit}"
    ]


def focal_gamma(most: float, least: float) -> float:
    """gamma by the shares of the most frequent and of the rarest class, see [`choose_sharpness`]."""
    if most < BALANCED * least:
        return 0.0
    if most == 1:
        return 0.0  # there is one class
    return min(MOST_GAMMA, round(math.log(RATIO) / math.log((1 - most) / (1 - least)), 2))
