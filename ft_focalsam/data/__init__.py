"""Labelled images: where they come from, how their class counts are shaped, how they become tensors."""

import lazy_loader

from ..base.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

OLD_NAMES = {
    "find_pictures": "find_images",
}
__getattr__ = with_old_names(__name__, __getattr__, OLD_NAMES)
