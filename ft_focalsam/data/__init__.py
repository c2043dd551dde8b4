"""Labelled images: where they come from, how their class counts are shaped, how they become tensors."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
