"""Model soups (Wortsman et al., 2022, arXiv 2203.05482): weights of several fine-tuned models, averaged.

A soup needs runs from the same start: one pretrained model, one start of the head. Modules that are inserted with
random weights (adapters, prompts) have the same start in runs of one `--seed` alone; let `--data_seed`, the learning
rate or the augmentation differ instead. LoRA is averaged as merged weights, so that its random factors do not matter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..base.registry import Registry
from ..models import LongTailClassifier
from .average import average
from .ingredients import Ingredient


@dataclass(frozen=True)
class Soup:
    """
    Attributes:
        weigh (`Callable`): `(template, ingredients, score, *, say, hyperparameters...) -> weights`, as `greedy_soup`.
        needs_score (`bool`): Whether it reads `score`, and so needs images that were put aside.
    """

    weigh: Callable[..., list[float]]
    needs_score: bool = False


SOUPS: Registry[Soup] = Registry("soup")


def register_soup(name: str, *, needs_score: bool = False) -> Callable:
    """Register a function as a soup, see [`Soup`]. Its hyperparameters, each with a default and a note as those of
    sharpness methods, are options of the command.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(weigh: Callable) -> Callable:
        SOUPS.register(name)(Soup(weigh, needs_score))
        return weigh

    return decorate


def uniform_weights(count: int) -> list[float]:
    """1/K each: the uniform soup."""
    return [1 / count] * count


@register_soup("uniform")
def uniform_soup(
    template: LongTailClassifier,
    ingredients: Sequence[Ingredient],
    score: Callable[[LongTailClassifier], float] | None = None,
    *,
    say: Callable[[str], object] = lambda text: None,
) -> list[float]:
    """The uniform soup: all alike."""
    return uniform_weights(len(ingredients))


@register_soup("greedy", needs_score=True)
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
        result = "taken" if is_taken else "left out"
        say(f"{ingredients[index].name}: {alone[index]:.2%} alone, {found:.2%} in the soup, {result}")
        if is_taken:
            chosen, best = [*chosen, index], found
    return [1 / len(chosen) if index in chosen else 0.0 for index in range(len(ingredients))]
