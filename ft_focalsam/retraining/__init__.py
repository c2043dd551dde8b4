"""Second stages: a classifier head is trained again, or rescaled, on the features of its frozen, tuned backbone.

| file | method | paper |
|---|---|---|
| `crt.py` | classifier re-training with class-balanced sampling | Kang et al., arXiv 1910.09217 |
| `tau_norm.py` | class vectors divided by their length to the power of tau | the same |
| `lws.py` | one learned scale a class | the same |
| `cc_sam.py` | class-balanced sampling and adversarially shifted features | Zhou et al., CVPR 2023 |

Each is a dataclass of its options with a method `retrain`. The files import torch where they use it, so that their
options are listed without it.
"""

from . import cc_sam, crt, lws, tau_norm  # noqa: F401  (importing a file registers its method)
from .registry import RETRAINING, Retraining, register_retraining

__all__ = ["RETRAINING", "Retraining", "register_retraining"]
