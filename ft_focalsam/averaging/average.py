"""The weighted average of classifiers, as one classifier."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models import LongTailClassifier
from .ingredients import Ingredient
from .low_rank import add_updates, lora_layers, set_updates, truncate


@torch.no_grad()
def average(
    template: LongTailClassifier,
    ingredients: Sequence[Ingredient],
    weights: Sequence[float],
    *,
    rank: int | None = None,
) -> tuple[LongTailClassifier, float]:
    """sum_k w_k theta_k over what trained, summed in float64.

    Of LoRA it is the merged weights W + s_k B_k A_k that are averaged, not the factors: the result has the update
    sum_k w_k s_k B_k A_k, of the sum of the ranks or, where that is less, of the size of the layer. The running
    statistics of batch normalisation are averaged as they are, and not measured anew on images.

    Args:
        template (`LongTailClassifier`): A model of the same architecture; it is not changed.
        ingredients (sequence of [`Ingredient`]): Weights theta_k.
        weights (sequence of `float`): w_k, which sum to 1.
        rank (`int`, >= 1, *optional*): Cut each update to this rank.

    Returns:
        The classifier, in evaluation mode, and the largest relative error over the layers, in the Frobenius norm, that
        `rank` makes; 0 without it.

    Raises:
        ValueError: If the weights do not sum to 1, or a rank is given and there are no LoRA updates.
    """
    if len(weights) != len(ingredients) or abs(sum(weights) - 1) > 1e-6:
        raise ValueError(f"The weights {list(weights)} of {len(ingredients)} classifiers do not sum to 1.")
    first = ingredients[0]
    if rank is not None and (rank < 1 or not first.scales):
        why = "it takes 1 or more" if rank < 1 else f"'{first.name}' has no LoRA updates to cut to it"
        raise ValueError(f"rank is {rank}, and {why}; leave it out.")
    result = copy.deepcopy(template).eval()
    mean = {
        key: _mean([each.state[key] for each in ingredients], weights)
        for key in first.state
        if not first.is_factor(key)
    }
    result.load_state_dict(mean, strict=False)
    updates, error = {}, 0.0
    for name, layer in lora_layers(result.backbone).items() if first.scales else ():
        place = f"backbone.{name}"
        scales = [weight * each.scales[place] for each, weight in zip(ingredients, weights, strict=True)]
        a, b = add_updates([each.factors(place) for each in ingredients], scales)
        most = min(b.shape[0], a[0].numel())
        if rank is not None or a.shape[0] > most:
            a, b, lost = truncate(a, b, most if rank is None else rank)
            error = max(error, lost)
        updates[layer] = a, b
    if updates:
        set_updates(result.backbone, updates)
    return result, error if rank is not None else 0.0


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Of floating-point tensors the weighted sum; of counts, as batch normalisation has them, the first."""
    if not values[0].is_floating_point():
        return values[0]
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        total.add_(value.double(), alpha=weight)
    return total.to(values[0].dtype)
