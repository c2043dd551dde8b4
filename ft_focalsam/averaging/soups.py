"""Model soups (Wortsman et al., 2022, arXiv 2203.05482): weights of several fine-tuned models, averaged.

A soup needs runs from the same start: one pretrained model, one start of the head. Modules that are inserted with
random weights (adapters, prompts) have the same start in runs of one `--seed` alone; let `--data_seed`, the learning
rate or the augmentation differ instead. LoRA is averaged as merged weights, so that its random factors do not matter.
"""

from collections.abc import Callable, Sequence

from ..models import LongTailClassifier
from .average import average
from .ingredients import Ingredient


def uniform_weights(count: int) -> list[float]:
    """1/K each: the uniform soup."""
    return [1 / count] * count


def greedy_soup(
    template: LongTailClassifier,
    ingredients: Sequence[Ingredient],
    score: Callable[[LongTailClassifier], float],
    *,
    say: Callable[[str], object] = lambda text: None,
) -> list[float]:
    """The greedy soup (recipe 1 of the paper): from the best classifier on held-out images to the worst, each is taken
    into the soup where the soup is then no worse on them.

    Args:
        template (`LongTailClassifier`), ingredients (sequence of [`Ingredient`]): As for [`average`].
        score (`Callable`): What is to be high, on images that nothing was trained on and nothing is tested on.
        say (`Callable`): Is told each decision.

    Returns:
        `list[float]`: The weights of the ingredients: 1/k for the k that are taken, 0 for the others.
    """

    def score_of(chosen: Sequence[int]) -> float:
        weights = uniform_weights(len(chosen))
        return score(average(template, [ingredients[index] for index in chosen], weights)[0])

    alone = [score_of([index]) for index in range(len(ingredients))]
    order = sorted(range(len(ingredients)), key=lambda index: -alone[index])  # stable: of equals the first one given
    chosen, best = order[:1], alone[order[0]]
    say(f"{ingredients[order[0]].name}: {best:.2%} alone, taken")
    for index in order[1:]:
        found = score_of([*chosen, index])
        is_taken = found >= best
        verdict = "taken" if is_taken else "left out"
        say(f"{ingredients[index].name}: {alone[index]:.2%} alone, {found:.2%} in the soup, {verdict}")
        if is_taken:
            chosen, best = [*chosen, index], found
    return [1 / len(chosen) if index in chosen else 0.0 for index in range(len(ingredients))]
