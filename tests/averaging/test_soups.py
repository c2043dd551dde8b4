"""Which classifiers a soup takes, and the weights of LT-Soups, against loops over single tensors."""

import pytest
import torch
from averaging.ingredients import save_several
from tuning.tiny import NAMES, make_images

from ft_focalsam.averaging.average import average
from ft_focalsam.averaging.ingredients import read_ingredients
from ft_focalsam.averaging.lt_soups import lt_soup_weights
from ft_focalsam.averaging.soups import greedy_soup, uniform_weights

LABELS = torch.tensor([0, 1, 2, 3, 4] * 8)


def accuracy(model) -> float:
    with torch.no_grad():
        return float((model(make_images(40)).logits.argmax(1) == LABELS).float().mean())


def greedy_by_hand(template, ingredients) -> list[int]:
    """Recipe 1 of the paper, on means of state dicts."""

    def score(indices):
        total = {name: torch.zeros_like(value) for name, value in ingredients[0].state.items()}
        for index in indices:
            for name, value in ingredients[index].state.items():
                total[name] += value / len(indices)
        template.load_state_dict(total, strict=False)
        return accuracy(template)

    order = sorted(range(len(ingredients)), key=lambda index: (-score([index]), index))
    soup = []
    for index in order:
        if not soup or score([*soup, index]) >= score(soup):
            soup.append(index)
    return soup


@pytest.mark.parametrize("start", [1, 2, 3])
def test_the_greedy_soup_is_that_of_the_paper(start, tiny_backbones, tmp_path):
    folders = save_several(tmp_path, tiny_backbones["clip"], "norms", count=6 + start)[start:]
    template, ingredients = read_ingredients(folders)
    weights = greedy_soup(template, ingredients, accuracy)
    chosen = greedy_by_hand(template, ingredients)
    assert [index for index, weight in enumerate(weights) if weight] == sorted(chosen)
    assert all(weight in (0, 1 / len(chosen)) for weight in weights)
    assert 1 <= len(chosen) < 6  # neither all nor none


def test_a_soup_that_is_as_good_is_taken_and_each_decision_told(tiny_backbones, tmp_path):
    template, ingredients = read_ingredients(save_several(tmp_path, tiny_backbones["clip"], "norms"))
    said = []
    assert greedy_soup(template, ingredients, lambda model: 0.5, say=said.append) == uniform_weights(3)
    assert [line.rpartition(", ")[2] for line in said] == ["taken"] * 3 and "run0: 50.00% alone" in said[0]
    scores = iter([0.1, 0.3, 0.2, 0.25, 0.3])  # alone: the second is best; with the third 0.25, with the first 0.3
    assert greedy_soup(template, ingredients, lambda model: next(scores)) == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("count, rate, branches", [(1, 0.7, 1), (4, 0.7, 2), (7, 0.3, 3), (3, 1.0, 1)])
def test_lt_soup_weights_are_those_of_merging_one_after_the_other(count, rate, branches):
    start, values = 5.0, torch.randn(count, branches, generator=torch.Generator().manual_seed(0)).double()
    theta = start
    for row in values:
        theta = (1 - rate) * theta + rate * sum(float(v) for v in row) / branches
    weights = lt_soup_weights(count, merge_rate=rate, branches=branches)
    assert sum(weights) == pytest.approx(1)
    assert weights[0] * start + sum(w * float(v) for w, v in zip(weights[1:], values.flatten(), strict=True)) == (
        pytest.approx(theta)
    )


def test_values_out_of_range_are_named():
    with pytest.raises(ValueError, match="merge_rate is 0; set it above 0 and at most 1"):
        lt_soup_weights(2, merge_rate=0)
    with pytest.raises(ValueError, match="branches is 0; set it to 1 or more"):
        lt_soup_weights(2, merge_rate=0.5, branches=0)


def test_a_uniform_soup_of_one_is_the_classifier(tiny_backbones, tmp_path):
    template, ingredients = read_ingredients(save_several(tmp_path, tiny_backbones["clip"], "lora", count=1))
    result, _ = average(template, ingredients, uniform_weights(1))
    assert len(NAMES) == 5 and accuracy(result) == accuracy(template)
