"""A run on the Hugging Face Hub: what is told about it, which of its files go there, and how.

`run_file.py` notes what a run was, `card.py` makes the model card of a folder from that, `files.py` says what may be
uploaded, `push.py` uploads it, `trainer_push.py` is the Trainer's side, and `space.py` makes a demo.
"""

import lazy_loader

from ..base.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

OLD_NAMES = {
    "HubPushing": "HubMixin",
}
__getattr__ = with_old_names(__name__, __getattr__, OLD_NAMES)
