"""Averages of weights: over the steps of a run, over runs, over subsets of the data, and with the start.

| file | average | paper |
|---|---|---|
| `ema.py` | over the steps of a run, exponentially weighted (`--ema_decay`) | Polyak and Juditsky, 1992; TensorFlow |
| `soups.py` | over runs or checkpoints: uniform and greedy soups | Wortsman et al., arXiv 2203.05482 |
| `lt_soups.py` | over subsets of growing imbalance | Aminbeidokhti et al., arXiv 2511.10683 |
| `wise_ft.py` | of the tuned weights and those before training | Wortsman et al., arXiv 2109.01903 |

All but the first are `average` of `Ingredient`s, by weights that the method chooses.
"""

from .average import average
from .ema import WeightEMA, WeightEMACallback
from .ingredients import Ingredient, read_ingredients
from .lt_soups import lt_soup_weights
from .run_folder import data_of_runs, evaluate_on, options_of_run, run_folder, saved_verdicts, write_average
from .soups import greedy_soup, uniform_weights
from .wise_ft import read_with_start

__all__ = [
    "Ingredient",
    "WeightEMA",
    "WeightEMACallback",
    "average",
    "data_of_runs",
    "evaluate_on",
    "greedy_soup",
    "lt_soup_weights",
    "options_of_run",
    "read_ingredients",
    "read_with_start",
    "run_folder",
    "saved_verdicts",
    "uniform_weights",
    "write_average",
]
