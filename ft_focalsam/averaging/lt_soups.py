"""LT-Soups (Aminbeidokhti et al., 2025, arXiv 2511.10683): soups over subsets of growing imbalance.

Stage 1: for i = 0, 1, ..., n-1, classes are cut to at most 2^i times the images of the rarest one, `branches` models
are fine-tuned from the pretrained start, each on a draw of its own, and averaged to theta_i. From the start theta,

    theta <- (1 - m) theta + m theta_i

for each i in turn, so that the most balanced subsets weigh least and the largest ones most. Stage 2 trains the
classifier head alone on all images. The authors' code takes m = 0.7, 2 branches, i = 0..6 on CIFAR-100-LT, logit
adjustment (which is cross-entropy for i = 0) and full fine-tuning.
"""


def lt_soup_weights(count: int, *, merge_rate: float, branches: int = 1) -> list[float]:
    """The weights that the rule above comes to.

    Args:
        count (`int`, >= 1): n, the number of subsets.
        merge_rate (`float`, above 0, to 1): m.
        branches (`int`, >= 1): Models of each subset.

    Returns:
        `list[float]`: First that of the start, (1 - m)^n, then m (1 - m)^(n - 1 - i) / branches for each branch of
        each i; their sum is 1.

    Raises:
        ValueError: If a value is out of range.
    """
    if not 0 < merge_rate <= 1:
        raise ValueError(f"merge_rate is {merge_rate:g}; set it above 0 and at most 1.")
    if count < 1 or branches < 1:
        name, value = ("the number of subsets", count) if count < 1 else ("branches", branches)
        raise ValueError(f"{name} is {value}; set it to 1 or more.")
    keep = 1 - merge_rate
    shares = [merge_rate * keep ** (count - 1 - index) / branches for index in range(count)]
    return [keep**count, *(share for share in shares for _ in range(branches))]
