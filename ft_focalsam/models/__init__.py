"""Backbones, heads, text features, and the classifier made of them."""

import lazy_loader

from ..base.renamed import with_old_names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

OLD_NAMES = {
    "start_head": "init_head",
    "read_class_names": "read_prompt_names",
}
__getattr__ = with_old_names(__name__, __getattr__, OLD_NAMES)
