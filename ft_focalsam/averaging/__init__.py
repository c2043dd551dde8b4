"""Averages of weights: over the steps of a run, over runs, over subsets of the data, and with the start.

| file | average | paper |
|---|---|---|
| `ema.py` | over the steps of a run, exponentially weighted (`--ema_decay`) | Polyak and Juditsky, 1992; TensorFlow |
| `soups.py` | over runs or checkpoints: uniform and greedy soups | Wortsman et al., arXiv 2203.05482 |
| `lt_soups.py` | over subsets of growing imbalance | Aminbeidokhti et al., arXiv 2511.10683 |
| `wise_ft.py` | of the tuned weights and those before training | Wortsman et al., arXiv 2109.01903 |

All but the first are `average.average` of `ingredients.Ingredient`s, by weights that the method chooses. The functions
are imported from their files, so that a trainer does not load what exports and reports need.
"""
